"""Flow Matching for Generative Modeling. Lipman et al., 2022. arXiv:2210.02747.

Survey R06, Eq. 107-112, Box 11.

A network regressed on the velocities of Gaussian conditional paths: the paper's straight ones (OT),
those of diffusion, or cosines; sampled by an ODE solver. Deviations: DDPM's UNet in place of ADM's;
classes, with labels dropped for classifier-free guidance (arXiv:2207.12598), are not in the paper.
"""

from jaxgen import nn, noise, paths, samplers
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase
from jaxgen.objectives import change_of_variables, velocity
from jaxgen.samplers import guidance

# arXiv:2210.02747, Eq. 20 (OT) and 18 (diffusion); arXiv:2202.00512, Sec. 2.
PATHS = {"Linear": paths.Linear, "VP": paths.VP, "Cosine": paths.Cosine}


def build(
  *,
  image_shape=(32, 32, 3),
  n_classes=0,
  label_dropout=0.1,
  net="UNet",
  net_args={"channels": 256, "multipliers": (1, 2, 2, 2), "attention": (16,), "dropout": 0.0},
  path="Linear",
  path_args={"sigma_min": 0.0},
  tx={"lr": 5e-4, "warmup": 45_000, "decay": "linear", "steps": 391_000},
  ema=0.9999,
  accumulate=1,
  sampler={"name": "euler", "steps": 100},
  guidance_weight=0.0,
  ode_steps=100,
):
  """The Method; the defaults are the paper's CIFAR-10 model but for the UNet.

  Args:
    image_shape: (H, W, C) of batches, in [-1, 1], and samples, which are not clipped.
    n_classes: 0, or the number of labels; label_dropout: how often training leaves the label out.
    net, net_args: of `nn.image_net`.
    path: "Linear", "VP" or "Cosine"; path_args: numbers of its class in `paths`.
    tx, ema: of `optim.adam` and `optim.averages`. accumulate: micro-batches an update.
    sampler: of `samplers.draw`: a name, steps and options. guidance_weight: w; 0 does not guide.
    ode_steps: of Heun's method in log_prob.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_conditioning(n_classes, label_dropout, guidance_weight)
  method.check_count("ode_steps", ode_steps)
  method.check("path", path, path in PATHS, f"one of {', '.join(PATHS)}")
  method.check_keywords("path_args", path_args, PATHS[path], path)
  path = PATHS[path](**path_args)
  samplers.check(path, sampler)
  init, apply_net = nn.image_net(net, image_shape, n_classes, **net_args)

  def velocity_fn(vars, label=None, draw=None):
    # The network's time embedding is made for 0 to 1000.
    return lambda x_t, t: apply_net(vars, x_t, 1000.0 * t, label, draw)

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, n_classes)
    k_loss, k_label, k_dropout = noise.split(keys, 3)
    label = guidance.training_label(k_label, batch, label_dropout, n_classes)
    fn = velocity_fn(vars, label, noise.stream(k_dropout))
    return velocity.flow_matching(fn, batch["image"], k_loss, path=path).mean(), Aux()

  def field(vars, cond={}, *, w=guidance_weight):
    """cond: {"label": int32 [n]}, or {}."""
    of = lambda label: paths.velocity_field(path, velocity_fn(vars, label))
    return guidance.of_labels(of, cond, n_classes, w)

  def sample(vars, keys, cond={}, *, w=guidance_weight, **options):
    """{"image": [n, *image_shape]}. cond, w: of `field`; a `name` in options replaces `sampler`."""
    return {"image": samplers.draw(field(vars, cond, w=w), keys, image_shape, sampler, **options)}

  def log_prob(vars, batch, keys):
    """A lower bound on log P of 8-bit images, in nats [B].

    Of the null class, or given the labels where label_dropout is 0.
    """
    cond = guidance.likelihood_cond(batch, image_shape, n_classes, label_dropout)
    fn = velocity_fn(vars, cond.get("label"))
    return change_of_variables.flow_log_prob(fn, batch["image"], keys, path, ode_steps)

  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx), accumulate=accumulate)},
    ema=optim.averages("net", ema),
    fns={"sample": sample, "field": field, "log_prob": log_prob},
  )

"""Improving Rectified Flow with Boundary Conditions. Hu et al., 2025. arXiv:2506.15864.

Survey R05, Eq. 106.

Rectified flow whose velocity is E[X1] - x at the noise and x at the data, whatever the weights of
its network: then the score is finite up to the data. Deviations: the masks between the ends; flow
matching's UNet; E[X1] is that of each class where there are classes, and
is counted while training; labels dropped for classifier-free guidance, arXiv:2207.12598.
"""

from jaxgen import nn, noise, paths, samplers
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase
from jaxgen.objectives import boundary as boundary_lib
from jaxgen.objectives import change_of_variables, velocity
from jaxgen.samplers import guidance

_BOUNDARIES = {"masked": boundary_lib.masked, "subtracted": boundary_lib.subtracted}


def build(
  *,
  image_shape=(32, 32, 3),
  n_classes=0,
  label_dropout=0.1,
  net="UNet",
  net_args={"channels": 256, "multipliers": (1, 2, 2, 2), "attention": (16,), "dropout": 0.0},
  boundary="masked",
  power=8.0,
  tx={"lr": 5e-4, "warmup": 45_000, "decay": "linear", "steps": 391_000},
  ema=0.9999,
  accumulate=1,
  sampler={"name": "euler", "steps": 100},
  guidance_weight=0.0,
  ode_steps=100,
):
  """The Method; the defaults are flow matching's CIFAR-10 model.

  Args:
    image_shape: (H, W, C) of batches, in [-1, 1], and samples, which are not clipped.
    n_classes: 0, or the number of labels; label_dropout: how often training leaves the label out.
    net, net_args: of `nn.image_net`.
    boundary: "masked", or "subtracted", which evaluates the network three times. power: of both,
      of `boundary.masked`.
    tx, ema: of `optim.adam` and `optim.averages`. accumulate: micro-batches an update.
    sampler: of `samplers.draw`: a name, steps and options. guidance_weight: w; 0 does not guide.
    ode_steps: of Heun's method in log_prob.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_conditioning(n_classes, label_dropout, guidance_weight)
  method.check_count("ode_steps", ode_steps)
  known = boundary in _BOUNDARIES
  method.check("boundary", boundary, known, f"one of {', '.join(_BOUNDARIES)}")
  bounded = _BOUNDARIES[boundary]
  bounded(lambda x_t, t: x_t, 0.0, power=power)  # its own refusals
  path = paths.Linear()
  samplers.check(path, sampler)
  init_net, apply_net = nn.image_net(net, image_shape, n_classes, **net_args)

  def init(key):
    vars = init_net(key)
    kept = {**vars.extra.get("net", {}), "means": boundary_lib.no_means(image_shape, n_classes)}
    return vars._replace(extra={**vars.extra, "net": kept})

  def velocity_fn(vars, label=None, draw=None):
    # The network's time embedding is made for 0 to 1000.
    m_fn = lambda x_t, t: apply_net(vars, x_t, 1000.0 * t, label, draw)
    means = vars.extra["net"]["means"]["mean"]
    return bounded(m_fn, means[-1:] if label is None else means[label], power=power)

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, n_classes)
    k_loss, k_label, k_dropout = noise.split(keys, 3)
    label = guidance.training_label(k_label, batch, label_dropout, n_classes)
    fn = velocity_fn(vars, label, noise.stream(k_dropout))
    kept = vars.extra["net"]
    means = boundary_lib.update_means(kept["means"], batch["image"], batch.get("label"))
    values = velocity.flow_matching(fn, batch["image"], k_loss, path=path)
    return values.mean(), Aux(extra={"net": {**kept, "means": means}})

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

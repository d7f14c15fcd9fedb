"""Improving and Generalizing Flow-Based Generative Models with Minibatch Optimal Transport.

Tong et al., 2023. arXiv:2302.00482. Beside survey R06 (flow_matching.py), as is multisample flow
matching: Pooladian et al., 2023. arXiv:2304.14772.

Flow matching between any two distributions, on pairs that an optimal transport plan of the batch
makes: straighter flows and a steadier target (OT-CFM), or along Brownian bridges on an entropic
plan (SB-CFM, a Schroedinger bridge, here drawn by its probability flow alone). Deviations: the
network is told 1000 t, as it was made for; classes, with labels dropped for classifier-free
guidance (arXiv:2207.12598). A plan knows nothing of labels, so noise and label of a pair depend on
each other, which those of samples do not (arXiv:2503.10636).
"""

import functools

import jax.numpy as jnp

from jaxgen import nn, noise, paths, samplers
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase
from jaxgen.objectives import change_of_variables, couplings, interpolant
from jaxgen.samplers import guidance

PATH = paths.Linear()
BRIDGES = {"constant": interpolant.Constant, "brownian": interpolant.Bridge}


def _coupling(name, start, sigma):
  if name == "entropic":
    method.check_positive("sigma", sigma)
    return functools.partial(couplings.entropic, reg=2.0 * sigma**2)  # Sec. 3.2.4
  known = {
    "independent": couplings.independent if start == "noise" else couplings.shuffled,
    "optimal": couplings.optimal,
  }
  method.check("coupling", name, name in known, "independent, optimal or entropic")
  return known[name]


def build(
  *,
  image_shape=(32, 32, 3),
  n_classes=0,
  label_dropout=0.1,
  net="ADM",
  net_args={
    "channels": 128, "multipliers": (1, 2, 2, 2), "n_res_blocks": 2, "attention": (16,),
    "head_channels": 64, "scale_shift": False, "resblock_updown": False, "dropout": 0.1,
  },
  start="noise",
  coupling="optimal",
  bridge="constant",
  sigma=0.0,
  tx={"lr": 2e-4, "warmup": 5000, "clip": 1.0},
  ema=0.9999,
  accumulate=1,
  sampler={"name": "euler", "steps": 100},
  guidance_weight=0.0,
  ode_steps=100,
):  # fmt: skip
  """The Method; the defaults are the authors' CIFAR-10 model, OT-CFM.

  Args:
    image_shape: (H, W, C) of batches, in [-1, 1], and samples, which are not clipped.
    n_classes: 0, or the number of labels; label_dropout: how often training leaves the label out.
    net, net_args: of `nn.image_net`.
    start: "noise", or "data": images that batches, and samplers in their cond, have as `start`.
    coupling: "independent" (I-CFM), "optimal" (OT-CFM) or "entropic" (SB-CFM, with reg 2 sigma^2):
      which start of the micro-batch goes with which image, whatever pairs the data have.
    bridge: "constant" or "brownian", with sigma: the width of the noise around lines.
    tx, ema: of `optim.adam` and `optim.averages`. accumulate: micro-batches an update.
    sampler: of `samplers.draw`: a name, steps and options. guidance_weight: w; 0 does not guide.
    ode_steps: of Heun's method in log_prob, which flows that start at data do not have.

  Raises:
    ValueError: a number or a name out of range; in use, a batch or cond that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_conditioning(n_classes, label_dropout, guidance_weight)
  method.check("start", start, start in ("noise", "data"), "noise or data")
  method.check("bridge", bridge, bridge in BRIDGES, f"one of {', '.join(BRIDGES)}")
  method.check_count("ode_steps", ode_steps)
  samplers.check(PATH, sampler)
  couple, gamma = _coupling(coupling, start, sigma), BRIDGES[bridge](sigma)
  init, apply_net = nn.image_net(net, image_shape, n_classes, **net_args)
  starts = {"start": image_shape} if start == "data" else {}

  def velocity_fn(vars, label=None, draw=None):
    # The network's time embedding is made for 0 to 1000.
    return lambda x_t, t: apply_net(vars, x_t, 1000.0 * t, label, draw)

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, n_classes)
    method.check_given(batch, starts)
    k_start, k_pair, k_loss, k_label, k_dropout = noise.split(keys, 5)
    x0 = batch["start"] if starts else noise.normal(k_start, image_shape)
    x0, x1 = couple(x0, batch["image"], k_pair)
    label = guidance.training_label(k_label, batch, label_dropout, n_classes)
    fn = velocity_fn(vars, label, noise.stream(k_dropout))
    error = interpolant.velocity(fn, x0, x1, k_loss, gamma=gamma)  # Eq. 10
    return error.mean(), Aux({"transport": jnp.mean((x1 - x0) ** 2)})

  def field(vars, cond={}, *, w=guidance_weight):
    """cond: {"label": int32 [n]}, or {}, and a `start`, which it does not need.

    But for independent noise and sigma = 0 only its velocities mean anything: the score, and
    samplers with noise, are those of independent noise.
    """
    of = lambda label: paths.velocity_field(PATH, velocity_fn(vars, label))
    return guidance.of_labels(of, method.without(cond, starts), n_classes, w)

  def sample(vars, keys, cond={}, *, w=guidance_weight, **options):
    """{"image": [n, *image_shape]}. w: of `field`; a `name` in options replaces `sampler`.

    cond: of `field`, and with data as starts also {"start": [n, *image_shape]}.
    """
    method.check_given(cond, starts)
    at = cond["start"] if starts else None
    x = samplers.draw(field(vars, cond, w=w), keys, image_shape, sampler, start=at, **options)
    return {"image": x}

  def log_prob(vars, batch, keys):
    """A lower bound on log P of 8-bit images, in nats [B].

    Of the null class, or given the labels where label_dropout is 0.
    """
    cond = guidance.likelihood_cond(batch, image_shape, n_classes, label_dropout)
    fn = velocity_fn(vars, cond.get("label"))
    return change_of_variables.flow_log_prob(fn, batch["image"], keys, PATH, ode_steps)

  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx), accumulate=accumulate)},
    ema=optim.averages("net", ema),
    fns={"sample": sample, "field": field, **({} if starts else {"log_prob": log_prob})},
    given=tuple(starts),
  )

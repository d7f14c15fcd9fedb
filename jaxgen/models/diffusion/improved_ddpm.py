"""Improved DDPM: Improved Denoising Diffusion Probabilistic Models. Nichol and Dhariwal, 2021.
arXiv:2102.09672.

Survey D04, Eq. 87-88.

DDPM (arXiv:2006.11239) whose network also says how large the variance of a reverse step is, trained
with L_hybrid or, importance sampled, with the bound itself, on a cosine schedule. Classes are
optional; labels dropped for classifier-free guidance (arXiv:2207.12598) are not in the paper.
"""

import jax.numpy as jnp
import numpy as np

from jaxgen import nn, noise, paths, samplers
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase
from jaxgen.objectives import diffusion_elbo, score
from jaxgen.samplers import guidance


def _linear_betas(T):
  """DDPM's schedule at T = 1000, and as much noise in all at another T. As in the paper's code."""
  return np.linspace(0.1 / T, 20.0 / T, T)


_SCHEDULES = {"linear": (_linear_betas, 21), "cosine": (paths.cosine_betas, 2)}  # and the least T


def chain(schedule, T):
  """The paths.Discrete of betas [T], of a schedule. arXiv:2102.09672, Eq. 17.

  schedule: "linear" or "cosine", a name of betas [T]. T: a scalar. Raises ValueError for another
  schedule, or a T too small for it.
  """
  method.check("schedule", schedule, schedule in _SCHEDULES, f"one of {', '.join(_SCHEDULES)}")
  betas, least = _SCHEDULES[schedule]
  method.check_count("T", T, least)
  return paths.Discrete(tuple(betas(T).tolist()))


def build(
  *,
  image_shape=(32, 32, 3),
  n_classes=0,
  label_dropout=0.0,
  net="ADM",
  net_args={
    "channels": 128, "multipliers": (1, 2, 2, 2), "n_res_blocks": 3, "attention": (16, 8),
    "head_channels": 0, "heads": 4, "resblock_updown": False, "dropout": 0.3,
  },
  schedule="cosine",
  T=4000,
  T_net=1000,
  objective="hybrid",
  vlb_weight=1e-3,
  history=10,
  tx={"lr": 1e-4},
  ema=0.9999,
  accumulate=1,
  sampler={"name": "ancestral", "steps": 4000},
  guidance_weight=0.0,
  bound_terms=4000,
):  # fmt: skip
  """The Method; the defaults are the paper's CIFAR-10 model.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1]; an ODE solver may overshoot.
    n_classes: 0, or the number of labels; label_dropout: how often training leaves the label out.
    net, net_args: of `nn.image_net`.
    schedule, T: of `chain`. T_net: what the network counts the T steps to; T leaves them as they
      are, 1000 is what the paper's models without classes do.
    objective: "hybrid"; "vlb", the bound; or "simple", DDPM's, which learns no variance.
    vlb_weight: lambda of "hybrid". history: terms of each time that "vlb" remembers.
    tx, ema: of `optim.adam` and `optim.averages`. accumulate: micro-batches an update.
    sampler: of `samplers.draw`: a name, steps and options. guidance_weight: w; 0 does not guide.
    bound_terms: times at which log_prob takes the terms of the bound; T takes every one.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_conditioning(n_classes, label_dropout, guidance_weight)
  path = chain(schedule, T)
  method.check_count("bound_terms", bound_terms, 1, T)
  method.check_positive("T_net", T_net)
  method.check_weight("vlb_weight", vlb_weight)
  method.check_count("history", history)
  samplers.check(path, sampler)

  def simple(fn, vars, x, keys):
    return score.simple(fn, x, keys, path=path), {}

  def hybrid(fn, vars, x, keys):
    return diffusion_elbo.hybrid(fn, x, keys, path=path, vlb_weight=vlb_weight), {}

  def vlb(fn, vars, x, keys):
    seen = vars.extra["sampler"]
    bits, t, terms = diffusion_elbo.vlb(
      fn, x, keys, path=path, p=diffusion_elbo.time_weights(**seen)
    )
    new = diffusion_elbo.time_history(**seen, t=t, terms=terms)
    return bits, {"sampler": dict(zip(("history", "count"), new, strict=True))}

  losses = {"simple": simple, "hybrid": hybrid, "vlb": vlb}
  method.check("objective", objective, objective in losses, f"one of {', '.join(losses)}")
  learned = objective != "simple"
  as_field = paths.learned_field if learned else paths.eps_field
  out_channels = (1 + learned) * image_shape[-1]
  init_net, apply_net = nn.image_net(net, image_shape, n_classes, out_channels, **net_args)

  def init(key):
    vars = init_net(key)
    if objective != "vlb":
      return vars
    seen = {"history": jnp.zeros((T, history)), "count": jnp.zeros(T, jnp.int32)}
    return vars._replace(extra={**vars.extra, "sampler": seen})

  def net_fn(vars, label=None, draw=None):
    # The network counts time from 0, as the official one does.
    return lambda x_t, t: apply_net(vars, x_t, (t - 1.0) * (T_net / T), label, draw)

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, n_classes)
    k_loss, k_label, k_dropout = noise.split(keys, 3)
    label = guidance.training_label(k_label, batch, label_dropout, n_classes)
    fn = net_fn(vars, label, noise.stream(k_dropout))
    values, extra = losses[objective](fn, vars, batch["image"], k_loss)
    return values.mean(), Aux(extra=extra)

  def field(vars, cond={}, *, w=guidance_weight):
    """cond: {"label": int32 [n]}, or {}. x is clipped to [-1, 1], as the paper's sampler does."""
    of = lambda label: as_field(path, net_fn(vars, label))
    return guidance.clipped(guidance.of_labels(of, cond, n_classes, w))

  def sample(vars, keys, cond={}, *, w=guidance_weight, **options):
    """{"image": [n, *image_shape]}. cond, w: of `field`; a `name` in options replaces `sampler`."""
    return {"image": samplers.draw(field(vars, cond, w=w), keys, image_shape, sampler, **options)}

  def log_prob(vars, batch, keys):
    """A lower bound on log P of 8-bit images, in nats [B].

    Of the null class, or given the labels where label_dropout is 0.
    """
    cond = guidance.likelihood_cond(batch, image_shape, n_classes, label_dropout)
    return -diffusion_elbo.bound(field(vars, cond, w=0.0), batch["image"], keys, terms=bound_terms)

  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx), accumulate=accumulate)},
    ema=optim.averages("net", ema),
    fns={"sample": sample, "field": field, "log_prob": log_prob},
  )

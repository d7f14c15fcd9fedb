"""Score SDE: Score-Based Generative Modeling through SDEs. Song et al., 2020. arXiv:2011.13456.

Survey D05, Sec. 6.1.

A network for the score of data diffused by the VP, sub-VP or VE SDE, sampled by the reverse-time
SDE or the probability flow, whose ODE also gives likelihoods. Deviation: classes, with labels
dropped for classifier-free guidance (arXiv:2207.12598), are not in the paper.
"""

import jax.numpy as jnp

from jaxgen import nn, noise, paths, samplers
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase
from jaxgen.objectives import change_of_variables, score
from jaxgen.samplers import guidance, ode

PATHS = {"VP": paths.VP, "SubVP": paths.SubVP, "VE": paths.VE}
T_MIN = 1e-5  # the smallest time of training and likelihoods, as in the authors' code


def build(
  *,
  image_shape=(32, 32, 3),
  n_classes=0,
  label_dropout=0.1,
  net="NCSNpp",
  net_args={"channels": 128, "multipliers": (1, 2, 2, 2), "attention": (16,), "dropout": 0.1},
  path="VP",
  path_args={"beta_min": 0.1, "beta_max": 20.0},
  tx={"lr": 2e-4, "warmup": 5000, "clip": 1.0},
  ema=0.9999,
  accumulate=1,
  sampler={"name": "euler_maruyama", "steps": 1000},
  guidance_weight=0.0,
  ode_steps=50,
):
  """The Method; the defaults are the paper's CIFAR-10 model DDPM++ cont. (VP).

  Args:
    image_shape: (H, W, C) of batches, in [-1, 1], and samples, which are not clipped.
    n_classes: 0, or the number of labels; label_dropout: how often training leaves the label out.
    net, net_args: of `nn.image_net`; it is told 999 t, or log(sigma / 2) on VE.
    path: the SDE, "VP", "SubVP" or "VE". path_args: numbers of its class in `paths`; sigmas are of
      images in [-1, 1], twice those of the paper.
    tx, ema: of `optim.adam` and `optim.averages`. accumulate: micro-batches an update.
    sampler: of `samplers.draw`: a name, steps and options. guidance_weight: w; 0 does not guide.
    ode_steps: of Runge-Kutta's method in log_prob, four evaluations each.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_conditioning(n_classes, label_dropout, guidance_weight)
  method.check_count("ode_steps", ode_steps)
  method.check("path", path, path in PATHS, f"one of {', '.join(PATHS)}")
  method.check_keywords("path_args", path_args, PATHS[path], path)
  explodes, path = path == "VE", PATHS[path](**path_args)
  samplers.check(path, sampler)
  init, apply_net = nn.image_net(net, image_shape, n_classes, **net_args)

  def eps_fn(vars, label=None, draw=None):
    """The network is -sigma score, or +sigma score on VE, as in the authors' code."""
    if explodes:
      return lambda x_t, t: -apply_net(vars, x_t, jnp.log(0.5 * path.sigma(t)), label, draw)
    return lambda x_t, t: apply_net(vars, x_t, 999.0 * t, label, draw)

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, n_classes)
    k_loss, k_label, k_dropout = noise.split(keys, 3)
    label = guidance.training_label(k_label, batch, label_dropout, n_classes)
    fn = eps_fn(vars, label, noise.stream(k_dropout))
    return score.denoising(fn, batch["image"], k_loss, path=path, t_min=T_MIN).mean(), Aux()

  def field(vars, cond={}, *, w=guidance_weight):
    """cond: {"label": int32 [n]}, or {}."""
    of = lambda label: paths.eps_field(path, eps_fn(vars, label))
    return guidance.of_labels(of, cond, n_classes, w)

  def sample(vars, keys, cond={}, *, w=guidance_weight, **options):
    """{"image": [n, *image_shape]}. cond, w: of `field`; a `name` in options replaces `sampler`."""
    return {"image": samplers.draw(field(vars, cond, w=w), keys, image_shape, sampler, **options)}

  def log_prob(vars, batch, keys):
    """A lower bound on log P of 8-bit images, in nats [B]. Eq. 39.

    Of the null class, or given the labels where label_dropout is 0.

    Estimated with one draw of dequantization and trace an example, both unbiased. On Gaussian data
    50 steps are within 0.0002 bits/dim on average, of any width from 0.01 to 0.4.
    """
    cond = guidance.likelihood_cond(batch, image_shape, n_classes, label_dropout)
    u = jnp.linspace(0.0, 1.0, ode_steps + 1)
    ts = T_MIN + (1.0 - T_MIN) * (u if explodes else u**3)
    velocity = field(vars, cond, w=0.0).velocity
    return change_of_variables.image_log_prob(
      velocity, batch["image"], keys, ts, solve=ode.rk4, prior_std=path.prior_std
    )

  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx), accumulate=accumulate)},
    ema=optim.averages("net", ema),
    fns={"sample": sample, "field": field, "log_prob": log_prob},
  )

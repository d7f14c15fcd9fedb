"""EDM: Elucidating the Design Space of Diffusion-Based Generative Models. Karras et al., 2022.

arXiv:2206.00364.

Survey D12, Sec. 6.2.

A denoiser D(x, sigma), preconditioned to have inputs and targets of unit variance, trained on
log-normal noise levels and sampled by Heun's method. Deviation: labels dropped for classifier-free
guidance (arXiv:2207.12598) are not in the paper, nor by default here.
"""

import jax.numpy as jnp

from jaxgen import nn, noise, paths, samplers
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase
from jaxgen.nn import augment as augment_lib
from jaxgen.objectives import change_of_variables, score
from jaxgen.objectives import preconditioning as preconditioning_lib
from jaxgen.samplers import guidance, ode


def build(
  *,
  image_shape=(32, 32, 3),
  n_classes=0,
  label_dropout=0.0,
  net="NCSNpp",
  net_args={"multipliers": (2, 2, 2), "dropout": 0.13, "augment": 9},
  preconditioning="EDM",
  preconditioning_args={"sigma_data": 0.5, "P_mean": -1.2, "P_std": 1.2},
  sigma_min=0.002,
  sigma_max=80.0,
  augment=0.12,
  tx={"lr": 1e-3, "warmup": 19_531},
  ema={"profile": "warmup", "decay": 0.99929, "inv_gamma": 13.86, "power": 1.0},
  accumulate=1,
  sampler={"name": "edm", "steps": 18, "grid": "karras"},
  guidance_weight=0.0,
  ode_steps=50,
):
  """The Method; the defaults are the paper's unconditional CIFAR-10 model (VP architecture).

  Args:
    image_shape: (H, W, C) of batches, in [-1, 1], and samples, which are not clipped.
    n_classes: 0, or the number of labels; label_dropout: how often training leaves the label out.
    net, net_args: of `nn.image_net`.
    preconditioning, preconditioning_args: of `preconditioning.by_name`: a row of Table 1.
    sigma_min, sigma_max: the noise levels of sampling and of log_prob.
    augment: probability of `augment.augment` in training; above 0 it needs net_args.augment = 9.
    tx, ema: of `optim.adam` and `optim.averages`; the defaults are 10 million images of warm-up, a
      half-life of half a million and nearly the paper's ramp-up of it, for batches of 512.
    accumulate: micro-batches an update.
    sampler: of `samplers.draw`: a name, steps and options. guidance_weight: w; 0 does not guide.
    ode_steps: of Runge-Kutta's method in log_prob, four evaluations each.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_conditioning(n_classes, label_dropout, guidance_weight)
  method.check_count("ode_steps", ode_steps)
  method.check_unit("augment", augment)
  told = net_args.get("augment", 0) == augment_lib.LABELS
  method.check("augment", augment, told or not augment, "0, unless net_args.augment is 9")
  row = preconditioning_lib.by_name(preconditioning, preconditioning_args)
  path = paths.EDM(sigma_min, sigma_max)
  samplers.check(path, sampler)
  init, apply_net = nn.image_net(net, image_shape, n_classes, **net_args)

  def denoiser(vars, label=None, draw=None, **inputs):
    net_fn = lambda x, c_noise: apply_net(vars, x, c_noise, label, draw, **inputs)
    return preconditioning_lib.denoiser(row, net_fn)

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, n_classes)
    k_loss, k_label, k_dropout, k_augment = noise.split(keys, 4)
    x, inputs = batch["image"], {}
    label = guidance.training_label(k_label, batch, label_dropout, n_classes)
    if augment:
      x, inputs["augment"] = augment_lib.augment(k_augment, x, augment)
    fn = denoiser(vars, label, noise.stream(k_dropout), **inputs)
    return score.edm(fn, x, k_loss, row=row).mean(), Aux()

  def field(vars, cond={}, *, w=guidance_weight):
    """cond: {"label": int32 [n]}, or {}, for which only label_dropout trains."""
    of = lambda label: paths.x_field(path, denoiser(vars, label))
    return guidance.of_labels(of, cond, n_classes, w)

  def sample(vars, keys, cond={}, *, w=guidance_weight, **options):
    """{"image": [n, *image_shape]}. cond, w: of `field`; a `name` in options replaces `sampler`."""
    return {"image": samplers.draw(field(vars, cond, w=w), keys, image_shape, sampler, **options)}

  def log_prob(vars, batch, keys):
    """A lower bound on log P of 8-bit images, in nats [B].

    Of the null class, or given the labels where label_dropout is 0.

    That of the density at sigma_min, by the probability flow of Eq. 1. Estimated with one draw of
    dequantization and trace an example, both unbiased. On Gaussian data 50 steps are within 0.0002
    bits/dim on average, of any width from 0.01 to 0.4.
    """
    cond = guidance.likelihood_cond(batch, image_shape, n_classes, label_dropout)
    ts = jnp.linspace(sigma_min ** (1 / 7), sigma_max ** (1 / 7), ode_steps + 1) ** 7  # Eq. 5
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

"""DDPM: Denoising Diffusion Probabilistic Models. Ho et al., 2020. arXiv:2006.11239.

Survey D02, Eq. 82-83, Box 8.

A UNet that predicts the noise in x_t, trained with L_simple and sampled by its reversed chain.
Classes, with labels dropped for classifier-free guidance (arXiv:2207.12598), are not in the paper.
"""

from jaxgen import nn, noise, paths, samplers
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase
from jaxgen.objectives import diffusion_elbo, score
from jaxgen.samplers import guidance


def build(
  *,
  image_shape=(32, 32, 3),
  n_classes=0,
  label_dropout=0.1,
  net="UNet",
  net_args={"channels": 128, "multipliers": (1, 2, 2, 2), "attention": (16,), "dropout": 0.1},
  beta_1=1e-4,
  beta_T=0.02,
  T=1000,
  tx={"lr": 2e-4, "warmup": 5000, "clip": 1.0},
  ema=0.9999,
  accumulate=1,
  sampler={"name": "ancestral", "steps": 1000},
  guidance_weight=0.0,
  bound_terms=1000,
):
  """The Method; the defaults are the paper's CIFAR-10 model.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1]; an ODE solver may overshoot.
    n_classes: 0, or the number of labels; label_dropout: how often training leaves the label out.
    net, net_args: of `nn.image_net`.
    beta_1, beta_T, T: the linear noise schedule.
    tx, ema: of `optim.adam` and `optim.averages`. accumulate: micro-batches an update.
    sampler: of `samplers.draw`: a name, steps and options. guidance_weight: w; 0 does not guide.
    bound_terms: times at which log_prob takes the terms of the bound; T takes every one.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_conditioning(n_classes, label_dropout, guidance_weight)
  path = paths.linear_chain(beta_1, beta_T, T)
  method.check_count("bound_terms", bound_terms, 1, T)
  samplers.check(path, sampler)
  init, apply_net = nn.image_net(net, image_shape, n_classes, **net_args)

  def eps_fn(vars, label=None, draw=None):
    # The network counts time from 0, as the official one does.
    return lambda x_t, t: apply_net(vars, x_t, t - 1.0, label, draw)

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, n_classes)
    k_loss, k_label, k_dropout = noise.split(keys, 3)
    label = guidance.training_label(k_label, batch, label_dropout, n_classes)
    fn = eps_fn(vars, label, noise.stream(k_dropout))
    return score.simple(fn, batch["image"], k_loss, path=path).mean(), Aux()

  def field(vars, cond={}, *, w=guidance_weight):
    """cond: {"label": int32 [n]}, or {}. x is clipped to [-1, 1], as the paper's sampler does."""
    of = lambda label: paths.eps_field(path, eps_fn(vars, label))
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

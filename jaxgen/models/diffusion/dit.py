"""DiT: Scalable Diffusion Models with Transformers. Peebles and Xie, 2022. arXiv:2212.09748.

Survey D14, Sec. 6.3.

Improved DDPM (arXiv:2102.09672) on the latents of an autoencoder, or on pixels, with a transformer
over patches in place of the UNet, guided without a classifier. The authors' code guides three of
the four latent channels; the paper, and we unless `guided_channels` says otherwise, guide all.
"""

import numpy as np

from jaxgen import nn, noise, paths, samplers
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase
from jaxgen.nn import dit
from jaxgen.objectives import diffusion_elbo
from jaxgen.samplers import guidance


def build(
  *,
  image_shape=(32, 32, 4),
  n_classes=1000,
  label_dropout=0.1,
  size="XL",
  patch_size=2,
  net_args={"scan": True},
  beta_1=1e-4,
  beta_T=0.02,
  T=1000,
  tx={"lr": 1e-4},
  ema=0.9999,
  accumulate=1,
  sampler={"name": "ancestral", "steps": 250, "grid": "spaced"},
  guidance_weight=0.0,
  guided_channels=None,
  clip=False,
  bound_terms=1000,
):
  """The Method; the defaults are the paper's ImageNet 256x256 model, DiT-XL/2.

  Args:
    image_shape: (H, W, C) of batches and samples: latents, or pixels in [-1, 1].
    n_classes: 0, or the number of labels; label_dropout: how often training leaves the label out.
    size: of `nn.dit.SIZES`. patch_size: side of a patch. net_args: other fields of `nn.dit.DiT`,
      and those of `size` that are to differ.
    beta_1, beta_T, T: the linear noise schedule.
    tx, ema: of `optim.adam` and `optim.averages`. accumulate: micro-batches an update.
    sampler: of `samplers.draw`: a name, steps and options.
    guidance_weight: w; 0 does not guide. The paper's scale is 1 + w.
    guided_channels: how many channels, from the first, are guided; None is all, as in the paper. 3
      is what the authors' code does, and the numbers of the paper were measured with.
    clip: whether samplers keep x in [-1, 1]: for pixels, of which alone it offers a log_prob.
    bound_terms: times at which log_prob takes the terms of the bound; T takes every one.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  H, W, C = image_shape
  method.check_conditioning(n_classes, label_dropout, guidance_weight)
  if guided_channels is not None:
    method.check_count("guided_channels", guided_channels, 1, C)
  method.check("size", size, size in dit.SIZES, f"one of {', '.join(dit.SIZES)}")
  method.check_count("patch_size", patch_size)
  path = paths.linear_chain(beta_1, beta_T, T)
  method.check_count("bound_terms", bound_terms, 1, T)
  method.check("clip", clip, isinstance(clip, bool), "True or False")
  samplers.check(path, sampler)
  fields = {**dit.SIZES[size], **net_args}
  nn.module(dit.DiT, "net_args", fields, patch_size=patch_size).check(H, W)
  init, apply_net = nn.image_net(
    "DiT", image_shape, n_classes, 2 * C, patch_size=patch_size, **fields
  )

  def net_fn(vars, label=None):
    """(x_t, t) -> [B, H, W, 2C]: eps, and the log variance between -1 and 1."""
    # The network counts time from 0, as the official one does.
    return lambda x_t, t: apply_net(vars, x_t, t - 1.0, label)

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, n_classes)
    k_loss, k_label = noise.split(keys)
    label = guidance.training_label(k_label, batch, label_dropout, n_classes)
    fn = net_fn(vars, label)
    return diffusion_elbo.hybrid(fn, batch["image"], k_loss, path=path).mean(), Aux()

  def field(vars, cond={}, *, w=guidance_weight):
    """cond: {"label": int32 [n]}, or {}. Guided channels are mixed, the variance is cond's."""
    method.check_cond(cond, n_classes, w)
    of = lambda label: paths.learned_field(path, net_fn(vars, label))
    conditional = of(cond.get("label"))
    if w and cond:
      guided = np.arange(C) < (guided_channels or C)
      weights = w * guided[None, None, None].astype(np.float32)
      conditional = guidance.classifier_free(conditional, of(None), weights)
    return guidance.clipped(conditional) if clip else conditional

  def sample(vars, keys, cond={}, *, w=guidance_weight, **options):
    """{"image": [n, *image_shape]}: latents, or pixels about or, with clip, in [-1, 1].

    cond, w: of `field`; a `name` in options replaces `sampler`.
    """
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
    fns={"sample": sample, "field": field, **({"log_prob": log_prob} if clip else {})},
  )

"""VDVAE: Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images.

Child, 2020. arXiv:2011.10650.

Survey V14, Sec. 2.6.4.

43 to 75 groups of latents, from one of 1 x 1 to those as large as the image: each is drawn given
all before it, in the posterior with the features that an encoder found at its resolution beside
them. Layers, initialisation and numbers are those of the official code, openai/vdvae. In
training, updates whose gradients have a norm above `tx.skip` are left out; the loss is in nats per
dimension.

Deviations: the 5-bit images of the official code (ffhq256) end at 0.945, where its likelihood, made
for 32 values up to 1, has no bin; here they are 32 values from -1 to 1. An update that is left out
still moves the average of the parameters. `head="bernoulli"`, for images that are binarised anew
each time they are seen, is ours.
"""

import itertools
import math

import jax.numpy as jnp

from jaxgen import noise
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.nn import pixels
from jaxgen.nn import vdvae as nets
from jaxgen.objectives import elbo


def build(
  *,
  image_shape=(32, 32, 3),
  enc_blocks="32x11,32d2,16x6,16d2,8x6,8d2,4x3,4d4,1x3",
  dec_blocks="1x1,4m1,4x2,8m4,8x5,16m8,16x10,32m16,32x21",
  width=384,
  custom_widths="",
  z_dim=16,
  bottleneck=0.25,
  no_bias_above=64,
  head="dmol",
  mixtures=10,
  levels=256,
  pixel_mean=120.63838,
  pixel_std=64.16736,
  tx={"lr": 2e-4, "b2": 0.9, "weight_decay": 0.01, "clip": 200.0, "skip": 400.0, "warmup": 100},
  ema=0.9999,
):
  """The Method; the defaults are the official code's CIFAR-10 model.

  Args:
    image_shape: (H, W, C) of batches and samples, square, in [-1, 1].
    enc_blocks: from the image down; "32x11": 11 blocks on a side of 32; "32d2": one more, after
      which the side is divided by 2.
    dec_blocks: from the top down; "32x21": 21 groups of latents on a side of 32; "32m16": one to
      which the last of side 16 is added.
    width: channels; custom_widths: of some sides, "8:32,4:64", never more on a larger side.
    z_dim: channels of each group of latents.
    bottleneck: width inside a block, as a part of that outside.
    no_bias_above: the largest side that starts from learned numbers, not from 0.
    head: "dmol", `mixtures` discretised logistics of `levels` values, or "bernoulli".
    pixel_mean, pixel_std: of the data's pixels 0 ... 255: what the encoder sees is standardised.
    tx, ema: of `optim.adam` and `optim.averages`.

  Raises:
    ValueError: blocks that do not fit each other or the image, a number or a name out of range; in
      use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  counts = {"width": width, "z_dim": z_dim, "mixtures": mixtures}
  for name, count in counts.items():
    method.check_count(name, count)
  method.check_count("no_bias_above", no_bias_above, 0)
  fits = lambda b: int(b * width) >= 1 and b <= 1
  method.check_number("bottleneck", bottleneck, fits, "more than 0, at most 1, with channels left")
  method.check_number("pixel_mean", pixel_mean, math.isfinite, "a finite number")
  method.check_positive("pixel_std", pixel_std)
  method.check("levels", levels, levels in [2**i for i in range(1, 9)], "2, 4, 8 ... or 256")
  known = ("dmol", "bernoulli")
  method.check("head", head, head in known, f"one of {', '.join(known)}")
  nets.check_blocks(image_shape[0], enc_blocks, dec_blocks, width, custom_widths)
  H, W, C = image_shape
  method.check("image_shape", image_shape, H == W, "a square")
  binary, dims = head == "bernoulli", math.prod(image_shape)
  p = pixels.bernoulli(C) if binary else pixels.logistic_mixture(C, mixtures, levels)
  net = nets.VDVAE(
    enc_blocks, dec_blocks, width, custom_widths, z_dim, bottleneck, no_bias_above,
    p.out,
  )  # fmt: skip
  sides = [side for side, _ in nets.parse_blocks("dec_blocks", dec_blocks, "m")]

  def apply(vars, draw, *args):
    return net.apply({"params": vars.params["net"]}, draw, *args)

  def init(key):
    start = lambda i, mean, log_var: mean
    return Vars({"net": net.init(key, start, jnp.zeros((1, *image_shape)))["params"]})

  def drawn(keys, temperature=1.0):
    """(i, mean, log_var) -> z of group i, by its own noise."""
    wider = 2.0 * math.log(temperature)
    return lambda i, mean, v: elbo.reparameterize(noise.fold_in(keys, i), mean, v + wider)

  def seen(batch, keys):
    """x of p(x | z), and what the encoder sees: the same coins, or all 8 bits of it."""
    method.check_batch(batch, image_shape, 0)
    image = batch["image"].astype(jnp.float32)
    x = p.data(keys, image)
    return x, (127.5 * ((x if binary else image) + 1.0) - pixel_mean) / pixel_std

  def terms(vars, x, shown, keys):
    """log p(x | z) [B], and KL(q || p) and log p(z) / q(z | x) of each group, [B, L]; nats."""
    numbers, _, kl, ratio = apply(vars, drawn(keys), shown)
    return jnp.sum(p.log_prob(x, numbers), axis=(1, 2)), kl, ratio

  def bound(vars, batch, keys):
    """{"reconstruction": log p(x | z) [B], "kl": [B, L], top group first}, in nats, of one z."""
    k_data, k_z = noise.split(keys)
    reconstruction, kl, _ = terms(vars, *seen(batch, k_data), k_z)
    return {"reconstruction": reconstruction, "kl": kl}

  def loss(vars, batch, keys):
    """The negative bound, in nats per dimension. arXiv:2011.10650, Eq. 1; survey Eq. 31."""
    parts = bound(vars, batch, keys)
    distortion, rate = -parts["reconstruction"].mean() / dims, parts["kl"].sum(1).mean() / dims
    return distortion + rate, Aux({"distortion": distortion, "rate": rate})

  def log_prob(vars, batch, keys, *, samples=0):
    """A lower bound on log P of images of `levels` values, or binarised by `keys`; nats [B].

    samples: how many z an image an importance-sampled bound draws, which is closer to log P.
    """
    method.check_count("samples", samples, 0)
    k_data, k_z = noise.split(keys)
    x, shown = seen(batch, k_data)

    def log_weight(keys):
      reconstruction, _, ratio = terms(vars, x, shown, keys)
      return reconstruction + ratio.sum(axis=1)

    if samples:
      return elbo.importance_sampled(log_weight, k_z, samples=samples)
    reconstruction, kl, _ = terms(vars, x, shown, k_z)
    return elbo.hierarchical_bound(reconstruction, kl)

  def encode(vars, batch, keys):
    """z ~ q(z | x), all groups as one [B, D], the top one first."""
    k_data, k_z = noise.split(keys)
    _, zs, *_ = apply(vars, drawn(k_z), seen(batch, k_data)[1])
    return jnp.concatenate([z.reshape(len(z), -1) for z in zs], axis=1)

  def decode(vars, latents):
    """{"image": [B, H, W, C]} in [-1, 1]: E[x | z], of "dmol" the mean of the likeliest logistic.

    latents: of `encode`, [B, D].
    """
    ends = list(itertools.accumulate(side**2 * z_dim for side in sides))
    zs = jnp.split(latents, ends[:-1], axis=1)
    given = lambda i, mean, log_var: zs[i].reshape(mean.shape)
    return {"image": p.middle(apply(vars, given, None, len(latents))[0])}

  def sample(vars, keys, cond={}, *, temperature=1.0):
    """{"image": [n, *image_shape]} in [-1, 1]; of "bernoulli", E[x | z]. cond: {}, no classes.

    temperature: factor of the standard deviations of p(z).
    """
    method.check_cond(cond, 0)
    method.check_positive("temperature", temperature)
    k_z, k_x = noise.split(keys)
    return {"image": p.draw(k_x, apply(vars, drawn(k_z, temperature), None, len(keys))[0])}

  fns = (sample, log_prob, bound, encode, decode)
  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx))},
    ema=optim.averages("net", ema),
    fns={fn.__name__: fn for fn in fns},
  )

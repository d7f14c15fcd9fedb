"""VDVAE: Very Deep VAEs Generalize Autoregressive Models and Can Outperform Them on Images.

Child, 2020. arXiv:2011.10650.

Survey V14, Sec. 2.6.4.

Some 45 to 75 groups of latents, from one of 1 x 1 to those as large as the image: each is drawn
given all before it, in the posterior with the features that an encoder found at its resolution
beside them. Layers, initialisation and numbers are those of the official code, openai/vdvae. In
training, updates whose gradients have a norm above `tx.skip` are left out; the loss is in nats per
dimension.

Deviations: the 5-bit images of the official code (ffhq256) end at 0.945, where its likelihood, made
for 32 values up to 1, has no bin; here they are 32 values from -1 to 1. `head="bernoulli"`, for
images that are binarised anew each time they are seen, is ours.
"""

import functools
import itertools
import math
import re
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen import noise
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.objectives import elbo, likelihood


def parse_blocks(name, text, sign):
  """[(8, None), (8, None), (8, 2)] of "8x2,8d2": the side of each block's image, and scalars.

  These follow `sign`: "d" for the encoder's, "m" for the decoder's. name: what to call `text`,
  which `build` explains. Raises ValueError where it is none of blocks.
  """
  parts = [re.fullmatch(rf"([1-9]\d*)(?:([x{sign}])([1-9]\d*))?", s) for s in text.split(",")]
  method.check(name, text, all(parts), f"blocks such as 8, 8x2 and 8{sign}4, commas between them")
  blocks = []
  for side, kind, number in (m.groups() for m in parts):
    one = (int(side), int(number) if kind == sign else None)
    blocks += [one] * (int(number) if kind == "x" else 1)
  return blocks


def _widths(text):
  """{8: 32, 4: 64}, sides and widths, of "8:32,4:64"; {} of nothing."""
  good = re.fullmatch(r"([1-9]\d*:[1-9]\d*(,(?!$)|$))*", text)
  method.check("custom_widths", text, good, "side:width, commas between them, or nothing")
  return {int(side): int(width) for side, width in re.findall(r"(\d+):(\d+)", text)}


def _conv(width, kernel, name, gain=1.0):
  """A convolution that starts as torch's does, without its bias, and `gain` times as large."""
  init = nn.initializers.variance_scaling(gain**2 / 3.0, "fan_in", "uniform")
  init = init if gain else nn.initializers.zeros
  if kernel == 1:
    return nn.Dense(width, kernel_init=init, name=name)
  return nn.Conv(width, (kernel, kernel), kernel_init=init, name=name)


class Block(nn.Module):
  """Convolutions of 1 x 1, 3 x 3, 3 x 3 and 1 x 1, each after a GELU. Sec. 3.2, Fig. 3."""

  middle: int
  out: int
  gain: float = 1.0  # of the last kernel, at the start

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C] -> [B, H, W, out]."""
    kernel = 3 if x.shape[1] > 2 else 1
    for i, k in enumerate((1, kernel, kernel)):
      x = _conv(self.middle, k, f"c{i + 1}")(nn.gelu(x, approximate=False))
    return _conv(self.out, 1, "c4", self.gain)(nn.gelu(x, approximate=False))


class Encoder(nn.Module):
  """Images -> features at each resolution. Fig. 3."""

  blocks: str
  width: int
  custom_widths: str
  bottleneck: float

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C] -> {side: [B, side, side, width of that side]}."""
    widths = _widths(self.custom_widths)
    x = _conv(self.width, 3, "in_conv")(x)
    features = {x.shape[1]: x}
    blocks = parse_blocks("enc_blocks", self.blocks, "d")
    for i, (side, rate) in enumerate(blocks):
      width = widths.get(side, self.width)
      block = Block(int(width * self.bottleneck), width, len(blocks) ** -0.5, name=f"block_{i}")
      x += block(x)
      if rate:
        x = nn.avg_pool(x, (rate, rate), (rate, rate))
      more = widths.get(x.shape[1], self.width) - x.shape[-1]
      x = jnp.pad(x, ((0, 0), (0, 0), (0, 0), (0, more)))
      features[x.shape[1]] = x
    return features


class DecoderBlock(nn.Module):
  """One group of latents and what follows from it: the topdown block of Fig. 3."""

  z_dim: int
  middle: int
  gain: float

  @nn.compact
  def __call__(self, x, features, draw):
    """x: [B, H, W, C] -> the same, z [B, H, W, z_dim], KL(q || p) [B] and log p(z) / q(z) [B].

    features: [B, H, W, C], the encoder's, or None, where q is p. draw: (mean, log_var) -> z. Nats.
    """
    width = x.shape[-1]
    h = Block(self.middle, 2 * self.z_dim + width, 0.0, name="prior")(x)
    mean_p, log_std_p, h = jnp.split(h, (self.z_dim, 2 * self.z_dim), axis=-1)
    mean, log_std = mean_p, log_std_p
    if features is not None:
      q = Block(self.middle, 2 * self.z_dim, name="enc")(jnp.concatenate([x, features], axis=-1))
      mean, log_std = jnp.split(q, 2, axis=-1)
    z = draw(mean, 2.0 * log_std)
    p, q = (mean_p, 2.0 * log_std_p), (mean, 2.0 * log_std)
    kl = elbo.normal_kl(*q, *p)
    ratio = likelihood.gaussian(z, *p) - likelihood.gaussian(z, *q)
    x = x + h + _conv(width, 1, "z_proj", self.gain)(z)
    x = x + Block(self.middle, width, self.gain, name="resnet")(x)
    return x, z, jnp.sum(kl, axis=(1, 2, 3)), jnp.sum(ratio, axis=(1, 2, 3))


class VDVAE(nn.Module):
  """p(z), p(x | z) and q(z | x). Sec. 3."""

  enc_blocks: str
  dec_blocks: str
  width: int
  custom_widths: str
  z_dim: int
  bottleneck: float
  no_bias_above: int
  out: int

  @nn.compact
  def __call__(self, draw, x=None, n=1):
    """The head's numbers [B, H, W, out], z of each group, their KL [B, L] and log p / q [B, L].

    draw: (i, mean, log_var) -> z of group i, [B, h, w, z_dim], of q or, without x, of p.
    x: [B, H, W, C], or None for n examples. KL(q || p) and log p(z) / q(z | x) in nats.
    """
    features, rows = {}, n
    if x is not None:
      numbers = self.enc_blocks, self.width, self.custom_widths, self.bottleneck
      features, rows = Encoder(*numbers, name="encoder")(x), len(x)
    widths = _widths(self.custom_widths)
    blocks = parse_blocks("dec_blocks", self.dec_blocks, "m")
    xs, groups = {}, []
    for side in sorted({side for side, _ in blocks}):
      shape = (1, side, side, widths.get(side, self.width))
      learned = side <= self.no_bias_above
      zeros = jnp.zeros(shape)
      x = self.param(f"bias_{side}", nn.initializers.zeros, shape) if learned else zeros
      xs[side] = jnp.broadcast_to(x, (rows, *shape[1:]))
    for i, (side, mixin) in enumerate(blocks):
      h = xs[side]
      width = h.shape[-1]
      if mixin:
        h += _nearest(xs[mixin][..., :width], side // mixin)
      numbers = self.z_dim, int(width * self.bottleneck), len(blocks) ** -0.5
      block = DecoderBlock(*numbers, name=f"block_{i}")
      xs[side], *group = block(h, features.get(side), functools.partial(draw, i))
      groups.append(group)
    shape = (1, 1, 1, self.width)
    gain = self.param("gain", nn.initializers.ones, shape)
    h = xs[side] * gain + self.param("bias", nn.initializers.zeros, shape)
    zs, *nats = zip(*groups, strict=True)
    return _conv(self.out, 1, "out_conv")(h), zs, *(jnp.stack(x, axis=1) for x in nats)


def _nearest(x, rate):
  """[B, H, W, C] -> [B, rate H, rate W, C]."""
  B, H, W, C = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None], (B, H, rate, W, rate, C))
  return x.reshape(B, H * rate, W * rate, C)


class Head(NamedTuple):
  """p(x | z) of an image, from what the network returns, [B, H, W, P]."""

  out: Callable  # (C, mixtures) -> P
  data: Callable  # (keys [B], images [B, H, W, C], levels) -> x and what the encoder sees, like it
  log_prob: Callable  # (x, numbers, levels) -> nats [B, H, W]
  sample: Callable  # (keys [B] or None, for what is likeliest; numbers, C) -> images in [-1, 1]


def _levels(x, levels):
  """8-bit pixels in [-1, 1] -> their highest bits, as `levels` values from -1 to 1."""
  if levels == 256:
    return x
  return jnp.floor(jnp.round(127.5 * (x + 1.0)) * levels / 256.0) * 2.0 / (levels - 1.0) - 1.0


def _coins(keys, x, levels):
  coins = likelihood.binarize(keys, x)
  return coins, 2.0 * coins - 1.0


def _logistics(keys, numbers, C):
  uniforms = (0.5, 0.5) if keys is None else None  # the mean of the likeliest logistic
  return likelihood.sample_logistic_mixture(keys, numbers, channels=C, uniforms=uniforms)


HEADS = {
  "dmol": Head(
    lambda C, mixtures: mixtures * (10 if C == 3 else 3),
    lambda keys, x, levels: (_levels(x, levels), x),
    lambda x, numbers, levels: likelihood.logistic_mixture(x, numbers, levels=levels),
    _logistics,
  ),
  "bernoulli": Head(
    lambda C, mixtures: C,
    _coins,
    lambda x, logits, levels: jnp.sum(likelihood.bernoulli(x, logits), axis=-1),
    lambda keys, logits, C: jnp.tanh(0.5 * logits),  # E[x | z]
  ),
}


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
  method.check("head", head, head in HEADS, f"one of {', '.join(HEADS)}")
  _check_blocks(image_shape[0], enc_blocks, dec_blocks, width, custom_widths)
  H, W, C = image_shape
  method.check("image_shape", image_shape, H == W, "a square")
  method.check("image_shape", image_shape, head != "dmol" or C in (1, 3), "1 or 3 channels")
  p, dims = HEADS[head], math.prod(image_shape)
  net = VDVAE(
    enc_blocks, dec_blocks, width, custom_widths, z_dim, bottleneck, no_bias_above,
    p.out(C, mixtures),
  )  # fmt: skip
  sides = [side for side, _ in parse_blocks("dec_blocks", dec_blocks, "m")]

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
    """The data as the head takes them, and what the encoder sees."""
    method.check_batch(batch, image_shape, 0)
    x, pixels = p.data(keys, batch["image"].astype(jnp.float32), levels)
    return x, (127.5 * (pixels + 1.0) - pixel_mean) / pixel_std

  def terms(vars, x, pixels, keys):
    """log p(x | z) [B], and KL(q || p) and log p(z) / q(z | x) of each group, [B, L]; nats."""
    numbers, _, kl, ratio = apply(vars, drawn(keys), pixels)
    return jnp.sum(p.log_prob(x, numbers, levels), axis=(1, 2)), kl, ratio

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
    k_data, k_z = noise.split(keys)
    x, pixels = seen(batch, k_data)
    if samples:
      method.check_count("samples", samples)

      def weight(i):
        reconstruction, _, ratio = terms(vars, x, pixels, noise.fold_in(k_z, i))
        return reconstruction + ratio.sum(axis=1)

      return elbo.importance_bound(jax.lax.map(weight, jnp.arange(samples)))
    reconstruction, kl, _ = terms(vars, x, pixels, k_z)
    return elbo.hierarchical_bound(reconstruction, kl)

  def encode(vars, batch, keys):
    """z ~ q(z | x), all groups as one [B, D], the top one first."""
    k_data, k_z = noise.split(keys)
    _, zs, *_ = apply(vars, drawn(k_z), seen(batch, k_data)[1])
    return jnp.concatenate([z.reshape(len(z), -1) for z in zs], axis=1)

  def decode(vars, latents):
    """{"image": [B, H, W, C]}, in [-1, 1], what is likeliest given z. latents: of `encode`."""
    ends = list(itertools.accumulate(side**2 * z_dim for side in sides))
    zs = jnp.split(latents, ends[:-1], axis=1)
    given = lambda i, mean, log_var: zs[i].reshape(mean.shape)
    return {"image": p.sample(None, apply(vars, given, None, len(latents))[0], C)}

  def sample(vars, keys, cond={}, *, temperature=1.0):
    """{"image": [n, *image_shape]} in [-1, 1]; of "bernoulli", E[x | z]. cond: {}, no classes.

    temperature: factor of the standard deviations of p(z).
    """
    method.check_cond(cond, 0)
    method.check_positive("temperature", temperature)
    k_z, k_x = noise.split(keys)
    return {"image": p.sample(k_x, apply(vars, drawn(k_z, temperature), None, len(keys))[0], C)}

  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx))},
    ema=optim.averages("net", ema),
    fns={
      "sample": sample, "log_prob": log_prob, "bound": bound, "encode": encode, "decode": decode,
    },
  )  # fmt: skip


def _check_blocks(height, enc_blocks, dec_blocks, width, custom_widths):
  """Raises ValueError for blocks and widths that do not fit a square image of this height."""
  sides, done = [height], []
  for side, rate in parse_blocks("enc_blocks", enc_blocks, "d"):
    good = side == sides[-1] and side % (rate or 1) == 0
    method.check(
      "enc_blocks", enc_blocks, good, f"{sides[-1]}, or a divisor, where {side}d{rate} is"
    )
    sides.append(side // (rate or 1))
  for side, mixin in parse_blocks("dec_blocks", dec_blocks, "m"):
    good = side in sides and side >= max(done, default=1) and mixin in (None, *done)
    good = good and side % (mixin or 1) == 0 and mixin != side
    allowed = f"sides among {sorted(set(sides))}, none after a larger one, and m and one before it"
    method.check("dec_blocks", dec_blocks, good, allowed)
    done.append(side)
  method.check("dec_blocks", dec_blocks, done[-1] == height, f"{height} as the last side")
  custom, sides = _widths(custom_widths), sorted(set(sides))
  widths = [custom.get(side, width) for side in sides]
  good = (
    widths == sorted(widths, reverse=True) and widths[-1] == width and custom.keys() <= set(sides)
  )
  allowed = f"sides among {sides}, none wider than one before, and a width of {width} at the last"
  method.check("custom_widths", custom_widths, good, allowed)

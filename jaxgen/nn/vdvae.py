"""The networks of VDVAE, Child, 2020. arXiv:2011.10650.

`models/vae/vdvae.py` explains them; "`build`" is its. Layers and initialisation are those of the
official code, openai/vdvae.
"""

import functools
import re

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.core import method
from jaxgen.objectives import elbo, likelihood


def parse_blocks(name, text, sign):
  """[(8, None), (8, None), (8, 2)] of "8x2,8d2", scalars: the side of each block, and a number.

  text: of `build`. sign: before that number, of `build`: "d" for the encoder's blocks, "m" for the
  decoder's. name: what to call the text. Raises ValueError for text that is no list of
  blocks.
  """
  parts = [re.fullmatch(rf"([1-9]\d*)(?:([x{sign}])([1-9]\d*))?", s) for s in text.split(",")]
  method.check(name, text, all(parts), f"blocks such as 8, 8x2 and 8{sign}4, commas between them")
  blocks = []
  for side, kind, number in (m.groups() for m in parts):
    one = (int(side), int(number) if kind == sign else None)
    blocks += [one] * (int(number) if kind == "x" else 1)
  return blocks


def parse_widths(text):
  """{8: 32, 4: 64} of "8:32,4:64", scalars: sides and their widths; {} of nothing.

  text: of `build`. Raises ValueError for another text.
  """
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
    """x: [B, H, W, C] -> {side: [B, side, side, width of that side]}.

    Raises ValueError for text that is no list of blocks or widths.
    """
    widths = parse_widths(self.custom_widths)
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

    features: [B, H, W, C], the encoder's, or None, where q is p. draw: (mean, log_var) -> z. The KL
    and the log ratio are in nats.
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
    x: [B, H, W, C], or None for n examples. KL(q || p) and log p(z) / q(z | x) in nats. Raises
    ValueError for text that is no list of blocks or widths.
    """
    features, rows = {}, n
    if x is not None:
      numbers = self.enc_blocks, self.width, self.custom_widths, self.bottleneck
      features, rows = Encoder(*numbers, name="encoder")(x), len(x)
    widths = parse_widths(self.custom_widths)
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
        h += xs[mixin][..., :width].repeat(side // mixin, 1).repeat(side // mixin, 2)
      numbers = self.z_dim, int(width * self.bottleneck), len(blocks) ** -0.5
      block = DecoderBlock(*numbers, name=f"block_{i}")
      xs[side], *group = block(h, features.get(side), functools.partial(draw, i))
      groups.append(group)
    shape = (1, 1, 1, self.width)
    gain = self.param("gain", nn.initializers.ones, shape)
    h = xs[side] * gain + self.param("bias", nn.initializers.zeros, shape)
    zs, *nats = zip(*groups, strict=True)
    return _conv(self.out, 1, "out_conv")(h), zs, *(jnp.stack(x, axis=1) for x in nats)


def check_blocks(height, enc_blocks, dec_blocks, width, custom_widths):
  """Raises ValueError for blocks or widths that do not fit each other or a square.

  height: of the square. enc_blocks, dec_blocks, width, custom_widths: of `VDVAE`.
  """
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
  custom, sides = parse_widths(custom_widths), sorted(set(sides))
  widths = [custom.get(side, width) for side in sides]
  good = (
    widths == sorted(widths, reverse=True) and widths[-1] == width and custom.keys() <= set(sides)
  )
  allowed = f"sides among {sides}, none wider than one before, and a width of {width} at the last"
  method.check("custom_widths", custom_widths, good, allowed)

"""The UNet of ADM, arXiv:2105.05233, Sec. 3, and its noisy classifier, Sec. 4: layers, order and
initialisation of the authors' code (openai/guided-diffusion, unet.py).

With other fields `ADM` is the UNet of Improved DDPM, arXiv:2102.09672 (4 heads, resblock_updown
False), of the upsamplers of both (x has twice the channels), of consistency models,
arXiv:2303.01469, and EDM's DhariwalUNet, arXiv:2206.00364 (group_channels 4).

Parameters are float32; activations have the modules' dtype, statistics are float32.
"""

from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.core import method
from jaxgen.nn import embeddings, unet


def _group_count(channels, least):
  """32, or fewer, so that a group has `least` channels; four where 32 is no divisor."""
  least = least if channels % 32 == 0 else 4
  return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or least * g <= channels))


def _norm(x, least, dtype, name):
  return nn.GroupNorm(_group_count(x.shape[-1], least), epsilon=1e-5, dtype=dtype, name=name)(x)


def _layer(x, features, name, dtype=jnp.float32, size=1, stride=1, zero=False):
  """A dense layer on x, or for size 3 a convolution, with torch's initialisation or all zero."""
  bound = (size**2 * x.shape[-1]) ** -0.5
  uniform = lambda *args: jax.random.uniform(*args, minval=-bound, maxval=bound)
  init = nn.initializers.zeros if zero else uniform
  args = {"kernel_init": init, "bias_init": init, "dtype": dtype, "name": name}
  if size == 1:
    return nn.Dense(features, **args)(x)
  return nn.Conv(features, (size, size), strides=stride, padding=size // 2, **args)(x)


def _heads(qkv, heads):
  """[B, N, 3C] -> q, k, v [B, N, heads, C / heads]."""
  B, N, C3 = qkv.shape
  return jnp.unstack(qkv.reshape(B, N, 3, heads, C3 // 3 // heads), axis=2)


def downsample(x):
  """Mean of every 2 x 2 pixels, x [B, 2H, 2W, C] -> [B, H, W, C]."""
  B, H, W, C = x.shape
  return x.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))


class Conditioning(nn.Module):
  """What the network is told about (t [B], label [B], augment [B, D]) -> [B, 4 channels] float32.

  The null class, label n_classes, adds nothing. Raises ValueError for a label without classes or
  classes without one, and for augmentation labels of another size.
  """

  channels: int
  n_classes: int = 0
  augment: int = 0

  @nn.compact
  def __call__(self, t, label=None, augment=None):
    """t: [B] in steps. augment: [B, D], or None for zeros."""
    embeddings.check_label(label, self.n_classes)
    augment = embeddings.augmentation(augment, len(t), self.augment)
    width = 4 * self.channels
    c = embeddings.timestep_embedding(t, self.channels, endpoint=False, cos_first=True)
    if self.augment:  # arXiv:2206.00364, App. F.2
      zeros = nn.initializers.zeros
      c += nn.Dense(self.channels, use_bias=False, kernel_init=zeros, name="augment")(augment)
    c = _layer(nn.swish(_layer(c, width, "time_0")), width, "time_1")
    if self.n_classes:
      table = self.param("label", nn.initializers.normal(1.0), (self.n_classes, width))
      c += embeddings.one_hot(label, self.n_classes) @ table
    return c


class ResBlock(nn.Module):
  """Residual block told about c, [B, H, W, C] -> [B, H, W, channels], resampled or not.

  scale_shift: adaptive group normalisation, arXiv:2105.05233, Sec. 3.1; otherwise c is added.
  """

  channels: int
  group_channels: int
  scale_shift: bool
  dropout: float
  dtype: jnp.dtype
  resample: Callable = lambda x: x

  @nn.compact
  def __call__(self, x, c, draw=None):
    """x: [B, H, W, C]; c: [B, D]; draw: see ADM."""
    h = nn.swish(_norm(x, self.group_channels, self.dtype, "norm_0"))
    x, h = self.resample(x), self.resample(h)
    h = _layer(h, self.channels, "conv_0", self.dtype, size=3)
    width = (1 + self.scale_shift) * self.channels
    c = _layer(nn.swish(c), width, "cond", self.dtype)[:, None, None, :]
    norm_1 = lambda h: _norm(h, self.group_channels, self.dtype, "norm_1")
    if self.scale_shift:
      scale, shift = jnp.split(c, 2, axis=-1)
      h = norm_1(h) * (1 + scale) + shift
    else:
      h = norm_1(h + c)
    h = unet.dropout(nn.swish(h), self.dropout, draw)
    h = _layer(h, self.channels, "conv_1", self.dtype, size=3, zero=True)
    if x.shape[-1] != self.channels:
      x = _layer(x, self.channels, "shortcut", self.dtype)
    return x + h


class Attention(nn.Module):
  """Residual self-attention over all pixels, x [B, H, W, C] -> like x.

  The 3C channels of `qkv` are those of q, of k and of v, each by heads.
  """

  heads: int
  group_channels: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    B, H, W, C = x.shape
    h = _norm(x, self.group_channels, self.dtype, "norm").reshape(B, H * W, C)
    q, k, v = _heads(_layer(h, 3 * C, "qkv", self.dtype), self.heads)
    h = jax.nn.dot_product_attention(q, k, v).reshape(x.shape)
    return x + _layer(h, C, "proj", self.dtype, zero=True)


class AttentionPool(nn.Module):
  """What the mean pixel asks of all pixels, x [B, H, W, C] -> [B, features], in float32."""

  heads: int
  features: int

  @nn.compact
  def __call__(self, x):
    B, H, W, C = x.shape
    x = x.reshape(B, H * W, C)
    x = jnp.concatenate([x.mean(1, keepdims=True), x], axis=1)
    x += self.param("position", nn.initializers.normal(C**-0.5), x.shape[1:])[None]
    q, k, v = _heads(_layer(x, 3 * C, "qkv"), self.heads)
    h = jax.nn.dot_product_attention(q[:, :1], k, v).reshape(B, C)
    return _layer(h, self.features, "proj")


class _Encoder(nn.Module):
  """Fields and layers, down to the bottom, of both networks.

  A base class, not a part of them: their fields and the names of their parameters stay flat.
  """

  channels: int = 192
  multipliers: tuple[float, ...] = (1, 2, 3, 4)
  n_res_blocks: int = 3
  attention: tuple[int, ...] = (32, 16, 8)
  head_channels: int = 64
  heads: int = 4
  scale_shift: bool = True
  resblock_updown: bool = True
  group_channels: int = 1
  dropout: float = 0.1
  out_channels: int = 3
  dtype: jnp.dtype = jnp.float32

  def _width(self, level):
    width = self.channels * self.multipliers[level]
    ok = round(width) > 0 and abs(width - round(width)) < 1e-6
    method.check(f"channels * multipliers[{level}]", width, ok, "a whole number, 1 or more")
    return round(width)

  def _n_heads(self, width):
    name = "head_channels" if self.head_channels else "heads"
    value = getattr(self, name)
    ok = value > 0 and width % value == 0
    method.check(name, value, ok, f"a divisor of {width}, the channels of an attention block")
    return width // value if self.head_channels else value

  def _res(self, h, c, draw, width, name, **resample):
    fields = (self.group_channels, self.scale_shift, self.dropout, self.dtype)
    return ResBlock(width, *fields, **resample, name=name)(h, c, draw)

  def _attend(self, h, name):
    heads = self._n_heads(h.shape[-1])
    return Attention(heads, self.group_channels, self.dtype, name=name)(h)

  def _block(self, h, c, draw, level, name, j):
    width = self._width(level)
    h = self._res(h, c, draw, width, f"{name}_{level}_res_{j}")
    return self._attend(h, f"{name}_{level}_attn_{j}") if h.shape[1] in self.attention else h

  def _encode(self, x, c, draw):
    """The map at the bottom, and those on the way there."""
    h = _layer(x, self._width(0), "conv_in", self.dtype, size=3)
    skips = [h]
    for i in range(len(self.multipliers)):
      if i > 0:
        name = f"downsample_{i - 1}"
        if self.resblock_updown:
          h = self._res(h, c, draw, h.shape[-1], name, resample=downsample)
        else:
          h = _layer(h, h.shape[-1], name, self.dtype, size=3, stride=2)
        skips.append(h)
      for j in range(self.n_res_blocks):
        h = self._block(h, c, draw, i, "down", j)
        skips.append(h)
    h = self._res(h, c, draw, h.shape[-1], "mid_res_0")
    h = self._attend(h, "mid_attn_0")
    return self._res(h, c, draw, h.shape[-1], "mid_res_1"), skips


class ADM(_Encoder):
  """eps(x_t, t), or with out_channels 6 eps and v of learned variances. arXiv:2105.05233, Sec. 3.

  channels: base width; level i has channels * multipliers[i] channels and 1 / 2**i of the height.
  attention: heights whose blocks are followed by self-attention (the bottom always has one).
  head_channels: of a head of attention; 0 counts `heads` instead, which is otherwise not used.
  resblock_updown: residual blocks resample, not convolutions. group_channels: the fewest of a
  group of GroupNorm. n_classes: 0, or labels are 0 to n_classes, the last being the null class.
  augment: 0, or the size D of EDM's augmentation labels, 9.
  """

  n_classes: int = 0
  augment: int = 0

  @nn.compact
  def __call__(self, x, t, label=None, draw=None, augment=None):
    """x [B, H, W, C], t [B] in steps, label int32 [B] -> [B, H, W, out_channels] float32.

    draw(shape) -> uniform noise [B, *shape], such as noise.stream(keys): dropout is on exactly when
    it is given. augment: [B, D], or None for zeros. Raises ValueError for no multipliers, an H or W
    that cannot be halved so often, a width that is no whole number, and attention at a height that
    does not occur or whose heads do not divide the channels.
    """
    unet.level_heights(x, len(self.multipliers), self.attention)
    c = Conditioning(self.channels, self.n_classes, self.augment, name="cond")(t, label, augment)
    h, skips = self._encode(x, c, draw)
    for i in reversed(range(len(self.multipliers))):
      for j in range(self.n_res_blocks + 1):
        h = self._block(jnp.concatenate([h, skips.pop()], axis=-1), c, draw, i, "up", j)
      if i > 0 and self.resblock_updown:
        h = self._res(h, c, draw, h.shape[-1], f"upsample_{i}", resample=unet.upsample)
      elif i > 0:
        h = _layer(unet.upsample(h), h.shape[-1], f"upsample_{i}", self.dtype, size=3)
    h = nn.swish(_norm(h, self.group_channels, jnp.float32, "norm_out"))
    return _layer(h, self.out_channels, "conv_out", size=3, zero=True)


class Classifier(_Encoder):
  """Which class a noisy image is of: half of an ADM. arXiv:2105.05233, Sec. 4.

  Fields as in ADM; out_channels is the number of classes. Parameters are for one size of x.
  """

  channels: int = 128
  n_res_blocks: int = 4
  dropout: float = 0.0
  out_channels: int = 1000

  @nn.compact
  def __call__(self, x, t, draw=None):
    """x [B, H, W, C], t [B] in steps -> logits [B, out_channels] float32, in nats.

    draw and errors, ValueError, as in ADM.
    """
    unet.level_heights(x, len(self.multipliers), self.attention)
    c = Conditioning(self.channels, name="cond")(t)
    h, _ = self._encode(x, c, draw)
    h = nn.swish(_norm(h, self.group_channels, jnp.float32, "norm_out"))
    return AttentionPool(self._n_heads(h.shape[-1]), self.out_channels, name="pool")(h)

"""NCSN++ and DDPM++, arXiv:2011.13456, App. H, and what EDM, arXiv:2206.00364, made of them.

One network: EDM's `SongUNet` (NVlabs/edm, training/networks.py), whose layers are also those of the
authors' code (yang-song/score_sde_pytorch, models/ncsnpp.py). Modules have EDM's names, with the
level in place of the height: enc_0_block0 is enc.32x32_block0. Parameters are float32; activations
have the modules' dtype, statistics and the output are float32.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import method
from jaxgen.nn import embeddings, unet

SQRT_HALF = 0.5**0.5  # every sum of two branches is scaled by it, arXiv:2011.13456, App. H
FOURIER_SCALE = 16.0  # of the frequencies, arXiv:2011.13456, App. H

attention_init = nn.initializers.variance_scaling(0.2, "fan_avg", "uniform")


def fir(x, taps, pad, stride=1):
  """x [B, H, W, C] correlated with taps / sum(taps) along H and W -> [B, H', W', C].

  taps: numbers [n]. pad: a scalar, the zeros at each end. stride: of the result. It is a sum of
  shifted images: depthwise convolutions are slow on a CPU.
  """
  for axis in (1, 2):
    n = (x.shape[axis] + 2 * pad - len(taps)) // stride + 1
    padded = _pad(x, axis, pad)
    x = sum(
      w / sum(taps) * jax.lax.slice_in_dim(padded, k, k + (n - 1) * stride + 1, stride, axis)
      for k, w in enumerate(taps)
    )
  return x


def downsample(x, taps):
  """Low-pass filtered and halved, x [B, 2H, 2W, C] -> [B, H, W, C].

  taps: [n], n even; (1, 1) is the mean of four. arXiv:2011.13456, App. H.
  """
  return fir(x, taps, len(taps) // 2 - 1, stride=2)


def upsample(x, taps):
  """Transpose of `downsample`, times 4: x [B, H, W, C] -> [B, 2H, 2W, C].

  taps: [n], n even; (1, 1) repeats each pixel. arXiv:2011.13456, App. H.
  """
  far = len(taps) // 4  # how many pixels away the furthest is that adds to a pixel
  first = len(taps) // 2 - 1
  for axis in (1, 2):
    n = x.shape[axis]
    padded = _pad(x, axis, far)
    # Pixel 2 i + k - first gets taps[k] x[i]: one half of the taps makes the even ones.
    even, odd = (
      sum(
        2 * taps[k] / sum(taps) * jax.lax.slice_in_dim(padded, at, at + n, axis=axis)
        for k in range((first + parity) % 2, len(taps), 2)
        for at in [far + (first + parity - k) // 2]
      )
      for parity in (0, 1)
    )
    shape = (*x.shape[:axis], 2 * n, *x.shape[axis + 1 :])
    x = jnp.stack([even, odd], axis + 1).reshape(shape)
  return x


def _pad(x, axis, n):
  return jnp.pad(x, [(n, n) if i == axis else (0, 0) for i in range(x.ndim)])


def _norm(x, name, dtype):
  """Group normalisation of x, with 32 groups or fewer of four channels, inside a module."""
  channels = x.shape[-1]
  groups = min(32, channels // 4)
  allowed = "widths of 4, 8, ..., 128, or above multiples of 32"
  method.check("channels", channels, groups and channels % groups == 0, allowed)
  return nn.GroupNorm(groups, epsilon=1e-6, dtype=dtype, name=name)(x)


class Mapping(nn.Module):
  """What the blocks are told about (t [B], label [B] or None, augment [B, A] or None): [B, width].

  Fields, and what t is: see NCSNpp. dim: entries of the embedding of t, 0 to 1000 or a logarithm.
  The frequencies of "fourier" are in the collection "constants": drawn by init, never trained.
  Raises ValueError for a label without classes, classes without one, and an augment that does not
  fit. arXiv:2206.00364, App. F.
  """

  dim: int
  width: int
  embedding: str
  n_classes: int
  augment: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, t, label=None, augment=None):
    embeddings.check_label(label, self.n_classes)
    augment = embeddings.augmentation(augment, len(t), self.augment)
    dense = functools.partial(nn.Dense, kernel_init=unet.uniform, dtype=self.dtype)

    if self.embedding == "fourier":
      draw = lambda: FOURIER_SCALE * jax.random.normal(self.make_rng("params"), (self.dim // 2,))
      frequencies = self.variable("constants", "frequencies", draw).value
      angles = t.astype(jnp.float32)[:, None] * (2 * np.pi * frequencies)[None, :]
      c = jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
    else:
      c = embeddings.timestep_embedding(t, self.dim)
    if self.n_classes:
      told = embeddings.one_hot(label, self.n_classes) * self.n_classes**0.5
      c += dense(self.dim, name="label")(told)
    if self.augment:
      c += dense(self.dim, use_bias=False, name="augment")(augment)
    c = nn.swish(dense(self.width, name="layer0")(c))
    return nn.swish(dense(self.width, name="layer1")(c))


class Block(nn.Module):
  """Residual block of BigGAN with c in its middle, then self-attention where `attends` says so.

  x [B, H, W, C], c [B, D] -> [B, H', W', channels]; resample: from [B, H, W, C] to the new height
  and width, or None. draw: see NCSNpp. arXiv:2011.13456, App. H.
  """

  channels: int
  attends: bool
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, c, draw=None, resample=None):
    dense = functools.partial(nn.Dense, kernel_init=unet.uniform, dtype=self.dtype)
    conv = functools.partial(nn.Conv, self.channels, (3, 3), dtype=self.dtype)
    norm = functools.partial(_norm, dtype=self.dtype)
    place = resample or (lambda h: h)

    h = place(nn.swish(norm(x, "norm0")))
    h = conv(kernel_init=unet.uniform, name="conv0")(h)
    h += dense(self.channels, name="affine")(c)[:, None, None, :]
    h = unet.dropout(nn.swish(norm(h, "norm1")), self.dropout, draw)
    h = conv(kernel_init=unet.near_zero, name="conv1")(h)
    if resample or x.shape[-1] != self.channels:
      x = dense(self.channels, name="skip")(place(x))
    x = (x + h) * SQRT_HALF
    if not self.attends:
      return x

    B, H, W, C = x.shape
    h = norm(x, "norm2").reshape(B, H * W, 1, C)  # one head
    h = dense(3 * C, kernel_init=attention_init, name="qkv")(h)
    h = jax.nn.dot_product_attention(*jnp.split(h, 3, axis=-1))
    h = dense(C, kernel_init=unet.near_zero, name="proj")(h.reshape(B, H, W, C))
    return (x + h) * SQRT_HALF


class NCSNpp(nn.Module):
  """DDPM++ by default; NCSN++ with fourier, residual and (1, 3, 3, 1). arXiv:2011.13456, App. H.

  channels: base width; level i has channels * multipliers[i] channels and 1 / 2**i of the height.
  attention: heights with self-attention (the bottom always has one), on the way up once a height.
  embedding: of the time, "positional", or "fourier" with random frequencies, which are kept in the
  collection "constants" beside "params"; it has channels * noise_multiplier entries.
  encoder: "standard", or the image at each height is added as it is, "skip", or as a "residual".
  decoder: "standard", or "skip", the sum of an image made at each height.
  resample_filter: taps of the filter before each halving and after each doubling.
  n_classes: 0, or the number of labels; n_classes as a label is the null class, told as zeros.
  augment: 0, or the numbers that tell of an augmentation, in EDM 9.
  """

  channels: int = 128
  multipliers: tuple[int, ...] = (1, 2, 2, 2)
  n_res_blocks: int = 4
  attention: tuple[int, ...] = (16,)
  embedding: str = "positional"
  noise_multiplier: int = 1
  encoder: str = "standard"
  decoder: str = "standard"
  resample_filter: tuple[int, ...] = (1, 1)
  dropout: float = 0.1
  out_channels: int = 3
  n_classes: int = 0
  augment: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, t, label=None, draw=None, augment=None):
    """x [B, H, W, C], t [B], label int32 [B], augment [B, A] -> [B, H, W, out_channels] float32.

    t as the method scales it: 0 to 1000 in DDPM++, log sigma in NCSN++, log(sigma) / 4 in EDM.
    augment: None is zeros. draw(shape) -> uniform noise [B, *shape], such as noise.stream(keys):
    dropout is on exactly when it is given. Raises ValueError for a field that is none of the
    above, an H or W that cannot be halved so often, attention at a height that does not occur,
    a label without classes or classes without one, and an augment of another shape.
    """
    taps, n = self.resample_filter, self.n_res_blocks
    for name, allowed in (
      ("embedding", ("positional", "fourier")),
      ("encoder", ("standard", "skip", "residual")),
      ("decoder", ("standard", "skip")),
    ):
      value = getattr(self, name)
      method.check(name, value, value in allowed, f"one of {', '.join(allowed)}")
    even = len(taps) % 2 == 0 and sum(taps) > 0
    method.check("resample_filter", taps, even, "an even number of taps whose sum is above 0")
    levels = len(self.multipliers)
    heights = unet.level_heights(x, levels, self.attention)
    down, up = (functools.partial(f, taps=taps) for f in (downsample, upsample))

    conv = functools.partial(nn.Conv, kernel_size=(3, 3), kernel_init=unet.uniform)
    conv_in = functools.partial(conv, dtype=self.dtype)
    conv_out = functools.partial(conv, self.out_channels, kernel_init=unet.near_zero)
    dense = functools.partial(nn.Dense, kernel_init=unet.uniform, dtype=self.dtype)
    c = Mapping(
      self.channels * self.noise_multiplier,
      4 * self.channels,
      self.embedding,
      self.n_classes,
      self.augment,
      self.dtype,
      name="map",
    )(t, label, augment)

    def block(h, name, channels=None, attends=False, resample=None):
      channels = channels or h.shape[-1]
      return Block(channels, attends, self.dropout, self.dtype, name=name)(h, c, draw, resample)

    skips, image = [], x
    for i, multiplier in enumerate(self.multipliers):
      if i == 0:
        h = conv_in(self.channels, name="enc_0_conv")(x)
      else:
        h = block(h, f"enc_{i}_down", resample=down)
      if i and self.encoder == "skip":
        image = down(image)
        h += dense(h.shape[-1], name=f"enc_{i}_aux_skip")(image)
      elif i and self.encoder == "residual":
        image = fir(image, taps, len(taps) // 2)  # `down` and a convolution, in one
        halve = conv_in(h.shape[-1], strides=2, padding="VALID", name=f"enc_{i}_aux_residual")
        h = image = (h + halve(image)) * SQRT_HALF
      skips.append(h)
      for j in range(n):
        attends = heights[i] in self.attention
        h = block(h, f"enc_{i}_block{j}", self.channels * multiplier, attends)
        skips.append(h)

    image = None
    for i in reversed(range(levels)):
      if i == levels - 1:
        h = block(h, f"dec_{i}_in0", attends=True)
        h = block(h, f"dec_{i}_in1")
      else:
        h = block(h, f"dec_{i}_up", resample=up)
      for j in range(n + 1):
        attends = j == n and heights[i] in self.attention
        h = jnp.concatenate([h, skips.pop()], axis=-1)
        h = block(h, f"dec_{i}_block{j}", self.channels * self.multipliers[i], attends)
      if i == 0 or self.decoder == "skip":
        own = nn.swish(_norm(h, f"dec_{i}_aux_norm", jnp.float32))
        own = conv_out(name=f"dec_{i}_aux_conv")(own)
        image = own if image is None else up(image) + own
    return image

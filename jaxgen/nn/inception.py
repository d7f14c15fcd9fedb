"""The Inception-v3 of the Frechet Inception Distance, arXiv:1706.08500, and of the Inception Score,
arXiv:1606.03498: the network of arXiv:1512.00567 as TensorFlow's graph of 2015-12-05 has it, with
1,008 classes.

What that graph does otherwise than the paper: its average pools leave the padding out of their
mean, its last block has a maximum pool in place of one, and it resizes without half-pixel centres.
Weights: `jaxgen.convert.inception`.
"""

import functools
from collections.abc import Callable

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxgen.core import method


def pixels(x, rank):
  """Pixel values 0 to 255 as float32, like x.

  x: [B, ...], uint8 or float32. rank: 4 for images [B, H, W, 3], 5 for video [B, T, H, W, 3].
  Raises ValueError for another shape or dtype.
  """
  images = x.ndim == rank and x.shape[-1] == 3 and 0 not in x.shape
  wanted = "[B, H, W, 3]" if rank == 4 else "[B, T, H, W, 3]"
  method.check("x.shape", x.shape, images, f"{wanted}, none of them 0")
  method.check("x.dtype", str(x.dtype), x.dtype in ("uint8", "float32"), "uint8 or float32")
  return x.astype(jnp.float32)


def bilinear(n, size):
  """TensorFlow 1's bilinear resize of n rows to size, as weights [S, n] in float32.

  No half-pixel centres, no antialiasing: row i is read at i n / S.
  """
  at = np.arange(size, dtype=np.float32) * np.float32(n / size)
  low = at.astype(int)
  share = at - low.astype(np.float32)
  rows = np.eye(n, dtype=np.float32)
  return (1 - share)[:, None] * rows[low] + share[:, None] * rows[np.minimum(low + 1, n - 1)]


def resize(x, size):
  """Images x [B, H, W, C] to size by size, [B, S, S, C], by `bilinear`, in float32 everywhere."""
  rows, columns = bilinear(x.shape[1], size), bilinear(x.shape[2], size)
  x = jnp.einsum("ph,bhwc->bpwc", rows, x, precision="highest")
  return jnp.einsum("qw,bpwc->bpqc", columns, x, precision="highest")


class Unit(nn.Module):
  """Convolution, batch norm by stored statistics and ReLU, x [B, H, W, C] -> [B, H, W, channels].

  The arithmetic is float32 on every device: a distance is not to depend on where it was measured.
  """

  channels: int
  kernel: tuple[int, int]
  strides: int = 1
  padding: str = "SAME"

  @nn.compact
  def __call__(self, x):
    x = nn.Conv(
      self.channels,
      self.kernel,
      self.strides,
      self.padding,
      use_bias=False,
      precision="highest",
      name="conv",
    )(x)
    return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(x))


def chain(x, name, *layers, halve=False):
  """Units one after another, x [B, H, W, C] -> [B, H, W, channels of the last].

  layers: (channels, height, width) of each. name: of the only one, or with _1, _2, ... behind it.
  halve: whether the last has stride 2 and no padding.
  """
  for i, (channels, *kernel) in enumerate(layers, 1):
    unit = functools.partial(Unit, channels, tuple(kernel))
    if halve and i == len(layers):
      unit = functools.partial(unit, strides=2, padding="VALID")
    x = unit(name=name if len(layers) == 1 else f"{name}_{i}")(x)
  return x


def average(x):
  """Mean of 3x3 neighbours, of those that exist at the border, like x [B, H, W, C]."""
  return nn.avg_pool(x, (3, 3), padding="SAME", count_include_pad=False)


def maximum(x):
  """Maximum of 3x3 neighbours, like x [B, H, W, C]."""
  return nn.max_pool(x, (3, 3), padding="SAME")


def shrink(x):
  """Maximum of 3x3 with stride 2, x [B, H, W, C] -> [B, (H - 1) // 2, (W - 1) // 2, C]."""
  return nn.max_pool(x, (3, 3), (2, 2))


def join(*branches):
  """Side by side: branches [B, ..., C] -> [B, ..., sum of C]."""
  return jnp.concatenate(branches, axis=-1)


class BlockA(nn.Module):
  """Block of 35x35 maps, x [B, H, W, C] -> [B, H, W, 224 + pooled].

  arXiv:1512.00567, Fig. 5, with a 5x5 for its single 3x3.
  """

  pooled: int

  @nn.compact
  def __call__(self, x):
    return join(
      chain(x, "branch1x1", (64, 1, 1)),
      chain(x, "branch5x5", (48, 1, 1), (64, 5, 5)),
      chain(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3)),
      chain(average(x), "branch_pool", (self.pooled, 1, 1)),
    )


class BlockB(nn.Module):
  """From 35x35 to 17x17, x [B, 35, 35, C] -> [B, 17, 17, C + 480]. arXiv:1512.00567, Fig. 10."""

  @nn.compact
  def __call__(self, x):
    return join(
      chain(x, "branch3x3", (384, 3, 3), halve=True),
      chain(x, "branch3x3dbl", (64, 1, 1), (96, 3, 3), (96, 3, 3), halve=True),
      shrink(x),
    )


class BlockC(nn.Module):
  """Block of 17x17 maps, x [B, H, W, C] -> [B, H, W, 768]. arXiv:1512.00567, Fig. 6, n = 7."""

  width: int

  @nn.compact
  def __call__(self, x):
    n = self.width
    return join(
      chain(x, "branch1x1", (192, 1, 1)),
      chain(x, "branch7x7", (n, 1, 1), (n, 1, 7), (192, 7, 1)),
      chain(x, "branch7x7dbl", (n, 1, 1), (n, 7, 1), (n, 1, 7), (n, 7, 1), (192, 1, 7)),
      chain(average(x), "branch_pool", (192, 1, 1)),
    )


class BlockD(nn.Module):
  """From 17x17 to 8x8, x [B, 17, 17, C] -> [B, 8, 8, C + 512]. arXiv:1512.00567, Sec. 5."""

  @nn.compact
  def __call__(self, x):
    return join(
      chain(x, "branch3x3", (192, 1, 1), (320, 3, 3), halve=True),
      chain(x, "branch7x7x3", (192, 1, 1), (192, 1, 7), (192, 7, 1), (192, 3, 3), halve=True),
      shrink(x),
    )


class BlockE(nn.Module):
  """Block of 8x8 maps, x [B, H, W, C] -> [B, H, W, 2048]. arXiv:1512.00567, Fig. 7."""

  pool: Callable

  @nn.compact
  def __call__(self, x):
    def fork(x, name):
      return join(chain(x, f"{name}a", (384, 1, 3)), chain(x, f"{name}b", (384, 3, 1)))

    return join(
      chain(x, "branch1x1", (320, 1, 1)),
      fork(chain(x, "branch3x3_1", (384, 1, 1)), "branch3x3_2"),
      fork(chain(x, "branch3x3dbl", (448, 1, 1), (384, 3, 3)), "branch3x3dbl_3"),
      chain(self.pool(x), "branch_pool", (192, 1, 1)),
    )


class Classifier(nn.Module):
  """x [B, D] -> logits without and with their bias, [B, classes] each."""

  classes: int

  @nn.compact
  def __call__(self, x):
    kernel = self.param("kernel", nn.initializers.lecun_normal(), (x.shape[1], self.classes))
    bias = self.param("bias", nn.initializers.zeros, (self.classes,))
    logits = jnp.matmul(x, kernel, precision="highest")
    return logits, logits + bias[None]


class InceptionV3(nn.Module):
  """Features of FID, sFID and the Inception Score. arXiv:1512.00567, as the graph of 2015-12-05."""

  @nn.compact
  def __call__(self, x):
    """x [B, H, W, 3] in 0 to 255, uint8 or float32, of any size -> a dict of float32 arrays.

    "pool" [B, 2048]: FID, KID, precision and recall. arXiv:1706.08500.
    "logits" [B, 1008]: without the classifier's bias, as the Inception Score's own code takes
    them. arXiv:1606.03498.
    "class_logits" [B, 1008]: with it, as the network classifies.
    "spatial" [B, 2023]: sFID, the first 7 channels of the graph's mixed_6/conv (the 1x1 branch of
    Mixed_6d after its ReLU) as rows, columns, channels. arXiv:2103.03841.

    Raises ValueError for another shape or dtype.
    """
    x = (resize(pixels(x, 4), 299) - 128) / 128
    x = chain(x, "Conv2d_1a_3x3", (32, 3, 3), halve=True)  # [B, 149, 149, 32]
    x = Unit(32, (3, 3), padding="VALID", name="Conv2d_2a_3x3")(x)
    x = shrink(chain(x, "Conv2d_2b_3x3", (64, 3, 3)))  # [B, 73, 73, 64]
    x = chain(x, "Conv2d_3b_1x1", (80, 1, 1))
    x = Unit(192, (3, 3), padding="VALID", name="Conv2d_4a_3x3")(x)
    x = shrink(x)  # [B, 35, 35, 192]
    for name, pooled in {"5b": 32, "5c": 64, "5d": 64}.items():
      x = BlockA(pooled, name=f"Mixed_{name}")(x)
    x = BlockB(name="Mixed_6a")(x)  # [B, 17, 17, 768]
    for name, width in {"6b": 128, "6c": 160, "6d": 160, "6e": 192}.items():
      x = BlockC(width, name=f"Mixed_{name}")(x)
      if name == "6d":
        spatial = x[..., :7]  # the 1x1 branch comes first
    x = BlockD(name="Mixed_7a")(x)  # [B, 8, 8, 1280]
    x = BlockE(average, name="Mixed_7b")(x)
    x = BlockE(maximum, name="Mixed_7c")(x)
    pool = jnp.mean(x, axis=(1, 2))
    logits, class_logits = Classifier(1008, name="fc")(pool)
    return {
      "pool": pool,
      "logits": logits,
      "class_logits": class_logits,
      "spatial": spatial.reshape(len(x), -1),
    }

"""VGG-16, arXiv:1409.1556, Table 1 (D), without its classifier, and LPIPS, arXiv:1801.03924.

Weights: `jaxgen.convert.vgg`. The arithmetic is float32 on every device, as for all measures.
"""

import flax.linen as nn
import jax.numpy as jnp
import numpy as np

from jaxgen.core import method

BLOCKS = ((64, 64), (128, 128), (256, 256, 256), (512, 512, 512), (512, 512, 512))
TAPS = ("relu1_2", "relu2_2", "relu3_3", "relu4_3", "relu5_3")  # the last of each block

# Mean and standard deviation of ImageNet's channels, for images in [-1, 1]: those that torchvision
# gives for [0, 1], as lpips' ScalingLayer rounds them.
SHIFT, SCALE = np.float32([-0.030, -0.088, -0.188]), np.float32([0.458, 0.448, 0.450])


def normalise(x):
  """Images in [-1, 1] as VGG16 takes them, like x [B, H, W, 3]."""
  return (x - SHIFT[None, None, None]) / SCALE[None, None, None]


class VGG16(nn.Module):
  """Features for perceptual losses. arXiv:1409.1556."""

  @nn.compact
  def __call__(self, x):
    """x: of `normalise`, float32 [B, H, W, 3], 16 or more rows and columns -> a dict of float32.

    "relu1_2" [B, H, W, 64], "relu2_2" [B, H // 2, W // 2, 128], "relu3_3" [B, H // 4, W // 4, 256],
    "relu4_3" [B, H // 8, W // 8, 512], "relu5_3" [B, H // 16, W // 16, 512].

    Raises ValueError for another shape or dtype.
    """
    _check(x)
    found = {}
    for i, (widths, tap) in enumerate(zip(BLOCKS, TAPS, strict=True), 1):
      if i > 1:
        x = nn.max_pool(x, (2, 2), (2, 2))
      for j, width in enumerate(widths, 1):
        x = nn.relu(nn.Conv(width, (3, 3), precision="highest", name=f"conv{i}_{j}")(x))
      found[tap] = x
    return found


class Heads(nn.Module):
  """The weights of LPIPS: what each channel counts. arXiv:1801.03924, Eq. 1."""

  @nn.compact
  def __call__(self, maps):
    """maps: squared differences, five of [B, H, W, C] -> their weighted sum over channels [B].

    Of each map the mean over H and W. The weights are the squares of the paper's.
    """
    total = 0.0
    for i, x in enumerate(maps):
      x = nn.Conv(1, (1, 1), use_bias=False, precision="highest", name=f"lin{i}")(x)
      total += jnp.mean(x, axis=(1, 2, 3))
    return total


class LPIPS(nn.Module):
  """Learned perceptual distance, version 0.1, on VGG-16. arXiv:1801.03924, Eq. 1."""

  @nn.compact
  def __call__(self, x, y):
    """x, y: images in [-1, 1], float32 [B, H, W, 3], 16 or more rows and columns -> [B].

    Nothing is resized. Raises ValueError for another shape or dtype.
    """
    _check(x)
    method.check("y.shape", y.shape, y.shape == x.shape, f"that of x, {x.shape}")
    method.check("y.dtype", str(y.dtype), y.dtype == x.dtype, f"that of x, {x.dtype}")
    net = VGG16(name="vgg")
    features_x, features_y = net(normalise(x)), net(normalise(y))
    maps = [(_unit(features_x[tap]) - _unit(features_y[tap])) ** 2 for tap in TAPS]
    return Heads(name="heads")(maps)


def _check(x):
  images = x.ndim == 4 and x.shape[-1] == 3 and len(x) and min(x.shape[1:3]) >= 16
  method.check("x.shape", x.shape, images, "[B, H, W, 3] with H and W of 16 or more")
  method.check("x.dtype", str(x.dtype), x.dtype == "float32", "float32")


def _unit(x):
  """Channels of length 1; 1e-10 as in lpips."""
  length = jnp.sqrt(jnp.sum(x**2, axis=-1, keepdims=True))
  return x / (length + 1e-10)

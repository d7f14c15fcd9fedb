"""I3D, the Inception-v1 inflated to video: arXiv:1705.07750, Fig. 3, for RGB and the 400 classes of
Kinetics, with whose logits arXiv:1812.01717 defines the Frechet video distance.

Layers, padding and batch norm as in the authors' code (deepmind/kinetics-i3d, i3d.py), which has no
scale in its batch norms; here they have one, as in the torch port whose weights
`jaxgen.convert.i3d` reads, where it is 1.
"""

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.core import method
from jaxgen.nn import inception

# Channels of the branches 0; 1a, 1b; 2a, 2b; 3b. arXiv:1409.4842, Table 1.
MIXED = {
  "3b": (64, 96, 128, 16, 32, 32),
  "3c": (128, 128, 192, 32, 96, 64),
  "4b": (192, 96, 208, 16, 48, 64),
  "4c": (160, 112, 224, 24, 64, 64),
  "4d": (128, 128, 256, 24, 64, 64),
  "4e": (112, 144, 288, 32, 64, 64),
  "4f": (256, 160, 320, 32, 128, 128),
  "5b": (256, 160, 320, 32, 128, 128),
  "5c": (384, 192, 384, 48, 128, 128),
}


class Unit(nn.Module):
  """Convolution, batch norm by stored statistics and ReLU.

  x [B, T, H, W, C] -> [B, T', H', W', channels] with T' = ceil(T / strides).
  """

  channels: int
  kernel: int = 1
  strides: int = 1

  @nn.compact
  def __call__(self, x):
    conv = nn.Conv(
      self.channels,
      (self.kernel,) * 3,
      self.strides,
      use_bias=False,
      precision="highest",
      name="conv3d",
    )
    return nn.relu(nn.BatchNorm(use_running_average=True, epsilon=1e-3, name="bn")(conv(x)))


class Mixed(nn.Module):
  """Four branches side by side, x [B, T, H, W, C] -> [B, T, H, W, sum of theirs]; see MIXED."""

  channels: tuple[int, ...]

  @nn.compact
  def __call__(self, x):
    b0, b1a, b1b, b2a, b2b, b3b = self.channels
    return inception.join(
      Unit(b0, name="b0")(x),
      Unit(b1b, 3, name="b1b")(Unit(b1a, name="b1a")(x)),
      Unit(b2b, 3, name="b2b")(Unit(b2a, name="b2a")(x)),
      Unit(b3b, name="b3b")(nn.max_pool(x, (3, 3, 3), padding="SAME")),
    )


class I3D(nn.Module):
  """Features of the Frechet video distance. arXiv:1705.07750, Fig. 3."""

  @nn.compact
  def __call__(self, x):
    """x [B, T, H, W, 3] in 0 to 255, uint8 or float32, T of 9 or more -> a dict of float32 arrays.

    "logits" [B, 400]: what the Frechet video distance is taken of (arXiv:1812.01717; in its
    authors' code the mean of the logits over time). "pool" [B, 1024]: what they are made from.
    Frames are resized to 224x224 as that code does, which is TensorFlow 1's bilinear resize.
    Raises ValueError for another shape or dtype, and for fewer frames.
    """
    x = inception.pixels(x, 5)
    B, T, *frame = x.shape
    method.check("x.shape", x.shape, T >= 9, "[B, T, H, W, 3] with 9 frames or more")
    x = inception.resize(x.reshape(B * T, *frame), 224).reshape(B, T, 224, 224, 3)
    x = 2 * x / 255 - 1
    x = Unit(64, 7, 2, name="Conv3d_1a_7x7")(x)
    x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")
    x = Unit(64, name="Conv3d_2b_1x1")(x)
    x = Unit(192, 3, name="Conv3d_2c_3x3")(x)
    x = nn.max_pool(x, (1, 3, 3), (1, 2, 2), "SAME")  # [B, T / 2, 28, 28, 192]
    for name, channels in MIXED.items():
      if name == "4b":
        x = nn.max_pool(x, (3, 3, 3), (2, 2, 2), "SAME")
      elif name == "5b":
        x = nn.max_pool(x, (2, 2, 2), (2, 2, 2), "SAME")  # [B, T / 8, 7, 7, 832]
      x = Mixed(channels, name=f"Mixed_{name}")(x)
    x = nn.avg_pool(x, (2, 7, 7))  # [B, T / 8 - 1, 1, 1, 1024]
    pool = jnp.mean(x, axis=(1, 2, 3))
    # The mean over time of the logits is the logits of the mean.
    return {"logits": nn.Dense(400, precision="highest", name="logits")(pool), "pool": pool}

"""EfficientNet-Lite0: arXiv:1905.11946 (Table 1, B0) without squeeze-and-excitation and with ReLU6
for swish, as TensorFlow's efficientnet/lite/efficientnet_lite_builder.py has it.

A small classifier of ImageNet whose weights are free to use: features for distances in the manner
of FID where the Inception's are not at hand. Weights: `jaxgen.convert.efficientnet`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.nn import inception

# (kernel, stride, expansion, channels, repeats). arXiv:1905.11946, Table 1.
STAGES = [
  (3, 1, 1, 16, 1),
  (3, 2, 6, 24, 2),
  (5, 2, 6, 40, 2),
  (3, 2, 6, 80, 3),
  (5, 1, 6, 112, 3),
  (5, 2, 6, 192, 4),
  (3, 1, 6, 320, 1),
]


def norm(x, name):
  """Batch norm by stored statistics, like x [B, H, W, C]; name: of the layer."""
  return nn.BatchNorm(use_running_average=True, epsilon=1e-3, name=name)(x)


def pointwise(x, channels, name):
  """1x1 convolution, x [B, H, W, C] -> [B, H, W, channels]; name: of the layer."""
  return nn.Conv(channels, (1, 1), use_bias=False, precision="highest", name=name)(x)


class Depthwise(nn.Module):
  """Each channel with its own filter, x [B, H, W, C] -> [B, H', W', C] with H' = ceil(H / stride).

  Padded as TensorFlow's SAME. On a CPU the sum of kernel**2 shifted products, there 3 to 13 times
  faster than XLA's grouped convolution.
  """

  kernel: int
  stride: int

  @nn.compact
  def __call__(self, x):
    k, strides = self.kernel, (self.stride, self.stride)
    size = [-(-n // self.stride) for n in x.shape[1:3]]
    pads = jax.lax.padtype_to_pads(x.shape[1:3], (k, k), strides, "SAME")

    def grouped(x, kernel):
      return jax.lax.conv_general_dilated(
        x,
        kernel,
        strides,
        pads,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=x.shape[-1],
        precision="highest",
      )

    def shifted(x, kernel):
      x = jnp.pad(x, ((0, 0), *pads, (0, 0)))
      rows, columns = (
        [slice(i, i + self.stride * (n - 1) + 1, self.stride) for i in range(k)] for n in size
      )
      return sum(
        x[:, row, column] * kernel[None, i, None, j]
        for i, row in enumerate(rows)
        for j, column in enumerate(columns)
      )

    kernel = self.param("kernel", nn.initializers.lecun_normal(), (k, k, 1, x.shape[-1]))
    return jax.lax.platform_dependent(x, kernel, cpu=shifted, default=grouped)


class Block(nn.Module):
  """Inverted bottleneck, x [B, H, W, C] -> [B, H', W', channels] with H' = ceil(H / stride)."""

  kernel: int
  stride: int
  expansion: int
  channels: int

  @nn.compact
  def __call__(self, x):
    h = x
    if self.expansion > 1:
      h = pointwise(h, x.shape[-1] * self.expansion, "expand")
      h = nn.relu6(norm(h, "norm_0"))
    h = Depthwise(self.kernel, self.stride, name="depthwise")(h)
    h = nn.relu6(norm(h, "norm_1"))
    h = norm(pointwise(h, self.channels, "project"), "norm_2")
    return x + h if x.shape == h.shape else h


class EfficientNetLite0(nn.Module):
  """Features and classes of ImageNet. arXiv:1905.11946, Table 1."""

  @nn.compact
  def __call__(self, x):
    """x [B, H, W, 3] in 0 to 255, uint8 or float32, of any size -> a dict of float32 arrays.

    "pool" [B, 1280]: the mean over the last map. "logits" [B, 1000]: classes in the order of wnids.
    The resize to 224x224 is bicubic (Keys, a = -1/2) and antialiased where it shrinks. That is
    ours: a distance in these features is one with this resize in it.
    Raises ValueError for another shape or dtype.
    """
    x = inception.pixels(x, 4)
    x = jax.image.resize(x, (len(x), 224, 224, 3), "cubic")
    x = (x - 127) / 128
    x = nn.Conv(32, (3, 3), 2, use_bias=False, precision="highest", name="stem")(x)
    x = nn.relu6(norm(x, "norm_stem"))
    i = 0
    for kernel, stride, expansion, channels, repeats in STAGES:
      for j in range(repeats):
        x = Block(kernel, 1 if j else stride, expansion, channels, name=f"block_{i}")(x)
        i += 1
    x = nn.relu6(norm(pointwise(x, 1280, "head"), "norm_head"))
    pool = jnp.mean(x, axis=(1, 2))
    return {"pool": pool, "logits": nn.Dense(1000, precision="highest", name="fc")(pool)}

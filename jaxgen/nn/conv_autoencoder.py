"""Convolutional encoder and decoder of Burgess et al., 2018. arXiv:1804.03599, App. A.1.

4x4 convolutions of stride 2, dense layers, ReLU; the decoder is the encoder's mirror image.
"""

import flax.linen as nn
import jax.numpy as jnp


class Encoder(nn.Module):
  """The mean and the log variance of a diagonal Gaussian.

  widths: channels of the convolutions. dense: of the layers behind them. out: length of z.
  """

  widths: tuple[int, ...]
  dense: tuple[int, ...]
  out: int

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C] -> two of [B, out]."""
    for i, width in enumerate(self.widths):
      x = nn.relu(nn.Conv(width, (4, 4), strides=2, name=f"conv_{i}")(x))
    h = x.reshape(len(x), -1)
    for i, width in enumerate(self.dense):
      h = nn.relu(nn.Dense(width, name=f"dense_{i}")(h))
    return nn.Dense(self.out, name="mean")(h), nn.Dense(self.out, name="log_var")(h)


class Decoder(nn.Module):
  """Numbers for each pixel. image_shape: (H, W, C). widths, dense: of the encoder it mirrors."""

  image_shape: tuple[int, int, int]
  widths: tuple[int, ...]
  dense: tuple[int, ...]

  @nn.compact
  def __call__(self, z):
    """z: [B, D] -> [B, H, W, C], C the numbers of a pixel."""
    h, (height, width, channels) = z, self.image_shape
    for i, n in enumerate(reversed(self.dense)):
      h = nn.relu(nn.Dense(n, name=f"dense_{i}")(h))
    *channels, last = (channels, *self.widths)
    height, width = height >> len(channels), width >> len(channels)
    x = nn.Dense(height * width * last, name="unflatten")(h).reshape(-1, height, width, last)
    for i, n in enumerate(reversed(channels)):
      x = Upsample(n, name=f"conv_{i}")(nn.relu(x))
    return x


class Upsample(nn.Module):
  """A transposed 4x4 convolution of stride 2: for each parity of row and column a 2x2 one."""

  # As a product of matrices: XLA on CPUs takes ten times as long for gradients of the other forms.
  width: int

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C] -> [B, 2H, 2W, width]."""
    B, H, W, _ = x.shape
    x = jnp.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    parities = [(i, j) for i in (0, 1) for j in (0, 1)]
    x = jnp.concatenate([x[:, i : i + H + 1, j : j + W + 1] for i, j in parities], -1)
    y = nn.Dense(4 * self.width, use_bias=False, name="kernel")(x)
    y = y.reshape(B, H + 1, W + 1, 4, self.width)
    y = jnp.stack([y[:, i : i + H, j : j + W, 2 * i + j] for i, j in parities], 3)
    y = y.reshape(B, H, W, 2, 2, self.width).transpose(0, 1, 3, 2, 4, 5)
    bias = self.param("bias", nn.initializers.zeros, (self.width,))
    return y.reshape(B, 2 * H, 2 * W, self.width) + bias.reshape(1, 1, 1, -1)

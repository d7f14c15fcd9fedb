"""The UNet of DDPM, arXiv:2006.11239, App. B: layers, order and initialisation of the authors' code
(hojonathanho/diffusion, diffusion_tf/models/unet.py), with optional classes.

Parameters are float32; activations have the modules' dtype, statistics are float32.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.core import method
from jaxgen.nn import embeddings

uniform = nn.initializers.xavier_uniform()
near_zero = nn.initializers.variance_scaling(1e-10, "fan_avg", "uniform")


def group_count(channels):
  """Groups of every GroupNorm in a network of this base width: 32, as in DDPM, from 128 on.

  Narrower networks keep four channels a group: alone in its group, a channel would lose its mean,
  and with it the time embedding. Always a divisor of `channels`.
  """
  return max(g for g in range(1, 33) if channels % g == 0 and (g == 1 or 4 * g <= channels))


def dropout(x, rate, draw):
  """x [B, ...] with entries zeroed at this rate and the others scaled; draw: see UNet, or None."""
  if draw is None or rate == 0:
    return x
  return jnp.where(draw(x.shape[1:]) < rate, 0, x / (1 - rate))


class ResBlock(nn.Module):
  """Residual block with c added in its middle, [B, H, W, C] -> [B, H, W, channels]."""

  channels: int
  groups: int
  dropout: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, c, draw=None):
    """x: [B, H, W, C]; c: [B, D]; draw: see UNet."""
    norm = lambda name: nn.GroupNorm(self.groups, epsilon=1e-6, dtype=self.dtype, name=name)
    conv = lambda init, name: nn.Conv(
      self.channels, (3, 3), kernel_init=init, dtype=self.dtype, name=name
    )
    dense = lambda name: nn.Dense(self.channels, kernel_init=uniform, dtype=self.dtype, name=name)

    h = conv(uniform, "conv_0")(nn.swish(norm("norm_0")(x)))
    h += dense("cond")(nn.swish(c))[:, None, None, :]
    h = dropout(nn.swish(norm("norm_1")(h)), self.dropout, draw)
    h = conv(near_zero, "conv_1")(h)
    return (x if x.shape[-1] == self.channels else dense("shortcut")(x)) + h


class Attention(nn.Module):
  """Residual self-attention with one head over all pixels, x [B, H, W, C] -> like x."""

  groups: int
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x):
    B, H, W, C = x.shape
    dense = lambda init, name: nn.Dense(C, kernel_init=init, dtype=self.dtype, name=name)
    h = nn.GroupNorm(self.groups, epsilon=1e-6, dtype=self.dtype, name="norm")(x)
    h = h.reshape(B, H * W, 1, C)  # one head
    q, k, v = (dense(uniform, name)(h) for name in ("q", "k", "v"))
    h = jax.nn.dot_product_attention(q, k, v)
    return x + dense(near_zero, "proj")(h.reshape(B, H, W, C))


def upsample(x):
  """Nearest neighbour, x [B, H, W, C] -> [B, 2H, 2W, C]."""
  B, H, W, C = x.shape
  x = jnp.broadcast_to(x[:, :, None, :, None, :], (B, H, 2, W, 2, C))
  return x.reshape(B, 2 * H, 2 * W, C)


def level_heights(x, levels, attention):
  """Heights [H, H / 2, ...] of the levels of a network on x [B, H, W, C].

  attention: [n], heights that must be among them. Raises ValueError where one is not, for an H or W
  that cannot be halved so often, and for no levels.
  """
  method.check("multipliers", (), levels > 0, "at least one")
  H, W = x.shape[1:3]
  if H % 2 ** (levels - 1) or W % 2 ** (levels - 1):
    raise ValueError(
      f"x has height and width {H}, {W}: expected multiples of "
      f"{2 ** (levels - 1)} for {levels} multipliers"
    )
  heights = [H // 2**i for i in range(levels)]
  if not set(attention) <= set(heights):
    raise ValueError(f"attention={tuple(attention)}: expected heights among {heights}")
  return heights


class UNet(nn.Module):
  """eps(x_t, t) or any other function with the shape of an image. arXiv:2006.11239, App. B.

  channels: base width; level i has channels * multipliers[i] channels and 1 / 2**i of the height.
  attention: heights whose blocks are followed by self-attention (the bottom always has one).
  attend_once: on the way up only the last block of a height is, as in the network that the authors
  of score SDE call DDPM (arXiv:2011.13456; yang-song/score_sde, models/ddpm.py).
  n_classes: 0 is unconditional; otherwise labels are 0 to n_classes, the last being the null class
  of classifier-free guidance.
  """

  channels: int = 128
  multipliers: tuple[int, ...] = (1, 2, 2, 2)
  n_res_blocks: int = 2
  attention: tuple[int, ...] = (16,)
  attend_once: bool = False
  dropout: float = 0.1
  out_channels: int = 3
  n_classes: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, t, label=None, draw=None):
    """x [B, H, W, C], t [B] in steps, label int32 [B] -> [B, H, W, out_channels] float32.

    draw(shape) -> uniform noise [B, *shape], such as noise.stream(keys): dropout is on exactly when
    it is given. Raises ValueError for no multipliers, an H or W that cannot be halved so often, and
    attention at a height that does not occur.
    """
    levels = len(self.multipliers)
    heights = level_heights(x, levels, self.attention)
    groups = group_count(self.channels)

    def conv(features, name, **kwargs):
      return nn.Conv(
        features, (3, 3), **{"kernel_init": uniform, "dtype": self.dtype, **kwargs}, name=name
      )

    def res(h, level, name):
      width = self.channels * self.multipliers[level]
      return ResBlock(width, groups, self.dropout, self.dtype, name=name)(h, c, draw)

    def attend(h, name):
      return Attention(groups, self.dtype, name=name)(h)

    c = embeddings.Conditioning(
      self.channels, 4 * self.channels, self.n_classes, self.dtype, name="cond"
    )(t, label)
    h = conv(self.channels, "conv_in")(x)
    skips = [h]

    for i in range(levels):
      for j in range(self.n_res_blocks):
        h = res(h, i, f"down_{i}_res_{j}")
        if heights[i] in self.attention:
          h = attend(h, f"down_{i}_attn_{j}")
        skips.append(h)
      if i < levels - 1:
        h = conv(h.shape[-1], f"downsample_{i}", strides=2)(h)  # pads below and right only
        skips.append(h)

    h = res(h, levels - 1, "mid_res_0")
    h = attend(h, "mid_attn_0")
    h = res(h, levels - 1, "mid_res_1")

    for i in reversed(range(levels)):
      for j in range(self.n_res_blocks + 1):
        h = res(jnp.concatenate([h, skips.pop()], axis=-1), i, f"up_{i}_res_{j}")
        if heights[i] in self.attention and (j == self.n_res_blocks or not self.attend_once):
          h = attend(h, f"up_{i}_attn_{j}")
      if i > 0:
        h = conv(h.shape[-1], f"upsample_{i}")(upsample(h))

    h = nn.GroupNorm(groups, epsilon=1e-6, dtype=jnp.float32, name="norm_out")(h)
    h = nn.swish(h)
    return conv(self.out_channels, "conv_out", kernel_init=near_zero, dtype=jnp.float32)(h)

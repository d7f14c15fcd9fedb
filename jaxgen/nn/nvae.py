"""Cells and the network of NVAE: A Deep Hierarchical Variational Autoencoder. Vahdat, Kautz, 2020.

arXiv:2007.03898. Layers, weights at the start and constants are those of the official code.
"""

import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import axis
from jaxgen.objectives import elbo, likelihood


def uniform(fan_in):
  """An initialiser: U(-b, b) with b = fan_in^-1/2, for weights [..., C]."""
  bound = fan_in**-0.5
  return lambda key, shape, dtype=jnp.float32: jax.random.uniform(
    key, shape, dtype, minval=-bound, maxval=bound
  )


def causal_mask(size, c_in, c_out, *, backward, strict):
  """1 where a kernel sees earlier values only, in raster order, [K, K, C, D].

  Both channels count in as many groups as the fewer has: of the same pixel a group of outputs sees
  the groups of inputs before it, and where not `strict` its own. arXiv:1606.04934, Sec. 4.1.

  size, c_in, c_out: scalars K, C and D; C = 1 where it is depthwise. backward: earlier means below,
  and to the right.
  """
  raster = np.arange(size * size).reshape(size, size, 1, 1)
  earlier, here = (raster < size * size // 2), (raster == size * size // 2)
  if backward:
    earlier = earlier[::-1, ::-1]
  least = min(c_in, c_out)
  group_in = np.arange(c_in)[:, None] * least // c_in
  group_out = np.arange(c_out)[None, :] * least // c_out
  seen = group_in < group_out if strict else group_in <= group_out
  return np.float32(earlier | (here & seen[None, None]))


def depthwise_conv(x, w):
  """x: [B, H, W, C] with kernels w [k, k, 1, C], k odd -> [B, H, W, C]."""
  return _convolve(x, w, feature_group_count=x.shape[-1])


def depthwise_by_taps(x, w):
  """What `depthwise_conv` gives, as a sum of shifted products: 2 to 8 times as fast on a CPU.

  x: [B, H, W, C]. w: [k, k, 1, C].
  """
  size, (height, width) = len(w), x.shape[1:3]
  margin = (size // 2, size // 2)
  x = jnp.pad(x, ((0, 0), margin, margin, (0, 0)))
  taps = [(i, j) for i in range(size) for j in range(size)]
  return sum(x[:, i : i + height, j : j + width] * w[None, None, i, j] for i, j in taps)


def _convolve(x, w, stride=1, **options):
  margin = (len(w) // 2, len(w) // 2)
  layout = ("NHWC", "HWIO", "NHWC")
  return jax.lax.conv_general_dilated(
    x, w, (stride, stride), (margin, margin), dimension_numbers=layout, **options
  )


class Conv(nn.Module):
  """A convolution that keeps the resolution, or a part of it; each output has a learned norm.

  The weight in use, [channels, the rest], goes to the collection `weights`. causal: "", "forward"
  or "backward", of `causal_mask`; strict likewise. gain: of the norm at the start.
  """

  channels: int
  size: int = 1
  stride: int = 1
  depthwise: bool = False
  use_bias: bool = True
  use_norm: bool = True
  causal: str = ""
  strict: bool = False
  gain: float = 1.0

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C] -> [B, H / stride, W / stride, channels]."""
    c_in = 1 if self.depthwise else x.shape[-1]
    init = uniform(self.size**2 * c_in)
    w = self.param("kernel", init, (self.size, self.size, c_in, self.channels))
    if self.causal:
      backward = self.causal == "backward"
      w *= causal_mask(self.size, c_in, self.channels, backward=backward, strict=self.strict)
    if self.use_norm:
      norm = jnp.sqrt(jnp.sum(w**2, (0, 1, 2)))
      start = lambda key: jnp.log(norm + 1e-2) + math.log(self.gain)
      w *= (jnp.exp(self.param("log_norm", start)) / (norm + 1e-5))[None, None, None]
    matrix = w.reshape(-1, self.channels).T
    self.sow("weights", "matrix", matrix, reduce_fn=lambda _, new: new, init_fn=lambda: None)
    if self.depthwise:
      y = jax.lax.platform_dependent(x, w, cpu=depthwise_by_taps, default=depthwise_conv)
    else:
      y = _convolve(x, w, stride=self.stride)
    if self.use_bias:
      y += self.param("bias", nn.initializers.zeros, (self.channels,))[None, None, None]
    return y


class BatchNorm(nn.Module):
  """Batch norm over the global batch; the moving averages keep 0.95."""

  train: bool

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C], and so the result."""
    return nn.BatchNorm(
      not self.train, momentum=0.95, epsilon=1e-5, axis_name=axis.name(), use_fast_variance=False,
      name="norm",
    )(x)  # fmt: skip


class SqueezeExcite(nn.Module):
  """x times a gate for each channel, made of all channels' means. arXiv:1709.01507."""

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C], and so the result."""
    channels = x.shape[-1]
    hidden = max(channels // 16, 4)
    h = nn.relu(nn.Dense(hidden, kernel_init=uniform(channels))(x.mean((1, 2))))
    return x * nn.sigmoid(nn.Dense(channels, kernel_init=uniform(hidden))(h))[:, None, None]


class EncoderCell(nn.Module):
  """x + 0.1 SE(two of BN, Swish, 3x3). Fig. 3b.

  Where `down`, twice the channels at half the resolution.
  """

  train: bool
  down: bool = False

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C] -> the same shape, or [B, H / 2, W / 2, 2 C]."""
    channels = x.shape[-1] * (2 if self.down else 1)
    h = x
    for i, stride in enumerate((2 if self.down else 1, 1)):
      h = nn.swish(BatchNorm(self.train, name=f"norm_{i}")(h))
      h = Conv(channels, 3, stride, name=f"conv_{i}")(h)
    if self.down:  # a quarter of the channels from each of the four pixels that become one
      a, quarter = nn.swish(x), channels // 4
      shifts = ((0, 0), (1, 1), (0, 1), (1, 0))
      parts = [a[:, i::2, j::2] for i, j in shifts]
      sizes = (quarter, quarter, quarter, channels - 3 * quarter)
      made = zip(parts, sizes, strict=True)
      skip = [Conv(n, name=f"skip_{i}")(p) for i, (p, n) in enumerate(made)]
      x = jnp.concatenate(skip, -1)
    return x + 0.1 * SqueezeExcite(name="se")(h)


class DecoderCell(nn.Module):
  """x + 0.1 SE(1x1 to `expand` C, depthwise 5x5, 1x1). Fig. 3a.

  Where `up`, half the channels at twice the resolution.
  """

  train: bool
  expand: int = 6
  up: bool = False

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C] -> the same shape, or [B, 2 H, 2 W, C / 2]."""
    norm = lambda i: BatchNorm(self.train, name=f"norm_{i}")
    conv = lambda i, *a, **kw: Conv(*a, **kw, use_bias=False, use_norm=False, name=f"conv_{i}")
    channels = x.shape[-1] // (2 if self.up else 1)
    hidden = self.expand * x.shape[-1]
    h = x.repeat(2, 1).repeat(2, 2) if self.up else x
    h = nn.swish(norm(1)(conv(0, hidden)(norm(0)(h))))
    h = nn.swish(norm(2)(conv(1, hidden, 5, depthwise=True)(h)))
    h = norm(3)(conv(2, channels)(h))
    x = Conv(channels, use_bias=False, name="skip")(bilinear(x)) if self.up else x
    return x + 0.1 * SqueezeExcite(name="se")(h)


def bilinear(x):
  """x [B, H, W, C] -> [B, 2 H, 2 W, C], interpolated so that corners stay corners. Fig. 3a."""

  def weights(n):
    at = np.linspace(0, n - 1, 2 * n)[:, None]
    return np.float32(np.maximum(0.0, 1.0 - abs(at - np.arange(n)[None, :])))

  return jnp.einsum("yh,xw,bhwc->byxc", weights(x.shape[1]), weights(x.shape[2]), x)


class FlowCell(nn.Module):
  """z -> z - shift(earlier values of z): an inverse autoregressive flow that keeps volume.

  Sec. 3.1; arXiv:1606.04934.
  """

  causal: str

  @nn.compact
  def __call__(self, z):
    """z: [B, H, W, C], and so the result; log|det| of the Jacobian is 0."""
    channels, hidden = z.shape[-1], 6 * z.shape[-1]
    conv = lambda name, *a, **kw: Conv(*a, **kw, causal=self.causal, name=name)
    h = nn.elu(conv("first", hidden, 3, strict=True, use_bias=False)(z))
    h = nn.elu(conv("depthwise", hidden, 5, depthwise=True, use_bias=False)(h))
    return z - conv("shift", channels, gain=0.1)(nn.elu(h))  # ELU twice, as the official code


def soft_clamp(x):
  """5 tanh(x / 5), elementwise: nearly x around 0, never beyond 5."""
  return 5.0 * jnp.tanh(x / 5.0)


def normal(mean, log_std):
  """Mean and log variance of a Normal, two of [B, ...].

  mean, log_std: [B, ...], what a network says of it.
  """
  return soft_clamp(mean), 2.0 * jnp.log(jnp.exp(soft_clamp(log_std)) + 1e-2)


class Output(NamedTuple):
  """What a pass through `NVAE` gives; L groups of latents, top first."""

  head: jax.Array  # parameters of p(x | z), [B, H, W, out]
  z: list  # L of [B, h, w, z_channels], as the decoder takes them: after the flows
  # log q(z | x) - log p(z), or its mean over z where it has a formula, [B, L] nats; None without x
  kl: jax.Array | None
  log_ratio: jax.Array | float  # log p(z) - log q(z | x) at the drawn z, [B] nats; 0 without x


class NVAE(nn.Module):
  """A bottom-up network, a top-down one that both passes share, and L groups of latents. Fig. 2.

  groups: how many at each scale, top (coarsest) first; each scale has twice the resolution of the
  one before. z_channels: of the latents of a group. width: channels at full resolution; they double
  where the resolution halves. blocks: how often the image is halved below all latents, by `cells`
  cells each. group_cells: cells of a group, in both networks. flows: pairs of flow cells a group.
  """

  out: int
  groups: tuple[int, ...]
  z_channels: int
  width: int
  blocks: int
  cells: int
  group_cells: int
  flows: int

  @nn.compact
  def __call__(self, draw, shape, x=None, train=False):
    """An `Output`, from the posterior where there is x, else from the prior.

    draw: (group i, mean, log_var, each [B, h, w, z_channels]) -> z. shape: (B, H, W) of the output;
    H and W multiples of 2^(blocks + scales - 1). x: [B, H, W, C]. train: with the batch's
    statistics.
    """
    split = lambda h: jnp.split(h, 2, axis=-1)
    total = lambda v: jnp.sum(v, (1, 2, 3))
    features = None if x is None else self._features(x, train)
    factor = 2 ** (self.blocks + len(self.groups) - 1)
    top = (shape[1] // factor, shape[2] // factor, self.width * factor)
    start = self.param("start", lambda key: jax.random.uniform(key, top))
    s = jnp.broadcast_to(start[None], (shape[0], *top))
    made, kls, log_ratio, i = [], [], 0.0, 0
    for scale, n in enumerate(self.groups):
      if scale:
        s = DecoderCell(train, up=True, name=f"decoder_up_{scale}")(s)
      for _ in range(n):
        if i:
          for c in range(self.group_cells):
            s = DecoderCell(train, name=f"decoder_{i}_{c}")(s)
          prior = Conv(2 * self.z_channels, name=f"prior_{i}")(nn.elu(s))
        else:
          prior = jnp.zeros((*s.shape[:3], 2 * self.z_channels))
        p = q = normal(*split(prior))
        if features:
          h = features[i]
          if i:
            h += Conv(h.shape[-1], name=f"combine_{i}")(s)
          # Relative to the prior: mean_p + d_mean, sigma_p * d_sigma. Sec. 3.2.
          q = normal(*split(prior + Conv(2 * self.z_channels, 3, name=f"posterior_{i}")(h)))
        z = draw(i, *q)
        if features:
          log_q = likelihood.gaussian(z, *q)
          for f in range(self.flows):
            for causal in ("forward", "backward"):
              z = FlowCell(causal, name=f"flow_{i}_{f}_{causal}")(z)
          ratio = likelihood.gaussian(z, *p) - log_q
          kls.append(total(-ratio if self.flows else elbo.normal_kl(*q, *p)))  # Eq. 2
          log_ratio += total(ratio)
        made.append(z)
        s = Conv(s.shape[-1], name=f"decoder_z_{i}")(jnp.concatenate([s, z], -1))
        i += 1
    for b in range(self.blocks):
      for c in range(self.cells):
        s = DecoderCell(train, expand=3, up=c == 0, name=f"post_{b}_{c}")(s)
    head = Conv(self.out, 3, name="head")(nn.elu(s))
    return Output(head, made, jnp.stack(kls, 1) if kls else None, log_ratio)

  def _features(self, x, train):
    """Of each group, top first, what the bottom-up network says, [B, h, w, C]."""
    h = Conv(self.width, 3, name="stem")(x)
    for b in range(self.blocks):
      for c in range(self.cells):
        h = EncoderCell(train, down=c == self.cells - 1, name=f"pre_{b}_{c}")(h)
    found, i = [], sum(self.groups)
    for scale, n in enumerate(self.groups[::-1]):
      if scale:
        h = EncoderCell(train, down=True, name=f"encoder_down_{scale}")(h)
      for _ in range(n):
        i -= 1
        for c in range(self.group_cells):
          h = EncoderCell(train, name=f"encoder_{i}_{c}")(h)
        found.insert(0, h)
    found[0] = nn.elu(Conv(h.shape[-1], name="encoder_top")(nn.elu(h)))
    return found

"""RealNVP: Density Estimation using Real NVP. Dinh et al., 2016. arXiv:1605.08803.

Survey N02, Eq. 52-56, Box 6.

An invertible network that turns images into normal noise of the same shape, trained by exact
likelihood of dequantized pixels: affine couplings with checkerboard and channel masks, factoring
out of half of the variables at every scale, and batch normalisation as a layer of the flow.

The networks are those of the paper and of a port of its code (chrischute/real-nvp), to the number
of parameters. The authors' code (tensorflow/models, research/real_nvp) differs: it shows the mask
to the network, has one scale of s a coupling, no gain after a batch norm and none before it, moves
before it scales, (x + t) exp(s), has the other mask first on the checkerboard, and normalises the
moved half of a coupling's output with ordinary statistics. Our scale of s is g sign(v), 0 or 1 at
the start as in the authors' code: the port's weight normalisation of one number, whose v does not
learn. Nor does a weight scale that a batch norm undoes, which L2 would take to zero.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen import noise
from jaxgen.core import axis, method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.nn import bijectors
from jaxgen.objectives import change_of_variables, likelihood


class Conv(nn.Module):
  """Weight-normalised convolution, arXiv:1602.07868, Eq. 2. x: [B, H, W, C] -> [..., features]."""

  features: int
  size: int
  before_norm: bool = False  # no bias, and a fixed scale
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    shape = (self.size, self.size, x.shape[-1], self.features)
    v = self.param("v", nn.initializers.normal(1.0), shape)
    # The magnitude that the authors' code starts from.
    g_init = nn.initializers.constant(self.size / math.sqrt(6.0))
    g = self.param("g_fixed" if self.before_norm else "g", g_init, (self.features,))
    g = jax.lax.stop_gradient(g) if self.before_norm else g
    w = v * (g / jnp.sqrt(jnp.sum(v**2, axis=(0, 1, 2))))[None, None, None]
    x, w = x.astype(self.dtype), w.astype(self.dtype)
    y = jax.lax.conv_general_dilated(
      x, w, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    if self.before_norm:
      return y
    bias = self.param("bias", nn.initializers.zeros, (self.features,))
    return y + bias.astype(self.dtype)[None, None, None]


class Network(nn.Module):
  """What is kept -> (s, t) of what is moved. Sec. 3.4 and 4.1."""

  channels: int
  width: int
  n_blocks: int
  gain: float  # of the input: 2 where half of it is masked
  scale: float  # of s, at the start
  momentum: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, train):
    """x: [B, H, W, C] -> two float32 [B, H, W, channels]. train: with this batch's statistics."""
    conv = functools.partial(Conv, dtype=self.dtype)

    def norm(name):
      return nn.BatchNorm(
        use_running_average=not train, momentum=self.momentum, epsilon=1e-4, dtype=self.dtype,
        axis_name=axis.name(), use_fast_variance=False, name=name,
      )  # fmt: skip

    h = self.gain * norm("norm_in")(x)
    h = conv(self.width, 3, name="conv_in")(nn.relu(jnp.concatenate([h, -h], axis=-1)))
    skips = conv(self.width, 1, name="skip_in")(h)
    for i in range(self.n_blocks):
      r = nn.relu(norm(f"block_{i}_norm_0")(h))
      r = conv(self.width, 3, before_norm=True, name=f"block_{i}_conv_0")(r)
      r = nn.relu(norm(f"block_{i}_norm_1")(r))
      h += conv(self.width, 3, name=f"block_{i}_conv_1")(r)
      skips += conv(self.width, 1, name=f"skip_{i}")(h)
    h = conv(2 * self.channels, 1, name="conv_out")(nn.relu(norm("norm_out")(skips)))
    s, t = jnp.split(h.astype(jnp.float32), 2, axis=-1)
    g = self.param("g", nn.initializers.constant(self.scale), (self.channels,))
    v = self.param("v", nn.initializers.ones, (self.channels,))
    return (g * jnp.sign(v))[None, None, None] * jnp.tanh(s), t


class Flow(nn.Module):
  """One scale and, on half of what it gives, the coarser ones: x <-> z, [B, H, W, C]. Sec. 3.6."""

  n_scales: int
  width: int
  n_blocks: int
  momentum: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, *, inverse=False, train=False):
    """Returns (z, log_det [B]), or (x, log_det) if inverse. train: with this batch's statistics."""
    B, H, W, C = x.shape

    def network(name, **numbers):
      net = Network(
        n_blocks=self.n_blocks, momentum=self.momentum, dtype=self.dtype, name=name, **numbers
      )
      return functools.partial(net, train=train)

    def checkerboard(i):
      net = network(f"checkerboard_{i}", channels=C, width=self.width, gain=2.0, scale=0.0)
      mask = bijectors.checkerboard(H, W, parity=(i + 1) % 2)
      coupling = functools.partial(bijectors.masked_coupling, net, mask=mask)
      return coupling, norm(f"checkerboard_{i}_norm")

    def channels(i):
      net = network(f"channel_{i}", channels=2 * C, width=2 * self.width, gain=1.0, scale=1.0)
      coupling = functools.partial(bijectors.split_coupling, net, flip=i % 2 == 1)
      return coupling, norm(f"channel_{i}_norm")

    def norm(name):
      layer = bijectors.MovingBatchNorm(self.momentum, name=name)
      return functools.partial(layer, train=train)

    def squeezed(x, *, inverse):
      layers = [layer for i in range(3) for layer in channels(i)]
      y, log_det = bijectors.chain(layers, bijectors.squeeze(x), inverse=inverse)
      return bijectors.unsqueeze(y), log_det

    def coarser(x, *, inverse):
      x, z = jnp.split(bijectors.squeeze_ordered(x), 2, axis=-1)
      below = self.clone(
        n_scales=self.n_scales - 1, width=2 * self.width, name="coarser", parent=self
      )
      y, log_det = below(x, inverse=inverse, train=train)
      return bijectors.unsqueeze_ordered(jnp.concatenate([y, z], axis=-1)), log_det

    last = self.n_scales == 1
    layers = [layer for i in range(4 if last else 3) for layer in checkerboard(i)]
    return bijectors.chain(layers + ([] if last else [squeezed, coarser]), x, inverse=inverse)


def build(
  *,
  image_shape=(32, 32, 3),
  n_scales=2,
  width=64,
  n_blocks=8,
  alpha=0.05,
  momentum=0.9,
  l2=5e-5,
  dtype="float32",
  tx={"lr": 1e-3, "clip": 100.0},
  ema=0.0,
):
  """The Method; the defaults are the paper's CIFAR-10 model.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1].
    n_scales: scales, each with half of the variables of the one before.
    width, n_blocks: feature maps at the first scale, twice as many at each next one and in its
      channel couplings, and residual blocks of a network.
    alpha: of `bijectors.logit`.
    momentum: of all moving averages of batch statistics.
    l2: weight of the squared weight scales in the loss.
    dtype: in which the networks of the couplings compute; the flow itself is float32.
    tx, ema: of `optim.adam` and `optim.averages`. Batch statistics are those of the raw network.

  Raises:
    ValueError: an image that cannot be halved n_scales - 1 times, or a number out of range; in use,
      a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  for name, count, least in (
    ("n_scales", n_scales, 1),
    ("width", width, 1),
    ("n_blocks", n_blocks, 0),
  ):
    method.check_count(name, count, least)
  method.check_weight("l2", l2)
  method.check_dtype("dtype", dtype)
  method.check_number("alpha", alpha, lambda a: 0.0 < a < 0.5, "more than 0 and less than 0.5")
  method.check_fraction("momentum", momentum)
  unit = 2 ** (n_scales - 1)
  fits = not any(side % unit for side in image_shape[:2])
  method.check(
    "image_shape", image_shape, fits, f"height and width divisible by {unit}, for n_scales"
  )
  dims = math.prod(image_shape)
  net = Flow(n_scales, width, n_blocks, momentum, jnp.dtype(dtype))

  def init(key):
    variables = net.init(key, jnp.zeros((1, *image_shape)))
    return Vars({"net": variables["params"]}, {"net": {"batch_stats": variables["batch_stats"]}})

  def apply(vars, x, **options):
    return net.apply({"params": vars.params["net"], **vars.extra["net"]}, x, **options)

  def to_logit(x):
    """Pixels to the real line: (0, 1) holds the 256 bins of [-1 - 1/255, 1 + 1/255]."""
    y, log_det = bijectors.logit((127.5 * x + 128.0) / 256.0, alpha=alpha)
    return y, log_det + dims * math.log(127.5 / 256.0)

  def dequantized(z, log_det):
    return change_of_variables.normal_log_prob(z, log_det) + dims * math.log(likelihood.BIN)

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, 0)
    y, log_det = to_logit(likelihood.dequantize(keys, batch["image"].astype(jnp.float32)))
    (z, term), stats = apply(vars, y, train=True, mutable=["batch_stats"])
    nats = -dequantized(z, log_det + term).mean()
    leaves = jax.tree_util.tree_leaves_with_path(vars.params["net"])
    scales = sum(jnp.sum(x**2) for path, x in leaves if path[-1].key == "g")
    bits = nats / (dims * math.log(2.0))  # survey Eq. 61
    return nats + l2 * scales, Aux({"bits_per_dim": bits}, {"net": stats})

  def log_prob(vars, batch, keys):
    """A lower bound on log P of 8-bit images, in nats [B]: one draw of uniform dequantization."""
    method.check_batch(batch, image_shape, 0)
    y, log_det = to_logit(likelihood.dequantize(keys, batch["image"].astype(jnp.float32)))
    z, term = apply(vars, y)
    return dequantized(z, log_det + term)

  def encode(vars, batch, keys):
    """z [B, H, W, C] of the images as they are, in the middle of their bins; keys: not used."""
    method.check_batch(batch, image_shape, 0)
    return apply(vars, to_logit(batch["image"].astype(jnp.float32))[0])[0]

  def decode(vars, z):
    """{"image": [B, H, W, C]} of z [B, H, W, C], clipped to [-1, 1]."""
    y, _ = apply(vars, z, inverse=True)
    x, _ = bijectors.logit(y, alpha=alpha, inverse=True)
    return {"image": jnp.clip((256.0 * x - 128.0) / 127.5, -1.0, 1.0)}

  def sample(vars, keys, cond={}):
    """{"image": [n, *image_shape]}, clipped to [-1, 1]. cond: {}, no classes. survey Box 6."""
    method.check_cond(cond, 0)
    return decode(vars, noise.normal(keys, image_shape))

  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx))},
    ema=optim.averages("net", ema),
    fns={"sample": sample, "log_prob": log_prob, "encode": encode, "decode": decode},
  )

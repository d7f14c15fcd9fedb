"""Log-probabilities of pixels. Images are 8-bit, in [-1, 1]: 256 values, BIN = 2/255 apart.

Where there are other `levels`, images lie on as many values of [-1, 1], 2 / (levels - 1) apart.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from jaxgen import noise
from jaxgen.core import method

BIN = 2.0 / 255.0


def dequantize(keys, x):
  """x [B, ...] + uniform noise over its bin. keys: [B]. arXiv:1511.01844.

  By Jensen E log p + D log BIN <= log P(x), in nats, for D values.
  """
  return x + BIN * noise.uniform(keys, x.shape[1:], -0.5, 0.5)


def binarize(keys, x):
  """Pixels x [B, ...] in [-1, 1] -> 1 with probability (x + 1) / 2, else 0; float32 [B, ...].

  keys: [B]; each draw binarises anew, as in arXiv:1509.00519.
  """
  return jnp.float32(noise.uniform(keys, x.shape[1:]) < 0.5 * (x + 1.0))


def bernoulli(x, logits):
  """log P(x) of x in {0, 1} in nats, elementwise; logits: of P(1). arXiv:1312.6114, Eq. 11."""
  return x * jax.nn.log_sigmoid(logits) + (1.0 - x) * jax.nn.log_sigmoid(-logits)


def bernoulli_mean(logits):
  """E[x], as a pixel in [-1, 1], of x in {0, 1}; elementwise. logits: of P(1).

  arXiv:1312.6114, Eq. 11.
  """
  return jnp.tanh(0.5 * logits)  # 2 sigmoid(logits) - 1


def gaussian(x, mean, log_var):
  """log density of N(mean, e^log_var) at x in nats, elementwise.

  arXiv:1312.6114, Eq. 12; survey Eq. 18-19.
  """
  return -0.5 * ((x - mean) ** 2 * jnp.exp(-log_var) + log_var + math.log(2.0 * math.pi))


def tanh_log_cdf(z):
  """log of an approximate normal distribution function, elementwise.

  That of DDPM's official code, arXiv:2006.11239: (1 + tanh(sqrt(2/pi) (z + 0.044715 z^3))) / 2 is
  within 2e-4 of the exact one.
  """
  return jax.nn.log_sigmoid(2.0 * math.sqrt(2.0 / math.pi) * (z + 0.044715 * z**3))


def discretized_gaussian(x, mean, log_std, *, log_cdf=norm.logcdf):
  """log P(bin of x) under N(mean, e^(2 log_std)) in nats, elementwise. arXiv:2006.11239, Eq. 13.

  The outermost bins reach to infinity, so that the 256 probabilities sum to one. log_cdf:
  `tanh_log_cdf` gives the numbers of the official code.
  """
  up = jnp.exp(-log_std) * (x - mean + BIN / 2)
  down = jnp.exp(-log_std) * (x - mean - BIN / 2)
  # P(down < z < up) from the tail on whose side the bin lies: no cancellation of 1 - 1.
  near, far = jnp.minimum(up, -down), jnp.minimum(down, -up)
  log_near, log_far = log_cdf(near), log_cdf(far)
  inside = log_near + jnp.log1p(-jnp.exp(jnp.minimum(log_far - log_near, -1e-7)))
  edge = 1.0 - BIN / 2
  return jnp.where(x < -edge, log_cdf(up), jnp.where(x > edge, log_cdf(-down), inside))


def discretized_logistic(x, mean, log_scale, *, levels=256):
  """log P(bin of x) under a logistic distribution in nats, elementwise. arXiv:1701.05517, Eq. 2.

  The outermost bins reach to infinity, so that the probabilities of all levels sum to one.

  mean, log_scale: of the distribution. levels: how many values a pixel has.
  """
  half = 1.0 / (levels - 1)
  up = jnp.exp(-log_scale) * (x - mean + half)
  down = jnp.exp(-log_scale) * (x - mean - half)
  below, above = jax.nn.log_sigmoid(up), jax.nn.log_sigmoid(-down)
  # s(up) - s(down) = s(up) s(-down) (1 - e^(down - up)), where nothing cancels.
  inside = below + above + jnp.log(-jnp.expm1(-2.0 * half * jnp.exp(-log_scale)))
  return jnp.where(x < half - 1.0, below, jnp.where(x > 1.0 - half, above, inside))


def logistic_mixture(x, params, *, levels=256):
  """log P(pixel) under a mixture of discretised logistics in nats, [B, H, W].

  Green is given red, and blue given both, by a mean that is linear in them. arXiv:1701.05517,
  Eq. 2-3, in the order that its released code has parameters in.

  Args:
    x: [B, H, W, C], 1 or 3 channels in [-1, 1].
    params: [B, H, W, 3 M] for one channel: M logits, M means, M log scales; [B, H, W, 10 M] for
      three: M logits, then for each channel M means, M log scales and M coefficients, of which the
      tanh is taken: red to green, red to blue, green to blue. Log scales below -7 count as -7.
    levels: how many values a pixel has.

  Raises ValueError for other channels, for params that do not fit them, and for levels below 2.
  """
  method.check_count("levels", levels, 2)
  logits, means, log_scales, coefficients = _mixture(params, x.shape[-1])
  means = jnp.stack(
    [_given(means, coefficients, x[..., None], c) for c in range(x.shape[-1])], axis=-2
  )
  each = discretized_logistic(x[..., None], means, log_scales, levels=levels)  # [B, H, W, C, M]
  return jax.nn.logsumexp(jax.nn.log_softmax(logits) + jnp.sum(each, axis=-2), axis=-1)


def sample_logistic_mixture(keys, params, *, channels, temperature=1.0, uniforms=None):
  """Pixels drawn from `logistic_mixture`, [B, H, W, C] in [-1, 1], not rounded to a level.

  What falls outside [-1, 1] counts as its end, before the next channel is given it, as in the
  released code of arXiv:1701.05517.

  Args:
    keys: [B]. params: [B, H, W, 3 M or 10 M], of `logistic_mixture`.
    channels: C, 1 or 3.
    temperature: of the choice of a component, and a factor of its scale; 0 gives the mean of the
      likeliest.
    uniforms: ([B, H, W, M], [B, H, W, C]) in (0, 1), or a number for either, in place of noise;
      (0.5, 0.5) gives the mean of the likeliest component.

  Raises ValueError for other channels, params that do not fit them, and a negative temperature.
  """
  method.check_weight("temperature", temperature)
  logits, *rest = _mixture(params, channels)
  if uniforms is None:
    shapes = logits.shape[1:], (*logits.shape[1:-1], channels)
    draw = lambda keys, shape: noise.uniform(keys, shape, 1e-5, 1.0 - 1e-5)
    uniforms = map(draw, noise.split(keys), shapes)
  choice, u = uniforms
  gumbel = -jnp.log(-jnp.log(choice))
  component = jnp.argmax(logits + temperature * gumbel, axis=-1)[..., None, None]
  means, log_scales, coefficients = (
    jnp.take_along_axis(values, component, axis=-1)[..., 0] for values in rest
  )
  logistic = temperature * jnp.exp(log_scales) * (jnp.log(u) - jnp.log1p(-u))
  x = jnp.zeros_like(means)
  for c in range(channels):
    mean = _given(means[..., None], coefficients[..., None], x[..., None], c)[..., 0]
    x = x.at[..., c].set(jnp.clip(mean + logistic[..., c], -1.0, 1.0))
  return x


def _mixture(params, channels):
  """Logits [B, H, W, M]; means, log scales and coefficients, each [B, H, W, C, M]."""
  method.check("channels", channels, channels in (1, 3), "1 or 3")
  each = 3 * channels + (channels == 3)
  fits = params.shape[-1] > 0 and params.shape[-1] % each == 0
  method.check("params.shape", params.shape, fits, f"[B, H, W, {each} M] for {channels} channels")
  m = params.shape[-1] // each
  logits, rest = params[..., :m], params[..., m:]
  if channels == 1:
    means, log_scales = jnp.split(rest[..., None, :], 2, axis=-1)
    coefficients = jnp.zeros_like(means)
  else:
    rest = rest.reshape(*rest.shape[:-1], channels, 3 * m)
    means, log_scales, coefficients = jnp.split(rest, 3, axis=-1)
  return logits, means, jnp.maximum(log_scales, -7.0), jnp.tanh(coefficients)


def _given(means, coefficients, x, c):
  """Means [B, H, W, M] of channel c, given the channels of x [B, H, W, C, 1] before it.

  arXiv:1701.05517, Eq. 3.
  """
  before = {0: (), 1: ((0, 0),), 2: ((1, 0), (2, 1))}[c]  # (coefficient, channel)
  terms = [coefficients[..., i, :] * x[..., j, :] for i, j in before]
  return sum(terms, means[..., c, :])

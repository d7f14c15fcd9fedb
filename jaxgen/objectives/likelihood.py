"""Log-probabilities of pixels. Images are 8-bit, in [-1, 1]: 256 values, BIN = 2/255 apart."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from jaxgen import noise

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

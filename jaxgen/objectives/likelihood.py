"""Log-probabilities of pixels. Images are 8-bit, in [-1, 1]: 256 values, BIN = 2/255 apart."""

import jax.numpy as jnp
from jax.scipy.stats import norm

from jaxgen import noise

BIN = 2.0 / 255.0


def dequantize(keys, x):
  """x [B, ...] + uniform noise over its bin: E log p + D log BIN <= log P(x), by Jensen."""
  return x + BIN * noise.uniform(keys, x.shape[1:], -0.5, 0.5)


def discretized_gaussian(x, mean, log_std):
  """log P(bin of x) under N(mean, e^(2 log_std)), elementwise. arXiv:2006.11239, Eq. 13.

  The outermost bins reach to infinity, so that the 256 probabilities sum to one.
  """
  up = jnp.exp(-log_std) * (x - mean + BIN / 2)
  down = jnp.exp(-log_std) * (x - mean - BIN / 2)
  # P(down < z < up) from the tail on whose side the bin lies: no cancellation of 1 - 1.
  near, far = jnp.minimum(up, -down), jnp.minimum(down, -up)
  log_near, log_far = norm.logcdf(near), norm.logcdf(far)
  inside = log_near + jnp.log1p(-jnp.exp(jnp.minimum(log_far - log_near, -1e-7)))
  edge = 1.0 - BIN / 2
  return jnp.where(x < -edge, norm.logcdf(up), jnp.where(x > edge, norm.logcdf(-down), inside))

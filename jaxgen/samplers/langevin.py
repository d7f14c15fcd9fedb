"""Langevin dynamics. Song and Ermon, 2019. arXiv:1907.05600."""

import jax
import jax.numpy as jnp

from jaxgen import noise, paths
from jaxgen.core import method


def move(x, score, z, size):
  """(mean, x) [B, ...] after one step x + size score + sqrt(2 size) z. arXiv:1907.05600, Eq. 4.

  x, score, z: [B, ...]. size: [B] or a scalar, half of the paper's epsilon.
  """
  size = paths.expand(size, x)
  mean = x + size * score
  return mean, mean + jnp.sqrt(2.0 * size) * z


def annealed(field, x, keys, ts, *, epsilon=2e-5, repeats=100, z=None):
  """Langevin steps at every noise level of `ts` in turn. arXiv:1907.05600, Alg. 1.

  Args:
    field: a paths.Field with alpha = 1, such as of VE or EDM; the last level's noise stays in x.
    x: [B, ...] at ts[0]. keys: [B]. ts: [S + 1], from noise to data.
    epsilon: step at the last level, where sigma is sigma_L; elsewhere times sigma^2 / sigma_L^2.
    repeats: steps at each level, the paper's T.
    z: [S * repeats + repeats, B, ...] in place of normal noise (tests).

  Raises:
    ValueError: a time that the path does not have, an option out of its range.
  """
  method.check_positive("epsilon", epsilon)
  method.check_count("repeats", repeats)
  paths.check_times(field.path, ts)
  sigma = field.path.sigma(ts)
  last = method.concrete(sigma[-1])
  method.check(
    "ts", last, last is None or last > 0.0, "a last sigma above 0, which sizes the steps"
  )
  sizes = 0.5 * epsilon * (sigma / sigma[-1]) ** 2
  ts, sizes = jnp.repeat(ts, repeats), jnp.repeat(sizes, repeats)

  def step(x, inputs):
    i, t, size, z = inputs
    z = noise.normal(noise.fold_in(keys, i), x.shape[1:]) if z is None else z
    return move(x, field.score(x, jnp.full(x.shape[:1], t)), z, size)[1], None

  return jax.lax.scan(step, x, (jnp.arange(len(ts)), ts, sizes, z))[0]

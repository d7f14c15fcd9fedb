"""The sampler of flows that are nearly straight. arXiv:2405.20320."""

import jax
import jax.numpy as jnp

from jaxgen import paths


def straight(field, x, keys, ts):
  """x [B, ...] at ts[-1]: each step goes to alpha(s) x1 + sigma(s) x0, x1 as predicted at t.

  x0 is the noise that it started from. On straight lines it is Euler's method, as it is in one
  step. Elsewhere it leaves the flow, the more the more steps it takes: it is for a few steps of a
  flow that reflow has straightened. arXiv:2405.20320, the sampler "new" of its code.

  field: a paths.Field. x: [B, ...] at ts[0], noise. keys: [B], not used. ts: [S + 1], from noise to
  data. Raises ValueError for a time that the path does not have.
  """
  paths.check_times(field.path, ts)
  path, x0 = field.path, x / field.path.sigma(ts[0])

  def step(x, pair):
    t, alpha, sigma = pair
    p = field.predict(x, jnp.full(x.shape[:1], t))
    return alpha * p.x + sigma * x0, None

  s = ts[1:]
  return jax.lax.scan(step, x, (ts[:-1], path.alpha(s), path.sigma(s)))[0]

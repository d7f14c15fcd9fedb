"""Pseudo numerical methods for diffusion models. Liu et al., 2022. arXiv:2202.09778."""

import operator

import jax.numpy as jnp

from jaxgen.samplers import lms


def pndm(field, x, keys, ts):
  """x [B, ...] at ts[-1], F-PNDM: three pseudo Runge-Kutta steps, then pseudo linear multistep.

  Alg. 2. A step is DDIM's with a better eps: Runge-Kutta's or Adams-Bashforth's of fourth order,
  for equal steps of t. S + 9 evaluations: a Runge-Kutta step has four, two of them halfway in t.
  Infinite where alpha is 0, as Linear's is at first.

  field: a paths.Field. x: [B, ...] at ts[0]. keys: [B], unused. ts: [S + 1], from noise to data;
  sigma may be 0 at last. Raises ValueError for fewer than 4 steps, and times that do not run from
  noise to data.
  """
  path = field.path
  ts, _, _, _ = lms.levels(path, ts, 4)
  t, s = ts[:3], ts[1:4]
  half = 0.5 * (t + s)
  join = lambda warm, rest: jnp.concatenate([jnp.stack(warm, 1).ravel(), rest])
  start, at = join([t] * 4, ts[3:-1]), join([t, half, half, s], ts[3:-1])
  end = join([half, half, s, s], ts[4:])
  alpha, sigma = path.alpha(end), path.sigma(end)
  step = sigma - alpha * path.sigma(start) / path.alpha(start)  # DDIM's, of eps

  def row(warm, rest):  # constants of the four evaluations, and of the steps after them
    one = jnp.ones_like(t)
    return step * join([w * one for w in warm], jnp.full(len(ts) - 4, rest))

  within = row([0, 1, 1, 1 / 6], 0.0), row([0, 0, 0, 1 / 3], 0.0), row([0, 0, 0, 1 / 3], 0.0)
  before = tuple(row([0, 0, 0, 0], w / 24) for w in (-59.0, 37.0, -9.0))
  fresh = row([1, 0, 0, 0], 1.0) != 0.0
  table = lms.Table(at, fresh, alpha, sigma, before, within)
  return lms.solve(field, x, keys, table, operator.attrgetter("eps"))

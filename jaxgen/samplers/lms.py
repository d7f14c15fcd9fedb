"""Linear multistep methods: the form that all fast solvers here share, and the classical one.

Along the probability flow d(x_t / alpha) = eps d(sigma / alpha): arXiv:2010.02502, Eq. 14. A solver
adds to the exact step of a constant prediction, alpha_s x + sigma_s eps, weighted differences of
the predictions it has seen, with weights known before it starts. Times run from noise to data.
"""

import operator
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import noise, paths
from jaxgen.core import method


class Table(NamedTuple):
  """A solver as numbers: each field an array [N], or a tuple of them, a row for an evaluation."""

  t: jax.Array  # of the evaluation
  fresh: jax.Array  # does a step start with it? The next fields are about the latest start
  x: jax.Array  # weights of its x and
  eps: jax.Array  # of its eps: alpha and sigma of the time that is moved to
  before: tuple[jax.Array, ...] = ()  # of the starts before it, the latest first,
  within: tuple[jax.Array, ...] = ()  # of the latest evaluations, less what the start predicts
  std: jax.Array | None = None  # of the noise added


def solve(field, x, keys, table, of, z=None):
  """x [B, ...] after all N rows of a table, one evaluation of `field` each.

  Args:
    field: a paths.Field. x: [B, ...]. keys: [B]. table: a Table, [N] rows.
    of: a Prediction -> the part of it, [B, ...], whose differences are weighed.
    z: [N, B, ...] in place of normal noise (tests).
  """
  none = jnp.zeros_like(x)

  def step(carry, inputs):
    x, base, before, within = carry
    i, row, z = inputs
    p = field.predict(x, jnp.full(x.shape[:1], row.t))
    latest = lambda new, old: jnp.where(row.fresh, new, old)
    before = tuple(map(latest, push(before, of(base)), before))
    base = paths.Prediction(latest(p.x, base.x), latest(p.eps, base.eps))
    within = push(within, of(p))
    x = row.x * base.x + row.eps * base.eps
    x = x + differences((*row.before, *row.within), (*before, *within), of(base))
    if row.std is not None:
      z = noise.normal(noise.fold_in(keys, i), x.shape[1:]) if z is None else z
      x = x + row.std * z
    return (x, base, before, within), None

  carry = x, paths.Prediction(none, none), (none,) * len(table.before), (none,) * len(table.within)
  return jax.lax.scan(step, carry, (jnp.arange(len(table.t)), table, z))[0][0]


def push(kept, new):
  """`kept`, a tuple of arrays [B, ...], with `new` [B, ...] in front and without its last."""
  return (new, *kept)[: len(kept)]


def differences(ws, ms, m):
  """sum_j ws_j (ms_j - m), [B, ...]. ws: scalars. ms: a tuple of arrays [B, ...]. m: [B, ...]."""
  return sum((w * (m_j - m) for w, m_j in zip(ws, ms, strict=True)), jnp.zeros_like(m))


def levels(path, ts, least):
  """(ts, alpha, sigma, lambda), [S + 1] each; lambda = log(alpha / sigma), arXiv:2206.00927.

  ts: [S + 1], from noise to data. least: a scalar, of steps. Raises ValueError for fewer, a time
  that the path does not have, and times that do not run strictly from noise to data.
  """
  method.check_count("steps", len(ts) - 1, least)
  paths.check_times(path, ts)
  values = method.concrete(ts)
  if values is not None and not (np.diff(values) * (path.t_data - path.t_noise) > 0.0).all():
    raise ValueError(f"ts={values.tolist()}: expected times strictly from noise to data")
  ts = jnp.asarray(ts)
  return ts, path.alpha(ts), path.sigma(ts), 0.5 * paths.log_snr(path, ts)


def orders(steps, order, final):
  """int [S], the order of each step: it rises from 1 to `order`, and falls to `final` at last.

  steps, order, final: scalars, S is steps.
  """
  i = np.arange(steps)
  return np.minimum(np.minimum(i + 1, order), final + steps - 1 - i)


def nodes(at, n):
  """n arrays [S], where the starts 1, ..., n steps ago lie: q = 1 / r, r in units of the step.

  at: [S + 1], what steps are measured in. q is 0 for a start infinitely far away.
  """
  here = at[:-1]
  return [jnp.diff(at) / (jnp.roll(here, j) - here) for j in range(1, n + 1)]


def weights(moments, q):
  """One array [S] a node: weights of the differences between its value and that at r = 0.

  The weighted sum integrates the polynomial through the nodes r = 1 / q and 0, by Lagrange's
  formula. moments: of r, r^2, ... under the integral, as many [S] as nodes. q: as of `nodes`.
  """
  found = []
  for q_k in q:
    poly, scale = [1.0], q_k  # of r: the Lagrange polynomial is scale * r * poly(r)
    for q_j in q:
      if q_j is not q_k:
        up = [q_j * c for c in poly]
        poly = [a - b for a, b in zip([0.0, *up], [*poly, 0.0], strict=True)]
        scale = scale * q_k / (q_j - q_k)
    found.append(scale * sum(map(operator.mul, poly, moments)))
  return found


def pick(orders, tables):
  """A tuple of arrays [S]: weights of each step's own order, 0 where that has fewer.

  orders: [S]. tables: for orders 1, 2, ..., a list of weights [S].
  """
  columns = []
  for j in range(max(map(len, tables))):
    has = [k for k, table in enumerate(tables) if len(table) > j]
    columns.append(jnp.select([orders == k + 1 for k in has], [tables[k][j] for k in has], 0.0))
  return tuple(columns)


def coefficients(tau, order):
  """`order` - 1 arrays [S], weights of e_(i-1) - e_i, e_(i-2) - e_i, ... for the steps of tau.

  Exact integrals of the Lagrange polynomials: Adams-Bashforth at steps of any length. The first
  steps, which have less behind them, are of lower order. tau: [S + 1].
  """
  h, q = jnp.diff(tau), nodes(tau, order - 1)
  moments = [h / (i + 1) for i in range(1, order)]
  tables = [weights(moments[:k], q[:k]) for k in range(order)]
  return pick(orders(len(tau) - 1, order, order), tables)


def lms(field, x, keys, ts, *, order=4):
  """x [B, ...] at ts[-1]: Adams-Bashforth in sigma / alpha, one evaluation a step.

  field: a paths.Field. x: [B, ...] at ts[0]. keys: [B], unused. ts: [S + 1], from noise to data;
  sigma may be 0 at last. The first steps have orders 1, 2, ... Raises ValueError for an order that
  is not 1 to 4, and as `levels` does.
  """
  method.check_count("order", order, 1, 4)
  ts, alpha, sigma, _ = levels(field.path, ts, order)
  before = tuple(alpha[1:] * w for w in coefficients(sigma / alpha, order))
  start = jnp.full(len(ts) - 1, True)
  table = Table(ts[:-1], start, alpha[1:], sigma[1:], before)
  return solve(field, x, keys, table, operator.attrgetter("eps"))

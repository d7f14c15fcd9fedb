"""DPM-Solver and DPM-Solver++. Lu et al., 2022. arXiv:2206.00927, arXiv:2211.01095.

In lambda = log(alpha / sigma) the linear part of the probability flow is solved exactly, and what
the network says is taken for a polynomial: eps for DPM-Solver, x for DPM-Solver++ (`_pp`). Each
evaluation of the network has its time in ts [S + 1], which run from noise to data. What leads from
alpha = 0 or to sigma = 0, where lambda is infinite, is of first order.
"""

import operator

import jax.numpy as jnp
import numpy as np

from jaxgen.core import method
from jaxgen.samplers import lms

_eps, _x = operator.attrgetter("eps"), operator.attrgetter("x")


def singlestep(field, x, keys, ts, *, order=2, sizes=None):
  """x [B, ...] at ts[-1], DPM-Solver-1, 2 or 3. Alg. 1 and 2.

  Steps of `orders`, whose inner times are those of ts; `grids.inner` puts them where the paper has
  them: r1 = 1/2, or r1 = 1/3 and r2 = 2/3.

  Args:
    field: a paths.Field. x: [B, ...] at ts[0]. keys: [B], unused. ts: [S + 1].
    order: 1, 2 or 3. sizes: a tuple [n], the orders of n steps, of sum S; None is `orders`.

  Raises:
    ValueError: order or sizes is not of 1, 2 and 3, there are fewer times than they need, or they
      do not run from noise to data on the path.
  """
  return _singlestep(field, x, keys, ts, _eps, order, sizes)


def singlestep_pp(field, x, keys, ts, *, order=2, sizes=None):
  """x [B, ...] at ts[-1], DPM-Solver++(2S), or orders 1 and 3. arXiv:2211.01095, Alg. 1.

  Arguments and errors (ValueError) are those of `singlestep`: field, x [B, ...], keys [B],
  ts [S + 1], order and sizes [n].
  """
  return _singlestep(field, x, keys, ts, _x, order, sizes)


def multistep(field, x, keys, ts, *, order=2, final=3, curvature=1.0):
  """x [B, ...] at ts[-1], multistep DPM-Solver: orders from 1 up to `order`, one after the other.

  Args:
    field: a paths.Field. x: [B, ...] at ts[0]. keys: [B], unused. ts: [S + 1].
    order: 1, 2 or 3. final: order of the last step, which falls to it by one a step; released code
      has 1 for fewer than 10 steps.
    curvature: weight of the second derivative in order 3. Released code has 0.5, which makes it a
      solver of second order.

  Raises:
    ValueError: order or final is not 1, 2 or 3, there are fewer steps than that, or times do not
      run from noise to data on the path.
  """
  return _multistep(field, x, keys, ts, _eps, order, final, curvature)


def multistep_pp(field, x, keys, ts, *, order=2, final=3, curvature=1.0, eta=0.0, z=None):
  """x [B, ...] at ts[-1], DPM-Solver++(2M), or orders 1 and 3. arXiv:2211.01095, Alg. 2.

  field, x [B, ...], keys [B], ts [S + 1], order, final and curvature are those of `multistep`.
  eta: 0 is deterministic, 1 SDE-DPM-Solver++, whose first order is `ddim.ddim` with that eta;
  between them as in k-diffusion. z: [S, B, ...] in place of normal noise (tests). Raises ValueError
  as `multistep` does, and for an eta that is not a finite number, 0 or more.
  """
  method.check_weight("eta", eta)
  return _multistep(field, x, keys, ts, _x, order, final, curvature, eta, z)


def ancestral_pp(field, x, keys, ts, *, eta=1.0, z=None):
  """x [B, ...] at ts[-1]: each step DPM-Solver++(2S) past its end, then noise that leads back.

  k-diffusion's sampler. Two evaluations a step, the second halfway in lambda: unlike the others it
  has no times in ts for those. The noise is that of `ddim.ddim`, arXiv:2010.02502, Eq. 16.

  field: a paths.Field. x: [B, ...] at ts[0]. keys: [B]. ts: [S + 1]. eta: 0 is deterministic.
  z: [2 S, B, ...] in place of normal noise, of which every other row counts (tests). Raises
  ValueError for an eta outside [0, 1], and times that do not run from noise to data on the path.
  """
  method.check_number("eta", eta, lambda v: 0.0 <= v <= 1.0, "at least 0 and at most 1")
  path = field.path
  ts, alpha, sigma, lam = lms.levels(path, ts, 1)
  t, alpha_s, sigma_s = ts[:-1], alpha[1:], sigma[1:]
  h = jnp.diff(lam)
  std = eta * sigma_s * jnp.sqrt(-jnp.expm1(-2.0 * h))
  down = sigma_s * jnp.sqrt(1.0 - eta**2 + eta**2 * jnp.exp(-2.0 * h))  # down^2 + std^2 = sigma_s^2
  alone = (down == 0.0) | jnp.isinf(h)  # of first order: the second evaluation repeats the first
  h = jnp.log(alpha_s) - jnp.log(down) - lam[:-1]
  middle = jnp.where(alone, t, path.time(2.0 * lam[:-1] + h))
  weight = jnp.where(alone, 0.0, -alpha_s * jnp.expm1(-h))  # Alg. 1 with r = 1/2
  pair = lambda a, b: jnp.stack([a, b], 1).ravel()
  none, start = jnp.zeros_like(t), jnp.full(t.shape, True)
  table = lms.Table(
    t=pair(t, middle),
    fresh=pair(start, ~start),
    x=pair(path.alpha(middle), alpha_s),
    eps=pair(path.sigma(middle), down),
    within=(pair(none, weight),),
    std=None if eta == 0 else pair(none, std),
  )
  return lms.solve(field, x, keys, table, _x, z)


def orders(n, order):
  """Orders of the steps of singlestep solvers, a list of whole numbers whose sum is n. Sec. 3.3.

  As many of `order` as fit, with lower ones at the end; with order 3 the last is never one of
  those. n, order: scalars, order 1, 2 or 3.
  """
  if order < 3 or n == 0:
    return [order] * (n // order) + [1] * (n % order)
  threes, rest = divmod(n - 1, 3)
  return [3] * threes + [[1], [2], [2, 1]][rest]


def moments(z, n):
  """z int_0^1 e^(z (1 - u)) u^i du for i = 0, ..., n, a list of arrays like z, elementwise.

  i! times what the papers call h phi_(i+1): e^z - 1, (e^z - 1) / z - 1, ...
  """
  found = [jnp.expm1(z)]
  for i in range(1, n + 1):
    series = jnp.zeros_like(z)  # the recurrence loses all digits near 0
    for k in range(18, 0, -1):
      series = (1.0 + series) * z / (k + i)
    found.append(jnp.where(jnp.abs(z) < 1.0, series, i * found[-1] / z - 1.0))
  return found


def _scaled(of, alpha, sigma, h):
  """(A, z): a step of h adds -A moments(z) differences. Eq. 3.4; arXiv:2211.01095, Prop. 4.1."""
  return (sigma, h) if of is _eps else (alpha, -h)


def _singlestep(field, x, keys, ts, of, order, sizes):
  method.check_count("order", order, 1, 3)
  ts, alpha, sigma, lam = lms.levels(field.path, ts, order)
  n = len(ts) - 1
  sizes = orders(n, order) if sizes is None else sizes
  method.check_counts("sizes", sizes)
  good = max(sizes) <= 3 and sum(sizes) == n
  method.check("sizes", sizes, good, f"orders 1, 2 and 3 whose sum is {n}, the steps of ts")
  size, start = np.repeat(sizes, sizes), np.repeat(np.cumsum([0, *sizes[:-1]]), sizes)
  fresh = start == np.arange(n)
  at, here, there = lam[start], lam[:-1], lam[1:]
  scale, z = _scaled(of, alpha[1:], sigma[1:], there - at)
  first, second = moments(z, 1)
  weight = -scale * jnp.where(size == 2, 0.5 * first, second) * (there - at) / (here - at)
  alone = fresh | jnp.isinf(at) | jnp.isinf(there)  # of first order
  within = (jnp.where(alone, 0.0, weight),)
  table = lms.Table(ts[:-1], alone, alpha[1:], sigma[1:], within=within)
  return lms.solve(field, x, keys, table, of)


def _multistep(field, x, keys, ts, of, order, final, curvature, eta=0.0, z=None):
  method.check_count("order", order, 1, 3)
  method.check_count("final", final, 1, 3)
  ts, alpha, sigma, lam = lms.levels(field.path, ts, order)
  alpha_s, sigma_s, h = alpha[1:], sigma[1:], jnp.diff(lam)
  q = lms.nodes(lam, 2)
  scale, exponent = _scaled(of, alpha_s, sigma_s, (1.0 + eta) * h)
  first, second, third = moments(exponent, 2)
  two = lms.weights([0.5 * first], q[:1])
  three = lms.weights([second, curvature * third], q)
  rows = lms.pick(lms.orders(len(h), order, final), [[], two, three][:order])
  before = tuple(jnp.where(sigma_s == 0.0, 0.0, -scale * w) for w in rows)
  kept, std = sigma_s, None
  if eta > 0:
    kept, std = sigma_s * jnp.exp(-eta * h), sigma_s * jnp.sqrt(-jnp.expm1(-2.0 * eta * h))
  table = lms.Table(ts[:-1], jnp.full(len(h), True), alpha_s, kept, before, std=std)
  return lms.solve(field, x, keys, table, of, z)

"""Times for samplers, their `ts`: float32 [n + 1], from noise to data, for n steps along a path.

Equal steps of t are `uniform`. Grids of noise levels sigma / alpha have n of them between the ends
of the path and then the time where sigma is 0, or n + 1 on a path that has none; `first` and `last`
are the times of the first and the last level, where a path's own ends, like Linear's, have none. On
a Discrete path all times are whole numbers that fall strictly to 0.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import paths
from jaxgen.core import method
from jaxgen.samplers import dpm_solver

uniform = paths.times


def quadratic(path, n):
  """Equal steps of the root of t's distance to the data, [n + 1]. arXiv:2010.02502, App. D.2.

  Raises ValueError as `paths.check_steps` does.
  """
  paths.check_steps(path, n)
  start, end = path.t_noise, path.t_data
  if start > end:
    return _made(path, np.linspace(np.sqrt(start), np.sqrt(end), n + 1) ** 2)
  return _made(path, end - np.linspace(np.sqrt(end - start), 0.0, n + 1) ** 2)


def karras(path, n, *, rho=7.0, first=None, last=None):
  """Equal steps of (sigma / alpha)^(1 / rho), [n + 1]. arXiv:2206.00364, Eq. 5.

  rho, first, last: scalars, see the file's docstring. Raises ValueError for an n, rho, first or
  last that does not fit.
  """
  method.check_positive("rho", rho)
  root = lambda lam: np.exp(-lam / rho)
  level = lambda u, a, b: -rho * np.log(root(a) + u * (root(b) - root(a)))
  return _levels(path, n, level, first, last)


def exponential(path, n, *, rho=1.0, first=None, last=None):
  """log(sigma / alpha) falls as the power rho of equal steps, [n + 1]. arXiv:2206.00927, Sec. 3.3.

  rho = 1 is k-diffusion's exponential grid, others its polyexponential. rho, first, last: scalars,
  see the file's docstring. Raises ValueError for an n, rho, first or last that does not fit.
  """
  method.check_positive("rho", rho)
  level = lambda u, a, b: b + (1.0 - u) ** rho * (a - b)
  return _levels(path, n, level, first, last)


def log_snr(path, n, *, order=1, first=None, last=None):
  """Equal steps of lambda from end to end, [n + 1]: no level of sigma = 0 but on a Discrete path.

  arXiv:2206.00927, Sec. 3.3. order: of a singlestep solver, whose steps, not its
  evaluations, then are equal. first, last: scalars, see the file's docstring. Raises ValueError for
  an n, order, first or last that does not fit.
  """
  method.check_count("order", order, 1, 3)
  paths.check_steps(path, n)
  on_chain = isinstance(path, paths.Discrete)
  sizes = dpm_solver.orders(n - on_chain, order)
  at = np.concatenate([[0.0], *(i + np.arange(1, k + 1) / k for i, k in enumerate(sizes))])
  t = _between(path, at / max(at[-1], 1.0), lambda u, a, b: a + u * (b - a), first, last)
  return _made(path, np.append(t, 0.0) if on_chain else t)


def inner(path, ts, order):
  """ts with order - 1 times in each step, equal in lambda, float32 [n + 1]; none in one to sigma 0.

  What singlestep DPM-Solvers take for r1 = 1/2, or 1/3 and r2 = 2/3: arXiv:2206.00927, Alg. 1, 2.
  On a Discrete path they need not be whole. ts: [S + 1], from noise to data. order: a scalar.
  Raises ValueError where alpha is 0, or sigma before the end.
  """
  method.check_count("order", order, 1, 3)
  ts = np.asarray(ts, np.float64)
  lam = _lambda(path, ts)
  method.check("ts", ts.tolist(), np.isfinite(lam[:-1]).all(), "alpha and sigma above 0")
  split = len(ts) - 1 if np.isfinite(lam[-1]) else len(ts) - 2
  at = np.arange(split * order + 1) / order
  fine = _time(path, np.interp(at, np.arange(split + 1), lam[: split + 1]))
  fine[::order] = ts[: split + 1]
  return jnp.asarray(np.concatenate([fine, ts[split + 1 :]]), jnp.float32)


def shifted(path, n, *, shift=3.0):
  """n levels, moved to the noise by `shift`, then the data, [n + 1]. arXiv:2403.03206, Eq. 23.

  As in the authors' code, which counts 1000 steps of training: before the shift the levels fall in
  equal steps from 1 to that of the first of the 1000, itself shifted. shift: a scalar, the paper's
  alpha, 3 at 1024^2; 1 moves none. Raises ValueError for an n or shift that does not fit, and for a
  path whose times are not from 0 to 1.
  """
  paths.check_steps(path, n)
  method.check_positive("shift", shift)
  fits = all(0.0 <= end <= 1.0 for end in (path.t_noise, path.t_data))
  method.check("path", path, fits, "one whose times are from 0 to 1")
  move = lambda s: shift * s / (1.0 + (shift - 1.0) * s)  # arXiv:2403.03206, Eq. 23
  levels = np.append(move(np.linspace(1.0, move(1e-3), n)), 0.0)
  return _made(path, path.t_data + (path.t_noise - path.t_data) * levels)


def spaced(path, counts):
  """counts[i] steps from the i-th of equal parts of a chain, data first: [S + 1], S their sum.

  arXiv:2102.09672, Sec. 4, as its code respaces. counts: a tuple [n] of whole numbers. Raises
  ValueError for a path that is not Discrete, and for more steps than a part has.
  """
  T = _length(path)
  method.check_counts("counts", counts)
  small, extra = divmod(T, len(counts))
  kept, start = [], 0
  for i, count in enumerate(counts):
    size = small + (i < extra)
    method.check_count(f"counts[{i}]", count, 1, size)
    stride = (size - 1) / (count - 1) if count > 1 else 1.0
    kept += [start + np.round(np.cumsum([0.0] + [stride] * (count - 1)))]
    start += size
  return _chain(np.concatenate(kept))


def strided(path, n):
  """n steps of a chain at one whole stride, counted from the data: [n + 1].

  arXiv:2010.02502, App. D.2, as in guided-diffusion's code. Raises ValueError for a path that is
  not Discrete, and where no whole stride gives n steps.
  """
  T = _length(path)
  found = [np.arange(0, T, k) for k in range(1, T + 1) if len(range(0, T, k)) == n]
  method.check("steps", n, found, f"a number that a whole stride of {T} steps gives")
  return _chain(found[0])


def _length(path):
  method.check("path", path, isinstance(path, paths.Discrete), "a Discrete path")
  return len(path.betas)


def _chain(kept):
  """Times of steps that are counted from 0, the data's end first."""
  return jnp.asarray(np.concatenate([[0.0], kept + 1.0])[::-1], jnp.float32)


def _levels(path, n, level, first, last):
  """Times of n levels, and of the data's end: level(u, lambda of first, of last), u in [0, 1]."""
  paths.check_steps(path, n)
  end = _time(path, np.inf)
  reaches_data = 0.0 <= end <= max(path.t_noise, path.t_data)
  t = _between(path, np.linspace(0.0, 1.0, n if reaches_data else n + 1), level, first, last)
  return _made(path, np.append(t, end) if reaches_data else t)


def _between(path, u, level, first, last):
  first = path.t_noise if first is None else first
  last = max(path.t_data, _first_step(path)) if last is None else last
  longest = max(path.t_noise, path.t_data)
  for name, t in (("first", first), ("last", last)):
    method.check_number(name, t, lambda t: 0.0 <= t <= longest, f"a time from 0 to {longest}")
  ends = _lambda(path, np.array([first, last]))
  for name, t, lam in zip(("first", "last"), (first, last), ends, strict=True):
    method.check(name, t, np.isfinite(lam), "a time where alpha and sigma are above 0")
  method.check("last", last, ends[0] < ends[1], f"a time nearer to the data than {first}")
  return np.clip(_time(path, level(u, *ends)), min(first, last), max(first, last))


def _first_step(path):
  return 1.0 if isinstance(path, paths.Discrete) else 0.0


def _made(path, t):
  """float32; on a Discrete path whole numbers, each at least 1 below the one before it."""
  if isinstance(path, paths.Discrete):
    i = np.arange(len(t))
    up = np.maximum.accumulate(np.round(t[::-1]) - i) + i
    t = np.minimum(up, len(path.betas) - i[::-1])[::-1]
  return jnp.asarray(t, jnp.float32)


def _lambda(path, t):
  return _exact(lambda t: 0.5 * paths.log_snr(path, t), t)


def _time(path, lam):
  return _exact(lambda lam: path.time(2.0 * lam), lam)


def _exact(fn, x):
  """fn of float64, at once, also while JAX traces."""
  with jax.ensure_compile_time_eval(), jax.enable_x64(True):
    return np.array(fn(jnp.asarray(x, jnp.float64)))

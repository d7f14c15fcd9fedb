"""Solvers of dx/dt = velocity_fn(x, t): fixed steps, each one lax.scan, and adaptive ones.

velocity_fn: (x, t [B]) -> dx/dt. x: an array [B, ...] or a tree of them. ts: [S + 1], either way.
"""

import diffrax
import equinox
import jax
import jax.numpy as jnp

from jaxgen.core import method


def euler(velocity_fn, x, ts):
  """x [B, ...] at ts[-1]: first order, one evaluation a step.

  survey Eq. 102, 105, Box 10 and 11.
  """

  def step(x, pair):
    t, s = pair
    return _move(x, s - t, velocity_fn(x, _rows(t, x))), None  # survey Eq. 101, in steps of s - t

  return jax.lax.scan(step, x, (ts[:-1], ts[1:]))[0]


def heun(velocity_fn, x, ts):
  """x [B, ...] at ts[-1]: second order, two evaluations a step, also at both ends of `ts`.

  survey Eq. 102; arXiv:2206.00364, Alg. 1, without its Euler step to sigma = 0.
  """

  def step(x, pair):
    t, s = pair
    d = velocity_fn(x, _rows(t, x))
    d_s = velocity_fn(_move(x, s - t, d), _rows(s, x))
    return _move(x, 0.5 * (s - t), jax.tree.map(jnp.add, d, d_s)), None

  return jax.lax.scan(step, x, (ts[:-1], ts[1:]))[0]


def rk4(velocity_fn, x, ts):
  """x [B, ...] at ts[-1]: fourth order, Runge and Kutta's four evaluations a step. survey Eq. 102.

  The last of them is at the end of the step, also at that of `ts`.
  """

  def step(x, pair):
    t, s = pair
    h, middle = s - t, _rows(0.5 * (t + s), x)
    d1 = velocity_fn(x, _rows(t, x))
    d2 = velocity_fn(_move(x, 0.5 * h, d1), middle)
    d3 = velocity_fn(_move(x, 0.5 * h, d2), middle)
    d4 = velocity_fn(_move(x, h, d3), _rows(s, x))
    mean = jax.tree.map(lambda a, b, c, d: (a + 2.0 * (b + c) + d) / 6.0, d1, d2, d3, d4)
    return _move(x, h, mean), None

  return jax.lax.scan(step, x, (ts[:-1], ts[1:]))[0]


def adaptive(velocity_fn, x, ts, *, rtol=1e-5, atol=1e-5, max_steps=1000):
  """x [B, ...] at ts[-1]: Dormand and Prince's 5(4) pair, steps chosen for each example by itself.

  As arXiv:2011.13456, App. D.4, which has one step size for the batch; only the ends of `ts` count.

  rtol, atol: error of a step, relative and absolute. max_steps: at most this many; an example that
  needs more is NaN, so that it cannot pass for a solution. It has no gradient. Raises ValueError
  for options out of range.
  """
  method.check_positive("rtol", rtol)
  method.check_positive("atol", atol)
  method.check_count("max_steps", max_steps)

  # Each row is solved alone, yet velocity_fn sees the batch, as it may hold labels [B]. custom_vmap
  # wants all that it holds as an argument.
  rows = _rows(ts[0], x)
  fn = equinox.filter_closure_convert(velocity_fn, x, rows)
  held, fn = equinox.partition(fn, equinox.is_array)

  @jax.custom_batching.custom_vmap
  def one(held, x, t):
    x, t = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(rows), *a.shape)), (x, t))
    return jax.tree.map(lambda d: d[0], equinox.combine(held, fn)(x, t))

  @one.def_vmap
  def all_rows(n, batched, held, x, t):
    wide = lambda a, is_wide: a if is_wide else jnp.broadcast_to(a, (n, *a.shape))
    d = equinox.combine(held, fn)(*jax.tree.map(wide, (x, t), tuple(batched[1:])))
    return d, jax.tree.map(lambda _: True, d)

  def solve(x):
    solution = diffrax.diffeqsolve(
      diffrax.ODETerm(lambda t, x, _: one(held, x, jnp.asarray(t, rows.dtype))),
      diffrax.Dopri5(),
      t0=ts[0],
      t1=ts[-1],
      dt0=None,
      y0=x,
      stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
      max_steps=max_steps,
      throw=False,
    )
    done = solution.result == diffrax.RESULTS.successful
    return jax.tree.map(lambda x: jnp.where(done, x[-1], jnp.nan), solution.ys)

  return jax.vmap(solve)(x)


def _move(x, h, d):
  return jax.tree.map(lambda x, d: x + h * d, x, d)


def _rows(t, x):
  return jnp.full(jax.tree.leaves(x)[0].shape[:1], t)

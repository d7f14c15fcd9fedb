"""Solvers of dx/dt = velocity_fn(x, t): fixed steps, each one lax.scan, and adaptive ones.

velocity_fn: (x, t [B]) -> dx/dt. x: an array [B, ...] or a tree of them. ts: [S + 1], either way.
Gradients pass through all but `adaptive`.
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
  return _runge_kutta(velocity_fn, x, ts, ((),), (1.0,))  # survey Eq. 101, in steps of s - t


def midpoint(velocity_fn, x, ts):
  """x [B, ...] at ts[-1]: second order, two evaluations a step, none at its end. survey Eq. 102."""
  return _runge_kutta(velocity_fn, x, ts, ((), (0.5,)), (0.0, 1.0))


def heun(velocity_fn, x, ts):
  """x [B, ...] at ts[-1]: second order, two evaluations a step, also at both ends of `ts`.

  survey Eq. 102; arXiv:2206.00364, Alg. 1, without its Euler step to sigma = 0.
  """
  return _runge_kutta(velocity_fn, x, ts, ((), (1.0,)), (0.5, 0.5))


def rk4(velocity_fn, x, ts):
  """x [B, ...] at ts[-1]: fourth order, Runge and Kutta's four evaluations a step. survey Eq. 102.

  The last of them is at the end of the step, also at that of `ts`.
  """
  a = ((), (0.5,), (0.0, 0.5), (0.0, 0.0, 1.0))
  return _runge_kutta(velocity_fn, x, ts, a, (1 / 6, 1 / 3, 1 / 3, 1 / 6))


def rk4_38(velocity_fn, x, ts):
  """x [B, ...] at ts[-1]: fourth order, Kutta's 3/8 rule, four evaluations a step. survey Eq. 102.

  What torchdiffeq calls rk4. The last evaluation is at the end of the step, as that of `rk4`.
  """
  a = ((), (1 / 3,), (-1 / 3, 1.0), (1.0, -1.0, 1.0))
  return _runge_kutta(velocity_fn, x, ts, a, (1 / 8, 3 / 8, 3 / 8, 1 / 8))


def _runge_kutta(velocity_fn, x, ts, a, b):
  """The explicit method of a Butcher table: stages a, weights b, times the sums of rows of a."""

  def step(x, pair):
    (t, s), d = pair, []
    for row in a:
      c = sum(row)  # in this form the times 0 and 1 are t and s to the bit
      d.append(velocity_fn(_move(x, s - t, row, d), _rows((1.0 - c) * t + c * s, x)))
    return _move(x, s - t, b, d), None

  return jax.lax.scan(step, x, (ts[:-1], ts[1:]))[0]


def adaptive(velocity_fn, x, ts, *, rtol=1e-5, atol=1e-5, max_steps=1000):
  """x [B, ...] at ts[-1]: Dormand and Prince's 5(4) pair, steps chosen for each example by itself.

  As arXiv:2011.13456, App. D.4, which has one step size for the batch; only the ends of `ts` count.

  rtol, atol: error of a step, relative and absolute. max_steps: at most this many; an example that
  needs more is NaN, so that it cannot pass for a solution. It has no gradient. Raises ValueError
  for options out of range.
  """
  return _each_row(velocity_fn, x, ts, rtol, atol, max_steps)[0]


def evaluations(velocity_fn, x, ts, *, rtol=1e-5, atol=1e-5, max_steps=1000):
  """int32 [B]: how often `adaptive` evaluates velocity_fn for each example; survey Table 11's NFE.

  As in arXiv:1806.07366, Sec. 3, all count: one at the start and six a step, also of a step that is
  rejected, as the last of a step is the first of the next. scipy and torchdiffeq add one that finds
  the first step, here 0.01.
  x: [B, ...]. ts: [S + 1]. rtol, atol, max_steps: of `adaptive`; an example that max_steps cuts
  short has used 1 + 6 max_steps. Raises ValueError as it does.
  """
  return _each_row(velocity_fn, x, ts, rtol, atol, max_steps)[1]


def direct(velocity_fn, x, ts, *, rtol=1e-5, atol=1e-5, max_steps=1000):
  """x [B, ...] at ts[-1] as of `adaptive`, with the gradient of its steps: discretise, optimise.

  Of x and all that velocity_fn holds; exact for these steps. arXiv:2202.02435, Sec. 5.1. The rows
  of x are one state of one step size: under `jax.vmap` over examples [1, ...] each has its own.
  Only the ends of ts [S + 1] count, and they have no gradient.

  rtol, atol, max_steps: of `adaptive`; what needs more steps is NaN, and so is its gradient. Raises
  ValueError for options out of range.
  """
  f = lambda x, t: velocity_fn(x, _rows(t, x))
  # diffrax's default, RecursiveCheckpointAdjoint, fails under shard_map and pmap.
  gradient = diffrax.DirectAdjoint()
  return _solve(f, x, jax.lax.stop_gradient(ts), rtol, atol, max_steps, gradient)[0]


def adjoint(velocity_fn, x, ts, *, rtol=1e-5, atol=1e-5, max_steps=1000):
  """x [B, ...] at ts[-1] as of `direct`, its gradient by an ODE too: optimise, then discretise.

  arXiv:1806.07366, Alg. 1: x, its gradient and that of all that velocity_fn holds are solved
  backward, in memory that does not grow with the steps. As exact as the tolerances, which the
  gradient meets at a scale of 1, so that its steps do not depend on the weight of an example in a
  mean. Rows, ts [S + 1], rtol, atol, max_steps and NaN as of `direct`. Raises ValueError for
  options out of range.
  """
  held, fn = _opened(velocity_fn, x, ts)
  theta, fixed = equinox.partition(held, equinox.is_inexact_array)

  @jax.custom_vjp
  def solve(theta, x, fixed, ts):
    f = lambda x, t: fn(equinox.combine(theta, fixed), x, _rows(t, x))
    return _solve(f, x, ts, rtol, atol, max_steps)[0]

  def forward(theta, x, fixed, ts):
    z = solve(theta, x, fixed, ts)
    return z, (theta, z, fixed, ts)

  def backward(saved, a):
    theta, z, fixed, ts = saved

    def augmented(state, t):
      z, a, _ = state
      f = lambda theta, z: fn(equinox.combine(theta, fixed), z, _rows(t, z))
      v, vjp = jax.vjp(f, theta, z)
      d_theta, d_z = jax.tree.map(jnp.negative, vjp(a))  # arXiv:1806.07366, Eq. 4 and 5
      return v, d_z, d_theta

    scale = jnp.stack([jnp.abs(a).max() for a in jax.tree.leaves(a)]).max()
    scale = jnp.where(scale == 0.0, 1.0, scale)
    state = (z, jax.tree.map(lambda a: a / scale, a), jax.tree.map(jnp.zeros_like, theta))
    _, a, d_theta = _solve(augmented, state, ts[::-1], rtol, atol, max_steps)[0]
    return *jax.tree.map(lambda d: scale * d, (d_theta, a)), None, None

  solve.defvjp(forward, backward)
  return solve(theta, x, fixed, ts)


def _opened(velocity_fn, x, ts):
  """(the arrays that velocity_fn holds, itself as a function of these, x and t [B])."""
  fn = equinox.filter_closure_convert(velocity_fn, x, _rows(ts[0], x))
  held, fn = equinox.partition(fn, equinox.is_array)
  return held, lambda held, x, t: equinox.combine(held, fn)(x, t)


def _each_row(velocity_fn, x, ts, rtol, atol, max_steps):
  """`_solve` for every row: (x [B, ...], int32 [B])."""
  # Each row is solved alone, yet velocity_fn sees the batch, as it may hold labels [B]. custom_vmap
  # wants all that it holds as an argument.
  rows = _rows(ts[0], x)
  held, fn = _opened(velocity_fn, x, ts)

  @jax.custom_batching.custom_vmap
  def one(held, x, t):
    x, t = jax.tree.map(lambda a: jnp.broadcast_to(a, (len(rows), *a.shape)), (x, t))
    return jax.tree.map(lambda d: d[0], fn(held, x, t))

  @one.def_vmap
  def all_rows(n, batched, held, x, t):
    wide = lambda a, is_wide: a if is_wide else jnp.broadcast_to(a, (n, *a.shape))
    d = fn(held, *jax.tree.map(wide, (x, t), tuple(batched[1:])))
    return d, jax.tree.map(lambda _: True, d)

  alone = lambda x, t: one(held, x, t)
  return jax.vmap(lambda x: _solve(alone, x, ts, rtol, atol, max_steps))(x)


def _solve(f, x, ts, rtol, atol, max_steps, gradient=diffrax.RecursiveCheckpointAdjoint()):
  """(x at ts[-1], or NaN; evaluations) of f(x, t), t a scalar: one state of one step size."""
  method.check_positive("rtol", rtol)
  method.check_positive("atol", atol)
  method.check_count("max_steps", max_steps)
  solution = diffrax.diffeqsolve(
    diffrax.ODETerm(lambda t, x, _: f(x, jnp.asarray(t, ts.dtype))),
    diffrax.Dopri5(),
    t0=ts[0],
    t1=ts[-1],
    dt0=None,  # which for diffrax is 0.01
    y0=x,
    stepsize_controller=diffrax.PIDController(rtol=rtol, atol=atol),
    max_steps=max_steps,
    adjoint=gradient,
    throw=False,
  )
  # A factor, so that the gradient of what is no solution is NaN too.
  whole = jnp.where(solution.result == diffrax.RESULTS.successful, 1.0, jnp.nan)
  n = 1 + 6 * solution.stats["num_steps"]
  return jax.tree.map(lambda x: x[-1] * whole.astype(x.dtype), solution.ys), n


def _move(x, h, weights, ds):
  """x + h * the sum of weights * ds, leaf by leaf; weights of 0 are left out."""
  for w, d in zip(weights, ds, strict=True):
    x = jax.tree.map(lambda x, d, w=w: x + w * h * d, x, d) if w else x
  return x


def _rows(t, x):
  return jnp.full(jax.tree.leaves(x)[0].shape[:1], t)

"""Fixed-step solvers of dx/dt = velocity_fn(x, t), each one lax.scan.

velocity_fn: (x, t [B]) -> dx/dt. x: an array [B, ...] or a tree of them. ts: [S + 1], either way.
"""

import jax
import jax.numpy as jnp


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


def _move(x, h, d):
  return jax.tree.map(lambda x, d: x + h * d, x, d)


def _rows(t, x):
  return jnp.full(jax.tree.leaves(x)[0].shape[:1], t)

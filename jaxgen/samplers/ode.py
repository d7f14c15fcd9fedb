"""Fixed-step solvers of dx/dt = velocity_fn(x, t), each one lax.scan.

velocity_fn: (x, t [B]) -> dx/dt. x: an array [B, ...] or a tree of them. ts: [S + 1], either way.
"""

import jax
import jax.numpy as jnp


def euler(velocity_fn, x, ts):
  """First order, one evaluation a step. survey Box 11."""

  def step(x, pair):
    t, s = pair
    return _move(x, s - t, velocity_fn(x, _rows(t, x))), None

  return jax.lax.scan(step, x, (ts[:-1], ts[1:]))[0]


def heun(velocity_fn, x, ts):
  """Second order, two evaluations a step; it evaluates at both ends of `ts`."""

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

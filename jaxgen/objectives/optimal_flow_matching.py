"""Optimal flow matching: velocities of straight lines that do not cross. arXiv:2403.13117.

A potential is Psi: z [B, ...] -> [B], each row of its own z, strictly convex. The map grad Psi
moves z along a line, x_t = (1 - t) z + t grad Psi(z), from t = 0, the start, to t = 1, the data.
"""

import jax
import jax.numpy as jnp
import optax
from jax.scipy.sparse import linalg

from jaxgen import noise, paths


def push(potential, z):
  """grad Psi(z), the shape of z [B, ...]: its optimal transport map. arXiv:2403.13117, Sec. 3.1.

  potential: z -> [B].
  """
  return jax.grad(lambda z: potential(z).sum())(z)


def inverse(potential, x_t, t, *, tolerance=1e-4, max_steps=50):
  """The start z [B, ...] of the line that is at x_t at time t. arXiv:2403.13117, Sec. 3.1.

  It is where a convex function is least: each row by itself is solved by L-BFGS, from x_t on.
  There are no derivatives by what `potential` holds.

  potential: z -> [B]. x_t: [B, ...]. t: [B], from noise to data, 0 to 1. tolerance, max_steps: at
  which norm of its gradient a row is done, or after how many steps.
  """
  fn, held = jax.closure_convert(potential, x_t[:1])
  held, x_t, t = jax.lax.stop_gradient((held, x_t, t))
  tx = optax.lbfgs()

  def one(x_t, t):
    def objective(z):
      psi = fn(z[None], *held)[0]
      return 0.5 * (1.0 - t) * jnp.sum(z**2) + t * psi - jnp.sum(x_t * z)

    def step(carry):
      i, z, value, grad, state = carry
      updates, state = tx.update(grad, state, z, value=value, grad=grad, value_fn=objective)
      value, grad = (optax.tree.get(state, name) for name in ("value", "grad"))  # at the new z
      return i + 1, optax.apply_updates(z, updates), value, grad, state

    def unfinished(carry):
      i, _, _, grad, _ = carry
      return (i < max_steps) & (optax.tree.norm(grad) > tolerance)

    first = (0, x_t, *jax.value_and_grad(objective)(x_t), tx.init(x_t))
    return jax.lax.while_loop(unfinished, step, first)[1]

  return jax.vmap(one)(x_t, t)


def velocity(potential, x_t, t, **options):
  """(u [B, ...], z [B, ...]): the velocity of the line through x_t at time t, and its start.

  u = (x_t - z) / t = grad Psi(z) - z, the second of which is exact near t = 0 too. Sec. 3.1.

  potential: z -> [B]. x_t: [B, ...]. t: [B], from noise to data. options: scalars, of `inverse`.
  """
  z = inverse(potential, x_t, t, **options)
  return push(potential, z) - z, z


def optimal_flow_matching(potential, start, x, keys, *, t=None, **options):
  """|u_t(x_t) - (x - start)|^2 [B] and the norm [B] of what `inverse` left. arXiv:2403.13117.

  Least where grad Psi is the optimal map of `start` to x, however the two are paired: Theorem 1.
  The mean over dimensions takes the place of the paper's sum.

  Args:
    potential: z -> [B]. start, x: [B, ...]. keys: [B].
    t: [B] in place of uniform times, from noise to data (tests).
    options: scalars, of `inverse`.
  """
  t = noise.uniform(keys) if t is None else t
  x_t = paths.interpolate(paths.Linear(), x, start, t)
  u, z = velocity(potential, x_t, t, **options)
  error = u - (x - start)  # (start - z) / t
  # Sec. 3.2: the gradient of the loss is that of grad Psi at a fixed z, times this.
  weight = jax.lax.stop_gradient(_solve(potential, z, t, 2.0 * error))
  by_gradient = weight * (u - jax.lax.stop_gradient(u))
  left = z + paths.expand(t, z) * u - x_t
  axes = tuple(range(1, x.ndim))
  loss = jax.lax.stop_gradient(error) ** 2 + by_gradient
  return jnp.mean(loss, axes), jnp.sqrt(jnp.sum(left**2, axes))


def _solve(potential, z, t, y):
  """(t Hess Psi(z) + (1 - t) I)^-1 y, [B, ...], by conjugate gradients, each row by itself."""

  def one(z, t, y):
    grad = lambda z: push(potential, z[None])[0]
    product = lambda v: (1.0 - t) * v + t * jax.jvp(grad, (z,), (v,))[1]
    return linalg.cg(product, y)[0]

  return jax.vmap(one)(z, t, y)

"""Densities by change of variables."""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from jaxgen import noise
from jaxgen.samplers import ode


def normal_log_prob(z, log_det):
  """log p(x) = log N(z; 0, I) + log|det dz/dx|, in nats, [B].

  arXiv:1605.08803, Eq. 3; survey Eq. 48-49, 54, Box 6. z: [B, ...]. log_det: [B].
  """
  z = z.astype(jnp.float32)
  return jnp.sum(norm.logpdf(z), axis=tuple(range(1, z.ndim))) + log_det


def ode_log_prob(velocity_fn, x, keys, ts):
  """log p(x) of the flow that turns N(0, I) at ts[-1] into data at ts[0], in nats, [B].

  d log p / dt = -div v along the trajectory, arXiv:1806.07366, Eq. 8; the divergence is
  Hutchinson's e' (dv/dx) e with one Rademacher e an example, arXiv:1810.01367, Eq. 7. Heun's method
  solves it.

  Args:
    velocity_fn: (x [B, ...], t [B]) -> dx/dt. x: [B, ...]. keys: [B]. ts: [S + 1], data to noise.
  """
  e = noise.rademacher(keys, x.shape[1:])
  axes = tuple(range(1, x.ndim))

  def augmented(state, t):
    v, dv = jax.jvp(lambda x: velocity_fn(x, t), (state[0],), (e,))
    return v, jnp.sum(dv * e, axes)

  z, div = ode.heun(augmented, (x, jnp.zeros(len(x))), ts)
  return jnp.sum(norm.logpdf(z), axes) + div

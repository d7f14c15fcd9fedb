"""Regressions on velocities."""

import jax.numpy as jnp

from jaxgen import noise, paths


def flow_matching(velocity_fn, x, keys, *, path=paths.Linear(), t=None, eps=None):
  """|v(x_t, t) - u_t|^2, per example [B]. arXiv:2210.02747, Eq. 9; survey Eq. 112, Box 11.

  x_t is drawn from the mixture of survey Eq. 108, and squares are least at the mean of u_t given
  x_t, the marginal velocity of survey Eq. 109: so the minimum is that of survey Eq. 107 (Theorem 2
  of the paper). On Linear() it is rectified flow, survey Eq. 104. The mean over pixels takes the
  place of the paper's sum.

  Args:
    velocity_fn: (x_t [B, ...], t [B]) -> [B, ...].
    x: data [B, ...]. keys: [B].
    path: from noise to data; the paper's OT path is Linear, arXiv:2210.02747, Eq. 20-23.
    t, eps: [B] and [B, ...] in place of uniform times and normal noise (tests, ablations).
  """
  x = x.astype(jnp.float32)
  k_t, k_eps = noise.split(keys)
  t = noise.uniform(k_t, (), *sorted((path.t_noise, path.t_data))) if t is None else t
  eps = noise.normal(k_eps, x.shape[1:]) if eps is None else eps
  error = velocity_fn(paths.interpolate(path, x, eps, t), t) - paths.velocity(path, x, eps, t)
  return jnp.mean(error**2, axis=tuple(range(1, x.ndim)))

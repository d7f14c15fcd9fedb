"""Denoising score matching, in the parameterisations that papers use."""

import jax.numpy as jnp

from jaxgen import noise, paths


def simple(eps_fn, x, keys, *, path=paths.Discrete(), t=None, eps=None):
  """L_simple: |eps - eps_theta(x_t, t)|^2, per example [B].

  arXiv:2006.11239, Eq. 14; survey Eq. 83, Box 8. The mean over pixels takes the place of the
  paper's sum, as in its code.

  Args:
    eps_fn: (x_t [B, ...], t [B]) -> [B, ...], with t = 1, ..., T.
    x: data [B, ...]. keys: [B].
    path: a paths.Discrete.
    t, eps: [B] and [B, ...] in place of uniform times and normal noise (tests, ablations).
  """
  x = x.astype(jnp.float32)
  k_t, k_eps = noise.split(keys)
  t = noise.randint(k_t, 1, len(path.betas) + 1).astype(jnp.float32) if t is None else t
  eps = noise.normal(k_eps, x.shape[1:]) if eps is None else eps
  error = eps - eps_fn(paths.interpolate(path, x, eps, t), t)
  return jnp.mean(error**2, axis=tuple(range(1, x.ndim)))

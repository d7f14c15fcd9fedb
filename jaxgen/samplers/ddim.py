"""Denoising Diffusion Implicit Models. Song et al., 2020. arXiv:2010.02502.

Survey D03, Eq. 84-86.
"""

import jax
import jax.numpy as jnp

from jaxgen import noise, paths
from jaxgen.core import method


def ddim(field, x, keys, ts, *, eta=0.0, z=None):
  """eta = 0 is deterministic, eta = 1 ancestral with beta-tilde_t. Eq. 12; survey Eq. 85.

  Args:
    field: a paths.Field; `guidance.clipped(field)` clips its x.
    x: [B, ...] at ts[0]. keys: [B].
    ts: [S + 1], from noise to data, any sub-sequence of the chain; see `invert`.
    z: [S, B, ...] in place of normal noise (tests).

  Raises:
    ValueError: a time that the path does not have, an eta outside [0, 1].
  """
  method.check_unit("eta", eta)
  paths.check_times(field.path, ts)
  path, (t, s) = field.path, (ts[:-1], ts[1:])  # s is nearer to the data
  deterministic = isinstance(eta, (int, float)) and eta == 0
  std = (
    jnp.zeros_like(s) if deterministic else eta * jnp.sqrt(paths.posterior(path, t, s).small)
  )  # Eq. 16
  alpha_s, kept = path.alpha(s), jnp.sqrt(jnp.maximum(path.sigma(s) ** 2 - std**2, 0.0))

  def step(x, inputs):
    i, t, alpha_s, kept, std, z = inputs
    p = field.predict(x, jnp.full(x.shape[:1], t))
    x = alpha_s * p.x + kept * p.eps  # Eq. 12
    if deterministic:
      return x, None
    z = noise.normal(noise.fold_in(keys, i), x.shape[1:]) if z is None else z
    return x + std * z, None

  return jax.lax.scan(step, x, (jnp.arange(len(t)), t, alpha_s, kept, std, z))[0]


def invert(field, x, ts):
  """x [B, ...] at ts[-1], noise, from which `ddim` comes back to the data. Eq. 14, in reverse.

  field: a paths.Field. x: [B, ...] at ts[0]. ts: [S + 1], data to noise; where ts[0] has sigma = 0
  the field must be known there, as eps_field is. Raises ValueError as `ddim` does.
  """
  return ddim(field, x, None, ts)

"""Denoising Diffusion Implicit Models. Song et al., 2020. arXiv:2010.02502."""

import jax
import jax.numpy as jnp

from jaxgen import noise


def ddim(field, x, keys, ts, *, eta=0.0, z=None):
  """eta = 0 is deterministic, eta = 1 ancestral with beta-tilde_t. Eq. 12; survey Eq. 84-85.

  Args:
    field: a paths.Field; `guidance.clipped(field)` clips its x.
    x: [B, ...] at ts[0]. keys: [B].
    ts: [S + 1], from noise to data, any sub-sequence of the chain; the other way round, with
      eta = 0, it encodes.
    z: [S, B, ...] in place of normal noise (tests).
  """
  path = field.path

  def step(x, inputs):
    i, t, s, z = inputs  # s is nearer to the data than t
    alpha_t, sigma_t, alpha_s, sigma_s = path.alpha(t), path.sigma(t), path.alpha(s), path.sigma(s)
    p = field.predict(x, jnp.full(x.shape[:1], t))
    lost = jnp.sqrt(jnp.maximum(1.0 - (alpha_t / alpha_s) ** 2, 0.0))
    std = eta * sigma_s / sigma_t * lost  # Eq. 16
    x = alpha_s * p.x + jnp.sqrt(jnp.maximum(sigma_s**2 - std**2, 0.0)) * p.eps  # Eq. 12
    z = noise.normal(noise.fold_in(keys, i), x.shape[1:]) if z is None else z
    return x + std * z, None

  return jax.lax.scan(step, x, (jnp.arange(len(ts) - 1), ts[:-1], ts[1:], z))[0]

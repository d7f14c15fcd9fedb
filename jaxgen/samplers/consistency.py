"""Sampling from consistency models. Song et al., 2023. arXiv:2303.01469."""

import jax
import jax.numpy as jnp

from jaxgen import noise, paths


def consistency(field, x, keys, ts, *, z=None):
  """Multistep sampling: f maps to the data, noise leads back to the next level. Alg. 1.

  One step is one evaluation of f.

  Args:
    field: a paths.Field on paths.EDM, whose x is a consistency function f(x_t, t).
    x: [B, ...] at ts[0]. keys: [B].
    ts: [S + 1], from noise to data; ts[-1] is the level at which f is the identity.
    z: [S, B, ...] in place of normal noise (tests); the last is not used.

  Raises:
    ValueError: a time that the path does not have.
  """
  paths.check_times(field.path, ts)
  t, s = ts[:-1], ts[1:]
  std = jnp.sqrt((s - ts[-1]) * (s + ts[-1]))

  def step(x, inputs):
    i, t, std, z = inputs
    x = field.predict(x, jnp.full(x.shape[:1], t)).x
    z = noise.normal(noise.fold_in(keys, i), x.shape[1:]) if z is None else z
    return x + std * z, None

  return jax.lax.scan(step, x, (jnp.arange(len(t)), t, std, z))[0]

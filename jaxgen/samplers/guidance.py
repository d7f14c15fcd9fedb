"""Functions Field -> Field: any sampler follows them, in any parameterisation."""

import jax.numpy as jnp

from jaxgen import noise, paths


def classifier_free(cond, uncond, w):
  """(1 + w) conditional - w unconditional; w = 0 is the conditional model.

  The weights sum to one, so it is the same in eps, x, v, velocity and score. arXiv:2207.12598,
  Eq. 6; survey Eq. 92.
  """

  def predict(x_t, t):
    c, u = cond.predict(x_t, t), uncond.predict(x_t, t)
    mix = lambda a, b: (1.0 + w) * a - w * b
    return c._replace(x=mix(c.x, u.x), eps=mix(c.eps, u.eps))

  return paths.Field(cond.path, predict)


def drop_labels(keys, label, rate, n_classes):
  """label [B] with n_classes, the null class, in place of some. arXiv:2207.12598, Alg. 1."""
  return jnp.where(noise.bernoulli(keys, rate), n_classes, label)


def clipped(field, low=-1.0, high=1.0):
  """x is clipped to the range of the data, and eps follows from it, as in DDPM's code."""

  def predict(x_t, t):
    p = field.predict(x_t, t)
    x, t = jnp.clip(p.x, low, high), paths.expand(t, x_t)
    return p._replace(x=x, eps=(x_t - field.path.alpha(t) * x) / field.path.sigma(t))

  return paths.Field(field.path, predict)

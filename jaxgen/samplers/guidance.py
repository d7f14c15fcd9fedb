"""Functions Field -> Field: any sampler follows them, in any parameterisation."""

import jax.numpy as jnp

from jaxgen import noise, paths


def classifier_free(cond, uncond, w):
  """The Field (1 + w) cond - w uncond; w, a scalar, is 0 for the conditional model.

  The weights sum to one, so it is the same in eps, x, v, velocity and score. arXiv:2207.12598,
  Eq. 6; survey Eq. 92.
  """

  def predict(x_t, t):
    c, u = cond.predict(x_t, t), uncond.predict(x_t, t)
    mix = lambda a, b: (1.0 + w) * a - w * b
    return c._replace(x=mix(c.x, u.x), eps=mix(c.eps, u.eps))

  return paths.Field(cond.path, predict)


def drop_labels(keys, label, rate, n_classes):
  """label [B] with n_classes, the null class, at this rate. arXiv:2207.12598, Alg. 1. keys: [B]."""
  return jnp.where(noise.bernoulli(keys, rate), n_classes, label)


def clipped(field, low=-1.0, high=1.0):
  """`field` with x [B, ...] clipped to low and high, the range of the data, and eps made to fit.

  As in DDPM's code, arXiv:2006.11239.
  """

  def predict(x_t, t):
    p = field.predict(x_t, t)
    x, t = jnp.clip(p.x, low, high), paths.expand(t, x_t)
    return p._replace(x=x, eps=(x_t - field.path.alpha(t) * x) / field.path.sigma(t))

  return paths.Field(field.path, predict)

"""Samplers of the reverse-time SDE. Song et al., 2021. arXiv:2011.13456.

A solver is a table of Gaussian steps, made before its loop: functions (path, t, s) -> `Step`, whose
times go from noise to data, s nearer to the data than t. `predictor_corrector` takes the same ones.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgen import noise, paths


class Step(NamedTuple):
  """x_s = x x_t + score grad log p_t(x_t) + std z. Three arrays of the shape of the times."""

  x: jax.Array
  score: jax.Array
  std: jax.Array


def euler_maruyama_step(path, t, s):
  """The Step of dx = (f x - g^2 score) dt + g dw over s - t, elementwise. Eq. 6.

  Infinite where alpha is 0.
  """
  (f, g2), h = paths.sde(path, t), s - t
  return Step(1.0 + h * f, -h * g2, jnp.sqrt(-h * g2))


def reverse_diffusion_step(path, t, s):
  """The Step that undoes x_t = r x_s + G z, r = alpha_t / alpha_s, elementwise. Eq. 46.

  G^2 = sigma_t^2 - r^2 sigma_s^2 is sigma_t^2 - sigma_s^2 with alpha = 1 (VE), and beta_t on DDPM's
  chain (VP).
  """
  large = paths.posterior(path, t, s).large
  return Step(2.0 - path.alpha(t) / path.alpha(s), large, jnp.sqrt(large))


def ancestral_step(path, t, s, *, v=1.0):
  """The Step of ancestral sampling, elementwise. Eq. 4, App. F.

  v: log variance between the Posterior's small (0, the paper's with VE) and large (1, with VP).
  Infinite where alpha is 0.
  """
  q, r = paths.posterior(path, t, s), path.alpha(t) / path.alpha(s)
  return Step(1.0 / r, q.large / r, q.small ** (0.5 - 0.5 * v) * q.large ** (0.5 * v))


def probability_flow(step):
  """The Step without noise that keeps the marginals, elementwise. Eq. 13, App. D.

  step: what euler_maruyama_step or reverse_diffusion_step gives.
  """
  return step._replace(score=0.5 * step.score, std=jnp.zeros_like(step.std))


def euler_maruyama(field, x, keys, ts, *, z=None):
  """Solves the reverse SDE from ts[0] to ts[-1]. Eq. 6.

  Args:
    field: a paths.Field. x: [B, ...] at ts[0]. keys: [B].
    ts: [S + 1], from noise to data; the last step adds no noise.
    z: [S, B, ...] in place of normal noise (tests).

  Raises:
    ValueError: a time that the path does not have.
  """
  return _solve(euler_maruyama_step, field, x, keys, ts, z)


def reverse_diffusion(field, x, keys, ts, *, z=None):
  """Undoes the forward process step by step, discretised as that is. Eq. 46; Alg. 2 and 3.

  Args:
    field: a paths.Field. x: [B, ...] at ts[0]. keys: [B].
    ts: [S + 1], from noise to data; the last step adds no noise: with alpha = 1 and down to
      sigma = 0 it is Tweedie's formula.
    z: [S, B, ...] in place of normal noise (tests).

  Raises:
    ValueError: a time that the path does not have.
  """
  return _solve(reverse_diffusion_step, field, x, keys, ts, z)


def _solve(table, field, x, keys, ts, z):
  paths.check_times(field.path, ts)
  steps = len(ts) - 1

  def body(x, inputs):
    i, t, step, z = inputs
    z = noise.normal(noise.fold_in(keys, i), x.shape[1:]) if z is None else z
    mean = step.x * x + step.score * field.score(x, jnp.full(x.shape[:1], t))
    return mean + jnp.where(i < steps - 1, step.std, 0.0) * z, None

  table = table(field.path, ts[:-1], ts[1:])
  return jax.lax.scan(body, x, (jnp.arange(steps), ts[:-1], table, z))[0]

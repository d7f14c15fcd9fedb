"""EDM: Elucidating the Design Space of Diffusion-Based Generative Models. Karras et al., 2022.

arXiv:2206.00364. The paper's s(t) is alpha, its sigma(t) is sigma / alpha: what is here runs on
every path. The paper's own, s = 1 and sigma = t, is paths.EDM; paths.moved takes networks there.
"""

import math

import jax
import jax.numpy as jnp

from jaxgen import noise, paths
from jaxgen.core import method


def heun(field, x, keys, ts, *, s_churn=0.0, s_min=0.0, s_max=math.inf, s_noise=1.0, z=None):
  """Heun's method, with steps back into noise where s_churn is above 0. Alg. 2; Alg. 1 without.

  The last step is Euler's: `ts` may end where sigma = 0, and should; elsewhere `ode.heun` keeps the
  second order to the end.

  Args:
    field: a paths.Field; its velocity is Eq. 4. x: [B, ...] at ts[0]. keys: [B].
    ts: [S + 1], from noise to data.
    s_churn: before each step sigma grows by s_churn / S of itself, at most by sqrt(2) - 1.
    s_min, s_max: the noise levels sigma / alpha between which it does. s_noise: std of that noise.
    z: [S, B, ...] in place of normal noise (tests).

  Raises:
    ValueError: a time that the path does not have, an option out of its range.
  """
  for name, value in dict(s_churn=s_churn, s_min=s_min, s_noise=s_noise).items():
    method.check_weight(name, value)
  method.check_number("s_max", s_max, lambda v: v >= s_min, f"a number, s_min={s_min} or more")
  paths.check_times(field.path, ts)
  steps, velocity = len(ts) - 1, field.velocity
  gamma = min(s_churn / steps, math.sqrt(2.0) - 1.0)
  t_hat, ratio, std = _churned(field.path, ts[:-1], gamma, s_min, s_max)

  def step(x, inputs):
    i, t_hat, s, ratio, std, z = inputs
    rows = lambda t: jnp.full(x.shape[:1], t)
    if gamma > 0.0:
      z = noise.normal(noise.fold_in(keys, i), x.shape[1:]) if z is None else z
      x = ratio * x + s_noise * std * z
    h, d = s - t_hat, velocity(x, rows(t_hat))
    x_s = x + h * d
    second = lambda: x + 0.5 * h * (d + velocity(x_s, rows(s)))
    return jax.lax.cond(i < steps - 1, second, lambda: x_s), None

  return jax.lax.scan(step, x, (jnp.arange(steps), t_hat, ts[1:], ratio, std, z))[0]


def _churned(path, t, gamma, s_min, s_max):
  """(t_hat, alpha ratio, std) of the steps back into noise, [S] each."""
  level = lambda t: path.sigma(t) / path.alpha(t)
  sigma = level(t)
  grows = (gamma > 0.0) & (s_min <= sigma) & (sigma <= s_max) & jnp.isfinite(sigma)
  t_hat = jnp.where(grows, path.time(-2.0 * jnp.log((1.0 + gamma) * sigma)), t)
  alpha_hat = path.alpha(t_hat)
  std = alpha_hat * jnp.sqrt(jnp.maximum(level(t_hat) ** 2 - sigma**2, 0.0))
  return t_hat, jnp.where(grows, alpha_hat / path.alpha(t), 1.0), jnp.where(grows, std, 0.0)

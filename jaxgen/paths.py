"""Gaussian probability paths x_t = alpha(t) x + sigma(t) eps, and what a network says about them.

arXiv:2210.02747, Sec. 4. x_t, its data `x` and its standard noise `eps` are [B, ...]; t and s are
[B] or scalars, in whatever direction time runs: each path says where its ends lie (`t_noise`,
`t_data`). A network that predicts eps, x, v, a velocity or a score says one thing, the pair
(x, eps): the constructors below turn any of them into a `Field`, and samplers take those.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import method


@dataclasses.dataclass(frozen=True)
class Linear:
  """alpha = t, sigma = 1 - (1 - sigma_min) t, elementwise. arXiv:2210.02747, Eq. 20; survey Box 11.

  With sigma_min = 0 it is rectified flow's straight line, arXiv:2209.03003, Eq. 1; survey Eq. 103.
  Raises ValueError for a sigma_min outside [0, 1).
  """

  sigma_min: float = 0.0
  t_noise = 0.0
  t_data = 1.0

  def __post_init__(self):
    method.check_fraction("sigma_min", self.sigma_min)

  def alpha(self, t):
    return t

  def sigma(self, t):
    return 1.0 - (1.0 - self.sigma_min) * t


@dataclasses.dataclass(frozen=True)
class VP:
  """The variance-preserving SDE, beta(t) linear, on t in (0, 1]. arXiv:2011.13456, Eq. 33.

  log alpha = -t^2 (beta_max - beta_min) / 4 - t beta_min / 2, sigma^2 = 1 - alpha^2, elementwise.
  Raises ValueError for a beta that is not above 0.
  """

  beta_min: float = 0.1
  beta_max: float = 20.0
  t_noise = 1.0
  t_data = 1e-3

  def __post_init__(self):
    method.check_positive("beta_min", self.beta_min)
    method.check_positive("beta_max", self.beta_max)

  def _log_alpha(self, t):
    return -0.25 * t**2 * (self.beta_max - self.beta_min) - 0.5 * t * self.beta_min

  def alpha(self, t):
    return jnp.exp(self._log_alpha(t))

  def sigma(self, t):  # expm1: exact near t = 0 in float32 too
    return jnp.sqrt(-jnp.expm1(2.0 * self._log_alpha(t)))


@dataclasses.dataclass(frozen=True)
class Discrete:
  """DDPM's chain: t = 0 is data, T = len(betas) noise. arXiv:2006.11239, Eq. 4.

  alpha(t)^2 is the paper's alpha-bar_t, exact at the integers and log-linear between them, and
  sigma(t)^2 = 1 - alpha(t)^2, elementwise. Official networks count from 0 and are fed t - 1. Raises
  ValueError for a beta that is not between 0 and 1.
  """

  betas: tuple[float, ...] = tuple(np.linspace(1e-4, 0.02, 1000).tolist())
  t_data = 0.0

  def __post_init__(self):
    method.check("betas", self.betas, len(self.betas), "at least one")
    for i, beta in enumerate(self.betas):
      method.check_number(f"betas[{i}]", beta, lambda b: 0.0 < b < 1.0, "between 0 and 1")

  @property
  def t_noise(self):
    return float(len(self.betas))

  @functools.cached_property
  def _log_alphas(self):
    """log alpha at 0, 1, ..., T, float64."""
    return np.concatenate([[0.0], 0.5 * np.cumsum(np.log1p(-np.asarray(self.betas)))])

  def _log_alpha(self, t):
    table, t = jnp.asarray(self._log_alphas), jnp.asarray(t)
    i = jnp.clip(jnp.floor(t).astype(jnp.int32), 0, len(self.betas) - 1)
    return table[i] + (t - i) * (table[i + 1] - table[i])

  def alpha(self, t):
    return jnp.exp(self._log_alpha(t))

  def sigma(self, t):
    return jnp.sqrt(-jnp.expm1(2.0 * self._log_alpha(t)))


def check_steps(path, n):
  """Raises ValueError for n, a scalar, below 1 or, on a Discrete path, above its length."""
  most = int(path.t_noise) if isinstance(path, Discrete) else math.inf
  method.check_count("steps", n, 1, most)


def times(path, n):
  """float32 [n + 1]: n equal steps from noise to data; whole numbers on a Discrete path.

  Raises ValueError as `check_steps` does.
  """
  check_steps(path, n)
  if isinstance(path, Discrete):
    return jnp.asarray(np.round(np.linspace(path.t_noise, 0.0, n + 1)), jnp.float32)
  return jnp.linspace(path.t_noise, path.t_data, n + 1)


def expand(t, x):
  """[B] or a scalar -> broadcastable against x [B, ...]: the one place where times meet data."""
  t = jnp.asarray(t, x.dtype)
  return t.reshape(t.shape + (1,) * (x.ndim - t.ndim)) if t.ndim else t


def check_times(path, t):
  """Raises ValueError for a time t, a scalar or [B], not of `path`, where it is known."""
  values, last = method.concrete(t), max(path.t_noise, path.t_data)
  bad = [] if values is None else values[~((values >= 0.0) & (values <= last))].ravel()
  if len(bad):
    raise ValueError(f"t={bad[0]}: expected 0 to {last}, the times of {type(path).__name__}")


def _on(path, t, x):
  check_times(path, t)
  return expand(t, x)


def interpolate(path, x, eps, t):
  """x_t = alpha(t) x + sigma(t) eps, [B, ...]: a draw from N(alpha x, sigma^2 I).

  arXiv:2210.02747, Eq. 10-11; survey Eq. 110-111; on a Discrete path survey Eq. 82, 86. Raises
  ValueError for a t that the path does not have.
  """
  t = _on(path, t, x)
  return path.alpha(t) * x + path.sigma(t) * eps


def coefficients(path, t):
  """(alpha, alpha', sigma, sigma') at t, elementwise."""
  one = jnp.ones_like(t)
  return *jax.jvp(path.alpha, (t,), (one,)), *jax.jvp(path.sigma, (t,), (one,))


def velocity(path, x, eps, t):
  """Conditional velocity dx_t/dt = alpha' x + sigma' eps, [B, ...].

  arXiv:2210.02747, Eq. 13-15; survey Eq. 112, Box 11. Raises ValueError for a t that the path does
  not have.
  """
  _, d_alpha, _, d_sigma = coefficients(path, _on(path, t, x))
  return d_alpha * x + d_sigma * eps


def log_snr(path, t):
  """log(alpha^2 / sigma^2), elementwise: infinite at the ends where sigma or alpha is 0."""
  return 2.0 * (jnp.log(path.alpha(t)) - jnp.log(path.sigma(t)))


class Posterior(NamedTuple):
  """q(x_s | x_t, x) = N(x_weight x + x_t_weight x_t, small); q(x_t | x_s) has variance large.

  Four arrays of the shape of the times.
  """

  x_weight: jax.Array
  x_t_weight: jax.Array
  small: jax.Array
  large: jax.Array


def posterior(path, t, s):
  """The Posterior of time s, nearer to the data than t. arXiv:2006.11239, Eq. 6-7; survey Box 8.

  Elementwise in t and s. On DDPM's chain with s = t - 1, `large` is beta_t and `small` is
  beta-tilde_t.
  """
  # Through the log signal-to-noise ratio, 1 - (alpha_t / alpha_s)^2 keeps its digits in float32.
  fresh = -jnp.expm1(log_snr(path, t) - log_snr(path, s))
  alpha_s, sigma_s, sigma_t = path.alpha(s), path.sigma(s), path.sigma(t)
  ratio = path.alpha(t) / alpha_s
  return Posterior(
    alpha_s * fresh, ratio * (sigma_s / sigma_t) ** 2, sigma_s**2 * fresh, sigma_t**2 * fresh
  )


class Prediction(NamedTuple):
  """x_t taken apart, x_t = alpha x + sigma eps: every parameterisation is affine in this pair."""

  x: jax.Array
  eps: jax.Array
  v: jax.Array | None = None  # learned log variance: 0 is `small`, 1 is `large` of the Posterior


@dataclasses.dataclass(frozen=True)
class Field:
  """A trained network as samplers see it, whatever it was trained to predict.

  What the constructors below make raises ValueError for a t that the path does not have.
  """

  path: Linear | VP | Discrete
  predict: Callable  # (x_t [B, ...], t [B]) -> Prediction

  def velocity(self, x_t, t):
    """dx/dt of the probability flow, [B, ...]; infinite where alpha' or sigma' is."""
    p = self.predict(x_t, t)
    return velocity(self.path, p.x, p.eps, t)

  def score(self, x_t, t):
    """grad log p_t(x_t) = -eps / sigma, [B, ...]; infinite where sigma is 0."""
    return -self.predict(x_t, t).eps / self.path.sigma(expand(t, x_t))


def eps_field(path, fn):
  """Field of a noise predictor fn(x_t, t) -> eps [B, ...]. Infinite where alpha is 0.

  survey Eq. 84. Its predict raises ValueError, see `Field`.
  """

  def predict(x_t, t):
    t, eps = _on(path, t, x_t), fn(x_t, t)
    return Prediction((x_t - path.sigma(t) * eps) / path.alpha(t), eps)

  return Field(path, predict)


def x_field(path, fn):
  """Field of a denoiser fn(x_t, t) -> x [B, ...]. Infinite where sigma is 0.

  Its predict raises ValueError, see `Field`.
  """

  def predict(x_t, t):
    t, x = _on(path, t, x_t), fn(x_t, t)
    return Prediction(x, (x_t - path.alpha(t) * x) / path.sigma(t))

  return Field(path, predict)


def v_field(path, fn):
  """Field of fn(x_t, t) -> v [B, ...] = alpha eps - sigma x, finite at both ends.

  arXiv:2202.00512, App. D. Its predict raises ValueError, see `Field`.
  """

  def predict(x_t, t):
    t, v = _on(path, t, x_t), fn(x_t, t)
    alpha, sigma = path.alpha(t), path.sigma(t)
    norm = alpha**2 + sigma**2
    return Prediction((alpha * x_t - sigma * v) / norm, (sigma * x_t + alpha * v) / norm)

  return Field(path, predict)


def velocity_field(path, fn):
  """Field of a velocity fn(x_t, t) -> dx_t/dt [B, ...].

  Infinite where alpha' or sigma' is: VP and Discrete at t = 0. Its predict raises ValueError, see
  `Field`.
  """

  def predict(x_t, t):
    t, u = _on(path, t, x_t), fn(x_t, t)
    alpha, d_alpha, sigma, d_sigma = coefficients(path, t)
    det = alpha * d_sigma - d_alpha * sigma  # not 0: the signal-to-noise ratio is monotone
    return Prediction((d_sigma * x_t - sigma * u) / det, (alpha * u - d_alpha * x_t) / det)

  return Field(path, predict)


def score_field(path, fn):
  """Field of a score fn(x_t, t) -> grad log p_t(x_t) [B, ...]. Infinite where alpha is 0.

  Its predict raises ValueError, see `Field`.
  """
  return eps_field(path, lambda x_t, t: -path.sigma(expand(t, x_t)) * fn(x_t, t))

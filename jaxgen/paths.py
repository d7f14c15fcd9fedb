"""Gaussian probability paths x_t = alpha(t) x + sigma(t) eps, and what a network says about them.

arXiv:2210.02747, Sec. 4. x_t, its data `x` and its standard noise `eps` are [B, ...]; t and s are
[B] or scalars, in whatever direction time runs: each path says where its ends lie (`t_noise`,
`t_data`), how wide the noise is (`prior_std`), and which time has a given log(alpha^2 / sigma^2)
(`time`, the inverse of `log_snr`, elementwise). A network that predicts eps, x, v, a velocity or a
score says one thing, the pair (x, eps): the constructors below turn any of them into a `Field`, and
samplers take those.
"""

import dataclasses
import functools
import math
from collections.abc import Callable
from typing import Any, NamedTuple

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
  prior_std = 1.0

  def __post_init__(self):
    method.check_fraction("sigma_min", self.sigma_min)

  def alpha(self, t):
    return t

  def sigma(self, t):
    return 1.0 - (1.0 - self.sigma_min) * t

  def time(self, log_snr):
    return 1.0 / (jnp.exp(-0.5 * log_snr) + 1.0 - self.sigma_min)


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
  prior_std = 1.0

  def __post_init__(self):
    _check_betas(self)

  def alpha(self, t):
    return jnp.exp(_log_alpha(self, t))

  def sigma(self, t):  # expm1: exact near t = 0 in float32 too
    return jnp.sqrt(-jnp.expm1(2.0 * _log_alpha(self, t)))

  def time(self, log_snr):
    return _time(self, 0.5 * jax.nn.log_sigmoid(log_snr))


@dataclasses.dataclass(frozen=True)
class SubVP:
  """The sub-VP SDE, whose variance stays below VP's, on t in (0, 1]. arXiv:2011.13456, Eq. 29.

  alpha of VP and sigma = 1 - alpha^2, elementwise. Raises ValueError as VP does.
  """

  beta_min: float = 0.1
  beta_max: float = 20.0
  t_noise = 1.0
  t_data = 1e-3
  prior_std = 1.0

  def __post_init__(self):
    _check_betas(self)

  def alpha(self, t):
    return jnp.exp(_log_alpha(self, t))

  def sigma(self, t):
    return -jnp.expm1(2.0 * _log_alpha(self, t))

  def time(self, log_snr):  # alpha / (1 - alpha^2) = e^(log_snr / 2)
    return _time(self, -jnp.arcsinh(0.5 * jnp.exp(-0.5 * log_snr)))


def _check_betas(path):
  method.check_positive("beta_min", path.beta_min)
  method.check_positive("beta_max", path.beta_max)


def _log_alpha(path, t):
  return -0.25 * t**2 * (path.beta_max - path.beta_min) - 0.5 * t * path.beta_min


def _time(path, log_alpha):
  b = 0.5 * path.beta_min
  return -2.0 * log_alpha / (b + jnp.sqrt(b**2 - (path.beta_max - path.beta_min) * log_alpha))


@dataclasses.dataclass(frozen=True)
class VE:
  """The variance-exploding SDE on t in (0, 1]. arXiv:2011.13456, Eq. 9 and 30.

  alpha = 1, sigma = sigma_min (sigma_max / sigma_min)^t, elementwise. Raises ValueError unless
  0 < sigma_min < sigma_max.
  """

  sigma_min: float = 0.01
  sigma_max: float = 50.0
  t_noise = 1.0
  t_data = 1e-5

  def __post_init__(self):
    _check_sigmas(self)

  prior_std = property(lambda self: self.sigma_max)

  def alpha(self, t):
    return jnp.ones_like(t)

  def sigma(self, t):
    return self.sigma_min * jnp.exp(t * math.log(self.sigma_max / self.sigma_min))

  def time(self, log_snr):
    log_sigma = -0.5 * log_snr
    return (log_sigma - math.log(self.sigma_min)) / math.log(self.sigma_max / self.sigma_min)


@dataclasses.dataclass(frozen=True)
class EDM:
  """alpha = 1, sigma = t: the noise level is the time, elementwise. arXiv:2206.00364, Sec. 3.

  Raises ValueError unless 0 < sigma_min < sigma_max.
  """

  sigma_min: float = 0.002
  sigma_max: float = 80.0

  def __post_init__(self):
    _check_sigmas(self)

  t_noise = property(lambda self: self.sigma_max)
  t_data = property(lambda self: self.sigma_min)
  prior_std = property(lambda self: self.sigma_max)

  def alpha(self, t):
    return jnp.ones_like(t)

  def sigma(self, t):
    return t

  def time(self, log_snr):
    return jnp.exp(-0.5 * log_snr)


def _check_sigmas(path):
  method.check_positive("sigma_min", path.sigma_min)
  above = lambda s: path.sigma_min < s < math.inf
  method.check_number("sigma_max", path.sigma_max, above, f"a number above {path.sigma_min}")


@dataclasses.dataclass(frozen=True)
class Cosine:
  """alpha = cos(pi t / 2), sigma = sin(pi t / 2) on t in [0, 1]. arXiv:2202.00512, Sec. 2.

  As in its code the angle stops short of both ends, where log(alpha^2 / sigma^2) is log_snr_max and
  log_snr_min. Elementwise. Raises ValueError unless log_snr_min is below log_snr_max.
  """

  log_snr_min: float = -20.0
  log_snr_max: float = 20.0
  t_noise = 1.0
  t_data = 0.0
  prior_std = 1.0

  def __post_init__(self):
    method.check_number("log_snr_max", self.log_snr_max, math.isfinite, "a finite number")
    below = lambda v: -math.inf < v < self.log_snr_max
    method.check_number("log_snr_min", self.log_snr_min, below, f"below {self.log_snr_max}")

  @property
  def _angles(self):
    """Of (x, eps) to the data axis at t = 0, and to the noise axis at t = 1; what lies between."""
    first = math.atan(math.exp(-0.5 * self.log_snr_max))
    last = math.atan(math.exp(0.5 * self.log_snr_min))
    return first, last, 0.5 * math.pi - first - last

  def alpha(self, t):  # as the sine of the other angle: exact near t = 1 in float32 too
    _, last, between = self._angles
    return jnp.sin(last + between * (1.0 - t))

  def sigma(self, t):
    first, _, between = self._angles
    return jnp.sin(first + between * t)

  def time(self, log_snr):
    first, _, between = self._angles
    return (jnp.arctan(jnp.exp(-0.5 * log_snr)) - first) / between


@dataclasses.dataclass(frozen=True)
class Trigonometric:
  """alpha = sin(pi t / 2), sigma = cos(pi t / 2), elementwise: a quarter circle, t = 1 the data.

  SiT's generalised VP path, arXiv:2401.08740, Sec. 2.1, the trigonometric interpolant of
  arXiv:2303.08797, Sec. 4. `Cosine` runs the other way and stops short of the ends.
  """

  t_noise = 0.0
  t_data = 1.0
  prior_std = 1.0

  def alpha(self, t):
    return jnp.sin(0.5 * math.pi * t)

  def sigma(self, t):  # as the sine of the other angle: exact near t = 1 in float32 too
    return jnp.sin(0.5 * math.pi * (1.0 - t))

  def time(self, log_snr):
    return jnp.arctan(jnp.exp(0.5 * log_snr)) * (2.0 / math.pi)


@dataclasses.dataclass(frozen=True)
class Discrete:
  """DDPM's chain: t = 0 is data, T = len(betas) noise. arXiv:2006.11239, Eq. 4.

  alpha(t)^2 is the paper's alpha-bar_t, exact at the integers and log-linear between them, and
  sigma(t)^2 = 1 - alpha(t)^2, elementwise. Official networks count from 0 and are fed t - 1. Raises
  ValueError for a beta that is not between 0 and 1.
  """

  betas: tuple[float, ...] = tuple(np.linspace(1e-4, 0.02, 1000).tolist())
  t_data = 0.0
  prior_std = 1.0

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

  def time(self, log_snr):
    table = jnp.asarray(-self._log_alphas)
    return jnp.interp(-0.5 * jax.nn.log_sigmoid(log_snr), table, jnp.arange(len(table)) + 0.0)


def linear_chain(beta_1, beta_T, T):
  """The Discrete path of betas [T] from beta_1 to beta_T in equal steps. arXiv:2006.11239, Sec. 4.

  beta_1, beta_T, T: scalars. Raises ValueError for a beta that is not between 0 and 1, and for T.
  """
  method.check_count("T", T)
  for name, beta in (("beta_1", beta_1), ("beta_T", beta_T)):
    method.check_number(name, beta, lambda b: 0.0 < b < 1.0, "between 0 and 1")
  return Discrete(tuple(np.linspace(beta_1, beta_T, T).tolist()))


def cosine_betas(T, *, s=0.008, largest=0.999):
  """float64 [T]: betas whose alpha-bar_t falls as a squared cosine. arXiv:2102.09672, Eq. 17.

  T, s, largest: scalars, how many they are, what keeps beta_1 from 0, and the bound of all of them.
  """
  alpha_bar = np.cos((np.arange(T + 1) / T + s) / (1.0 + s) * 0.5 * np.pi) ** 2
  return np.minimum(1.0 - alpha_bar[1:] / alpha_bar[:-1], largest)


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


def sde(path, t):
  """(f, g^2) of dx = f x dt + g dw, whose marginals are the path's; elementwise, float32.

  f = alpha' / alpha and g^2 = 2 sigma sigma' - 2 f sigma^2, for paths whose t grows with the noise:
  arXiv:2011.13456, App. B, where they are Eq. 9 (VE), 11 (VP) and 28 (sub-VP). Infinite where
  alpha is 0.
  """
  alpha, d_alpha, sigma, d_sigma = coefficients(path, t)
  f = d_alpha / alpha
  return f, 2.0 * sigma * (d_sigma - f * sigma)


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

  path: Any  # one of the classes above, or another with their attributes
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


def learned_field(path, fn):
  """Field of fn(x_t, t) -> [B, ..., 2C]: a noise predictor and the v of its Prediction.

  The raw v is in [-1, 1]: arXiv:2102.09672, Eq. 15; survey Eq. 87. Its predict raises ValueError,
  see `Field`.
  """

  def predict(x_t, t):
    eps, v = jnp.split(fn(x_t, t), 2, axis=-1)
    return eps_field(path, lambda *_: eps).predict(x_t, t)._replace(v=0.5 * (v + 1.0))

  return Field(path, predict)


def moved(field, path):
  """`field` on another path: x_t there is x_s here, both [B, ...], where their log_snr are equal.

  arXiv:2206.00364, Sec. 5: what lets any solver run any network. Infinite where alpha is 0. Times
  whose log_snr the field's own path does not reach are what its network makes of them; its predict
  raises ValueError for them where they are known, and see `Field`.
  """

  def predict(x_t, t):
    s = field.path.time(log_snr(path, _on(path, t, t)))
    return field.predict(expand(field.path.alpha(s) / path.alpha(t), x_t) * x_t, s)

  return Field(path, predict)

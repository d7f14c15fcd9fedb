"""Networks as denoisers, arXiv:2206.00364: what Table 1 says of VP, VE, iDDPM and EDM.

Each class has a column's preconditioning and training: `scales`, the c of Eq. 7; `draw`, a random
number u for each of keys [B]; `sigma`, the noise level that u [B] stands for; `weight`, lambda of
Eq. 8. sigma: [B]. Images are in [-1, 1], plus noise of standard deviation sigma.
"""

import dataclasses
import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import noise, paths
from jaxgen.core import method


class Scales(NamedTuple):
  """D(x, sigma) = c_skip x + c_out F(c_in x, c_noise), Eq. 7. Four arrays like sigma."""

  c_skip: jax.Array
  c_out: jax.Array
  c_in: jax.Array
  c_noise: jax.Array


@dataclasses.dataclass(frozen=True)
class EDM:
  """Inputs and targets of unit variance at every sigma; sigma is log-normal.

  Elementwise. Raises ValueError for a sigma_data or P_std that is not above 0.
  """

  sigma_data: float = 0.5
  P_mean: float = -1.2
  P_std: float = 1.2

  def __post_init__(self):
    method.check_positive("sigma_data", self.sigma_data)
    method.check_positive("P_std", self.P_std)
    method.check_number("P_mean", self.P_mean, np.isfinite, "a finite number")

  def scales(self, sigma):
    var = sigma**2 + self.sigma_data**2
    c_out = sigma * self.sigma_data / jnp.sqrt(var)
    return Scales(self.sigma_data**2 / var, c_out, 1.0 / jnp.sqrt(var), 0.25 * jnp.log(sigma))

  def draw(self, keys):
    return noise.normal(keys)

  def sigma(self, u):
    return jnp.exp(self.P_mean + self.P_std * u)

  def weight(self, sigma):
    return (sigma**2 + self.sigma_data**2) / (sigma * self.sigma_data) ** 2


@dataclasses.dataclass(frozen=True)
class VP:
  """The noise predictor of arXiv:2011.13456 on its VP SDE; times are counted to M - 1.

  Elementwise. Raises ValueError for a number that is not above 0.
  """

  beta_min: float = 0.1
  beta_d: float = 19.9
  M: int = 1000
  epsilon_t: float = 1e-5

  def __post_init__(self):
    method.check_positive("beta_d", self.beta_d)
    method.check_count("M", self.M)
    method.check_positive("epsilon_t", self.epsilon_t)
    paths.VP(self.beta_min)

  @property
  def _path(self):
    return paths.VP(self.beta_min, self.beta_min + self.beta_d)

  def scales(self, sigma):
    t = self._path.time(-2.0 * jnp.log(sigma))
    return Scales(jnp.ones_like(sigma), -sigma, 1.0 / jnp.sqrt(sigma**2 + 1.0), (self.M - 1) * t)

  def draw(self, keys):
    return noise.uniform(keys)

  def sigma(self, u):
    t = (1.0 - u) + u * self.epsilon_t
    return self._path.sigma(t) / self._path.alpha(t)

  def weight(self, sigma):
    return sigma**-2


@dataclasses.dataclass(frozen=True)
class VE:
  """The score network of arXiv:2011.13456 on its VE SDE; log sigma is uniform.

  Elementwise. Raises ValueError unless 0 < sigma_min < sigma_max.
  """

  sigma_min: float = 0.02
  sigma_max: float = 100.0

  def __post_init__(self):
    paths.VE(self.sigma_min, self.sigma_max)

  def scales(self, sigma):
    one = jnp.ones_like(sigma)
    return Scales(one, sigma, one, jnp.log(0.5 * sigma))

  def draw(self, keys):
    return noise.uniform(keys)

  def sigma(self, u):
    return paths.VE(self.sigma_min, self.sigma_max).sigma(u)

  def weight(self, sigma):
    return sigma**-2


@dataclasses.dataclass(frozen=True)
class IDDPM:
  """The noise predictor of arXiv:2102.09672, without its variance, on M steps of its schedule.

  A sigma off the schedule is told to the network as the nearest on it. Elementwise. Raises
  ValueError for a number that is not above 0.
  """

  M: int = 1000
  C_1: float = 0.001
  C_2: float = 0.008

  def __post_init__(self):
    method.check_count("M", self.M)
    method.check_positive("C_1", self.C_1)
    method.check_positive("C_2", self.C_2)

  @functools.cached_property
  def _u(self):
    """u_0, ..., u_M, falling to 0; float64."""
    alpha_bar = np.sin(0.5 * np.pi * np.arange(self.M + 1) / (self.M * (self.C_2 + 1.0))) ** 2
    u = np.zeros(self.M + 1)
    for j in range(self.M, 0, -1):
      ratio = max(alpha_bar[j - 1] / alpha_bar[j], self.C_1)
      u[j - 1] = np.sqrt((u[j] ** 2 + 1.0) / ratio - 1.0)
    return u

  def scales(self, sigma):
    distance = jnp.abs(sigma[..., None] - jnp.float32(self._u).reshape((1,) * sigma.ndim + (-1,)))
    c_noise = self.M - 1.0 - jnp.argmin(distance, axis=-1)
    return Scales(jnp.ones_like(sigma), -sigma, 1.0 / jnp.sqrt(sigma**2 + 1.0), c_noise)

  def draw(self, keys):
    return noise.randint(keys, 0, self.M)

  def sigma(self, u):
    return jnp.float32(self._u)[u]

  def weight(self, sigma):
    return sigma**-2


KNOWN = {"EDM": EDM, "VP": VP, "VE": VE, "iDDPM": IDDPM}


def by_name(name, args):
  """An object of the class that a config names; its methods give [B]. args: its numbers, a table.

  Raises ValueError for a name or a number that does not exist, or is out of range.
  """
  method.check("preconditioning", name, name in KNOWN, f"one of {', '.join(KNOWN)}")
  method.check_keywords("preconditioning_args", args, KNOWN[name], name)
  return KNOWN[name](**args)


def denoiser(row, net_fn):
  """fn(x [B, ...], sigma [B]) -> D [B, ...] of net_fn(x [B, ...], c_noise [B]) -> [B, ...]. Eq. 7.

  row: an object of a class above, whose scales are [B].
  """

  def fn(x, sigma):
    c = row.scales(sigma)
    c_skip, c_out, c_in = (paths.expand(v, x) for v in c[:3])
    return c_skip * x + c_out * net_fn(c_in * x, c.c_noise)

  return fn

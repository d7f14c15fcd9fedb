"""Stochastic Interpolants. Albergo, Boffi, Vanden-Eijnden, 2023. arXiv:2303.08797.

Paths between any two distributions, x_t = (1 - t) x0 + t x1 + gamma(t) z with normal z: Def. 2.1,
with the linear interpolant of Sec. 4. Times run from noise to data: t = 0 is the start x0, noise or
other data, t = 1 the data x1. A gamma below is a function of t: how wide the noise z is. What is
learned is the velocity b = E[dx_t/dt | x_t] and eta = E[z | x_t], from which the score is
-eta / gamma (Sec. 2.2).
"""

import dataclasses

import jax
import jax.numpy as jnp

from jaxgen import noise, paths
from jaxgen.core import method


@dataclasses.dataclass(frozen=True)
class Constant:
  """gamma = sigma, elementwise, the same at every time: independent or OT-CFM, arXiv:2302.00482.

  With sigma = 0, no noise at all, it is rectified flow. At the ends x_t is x0 and x1 with noise.
  Raises ValueError for a sigma below 0.
  """

  sigma: float = 0.0
  t_min = 0.0

  def __post_init__(self):
    method.check_weight("sigma", self.sigma)

  def __call__(self, t):
    return jnp.full_like(t, self.sigma)


@dataclasses.dataclass(frozen=True)
class Bridge:
  """gamma = sigma sqrt(t (1 - t)), elementwise: a Brownian bridge from x0 to x1.

  That of the Schroedinger bridge, arXiv:2302.00482, Sec. 3.2; with sigma = sqrt(2) the paper's own.
  Its derivative is infinite at the ends: times are kept t_min away from them. The squared target
  grows as sigma^2 / 4t there, so that its mean grows with log(1 / t_min); the velocity does not.
  Raises ValueError for a sigma below 0 and for a t_min outside (0, 0.5).
  """

  sigma: float = 1.0
  t_min: float = 1e-3

  def __post_init__(self):
    method.check_weight("sigma", self.sigma)
    method.check_number("t_min", self.t_min, lambda v: 0.0 < v < 0.5, "above 0 and below 0.5")

  def __call__(self, t):
    return self.sigma * jnp.sqrt(t * (1.0 - t))


def interpolate(x0, x1, z, t, *, gamma=Constant()):
  """(x_t, dx_t/dt), like x0 both. Def. 2.1; arXiv:2302.00482, Sec. 3.2.

  x0, x1, z: [B, ...]. t: [B], 0 to 1, from noise to data. gamma: `Constant`, `Bridge`, or another
  function of t, elementwise.
  """
  at = paths.expand(t, x0)
  g, d_gamma = jax.jvp(gamma, (at,), (jnp.ones_like(at),))
  return (1.0 - at) * x0 + at * x1 + g * z, x1 - x0 + d_gamma * z


def velocity(velocity_fn, x0, x1, keys, *, gamma=Constant(), t=None, z=None):
  """|b(x_t, t) - (x1 - x0 + gamma' z)|^2, per example [B]. Sec. 2.2, but for a constant.

  The mean over pixels takes the place of the paper's sum.

  Args:
    velocity_fn: (x_t [B, ...], t [B]) -> [B, ...].
    x0, x1: pairs of start and data [B, ...]. keys: [B].
    gamma: of `interpolate`; its t_min is how far random times stay from 0 and 1.
    t, z: [B] in 0 to 1, from noise to data, and [B, ...], in place of uniform times and normal
      noise (tests, ablations).

  Raises ValueError for an x0 that is not of the shape of x1.
  """
  x_t, target, t, _ = _drawn(x0, x1, keys, gamma, t, z)
  return _mean_square(velocity_fn(x_t, t) - target)


def denoiser(eta_fn, x0, x1, keys, *, gamma, t=None, z=None):
  """|eta(x_t, t) - z|^2, per example [B]; the score is -eta / gamma. Sec. 2.2.

  Arguments as of `velocity`, but eta_fn: (x_t [B, ...], t [B]) -> [B, ...]; x0, x1 [B, ...],
  keys [B], t [B] in 0 to 1, from noise to data, z [B, ...]. Raises ValueError as that does.
  """
  x_t, _, t, z = _drawn(x0, x1, keys, gamma, t, z)
  return _mean_square(eta_fn(x_t, t) - z)


def _drawn(x0, x1, keys, gamma, t, z):
  method.check("x0.shape", x0.shape, x0.shape == x1.shape, f"that of x1, {x1.shape}")
  x0, x1 = x0.astype(jnp.float32), x1.astype(jnp.float32)
  k_t, k_z = noise.split(keys)
  t = noise.uniform(k_t, (), gamma.t_min, 1.0 - gamma.t_min) if t is None else t
  z = noise.normal(k_z, x0.shape[1:]) if z is None else z
  return *interpolate(x0, x1, z, t, gamma=gamma), t, z


def _mean_square(error):
  return jnp.mean(error**2, axis=tuple(range(1, error.ndim)))

"""Densities by change of variables."""

import math

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from jaxgen import noise
from jaxgen.objectives import likelihood
from jaxgen.samplers import ode


def normal_log_prob(z, log_det):
  """log p(x) = log N(z; 0, I) + log|det dz/dx|, in nats, [B].

  arXiv:1605.08803, Eq. 3; survey Eq. 48-49, 54, Box 6. z: [B, ...]. log_det: [B].
  """
  z = z.astype(jnp.float32)
  return jnp.sum(norm.logpdf(z), axis=_axes(z)) + log_det


def ode_log_prob(velocity_fn, x, keys, ts, *, solve=ode.heun, prior_std=1.0, e=None):
  """log p(x) of the flow that turns noise at ts[-1] into data at ts[0], in nats, [B].

  d log p / dt = -div v along the trajectory, arXiv:1806.07366, Eq. 8; arXiv:2011.13456, Eq. 39. The
  divergence is estimated with one Rademacher e an example: the mean over keys is exact.

  Args:
    velocity_fn: (x [B, ...], t [B]) -> dx/dt. x: [B, ...]. keys: [B]. ts: [S + 1], data to noise.
    solve: a solver of samplers.ode. prior_std: of the noise, that of the path: N(0, prior_std^2).
    e: [B, ...] in place of the drawn one (tests).
  """
  e = noise.rademacher(keys, x.shape[1:]).astype(x.dtype) if e is None else e
  v_and_div = lambda fn, x: hutchinson(fn, x, e)
  return _log_prob(v_and_div, velocity_fn, x, ts, solve, prior_std)


def image_log_prob(velocity_fn, image, keys, ts, *, solve=ode.heun, prior_std=1.0):
  """A lower bound on log P of an 8-bit image [B, ...] in [-1, 1], in nats, [B].

  `ode_log_prob` of dequantized images, arXiv:1511.01844; one draw of dequantization and of the
  trace an example, both unbiased. velocity_fn: (x [B, ...], t [B]) -> dx/dt. keys: [B].
  ts: [S + 1], data to noise. solve, prior_std: of `ode_log_prob`.
  """
  k_pixels, k_trace = noise.split(keys)
  x = likelihood.dequantize(k_pixels, image)
  density = ode_log_prob(velocity_fn, x, k_trace, ts, solve=solve, prior_std=prior_std)
  return density + x[0].size * math.log(likelihood.BIN)


def flow_log_prob(velocity_fn, image, keys, path, n):
  """`image_log_prob`, in nats, [B], by n of Heun's steps. arXiv:2011.13456, Eq. 39.

  They crowd at the data, where the density is steep: on MNIST at 16x16, 50 of them are 0.03 and 100
  are 0.01 bits/dim below the limit; uniform steps are far from it.

  velocity_fn: (x [B, ...], t [B]) -> dx/dt. image: [B, ...], 8-bit, in [-1, 1]. keys: [B]. path:
  whose ends are the times. n: a scalar.
  """
  ts = path.t_data + (path.t_noise - path.t_data) * jnp.linspace(0.0, 1.0, n + 1) ** 3
  return image_log_prob(velocity_fn, image, keys, ts, prior_std=path.prior_std)


def ode_log_prob_exact(velocity_fn, x, ts, *, solve=ode.heun, prior_std=1.0):
  """As `ode_log_prob`, in nats, [B], with the exact divergence: D times the work.

  arXiv:1806.07366, Eq. 8. velocity_fn: (x [B, ...], t [B]) -> dx/dt. x: [B, ...]. ts: [S + 1], data
  to noise. solve: a solver of samplers.ode. prior_std: of the noise.
  """
  return _log_prob(exact, velocity_fn, x, ts, solve, prior_std)


def _log_prob(v_and_div, velocity_fn, x, ts, solve, prior_std):
  augmented = lambda state, t: v_and_div(lambda x: velocity_fn(x, t), state[0])
  z, div = solve(augmented, (x, jnp.zeros(len(x), x.dtype)), ts)
  return jnp.sum(norm.logpdf(z, scale=prior_std), _axes(z)) + div


def hutchinson(fn, x, e):
  """(fn(x) [B, ...], an estimate e' (dfn/dx) e of its divergence [B]). arXiv:1810.01367, Eq. 7.

  fn: x -> [B, ...]. x: [B, ...]. e: [B, ...], of mean 0 and covariance 1.
  """
  v, dv = jax.jvp(fn, (x,), (e,))
  return v, jnp.sum(dv * e, _axes(x))


def exact(fn, x):
  """(fn(x) [B, ...], its divergence [B]), one derivative a dimension. arXiv:1806.07366, Eq. 8.

  fn: x -> [B, ...], each row of its own x. x: [B, ...].
  """
  v, jvp = jax.linearize(fn, x)
  size = x[0].size
  units = jnp.eye(size, dtype=x.dtype).reshape(size, *x.shape[1:])
  along = lambda e: jnp.sum(jvp(jnp.broadcast_to(e, x.shape)) * e[None], _axes(x))
  return v, jnp.sum(jax.lax.map(along, units), axis=0)


def _axes(x):
  return tuple(range(1, x.ndim))

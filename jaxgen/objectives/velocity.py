"""Regressions on velocities: flow matching, rectified flow, and what they count as an error.

Improving the Training of Rectified Flows. Lee et al., 2024. arXiv:2405.20320. Its distances are
here, its sampler is `samplers.straight`, its times are `times.u_shaped`; their t runs the other
way, from data to noise.

Survey R04, Sec. 7.2.

A distance is a function (v, target, x_t, all [B, ...], t [B]) -> [B], of the velocity of a network
and the one that is wanted at x_t. Times run from noise to data.
"""

import jax.numpy as jnp

from jaxgen import noise, paths
from jaxgen.core import method

C = 0.00054  # of the pseudo-Huber distance, arXiv:2405.20320, for each pixel


def flow_matching(velocity_fn, x, keys, *, path=paths.Linear(), t=None, eps=None):
  """|v(x_t, t) - u_t|^2, per example [B]. arXiv:2210.02747, Eq. 9; survey Eq. 112, Box 11.

  x_t is drawn from the mixture of survey Eq. 108, and squares are least at the mean of u_t given
  x_t, the marginal velocity of survey Eq. 109: so the minimum is that of survey Eq. 107 (Theorem 2
  of the paper). On Linear() it is rectified flow, survey Eq. 104. The mean over pixels takes the
  place of the paper's sum.

  Args:
    velocity_fn: (x_t [B, ...], t [B]) -> [B, ...].
    x: data [B, ...]. keys: [B].
    path: from noise to data; the paper's OT path is Linear, arXiv:2210.02747, Eq. 20-23.
    t, eps: [B] and [B, ...] in place of uniform times and normal noise (tests, ablations).
  """
  x = x.astype(jnp.float32)
  k_t, k_eps = noise.split(keys)
  t = noise.uniform(k_t, (), *sorted((path.t_noise, path.t_data))) if t is None else t
  eps = noise.normal(k_eps, x.shape[1:]) if eps is None else eps
  x_t = paths.interpolate(path, x, eps, t)
  return squared(velocity_fn(x_t, t), paths.velocity(path, x, eps, t), x_t, t)


def squared(v, target, x_t, t):
  """The mean over pixels of (v - target)^2, [B]. arXiv:2209.03003, Eq. 1.

  v, target: [B, ...]. x_t, t: of every distance, like x_t and [B]; not used.
  """
  return jnp.mean((v - target) ** 2, axis=_axes(v))


def rectified_flow(velocity_fn, x0, x1, keys, *, t=None, distance=squared):
  """distance(v(x_t, t), x1 - x0), per example [B], on the lines x_t = (1 - t) x0 + t x1.

  arXiv:2209.03003, Eq. 1; survey Eq. 103-104. The pairs (x0, x1) are a coupling: of independent
  draws, or of the ends of an earlier flow (reflow).

  Args:
    velocity_fn: (x_t [B, ...], t [B]) -> [B, ...].
    x0, x1: the start, noise or data, and the data, [B, ...]. keys: [B].
    t: [B], from noise to data, in place of uniform times; those of `step_times` distil.
    distance: `squared`, `pseudo_huber`, or what `lpips_huber` makes.

  Raises ValueError for an x0 that is not of the shape of x1.
  """
  method.check("x0.shape", x0.shape, x0.shape == x1.shape, f"that of x1, {x1.shape}")
  x0, x1 = x0.astype(jnp.float32), x1.astype(jnp.float32)
  t = noise.uniform(keys) if t is None else t
  x_t = paths.interpolate(paths.Linear(), x1, x0, t)  # survey Eq. 103
  return distance(velocity_fn(x_t, t), x1 - x0, x_t, t)  # survey Eq. 104


def step_times(u, k):
  """floor(k u) / k, elementwise: the times 0, 1/k, ..., (k - 1)/k of k Euler steps, noise to data.

  Rectified flow, arXiv:2209.03003, Eq. 1, at these times alone distils it into k steps; with k = 1
  it is |(x1 - x0) - v(x0, 0)|^2. u: uniform on [0, 1), [B]. k: a scalar. Raises ValueError for k.
  """
  method.check_count("k", k)
  return jnp.floor(k * u) / k


def pseudo_huber(v, target, x_t, t, *, c=C):
  """(sqrt(|v - target|^2 + C^2) - C) / d, C = c d, of d pixels, [B]. arXiv:2405.20320, Sec. 4.2.

  Squares |e|^2 / (2 C) / d of small errors, and (|e| - C) / d of large ones. Divided by d as in its
  code, which is no part of the paper's formula.

  v, target: [B, ...]. x_t, t: of every distance, like x_t and [B]; not used. c: a scalar above 0.
  """
  d = v[0].size
  square = jnp.sum((v - target) ** 2, axis=_axes(v))
  return (jnp.sqrt(square + (c * d) ** 2) - c * d) / d


def lpips_huber(lpips_fn, *, inverse=True, c=C):
  """The distance t pseudo_huber + LPIPS(x1', x1), [B]. arXiv:2405.20320, Sec. 4.2.

  x1' = x_t + (1 - t) v is where v leads, x1 where the target does. The paper's t is our 1 - t.

  Args:
    lpips_fn: (images, images) -> [B], LPIPS with the resizing that it wants (the paper's: 224x224).
    inverse: LPIPS / (1 - t), the paper's Config F, which needs times below 1; False is without.
    c: of `pseudo_huber`, a scalar.

  Raises ValueError for a c that is not positive.
  """
  method.check_positive("c", c)

  def distance(v, target, x_t, t):
    left = paths.expand(1.0 - t, x_t)
    perceived = lpips_fn(x_t + left * v, x_t + left * target)
    perceived = perceived / (1.0 - t) if inverse else perceived
    return t * pseudo_huber(v, target, x_t, t, c=c) + perceived

  return distance


def _axes(x):
  return tuple(range(1, x.ndim))

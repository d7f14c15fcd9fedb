"""Velocities that are right at both ends, whatever their network says.

Improving Rectified Flow with Boundary Conditions. Hu et al., 2025. arXiv:2506.15864.

On lines from X0, of N(0, I), at t = 0 to data X1 at t = 1, the marginal velocity at x is C - x at
the start, with C = E[X1], and x at the end. A network that is off by e makes the score there, which
is (t v - x) / (1 - t), wrong by t e / (1 - t): stochastic samplers need the end most.

f = t^power and g = (1 - t)^power are the masks of the two ends, h = 1 - f - g is that of the
network. The survey says what they are at the ends; what lies between is our choice.

m_fn: (x_t [B, ...], t [B]) -> [B, ...], a network. mean: C, [B, ...], that of each row's class
where there are classes, or [1, ...]. Times run from noise to data.
"""

import math

import jax
import jax.numpy as jnp

from jaxgen import paths
from jaxgen.core import axis, method


def masked(m_fn, mean, *, power=8.0):
  """v(x, t) = g (C - x) + f x + h m(x, t), as velocity_fn(x_t, t) -> [B, ...]. survey Eq. 106.

  The mask-based model. m_fn, mean: see the module, -> [B, ...]. power: a scalar, the larger the
  narrower are the ends. Raises ValueError for a power that is not above 1.
  """
  _check_power(power)

  def velocity_fn(x_t, t):
    f, g = _masks(x_t, t, power)
    return g * (mean - x_t) + f * x_t + (1.0 - f - g) * m_fn(x_t, t)  # survey Eq. 106

  return velocity_fn


def subtracted(m_fn, mean, *, power=8.0):
  """v = m(x, t) + g (C - x - m(x, 0)) + f (x - m(x, 1)), as velocity_fn(x_t, t) -> [B, ...].

  The subtraction-based model: what the network is off at the ends is taken away, by two more
  evaluations of it. An m that is right there is v itself. It is survey Eq. 106 whose network is
  (m(x, t) - g m(x, 0) - f m(x, 1)) / h, the two ends of which are the limits.

  m_fn, mean: see the module, -> [B, ...]. power: a scalar. Raises ValueError as `masked` does.
  """
  _check_power(power)

  def velocity_fn(x_t, t):
    f, g = _masks(x_t, t, power)
    at_noise, at_data = m_fn(x_t, jnp.zeros_like(t)), m_fn(x_t, jnp.ones_like(t))
    return m_fn(x_t, t) + g * (mean - x_t - at_noise) + f * (x_t - at_data)

  return velocity_fn


def _masks(x_t, t, power):
  t = paths.expand(t, x_t)
  return t**power, (1.0 - t) ** power


def _check_power(power):
  method.check_number("power", power, lambda p: 1.0 < p < math.inf, "a finite number above 1")


def no_means(image_shape, n_classes):
  """{"mean": [K + 1, *image_shape], "count": [K + 1]}, all 0: what `update_means` starts with.

  K = n_classes, 0 or the number of labels. image_shape: (H, W, C). arXiv:2506.15864.
  """
  K = n_classes
  return {"mean": jnp.zeros((K + 1, *image_shape)), "count": jnp.zeros(K + 1)}


def update_means(means, x, label=None):
  """`means` after a batch: mean [K + 1, ...] of the data of each class, and last of all of them.

  Of every row that was seen since `no_means`, of all devices: E[X1 | label], and E[X1] for the null
  class, K, the C of survey Eq. 106.

  means: {"mean": [K + 1, ...], "count": [K + 1]}. x: data [B, ...]. label: int32 [B]; None: K = 0.
  """
  x, ones = x.astype(jnp.float32), jnp.ones((len(x), 1))
  K = len(means["count"]) - 1
  member = jnp.concatenate([jax.nn.one_hot(label, K), ones], axis=1) if K else ones  # [B, K + 1]
  add = jnp.tensordot(member, x, (0, 0), precision="highest")
  n, add = axis.total((jnp.sum(member, axis=0), add))
  count = means["count"] + n
  mean = means["mean"]
  step = (add - paths.expand(n, mean) * mean) / paths.expand(jnp.maximum(count, 1.0), mean)
  return {"mean": mean + step, "count": count}

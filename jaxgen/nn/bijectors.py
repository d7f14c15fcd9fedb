"""Invertible layers. Each is one function of two directions,

  layer(x [B, ...], *, inverse=False) -> (y [B, ...], log_det [B]),

where log_det is log|det dy/dx| of the direction that ran, in nats.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import axis


def chain(layers, x, *, inverse=False):
  """`layers` one after the other, last to first if inverse; log_det [B] is the sum of theirs.

  survey Eq. 52-53.
  """
  log_det = jnp.zeros(len(x))
  for layer in reversed(layers) if inverse else layers:
    x, term = layer(x, inverse=inverse)
    log_det += term
  return x, log_det


def affine(x, s, t, *, inverse=False):
  """y = x exp(s) + t, or x = (y - t) exp(-s). s, t: like x, independent of it.

  arXiv:1605.08803, Eq. 7-8.
  """
  y = (x - t) * jnp.exp(-s) if inverse else x * jnp.exp(s) + t
  log_det = _sum(s)
  return y, -log_det if inverse else log_det


def split_coupling(fn, x, *, flip=False, inverse=False):
  """Transforms half of the channels as the other half says.

  arXiv:1605.08803, Eq. 4-8; survey Eq. 55-56.

  Args:
    fn: x_a [B, ..., D // 2] -> (s, t), like x_b [B, ..., D - D // 2].
    x: [B, ..., D]. The first half is kept; flip keeps the second and transforms the first.
  """
  at = x.shape[-1] - x.shape[-1] // 2 if flip else x.shape[-1] // 2
  halves = jnp.split(x, [at], axis=-1)
  kept, moved = reversed(halves) if flip else halves
  moved, log_det = affine(moved, *fn(kept), inverse=inverse)
  return jnp.concatenate([moved, kept] if flip else [kept, moved], axis=-1), log_det


def masked_coupling(fn, x, mask, *, inverse=False):
  """y = b x + (1 - b) (x exp(s(b x)) + t(b x)). arXiv:1605.08803, Eq. 9; survey Eq. 55-56.

  Args:
    fn: b x -> (s, t), both like x. Their entries where b = 1 are not used.
    x: [B, ...]. mask: b, bool, like x or with axes of length 1; True is kept.
  """
  s, t = (jnp.where(mask, 0.0, v) for v in fn(jnp.where(mask, x, 0.0)))
  return affine(x, s, t, inverse=inverse)


def checkerboard(height, width, parity=1):
  """Mask [1, H, W, 1] of this height and width, True where row + column is odd; even if parity = 0.

  arXiv:1605.08803, Sec. 3.4.
  """
  sums = jnp.arange(height)[:, None] + jnp.arange(width)[None, :]
  return (sums % 2 == parity)[None, :, :, None]


def squeeze(x):
  """[B, H, W, C] -> [B, H/2, W/2, 4C]: pixel (i, j) of a 2x2 square goes to channel 4c + 2i + j.

  arXiv:1605.08803, Sec. 3.6. Volume is kept. Raises ValueError for an odd height or width.
  """
  B, H, W, C = x.shape
  if H % 2 or W % 2:
    raise ValueError(f"x has height and width {H}, {W}: expected even numbers")
  x = x.reshape(B, H // 2, 2, W // 2, 2, C).transpose(0, 1, 3, 5, 2, 4)
  return x.reshape(B, H // 2, W // 2, 4 * C)


def unsqueeze(x):
  """[B, H, W, C] -> [B, 2H, 2W, C/4], the inverse of `squeeze`. arXiv:1605.08803, Sec. 3.6.

  Raises ValueError for channels that are no multiple of 4.
  """
  B, H, W, C = x.shape
  if C % 4:
    raise ValueError(f"x has {C} channels: expected a multiple of 4")
  x = x.reshape(B, H, W, C // 4, 2, 2).transpose(0, 1, 4, 2, 5, 3)
  return x.reshape(B, 2 * H, 2 * W, C // 4)


_DIAGONAL_FIRST = np.array([0, 3, 1, 2])


def squeeze_ordered(x):
  """[B, H, W, C] -> [B, H/2, W/2, 4C] with all channels of pixel (0, 0) of a square first.

  Those of (1, 1), (0, 1) and (1, 0) follow, so that each half of the result is one colour of the
  checkerboard, at its full height and width: what RealNVP factors out, arXiv:1605.08803, Sec. 3.6,
  in the order of its code. Raises ValueError for an odd height or width.
  """
  y = squeeze(x)
  y = y.reshape(*y.shape[:3], -1, 4)[..., _DIAGONAL_FIRST]
  return y.swapaxes(-1, -2).reshape(*y.shape[:3], -1)


def unsqueeze_ordered(x):
  """[B, H, W, C] -> [B, 2H, 2W, C/4], the inverse of `squeeze_ordered`. arXiv:1605.08803, Sec. 3.6.

  Raises ValueError for channels that are no multiple of 4.
  """
  y = x.reshape(*x.shape[:3], 4, -1).swapaxes(-1, -2)[..., np.argsort(_DIAGONAL_FIRST)]
  return unsqueeze(y.reshape(x.shape))


def logit(x, *, alpha=0.05, inverse=False):
  """y = logit(alpha + (1 - 2 alpha) x) of x in (0, 1). arXiv:1605.08803, Sec. 4.1.

  Symmetric, as in the official code; the paper writes 1 - alpha for 1 - 2 alpha. log_det: [B].
  """
  if inverse:
    y = (jax.nn.sigmoid(x) - alpha) / (1.0 - 2.0 * alpha)
    return y, -_logit_log_det(x, alpha)
  p = alpha + (1.0 - 2.0 * alpha) * x
  y = jnp.log(p) - jnp.log1p(-p)
  return y, _logit_log_det(y, alpha)


def _logit_log_det(y, alpha):
  # dy/dp = 1 / (p (1 - p)), and -log p = softplus(-y), -log(1 - p) = softplus(y).
  return _sum(jax.nn.softplus(y) + jax.nn.softplus(-y) + math.log(1.0 - 2.0 * alpha))


class MovingBatchNorm(nn.Module):
  """y = (x - mean) / sqrt(var + epsilon) for each channel. arXiv:1605.08803, Sec. 3.7 and App. E.

  The statistics are moving averages, in training those *after* this batch has entered them; only
  through its share does a gradient pass. They are averages from the first update on, without the
  initial 0 and 1 (the weights of t + 1 batches are divided by 1 - momentum^(t + 1), as in Adam), so
  that the first steps are those of ordinary batch normalisation.
  """

  momentum: float = 0.9
  epsilon: float = 1e-4

  @nn.compact
  def __call__(self, x, *, inverse=False, train=False):
    """x [B, ..., C]. train: updates "batch_stats" with the global batch.

    Raises ValueError for train with inverse.
    """
    if train and inverse:
      raise ValueError("train=True: expected False with inverse=True, which uses stored averages")
    shape, axes = x.shape[-1:], tuple(range(x.ndim - 1))
    mean = self.variable("batch_stats", "mean", jnp.zeros, shape)
    var = self.variable("batch_stats", "var", jnp.ones, shape)
    updates = self.variable("batch_stats", "updates", jnp.zeros, ())
    if train:
      now = axis.mean(x.mean(axes))
      spread = axis.mean(jnp.mean((x - _expand(now, x)) ** 2, axes))
      updates.value += 1.0
      share = (1.0 - self.momentum) / (1.0 - self.momentum**updates.value)
      mean.value += share * (now - mean.value)
      var.value += share * (spread - var.value)
    s = -0.5 * jnp.log(var.value + self.epsilon)
    log_det = jnp.full(len(x), x[0, ..., 0].size * s.sum())
    m, s = _expand(mean.value, x), _expand(s, x)
    if inverse:
      return x * jnp.exp(-s) + m, -log_det
    return (x - m) * jnp.exp(s), log_det


def _expand(v, x):
  return v.reshape((1,) * (x.ndim - 1) + v.shape)


def _sum(x):
  return jnp.sum(x, axis=tuple(range(1, x.ndim)))

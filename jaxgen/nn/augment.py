"""Non-leaky augmentation: images are distorted, and the network is told how. arXiv:2206.00364,
App. F.2, Table 6.

Flips, then one affine map: the image is mirrored at its borders, resampled at twice its resolution
and halved again. The filter is the wavelet sym6, as in NVlabs/edm: the identity comes out exact.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import noise
from jaxgen.core import method

SYM6 = np.array(
  [0.015404109327027373, 0.0034907120842174702, -0.11799011114819057, -0.048311742585633]
  + [0.4910559419267466, 0.787641141030194, 0.3379294217276218, -0.07263752278646252]
  + [-0.021060292512300564, 0.04472490177066578, 0.0017677118642428036, -0.007800708325034148]
)
MARGIN = 3  # pixels beyond each border that the halving needs
LABELS = 9  # numbers that tell of an augmentation

SCALE_STD = 0.2  # of log2 of both scales
ANISO_ROTATE = 0.5  # how often the axes of the anisotropic scaling are turned
TRANSLATE_STD = 0.125  # of the height and width


class Draw(NamedTuple):
  """Random numbers of the augmentations, each [B], 0 where one is not applied."""

  flip_x: jax.Array  # bool
  flip_y: jax.Array  # bool
  scale: jax.Array  # standard normal
  angle: jax.Array  # radians
  aniso: jax.Array  # standard normal, along the axis at aniso_angle
  aniso_angle: jax.Array  # radians
  x: jax.Array  # standard normal, to the right
  y: jax.Array  # standard normal, downwards


def draw(keys, p):
  """A Draw for each of keys [B]: every augmentation with probability p, the flip in x with 1/2.

  p: a number; with 0 there is no flip either. Half of the flips in y leave the image as it is.
  """
  k = iter(noise.split(keys, 13))
  on = lambda p: noise.bernoulli(next(k), p)
  some = lambda value: jnp.where(on(p), value, 0.0)
  normal, angle = (
    lambda: noise.normal(next(k)),
    lambda: noise.uniform(next(k), (), -np.pi, np.pi),
  )
  flip_x, flip_y = on(0.5 * (p > 0.0)), on(0.5 * p)
  scale, turn, aniso = some(normal()), some(angle()), some(normal())
  aniso_angle = jnp.where(on(ANISO_ROTATE), angle(), 0.0)
  moved, x, y = on(p), normal(), normal()
  zero = jnp.zeros_like(x)
  x, y = jnp.where(moved, x, zero), jnp.where(moved, y, zero)
  return Draw(flip_x, flip_y, scale, turn, aniso, aniso_angle, x, y)


def labels(d):
  """What the network is told of a Draw d, [B, 9]; 0 where nothing is applied."""
  told = [
    d.flip_x,
    d.flip_y,
    d.scale,
    jnp.cos(d.angle) - 1.0,
    jnp.sin(d.angle),
    d.aniso * jnp.cos(d.aniso_angle),
    d.aniso * jnp.sin(d.aniso_angle),
    d.x,
    d.y,
  ]
  return jnp.stack([jnp.float32(v) for v in told], axis=-1)


def affine(d, H, W):
  """(A [B, 2, 2], b [B, 2]): offset c, (x, y) from the centre, shows what was at A c + b.

  d: a Draw of [B]. H, W: scalars, the pixels.
  """
  s, a = jnp.exp2(SCALE_STD * d.scale), jnp.exp2(SCALE_STD * d.aniso)
  stretch = _diagonal(1.0 / a, a)
  A = _rotation(d.angle) / s[:, None, None]
  A = A @ _rotation(-d.aniso_angle) @ stretch @ _rotation(d.aniso_angle)
  shift = TRANSLATE_STD * jnp.stack([W * d.x, H * d.y], axis=-1)
  return A, -jnp.einsum("bij,bj->bi", A, shift)


def _rotation(angle):
  c, s = jnp.cos(angle), jnp.sin(angle)
  return jnp.stack([jnp.stack([c, -s], -1), jnp.stack([s, c], -1)], -2)


def _diagonal(x, y):
  zero = jnp.zeros_like(x)
  return jnp.stack([jnp.stack([x, zero], -1), jnp.stack([zero, y], -1)], -2)


def _doubling(n):
  """float32 [2 (3n - 2), n]: n pixels, mirrored on both sides, at twice the resolution."""
  mirrored = np.pad(np.arange(n), n - 1, mode="reflect")
  up = np.zeros((2 * len(mirrored), n))
  for i in range(len(up)):
    for j in range(len(SYM6)):
      p, odd = divmod(i + 5 - j, 2)
      if not odd and 0 <= p < len(mirrored):
        up[i, mirrored[p]] += SYM6[j]
  return np.float32(up)


def _halving(n):
  """float32 [n, 2 (n + 2 MARGIN)]: back to n pixels, without the margins."""
  down = np.zeros((n, 2 * (n + 2 * MARGIN)))
  for i in range(n):
    first = 2 * (i + MARGIN) - 5
    down[i, first : first + len(SYM6)] = SYM6
  return np.float32(down)


def warp(images, A, b):
  """images [B, H, W, C] under the maps of `affine`, A [B, 2, 2] and b [B, 2]: like images."""
  H, W = images.shape[1:3]
  images = jnp.einsum("ih,jw,bhwc->bcij", _doubling(H), _doubling(W), images)
  # Offsets from the centre at twice the resolution; the filter moves them by half a pixel.
  y, x = (jnp.arange(2.0 * (n + 2 * MARGIN)) - (n + 2 * MARGIN) + 1.0 for n in (H, W))
  out = jnp.stack(jnp.broadcast_arrays(x[None, :], y[:, None]))
  at = jnp.einsum("bij,jhw->bihw", A, out) + 2.0 * b[:, :, None, None] - 0.5
  middle = jnp.array([2 * (3 * n - 2) - 1 for n in (W, H)]) / 2.0
  at = at + middle[None, :, None, None]

  def sample(image, at):
    return jax.scipy.ndimage.map_coordinates(image, [at[1], at[0]], order=1)

  images = jax.vmap(jax.vmap(sample, (0, None)))(images, at)
  return jnp.einsum("hi,wj,bcij->bhwc", _halving(H), _halving(W), images)


def augment(keys, images, p=0.12):
  """(images [B, H, W, C] distorted, labels [B, 9]).

  keys: [B]. images: in [-1, 1], which the filter may leave by a little. p: of `draw`. Raises
  ValueError for a p outside [0, 1].
  """
  method.check_unit("p", p)
  d = draw(keys, p)
  pick = lambda on, image, axis: jnp.where(on[:, None, None, None], jnp.flip(image, axis), image)
  images = pick(d.flip_y, pick(d.flip_x, images, 2), 1)
  return warp(images, *affine(d, *images.shape[1:3])), labels(d)

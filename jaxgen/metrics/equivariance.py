"""Equivariance of generators to translation, EQ-T, and to rotation, EQ-R. arXiv:2106.12423, App. E.

A generator that can move its image is compared with its own image, moved afterwards. It is called
as generate(z, transform) -> images [B, N, N, C]; pixel p shows what pixel transform p shows without
one. Coordinates are (x, y, 1), x to the right and y down, 0 in the middle of the image, whose sides
are 1 long; transform [B, 3, 3] is the identity where nothing moves.

Every measure gives (squared errors, how many numbers they are the sum of), per example [B], of the
pixels that do not depend on what is outside the image; for EQ-R the authors' code counts up to a
quarter of a pixel more on one side. `decibels` takes those of all examples.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy import ndimage, signal

from jaxgen import noise
from jaxgen.core import method

LOBES = 3  # a of the Lanczos windows, in pixels. App. E.2
MAX_SHIFT = 1 / 8  # of the side. App. E.1
UP = 4  # samples per pixel where images are rotated. App. E.3


def eqt_int(generate, z, keys):
  """EQ-T: squared errors [B] and their numbers [B] after shifts by whole pixels. App. E.1.

  generate: (z [B, ...], transform [B, 3, 3]) -> images [B, N, N, C], as above. z: [B, ...].
  keys: [B], of the shifts. Raises ValueError unless images are square and float32.
  """
  x = _unmoved(generate, z)
  shift = jnp.round(_draw_shift(keys, x))
  return _errors(generate(z, _translation(shift, x)), *integer_shift(x, shift))


def eqt_frac(generate, z, keys):
  """EQ-T_frac: squared errors [B] and their numbers [B] after shifts by any distance. App. E.2.

  generate: (z [B, ...], transform [B, 3, 3]) -> images [B, N, N, C], as above. z: [B, ...].
  keys: [B], of the shifts. Raises ValueError unless images are square and float32.
  """
  x = _unmoved(generate, z)
  shift = _draw_shift(keys, x)
  return _errors(generate(z, _translation(shift, x)), *fractional_shift(x, shift))


def eqr(generate, z, keys):
  """EQ-R: squared errors [B] and their numbers [B] after rotations by any angle. App. E.3.

  generate: (z [B, ...], transform [B, 3, 3]) -> images [B, N, N, C], as above. z: [B, ...].
  keys: [B], of the angles. Raises ValueError unless images are square and float32.
  """
  x = _unmoved(generate, z)
  angle = noise.uniform(keys, (), -np.pi, np.pi)
  turned, inside = rotate(x, angle)
  y, whole = band_limit(generate(z, _rotation(-angle)), angle)
  return _errors(y, turned, inside & whole)


def decibels(squared, count, *, data_range=2.0):
  """10 log10(data_range^2 / mean squared error), a scalar in dB; one mean over all examples.

  squared, count: what the measures return, of any number of examples, [n]. data_range: from black
  to white. Raises ValueError for other shapes, for no numbers at all and for a range of 0.
  """
  method.check_positive("data_range", data_range)
  squared, count = np.asarray(squared, np.float64), np.asarray(count, np.float64)
  method.check("squared.shape", squared.shape, squared.shape == count.shape, f"{count.shape}")
  method.check("count", count.sum(), count.sum() > 0, "more than 0 in all")
  with np.errstate(divide="ignore"):
    return float(10.0 * np.log10(data_range**2 / (squared.sum() / count.sum())))


def integer_shift(x, shift):
  """x [B, N, N, C] moved by shift, whole pixels (x, y) [B, 2], and where it is known, [B, N, N]."""
  return _shift(x, shift, lambda u: (u == 0.0).astype(x.dtype), np.arange(1))


def fractional_shift(x, shift):
  """x [B, N, N, C] moved by shift, pixels (x, y) [B, 2], and where it is known, [B, N, N].

  Interpolated by a sinc under a Lanczos window, its weights made to sum to 1. App. E.2.
  """
  return _shift(x, shift, lambda u: jnp.sinc(u) * _window(u), np.arange(1 - LOBES, LOBES + 1))


def rotate(x, angle):
  """x [B, N, N, C] turned by angle [B], and where it is known, [B, N, N].

  Interpolated by `band_filter` at UP samples a pixel, and between those linearly. App. E.3.
  The angle is in radians, from the y axis to the x axis: anticlockwise on a screen.
  """
  n = x.shape[1]
  middle, reach = (n - 1) / 2, 2 * LOBES - 1 / UP
  p = jnp.stack(jnp.meshgrid(jnp.arange(n), jnp.arange(n)), axis=-1) - middle  # (x, y)

  def one(x, angle):
    source = jnp.matmul(p, _rotation(-angle)[:2, :2].T, precision="highest") + middle
    known = jnp.all((source >= reach) & (source <= n - 1 - reach), axis=-1)
    f = UP**2 * band_filter(angle, UP)

    def channel(x):
      fine = jnp.zeros((UP * n, UP * n)).at[::UP, ::UP].set(x)
      fine = signal.fftconvolve(fine, f, "same")
      return ndimage.map_coordinates(fine, UP * jnp.moveaxis(source[..., ::-1], -1, 0), order=1)

    return jax.vmap(channel, -1, -1)(x), known

  return jax.lax.map(lambda args: one(*args), (x, angle))


def band_limit(x, angle):
  """x [B, N, N, C] without the frequencies that `rotate` by angle [B] takes from an image.

  Returns it and where it is known, [B, N, N]. The pseudo-rotation of App. E.3.
  """
  n, reach = x.shape[1], 2 * LOBES - 1

  def one(x, angle):
    f = band_filter(-angle, 1)
    return jax.vmap(lambda channel: signal.fftconvolve(channel, f, "same"), -1, -1)(x)

  i = jnp.arange(n)
  known = (i >= reach) & (i < n - reach)
  known = jnp.broadcast_to(known[:, None] & known[None], x.shape[:-1])
  return jax.lax.map(lambda args: one(*args), (x, angle)), known


def band_filter(angle, up):
  """A low-pass filter for both the pixels of an image and those of it turned by angle, a scalar.

  up: samples per pixel, a scalar. Of the K = 4 LOBES up - 1 rows and columns of [K, K], those that
  fall on pixels hold weights that sum to 1 / up^2 wherever the filter stands. Its band is what both
  square bands share: one ideal filter convolved with the other, under both Lanczos windows
  convolved likewise. App. E.3.
  """
  size, keep = 64, 2 * LOBES  # in pixels: of the ideal filters and of what is kept of them
  taps = jnp.arange(1 - size * up, size * up) / up
  own = jnp.stack(jnp.meshgrid(taps, taps), axis=-1)  # (x, y)
  turned = jnp.matmul(own, _rotation(angle)[:2, :2].T, precision="highest")

  def convolved(f):
    product = jnp.fft.rfft2(jnp.prod(f(own), -1)) * jnp.fft.rfft2(jnp.prod(f(turned), -1))
    y = jnp.fft.irfft2(product, (len(taps), len(taps)))
    return jnp.roll(y, size * up, axis=(0, 1))[cut, cut]  # 0 of both at size * up - 1

  cut = slice((size - keep) * up, (keep - size) * up)
  f = convolved(jnp.sinc) * convolved(_window)
  phases = jnp.pad(f, (0, 1)).reshape(2 * keep, up, 2 * keep, up)
  phases = phases / jnp.sum(phases, axis=(0, 2), keepdims=True) / up**2
  return phases.reshape(2 * keep * up, -1)[:-1, :-1]


def _window(u):
  return jnp.where(abs(u) < LOBES, jnp.sinc(u / LOBES), 0.0)


def _rotation(angle):
  """[..., 3, 3]: points (x, y, 1) turned by angle [...], as `rotate` turns images."""
  cos, sin, zero = jnp.cos(angle), jnp.sin(angle), jnp.zeros_like(angle)
  rows = [[cos, sin, zero], [-sin, cos, zero], [zero, zero, zero + 1.0]]
  return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _translation(shift, x):
  """The transform that moves images x by shift pixels [B, 2]."""
  at = jnp.broadcast_to(jnp.eye(3), (len(x), 3, 3))
  return at.at[:, :2, 2].set(-shift / x.shape[1])


def _draw_shift(keys, x):
  return x.shape[1] * noise.uniform(keys, (2,), -MAX_SHIFT, MAX_SHIFT)


def _unmoved(generate, z):
  x = generate(z, jnp.broadcast_to(jnp.eye(3), (len(z), 3, 3)))
  square = x.ndim == 4 and x.shape[1] == x.shape[2]
  method.check("shape of generate's images", x.shape, square, "[B, N, N, C]")
  method.check("dtype of generate's images", str(x.dtype), x.dtype == "float32", "float32")
  return x


def _errors(y, x, known):
  known = jnp.broadcast_to(known[..., None], x.shape)
  squared = jnp.where(known, (x - y) ** 2, 0.0)
  return jnp.sum(squared, axis=(1, 2, 3)), jnp.sum(known, axis=(1, 2, 3))


def _shift(x, shift, kernel, taps):
  """Along both axes the sum of kernel(k - fraction of shift) x[i - k - floor of shift], k in taps.

  The kernel, which is 0 at all other distances, is made to sum to 1.
  """
  n = x.shape[1]
  pixels = jnp.arange(n)

  def along(s):
    whole = jnp.floor(s)
    source = pixels - whole
    weights = kernel(source[:, None] - pixels[None] - (s - whole))
    inside = (source - taps[-1] >= 0) & (source - taps[0] <= n - 1)
    return weights / jnp.sum(kernel(taps - (s - whole))), inside

  columns, known_x = jax.vmap(along)(shift[:, 0])
  rows, known_y = jax.vmap(along)(shift[:, 1])
  moved = jnp.einsum("bpi,bqj,bijc->bpqc", rows, columns, x, precision="highest")
  return moved, known_y[:, :, None] & known_x[:, None]

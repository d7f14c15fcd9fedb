"""How far images are from their originals: PSNR and SSIM.

A bare equation number is one of doi:10.1109/TIP.2003.819861.
"""

import math

import jax.numpy as jnp

from jaxgen.core import method

RADIUS, STD = 5, 1.5  # of the window, in pixels. Sec. III-C
K1, K2 = 0.01, 0.03  # Sec. III-C


def psnr(x, y, *, data_range):
  """Peak signal-to-noise ratio in dB, per pair [B]; infinite for equal images.

  10 log10(data_range^2 / mean squared error), as in doi:10.1109/TIP.2003.819861, Sec. I.

  Args:
    x, y: images [B, H, W, C], both uint8 or both float32.
    data_range: what lies between black and white, 2 for images in [-1, 1] and 255 for uint8.

  Raises ValueError for other shapes and dtypes, and for a uint8 range other than 255.
  """
  x, y = _check(x, y, data_range)
  return -10.0 * jnp.log10(jnp.mean(((x - y) / data_range) ** 2, axis=(1, 2, 3)))


def ssim(x, y, *, data_range):
  """Structural similarity, per pair [B], at most 1.

  The mean over channels and over all positions at which the 11x11 Gaussian window, of standard
  deviation 1.5, lies within the image.

  Args:
    x, y: images [B, H, W, C], both uint8 or both float32, with 11 or more rows and columns.
    data_range: what lies between black and white, 2 for images in [-1, 1] and 255 for uint8.

  Raises ValueError for other shapes and dtypes, and for a uint8 range other than 255.
  """
  x, y = _check(x, y, data_range)
  width = 2 * RADIUS + 1
  method.check("x.shape", x.shape, min(x.shape[1:3]) >= width, f"{width} or more rows and columns")
  mean_x, mean_y, cov = _moments(x, y)
  var_x, var_y = _moments(x, x)[2], _moments(y, y)[2]
  c1, c2 = (K1 * data_range) ** 2, (K2 * data_range) ** 2
  luminance = (2.0 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1)
  structure = (2.0 * cov + c2) / (var_x + var_y + c2)
  return jnp.mean(luminance * structure, axis=(1, 2, 3))  # Eq. 13 and 17


def _check(x, y, data_range):
  """x and y as float32."""
  method.check_positive("data_range", data_range)
  method.check("x.shape", x.shape, x.ndim == 4 and 0 not in x.shape, "[B, H, W, C], none of them 0")
  method.check("y.shape", y.shape, y.shape == x.shape, f"that of x, {x.shape}")
  method.check("x.dtype", str(x.dtype), x.dtype in ("uint8", "float32"), "uint8 or float32")
  method.check("y.dtype", str(y.dtype), y.dtype == x.dtype, f"that of x, {x.dtype}")
  method.check("data_range", data_range, x.dtype != "uint8" or data_range == 255, "255 for uint8")
  return x.astype(jnp.float32), y.astype(jnp.float32)


def _moments(x, y):
  """Means of x and y and their covariance under the window, Eq. 14-16, of every whole window.

  The covariance of a window is the mean of those of its rows and the covariance of their means:
  nothing cancels, as it would in E[x y] - E[x] E[y].
  """
  row_x, row_y, within = _moments_along(2, x, y)
  mean_x, mean_y, between = _moments_along(1, row_x, row_y)
  return mean_x, mean_y, _mean(_slide(1, within)) + between


def _moments_along(axis, x, y):
  parts_x, parts_y = _slide(axis, x), _slide(axis, y)
  mean_x, mean_y = _mean(parts_x), _mean(parts_y)
  products = [(a - mean_x) * (b - mean_y) for a, b in zip(parts_x, parts_y, strict=True)]
  return mean_x, mean_y, _mean(products)


def _slide(axis, x):
  """The pixels of every whole window along an axis: its first, its second, ..."""
  n = x.shape[axis] - 2 * RADIUS
  index = [slice(None)] * x.ndim
  return [x[(*index[:axis], slice(i, i + n))] for i in range(2 * RADIUS + 1)]


def _mean(parts):
  weights = [math.exp(-0.5 * (i / STD) ** 2) for i in range(-RADIUS, RADIUS + 1)]
  return sum(w / sum(weights) * part for w, part in zip(weights, parts, strict=True))

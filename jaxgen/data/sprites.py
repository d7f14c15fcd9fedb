"""White sprites on black whose every factor is known, in the manner of dSprites.

After the data set of beta-VAE, Higgins et al., 2017, https://github.com/deepmind/dsprites-dataset,
whose factors and counts these are: 3 shapes x 6 scales x 40 orientations x 32 x 32 positions, at
64x64. The images are drawn here: each pixel is white whose centre is within the shape.
"""

import dataclasses

import numpy as np

SIZE = 64
FACTORS = ("shape", "scale", "orientation", "position_x", "position_y")
COUNTS = (3, 6, 40, 32, 32)


def _inside(shape, x, y):
  """Whether points, in the shape's own frame, are within it: a square, an ellipse, a heart."""
  square = np.maximum(np.abs(x), np.abs(y)) <= 0.75
  ellipse = x**2 + 4.0 * y**2 <= 1.0
  x, y = 1.25 * x, 0.1 - 1.25 * y
  heart = (x**2 + y**2 - 1.0) ** 3 <= x**2 * y**3
  return np.select([shape == 0, shape == 1], [square, ellipse], heart)


def render(factors):
  """Images uint8 [n, 64, 64, 1], 0 or 255, of factors int [n, 5], which count from 0.

  A scale is 0.5, 0.6, ..., 1; an orientation a 39th of a turn, so that the last is the first
  again, as in dSprites; a position a pixel.
  """
  shape, scale, turn, x, y = (f[:, None, None] for f in factors.T.astype(np.float64))
  row, column = np.mgrid[:SIZE, :SIZE] + 0.5
  x, y = column - (x + 16.5), row - (y + 16.5)
  angle, radius = 2.0 * np.pi * turn / (COUNTS[2] - 1), 14.0 * (0.5 + 0.1 * scale)
  cos, sin = np.cos(angle) / radius, np.sin(angle) / radius
  inside = _inside(shape, cos * x + sin * y, cos * y - sin * x)
  return np.where(inside, 255, 0).astype(np.uint8)[..., None]


@dataclasses.dataclass(frozen=True)
class Sprites:
  """Images with `factors` int32 [5]; `numbers` [N] are of the whole set, in the order of COUNTS."""

  numbers: np.ndarray
  labels = None

  def __len__(self):
    return len(self.numbers)

  def __getitem__(self, i):
    return {name: x[0] for name, x in self.take(np.array([i])).items()}

  def take(self, index):
    """The examples index [n] at once, as arrays [n, ...]."""
    factors = np.stack(np.unravel_index(self.numbers[index], COUNTS), axis=1)
    return {"image": render(factors), "factors": factors.astype(np.int32)}


def open_sprites(split):
  """Nine tenths of the set, in an order of its own, for training, the others for tests."""
  order = np.random.RandomState(0).permutation(np.prod(COUNTS))  # numpy keeps this stream for ever
  cut = len(order) * 9 // 10
  return Sprites(order[:cut] if split == "train" else order[cut:])

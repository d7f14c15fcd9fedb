"""Points in the plane, about in [-1, 1]: the sets on which flows and critics are drawn."""

import numpy as np


def gaussians8(rng, n):
  """Eight Gaussians of variance 0.1 / 25 on the unit circle, [n, 2]. After arXiv:2302.00482."""
  angle = rng.randint(8, size=n) * np.pi / 4.0
  centre = np.stack([np.cos(angle), np.sin(angle)], axis=1)
  return centre + np.sqrt(0.1) / 5.0 * rng.standard_normal((n, 2))


def moons(rng, n):
  """Two half circles that interlock, [n, 2]: as in arXiv:2302.00482's code, divided by 5."""
  angle, lower = np.pi * rng.random_sample(n), rng.randint(2, size=n)
  upper_x = np.stack([np.cos(angle), np.sin(angle)], axis=1)
  lower_x = np.stack([1.0 - np.cos(angle), 0.5 - np.sin(angle)], axis=1)
  x = np.where(lower[:, None], lower_x, upper_x) + 0.2 * rng.standard_normal((n, 2))
  return (3.0 * x - 1.0) / 5.0


def checkerboard(rng, n):
  """Uniform on the eight dark squares of a 4 x 4 board on [-1, 1]^2, [n, 2]."""
  row, half = rng.randint(4, size=n), rng.randint(2, size=n)
  corner = np.stack([2 * half + row % 2, row], axis=1)
  return (corner + rng.random_sample((n, 2))) / 2.0 - 1.0

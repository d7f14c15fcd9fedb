"""Kernel distance between two sets of features (KID), in float64 on the host. arXiv:1801.01401."""

import numpy as np

from jaxgen.core import method
from jaxgen.metrics import frechet


def kernel_distance(x, y, *, subsets=100, size=1000, seed=2020):
  """Unbiased squared MMD under (x.y / D + 1)^3: (mean, standard deviation) over subsets, scalars.

  The mean can be below 0. Subsets are those of torch-fidelity for the same seed.

  Args:
    x, y: features, [n, D] and [m, D].
    subsets: how often `size` rows of x and as many of y are drawn, without replacement.
    size: rows of a subset, no more than n and m.
    seed: of the draws.

  Raises ValueError for fewer rows than `size` and for differing D.
  """
  method.check_count("subsets", subsets)
  method.check_count("size", size, 2)
  method.check_count("seed", seed, 0, 2**32 - 1)
  x, y = frechet.check_features("x", x), frechet.check_features("y", y)
  if x.shape[1] != y.shape[1]:
    raise ValueError(f"x has D={x.shape[1]} and y has D={y.shape[1]}: expected the same")
  if size > min(len(x), len(y)):
    raise ValueError(f"size={size}: expected no more than x and y have, {len(x)} and {len(y)} rows")
  rng = np.random.RandomState(seed)
  draw = lambda features: features[rng.choice(len(features), size, replace=False)]
  values = [_squared_mmd(draw(x), draw(y)) for _ in range(subsets)]
  return float(np.mean(values)), float(np.std(values))


def _squared_mmd(x, y):
  """Of as many rows in x as in y; a row is not compared with itself. arXiv:1801.01401, Sec. 4."""
  m, dim = x.shape
  xx, yy, xy = ((a @ b.T / dim + 1.0) ** 3 for a, b in ((x, x), (y, y), (x, y)))
  others = xx.sum() - np.trace(xx) + yy.sum() - np.trace(yy)
  return others / (m * (m - 1)) - 2.0 * xy.mean()

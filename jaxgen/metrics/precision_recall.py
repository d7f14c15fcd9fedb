"""Precision and recall (arXiv:1904.06991), density and coverage (arXiv:2002.09797) of samples.

Each set of features is taken for the union of balls around its rows, which reach to their k-th
nearest neighbour, the row itself not counted. In float64 on the host. A bare equation number is one
of arXiv:1904.06991.
"""

import numpy as np

from jaxgen.core import method
from jaxgen.metrics import diversity, frechet


def precision_recall(real, fake, *, k=3):
  """{"precision": share of fake in the balls of real, "recall": of real in those of fake}, scalars.

  In any ball, not only that of the nearest row, and on its surface too.

  Args:
    real, fake: features, [n, D] and [m, D].
    k: neighbours that a ball reaches, fewer than n and m.

  Raises ValueError for arrays of other shapes and for too large a k.
  """
  real, fake = frechet.check_features("real", real), frechet.check_features("fake", fake)
  method.check_count("k", k, 1, min(len(real), len(fake)) - 1)
  inside = lambda x, centres: [(gaps <= 0.0).any(axis=1) for gaps in _gaps(x, centres, k)]  # Eq. 1
  share = lambda x, centres: float(np.concatenate(inside(x, centres)).mean())  # Eq. 2
  return {"precision": share(fake, real), "recall": share(real, fake)}


def density_coverage(real, fake, *, k=5):
  """{"density", "coverage"} of fake, scalars, by the balls of real alone. arXiv:2002.09797, Sec. 3.

  Density counts the balls that a row of fake lies in, over k; coverage is the share of balls with
  any. The surface is outside, as in the authors' code: a set without ties has density 1 in itself.

  Args:
    real, fake: features, [n, D] and [m, D].
    k: neighbours that a ball reaches, fewer than n.

  Raises ValueError for arrays of other shapes and for too large a k.
  """
  real, fake = frechet.check_features("real", real), frechet.check_features("fake", fake)
  method.check_count("k", k, 1, len(real) - 1)
  inside = np.zeros(len(real), np.int64)  # rows of fake in each ball
  for gaps in _gaps(fake, real, k):
    inside += (gaps < 0.0).sum(axis=0)
  return {
    "density": float(inside.sum() / (k * len(fake))),
    "coverage": float((inside > 0).mean()),
  }


def _gaps(x, centres, k):
  """Blocks [b, m] of squared distance to each centre less squared radius; 0 on the surface.

  What matrix products cannot tell from 0 counts as 0, so that ties do not depend on rounding.
  """
  radii = diversity.nearest_neighbours(centres, centres, k + 1)[1][:, -1]
  for _, squared, bound in diversity.distance_blocks(x, centres):
    gaps = squared - radii**2
    yield np.where(abs(gaps) <= bound, 0.0, gaps)

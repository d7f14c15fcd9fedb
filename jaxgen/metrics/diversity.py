"""Which modes samples reach, and which training images they repeat. arXiv:1705.07761."""

import numpy as np
from scipy import special

from jaxgen.core import method
from jaxgen.metrics import frechet

_ENTRIES = 2**23  # of a block of distances, 64 MB


def mode_coverage(samples, modes, std, *, within=3.0):
  """Samples of a mixture of equally likely, isotropic Gaussians, each with its nearest mode.

  Args:
    samples: [n, D]. modes: means of the Gaussians, [K, D]. std: theirs, a scalar.
    within: how many std from a mode a sample may be to count as of high quality.

  Returns:
    {"modes": how many modes have a sample of high quality (arXiv:1705.07761, Sec. 4),
    "high_quality": the share of samples that are, "kl": KL(histogram of nearest modes over all
    samples || uniform) in nats, 0 to log K (arXiv:1712.04086, Sec. 4)}, scalars.

  Raises ValueError for arrays of other shapes and for numbers that are not positive.
  """
  method.check_positive("std", std)
  method.check_positive("within", within)
  frechet.check_features("modes", modes)
  index, distance = (x[:, 0] for x in nearest_neighbours(samples, modes))
  good = distance <= within * std
  share = np.bincount(index) / len(index)
  return {
    "modes": len(np.unique(index[good])),
    "high_quality": float(good.mean()),
    "kl": float(special.rel_entr(share, 1.0 / len(modes)).sum()),
  }


def nearest_neighbours(x, train, k=1):
  """Of each row of x the k rows of train that are nearest: (index [n, k], distance [n, k]).

  Nearest first; the distance is Euclidean, in the unit of x, and 0 only for an equal row.

  Args:
    x: [n, D], images or features flattened. train: [m, D], on the same scale.
    k: 1 to m.

  Raises ValueError for arrays of other shapes and for k of more than m.
  """
  x, train = frechet.check_features("x", x), frechet.check_features("train", train)
  method.check_count("k", k, 1, len(train))
  index, distance = np.empty((len(x), k), np.int64), np.empty((len(x), k))
  for rows, squared, _ in distance_blocks(x, train):
    near = np.argpartition(squared, k - 1, axis=1)[:, :k]
    exact = np.stack([np.linalg.norm(x[rows] - train[j], axis=1) for j in near.T], axis=1)
    order = np.lexsort((near, exact))
    index[rows] = np.take_along_axis(near, order, axis=1)
    distance[rows] = np.take_along_axis(exact, order, axis=1)
  return index, distance


def distance_blocks(x, y):
  """Yields (rows of x, squared distances [b, m] to all of y, bound of their rounding [b, m]).

  x: [n, D] and y: [m, D], float64. Raises ValueError for differing D.
  """
  (n, dim), m = x.shape, len(y)
  if dim != y.shape[1]:
    raise ValueError(f"rows of {dim} and of {y.shape[1]} numbers: expected the same")
  lengths_y, step = np.sum(y**2, axis=1), max(_ENTRIES // m, 1)
  for start in range(0, n, step):
    rows = slice(start, min(start + step, n))
    lengths = np.sum(x[rows] ** 2, axis=1)[:, None] + lengths_y
    bound = 4 * (dim + 4) * np.finfo(np.float64).eps * lengths
    yield rows, lengths - 2.0 * (x[rows] @ y.T), bound

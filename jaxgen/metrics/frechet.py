"""Frechet distance between Gaussians fitted to features, in float64 on the host. arXiv:1706.08500.

With Inception's pooled features, 2048 a picture, it is FID; with the first 7 channels of a spatial
layer it is sFID (arXiv:2103.03841), with I3D's logits of videos FVD (arXiv:1812.01717).
"""

from typing import NamedTuple

import numpy as np

from jaxgen.core import method
from jaxgen.data import sources

_BLOCK = 512  # rows that are merged at a time
_SINGULAR = 1e-10  # the smallest pivot of a covariance over the largest
_SMALL = 1e-5  # of the largest entry or eigenvalue: what a covariance in float32 may be off by


class Moments(NamedTuple):
  """Mean and covariance of features."""

  n: int | None  # samples; None where a published file does not say
  mean: np.ndarray  # [D]
  cov: np.ndarray  # [D, D], unbiased: divided by n - 1


class Stream:
  """Moments of features that come in batches, the same to the bit however they are split.

  Rows are buffered; blocks of 512 are centred and merged in order (Chan, Golub and LeVeque 1983,
  doi:10.2307/2683386), so that nothing cancels where the mean is far from zero.
  """

  def __init__(self, dim):
    """dim: D, of the features [b, D]. Raises ValueError."""
    method.check_count("dim", dim)
    self._rows, self._filled = np.empty((_BLOCK, dim)), 0
    self._sums = 0, np.zeros(dim), np.zeros((dim, dim))

  def add(self, features):
    """Takes features [b, D]. Raises ValueError unless they are finite and have D columns."""
    features, dim = check_features("features", features, least=0), self._rows.shape[1]
    if features.shape[1] != dim:
      raise ValueError(f"features has {features.shape[1]} columns: expected dim={dim}")
    while len(features):
      taken = features[: _BLOCK - self._filled]
      self._rows[self._filled : self._filled + len(taken)] = taken
      self._filled += len(taken)
      features = features[len(taken) :]
      if self._filled == _BLOCK:
        self._sums, self._filled = _merge(self._sums, self._rows), 0

  def moments(self):
    """Moments of all rows so far: mean [D], cov [D, D]. Raises ValueError for fewer than two."""
    n, mean, scatter = self._sums
    if self._filled:
      n, mean, scatter = _merge(self._sums, self._rows[: self._filled])
    if n < 2:
      raise ValueError(f"n={n} samples: expected 2 or more")
    return Moments(n, mean.copy(), scatter / (n - 1))


def _merge(sums, rows):
  """(n, mean, sum of outer products of centred rows) of both."""
  (n, mean, scatter), b = sums, len(rows)
  mean_b = rows.mean(axis=0)
  centred, shift = rows - mean_b, mean_b - mean
  scatter = scatter + centred.T @ centred + np.outer(shift, shift * (n * b / (n + b)))
  return n + b, mean + shift * (b / (n + b)), scatter


def moments(features):
  """Moments of features [n, D]: mean [D], cov [D, D]. Raises ValueError for fewer than two rows."""
  features = check_features("features", features, least=2)
  stream = Stream(features.shape[1])
  stream.add(features)
  return stream.moments()


def frechet_distance(a, b, *, allow_few=False):
  """||mu_a - mu_b||^2 + tr(S_a + S_b - 2 (S_a S_b)^(1/2)), a scalar; rounding can take it below 0.

  The eigenvalues of S_a S_b = A_a A_a^T A_b A_b^T are the squares of the singular values of
  A_a^T A_b: no square root of a matrix, and nothing is added to its diagonal.

  Args:
    a, b: Moments of features, mean [D] and cov [D, D].
    allow_few: do not refuse n <= D samples, whose covariance is singular; the distance of so few is
      biased upwards by far.

  Raises ValueError for n <= D unless `allow_few`, for moments that are not finite, for differing D,
  and for matrices that are no covariances.
  """
  for name, x in (("a", a), ("b", b)):
    _check(name, x)
    if not allow_few and x.n is not None and x.n <= len(x.mean):
      raise ValueError(
        f"{name} has n={x.n} samples in D={len(x.mean)} dimensions: expected n > D, as fewer leave"
        " the covariance singular and the distance too large; allow_few=True takes them"
      )
  if a.mean.shape != b.mean.shape:
    raise ValueError(f"a has D={len(a.mean)} and b has D={len(b.mean)}: expected the same")
  mean_a, cov_a, mean_b, cov_b = (np.asarray(x, np.float64) for x in (*a[1:], *b[1:]))
  root = np.linalg.svd(_factor("a", cov_a).T @ _factor("b", cov_b), compute_uv=False).sum()
  means = np.sum((mean_a - mean_b) ** 2)
  return float(means + np.trace(cov_a) + np.trace(cov_b) - 2.0 * root)  # arXiv:1706.08500, Eq. 6


def _factor(name, cov):
  """A [D, r] with A A^T = cov, by Cholesky, or where cov may be singular by its eigenvectors."""
  try:
    lower = np.linalg.cholesky(cov)
  except np.linalg.LinAlgError:
    lower = np.zeros((1, 1))
  pivots = np.diag(lower) ** 2
  if pivots.min() > _SINGULAR * pivots.max():
    return lower
  values, vectors = np.linalg.eigh(cov)
  if values[0] < -_SMALL * abs(values[-1]):
    raise ValueError(f"{name} has a cov with the eigenvalue {values[0]}: expected 0 or more")
  kept = values > len(values) * np.finfo(np.float64).eps * values[-1]
  return vectors[:, kept] * np.sqrt(values[kept])


def _check(name, x):
  n, mean, cov = x.n, np.asarray(x.mean), np.asarray(x.cov)
  if not (n is None or n >= 2):
    raise ValueError(f"{name} has n={n}: expected 2 or more samples")
  if mean.ndim != 1 or not mean.size or cov.shape != 2 * mean.shape:
    raise ValueError(f"{name} has mean {mean.shape} and cov {cov.shape}: expected [D] and [D, D]")
  if not (mean.dtype.kind == cov.dtype.kind == "f"):
    raise ValueError(f"{name} has {mean.dtype} mean and {cov.dtype} cov: expected float64")
  if not (np.isfinite(mean).all() and np.isfinite(cov).all()):
    raise ValueError(f"{name} has a mean or cov that is not finite")
  if abs(cov - cov.T).max() > _SMALL * abs(cov).max():
    raise ValueError(f"{name} has a cov that is not symmetric")


def read_moments(path):
  """Moments from a .npz of mu [D], sigma [D, D] and maybe n, as others publish it. path: the file.

  Raises ValueError for another file and for moments that no features have.
  """
  file = sources.read_npz(path, path)
  for name in ("mu", "sigma"):
    method.check(f"arrays of {path}", [*file], name in file, "mu, sigma and maybe n")
  n = file.get("n")
  if n is not None and (n.shape or n.dtype.kind not in "iu"):
    raise ValueError(f"{path} has n={n}: expected a whole number")
  x = Moments(n if n is None else int(n), file["mu"], file["sigma"])
  _check(path, x)
  return x._replace(mean=x.mean.astype(np.float64), cov=x.cov.astype(np.float64))


def write_moments(path, moments):
  """Writes a .npz of mu [D], sigma [D, D] and n, where it is known. path, moments: of `Moments`.

  Raises ValueError for what `read_moments` would refuse.
  """
  _check("moments", moments)
  n = {} if moments.n is None else {"n": moments.n}
  with open(path, "wb") as file:
    np.savez(file, mu=moments.mean, sigma=moments.cov, **n)


def check_features(name, x, least=1):
  """x as float64 [n, D]. name: of x; least: the fewest rows.

  Raises ValueError unless x is a matrix [n, D] of finite numbers with that many rows.
  """
  x = np.asarray(x)
  if x.ndim != 2 or x.shape[1] < 1 or len(x) < least:
    raise ValueError(f"{name} has shape {x.shape}: expected [n, D] with n of {least} or more")
  x = x.astype(np.float64, copy=False)
  if not np.isfinite(x).all():
    raise ValueError(f"{name} has values that are not finite")
  return x

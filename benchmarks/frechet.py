r"""Frechet distance from cached moments: ours against the square root of a matrix.

python -m benchmarks.frechet [--dim=2048] [--n=50000] [--few=300] [--rounds=2]

Two sets of correlated features, then two of only `few` rows, whose covariances are singular. The
methods take turns in one process; theirs is scipy's sqrtm of the product of the covariances, as in
the code of arXiv:1706.08500, without its second try with something added to the diagonal.
"""

import pathlib
import tempfile
import time

import numpy as np
from absl import app, flags
from scipy import linalg

from jaxgen.metrics import frechet

DIM = flags.DEFINE_integer("dim", 2048, "Dimensions of the features.", lower_bound=2)
N = flags.DEFINE_integer("n", 50_000, "Rows of a set.", lower_bound=2)
FEW = flags.DEFINE_integer("few", 300, "Rows of a small set.", lower_bound=2)
ROUNDS = flags.DEFINE_integer("rounds", 2, "Times that each method is run.", lower_bound=1)


def features(seed, n, dim):
  """Blocks of rows with eigenvalues that fall like 1 / i, none below 0, as Inception's are."""
  mix = np.random.default_rng(0).standard_normal((dim, dim)) / np.sqrt(np.arange(1.0, dim + 1.0))
  mix, rng = mix.T.astype(np.float32), np.random.default_rng(seed)
  for start in range(0, n, 2000):
    x = rng.standard_normal((min(2000, n - start), dim), np.float32) @ mix
    yield np.maximum(x + 0.1 * seed, 0.0)


def cached_moments(path, seed, n, dim):
  """Moments of such features by way of a file."""
  stream = frechet.Stream(dim)
  for x in features(seed, n, dim):
    stream.add(x)
  frechet.write_moments(path, stream.moments())
  return frechet.read_moments(path)


def by_sqrtm(a, b):
  """The same distance with a square root of S_a S_b."""
  root = linalg.sqrtm(a.cov @ b.cov)
  return np.sum((a.mean - b.mean) ** 2) + np.trace(a.cov + b.cov - 2.0 * root.real)


def ours(a, b):
  """The library's, also for few rows."""
  return frechet.frechet_distance(a, b, allow_few=True)


def main(_):
  print("| rows | dimensions | ours | sqrtm | ratio | ours, value | sqrtm, value | difference |")
  print("| --- | --- | --- | --- | --- | --- | --- | --- |")
  for n in (N.value, FEW.value):
    with tempfile.TemporaryDirectory() as folder:
      path = pathlib.Path(folder) / "moments.npz"
      a, b = (cached_moments(path, seed, n, DIM.value) for seed in (1, 2))
    times, values = {ours: [], by_sqrtm: []}, {}
    for _ in range(ROUNDS.value):
      for method in times:
        since = time.perf_counter()
        values[method] = method(a, b)
        times[method].append(time.perf_counter() - since)
    fast, slow = (min(times[method]) for method in (ours, by_sqrtm))
    cells = [f"{fast:.2f} s", f"{slow:.2f} s", f"{slow / fast:.1f}"]
    cells += [f"{values[ours]:.8g}", f"{values[by_sqrtm]:.8g}"]
    difference = values[ours] - values[by_sqrtm]
    print(f"| {n} | {DIM.value} | {' | '.join(cells)} | {difference:.1e} |", flush=True)


if __name__ == "__main__":
  app.run(main)

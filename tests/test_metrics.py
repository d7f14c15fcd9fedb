"""Measures of features against closed forms, direct loops and golden vectors."""

import itertools

import golden
import numpy as np
import pytest

from jaxgen.metrics import diversity, frechet, inception_score, kernel, precision_recall

RNG = np.random.default_rng(0)
normal = RNG.standard_normal
Moments = frechet.Moments


def test_golden_frechet_distance():
  arrays, close = golden.load("fid")
  a, b = frechet.moments(arrays["in.a"]), frechet.moments(arrays["in.b"])
  close(a.mean, "mu_a")
  close(a.cov, "sigma_a")
  close(frechet.frechet_distance(a, b), "fid")


def test_golden_inception_score():
  arrays, close = golden.load("inception_score")
  for splits in (1, 10):
    close(inception_score.inception_score(arrays["in.logits"], splits=splits), f"s{splits}")


@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_moments_are_the_same_to_the_bit_for_any_batches(offset):
  x = normal((1300, 6)) @ normal((6, 6)) + offset
  whole = frechet.moments(x)
  assert whole.n == 1300
  # Two passes in long double are exact here; sums of squares would be off by 1 or more at 1e6.
  centred = x.astype(np.longdouble) - x.astype(np.longdouble).mean(axis=0)
  np.testing.assert_allclose(whole.mean, x.astype(np.longdouble).mean(axis=0).astype(float))
  exact = (centred.T @ centred / 1299).astype(float)
  np.testing.assert_allclose(whole.cov, exact, rtol=1e-7, atol=1e-9 if offset else 1e-13)
  for cuts in (range(1, 1300), (512, 1024), (511, 513), (0, 700), (1299,)):
    stream = frechet.Stream(6)
    for batch in np.split(x, cuts):
      stream.add(batch)
      if len(cuts) < 3 and len(batch) > 1:
        stream.moments()  # looking at them changes nothing
    assert all(np.array_equal(a, b) for a, b in zip(stream.moments(), whole, strict=True))


@pytest.mark.parametrize("scale", [1.0, 1e-6, 1e6])
def test_frechet_distance_of_commuting_covariances(scale):
  """Also of singular ones, and of ones with condition 1e12 and without a direction in common."""
  q = np.linalg.qr(normal((9, 9)))[0]
  shift = scale * normal(9)
  spectra = [
    (np.arange(9.0), np.arange(9.0)[::-1]),
    (np.logspace(0, -12, 9), np.logspace(-12, 0, 9)),
    (np.repeat([1.0, 0.0], [4, 5]), np.repeat([0.0, 2.0], [4, 5])),
    (np.zeros(9), np.ones(9)),
  ]
  for first, second in spectra:
    first, second = scale**2 * first, scale**2 * second
    a = Moments(10, np.zeros(9), (q * first) @ q.T)
    b = Moments(None, shift, (q * second) @ q.T)
    exact = shift @ shift + ((np.sqrt(first) - np.sqrt(second)) ** 2).sum()
    for distance in (frechet.frechet_distance(a, b), frechet.frechet_distance(b, a)):
      np.testing.assert_allclose(distance, exact, rtol=1e-10)  # eigh is off by 1e-16 beside 1e-12


def test_frechet_distance_of_fewer_samples_than_dimensions():
  """Features scaled and moved have covariance c^2 S, whatever its rank; others by Gram matrices."""
  x = normal((7, 40))
  a, b = frechet.moments(x), frechet.moments(3.0 * x + 0.5)
  change = a.mean - b.mean
  exact = change @ change + (3.0 - 1.0) ** 2 * np.trace(a.cov)
  distance = frechet.frechet_distance(a, b, allow_few=True)
  np.testing.assert_allclose(distance, exact, rtol=1e-12)
  assert abs(frechet.frechet_distance(a, a, allow_few=True)) < 1e-12 * np.trace(a.cov)
  moved = frechet.frechet_distance(a, a._replace(mean=a.mean + 2.0), allow_few=True)
  np.testing.assert_allclose(moved, 4.0 * 40, rtol=1e-12)
  y = normal((12, 40)) + 0.5
  c = frechet.moments(y)
  # tr (X^T X Y^T Y)^(1/2) is the nuclear norm of X Y^T, here of a 7 x 12 matrix.
  gram = (x - a.mean) @ (y - c.mean).T / np.sqrt(6.0 * 11.0)
  roots = np.linalg.svd(gram, compute_uv=False).sum()
  exact = ((a.mean - c.mean) ** 2).sum() + np.trace(a.cov) + np.trace(c.cov) - 2.0 * roots
  np.testing.assert_allclose(frechet.frechet_distance(a, c, allow_few=True), exact, rtol=1e-12)
  with pytest.raises(ValueError, match="a has n=7 samples in D=40 dimensions"):
    frechet.frechet_distance(a, b)


def test_moments_are_kept_in_files(tmp_path):
  a = frechet.moments(normal((20, 4)))
  path = tmp_path / "a.npz"
  frechet.write_moments(path, a)
  back = frechet.read_moments(path)
  assert back.n == 20 and np.array_equal(back.mean, a.mean) and np.array_equal(back.cov, a.cov)
  few = a._replace(n=4)
  np.savez(path, mu=a.mean.astype(np.float32), sigma=a.cov)  # as others publish them
  published = frechet.read_moments(path)
  assert published.n is None and published.mean.dtype == np.float64
  assert frechet.frechet_distance(published, a) < 1e-12  # no n, no refusal
  with pytest.raises(ValueError, match="b has n=4 samples in D=4"):
    frechet.frechet_distance(published, few)
  bad = [
    (dict(mean=a.mean, cov=a.cov), "expected mu, sigma"),
    (dict(mu=a.mean[:3], sigma=a.cov), r"expected \[D\] and \[D, D\]"),
    (dict(mu=a.mean * np.nan, sigma=a.cov), "not finite"),
    (dict(mu=np.array([{}] * 4), sigma=a.cov), "pickled"),
    (dict(mu=np.array(["1"] * 4), sigma=a.cov), "float64"),
    (dict(mu=a.mean, sigma=a.cov, n=2.5), "n=2.5"),
    (dict(mu=a.mean, sigma=a.cov, n=1), "n=1"),
    (dict(mu=a.mean, sigma=a.cov + np.triu(np.ones((4, 4)), 1)), "not symmetric"),
  ]
  for arrays, message in bad:
    np.savez(path, **arrays)
    with pytest.raises(ValueError, match=message):
      frechet.read_moments(path)
  path.write_bytes(b"PK\x03\x04")
  with pytest.raises(ValueError, match="not a safe npz"):
    frechet.read_moments(path)
  with pytest.raises(ValueError, match="not finite"):
    frechet.write_moments(path, a._replace(cov=a.cov * np.inf))


def test_inception_score_has_its_bounds():
  score = inception_score.inception_score
  np.testing.assert_allclose(score(np.full((30, 7), 3.0)), (1.0, 0.0), atol=1e-12)
  np.testing.assert_allclose(score(1e4 * np.tile(np.eye(7), (4, 1)), splits=4), (7.0, 0.0))
  # A split that holds one class has score 1, so the order of rows counts: hence random order.
  np.testing.assert_allclose(score(1e4 * np.repeat(np.eye(7), 4, axis=0), splits=7), (1.0, 0.0))


def test_inception_score_of_uneven_splits():
  """23 rows in 4 splits: 5, 6, 6 and 6, each against the formula."""
  logits = normal((23, 5))
  p = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
  parts = np.split(p, [5, 11, 17])
  scores = [np.exp((q * np.log(q / q.mean(axis=0))).sum(axis=1).mean()) for q in parts]
  mean, std = inception_score.inception_score(logits + 700.0, splits=4)
  np.testing.assert_allclose((mean, std), (np.mean(scores), np.std(scores)), rtol=1e-10)


def test_kernel_distance_is_unbiased():
  """Over all pairs of samples that a distribution of three points can give, the mean is 0."""
  points, p = np.array([[0.0, 1.0], [2.0, -1.0], [1.0, 3.0]]), np.array([0.5, 0.2, 0.3])
  values, weights = [], []
  for drawn in itertools.product(range(3), repeat=4):
    x, y = points[list(drawn[:2])], points[list(drawn[2:])]
    values.append(kernel.kernel_distance(x, y, subsets=1, size=2)[0])
    weights.append(p[list(drawn)].prod())
  assert abs(np.dot(weights, values)) < 1e-12 * np.abs(values).max()


def test_kernel_distance_is_the_double_loop():
  x, y = normal((6, 3)), 1.5 * normal((9, 3)) + 0.3
  mean, std = kernel.kernel_distance(x, y, subsets=3, size=5, seed=7)
  rng, k, values = np.random.RandomState(7), lambda a, b: (a @ b / 3 + 1) ** 3, []
  for _ in range(3):
    u, v = x[rng.choice(6, 5, replace=False)], y[rng.choice(9, 5, replace=False)]
    value = 0.0
    for i, j in itertools.product(range(5), repeat=2):
      value -= 2 * k(u[i], v[j]) / 25
      if i != j:
        value += (k(u[i], u[j]) + k(v[i], v[j])) / 20
    values.append(value)
  np.testing.assert_allclose((mean, std), (np.mean(values), np.std(values)), rtol=1e-10)


def test_precision_and_recall_by_hand():
  """1 lies in the ball of 3 but not in that of 0.1, its nearest: the union counts it."""
  real, fake = np.array([[0.0], [0.1], [3.0], [13.0]]), np.array([[1.0], [24], [-1], [5], [24.5]])
  # Radii with k = 1: real 0.1, 0.1, 2.9, 10; fake 2, 0.5, 2, 4, 0.5. Only 13 is in no ball of fake.
  assert precision_recall.precision_recall(real, fake, k=1) == {"precision": 0.4, "recall": 0.75}
  # In the ball of 3: 1 and 5; in that of 13: 5; in the others none.
  assert precision_recall.density_coverage(real, fake, k=1) == {"density": 0.6, "coverage": 0.5}


def test_density_of_a_set_in_itself():
  x = normal((50, 8))
  assert precision_recall.density_coverage(x, x) == {"density": 1.0, "coverage": 1.0}
  assert precision_recall.precision_recall(x, x) == {"precision": 1.0, "recall": 1.0}
  far = precision_recall.density_coverage(x, x + 100.0)
  assert far == {"density": 0.0, "coverage": 0.0}
  assert precision_recall.precision_recall(x, x + 100.0) == {"precision": 0.0, "recall": 0.0}


@pytest.mark.parametrize("entries", [1, 500, 2**23])
def test_ties_and_duplicates_do_not_depend_on_rounding(entries, monkeypatch):
  """Points of a grid, on whose balls' surfaces many lie, in whole numbers and as 0.1 x + 1000."""
  monkeypatch.setattr(diversity, "_ENTRIES", entries)  # blocks of one row, of a few, of all
  rng = np.random.default_rng(1)
  real, fake = rng.integers(0, 5, (60, 3)), rng.integers(2, 7, (70, 3))
  squared = lambda x, y: ((x[:, None] - y) ** 2).sum(axis=2)
  radii = lambda x, k: np.sort(squared(x, x), axis=1)[:, k]
  assert (radii(real, 1) == 0).any() and (squared(fake, real) == radii(real, 3)).sum() > 40
  exact = {
    "precision": (squared(fake, real) <= radii(real, 3)).any(axis=1).mean(),
    "recall": (squared(real, fake) <= radii(fake, 3)).any(axis=1).mean(),
  }
  inside = squared(fake, real) < radii(real, 5)
  exact_density = {"density": inside.sum() / (5 * 70), "coverage": inside.any(axis=0).mean()}
  assert all(0.0 < value < 1.0 for value in (*exact.values(), *exact_density.values()))
  for scaled in (lambda x: x, lambda x: 0.1 * x + 1000.0):
    assert precision_recall.precision_recall(scaled(real), scaled(fake)) == exact
    assert precision_recall.density_coverage(scaled(real), scaled(fake)) == exact_density


def test_mode_coverage_by_hand():
  modes = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
  samples = np.array([[0.3, 0.0], [-0.2, 0.2], [9.69, 0.0], [10.0, 10.31], [6.0, 6.0]])
  found = diversity.mode_coverage(samples, modes, 0.1)
  share = np.array([2, 1, 2]) / 5
  assert found["modes"] == 1 and found["high_quality"] == 0.4
  np.testing.assert_allclose(found["kl"], (share * np.log(4 * share)).sum(), rtol=1e-12)
  found = diversity.mode_coverage(samples, modes, 0.1, within=3.2)
  assert found["modes"] == 3 and found["high_quality"] == 0.8
  np.testing.assert_allclose(diversity.mode_coverage(modes, modes, 1.0)["kl"], 0.0, atol=1e-12)
  one = diversity.mode_coverage(samples[:2], modes, 0.1)
  np.testing.assert_allclose(one["kl"], np.log(4.0), rtol=1e-12)


@pytest.mark.parametrize("entries", [1, 2**23])
def test_nearest_neighbours_find_copies(entries, monkeypatch):
  """A copy has distance 0 exactly, far from the origin and as uint8 too."""
  monkeypatch.setattr(diversity, "_ENTRIES", entries)
  train, copied = normal((300, 12)) + 100.0, [3, 299, 0]
  x = np.concatenate([train[copied], normal((5, 12)) + 100.0])
  index, distance = diversity.nearest_neighbours(x, train, k=250)
  exact = np.sqrt(((x[:, None] - train) ** 2).sum(axis=2))
  np.testing.assert_array_equal(index, np.argsort(exact, axis=1)[:, :250])
  np.testing.assert_allclose(distance, np.sort(exact, axis=1)[:, :250], rtol=1e-12)
  assert index[:3, 0].tolist() == copied and (distance[:3, 0] == 0.0).all()
  images = RNG.integers(0, 256, (9, 48), dtype=np.uint8)
  index, distance = diversity.nearest_neighbours(images[::-1], images)
  assert index[:, 0].tolist() == [*range(8, -1, -1)] and not distance.any()


M = Moments(9, np.zeros(3), np.eye(3))
X = np.ones((5, 3))
fd, score, kd = frechet.frechet_distance, inception_score.inception_score, kernel.kernel_distance
pr, dc = precision_recall.precision_recall, precision_recall.density_coverage
coverage, nearest = diversity.mode_coverage, diversity.nearest_neighbours
REFUSED = [
  (frechet.Stream, (0,), {}, "dim=0"),
  (frechet.Stream(3).add, (np.ones((2, 4)),), {}, "4 columns: expected dim=3"),
  (frechet.Stream(3).add, (np.full((2, 3), np.nan),), {}, "features has values that are not"),
  (frechet.Stream(3).add, (np.ones(3),), {}, "features has shape"),
  (frechet.Stream(3).moments, (), {}, "n=0"),
  (frechet.moments, (np.ones((1, 3)),), {}, "2 or more"),
  (fd, (M, Moments(9, np.zeros(2), np.eye(2))), {}, "a has D=3 and b has D=2"),
  (fd, (M, M._replace(n=3)), {}, "b has n=3 samples in D=3"),
  (fd, (M, M._replace(mean=np.full(3, np.inf))), {}, "b has a mean or cov that is not finite"),
  (fd, (M._replace(cov=np.diag([1.0, 1, -1])), M), {}, "a has a cov with the eigenvalue -1.0"),
  (fd, (M, M._replace(cov=np.eye(2))), {}, "expected .D. and .D, D."),
  (score, (np.ones((9, 4)),), {}, "splits=10: expected no more than the n=9"),
  (score, (np.ones((9, 4)),), {"splits": 0}, "splits=0"),
  (score, (np.full((9, 4), -np.inf),), {"splits": 1}, "not finite"),
  (kd, (X, X), {}, "size=1000: expected no more than x and y have, 5 and 5"),
  (kd, (X, X), {"size": 1}, "size=1"),
  (kd, (X, X), {"size": 2, "subsets": 0}, "subsets=0"),
  (kd, (X, X), {"size": 2, "seed": -1}, "seed=-1"),
  (kd, (X, X[:, :2]), {"size": 2}, "x has D=3 and y has D=2"),
  (pr, (X, X[:3]), {"k": 3}, "k=3"),
  (pr, (X, X[:, :2]), {}, "rows of 2 and of 3"),
  (pr, (X, X * np.nan), {}, "fake has values"),
  (dc, (X, X), {"k": 5}, "k=5"),
  (dc, (X, X), {"k": 0}, "k=0"),
  (coverage, (X, X, 0.0), {}, "std=0.0"),
  (coverage, (X, X, 1.0), {"within": -1.0}, "within=-1.0"),
  (coverage, (X, np.ones(3), 1.0), {}, "modes has shape"),
  (nearest, (X, X, 6), {}, "k=6"),
  (nearest, (X, X[:, :2]), {}, "rows of 3 and of 2"),
  (nearest, (np.ones((2, 4, 4, 3)), X), {}, "x has shape"),
]


@pytest.mark.parametrize("fn, args, keywords, message", REFUSED, ids=[r[3] for r in REFUSED])
def test_what_is_refused(fn, args, keywords, message):
  with pytest.raises(ValueError, match=message):
    fn(*args, **keywords)

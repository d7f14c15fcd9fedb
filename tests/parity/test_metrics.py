"""Our measures against torch-fidelity's, on the same features."""

import numpy as np
import pytest
import torch
from torch_fidelity import metric_fid, metric_isc, metric_kid, metric_prc

from jaxgen.metrics import frechet, inception_score, kernel, precision_recall

torch.set_num_threads(1)
RNG = np.random.default_rng(0)


def features(n, dim, offset=0.0):
  """Like Inception's: correlated, none below 0, float32."""
  mix = np.random.default_rng(dim).standard_normal((dim, dim)) / dim**0.5
  x = RNG.standard_normal((n, dim)) @ mix + offset
  return np.maximum(x, 0.0).astype(np.float32)


@pytest.mark.parametrize("dim, n", [(16, 200), (96, 300), (96, 60)])
def test_frechet_distance(dim, n):
  """Their square root is of a product that is singular for 60 samples; 1e-4 all the same."""
  a, b = features(n, dim), features(n + 30, dim, 0.2)
  theirs = [metric_fid.fid_features_to_statistics(torch.from_numpy(x)) for x in (a, b)]
  key = metric_fid.KEY_METRIC_FID
  distance = metric_fid.fid_statistics_to_metric(*theirs, verbose=False)[key]
  ours = [frechet.moments(x) for x in (a, b)]
  np.testing.assert_allclose(ours[0].cov, theirs[0]["sigma"], rtol=1e-6, atol=1e-8)
  np.testing.assert_allclose(
    frechet.frechet_distance(*ours, allow_few=n <= dim), distance, rtol=1e-4
  )


@pytest.mark.parametrize("size, offset", [(50, 0.0), (50, 1.0), (200, 0.1)])
def test_kernel_distance(size, offset):
  x, y = features(200, 64).astype(np.float64), features(240, 64, offset).astype(np.float64)
  theirs = metric_kid.kid_features_to_metric(
    torch.from_numpy(x),
    torch.from_numpy(y),
    kid_subsets=10,
    kid_subset_size=size,
    rng_seed=2020,
    verbose=False,
  )
  mean, std = kernel.kernel_distance(x, y, subsets=10, size=size)
  np.testing.assert_allclose(mean, theirs[metric_kid.KEY_METRIC_KID_MEAN], rtol=1e-4)
  np.testing.assert_allclose(std, theirs[metric_kid.KEY_METRIC_KID_STD], rtol=1e-4)


@pytest.mark.parametrize("splits, scale", [(1, 1.0), (7, 10.0), (10, 0.1)])
def test_inception_score(splits, scale):
  logits = (scale * RNG.standard_normal((205, 30))).astype(np.float32)
  theirs = metric_isc.isc_features_to_metric(torch.from_numpy(logits), splits, shuffle=False)
  mean, std = inception_score.inception_score(logits, splits=splits)
  np.testing.assert_allclose(mean, theirs[metric_isc.KEY_METRIC_ISC_MEAN], rtol=1e-5)
  np.testing.assert_allclose(std, theirs[metric_isc.KEY_METRIC_ISC_STD], rtol=1e-5, atol=1e-12)


def real_and_fake(kind):
  if kind == "duplicates":  # copies of real in fake, and rows that are there two or three times
    real, fake = features(300, 32), features(280, 32, 0.3)
    return np.concatenate([real, real[:60], real[:30]]), np.concatenate([fake, real[::7], fake[:9]])
  if kind == "grid":  # whole numbers, exact for both: most balls have points on their surface
    return tuple(RNG.integers(low, low + 5, (400, 4)).astype(np.float32) for low in (0, 2))
  dim = {"narrow": 8, "wide": 256}[kind]
  return features(400, dim), features(350, dim, 0.1)


@pytest.mark.parametrize("save_cpu_ram", [False, True])
@pytest.mark.parametrize("k", [1, 3])
@pytest.mark.parametrize("kind", ["narrow", "wide", "duplicates", "grid"])
def test_precision_and_recall(kind, k, save_cpu_ram):
  real, fake = real_and_fake(kind)
  theirs = metric_prc.prc_features_to_metric(
    torch.from_numpy(fake),
    torch.from_numpy(real),
    prc_neighborhood=k,
    prc_batch_size=150,
    save_cpu_ram=save_cpu_ram,
    verbose=False,
  )
  ours = precision_recall.precision_recall(real, fake, k=k)
  assert 0.0 < ours["precision"] < 1.0
  for name, n in (("precision", len(fake)), ("recall", len(real))):
    count = theirs[name] * n  # their shares are float32
    assert abs(count - round(count)) < 1e-3 and round(ours[name] * n) == round(count), name

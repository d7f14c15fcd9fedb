"""The mutual information gap and active units against closed forms and scikit-learn."""

import numpy as np
import pytest
from sklearn.metrics import mutual_info_score

from jaxgen.metrics import disentanglement

RNG = np.random.default_rng(0)
LEVELS = np.array([2, 3, 5])
GRID = np.stack(np.meshgrid(*map(np.arange, LEVELS), indexing="ij"), -1).reshape(-1, 3)
FACTORS = np.repeat(GRID, 100, axis=0)  # every combination equally often: independent


def test_a_code_that_is_the_factors_has_all_the_gap():
  """Also in another order, scale and sign, beside a latent of nothing: I is H = log of levels."""
  code = np.stack([-2.0 * FACTORS[:, 2], 0.1 * FACTORS[:, 0], FACTORS[:, 1] + 7.0], axis=1)
  code = np.concatenate([code, np.zeros((len(code), 1))], axis=1)
  found = disentanglement.mutual_information_gap(code, FACTORS)
  np.testing.assert_allclose(found["MIG"], 1.0, rtol=1e-12)
  expected = np.zeros((4, 3))
  expected[[1, 2, 0], [0, 1, 2]] = np.log(LEVELS)
  np.testing.assert_allclose(found["information"], expected, atol=1e-12)


def test_two_latents_that_know_the_same_have_no_gap():
  """The first factor is known twice, the others once: MIG = (0 + 1 + 1) / 3."""
  code = np.concatenate([FACTORS, FACTORS[:, :1]], axis=1).astype(float)
  found = disentanglement.mutual_information_gap(code, FACTORS)
  np.testing.assert_allclose(found["MIG"], 2.0 / 3.0, rtol=1e-12)


def test_half_of_a_factor_in_closed_form():
  """A latent that tells 0, 1 from 2, 3 of one factor of four levels: log 2 of log 4 nats."""
  factor = np.repeat(np.arange(4), 50)[:, None]
  code = np.concatenate([factor >= 2, np.zeros_like(factor)], axis=1).astype(float)
  found = disentanglement.mutual_information_gap(code, factor)
  np.testing.assert_allclose(found["MIG"], 0.5, rtol=1e-12)
  np.testing.assert_allclose(found["information"], [[np.log(2.0)], [0.0]], atol=1e-12)


def test_noise_and_entangled_codes_are_low():
  """Independent noise has the bias of its bins; a rotation mixes all factors in all latents."""
  noise = RNG.normal(size=FACTORS.shape)
  assert disentanglement.mutual_information_gap(noise, FACTORS)["MIG"] < 0.02
  scaled = (FACTORS - FACTORS.mean(0)) / FACTORS.std(0)
  mixed = scaled @ np.linalg.qr(RNG.normal(size=(3, 3)))[0]
  apart = disentanglement.mutual_information_gap(scaled + 0.05 * noise, FACTORS)["MIG"]
  assert apart > 0.95
  assert disentanglement.mutual_information_gap(mixed, FACTORS)["MIG"] < 0.5 * apart


@pytest.mark.parametrize("bins", [2, 20, 50])
def test_information_is_that_of_scikit_learn(bins):
  """Of histograms as disentanglement_lib makes them, and MIG from them, a factor at a time."""
  code = RNG.normal(size=(len(FACTORS), 4)) + FACTORS[:, [0, 1, 2, 0]] * [1.0, 0.5, 0.8, 0.3]
  found = disentanglement.mutual_information_gap(code, FACTORS, bins=bins)
  cells = [np.digitize(z, np.histogram(z, bins)[1][:-1]) for z in code.T]
  theirs = np.array([[mutual_info_score(v, z) for v in FACTORS.T] for z in cells])
  np.testing.assert_allclose(found["information"], theirs, rtol=1e-10, atol=1e-12)
  gaps = [np.sort(i)[-1] - np.sort(i)[-2] for i in theirs.T]
  expected = np.mean([g / mutual_info_score(v, v) for g, v in zip(gaps, FACTORS.T, strict=True)])
  np.testing.assert_allclose(found["MIG"], expected, rtol=1e-10)


def test_names_of_levels_do_not_matter():
  code = RNG.normal(size=FACTORS.shape) + FACTORS
  found = disentanglement.mutual_information_gap(code, FACTORS)
  named = disentanglement.mutual_information_gap(code, 100 - 7 * FACTORS)
  np.testing.assert_allclose(named["information"], found["information"], rtol=1e-10)


def test_active_units_are_those_whose_mean_varies():
  """Standard deviations 1, 0.2, 0.05 and 0: variances above 0.01 are two, above 0.001 three."""
  unit = np.tile([-1.0, 1.0], 50)[:, None]  # of variance 1 exactly
  mean = 5.0 + unit * [1.0, 0.2, 0.05, 0.0]
  assert disentanglement.active_units(mean) == 2
  assert disentanglement.active_units(mean, threshold=1e-3) == 3
  assert disentanglement.active_units(mean, threshold=0.9) == 1


@pytest.mark.parametrize(
  "change, words",
  [
    ({"mean": np.zeros(3)}, r"mean has shape \(3,\): expected \[n, D\]"),
    ({"mean": np.full((3000, 3), np.nan)}, "mean has values that are not finite"),
    ({"mean": np.zeros((3000, 1))}, r"mean.shape=\(3000, 1\): expected at least two latents"),
    ({"factors": FACTORS[:-1]}, r"factors.shape=\(2999, 3\): expected \[3000, F\]"),
    ({"factors": FACTORS[:, 0]}, r"factors.shape=\(3000,\): expected \[3000, F\]"),
    ({"factors": FACTORS + 0.5}, "factors.dtype='float64': expected integers"),
    ({"factors": FACTORS * [1, 0, 1]}, r"factors that never vary=\[1\]: expected none"),
    ({"bins": 1}, "bins=1: expected a whole number, 2 or more"),
  ],
)
def test_bad_arrays_are_refused(change, words):
  args = {"mean": RNG.normal(size=FACTORS.shape), "factors": FACTORS, "bins": 20, **change}
  with pytest.raises(ValueError, match=words):
    disentanglement.mutual_information_gap(**args)


def test_a_negative_threshold_is_refused():
  with pytest.raises(ValueError, match="threshold=-1.0: expected a finite number, 0 or more"):
    disentanglement.active_units(np.zeros((3, 2)), threshold=-1.0)

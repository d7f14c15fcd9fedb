"""Measures of latents, on methods whose numbers are known."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen.core import method
from jaxgen.data import sources
from jaxgen.metrics import evaluation, latents

KEY = jax.random.key(0)
N = 300
SIGN = np.random.RandomState(0).choice([-1.0, 1.0], N).astype(np.float32)
IMAGE = np.broadcast_to(SIGN[:, None, None, None], (N, 2, 2, 1))
FACTORS = np.stack([SIGN > 0, np.arange(N) % 3], axis=1).astype(np.int32)
SOURCE = sources.Arrays({"image": IMAGE, "factors": FACTORS})
SIGN_OF = lambda batch: batch["image"][:, 0, 0, 0]


def measured(name, source=SOURCE, **fns):
  """{label: {"value", "how", ...}} of a method that has these functions."""
  made = method.Method(init=None, fns=fns)
  data = evaluation.Data(source, "signs", "test", N)
  return evaluation.of_method([name], made, method.Vars({}), data, KEY, 0, 64)


def test_reconstruction_error_and_kl_by_group():
  encode = lambda vars, batch, keys: batch["image"]
  found = measured("mse", encode=encode, decode=lambda vars, z: {"image": 0.5 * z})["MSE"]
  assert found["value"] == pytest.approx(0.25) and found["n"] == N
  kl = lambda vars, batch, keys: {"kl": jnp.stack([jnp.ones(len(keys)), 2.0 + SIGN_OF(batch)], 1)}
  found = measured("kl", bound=kl)["KL, nats"]
  assert found["value"] == pytest.approx(3.0 + SIGN.mean(), rel=1e-5)
  assert found["how"].endswith(f"by group 1, {2.0 + SIGN.mean():.3g}")


def test_active_units_and_the_gap_of_one_latent_that_has_a_factor_and_one_that_has_none():
  def posterior(vars, batch, keys):
    mean = jnp.stack([SIGN_OF(batch), 0.01 * SIGN_OF(batch)], axis=1)
    return mean, jnp.zeros_like(mean)

  found = measured("active_units", posterior=posterior)["active units"]
  assert found["value"] == 1 and "of 2, variance of means above 0.01" in found["how"]
  first = sources.Arrays({"image": IMAGE, "factors": FACTORS[:, :1]})
  twins = measured("mig", first, posterior=posterior)["MIG"]["value"]
  np.testing.assert_allclose(twins, 0.0, atol=1e-6)  # both say all of the factor

  def apart(vars, batch, keys):
    mean, log_var = posterior(vars, batch, keys)
    return mean.at[:, 1].set(0.0), log_var

  found = measured("mig", first, posterior=apart)["MIG"]["value"]
  np.testing.assert_allclose(found, 1.0, atol=1e-6)


def test_codes_in_use():
  def encode(vars, batch, keys):
    return jnp.where(SIGN_OF(batch) > 0, 3, 7)[:, None, None] * jnp.ones((1, 2, 2), jnp.int32)

  found = measured("codebook", encode=encode)
  assert found["codes used"]["value"] == 2
  p = (SIGN > 0).mean()
  entropy = -p * np.log(p) - (1 - p) * np.log(1 - p)
  assert found["perplexity"]["value"] == pytest.approx(np.exp(entropy), rel=1e-6)


def test_what_is_missing_is_named():
  with pytest.raises(ValueError, match="measures='kl': expected others: this model has no bound"):
    measured("kl")
  with pytest.raises(ValueError, match="codebook.*: this model's latents are no codes"):
    measured("codebook", encode=lambda vars, batch, keys: batch["image"])
  bare = sources.Arrays({"image": IMAGE})
  with pytest.raises(ValueError, match="expected one with factors, for mig"):
    measured("mig", bare, posterior=None)
  assert {label for m in latents.MEASURES.values() for label in m.labels} <= evaluation.labels()

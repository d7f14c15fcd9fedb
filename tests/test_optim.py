"""The optimizer helper and the moving averages against closed forms."""

import chex
import golden
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen.core import optim


def rates(updates=10, **numbers):
  """Learning rates of successive updates: Adam's first update has length lr for any gradient."""
  tx = optim.adam(lr=0.1, b1=0.0, b2=0.0, eps=1e-12, **numbers)
  params, sizes = {"w": jnp.ones(())}, []
  state = tx.init(params)
  for _ in range(updates):
    step, state = tx.update({"w": jnp.float32(3.0)}, state, params)
    sizes.append(-float(step["w"]))
  return sizes


def test_warmup_then_linear_decay():
  expected = [0.0, 0.05, 0.1, 0.075, 0.05, 0.025, 0.0, 0.0]
  np.testing.assert_allclose(rates(8, warmup=2, decay="linear", steps=6), expected, atol=1e-6)
  np.testing.assert_allclose(rates(3), [0.1] * 3, rtol=1e-6)
  np.testing.assert_allclose(rates(4, warmup=2), [0.0, 0.05, 0.1, 0.1], atol=1e-6)


def test_cosine_decay():
  expected = 0.05 * (1.0 + np.cos(np.pi * np.arange(6) / 5))
  np.testing.assert_allclose(rates(6, decay="cosine", steps=5), expected, atol=1e-6)


def test_clipping_is_by_global_norm():
  tx = optim.adam(lr=1.0, clip=1.0, eps=1.0)
  params = {"a": jnp.zeros(2), "b": jnp.zeros(2)}
  grads = {"a": jnp.array([3.0, 0.0]), "b": jnp.array([0.0, 4.0])}
  step, _ = tx.update(grads, tx.init(params), params)
  clipped = np.array([0.6, 0.8])  # of norm 5; eps = 1 keeps Adam from undoing the scale
  np.testing.assert_allclose([-step["a"][0], -step["b"][1]], clipped / (clipped + 1.0), rtol=1e-5)


def test_a_rate_can_end_above_zero():
  for decay in ("linear", "cosine"):
    found = rates(8, decay=decay, steps=5, final=0.02)
    np.testing.assert_allclose([found[0], *found[5:]], [0.1, 0.02, 0.02, 0.02], rtol=1e-5)
  half = rates(6, decay="cosine", steps=4, final=0.02)[2]
  np.testing.assert_allclose(half, 0.06, rtol=1e-5)


def test_a_gradient_above_the_limit_changes_nothing_but_the_count():
  """The limit is on the norm before it is clipped."""
  plain, tx = optim.adam(lr=0.1, clip=1.0), optim.adam(lr=0.1, clip=1.0, skip=5.0)
  params = {"w": jnp.ones(2)}
  before = tx.init(params)
  good, bad = {"w": jnp.array([3.0, 4.0])}, {"w": jnp.array([3.0, 4.1])}
  step, state = tx.update(bad, before, params)
  assert not step["w"].any() and state.skipped == 1
  chex.assert_trees_all_equal(state.inner, before.inner)
  step, twice = tx.update({"w": jnp.array([jnp.nan, 1.0])}, state, params)
  assert not step["w"].any() and twice.skipped == 2
  step, state = tx.update(good, state, params)
  wanted, inner = plain.update(good, plain.init(params), params)
  chex.assert_trees_all_equal((step, state.inner, state.skipped), (wanted, inner, jnp.int32(1)))


def test_adamax_divides_by_the_largest_gradient():
  """arXiv:1412.6980, Alg. 2: u = max(b2 u, |g|)."""
  tx, params = optim.adamax(lr=0.1, b1=0.5, b2=0.5, eps=1e-12), {"w": jnp.zeros(())}
  state, m, u = tx.init(params), 0.0, 0.0
  for i, g in enumerate((3.0, -1.0, 0.5), 1):
    step, state = tx.update({"w": jnp.float32(g)}, state, params)
    m, u = 0.5 * m + 0.5 * g, max(0.5 * u, abs(g))
    np.testing.assert_allclose(step["w"], -0.1 * m / (1.0 - 0.5**i) / u, rtol=1e-5)


def test_weight_decay_is_decoupled():
  params = {"w": jnp.full(3, 2.0)}
  tx = optim.adam(lr=0.1, weight_decay=0.5)
  step, _ = tx.update({"w": jnp.zeros(3)}, tx.init(params), params)
  np.testing.assert_allclose(step["w"], -0.1 * 0.5 * 2.0, rtol=1e-6)
  assert isinstance(tx, optax.GradientTransformation)


@pytest.mark.parametrize(
  "numbers, words",
  [
    (dict(lr=float("nan")), "tx.lr=nan: expected a finite number above 0"),
    (dict(lr=-1.0), "tx.lr=-1.0"),
    (dict(lr=0.1, b1=1.0), "tx.b1=1.0: expected at least 0 and less than 1"),
    (dict(lr=0.1, clip=-1.0), "tx.clip=-1.0"),
    (dict(lr=0.1, decay="exp"), "tx.decay='exp': expected linear, cosine or an empty string"),
    (dict(lr=0.1, decay="linear", warmup=5, steps=5), "tx.steps=5: expected more updates than"),
  ],
)
def test_bad_numbers_are_refused(numbers, words):
  with pytest.raises(ValueError, match=words):
    optim.adam(**numbers)


@pytest.mark.parametrize(
  "ema, words",
  [
    (1.0, "ema.decay=1.0"),
    ({"profile": "warmpu"}, "ema.profile='warmpu': expected one of fixed, warmup, power_law"),
    ({"profile": "power_law", "sigma_rel": 0.3}, "ema.sigma_rel=0.3: expected between 0 and"),
  ],
)
def test_bad_averages_are_refused(ema, words):
  with pytest.raises(ValueError, match=words):
    optim.averages("net", ema)


def test_no_average_is_no_average():
  assert optim.averages("net", 0.0) == {}
  assert optim.averages("net", 0.9)["net_ema"].decay(5) == 0.9


def test_power_law_weights_are_a_power_of_time():
  """theta_bar(T) = sum of tau^gamma theta(tau) as far as a discrete sum is an integral."""
  gamma = optim.power_law_exponent(0.1)
  decay, mean = optim.power_law(sigma_rel=0.1), 0.0
  for step in range(2000):
    mean = decay(step) * mean + (1.0 - decay(step)) * (step + 1) / 2000
  np.testing.assert_allclose(mean, (gamma + 1.0) / (gamma + 2.0), rtol=1e-3)
  assert decay(0) == 0.0  # the random start is forgotten


def test_golden_warmup():
  x, close = golden.load("ema_warmup_decay")
  # Their counter is one ahead, and their first two decays are 0.
  close(optim.warmup(decay=0.9999)(np.maximum(x["in.step"] - 1.0, 0.0)), "decay")


def test_golden_power_law():
  x, close = golden.load("edm2_phema")
  gamma = np.array([optim.power_law_exponent(s) for s in x["in.std"]])
  close(gamma, "exp")
  t = np.array([64, 6400, 64000]) / 64 - 1.0  # updates of 64 images before this one
  close(np.stack([optim.power_law(sigma_rel=s)(t) for s in x["in.std"]]), "beta")

"""Couplings: exact assignment, Sinkhorn's plan, and the same rows on any number of devices."""

import functools

import chex
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from scipy import optimize

from jaxgen import noise
from jaxgen.core import axis
from jaxgen.objectives import couplings

KEY = jax.random.key
RNG = np.random.RandomState(0)
X0, X1 = RNG.randn(16, 1, 2, 3).astype(np.float32), RNG.rand(16, 1, 2, 3).astype(np.float32)


def keys(seed=0, n=16):
  return noise.rows(KEY(seed), n)


entropic = functools.partial(couplings.entropic, reg=0.5)
EVERY = {
  "independent": couplings.independent,
  "shuffled": couplings.shuffled,
  "optimal": couplings.optimal,
  "entropic": entropic,
}
every_coupling = pytest.mark.parametrize("couple", EVERY.values(), ids=EVERY)
plan_of = jax.jit(couplings.optimal_plan)
sinkhorn = jax.jit(couplings.sinkhorn_plan, static_argnums=(2, 3, 4))


def cloud(n, seed, kind):
  """Pairs of sets: normal, on a small grid (ties and duplicates), all one point, or far away."""
  rng = np.random.RandomState(seed)
  x0, x1 = rng.randn(n, 3), 0.5 * rng.randn(n, 3) + 1.0
  if kind == "grid":
    x0, x1 = rng.randint(3, size=(n, 3)), rng.randint(3, size=(n, 3))
  if kind == "one":
    x0, x1 = np.ones((n, 3)), np.ones((n, 3))
  if kind == "far":
    x0, x1 = x0 * 1e-2 + 100.0, x1 * 1e-2 + 100.0
  return x0.astype(np.float32), x1.astype(np.float32)


def cost_of(x0, x1):
  """float64 [n, m]."""
  x0, x1 = (np.asarray(x, np.float64).reshape(len(x), -1) for x in (x0, x1))
  return ((x0[:, None] - x1[None]) ** 2).sum(-1)


@pytest.mark.parametrize("kind", ["normal", "grid", "one", "far"])
@pytest.mark.parametrize("n", [1, 5, 64])
@pytest.mark.evidence("R06", "M")
def test_optimal_plans_are_scipys(n, kind):
  for seed in range(5):
    x0, x1 = cloud(n, seed, kind)
    plan, cost = np.asarray(plan_of(x0, x1)), cost_of(x0, x1)
    assert ((plan > 0).sum(0) == 1).all() and ((plan > 0).sum(1) == 1).all()
    np.testing.assert_allclose(plan.sum(), 1.0, rtol=1e-6)
    best = cost[optimize.linear_sum_assignment(cost)].mean()
    np.testing.assert_allclose((plan * cost).sum(), best, rtol=1e-5)


@pytest.mark.evidence("R06", "G")
def test_optimal_plan_is_that_of_torchcfm():
  given, close = golden.load("cfm_ot_plan")
  close(plan_of(given["in.x0"].astype(np.float32), given["in.x1"].astype(np.float32)), "plan")


@pytest.mark.evidence("R06", "M")
def test_a_translation_is_found_again():
  """Its pairs are optimal: after them, the target x1 - x0 of every row is the translation."""
  x0, x1 = jax.jit(couplings.optimal)(X0, X0[::-1] + 3.0, keys())
  np.testing.assert_allclose(x1 - x0, np.full_like(X0, 3.0), atol=1e-6)


def test_squared_costs_keep_their_digits():
  """Points 1e-3 apart at 100: a product of matrices in float32 would have no digit left."""
  x0 = np.full((3, 2), 100.0, np.float32)
  x1 = x0 + np.float32(2**-10) * np.arange(3, dtype=np.float32)[:, None]
  np.testing.assert_allclose(couplings.squared_cost(x0, x1), cost_of(x0, x1), rtol=1e-6)
  assert couplings.squared_cost(X0, X1[:5]).shape == (16, 5)


def reference(cost, reg, sweeps=20_000):
  """Sinkhorn's plan by scaling, in float64."""
  kernel, n = np.exp(-(cost - cost.min()) / reg), len(cost)
  v = np.ones(n)
  for _ in range(sweeps):
    u = 1.0 / n / (kernel @ v)
    v = 1.0 / n / (kernel.T @ u)
  return u[:, None] * kernel * v[None]


@pytest.mark.parametrize("reg", [0.1, 1.0, 10.0])
@pytest.mark.evidence("R06", "M")
def test_sinkhorn_plans_converge(reg):
  ours = np.asarray(sinkhorn(X0, X1, reg, 20_000, 1e-5))
  np.testing.assert_allclose(ours, reference(cost_of(X0, X1), reg), atol=1e-5)  # 1/16 each row
  np.testing.assert_allclose(ours.sum(0), 1 / 16, rtol=1e-5)
  assert couplings.marginal_error(ours) <= 1.2e-5  # float32


@pytest.mark.evidence("R06", "M")
def test_sinkhorn_goes_from_independent_to_optimal():
  cost, best = cost_of(X0, X1), np.asarray(plan_of(X0, X1))
  np.testing.assert_allclose(sinkhorn(X0, X1, 1e5, 100, 1e-4), 1 / 256, rtol=1e-3)
  sharp = np.asarray(sinkhorn(X0, X1, 3e-3, 100_000, 1e-3))
  np.testing.assert_allclose((sharp * cost).sum(), (best * cost).sum(), rtol=1e-3)
  np.testing.assert_allclose(sharp, best, atol=1e-3)


def test_a_plan_that_does_not_converge_is_no_plan():
  with pytest.raises(ValueError, match="iterations=2: the rows of the plan are off by .*1e-05"):
    couplings.sinkhorn_plan(X0, X1, 0.01, 2, 1e-5)
  assert np.isnan(sinkhorn(X0, X1, 0.01, 2, 1e-5)).all()
  x0, _ = jax.jit(functools.partial(couplings.entropic, reg=0.01, iterations=2))(X0, X1, keys())
  assert np.isnan(x0).all()


@pytest.mark.evidence("R06", "M")
def test_entropic_starts_are_drawn_from_the_plan():
  """4000 draws an x1: shares within five standard deviations of the plan's."""
  x0, x1 = jnp.asarray(X0[:8]), jnp.asarray(X1[:8])
  many = jax.random.split(KEY(1), (4000, 8))
  drawn = jax.jit(jax.vmap(lambda k: entropic(x0, x1, k)[0]))(many)
  shares = (drawn[:, None] == x0[None, :, None]).all((-1, -2, -3)).mean(0)  # [i, j]
  wanted = 8 * np.asarray(sinkhorn(x0, x1, 0.5, 2000, 1e-2))
  assert (np.abs(shares - wanted) <= 5 * np.sqrt(wanted * (1 - wanted) / 4000) + 1e-4).all()
  assert wanted.max() < 0.99  # something to draw


@every_coupling
def test_data_stay_in_their_order_and_starts_come_from_the_batch(couple):
  x0, x1 = jax.jit(couple)(X0, X1, keys())
  np.testing.assert_array_equal(x1, X1)
  match = (np.asarray(x0)[:, None] == X0[None]).all((-1, -2, -3))  # [new, old]
  assert (match.sum(1) == 1).all()
  if couple is not entropic:
    assert (match.sum(0) == 1).all()  # each start once
  assert (match.trace() == 16) == (couple is couplings.independent)


def test_shuffles_are_new_for_new_keys():
  first, second = (couplings.shuffled(X0, X1, keys(i))[0] for i in (0, 1))
  assert (first != second).any()


@pytest.mark.parametrize("n", [2, 4])
@every_coupling
def test_devices_take_the_rows_of_one(couple, n):
  mesh = Mesh(np.asarray(jax.devices()[:n]), (axis.NAME,))
  rows = P(axis.NAME)
  many = jax.shard_map(couple, mesh=mesh, in_specs=rows, out_specs=rows, check_vma=False)
  ours, theirs = jax.jit(many)(X0, X1, keys()), jax.jit(couple)(X0, X1, keys())
  chex.assert_trees_all_equal(ours, theirs)


@pytest.mark.evidence("R06", "M")
def test_transport_costs_are_ordered():
  cost = lambda couple: float(np.mean(np.diff(jax.jit(couple)(X0, X1, keys()), axis=0) ** 2))
  soft = functools.partial(couplings.entropic, reg=1.0)
  assert cost(couplings.optimal) < cost(soft) < cost(couplings.independent)


def test_no_gradient_passes_through_the_choice():
  """A permutation: what each start contributes is that of its new row, and x1 nothing."""
  for couple in (couplings.optimal, entropic):
    total = lambda x0, x1, k, couple=couple: jnp.sum(couple(x0, x1, k)[0] * X1)
    by_x0, by_x1 = jax.jit(jax.grad(total, (0, 1)))(X0, X1, keys())
    np.testing.assert_allclose(by_x0.sum(), X1.sum(), rtol=1e-5)
    assert (by_x1 == 0).all()


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: couplings.optimal(X0, X1[:8], keys()), "x0 has 16 rows: expected 8, as x1"),
    (lambda: couplings.squared_cost(X0, X1[..., :2]), r"shape \(1, 2, 3\): expected \(1, 2, 2\)"),
    (lambda: couplings.optimal_plan(X0[:3], X1), "x0 has 3 rows: expected 16"),
    (
      lambda: couplings.entropic(X0, X1, keys(), reg=0.0),
      "reg=0.0: expected a finite number above",
    ),
    (lambda: couplings.sinkhorn_plan(X0, X1, -1.0), "reg=-1.0"),
    (lambda: couplings.sinkhorn_plan(X0, X1, 1.0, 0), "iterations=0"),
    (lambda: couplings.sinkhorn_plan(X0, X1, 1.0, 10, 0.0), "tolerance=0.0"),
  ],
)
def test_refusals(call, words):
  with pytest.raises(ValueError, match=words):
    call()

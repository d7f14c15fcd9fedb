"""Straightness, transport cost and W2: closed forms, and the flows of Gaussian data."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData

from jaxgen import paths
from jaxgen.metrics import transport
from jaxgen.samplers import ode

DATA = GaussianData()
XI = jnp.linspace(-2.0, 2.0, 9)[:, None]
adaptive = functools.partial(transport.simulate, solve=ode.adaptive)


@pytest.mark.evidence("R02", "M")
def test_a_straight_line_is_straight_and_costs_its_length():
  """In either direction of time, and over any span; what an image has is summed."""
  x = jax.random.normal(jax.random.key(0), (5, 2, 2, 3))
  v = jnp.linspace(-1.0, 2.0, 60).reshape(x.shape)

  @jax.jit
  def run(ts):
    x1, s = transport.simulate(lambda x, t: v, x, ts)
    return x1, s, transport.transport_cost(x, x1)

  for ts in (jnp.linspace(0.0, 1.0, 9), jnp.linspace(3.0, 0.5, 9) ** 2):
    x1, s, cost = run(ts)
    length = (ts[-1] - ts[0]) ** 2 * jnp.sum(v**2, (1, 2, 3))
    np.testing.assert_allclose(x1, x + (ts[-1] - ts[0]) * v, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(cost, length, rtol=1e-5)
    np.testing.assert_allclose(s / length, 0.0, atol=1e-6)


@pytest.mark.evidence("R02", "M")
def test_the_straightness_of_a_circle():
  """An arc of angle w: (w r)^2 less the square of its chord, 2 r^2 (1 - cos w)."""
  speed, x = 2.0, jnp.array([[1.0, 0.0], [0.0, -0.5], [3.0, 4.0]])
  turn = lambda x, t: speed * jnp.stack([-x[:, 1], x[:, 0]], axis=1)

  @jax.jit
  def run(ts):
    solvers = (ode.heun, ode.adaptive)
    return [transport.simulate(turn, x, ts, solve=solve)[1] for solve in solvers]

  for t0, t1 in ((0.0, 1.0), (1.5, 0.25)):
    w, r2 = speed * (t1 - t0), np.array([1.0, 0.25, 25.0])
    expected = r2 * (w**2 - 2.0 * (1.0 - np.cos(w)))
    by_steps, adaptive = run(jnp.linspace(t0, t1, 401))
    np.testing.assert_allclose(by_steps, expected, rtol=1e-4)  # of 400 steps of second order
    np.testing.assert_allclose(adaptive, expected, rtol=5e-4)  # of rtol = atol = 1e-5 a step


def quadrature(path, t0, t1):
  """S of the trajectories through XI, in float64, from the derivative of the closed form."""
  xi, t = np.asarray(XI[:, 0], np.float64), np.linspace(t0, t1, 20001)
  with jax.enable_x64(True):
    at = lambda t: DATA.at(path, t, xi)
    x, v = map(np.asarray, jax.jit(jax.vmap(lambda t: jax.jvp(at, (t,), (jnp.ones_like(t),))))(t))
  s = np.trapezoid((t1 - t0) * (v - (x[-1] - x[0]) / (t1 - t0)) ** 2, t, axis=0)
  return s, x[-1]


@pytest.mark.evidence("R02", "M")
def test_flows_of_gaussian_data_have_their_straightness_and_end():
  """On paths that run both ways."""
  known = [paths.Linear(), paths.VP(), paths.EDM(sigma_max=5.0)]

  @jax.jit
  def run():
    flows = [transport.probability_flow(DATA.field(path)) for path in known]
    starts = [DATA.at(path, jnp.float32(path.t_noise), XI) for path in known]
    return [adaptive(f.velocity, x, ts) for (f, ts), x in zip(flows, starts, strict=True)]

  for path, (x1, s) in zip(known, run(), strict=True):
    expected, end = quadrature(path, path.t_noise, path.t_data)
    np.testing.assert_allclose(x1[:, 0], end, atol=2e-4)  # of rtol = atol = 1e-5 a step
    np.testing.assert_allclose(s, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.evidence("D02", "M")
def test_the_flow_of_a_chain_is_that_of_vp():
  """Its end is right, and a solver needs as many evaluations as on VP.

  On a short chain, which VP leaves early at neither end, the flow is the chain's own.
  """
  chain, short = paths.Discrete(), paths.linear_chain(1e-3, 0.1, 30)

  @jax.jit
  def run():
    found = []
    for path in (chain, short):
      field, ts = transport.probability_flow(DATA.field(path))
      start = DATA.at(path, jnp.float32(path.t_noise), XI)
      found.append((ts, *adaptive(field.velocity, start, ts)))
    count = lambda field, ts: ode.evaluations(field.velocity, start_of_chain, ts)
    start_of_chain = DATA.at(chain, jnp.float32(1000.0), XI)
    fields = [DATA.field(paths.VP()), transport.probability_flow(DATA.field(chain))[0]]
    return found, [count(f, found[0][0]) for f in fields]

  ((ts, x1, s), (short_ts, short_x1, _)), (on_vp, moved) = run()
  np.testing.assert_allclose(ts, [1.0, 1e-3])
  expected, end = quadrature(paths.VP(), 1.0, 1e-3)
  # 3e-4: the chain ends at log(alpha^2) = -10.1, VP at -10.05, of alpha = 0.0066
  np.testing.assert_allclose(x1[:, 0], end, atol=4e-4)
  np.testing.assert_allclose(s, expected, rtol=5e-3, atol=1e-3)
  np.testing.assert_allclose(moved, on_vp, atol=6)  # a step
  path = paths.VP()
  log_snr = [paths.log_snr(path, short_ts[0]), paths.log_snr(short, jnp.float32(30.0))]
  np.testing.assert_allclose(*log_snr, rtol=1e-4)
  np.testing.assert_allclose(short_x1, DATA.at(path, short_ts[1], XI), atol=2e-4)


@pytest.mark.evidence("R02", "M")
def test_a_flow_in_one_dimension_is_optimal():
  """Its cost is W2 squared, below that of independent pairs: arXiv:2209.03003, Theorem 3.5."""
  rng, path = np.random.default_rng(0), paths.Linear()
  x0 = rng.standard_normal((500, 1)).astype(np.float32)
  field = DATA.field(path)
  x1 = jax.jit(lambda: ode.heun(field.velocity, jnp.asarray(x0), jnp.linspace(0.0, 1.0, 101)))()
  cost = transport.transport_cost(jnp.asarray(x0), x1).mean()
  np.testing.assert_allclose(transport.wasserstein(x0, x1) ** 2, cost, rtol=1e-5)
  shuffled = transport.transport_cost(jnp.asarray(x0), jnp.asarray(rng.permutation(x1))).mean()
  assert cost < shuffled
  # mean and std of x0 are those of 500 draws
  np.testing.assert_allclose(cost, DATA.mean**2 + (1.0 - DATA.std) ** 2, atol=0.1)


def test_wasserstein_is_that_of_the_best_match():
  rng = np.random.default_rng(0)
  x, y = rng.standard_normal((2, 6, 3))
  matches = itertools.permutations(range(6))
  best = min(np.sum((x[list(m)] - y) ** 2) for m in matches)
  assert transport.wasserstein(x, y) == pytest.approx(np.sqrt(best / 6), rel=1e-12)
  assert transport.wasserstein(y, x) == pytest.approx(transport.wasserstein(x, y), rel=1e-12)
  a, b = rng.standard_normal((2, 300, 1)) * [[[1.0]], [[2.0]]]
  sorted_mean = np.mean((np.sort(a[:, 0]) - np.sort(b[:, 0])) ** 2)
  assert transport.wasserstein(a, b) == pytest.approx(np.sqrt(sorted_mean), rel=1e-12)
  shift = np.array([3.0, 4.0, 0.0])
  assert transport.wasserstein(x, rng.permutation(x) + shift) == pytest.approx(5.0, rel=1e-12)
  assert transport.wasserstein(x, rng.permutation(x)) == 0.0


@pytest.mark.parametrize(
  "x, y, words",
  [
    (np.zeros((3, 2)), np.zeros((4, 2)), r"x has shape \(3, 2\) and y \(4, 2\): expected the same"),
    (np.zeros((3, 2)), np.zeros((3, 1)), r"x has shape \(3, 2\) and y \(3, 1\)"),
    (np.zeros(3), np.zeros(3), r"x has shape \(3,\): expected \[n, D\]"),
    (np.zeros((3, 2)), np.full((3, 2), np.nan), "y has values that are not finite"),
    (np.zeros((4001, 1)), np.zeros((4001, 1)), "points=4001: expected a whole number, 1 to 4000"),
  ],
)
def test_bad_points_are_refused(x, y, words):
  with pytest.raises(ValueError, match=words):
    transport.wasserstein(x, y)

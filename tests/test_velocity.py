"""Regressions on velocities, their distances, and the sampler of nearly straight flows."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData

from jaxgen import noise, paths
from jaxgen.objectives import velocity
from jaxgen.samplers import ode, straight

DATA, PATH = GaussianData(), paths.Linear()
normal = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
keys = lambda n, seed=0: noise.rows(jax.random.key(seed), n)
perceived = lambda a, b: jnp.mean((a - b) ** 2, axis=tuple(range(1, a.ndim)))  # LPIPS's place
DISTANCES = {
  "squared": velocity.squared,
  "pseudo-Huber": velocity.pseudo_huber,
  "LPIPS-Huber": velocity.lpips_huber(perceived, inverse=False),
  "LPIPS-Huber, 1/t": velocity.lpips_huber(perceived),
}
every_distance = pytest.mark.parametrize("distance", DISTANCES.values(), ids=DISTANCES)


@pytest.mark.evidence("R02", "M")
def test_the_marginal_velocity_is_the_minimum():
  """On independent pairs: the slope along a perturbation vanishes there, and not beside it."""
  exact = DATA.field(PATH).velocity

  @jax.jit
  def slope(size):
    n = 100_000
    x0, x1 = normal(0, n, 1), DATA.mean + DATA.std * normal(1, n, 1)
    fn = lambda size: lambda x, t: exact(x, t) + size * jnp.sin(3.0 * x)
    return jax.grad(lambda s: velocity.rectified_flow(fn(s), x0, x1, keys(n)).mean())(size)

  assert abs(slope(0.0)) < 0.01 < abs(slope(0.1))  # 0.003 is the error of the mean


@every_distance
@pytest.mark.evidence("R02", "M")
@pytest.mark.evidence("R04", "M")
def test_a_straight_coupling_has_no_loss(distance):
  """x1 = a x0 + b: lines that do not cross, whose velocity a function of (x_t, t) can have."""
  a, b = 0.5, 0.7

  def exact(x_t, t):
    t = paths.expand(t, x_t)
    return ((a - 1.0) * x_t + b) / (1.0 - t + a * t)  # (a - 1) x0 + b

  x0 = normal(0, 64, 3)
  loss = lambda fn: velocity.rectified_flow(fn, x0, a * x0 + b, keys(64), distance=distance)
  exact_loss, zero_loss = jax.jit(lambda: (loss(exact), loss(lambda x, t: 0.0 * x)))()
  assert exact_loss.shape == (64,)
  np.testing.assert_allclose(exact_loss, 0.0, atol=1e-6)
  assert zero_loss.min() > 1e-4


@every_distance
def test_each_row_has_its_own_loss(distance):
  """Shuffled rows, and a batch of one, give the same numbers; t is uniform, one a row."""
  x0, x1, order = normal(0, 8, 2, 2, 3), normal(1, 8, 2, 2, 3), jnp.arange(8)[::-1]
  fn = lambda x, t: jnp.sin(x) + paths.expand(t, x)
  loss = jax.jit(lambda x0, x1, keys: velocity.rectified_flow(fn, x0, x1, keys, distance=distance))
  whole, k = loss(x0, x1, keys(8)), keys(8)
  np.testing.assert_allclose(loss(x0[order], x1[order], k[order]), whole[order], rtol=1e-5)
  np.testing.assert_allclose(loss(x0[3:4], x1[3:4], keys(8)[3:4]), whole[3:4], rtol=1e-5)


def test_pairs_are_joined_by_lines():
  """What the network sees, by hand, of low precision data too; and the times that it draws."""
  x0, x1 = normal(0, 4, 3).astype(jnp.bfloat16), normal(1, 4, 3).astype(jnp.bfloat16)
  seen, t = [], jnp.array([0.0, 0.25, 0.5, 1.0])
  fn = lambda x, t: seen.append((x, t)) or jnp.zeros_like(x)
  loss = velocity.rectified_flow(fn, x0, x1, keys(4), t=t)
  a, b = np.asarray(x0, np.float32), np.asarray(x1, np.float32)
  np.testing.assert_allclose(seen[0][0], a + np.asarray(t)[:, None] * (b - a), atol=1e-6)
  np.testing.assert_allclose(loss, ((b - a) ** 2).mean(-1), rtol=1e-6)
  assert loss.dtype == jnp.float32
  velocity.rectified_flow(fn, normal(0, 4096, 1), normal(1, 4096, 1), keys(4096))
  counts, _ = np.histogram(seen[1][1], bins=8, range=(0.0, 1.0))
  assert counts.sum() == 4096 and abs(counts / 512 - 1.0).max() < 0.2  # 4.5 standard deviations
  with pytest.raises(ValueError, match=r"x0.shape=\(4, 1\): expected that of x1, \(4, 3\)"):
    velocity.rectified_flow(fn, normal(0, 4, 1), normal(1, 4, 3), keys(4))


def test_flow_matching_is_rectified_flow_of_independent_pairs():
  eps, x, t = normal(0, 16, 3), normal(1, 16, 3), jnp.linspace(0.0, 1.0, 16)
  fn = lambda x, t: jnp.sin(x) + paths.expand(t, x)
  a = velocity.flow_matching(fn, x, keys(16), t=t, eps=eps)
  np.testing.assert_allclose(a, velocity.rectified_flow(fn, eps, x, keys(16), t=t), rtol=1e-6)


@pytest.mark.evidence("R04", "M")
def test_pseudo_huber_by_hand_and_in_its_limits():
  """sqrt(|e|^2 + C^2) - C over all pixels, C = c d: squares near 0, lengths far away."""
  d, c = 12, 0.00054
  C, e = c * d, normal(0, 5, 2, 2, 3)
  e = e / jnp.sqrt((e**2).sum((1, 2, 3), keepdims=True))  # of length 1
  huber = jax.jit(lambda s, **k: d * velocity.pseudo_huber(s * e, 0.0 * e, e, jnp.ones(5), **k))
  np.testing.assert_allclose(huber(0.01), np.sqrt(0.01**2 + C**2) - C, rtol=1e-5)
  np.testing.assert_allclose(huber(1e3), 1e3 - C, rtol=1e-6)
  # at a twentieth of C the next term of the series is 0.06%
  np.testing.assert_allclose(huber(0.05 * C), 0.05**2 * C / 2.0, rtol=2e-3)
  np.testing.assert_allclose(huber(0.01, c=0.1), np.sqrt(0.01**2 + 1.2**2) - 1.2, rtol=2e-3)
  slope = lambda s: jax.grad(lambda s: huber(s)[0])(s)
  np.testing.assert_allclose(slope(0.01), 0.01 / np.sqrt(0.01**2 + C**2), rtol=1e-5)
  assert slope(0.0) == 0.0 and abs(slope(1e3) - 1.0) < 1e-6


@pytest.mark.evidence("R04", "M")
def test_lpips_huber_by_hand():
  """As its code has it, whose times run from data to noise: z_t = (1 - s) x + s z, s = 1 - t."""
  x, z, out = (normal(i, 4, 2, 2, 3) for i in range(3))  # out: the network's z - x
  s = jnp.array([0.1, 0.4, 0.7, 0.9])
  wide = s[:, None, None, None]
  z_t = (1.0 - wide) * x + wide * z
  seen = []
  lpips = lambda a, b: seen.append((a, b)) or perceived(a, b)
  d, C = 12, 0.00054 * 12
  huber = (np.sqrt(((out - (z - x)) ** 2).sum((1, 2, 3)) + C**2) - C) / d
  found = perceived(z_t - wide * out, x)
  fn = lambda *_: -out
  loss = functools.partial(velocity.rectified_flow, fn, z, x, keys(4), t=1.0 - s)
  plain = loss(distance=velocity.lpips_huber(lpips, inverse=False))
  np.testing.assert_allclose(plain, (1.0 - s) * huber + found, rtol=1e-5)
  np.testing.assert_allclose(seen[0][0], z_t - wide * out, atol=1e-5)
  np.testing.assert_allclose(seen[0][1], x, atol=1e-6)
  inverse = loss(distance=velocity.lpips_huber(lpips))
  np.testing.assert_allclose(inverse, (1.0 - s) * huber + found / s, rtol=1e-5)
  with pytest.raises(ValueError, match="c=0.0: expected a finite number above 0"):
    velocity.lpips_huber(lpips, c=0.0)


def test_times_of_steps():
  """0, 1/k, ..., (k - 1)/k, equally often; with k = 1 the loss is the error of one Euler step."""
  u = (jnp.arange(1000) + 0.5) / 1000.0
  values, counts = np.unique(velocity.step_times(u, 4), return_counts=True)
  np.testing.assert_array_equal(values, [0.0, 0.25, 0.5, 0.75])
  np.testing.assert_array_equal(counts, 250)
  assert (velocity.step_times(u, 1) == 0.0).all()
  with pytest.raises(ValueError, match="k=0: expected a whole number, 1 or more"):
    velocity.step_times(u, 0)
  x0, x1, fn = normal(0, 6, 2), normal(1, 6, 2), lambda x, t: jnp.sin(x)
  one = velocity.rectified_flow(fn, x0, x1, keys(6), t=velocity.step_times(u[:6], 1))
  step = ode.euler(fn, x0, jnp.array([0.0, 1.0]))
  np.testing.assert_allclose(one, ((step - x1) ** 2).mean(-1), rtol=1e-5)


@pytest.mark.evidence("R04", "M")
def test_the_straight_sampler():
  """By hand, as its code steps; Euler's method in one step and on straight lines, not elsewhere."""
  ts, x0 = jnp.array([0.0, 0.2, 0.7, 1.0]), normal(0, 4, 3)
  fn = lambda x, t: jnp.sin(2.0 * x) + paths.expand(t, x)
  field = paths.velocity_field(PATH, fn)
  ours = jax.jit(lambda fn, ts: straight.straight(fn, x0, keys(4), ts), static_argnums=0)

  x = x0
  for t, s in zip(ts[:-1], ts[1:], strict=True):
    x1 = x + (1.0 - t) * fn(x, jnp.full(4, t))
    x = s * x1 + (1.0 - s) * x0
  np.testing.assert_allclose(ours(field, ts), x, atol=1e-5)
  assert abs(x - ode.euler(fn, x0, ts)).max() > 0.01
  np.testing.assert_allclose(ours(field, ts[::3]), ode.euler(fn, x0, ts[::3]), atol=1e-6)

  line = lambda x, t: (0.7 - 0.5 * x) / (1.0 - 0.5 * paths.expand(t, x))  # x1 = x0 / 2 + 0.7
  np.testing.assert_allclose(ours(paths.velocity_field(PATH, line), ts), 0.5 * x0 + 0.7, atol=1e-6)
  with pytest.raises(ValueError, match="t=2.0: expected 0 to 1.0, the times of Linear"):
    straight.straight(field, x0, keys(4), jnp.array([0.0, 2.0]))


def test_the_straight_sampler_on_a_curved_path():
  """alpha x1 + sigma x0 for a constant prediction x1, whatever the steps."""
  path, x0, x1 = paths.Cosine(), normal(0, 4, 3), normal(1, 4, 3)
  ts = jnp.array([1.0, 0.6, 0.3])
  start = path.sigma(ts[0]) * x0
  x = straight.straight(paths.x_field(path, lambda *_: x1), start, keys(4), ts)
  np.testing.assert_allclose(x, paths.interpolate(path, x1, x0, 0.3), atol=1e-6)

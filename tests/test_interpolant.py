"""Stochastic interpolants: closed forms between Gaussians, bridges, SDEs, ends, errors."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise, paths
from jaxgen.objectives import interpolant, velocity
from jaxgen.samplers import sde

keys = lambda n, seed=0: noise.rows(jax.random.key(seed), n)
START, DATA = (0.7, 0.5), (-0.4, 0.8)  # mean and std of two Gaussians, coupled independently
GAMMAS = {
  "none": interpolant.Constant(),
  "constant": interpolant.Constant(0.3),
  "bridge": interpolant.Bridge(0.6),
  "another": lambda t: 0.4 * jnp.sin(jnp.pi * t) ** 2,
}


def normal(seed, n=8):
  return jax.random.normal(jax.random.key(seed), (3, n, 2))


def exact(gamma, x, t):
  """(b, eta, mean, std) of the interpolant of the two Gaussians at t, a number."""
  (m0, s0), (m1, s1), t = START, DATA, jnp.asarray(t, x.dtype)
  g, d_gamma = jax.jvp(gamma, (t,), (jnp.ones_like(t),))
  mean, var = (1.0 - t) * m0 + t * m1, ((1.0 - t) * s0) ** 2 + (t * s1) ** 2 + g**2
  moving = -(1.0 - t) * s0**2 + t * s1**2 + g * d_gamma  # covariance of dx_t/dt and x_t
  return m1 - m0 + moving / var * (x - mean), g / var * (x - mean), mean, jnp.sqrt(var)


@pytest.mark.parametrize("name", GAMMAS)
@pytest.mark.evidence("R06", "M")
def test_the_velocity_is_the_derivative_and_its_minimiser_the_closed_form(name):
  """Regressing dx_t/dt and z on x_t, with many draws, gives the slopes of b and eta."""
  gamma, t = GAMMAS[name], 0.3
  x0, x1, z = jax.random.normal(jax.random.key(1), (3, 200_000, 1))
  x0, x1 = START[0] + START[1] * x0, DATA[0] + DATA[1] * x1

  @jax.jit
  def run():
    rows = jnp.full(len(x0), t)
    x_t, u = interpolant.interpolate(x0, x1, z, rows, gamma=gamma)
    at = lambda t: interpolant.interpolate(x0, x1, z, t, gamma=gamma)[0]
    derivative = jax.jvp(at, (rows,), (jnp.ones_like(rows),))[1]
    b, eta, *known = exact(gamma, x_t, t)
    slopes = [jnp.mean((target - ours) * x_t) for target, ours in ((u, b), (z, eta))]
    means = [jnp.mean(u - b), jnp.mean(z - eta)]
    return derivative - u, jnp.stack(slopes + means), [x_t.mean(), x_t.std()], known

  gap, errors, moments, known = run()
  np.testing.assert_allclose(gap, 0.0, atol=1e-5)
  np.testing.assert_allclose(errors, 0.0, atol=0.01)  # 5 errors of 200,000 draws
  np.testing.assert_allclose(moments, known, atol=0.01)


def test_losses_are_least_at_the_closed_form():
  x0, x1, _ = normal(2, 4000)
  x0, x1 = START[0] + START[1] * x0, DATA[0] + DATA[1] * x1
  gamma = GAMMAS["bridge"]

  @jax.jit
  def run(shift):
    fn = lambda i: lambda x, t: jax.vmap(lambda x, t: exact(gamma, x, t)[i])(x, t) + shift
    return [
      interpolant.velocity(fn(0), x0, x1, keys(4000), gamma=gamma).mean(),
      interpolant.denoiser(fn(1), x0, x1, keys(4000), gamma=gamma).mean(),
    ]

  low, best, high = (np.array(run(jnp.float32(s))) for s in (-0.3, 0.0, 0.3))
  # A shift by s adds s^2 = 0.09, but for draws: its sign changes by 2 s times the mean error
  np.testing.assert_allclose(0.5 * (low + high) - best, 0.09, rtol=1e-3)
  assert (best < low).all() and (best < high).all()


def test_without_noise_it_is_flow_matching():
  """The start in place of normal noise, on the straight path."""
  x0, x1, _ = normal(4)
  fn = lambda x, t: jnp.tanh(x) * paths.expand(t, x)
  ours = interpolant.velocity(fn, x0, x1, keys(8))
  theirs = velocity.flow_matching(fn, x1, keys(8), eps=x0)  # at the same random times
  np.testing.assert_allclose(ours, theirs, rtol=1e-6)


def test_the_bridge_has_the_velocity_of_schroedinger_bridge_cfm():
  """arXiv:2302.00482: (1 - 2t) / (2t (1 - t)) (x - mu) + x1 - x0."""
  x0, x1, z = normal(5)
  t = jnp.linspace(0.05, 0.95, 8)
  x_t, u = interpolant.interpolate(x0, x1, z, t, gamma=interpolant.Bridge(0.5))
  s = paths.expand(t, x0)
  mu = (1.0 - s) * x0 + s * x1
  known = (1.0 - 2.0 * s) / (2.0 * s * (1.0 - s)) * (x_t - mu) + x1 - x0
  np.testing.assert_allclose(u, known, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose((x_t - mu) / z, 0.5 * jnp.sqrt(s * (1.0 - s)) + 0.0 * z, rtol=1e-3)


def test_random_times_stay_off_the_ends_of_a_bridge():
  """The target there is infinite; noise and times are each example's own."""
  n, x = 3000, jnp.zeros((3000, 1))

  @jax.jit
  def run():
    def of(gamma):
      seen = []
      fn = lambda x, t: seen.append(t) or 0.0 * x
      few = noise.rows(jax.random.key(0), 3, 7)
      loss = interpolant.velocity(fn, x, x, keys(n), gamma=gamma)
      return seen[0], loss, interpolant.velocity(fn, x[:3], x[:3], few, gamma=gamma)

    return [of(interpolant.Bridge(t_min=0.1)), of(interpolant.Constant())]

  for low, (t, loss, alone) in zip((0.1, 0.0), jax.tree.map(np.asarray, run()), strict=True):
    assert low <= t.min() < low + 5e-3 and 1.0 - low - 5e-3 < t.max() <= 1.0 - low
    assert np.isfinite(loss).all()
    np.testing.assert_allclose(alone, loss[7:10], rtol=1e-6)
  ends = interpolant.interpolate(x, x, x + 1.0, jnp.zeros(n), gamma=interpolant.Bridge())
  assert jnp.isinf(ends[1]).all()  # why


@pytest.mark.parametrize("name", ["constant", "bridge"])
def test_sdes_between_two_data_sets_have_their_marginals(name):
  """From the start to the data and back, whatever the noise: arXiv:2303.08797, Sec. 2.3."""
  gamma, u = GAMMAS[name], jnp.linspace(0.0, 1.0, 201)
  b = lambda x, t: exact(gamma, x, t[0])[0]
  score = lambda x, t: -exact(gamma, x, t[0])[1] / gamma(t[0])
  z = jax.random.normal(jax.random.key(6), (20, 1000))

  @jax.jit
  def run():
    def of(ends, amount):
      _, _, mean, std = exact(gamma, z, ends[0])
      diffusion = lambda t: amount * jnp.ones_like(t)
      ts = ends[0] + (ends[1] - ends[0]) * u
      x = sde.bridge_sde(b, score, mean + std * z, keys(20, 7), ts, diffusion=diffusion)
      return jnp.stack([x.mean(), x.std()]), jnp.stack(exact(gamma, z, ends[1])[2:])

    ends, amounts = jnp.array([(0.02, 0.98), (0.98, 0.02)]), jnp.array([0.0, 0.18, 1.0])
    return jax.vmap(lambda e: jax.vmap(lambda a: of(e, a))(amounts))(ends)

  found, known = run()
  np.testing.assert_allclose(found, known, atol=0.02)  # 0.006 of 20,000 numbers, 0.01 of steps


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: interpolant.Constant(-1.0), "sigma=-1.0: expected a finite number, 0 or more"),
    (lambda: interpolant.Bridge(-1.0), "sigma=-1.0: expected a finite number, 0 or more"),
    (lambda: interpolant.Bridge(t_min=0.0), "t_min=0.0: expected above 0 and below 0.5"),
    (lambda: interpolant.Bridge(t_min=0.5), "t_min=0.5: expected above 0 and below 0.5"),
  ],
)
def test_bad_gammas_are_refused(call, words):
  with pytest.raises(ValueError, match=words):
    call()


@pytest.mark.evidence("R06", "G")
def test_golden_independent_conditional_flow_matching():
  x, close = golden.load("cfm_icfm")
  gamma, t = interpolant.Constant(0.1), jnp.asarray(x["in.t"])
  given = (x["in.x0"], x["in.x1"], x["in.epsilon"], t)
  x_t, u = jax.jit(lambda *a: interpolant.interpolate(*a, gamma=gamma))(*map(jnp.asarray, given))
  close(x_t, "x_t")
  close(u, "u_t")
  close(gamma(t), "sigma_t")


def test_starts_of_another_shape_are_refused():
  with pytest.raises(ValueError, match=r"x0.shape=\(1, 2\): expected that of x1, \(8, 2\)"):
    interpolant.velocity(lambda x, t: x, jnp.zeros((1, 2)), jnp.zeros((8, 2)), keys(8))

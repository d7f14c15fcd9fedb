"""Paths and fields: closed forms, ends in float32, golden vectors."""

import dataclasses

import golden
import jax
import jax.numpy as jnp
import numpy as np
import oracles
import pytest

from jaxgen import paths

PATHS = [
  paths.Linear(),
  paths.Linear(sigma_min=0.1),
  paths.VP(),
  paths.Discrete(),
  paths.SubVP(),
  paths.VE(),
  paths.EDM(),
  paths.Cosine(),
  paths.Trigonometric(),
]
MIDDLE = {paths.Discrete: 400.5, paths.EDM: 1.5}
middle = lambda path: MIDDLE.get(type(path), 0.4)
name = lambda path: type(path).__name__


def test_velocity_of_the_straight_path_is_data_minus_noise():
  x, eps = jax.random.normal(jax.random.key(0), (2, 4, 2))
  u = paths.velocity(paths.Linear(), x, eps, jnp.linspace(0.0, 1.0, 4))
  np.testing.assert_allclose(u, x - eps, rtol=1e-6)


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_velocity_is_the_derivative_of_interpolate(path):
  x, eps = jax.random.normal(jax.random.key(0), (2, 4, 2))
  t = jnp.full(4, middle(path))
  _, u = jax.jvp(lambda t: paths.interpolate(path, x, eps, t), (t,), (jnp.ones(4),))
  np.testing.assert_allclose(paths.velocity(path, x, eps, t), u, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_every_field_takes_x_t_apart(path):
  x, eps = jax.random.normal(jax.random.key(0), (2, 4, 2))
  t = jnp.full(4, middle(path))
  alpha, sigma = path.alpha(t)[:, None], path.sigma(t)[:, None]
  x_t, u = paths.interpolate(path, x, eps, t), paths.velocity(path, x, eps, t)
  for make, target in [
    (paths.eps_field, eps),
    (paths.x_field, x),
    (paths.v_field, alpha * eps - sigma * x),
    (paths.velocity_field, u),
    (paths.score_field, -eps / sigma),
  ]:
    field = make(path, lambda *_, target=target: target)
    np.testing.assert_allclose(field.predict(x_t, t).x, x, atol=2e-5)
    np.testing.assert_allclose(field.predict(x_t, t).eps, eps, atol=2e-5)
    np.testing.assert_allclose(field.velocity(x_t, t), u, rtol=1e-4, atol=2e-5)
    np.testing.assert_allclose(field.score(x_t, t), -eps / sigma, rtol=1e-4, atol=2e-5)


@pytest.mark.parametrize("make", [paths.v_field, paths.velocity_field])
def test_fields_that_reach_both_ends_of_the_straight_path(make):
  x_t, out = jax.random.normal(jax.random.key(0), (2, 4, 2))
  for t in (0.0, 1.0):
    p = make(paths.Linear(), lambda *_: out).predict(x_t, jnp.full(4, t))
    assert jnp.isfinite(p.x).all() and jnp.isfinite(p.eps).all()


def test_discrete_path_is_ddpms_table():
  _, close = golden.load("diffusion_tables_linear_1000")
  with jax.enable_x64(True):
    path, t = paths.Discrete(), jnp.arange(1.0, 1001.0)
    close(path.alpha(t) ** 2, "alphas_cumprod")
    close(path.alpha(t - 1.0) ** 2, "alphas_cumprod_prev")
    close(path.sigma(t), "sqrt_one_minus_alphas_cumprod")
    q = paths.posterior(path, t, t - 1.0)
    close(q.small, "posterior_variance")
    close(q.x_weight, "posterior_mean_coef1")
    close(q.x_t_weight, "posterior_mean_coef2")
    np.testing.assert_allclose(q.large, path.betas, rtol=1e-9)


def test_float32_keeps_the_digits_of_the_table():
  """1e-5 everywhere, the ends included; beta_t is the difference of two numbers near one."""
  with jax.enable_x64(True):
    path, t = paths.Discrete(), jnp.arange(1.0, 1001.0)
    exact = [path.alpha(t), path.sigma(t), *paths.posterior(path, t, t - 1.0)]
    exact = jax.tree.map(np.asarray, exact)
  t = jnp.arange(1.0, 1001.0, dtype=jnp.float32)
  ours = [path.alpha(t), path.sigma(t), *paths.posterior(path, t, t - 1.0)]
  for a, b, rtol in zip(ours, exact, [1e-5, 1e-5, 1e-4, 1e-5, 1e-4, 1e-4], strict=True):
    np.testing.assert_allclose(a, b, rtol=rtol)  # 1e-4: log SNR differs by 0.02 of 10 at t = 1000


def test_continuous_vp_is_not_the_discrete_table():
  t = jnp.arange(1.0, 1001.0)
  gap = jnp.abs(paths.VP().alpha(t / 1000) - paths.Discrete().alpha(t)).max()
  assert 1e-4 < gap < 1e-2


def test_vp_sigma_is_exact_near_the_data():
  t = 1e-5
  exact = np.sqrt(-np.expm1(2 * (-0.25 * t**2 * 19.9 - 0.5 * t * 0.1)))
  np.testing.assert_allclose(paths.VP().sigma(jnp.float32(t)), exact, rtol=1e-6)


def test_posterior_is_bayes_rule_on_every_path():
  """q(x_s | x_t, x) from the joint Gaussian of (x_s, x_t) given x."""
  with jax.enable_x64(True):
    for path, t, s in [
      (paths.VP(), 0.6, 0.4),
      (paths.Linear(), 0.3, 0.5),
      (PATHS[3], 600.0, 500.0),
    ]:
      a_t, a_s, s_t, s_s = path.alpha(t), path.alpha(s), path.sigma(t), path.sigma(s)
      cov = a_t / a_s * s_s**2  # of x_s and x_t: x_t = (a_t / a_s) x_s + fresh noise
      q = paths.posterior(path, t, s)
      np.testing.assert_allclose(q.x_t_weight, cov / s_t**2, rtol=1e-9)
      np.testing.assert_allclose(q.x_weight, a_s - cov / s_t**2 * a_t, rtol=1e-9)
      np.testing.assert_allclose(q.small, s_s**2 - cov**2 / s_t**2, rtol=1e-9)
      np.testing.assert_allclose(q.large, s_t**2 - (a_t / a_s) ** 2 * s_s**2, rtol=1e-9)


def test_times_end_where_the_path_ends():
  for path in PATHS:
    ts = paths.times(path, 7)
    assert (
      ts.shape == (8,) and ts[0] == np.float32(path.t_noise) and ts[-1] == np.float32(path.t_data)
    )
  np.testing.assert_array_equal(paths.times(paths.Discrete(), 4), [1000, 750, 500, 250, 0])
  np.testing.assert_array_equal(paths.times(paths.Discrete(), 1000), np.arange(1000, -1, -1))


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: paths.times(paths.Discrete(), 1001), "steps=1001: expected a whole number, 1 to 1000"),
    (lambda: paths.times(paths.VP(), 0), "steps=0: expected a whole number, 1 or more"),
    (lambda: paths.Discrete((0.1, 1.5)), r"betas\[1\]=1.5: expected between 0 and 1"),
    (lambda: paths.Discrete(()), r"betas=\(\): expected at least one"),
    (lambda: paths.SubVP(beta_min=0.0), "beta_min=0.0: expected a finite number above 0"),
    (lambda: paths.VE(sigma_max=0.001), "sigma_max=0.001: expected a number above 0.01"),
    (lambda: paths.EDM(sigma_min=0.0), "sigma_min=0.0: expected a finite number above 0"),
    (lambda: paths.Cosine(log_snr_min=30.0), "log_snr_min=30.0: expected below 20.0"),
  ],
)
def test_bad_paths_are_refused(call, words):
  with pytest.raises(ValueError, match=words):
    call()


@pytest.mark.evidence("D02", "G")
def test_golden_forward_process_and_posterior():
  x, close = golden.load("q_sample_and_posterior")
  path, t = paths.Discrete(), jnp.asarray(x["in.t"] + 1, jnp.float32)
  x_t = paths.interpolate(path, x["in.x_start"], x["in.noise"], t)
  q = paths.posterior(path, paths.expand(t, x_t), paths.expand(t - 1.0, x_t))
  close(x_t, "x_t")
  close(paths.expand(path.alpha(t), x_t) * x["in.x_start"], "q_mean")
  close(paths.expand(path.sigma(t) ** 2, x_t), "q_var")
  with jax.enable_x64(True):  # the source's tables are float64
    t = jnp.asarray(x["in.t"] + 1.0)
    q = paths.posterior(path, t, t - 1.0)
    weights = [np.asarray(w)[:, None, None, None] for w in (q.x_weight, q.x_t_weight, q.small)]
  close(weights[0] * x["in.x_start"] + weights[1] * np.asarray(x_t), "post_mean")
  close(weights[2], "post_var")


def test_golden_velocity_parameterisation():
  x, close = golden.load("diffusers_add_noise_velocity")
  path = paths.Discrete(tuple(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
  t = jnp.asarray(x["in.t"] + 1, jnp.float32)
  close(paths.interpolate(path, x["in.x"], x["in.noise"], t), "x_t")
  alpha, sigma = (paths.expand(f(t), x["in.x"]) for f in (path.alpha, path.sigma))
  close(alpha * x["in.noise"] - sigma * x["in.x"], "v")


@pytest.mark.parametrize("vector, path", [("condot", paths.Linear()), ("vp", paths.VP())])
@pytest.mark.evidence("R06", "G")
def test_golden_conversions_of_flow_matching(vector, path):
  x, close = golden.load(f"fm_affine_path_{vector}")
  with jax.enable_x64(True):
    t = x["in.t"] if vector == "condot" else 1.0 - x["in.t"]  # theirs runs from noise to data
    sign = 1.0 if vector == "condot" else -1.0
    x_t = paths.interpolate(path, x["in.x_1"], x["in.x_0"], t)
    close(x_t, "x_t")
    close(sign * paths.velocity(path, x["in.x_1"], x["in.x_0"], t), "dx_t")
    as_ = lambda make, scale=1.0: make(path, lambda *_: scale * x["in.prediction"])
    close(sign * as_(paths.x_field).velocity(x_t, t), "target_to_velocity")
    close(sign * as_(paths.eps_field).velocity(x_t, t), "epsilon_to_velocity")
    close(as_(paths.velocity_field, sign).predict(x_t, t).x, "velocity_to_target")
    close(as_(paths.velocity_field, sign).predict(x_t, t).eps, "velocity_to_epsilon")
    close(as_(paths.eps_field).predict(x_t, t).x, "epsilon_to_target")
    close(as_(paths.x_field).predict(x_t, t).eps, "target_to_epsilon")


def test_golden_schedulers():
  x, close = golden.load("fm_schedulers")
  with jax.enable_x64(True):
    theirs = jnp.asarray(x["in.t"])
    for vector, path, t, sign in [
      ("condot", paths.Linear(), theirs, 1.0),
      ("vp", paths.VP(), 1.0 - theirs, -1.0),
      ("cosine", paths.Trigonometric(), theirs, 1.0),
    ]:
      alpha, d_alpha, sigma, d_sigma = paths.coefficients(path, t)
      inner = np.asarray((t > 0.0) & (t < 1.0))  # sigma' of VP is infinite at the data
      close(alpha, f"{vector}_alpha")
      close(sigma, f"{vector}_sigma", where=inner)
      close(sign * d_alpha, f"{vector}_dalpha")
      close(sign * d_sigma, f"{vector}_dsigma", where=inner)


def test_golden_sde_marginals():
  x, close = golden.load("score_sde_vp")
  path, t = paths.VP(), jnp.asarray(x["in.t"])
  close(paths.expand(path.alpha(t), x["in.x"]) * x["in.x"], "mean")
  close(path.sigma(t), "std")


@pytest.mark.parametrize("path", PATHS, ids=name)
def test_time_is_the_inverse_of_the_log_snr(path):
  """Where the log SNR tells times apart: at VP's noise end it moves by 1e-7 of itself in 1e-6."""
  low, high = sorted((path.t_noise, path.t_data))
  t = jnp.linspace(low, high, 42)[1:-1]
  np.testing.assert_allclose(path.time(paths.log_snr(path, t)), t, rtol=2e-6)


def test_reverse_times_have_the_sdes_of_the_paper():
  """arXiv:2011.13456, Eq. 9 (VE), 11 (VP) and 28 (sub-VP): their drifts and squared diffusions."""
  t = jnp.linspace(0.05, 1.0, 20)
  beta = 0.1 + t * 19.9
  alpha = paths.VP().alpha(t)
  grow = np.log(50.0 / 0.01)
  for path, f, g2 in [
    (paths.VP(), -0.5 * beta, beta),
    (paths.SubVP(), -0.5 * beta, beta * (1.0 - alpha**4)),
    (paths.VE(), 0.0 * t, 2.0 * grow * paths.VE().sigma(t) ** 2),
    (paths.EDM(), 0.0 * t, 2.0 * t),
  ]:
    for ours, theirs in zip(paths.sde(path, t), (f, g2), strict=True):
      np.testing.assert_allclose(ours, theirs, rtol=1e-5, err_msg=name(path))


@pytest.mark.evidence("D06", "M")
def test_the_cosine_path_reaches_its_ends_in_float32():
  path, t = paths.Cosine(), jnp.array([0.0, 1e-4, 0.5, 1.0 - 2**-14, 1.0])
  exact = np.asarray(t, np.float64) * (np.pi / 2 - 2 * np.arctan(np.exp(-10))) + np.arctan(
    np.exp(-10)
  )
  np.testing.assert_allclose(path.alpha(t), np.cos(exact), rtol=1e-5)
  np.testing.assert_allclose(path.sigma(t), np.sin(exact), rtol=1e-5)
  np.testing.assert_allclose(paths.log_snr(path, t[jnp.array([0, 4])]), [20.0, -20.0], rtol=1e-5)
  np.testing.assert_allclose(path.alpha(t) ** 2 + path.sigma(t) ** 2, 1.0, rtol=1e-6)


@pytest.mark.evidence("D04", "G")
def test_golden_cosine_betas():
  _, close = golden.load("betas_cosine_1000")
  close(paths.cosine_betas(1000), "betas")


def test_a_moved_field_is_the_field_of_its_data():
  """Exact fields on any path, moved to any other, are that path's exact field.

  Between noise levels of 0.02 and 45, which all of them have.
  """
  data, x_t = oracles.GaussianData(), jax.random.normal(jax.random.key(0), (5, 2))
  t = {paths.Discrete: jnp.linspace(10.0, 800.0, 5), paths.EDM: jnp.geomspace(0.02, 45.0, 5)}
  for path in PATHS[2:]:
    at = t.get(type(path), jnp.linspace(0.05, 0.85, 5))
    expected = data.field(path).predict(x_t, at)
    for source in (paths.Linear(), *PATHS[2:]):
      got = paths.moved(data.field(source), path).predict(x_t, at)
      np.testing.assert_allclose(got.x, expected.x, rtol=1e-3, atol=1e-4)
      np.testing.assert_allclose(got.eps, expected.eps, rtol=1e-3, atol=1e-4)


def test_a_learned_variance_is_between_0_and_1():
  fn = lambda x_t, t: jnp.concatenate([x_t, jnp.full_like(x_t, -1.0)], axis=-1)
  p = paths.learned_field(paths.Discrete(), fn).predict(jnp.ones((2, 3)), jnp.array([1.0, 900.0]))
  np.testing.assert_array_equal(p.v, jnp.zeros((2, 3)))
  np.testing.assert_array_equal(p.eps, jnp.ones((2, 3)))


def test_paths_are_values():
  assert paths.VP() == paths.VP(beta_max=20.0) != paths.VP(beta_max=10.0)
  assert dataclasses.replace(paths.Linear(), sigma_min=0.5).sigma(1.0) == 0.5

"""Stochastic samplers, EDM's, adaptive solvers and exact likelihood: on Gaussian data, on golden
vectors, and each example by itself."""

import dataclasses
import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from oracles import GaussianData

from jaxgen import noise, paths
from jaxgen.objectives import change_of_variables, preconditioning
from jaxgen.samplers import ancestral, ddim, edm, grids, langevin, ode, predictor_corrector, sde

DATA = GaussianData()
PATHS = [paths.VP(), paths.VE(), paths.SubVP(), paths.EDM()]
by_type = lambda value: type(value).__name__
keys = lambda n=9: jax.random.split(jax.random.key(0), n)


EM, RD, PC = sde.euler_maruyama, sde.reverse_diffusion, predictor_corrector.predictor_corrector
CHURN = functools.partial(edm.heun, s_churn=30.0, s_min=0.01, s_max=10.0)
LEVELS = paths.EDM(0.01, 3.0), jnp.geomspace(3.0, 0.01, 10)
VE = paths.VE(sigma_max=5.0)  # ten std of the data: fewer steps do
STOCHASTIC = {
  "euler_maruyama, VP": (EM, paths.VP(), 300),
  "euler_maruyama, VE": (EM, VE, 300),
  "euler_maruyama, SubVP": (EM, paths.SubVP(), 300),
  "euler_maruyama, Linear": (EM, paths.Linear(), jnp.linspace(1e-2, 1.0, 301)),
  "reverse_diffusion, VP": (RD, paths.VP(), 200),
  "reverse_diffusion, VE": (RD, VE, 200),
  "reverse_diffusion, SubVP": (RD, paths.SubVP(), 200),
  "ancestral, VE": (functools.partial(ancestral.ancestral, v=0.0), VE, 200),
  "predictor_corrector, VP": (PC, paths.VP(), 100),
  "predictor_corrector, VE": (PC, VE, 100),
  "predictor_corrector, SubVP": (PC, paths.SubVP(), 100),
  "langevin": (functools.partial(langevin.annealed, epsilon=5e-5, repeats=60), *LEVELS),
  "heun with churn, EDM": (CHURN, paths.EDM(), grids.karras(paths.EDM(), 60)),
  "heun with churn, VP": (CHURN, paths.VP(), 60),
}


def times(path, ts):
  return paths.times(path, ts) if isinstance(ts, int) else ts


def samples(sampler, path, ts, **options):
  """5000 numbers, as 5 examples of 1000: few keys, and steps that norms choose are alike."""
  x = path.prior_std * jax.random.normal(jax.random.key(1), (5, 1000))
  run = jax.jit(functools.partial(sampler, DATA.field(path), **options))
  return run(x, keys(5), times(path, ts))


@pytest.mark.evidence("D05", "M")
@pytest.mark.evidence("D12", "M")
@pytest.mark.parametrize("name", STOCHASTIC)
def test_stochastic_samplers_have_the_moments_of_the_data(name):
  x = samples(*STOCHASTIC[name])
  # 0.007 is the error of the mean of 5000 numbers, up to 0.01 that of these steps
  np.testing.assert_allclose([x.mean(), x.std()], [DATA.mean, DATA.std], atol=0.03)


@pytest.mark.evidence("D05", "M")
@pytest.mark.parametrize("path", PATHS[:3], ids=by_type)
def test_a_corrector_improves_on_its_predictor(path):
  alone, corrected = (samples(PC, path, 30, repeats=n) for n in (0, 2))
  error = lambda x: abs(float(x.std()) - DATA.std)
  assert error(corrected) < 0.75 * error(alone)
  np.testing.assert_allclose(alone.std(), samples(RD, path, 30).std(), atol=0.01)


@pytest.mark.parametrize("sampler", [EM, RD], ids=["EM", "RD"])
@pytest.mark.parametrize("path", [paths.VP(), paths.SubVP()], ids=by_type)
def test_the_mean_of_samples_has_weak_order_one(sampler, path):
  """On Gaussian data the steps are linear: without noise they give the mean."""

  @jax.jit
  def errors():
    def error(steps):
      ts, x = jnp.linspace(1.0, 0.05, steps + 1), DATA.at(path, 1.0, jnp.zeros((1, 1)))
      x = sampler(DATA.field(path), x, keys(1), ts, z=jnp.zeros((steps, 1, 1)))
      return jnp.abs(x[0, 0] - DATA.at(path, 0.05, 0.0))

    return error(125), error(250)

  with jax.enable_x64(True):
    coarse, fine = errors()
    np.testing.assert_allclose(np.log2(coarse / fine), 1.0, atol=0.15)


@pytest.mark.evidence("D12", "M")
@pytest.mark.parametrize("path", [paths.EDM(), paths.VP()], ids=by_type)
def test_heun_of_edm_has_order_two(path):
  @jax.jit
  def errors():
    def error(steps):
      even = jnp.linspace(1.0, 0.0, steps + 1)
      ts = grids.karras(path, steps) if isinstance(path, paths.EDM) else even
      xi = jnp.linspace(-2.0, 2.0, 9)[:, None]
      x = edm.heun(DATA.field(path), DATA.at(path, ts[0], xi), keys(), ts)
      return jnp.abs(x - DATA.mean - DATA.std * xi).max()

    return error(50), error(100)

  with jax.enable_x64(True):
    coarse, fine = errors()
    np.testing.assert_allclose(np.log2(coarse / fine), 2.0, atol=0.15)


ALL = {
  "euler_maruyama": (EM, paths.VP()),
  "reverse_diffusion": (RD, paths.SubVP()),
  "predictor_corrector": (functools.partial(PC, repeats=2), paths.VE()),
  "langevin": (functools.partial(langevin.annealed, repeats=3), paths.VE()),
  "heun with churn": (CHURN, paths.VP()),
}


@pytest.mark.parametrize("name", ALL)
def test_a_sample_does_not_depend_on_its_batch_and_is_one_program(name):
  sampler, path = ALL[name]
  field = paths.eps_field(path, lambda x, t: jnp.tanh(x) + 0.1 * paths.expand(t, x))
  x = jax.random.normal(jax.random.key(1), (8, 5))
  run = jax.jit(lambda x, keys: sampler(field, x, keys, paths.times(path, 10)))
  whole, rows = run(x, noise.rows(jax.random.key(2), 8)), noise.rows(jax.random.key(2), 4, 4)
  np.testing.assert_allclose(run(x[4:], rows), whole[4:], rtol=1e-5, atol=1e-6)
  text = str(jax.make_jaxpr(run)(x, noise.rows(jax.random.key(2), 8)))
  assert text.count("scan[") == (2 if name == "predictor_corrector" else 1)
  assert f"length={33 if name == 'langevin' else 10}" in text


def test_step_sizes_of_the_batch_make_a_sample_depend_on_it():
  options = dict(snr=0.16, step_size=predictor_corrector.batch_step_size)
  correct = functools.partial(predictor_corrector.correct, DATA.field(paths.VP()), **options)
  x, t = jax.random.normal(jax.random.key(1), (8, 5)), jnp.full(8, 0.5)
  assert not np.allclose(correct(x, t, keys(8))[:4], correct(x[:4], t[:4], keys(8)[:4]))


def test_step_sizes_of_the_batch_are_those_of_the_global_batch():
  score, z = jax.random.normal(jax.random.key(1), (2, 4, 5))
  size = functools.partial(predictor_corrector.batch_step_size, snr=0.16)
  on_two = jax.pmap(size, axis_name="data")(score.reshape(2, 2, 5), z.reshape(2, 2, 5))
  np.testing.assert_allclose(on_two, jnp.full(2, size(score, z)), rtol=1e-6)


@pytest.mark.parametrize(
  "sampler, options, words",
  [
    (PC, dict(snr=-1.0), "snr=-1.0: expected"),
    (PC, dict(repeats=0.5), "repeats=0.5: expected a whole number"),
    (edm.heun, dict(s_churn=-1.0), "s_churn=-1.0"),
    (edm.heun, dict(s_min=2.0, s_max=1.0), "s_max=1.0: expected a number, s_min=2.0 or more"),
    (edm.heun, dict(s_noise="1"), "s_noise='1'"),
    (langevin.annealed, dict(epsilon=0.0), "epsilon=0.0"),
    (langevin.annealed, dict(repeats=0), "repeats=0"),
  ],
)
def test_options_out_of_range_are_refused(sampler, options, words):
  with pytest.raises(ValueError, match=words):
    sampler(DATA.field(paths.VP()), jnp.zeros((9, 1)), keys(), jnp.array([1.0, 0.1]), **options)


@pytest.mark.parametrize("sampler", [EM, RD, PC, edm.heun, langevin.annealed])
def test_times_that_the_path_does_not_have_are_refused(sampler):
  with pytest.raises(ValueError, match="expected 0 to 1.0, the times of VP"):
    sampler(DATA.field(paths.VP()), jnp.zeros((9, 1)), keys(), jnp.array([80.0, 0.1]))


# Adaptive solvers and likelihood.


def ends(path):
  return jnp.array([path.t_data, path.t_noise])


@pytest.mark.evidence("D05", "M")
@pytest.mark.parametrize("path", PATHS, ids=by_type)
def test_adaptive_likelihood_of_gaussian_data_is_exact(path):
  with jax.enable_x64(True):
    xi = jnp.linspace(-2.0, 2.0, 9)[:, None] * jnp.array([[1.0, 0.5]])
    x, z = (DATA.at(path, t, xi) for t in (path.t_data, path.t_noise))
    field, solve = DATA.field(path), functools.partial(ode.adaptive, rtol=1e-6, atol=1e-6)
    std = lambda t: DATA.at(path, t, 1.0) - DATA.at(path, t, 0.0)
    log_det = 2.0 * jnp.log(std(path.t_noise) / std(path.t_data))
    known = jnp.sum(norm.logpdf(z, scale=path.prior_std), 1) + log_det  # of the flow

    density = change_of_variables.ode_log_prob_exact
    options = dict(solve=solve, prior_std=path.prior_std)
    log_prob = jax.jit(lambda x: density(field.velocity, x, ends(path), **options))(x)
    np.testing.assert_allclose(log_prob, known, atol=1e-4)
    # The prior is not quite the marginal at t_noise: 0.7 of mean over a std of 50 on VE.
    data = jnp.sum(norm.logpdf(x, DATA.mean, DATA.std), 1)
    np.testing.assert_allclose(log_prob, data, atol=0.08)


def test_the_trace_estimate_of_a_likelihood_has_the_exact_one_as_its_mean():
  matrix = jnp.array([[-0.5, 0.8], [0.3, -1.0]])
  velocity, x, ts = lambda x, t: x @ matrix, jnp.ones((4, 2)), jnp.linspace(0.0, 1.0, 21)
  e = jnp.array([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]])  # all there are
  estimate = jax.jit(lambda x: change_of_variables.ode_log_prob(velocity, x, keys(4), ts, e=e))(x)
  exact = jax.jit(lambda x: change_of_variables.ode_log_prob_exact(velocity, x, ts))(x)
  np.testing.assert_allclose(estimate.mean(), exact[0], rtol=1e-5)
  np.testing.assert_allclose(estimate[0] - exact[0], 1.1, rtol=1e-4)  # of the other diagonal
  adaptive = functools.partial(change_of_variables.ode_log_prob, solve=ode.adaptive, e=e)
  ours = jax.jit(lambda x, keys: adaptive(velocity, x, keys, ts))(x, keys(4))
  np.testing.assert_allclose(ours, estimate, atol=1e-3)  # 20 steps of Heun's


def test_an_adaptive_solution_does_not_depend_on_its_batch():
  x, ts, rate = jnp.ones((4, 2)), jnp.array([0.0, 1.0]), jnp.array([0.1, 1.0, 5.0, 40.0])

  @jax.jit
  def solve(x, rate, ts=ts):  # the velocity holds one rate a row, as fields hold their labels
    velocity = lambda x, t: -jnp.concatenate([rate[:, None], rate[:, None]], axis=1) * x
    return ode.adaptive(velocity, x, ts)

  whole, alone = solve(x, rate), solve(x[3:], rate[3:])
  np.testing.assert_allclose(whole, jnp.exp(-rate)[:, None] * x, atol=1e-4)
  back = solve(jnp.exp(-rate)[:, None] * x, rate, ts[::-1])
  np.testing.assert_allclose(back[:3], x[:3], rtol=1e-3)  # exp(-40) is below atol
  np.testing.assert_allclose(alone, whole[3:], rtol=1e-5, atol=1e-7)


def test_what_an_adaptive_solver_does_not_reach_is_nan():
  x, ts = jnp.array([[1.0], [0.1]]), jnp.array([0.0, 2.0])  # 1 / (1 / x - t): the first blows up
  out = jax.jit(lambda x: ode.adaptive(lambda x, t: x**2, x, ts, max_steps=50))(x)
  assert jnp.isnan(out[0]).all()
  np.testing.assert_allclose(out[1], 1.0 / 8.0, rtol=1e-4)
  with pytest.raises(ValueError, match="rtol=0.0"):
    ode.adaptive(lambda x, t: x, x, ts, rtol=0.0)


def test_rk4_has_order_four():
  def error(steps):  # of x' = x cos t, x = exp(sin t)
    ts = jnp.linspace(0.0, 2.0, steps + 1)
    x = ode.rk4(lambda x, t: x * jnp.cos(paths.expand(t, x)), jnp.ones((1, 1)), ts)
    return float(abs(x[0, 0] - jnp.exp(jnp.sin(2.0))))

  with jax.enable_x64(True):
    np.testing.assert_allclose(np.log2(error(32) / error(64)), 4.0, atol=0.2)


# Golden vectors of score_sde, whose discrete index is int(t (N - 1)).
SCORE = lambda x, t: -0.7 * jnp.tanh(x) * (1.0 + paths.expand(t, x))
N = 1000


def chain(path, t):
  """(path, t, s) of one step of score_sde's discretisation of `path`."""
  i = (t * (N - 1)).astype(int)
  if isinstance(path, paths.VE):
    sigma = lambda i: path.sigma(jnp.asarray(i / (N - 1)))
    return paths.EDM(), sigma(i), jnp.where(i > 0, sigma(i - 1), 0.0)
  betas = np.linspace(path.beta_min / N, path.beta_max / N, N)
  return paths.Discrete(tuple(betas)), jnp.asarray(i + 1.0), jnp.asarray(i + 0.0)


def mean_of(step, x, score):
  return paths.expand(step.x, x) * x + paths.expand(step.score, x) * score


@pytest.mark.evidence("D05", "G")
@pytest.mark.parametrize("path", [paths.VP(), paths.VE()], ids=["vp", "ve"])
def test_golden_sde(path):
  x, close = golden.load("score_sde_vp" if isinstance(path, paths.VP) else "score_sde_ve")
  x, t = x["in.x"], x["in.t"]
  score, (f, g2) = SCORE(x, t), paths.sde(path, t)
  close(paths.expand(path.alpha(t), x) * x, "mean")
  close(path.sigma(t), "std")
  close(paths.expand(f, x) * x, "drift")
  close(jnp.sqrt(g2), "diffusion")
  still = functools.partial(change_of_variables.ode_log_prob, lambda x, t: 0.0 * x)
  close(still(x, keys(5), ends(path), prior_std=path.prior_std), "prior_logp")
  euler, discrete = (
    sde.euler_maruyama_step(path, t, t - 1.0),
    sde.reverse_diffusion_step(*chain(path, t)),
  )
  close(paths.expand(1.0 - discrete.x, x) * x, "disc_f")
  close(discrete.std, "disc_G")
  for i in (0, 1):
    close(x - mean_of(euler, x, score), f"rev_drift_pf{i}")
    close(euler.std, f"rev_diff_pf{i}")
    close(x - mean_of(discrete, x, score), f"rev_disc_f_pf{i}")
    close(discrete.std, f"rev_disc_G_pf{i}")
    euler, discrete = sde.probability_flow(euler), sde.probability_flow(discrete)


PREDICTORS = {
  "euler_maruyama": lambda path, t: sde.euler_maruyama_step(path, t, t - 1.0 / N),
  "reverse_diffusion": lambda path, t: sde.reverse_diffusion_step(*chain(path, t)),
  "ancestral": lambda path, t: sde.ancestral_step(*chain(path, t)),
}


@pytest.mark.evidence("D05", "G")
@pytest.mark.parametrize("name", PREDICTORS)
def test_golden_predictors(name):
  x, close = golden.load(f"score_sde_predictor_{name}_vp")
  x, t, z = x["in.x"], x["in.t"], x["in.z"]
  step = PREDICTORS[name](paths.VP(), t)
  mean = mean_of(step, x, SCORE(x, t))
  close(mean, "x_mean")
  close(mean + paths.expand(step.std, x) * z, "x")


@pytest.mark.evidence("D05", "G")
def test_golden_corrector():
  x, close = golden.load("score_sde_corrector_langevin_vp")
  path, x, t, z = paths.VP(), x["in.x"], x["in.t"], x["in.z"]
  field = paths.score_field(path, SCORE)
  on, late, early = chain(path, t)
  alpha = (on.alpha(late) / on.alpha(early)) ** 2
  size = predictor_corrector.batch_step_size
  correct = functools.partial(predictor_corrector.correct, snr=0.16, alpha=alpha, step_size=size)
  close(correct(field, x, t, keys(5), repeats=2, z=z), "x")
  first = correct(field, x, t, keys(5), z=z[:1])
  score = field.score(first, t)
  mean, last = langevin.move(first, score, z[1], alpha * size(score, z[1], 0.16))
  close(mean, "x_mean")
  close(last, "x")


# Golden vectors of EDM and k-diffusion: their toy denoiser, and what they call sigma.
def toy(x, sigma):
  m, sigma = jnp.linspace(-1.0, 1.0, 48).reshape(3, 4, 4)[None], paths.expand(sigma, x)
  return m + 0.25 / (0.25 + sigma**2) * (x - m) + 0.05 * jnp.tanh(x) * sigma / (1.0 + sigma)


EDM_TOY = paths.x_field(paths.EDM(), toy)


@pytest.mark.evidence("D12", "G")
@pytest.mark.parametrize("n, path, rho", [(18, paths.EDM(), 7.0), (5, paths.EDM(0.02, 10.0), 5.0)])
def test_golden_edm(n, path, rho):
  x, close = golden.load(f"edm_sampler_deterministic_{n}")
  with jax.enable_x64(True):
    ts = grids.karras(path, n, rho=rho)
    field = dataclasses.replace(EDM_TOY, path=path)
    close(edm.heun(field, x["in.latents"] * ts[0], keys(2), ts), "x")


@dataclasses.dataclass(frozen=True)
class VarianceIsTime:
  """EDM's VE schedule: alpha = 1, sigma = sqrt(t). arXiv:2206.00364, Table 1."""

  t_noise, t_data = 100.0**2, 0.02**2
  alpha = staticmethod(jnp.ones_like)
  sigma = staticmethod(jnp.sqrt)
  time = staticmethod(lambda log_snr: jnp.exp(-log_snr))


def iddpm(n, sigma_min, sigma_max):
  """n of iDDPM's noise levels, those between the two. arXiv:2206.00364, Table 1, third column."""
  u = np.asarray(preconditioning.IDDPM().sigma(jnp.arange(1001)))
  u = u[(u >= sigma_min) & (u <= sigma_max)]
  return u[np.round((len(u) - 1) / (n - 1) * np.arange(n)).astype(int)]


ABLATIONS = {
  "heun_edm": (edm.heun, paths.EDM(), lambda: grids.karras(paths.EDM(), 8)[:-1]),
  "euler_edm": (None, paths.EDM(), lambda: grids.karras(paths.EDM(), 8)[:-1]),
  "euler_iddpm": (None, paths.EDM(0.002, 81.0), lambda: iddpm(8, 0.002, 81.0)),
  "euler_ve": (None, VarianceIsTime(), lambda: np.geomspace(100.0**2, 0.02**2, 8)),
  "heun_vp": (edm.heun, paths.VP(), lambda: np.linspace(1.0, 1e-3, 8)),
}


@pytest.mark.evidence("D12", "G")
@pytest.mark.parametrize("name", ABLATIONS)
def test_golden_ablations_of_edm(name):
  x, close = golden.load(f"edm_ablation_sampler_{name}")
  solver, path, ts = ABLATIONS[name]
  with jax.enable_x64(True):
    ts, field = jnp.append(jnp.asarray(ts()), 0.0), paths.moved(EDM_TOY, path)
    start = x["in.latents"] * path.sigma(ts[0])  # sigma s of the paper
    if solver is None:
      close(ode.euler(field.velocity, start, ts), "x")
    else:
      close(solver(field, start, keys(2), ts), "x")


def test_golden_ancestral_step_of_k_diffusion():
  x, close = golden.load("kdiff_ancestral_step")

  @functools.partial(jax.vmap, in_axes=(0, None))
  def down_up(ts, eta):
    field = paths.Field(paths.EDM(), lambda x, t: paths.Prediction(0.0 * x, jnp.ones_like(x)))
    to = lambda z: ddim.ddim(field, jnp.zeros(1), keys(1), ts, eta=eta, z=jnp.full((1, 1), z))[0]
    return jnp.stack([to(0.0), to(1.0) - to(0.0)])

  with jax.enable_x64(True):
    pairs = jnp.stack([x["in.sigma_from"], x["in.sigma_to"]], axis=1)
    close(down_up(pairs, 1.0), "down_up")
    close(down_up(pairs, 0.5), "down_up_eta05")


@pytest.mark.evidence("D03", "G")
def test_golden_inversion_of_diffusers():
  """Its network is told the time that a step goes to: 0, 100, ..., which are 1, 101, ... here."""
  x, close = golden.load("diffusers_ddim_inverse")
  path = paths.Discrete(tuple(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))

  def eps(x, t):
    t = paths.expand(jnp.where(t == 0.0, 0.0, t + 99.0), x)
    return 0.8 * jnp.tanh(x) * (0.5 + t / 2000) + 0.1 * jnp.cos(t / 100)

  ts = jnp.array([0.0, *range(1, 1000, 100)])
  close(ts[1:] - 1.0, "timesteps")
  close(ddim.invert(paths.eps_field(path, eps), x["in.x_T"], ts), "x_0")


def test_golden_divergence():
  x, close = golden.load("ffjord_divergence")
  with jax.enable_x64(True):
    w, e, x = jnp.asarray(x["w.W"]), x["in.e"], jnp.asarray(x["in.x"])
    f = lambda x: jnp.tanh(x @ w.T) * (1.0 + x**2)
    close(change_of_variables.exact(f, x)[1], "exact")
    v, estimate = change_of_variables.hutchinson(f, x, jnp.asarray(e))
    close(estimate, "approx")
    np.testing.assert_allclose(v, f(x))

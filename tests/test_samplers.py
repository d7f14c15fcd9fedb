"""Samplers: orders of convergence and moments on an oracle, independence, golden vectors."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData

from jaxgen import noise, paths, samplers
from jaxgen.samplers import ancestral, ddim, grids, guidance, ode

DATA = GaussianData()
keys = lambda n=9: jax.random.split(jax.random.key(0), n)


def order(sampler, path, t0, t1, steps):
  """log2 of the ratio of the errors of `steps` and of twice as many."""

  @jax.jit
  def errors():
    def error(n):
      xi = jnp.linspace(-2.0, 2.0, 9)[:, None]
      x = sampler(DATA.at(path, t0, xi), jnp.linspace(t0, t1, n + 1))
      return jnp.abs(x - DATA.at(path, t1, xi)).max()

    return error(steps), error(2 * steps)

  with jax.enable_x64(True):  # orders of convergence need float64
    coarse, fine = errors()
    return np.log2(coarse / fine)


@pytest.mark.parametrize("path, t0, t1", [(paths.VP(), 1.0, 0.05), (paths.Linear(), 0.05, 0.95)])
@pytest.mark.parametrize("solver, known", [(ode.euler, 1), (ode.heun, 2)])
def test_ode_solvers_have_their_order(path, t0, t1, solver, known):
  sampler = functools.partial(solver, DATA.field(path).velocity)
  np.testing.assert_allclose(order(sampler, path, t0, t1, 128), known, atol=0.1)


def test_ddim_is_first_order_and_exact_for_a_constant_prediction():
  sampler = lambda x, ts: ddim.ddim(DATA.field(paths.VP()), x, keys(), ts)
  np.testing.assert_allclose(order(sampler, paths.VP(), 1.0, 0.05, 256), 1, atol=0.1)
  path, eps = paths.VP(), jax.random.normal(jax.random.key(1), (9, 2))
  x_t = paths.interpolate(path, jnp.ones((9, 2)), eps, 1.0)
  x = ddim.ddim(paths.eps_field(path, lambda *_: eps), x_t, keys(), jnp.array([1.0, 0.3, 0.01]))
  # 1e-3: the prediction of x divides by alpha(1) = 0.0066
  np.testing.assert_allclose(x, paths.interpolate(path, jnp.ones((9, 2)), eps, 0.01), atol=1e-3)


@pytest.mark.parametrize(
  "sampler",
  [
    functools.partial(ddim.ddim, eta=1.0),
    functools.partial(ancestral.ancestral, v=0.0),
    functools.partial(ancestral.ancestral, v=1.0),
  ],
  ids=["ddim, eta=1", "ancestral, small", "ancestral, large"],
)
def test_stochastic_samplers_have_the_moments_of_the_data(sampler):
  path = paths.Discrete()
  x = jax.random.normal(jax.random.key(1), (8, 1000))
  x = jax.jit(functools.partial(sampler, DATA.field(path)))(x, keys(8), paths.times(path, 250))
  # 0.006 is the error of the mean of 8000 numbers, up to 0.01 that of these steps
  np.testing.assert_allclose([x.mean(), x.std()], [DATA.mean, DATA.std], atol=0.025)


def test_ddim_with_eta_one_is_ancestral_sampling_with_the_small_variance():
  path, x = paths.Discrete(), jax.random.normal(jax.random.key(1), (9, 2))
  ts = paths.times(path, 20)
  a = ddim.ddim(DATA.field(path), x, keys(), ts, eta=1.0)
  b = ancestral.ancestral(DATA.field(path), x, keys(), ts, v=0.0)
  np.testing.assert_allclose(a, b, atol=2e-5)


def test_inversion_by_ddim_comes_back():
  path = paths.Discrete()
  x, ts = DATA.mean + jnp.linspace(-1.0, 1.0, 9)[:, None], paths.times(path, 500)
  encode = ddim.ddim(DATA.field(path), x, keys(), ts[::-1].at[0].set(1.0))
  decoded = ddim.ddim(DATA.field(path), encode, keys(), ts.at[-1].set(1.0))
  np.testing.assert_allclose(decoded, x, atol=0.02)  # 500 first-order steps each way


@pytest.mark.parametrize("name", ["ancestral", "ddim", "euler", "heun"])
def test_a_sample_does_not_depend_on_its_batch(name):
  path = paths.Discrete() if name in ("ancestral", "ddim") else paths.Linear(0.01)
  field = DATA.field(path)
  if name in ("euler", "heun"):
    field = paths.velocity_field(path, lambda x, t: jnp.tanh(x) - paths.expand(t, x))

  @functools.partial(jax.jit, static_argnums=(1,))
  def run(first, n):
    rows = noise.rows(jax.random.key(2), n, first)
    return samplers.draw(field, rows, (4,), name=name, steps=10)

  np.testing.assert_allclose(run(0, 8)[4:], run(4, 4), rtol=1e-5, atol=1e-6)
  np.testing.assert_allclose(run(0, 8)[6], run(6, 1)[0], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", ["ancestral", "ddim"])
def test_a_chain_is_one_program_for_all_seeds_and_parameters(name):
  traces = []

  @jax.jit
  def run(scale, key):
    traces.append(name)
    field = paths.eps_field(paths.Discrete(), lambda x, t: scale * x)
    return samplers.draw(field, noise.rows(key, 4), (3,), name=name, steps=1000)

  outputs = [run(s, jax.random.key(k)) for s, k in [(0.1, 0), (0.1, 1), (0.2, 1)]]
  assert len(traces) == 1 and not jnp.array_equal(outputs[0], outputs[1])
  text = str(jax.make_jaxpr(run)(0.1, jax.random.key(0)))
  assert text.count("scan[") == 1 and "length=1000" in text  # not unrolled, no second loop


def test_guidance_is_the_same_in_every_parameterisation_and_batch():
  a, b, x_t = jax.random.normal(jax.random.key(0), (3, 4, 2))
  t, path = jnp.full(4, 0.4), paths.VP()
  field = lambda make, out: make(path, lambda *_: out)
  eps = [field(paths.eps_field, e) for e in (a, b)]
  guided = guidance.classifier_free(*eps, 2.0)
  np.testing.assert_allclose(guided.predict(x_t, t).eps, 3.0 * a - 2.0 * b, rtol=1e-5)
  as_x = [field(paths.x_field, f.predict(x_t, t).x) for f in eps]
  as_u = [field(paths.velocity_field, f.velocity(x_t, t)) for f in eps]
  for pair in (as_x, as_u):
    other = guidance.classifier_free(*pair, 2.0).predict(x_t, t)
    np.testing.assert_allclose(other.eps, guided.predict(x_t, t).eps, rtol=1e-4, atol=1e-5)
  none = guidance.classifier_free(*eps, 0.0)
  np.testing.assert_array_equal(none.predict(x_t, t).eps, a)
  one = guidance.classifier_free(*(field(paths.eps_field, e[:1]) for e in (a, b)), 2.0)
  np.testing.assert_array_equal(one.predict(x_t[:1], t[:1]).x, guided.predict(x_t, t).x[:1])


def test_clipping_keeps_x_t_together():
  path, x_t = paths.VP(), 3.0 * jax.random.normal(jax.random.key(0), (50, 2))
  t = jnp.full(50, 0.5)
  p = guidance.clipped(paths.eps_field(path, lambda x, t: 0.1 * x)).predict(x_t, t)
  assert jnp.abs(p.x).max() == 1.0
  np.testing.assert_allclose(paths.interpolate(path, p.x, p.eps, t), x_t, rtol=1e-5, atol=1e-6)


def test_dropped_labels_are_the_null_class():
  label = jnp.arange(4000) % 10
  kept = guidance.drop_labels(noise.rows(jax.random.key(0), 4000), label, 0.1, 10)
  assert set(np.unique(kept[kept != label])) == {10}
  np.testing.assert_allclose(jnp.mean(kept == 10), 0.1, atol=0.02)


@pytest.mark.parametrize(
  "options, words",
  [
    (dict(name="dimd", steps=10), "sampler='dimd': expected one of adaptive, ancestral"),
    (dict(name="ddim", steps=0), "steps=0"),
    (dict(name="ddim", steps=2000), "steps=2000: expected a whole number, 1 to 1000"),
    (dict(name="ddim", steps=9, grid="karas"), "sampler.grid='karas': expected one of exponential"),
    (dict(name="ddim", steps=9, grid={"name": "karras", "roh": 7}), "did you mean 'rho'"),
    (dict(name="ddim", steps=9, eta=-1.0), "sampler.eta=-1.0: expected a finite number, 0 or more"),
    (dict(name="ddim", steps=9, eta=1.5), "eta=1.5: expected"),
    (dict(name="ancestral", steps=9, v=1.5), "v=1.5: expected"),
    (dict(name="rk4", steps=9), "sampler='rk4': expected another on Discrete"),
    (dict(name="dpm_solver", steps=9, order=4), "order=4: expected a whole number, 1 to 3"),
  ],
)
def test_bad_samplers_are_refused(options, words):
  with pytest.raises(ValueError, match=words):
    samplers.draw(DATA.field(paths.Discrete()), keys(), (1,), **options)


# Every sampler of configs on every path: what `check` refuses there, and what a draw gives.
TANH = lambda x, t: jnp.tanh(x)  # whatever a network is trained to predict
PATHS = {
  "Linear": paths.velocity_field(paths.Linear(), TANH),
  "Cosine": paths.v_field(paths.Cosine(), TANH),
  "VP": paths.eps_field(paths.VP(), TANH),
  "EDM": paths.x_field(paths.EDM(), TANH),
  "Discrete": paths.eps_field(paths.Discrete(), TANH),
}
REFUSED = {  # along all grids
  "Linear": {
    "euler_maruyama",
    "langevin",
    "pndm",
    "predictor_corrector",
    "reverse_diffusion",
  },
  "Cosine": {"langevin", "pndm"},
  "VP": {"langevin"},
  "EDM": set(),
  "Discrete": {"adaptive", "heun", "langevin", "rk4", "rk4_38"},
}


@functools.cache
def allowed(on):
  """{sampler: the grids along which `check` lets it run}, of a path's name."""
  found = {}
  for name in samplers.NAMES:
    for grid in ("uniform", "karras"):  # the second ends where sigma is 0, if the path has that
      try:
        samplers.check(PATHS[on].path, dict(name=name, steps=5, grid=grid))
      except ValueError:
        continue
      found.setdefault(name, []).append(grid)
  return found


def along(name, field, x, grid_names, steps, **options):
  """{grid: x}, x(path, t) at the first time of each: one loop for all grids."""
  ts = jnp.stack([getattr(grids, grid)(field.path, steps) for grid in grid_names])

  def solve(ts):
    start = x(field.path, ts[0])
    return samplers.by_name(name)(field, start, keys(len(start)), ts, **options)

  return dict(zip(grid_names, jax.vmap(solve)(ts), strict=True))


@pytest.mark.parametrize("on", PATHS)
def test_what_a_path_does_not_refuse_is_drawn(on):
  field = PATHS[on]
  fits = allowed(on)
  assert set(samplers.NAMES) - set(fits) == REFUSED[on]
  start = lambda path, t: path.prior_std * jnp.array([[-1.0], [0.5]])
  chosen = {name: gs for name, gs in fits.items() if name != "langevin"}  # whose step is too large
  run = lambda: {name: along(name, field, start, gs, 5) for name, gs in chosen.items()}
  for name, found in jax.jit(run)().items():
    for grid, x in found.items():
      assert x.shape == (2, 1) and jnp.isfinite(x).all(), (name, grid)


def test_pndm_is_refused_on_a_chain_without_a_signal_at_its_end():
  with pytest.raises(ValueError, match="sampler='pndm': expected another on Discrete"):
    samplers.check(paths.Discrete(tuple(paths.cosine_betas(1000))), dict(name="pndm", steps=9))


STOCHASTIC = {
  "ancestral",
  "dpm_solver_pp_ancestral",
  "euler_maruyama",
  "flow_sde",
  "flow_sde_heun",
  "predictor_corrector",
  "reverse_diffusion",
}
WHERE = {"VP": ("uniform", "karras"), "EDM": ("karras",)}  # near enough levels for 200 steps


@pytest.mark.parametrize("on", WHERE)
def test_every_sampler_of_configs_draws_the_data(on):
  """Quantiles at the noise become quantiles of the data; a stochastic sampler keeps moments."""
  path, fits = PATHS[on].path, allowed(on)
  xi = jnp.linspace(-2.0, 2.0, 9)[:, None]
  z = jax.random.normal(jax.random.key(1), (4, 500))

  @jax.jit
  def run():
    found = {}
    # The step of the first is chosen for the data; the second leaves a flow that is not straight.
    for name in sorted(set(fits) - {"langevin", "straight"}):
      where = [grid for grid in WHERE[on] if grid in fits[name]]
      start = functools.partial(DATA.at, xi=z if name in STOCHASTIC else xi)
      found[name] = along(name, DATA.field(path), start, where, 200) if where else {}
    return found

  for name, found in run().items():
    for grid, x in found.items():
      if name in STOCHASTIC:
        # 0.011 is the error of the mean of 2000 numbers, up to 0.01 that of first-order steps
        known, atol = [DATA.mean, DATA.std], 0.04
        x = [x.mean(), x.std()]
      else:
        known, atol = DATA.at(path, getattr(grids, grid)(path, 200)[-1], xi), 0.02
      np.testing.assert_allclose(x, known, atol=atol, err_msg=f"{name}, {grid}")


# Golden vectors. The toy network of the sidecars; guided-diffusion counts t from 0.
SPACED = jnp.array([1000.0, 889, 778, 667, 556, 445, 334, 223, 112, 1, 0])


def toy(x, t):
  t = paths.expand(t, x)
  return 0.8 * jnp.tanh(x) * (0.5 + t / 2000) + 0.1 * jnp.cos(t / 100)


def guided_diffusion(clip):
  field = paths.eps_field(paths.Discrete(), lambda x, t: toy(x, t - 1.0))
  return guidance.clipped(field) if clip else field


def test_golden_timesteps():
  _, close = golden.load("space_timesteps")
  close(paths.times(paths.Discrete(), 1000)[:-1][::-1][::20] - 1, "1000__ddim50")


def test_golden_reverse_step():
  x, close = golden.load("p_mean_variance_fixed_large")
  path, t = paths.Discrete(), jnp.asarray(x["in.t"] + 1, jnp.float32)
  field = guidance.clipped(paths.eps_field(path, lambda *_: x["in.model_output"]))
  p, t = field.predict(x["in.x_t"], t), paths.expand(t, x["in.x_t"])
  q = paths.posterior(path, t, t - 1.0)
  close(p.x, "pred_xstart")
  close(q.x_weight * p.x + q.x_t_weight * x["in.x_t"], "mean")
  late = np.broadcast_to(x["in.t"][:, None, None, None] > 0, x["in.x_t"].shape)
  close(q.large, "variance", where=late)  # at t = 0 no noise is added


@pytest.mark.evidence("D02", "G")
def test_golden_ancestral():
  x, close = golden.load("ddpm_ancestral_10steps")
  run = functools.partial(ancestral.ancestral, guided_diffusion(True), v=0.0)
  close(run(x["in.x_T"], keys(2), SPACED, z=x["in.z"]), "x_0")


def test_golden_ddim():
  x, close = golden.load("ddim_sample_10steps_clip1")
  close(ddim.ddim(guided_diffusion(True), x["in.x_T"], keys(2), SPACED), "x_0")


def test_golden_ddim_inversion():
  x, close = golden.load("ddim_inversion_10steps")
  ts, path = SPACED[-2::-1], [x["in.x_0"]]
  step = jax.jit(lambda x, pair: ddim.ddim(guided_diffusion(False), x, keys(2), pair))
  for pair in jnp.stack([ts[:-1], ts[1:]], axis=1):
    path.append(step(path[-1], pair))
  # The source's last step goes on to alpha = 0, where what is left is eps.
  path.append(guided_diffusion(False).predict(path[-1], jnp.full(2, 1000.0)).eps)
  close(np.stack(path), "path")


def test_golden_ddim_of_diffusers():
  """Steps of 100 from t = 901 (offset 1); below 0 its alpha-bar is that of t = 0, our t = 1."""
  x, close = golden.load("diffusers_ddim_eps")
  path = paths.Discrete(tuple(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))
  field = paths.eps_field(path, lambda x, t: toy(x, t - 1.0))
  ts = jnp.array([*range(902, 0, -100), 1.0])
  close(ts[:-1] - 1.0, "timesteps")
  close(ddim.ddim(field, x["in.x_T"], keys(2), ts), "x_0")


def test_golden_euler_of_rectified_flow():
  """Its steps have length 1/N although its times run from 1e-3 to 1."""
  x, close = golden.load("rectified_flow_euler")
  v = lambda x, t: jnp.tanh(x) * (1.0 - paths.expand(t, x)) - x * paths.expand(t, x) / 2.0
  stretched = lambda x, t: v(x, t) / (1.0 - 1e-3)
  close(ode.euler(stretched, x["in.z0"], jnp.linspace(1e-3, 1.0, 21)), "x")


@pytest.mark.evidence("R06", "G")
def test_golden_ode_solver():
  x, close = golden.load("fm_ode_solver")
  u = lambda x, t: jnp.tanh(x) * (1.0 - paths.expand(t, x)) - x * paths.expand(t, x) / 2.0
  close(ode.euler(u, x["in.x"], jnp.linspace(0.0, 1.0, 11)), "euler")
  close(ode.heun(u, x["in.x"], jnp.linspace(0.0, 1.0, 501)), "dopri5")


def test_golden_euler_of_diffusers():
  """FlowMatchEuler: sigma runs from 1 to 0, data = 1 - sigma, and the network says eps - x."""
  x, close = golden.load("diffusers_flowmatch_euler")
  sigmas = jnp.concatenate([jnp.linspace(1000.0, 1.0, 10) / 1000.0, jnp.zeros(1)])
  close(sigmas, "sigmas")
  velocity = lambda x, t: -toy(x, 1000.0 * (1.0 - t))
  close(ode.euler(velocity, x["in.x_T"], 1.0 - sigmas), "x_0")

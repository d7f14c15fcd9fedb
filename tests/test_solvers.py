"""Fast solvers and their grids: exactness, orders on an oracle, ends, golden vectors."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData

from jaxgen import noise, paths
from jaxgen.samplers import ddim, dpm_solver, edm, grids, lms, ode, pndm, unipc

DATA = GaussianData()
keys = lambda n=9: jax.random.split(jax.random.key(0), n)
of = functools.partial
# Everything here, at its default order.
SOLVERS = {
  "singlestep": dpm_solver.singlestep,
  "singlestep_pp": dpm_solver.singlestep_pp,
  "multistep": dpm_solver.multistep,
  "multistep_pp": dpm_solver.multistep_pp,
  "sde_pp": of(dpm_solver.multistep_pp, eta=1.0),
  "ancestral_pp": dpm_solver.ancestral_pp,
  "unipc": unipc.unipc,
  "pndm": pndm.pndm,
  "lms": lms.lms,
}
in_eps = ["singlestep", "multistep", "pndm", "lms"]
in_x = ["singlestep_pp", "multistep_pp", "unipc"]
to_data = ["unipc", "multistep_pp", "singlestep_pp", "lms"]  # from alpha = 0 to sigma = 0


# The numbers that solvers are made of.
@pytest.mark.parametrize("z", [-30.0, -3.0, -1.0, -0.02, -1e-4, 1e-4, 0.02, 0.99, 3.0, 20.0])
def test_moments_are_the_integrals_in_float32(z):
  u, w = np.polynomial.legendre.leggauss(80)
  u, w = 0.5 * (u + 1.0), 0.5 * w
  exact = [z * (w * np.exp(z * (1.0 - u)) * u**i).sum() for i in range(4)]
  np.testing.assert_allclose(dpm_solver.moments(jnp.float32(z), 3), exact, rtol=3e-6)


def test_weights_integrate_polynomials_and_forget_nodes_at_infinity():
  r, moments = jnp.array([1.0, -0.7, -2.0]), jnp.array([0.4, 0.3, 0.2])
  w = jnp.stack(lms.weights(list(moments), list(1.0 / r)))
  for i in range(3):
    np.testing.assert_allclose(w @ r ** (i + 1), moments[i], rtol=1e-5)
  two = lms.weights(list(moments[:2]), list(1.0 / r[:2]))
  np.testing.assert_allclose(
    lms.weights(list(moments), [*1.0 / r[:2], 0.0]), [*two, 0.0], atol=1e-6
  )


@pytest.mark.parametrize("order", [1, 2, 3])
def test_orders_of_single_steps_add_up(order):
  for n in range(order, 20):
    sizes = dpm_solver.orders(n, order)
    assert sum(sizes) == n and max(sizes) == (order if n > order or order < 3 else 2)
  assert dpm_solver.orders(0, order) == []


def test_orders_rise_and_fall():
  np.testing.assert_array_equal(lms.orders(7, 3, 1), [1, 2, 3, 3, 3, 2, 1])
  np.testing.assert_array_equal(lms.orders(4, 3, 3), [1, 2, 3, 3])


# What each solver solves exactly, whatever the steps.
TS = jnp.array([0.9, 0.5, 0.4, 0.1, 0.05])


@pytest.mark.parametrize("name", in_eps)
def test_a_constant_eps_is_solved_exactly(name):
  path, (x, eps) = paths.VP(), jax.random.normal(jax.random.key(1), (2, 9, 2))
  field = paths.eps_field(path, lambda *_: eps)
  y = jax.jit(of(SOLVERS[name], field))(paths.interpolate(path, x, eps, 0.9), keys(), TS)
  # 1e-4: x is found by dividing by alpha(0.9) = 0.017
  np.testing.assert_allclose(y, paths.interpolate(path, x, eps, 0.05), atol=1e-4)


@pytest.mark.parametrize("name", in_x)
def test_a_constant_x_is_solved_exactly(name):
  path, (x, eps) = paths.VP(), jax.random.normal(jax.random.key(1), (2, 9, 2))
  field = paths.x_field(path, lambda *_: x)
  y = jax.jit(of(SOLVERS[name], field))(paths.interpolate(path, x, eps, 0.9), keys(), TS)
  np.testing.assert_allclose(y, paths.interpolate(path, x, eps, 0.05), atol=2e-6)


def test_first_order_is_ddim_also_with_noise():
  x = jax.random.normal(jax.random.key(1), (9, 2))
  path = paths.Discrete()
  run = lambda s, **o: jax.jit(of(s, DATA.field(path), **o))(x, keys(), paths.times(path, 10))
  for solver in (dpm_solver.multistep, dpm_solver.multistep_pp, dpm_solver.singlestep):
    np.testing.assert_allclose(run(solver, order=1), run(ddim.ddim), atol=1e-5)
  noisy = run(dpm_solver.multistep_pp, order=1, eta=1.0)
  np.testing.assert_allclose(noisy, run(ddim.ddim, eta=1.0), atol=2e-5)


def test_lms_of_order_one_is_euler_in_sigma():
  path = paths.EDM()
  x, ts = 10.0 * jax.random.normal(jax.random.key(1), (9, 2)), jnp.array([10.0, 3.0, 1.0, 0.2])
  y = jax.jit(of(lms.lms, DATA.field(path), order=1))(x, keys(), ts)
  np.testing.assert_allclose(y, ode.euler(DATA.field(path).velocity, x, ts), rtol=1e-5, atol=1e-6)


# Orders of convergence: log2 of the ratio of errors at 192 and 384 evaluations.
PATHS = {
  "VP": (paths.VP(), jnp.linspace, 1.0, 0.05),
  "EDM": (paths.EDM(), lambda a, b, n: jnp.linspace(a**0.25, b**0.25, n) ** 4, 10.0, 0.1),
  "Linear": (paths.Linear(), jnp.linspace, 0.05, 0.95),
  "Cosine": (paths.Cosine(), jnp.linspace, 0.95, 0.05),
}
ORDERS = {
  "singlestep-2": (2, dpm_solver.singlestep),
  "singlestep-3": (3, lambda f, x, k, ts: dpm_solver.singlestep(f, x, k, ts, sizes=_threes(ts))),
  "singlestep_pp-2": (2, dpm_solver.singlestep_pp),
  "singlestep_pp-3": (
    3,
    lambda f, x, k, ts: dpm_solver.singlestep_pp(f, x, k, ts, sizes=_threes(ts)),
  ),
  "multistep-1": (1, of(dpm_solver.multistep, order=1)),
  "multistep-2": (2, dpm_solver.multistep),
  "multistep_pp-2": (2, dpm_solver.multistep_pp),
  "ancestral_pp, eta=0": (2, of(dpm_solver.ancestral_pp, eta=0.0)),
  # The corrector adds one: arXiv:2302.04867, Thm. 3.1.
  "unipc-1": (2, of(unipc.unipc, order=1)),
  "unipc-2": (3, of(unipc.unipc, final=3)),
  "unipc-2, bh1": (3, of(unipc.unipc, final=3, B=unipc.bh1)),
  "unipc-3": (4, of(unipc.unipc, order=3, final=3)),
  "pndm": (2, pndm.pndm),  # arXiv:2202.09778: second order where t is not sigma / alpha
  "lms-2": (2, of(lms.lms, order=2)),
}
# There the errors at both ends of the trajectory have opposite signs, and pass through 0.
EXCEPT = {("VP", "multistep-2"), ("VP", "unipc-3")}


def _threes(ts):
  return (3,) * ((len(ts) - 1) // 3)


def rates(path, solvers, *grids):
  """log2 of the ratio of the errors on two grids, for each solver: one program."""
  with jax.enable_x64(True):
    xi = jnp.linspace(-2.0, 2.0, 9)[:, None]

    @jax.jit
    def errors():
      def error(solver, ts):
        x = solver(DATA.field(path), DATA.at(path, ts[0], xi), keys(), ts)
        return jnp.abs(x - DATA.at(path, ts[-1], xi)).max()

      return {k: [error(s, ts) for ts in grids] for k, s in solvers.items()}

    return {k: np.log2(a / b) for k, (a, b) in errors().items()}


@pytest.mark.parametrize("name", PATHS)
def test_solvers_have_their_order(name):
  path, space, start, end = PATHS[name]
  solvers = {k: v for k, v in ORDERS.items() if (name, k) not in EXCEPT}
  with jax.enable_x64(True):
    ts = [space(start, end, n + 1) for n in (192, 384)]
  found = rates(path, {k: s for k, (_, s) in solvers.items()}, *ts)
  for k, rate in found.items():
    np.testing.assert_allclose(rate, solvers[k][0], atol=0.2, err_msg=f"{k} on {name}")


def test_high_orders_after_a_fine_start():
  """A multistep method begins with order 1: steps that grow from 0 hide that.

  With half of the second derivative, as released, order 3 has no more than 2.
  """
  with jax.enable_x64(True):
    ts = [0.05 + 0.9 * jnp.linspace(0.0, 1.0, n + 1) ** 3 for n in (192, 384)]
    even = [jnp.linspace(1.0, 0.05, n + 1) for n in (192, 384)]
  pp = of(dpm_solver.multistep_pp, order=3)
  solvers = {"pp": pp, "lms-3": of(lms.lms, order=3), "lms-4": lms.lms}
  found = rates(paths.Linear(), solvers, *ts)
  np.testing.assert_allclose([found["pp"], found["lms-3"], found["lms-4"]], [3, 3, 4], atol=0.1)
  # On VP nothing happens in the first steps anyway.
  solvers = {"eps": of(dpm_solver.multistep, order=3), "released": of(pp, curvature=0.5)}
  found = rates(paths.VP(), solvers, *even)
  np.testing.assert_allclose([found["eps"], found["released"]], [3, 2], atol=0.1)


def test_pndm_is_of_fourth_order_where_time_is_the_noise_level():
  with jax.enable_x64(True):
    ts = [jnp.linspace(3.0, 0.6, n + 1) for n in (384, 768)]
  np.testing.assert_allclose(rates(paths.EDM(), {"": pndm.pndm}, *ts)[""], 4, atol=0.1)


def test_pndm_is_the_papers_algorithm():
  """arXiv:2202.09778, Alg. 2 step by step: Runge-Kutta three times, then Adams-Bashforth."""
  with jax.enable_x64(True):
    path = paths.Discrete()
    field = paths.eps_field(path, lambda x, t: toy(x, t - 1.0))
    x_T, ts = jax.random.normal(jax.random.key(1), (2, 3)), np.linspace(1000.0, 0.0, 9)
    eps = jax.jit(lambda x, t: field.predict(x, jnp.full(2, t)).eps)

    def move(x, e, t, s):
      (a, b), (c, d) = ((path.alpha(u), path.sigma(u)) for u in (t, s))
      return c / a * x + (d - c * b / a) * e

    x, old = x_T, []
    for t, s in zip(ts[:-1], ts[1:], strict=True):
      e1, m = eps(x, t), 0.5 * (t + s)
      if len(old) < 3:
        e2 = eps(move(x, e1, t, m), m)
        e3 = eps(move(x, e2, t, m), m)
        e = (e1 + 2 * e2 + 2 * e3 + eps(move(x, e3, t, s), s)) / 6
      else:
        e = (55 * e1 - 59 * old[-1] + 37 * old[-2] - 9 * old[-3]) / 24
      old.append(e1)
      x = move(x, e, t, s)
    np.testing.assert_allclose(jax.jit(of(pndm.pndm, field))(x_T, keys(2), ts), x, rtol=1e-10)


# Ends, moments, programs.
@pytest.mark.parametrize("name", to_data)
def test_a_line_is_followed_from_noise_alone_to_data_alone(name):
  """alpha is 0 at the start and sigma at the end: lambda is infinite at both, in float32."""
  path, xi = paths.Linear(), jnp.linspace(-2.0, 2.0, 9)[:, None]
  x = jax.jit(of(SOLVERS[name], DATA.field(path)))(xi, keys(), paths.times(path, 100))
  np.testing.assert_allclose(x, DATA.at(path, 1.0, xi), atol=0.01)


@pytest.mark.parametrize("name", [*in_eps, *in_x])
def test_a_chain_is_followed_to_the_data(name):
  path, xi = paths.Discrete(), jnp.linspace(-2.0, 2.0, 9)[:, None]
  run = jax.jit(of(SOLVERS[name], DATA.field(path)))
  x = run(DATA.at(path, 1000.0, xi), keys(), paths.times(path, 200))
  np.testing.assert_allclose(x, DATA.at(path, 0.0, xi), atol=0.004)  # DDIM: 0.03


@pytest.mark.parametrize("name", ["multistep_pp", "unipc", "lms"])
def test_float32_keeps_a_thousand_steps_exact(name):
  path, xi = paths.Discrete(), jnp.linspace(-2.0, 2.0, 9)[:, None]
  run = of(SOLVERS[name], DATA.field(path))
  single = jax.jit(run)(DATA.at(path, 1000.0, xi), keys(), paths.times(path, 1000))
  with jax.enable_x64(True):
    ts = np.asarray(paths.times(path, 1000), np.float64)
    double = jax.jit(run)(DATA.at(path, 1000.0, jnp.asarray(xi, jnp.float64)), keys(), ts)
  np.testing.assert_allclose(single, double, atol=2e-5)


@pytest.mark.parametrize("name", ["sde_pp", "ancestral_pp"])
def test_stochastic_solvers_have_the_moments_of_the_data(name):
  path = paths.Discrete()
  x = jax.random.normal(jax.random.key(1), (8, 1000))
  run = jax.jit(of(SOLVERS[name], DATA.field(path)))
  x = run(x, keys(8), grids.karras(path, 60))
  # 0.006 is the error of the mean of 8000 numbers
  np.testing.assert_allclose([x.mean(), x.std()], [DATA.mean, DATA.std], atol=0.02)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_sample_does_not_depend_on_its_batch(name):
  path = paths.Discrete()
  field = paths.eps_field(path, toy)

  @of(jax.jit, static_argnums=(1,))
  def run(first, n):
    k_x, k_z = noise.split(noise.rows(jax.random.key(2), n, first))
    return SOLVERS[name](field, noise.normal(k_x, (4,)), k_z, paths.times(path, 10))

  np.testing.assert_allclose(run(0, 8)[4:], run(4, 4), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", SOLVERS)
def test_a_solver_is_one_scan_for_all_times(name):
  def run(x, keys, ts):
    return SOLVERS[name](paths.eps_field(paths.VP(), toy), x, keys, ts)

  text = str(jax.make_jaxpr(run)(jnp.zeros((9, 2)), keys(), jnp.linspace(1.0, 0.1, 101)))
  evaluations = {"pndm": 109, "ancestral_pp": 200}.get(name, 100)
  assert text.count("scan[") == 1 and f"length={evaluations}" in text
  assert text.count("tanh") == 1  # the network is in the program once


@pytest.mark.parametrize(
  "solver, ts, words",
  [
    (of(dpm_solver.multistep, order=4), [1.0, 0.5, 0.1], "order=4"),
    (of(dpm_solver.multistep_pp, eta=-1.0), [1.0, 0.5, 0.1], "eta=-1.0"),
    (of(dpm_solver.ancestral_pp, eta=1.5), [1.0, 0.5, 0.1], "eta=1.5"),
    (of(dpm_solver.multistep_pp, final=0), [1.0, 0.5, 0.1], "final=0"),
    (of(unipc.unipc, order=3), [1.0, 0.5, 0.1], "steps=2: expected a whole number, 3 or more"),
    (dpm_solver.singlestep, [1.0, 0.5], "steps=1"),
    (of(dpm_solver.singlestep, sizes=(2, 2)), [1.0, 0.5, 0.1], r"sizes=\(2, 2\).* sum is 2"),
    (of(dpm_solver.singlestep, sizes=(4,)), np.linspace(1.0, 0.1, 5), r"sizes=\(4,\)"),
    (pndm.pndm, [1.0, 0.5, 0.2, 0.1], "steps=3: expected a whole number, 4 or more"),
    (of(lms.lms, order=5), [1.0, 0.5, 0.1], "order=5"),
    (dpm_solver.ancestral_pp, [0.1, 0.5], "expected times strictly from noise to data"),
    (lms.lms, [1.0, 0.5, 0.5, 0.2, 0.1], "expected times strictly from noise to data"),
    (dpm_solver.multistep_pp, [1.5, 0.5, 0.1], "t=1.5: expected 0 to 1"),
    (dpm_solver.multistep_pp, [1.0, 0.5, np.nan], "t=nan"),
  ],
)
def test_bad_times_and_orders_are_refused(solver, ts, words):
  with pytest.raises(ValueError, match=words):
    solver(DATA.field(paths.VP()), jnp.zeros((9, 1)), keys(), jnp.array(ts))


# Grids.
GRIDS = [grids.uniform, grids.quadratic, grids.karras, grids.exponential, grids.log_snr]


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.__name__)
def test_grids_run_from_noise_to_data(grid):
  every = [paths.VP(), paths.SubVP(), paths.VE(), paths.EDM(), paths.Cosine(), paths.Discrete()]
  for path in every:
    for n in (1, 7):
      ts = grid(path, n)
      paths.check_times(path, ts)
      assert ts.shape == (n + 1,) and ts.dtype == jnp.float32
      assert ts[0] == np.float32(path.t_noise) and (np.diff(ts) < 0.0).all()
  inside = jax.jit(lambda: grid(path, 7))()  # a draw is compiled with its grid
  np.testing.assert_allclose(inside, ts, rtol=1e-6)


@pytest.mark.parametrize("grid", GRIDS, ids=lambda g: g.__name__)
def test_a_chain_has_whole_steps_up_to_all_of_them(grid):
  path = paths.Discrete()
  for n in (1, 3, 100, 999, 1000):
    ts = np.asarray(grid(path, n))
    assert (np.diff(ts) <= -1.0).all() and (ts == ts.round()).all()
    assert len(ts) == n + 1 and ts[0] == 1000.0 and ts[-1] == 0.0
  with pytest.raises(ValueError, match="steps=1001: expected a whole number, 1 to 1000"):
    grid(path, 1001)


def test_grids_space_their_levels():
  level = lambda path, ts: np.asarray(path.sigma(ts) / path.alpha(ts), np.float64)
  for path in (paths.VP(), paths.Linear(0.1), paths.VE()):
    ends = {} if path.t_data < path.t_noise else dict(first=0.05, last=0.9)
    roots = level(path, grids.karras(path, 9, rho=3.0, **ends)[:-1]) ** (1 / 3)
    np.testing.assert_allclose(np.diff(roots), np.diff(roots).mean(), rtol=1e-3)
    logs = np.log(level(path, grids.log_snr(path, 9, **ends)))
    np.testing.assert_allclose(np.diff(logs), np.diff(logs).mean(), rtol=1e-3)
  roots = np.sqrt(np.asarray(grids.quadratic(paths.VP(), 9)))
  np.testing.assert_allclose(np.diff(roots), np.diff(roots).mean(), rtol=1e-5)
  np.testing.assert_allclose(grids.quadratic(paths.Linear(), 2), [0.0, 0.75, 1.0])


def test_inner_times_are_equal_in_lambda():
  path = paths.VP()
  ts = grids.inner(path, [1.0, 0.4, 0.1, 0.0], 3)
  assert ts.shape == (8,)  # none in the step to sigma = 0
  np.testing.assert_allclose(ts[jnp.array([0, 3, 6, 7])], [1.0, 0.4, 0.1, 0.0])
  lam = np.asarray(0.5 * paths.log_snr(path, ts[:-1]))
  for part in (lam[:4], lam[3:]):
    r = (part[1:3] - part[0]) / (part[3] - part[0])
    np.testing.assert_allclose(r, [1 / 3, 2 / 3], rtol=1e-5)
  steps = np.diff(np.asarray(paths.log_snr(path, grids.log_snr(path, 10, order=3))))
  whole = np.add.reduceat(steps, [0, 3, 6, 9])
  np.testing.assert_allclose(whole, whole[0], rtol=1e-4)


@pytest.mark.parametrize(
  "make, words",
  [
    (lambda: grids.karras(paths.Linear(), 5), "first=0.0: expected a time where alpha and sigma"),
    (lambda: grids.log_snr(paths.VP(), 5, last=0.0), "last=0.0: expected a time where alpha"),
    (lambda: grids.karras(paths.VP(), 5, first=0.1, last=0.5), "last=0.5: expected a time nearer"),
    (lambda: grids.exponential(paths.VP(), 5, rho=0.0), "rho=0.0"),
    (lambda: grids.log_snr(paths.VP(), 5, order=4), "order=4"),
    (lambda: grids.inner(paths.Linear(), [0.0, 0.5, 1.0], 2), "expected alpha and sigma above 0"),
    (lambda: grids.strided(paths.Discrete(), 600), "steps=600"),
    (lambda: grids.spaced(paths.Discrete(), (10, 600)), r"counts\[1\]=600.* 1 to 500"),
    (lambda: grids.spaced(paths.VP(), (10,)), "expected a Discrete path"),
  ],
)
def test_bad_grids_are_refused(make, words):
  with pytest.raises(ValueError, match=words):
    make()


# Golden vectors, with the toy networks of their sidecars.
def toy(x, t):
  t = paths.expand(t, x)
  return 0.8 * jnp.tanh(x) * (0.5 + t / 2000) + 0.1 * jnp.cos(t / 100)


def vp_toy(x, t):
  t = paths.expand(t, x)
  return 0.8 * jnp.tanh(x) * (0.5 + t / 2) + 0.1 * jnp.cos(10 * t)


def denoiser(x, sigma):
  m = jnp.broadcast_to(jnp.linspace(-1.0, 1.0, 48).reshape(3, 4, 4), x.shape)
  sigma = paths.expand(sigma, x)
  return m + 0.25 / (0.25 + sigma**2) * (x - m) + 0.05 * jnp.tanh(x) * sigma / (1 + sigma)


@pytest.mark.parametrize(
  "name, order",
  [
    *[("singlestep", k) for k in (1, 2)],
    *[("singlestep_pp", k) for k in (1, 3)],
    *[("multistep", k) for k in (1, 2)],
    *[("multistep_pp", k) for k in (1, 2, 3)],
  ],
)
def test_golden_dpm_solver(name, order):
  kind, _, pp = name.partition("_")
  x, close = golden.load(f"dpmsolver_dpmsolver{pp}_{kind}_{order}_time_uniform")
  # As released; the default, 1, has the order test above.
  options = {"curvature": 0.5} if kind == "multistep" else {}
  field = paths.eps_field(paths.VP(), vp_toy)
  with jax.enable_x64(True):
    run = jax.jit(of(SOLVERS[name], field, order=order, **options))
    close(run(x["in.x"], keys(2), np.linspace(1.0, 1e-3, 11)), "x")


def test_golden_orders_and_schedule():
  _, close = golden.load("dpmsolver_orders")
  for n in (10, 11, 12):
    for order in (2, 3):
      close(dpm_solver.orders(n, order), f"s{n}_o{order}")
  x, close = golden.load("dpmsolver_schedule_discrete")
  path = paths.Discrete()
  with jax.enable_x64(True):
    t = jnp.asarray(1000.0 * x["in.t"])
    log_snr = paths.log_snr(path, t)
    close(jnp.log(path.alpha(t)), "log_alpha")
    close(path.sigma(t), "std")
    close(0.5 * log_snr, "lam")
    close(path.time(log_snr) / 1000.0, "t_back")


def _in_every_other(z):
  return np.stack([np.zeros_like(z), z], 1).reshape(-1, *z.shape[1:])


@pytest.mark.parametrize(
  "name, solve",
  [
    ("dpm_2", lambda f, x, k, ts, z: dpm_solver.singlestep(f, x, k, grids.inner(f.path, ts, 2))),
    ("dpmpp_2m", lambda f, x, k, ts, z: dpm_solver.multistep_pp(f, x, k, ts)),
    ("dpmpp_2m_sde", lambda f, x, k, ts, z: dpm_solver.multistep_pp(f, x, k, ts, eta=1.0, z=z)),
    (
      "dpmpp_2s_ancestral",
      lambda f, x, k, ts, z: dpm_solver.ancestral_pp(f, x, k, ts, z=_in_every_other(z)),
    ),
    ("euler", lambda f, x, k, ts, z: ode.euler(f.velocity, x, ts)),
    ("euler_ancestral", lambda f, x, k, ts, z: ddim.ddim(f, x, k, ts, eta=1.0, z=z)),
    ("heun", lambda f, x, k, ts, z: edm.heun(f, x, k, ts)),
  ],
)
def test_golden_k_diffusion(name, solve):
  x, close = golden.load(f"kdiff_sample_{name}")
  z = x.get("in.z")
  if z is not None:  # none is drawn in the last step
    z = np.concatenate([z, np.zeros_like(z[:1])])
  field = paths.x_field(paths.EDM(), denoiser)
  with jax.enable_x64(True):
    run = jax.jit(lambda y: solve(field, y, keys(2), x["in.sigmas"], z))
    close(run(x["in.x"]), "x")


def test_golden_lms_coefficients():
  x, close = golden.load("kdiff_lms_coeff")
  with jax.enable_x64(True):
    tau = jnp.asarray(x["in.t"])
    others = lms.coefficients(tau, 4)
    c = jnp.stack([jnp.diff(tau) - sum(others), *others], 1)
    close(c[:9], "c")


LATENT = paths.Discrete(tuple(np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2))


@pytest.mark.parametrize(
  "name, solver", [("dpmpp_2m", dpm_solver.multistep_pp), ("unipc", unipc.unipc)]
)
def test_golden_multistep_of_diffusers(name, solver):
  x, close = golden.load(f"diffusers_{name}")
  ts = np.append(np.round(np.linspace(0.0, 999.0, 11))[:0:-1] + 1.0, 0.0)
  close(ts[:-1] - 1.0, "timesteps")
  close(LATENT.sigma(ts) / LATENT.alpha(ts), "sigmas")
  field = paths.eps_field(LATENT, lambda x, t: toy(x, t - 1.0))
  close(jax.jit(of(solver, field))(x["in.x_T"], keys(2), ts), "x_0")


@pytest.mark.parametrize(
  "name, solve",
  [
    ("euler", lambda f, x, ts: ode.euler(f.velocity, x, ts)),
    ("heun", lambda f, x, ts: edm.heun(f, x, keys(2), ts)),
    ("lms", lambda f, x, ts: lms.lms(f, x, keys(2), ts)),
  ],
)
def test_golden_noise_levels_of_diffusers(name, solve):
  """They run in sigma / alpha: the network of the chain, moved to EDM's path."""
  x, close = golden.load(f"diffusers_{name}")
  ts = np.append(np.linspace(999.0, 0.0, 10) + 1.0, 0.0)
  sigmas = LATENT.sigma(ts) / LATENT.alpha(ts)
  if name != "heun":  # which repeats the inner ones
    close(sigmas, "sigmas")
  field = paths.eps_field(LATENT, lambda x, t: toy(x, t - 1.0))
  close(jax.jit(of(solve, paths.moved(field, paths.EDM())))(x["in.x_T"], sigmas), "x_0")


def test_golden_noise_levels():
  _, close = golden.load("kdiff_sigmas")
  ve, vp = paths.EDM(0.02, 80.0), paths.VP()
  level = lambda path, ts: path.sigma(ts) / path.alpha(ts)
  close(grids.karras(ve, 10), "karras")
  close(grids.karras(paths.EDM(0.03, 15.0), 7, rho=5.0), "karras_rho5")
  close(grids.exponential(ve, 10), "exponential")
  close(grids.exponential(ve, 10, rho=2.0), "polyexponential")
  close(np.append(level(vp, paths.times(vp, 9)), 0.0), "vp")
  _, close = golden.load("sgm_discretizer")
  close(grids.karras(paths.EDM(), 12), "edm")
  kept = np.floor(np.linspace(999.0, 0.0, 12, endpoint=False)) + 1.0
  close(np.append(level(LATENT, kept), 0.0), "legacy")


def test_golden_vp_in_noise_levels():
  x, close = golden.load("edm_vp_sigma")
  path = paths.VP()
  sigma = path.sigma(x["in.t"]) / path.alpha(x["in.t"])
  close(sigma, "sigma")
  close(path.time(-2.0 * jnp.log(sigma)), "t_back")


def test_golden_respacing():
  _, close = golden.load("space_timesteps")
  chain = lambda T: paths.Discrete((0.01,) * T)
  of_source = lambda ts: np.asarray(ts)[-2::-1] - 1.0  # which counts from 0, data first
  for T, counts in [(1000, (250,)), (1000, (10, 15, 20)), (300, (10, 10, 10))]:
    close(of_source(grids.spaced(chain(T), counts)), f"{T}__{'_'.join(map(str, counts))}")
  for T, n in [(1000, 50), (4000, 100), (1000, 25)]:
    close(of_source(grids.strided(chain(T), n)), f"{T}__ddim{n}")

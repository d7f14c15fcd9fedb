"""Neural ODEs: orders of the solvers, counted evaluations, two gradients, exact densities."""

import functools
import itertools
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats
from scipy.integrate import solve_ivp

from jaxgen import noise, paths
from jaxgen.models.flow_matching import neural_ode
from jaxgen.objectives import change_of_variables
from jaxgen.samplers import ode

KEY = jax.random.key
TS = jnp.array([0.0, 1.0])
GRADIENTS = [ode.direct, ode.adjoint]
by_gradient = pytest.mark.parametrize("solve", GRADIENTS, ids=lambda f: f.__name__)


def swing(x, t):
  """Not linear in x [B, D], and fast in t [B]."""
  return jnp.sin(3.0 * x) * jnp.cos(4.0 * paths.expand(t, x)) - 0.5 * x


# Solvers of fixed steps.
@pytest.mark.evidence("R01", "G")
@pytest.mark.evidence("R06", "G")
def test_golden_ode_solver():
  x, close = golden.load("fm_ode_solver")
  u = lambda x, t: jnp.tanh(x) * (1.0 - paths.expand(t, x)) - x * paths.expand(t, x) / 2.0
  tenths = jnp.linspace(0.0, 1.0, 11)
  close(jax.jit(lambda x: ode.euler(u, x, tenths))(x["in.x"]), "euler")
  close(jax.jit(lambda x: ode.midpoint(u, x, tenths))(x["in.x"]), "midpoint")
  close(jax.jit(lambda x: ode.rk4_38(u, x, tenths))(x["in.x"]), "rk4")
  close(jax.jit(lambda x: ode.adaptive(u, x, TS))(x["in.x"]), "dopri5")


@pytest.mark.evidence("R01", "M")
def test_fixed_steps_have_their_order_and_evaluate_where_they_say():
  orders = {ode.euler: 1, ode.midpoint: 2, ode.heun: 2, ode.rk4: 4, ode.rk4_38: 4}
  with jax.enable_x64(True):
    x = jnp.linspace(-1.0, 1.0, 5)[:, None]

    @jax.jit
    def errors():
      exact = ode.rk4(swing, x, jnp.linspace(0.0, 1.0, 2001))
      error = lambda f, n: jnp.abs(f(swing, x, jnp.linspace(0.0, 1.0, n + 1)) - exact).max()
      return [jnp.log2(error(f, 40) / error(f, 80)) for f in orders]

    np.testing.assert_allclose(errors(), [*orders.values()], atol=0.15)
  # dx/dt = the time, whose end must be met to the bit: in float32 0.1 + (0.3 - 0.1) is not 0.3.
  inner = {ode.euler: [], ode.midpoint: [0.2], ode.heun: [0.3], ode.rk4: [0.2, 0.2, 0.3]}
  for solve, after in {**inner, ode.rk4_38: [1 / 6, 7 / 30, 0.3]}.items():
    seen = []
    look = lambda x, t, seen=seen: (jax.debug.callback(lambda t: seen.append(t), t[0]), x)[1]
    jax.jit(lambda x, solve=solve, look=look: solve(look, x, jnp.array([0.1, 0.3])))(
      jnp.ones((1, 1))
    )
    jax.effects_barrier()
    seen = np.sort(np.float32(seen))
    np.testing.assert_allclose(seen, [0.1, *after], rtol=1e-6)
    assert seen[0] == np.float32(0.1) and (0.3 not in after or seen[-1] == np.float32(0.3))


# Counted evaluations.
@pytest.mark.evidence("R01", "M")
def test_evaluations_are_counted_example_by_example():
  x = jnp.array([[0.1], [2.0], [5.0]])
  times = []

  def fn(x, t):
    jax.debug.callback(lambda t: times.append(t), t[0])
    return x * jnp.cos(x) * jnp.exp(t)[:, None]

  ts = jnp.array([0.0, 3.0])
  count = jax.jit(lambda x: ode.evaluations(fn, x, ts, rtol=1e-4, atol=1e-4))
  together = np.asarray(count(x))
  jax.effects_barrier()
  for i in range(3):
    times.clear()
    alone = count(x[i : i + 1])
    jax.effects_barrier()
    assert len(times) == alone[0] == together[i]
    f = lambda t, x: x * np.cos(x) * np.exp(t)
    theirs = solve_ivp(f, (0.0, 3.0), np.asarray(x[i], np.float64), rtol=1e-4, atol=1e-4).nfev
    assert abs(together[i] - theirs) <= 0.4 * theirs  # its steps are chosen in another way
  assert together.dtype == np.int32 and len({*together.tolist()}) == 3
  cut = lambda x: ode.evaluations(lambda x, t: x**2, x, jnp.array([0.0, 2.0]), max_steps=20)
  np.testing.assert_array_equal(jax.jit(cut)(jnp.ones((1, 1))), 1 + 6 * 20)


# Gradients.
@pytest.mark.evidence("R01", "M")
@by_gradient
def test_the_gradient_of_a_linear_ode_is_known(solve):
  """x(1) = e^a x(0), a held by the velocity, for examples of their own steps under vmap and jit."""
  x, a = jax.random.normal(KEY(0), (5, 2)), jnp.array([0.7, -1.1])
  label = jnp.array([0, 1, 1, 0, 1])

  def loss(a, x):
    one = lambda x, i: solve(lambda x, t: a[i] * x, x[None], TS, rtol=1e-6, atol=1e-6)[0]
    return jnp.mean(jax.vmap(one)(x, label) ** 2)

  value, (d_a, d_x) = jax.jit(jax.value_and_grad(loss, (0, 1)))(a, x)
  z = np.asarray(x) * np.exp(np.asarray(a))[label][:, None]
  np.testing.assert_allclose(value, np.mean(z**2), rtol=1e-5)
  np.testing.assert_allclose(d_x, z * np.exp(np.asarray(a))[label][:, None] / 5, rtol=2e-5)
  each = [2.0 * (z[label == i] ** 2).sum() / 10 for i in (0, 1)]
  np.testing.assert_allclose(d_a, each, rtol=2e-5)


@pytest.mark.evidence("R01", "M")
def test_gradients_agree_with_those_of_fine_steps():
  """Of a network's parameters and of its input, through a state of two arrays."""
  x = jax.random.normal(KEY(0), (4, 2))
  w = {"in": jax.random.normal(KEY(1), (2, 8)), "out": jax.random.normal(KEY(2), (8, 2))}

  def loss(solve, w, x, ts):
    def fn(state, t):
      h = jnp.tanh(state[0] @ w["in"] + t[:, None])
      return h @ w["out"], jnp.sum(h, axis=1)

    z, total = solve(fn, (x, jnp.zeros(4)), ts)
    return jnp.sum(z**2) + jnp.sum(total**3)

  grad = lambda solve, ts: jax.jit(jax.grad(functools.partial(loss, solve), (0, 1)))(w, x, ts)
  exact = grad(ode.rk4, jnp.linspace(1.0, 0.0, 101))
  for solve in GRADIENTS:
    ours = grad(functools.partial(solve, rtol=1e-6, atol=1e-6), TS[::-1])
    close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-3)  # of up to 100
    jax.tree.map(close, ours, exact)


@by_gradient
def test_a_gradient_does_not_depend_on_the_weight_of_its_example(solve):
  """The mean over 1024 examples, or over one: the same steps, so the same numbers but for 1024."""
  x = jnp.array([[0.3, -1.0]])
  run = lambda weight: jax.grad(lambda x: weight * solve(swing, x, TS).sum())(x)
  one, small = jax.jit(lambda: (run(1.0), run(2.0**-10)))()
  np.testing.assert_allclose(small * 2.0**10, one, rtol=1e-6)


@by_gradient
def test_what_needs_more_steps_is_nan_with_its_gradient(solve):
  """dx/dt = x^2 from 1 is infinite at 1; from -1 it is 1 / (1 + t), and not disturbed."""

  def loss(x):
    one = lambda x: solve(lambda x, t: x**2, x[None], 2.0 * TS, max_steps=40)[0]
    z = jax.vmap(one)(x)
    return z.sum(), z

  d_x, z = jax.jit(jax.grad(loss, has_aux=True))(jnp.array([[1.0], [-1.0]]))
  assert np.isnan(z[0, 0]) and np.isnan(d_x[0, 0])
  # Each step is good to 1e-5 of its size, 1; the derivative shrinks to a ninth of it.
  np.testing.assert_allclose([z[1, 0], d_x[1, 0]], [-1 / 3, 1 / 9], rtol=2e-3)


@pytest.mark.parametrize("solve", [*GRADIENTS, ode.adaptive, ode.evaluations])
@pytest.mark.parametrize(
  "options, words",
  [
    ({"rtol": 0.0}, "rtol=0.0: expected a finite number above 0"),
    ({"atol": float("nan")}, "atol=nan: expected a finite number above 0"),
    ({"max_steps": 2.5}, "max_steps=2.5: expected a whole number, 1 or more"),
  ],
)
def test_bad_options_are_refused(solve, options, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    solve(swing, jnp.ones((2, 1)), TS, **options)


# The model.
def built(scale=1.0, **args):
  """(method, Vars whose weights are `scale` times as large) of the model, small."""
  made = neural_ode.build(**{"net_args": {"M": 8, "hidden": 8}, **args})
  vars = jax.jit(made.init)(KEY(0))
  return made, vars._replace(params=jax.tree.map(lambda w: scale * w, vars.params))


@pytest.mark.evidence("R01", "M")
def test_the_density_of_random_weights_is_one_in_all_and_is_that_of_the_samples():
  made, vars = built(2.0)
  side = jnp.linspace(-9.0, 9.0, 91)
  grid = jnp.stack(jnp.meshgrid(side, side), -1).reshape(-1, 1, 1, 2)

  @jax.jit
  def run():
    p = jnp.exp(made.fns["log_prob"](vars, {"image": grid}, noise.rows(KEY(1), len(grid))))
    x = made.fns["sample"](vars, noise.rows(KEY(2), 4000))["image"]
    return p * (side[1] - side[0]) ** 2, x

  p, x = jax.device_get(run())
  x, grid = x.reshape(-1, 2), np.asarray(grid).reshape(-1, 2)
  np.testing.assert_allclose(p.sum(), 1.0, atol=2e-3)  # 0.2 is the width of a cell
  mean = p @ grid
  cov = (grid - mean).T @ (p[:, None] * (grid - mean))
  assert np.abs(cov - np.eye(2)).max() > 0.1  # it moved
  np.testing.assert_allclose(x.mean(0), mean, atol=0.1)  # 4000 samples: 0.03 is one sigma
  np.testing.assert_allclose(np.cov(x.T), cov, atol=0.2)


@pytest.mark.evidence("R01", "M")
@pytest.mark.parametrize("gradient", neural_ode.GRADIENTS)
def test_a_linear_flow_has_the_density_of_its_gaussian(gradient):
  """dx/dt = A x: data N(0, e^A e^A')."""
  A = jnp.array([[0.4, 0.8], [-0.3, -0.6]])
  x = jax.random.normal(KEY(1), (6, 2))
  S = jax.scipy.linalg.expm(A)
  solve = functools.partial(neural_ode.GRADIENTS[gradient], rtol=1e-6, atol=1e-6)
  fn = lambda x, t: x @ A.T
  exact = jax.jit(lambda x: change_of_variables.ode_log_prob_exact(fn, x, TS[::-1], solve=solve))
  normal = stats.multivariate_normal(cov=S @ S.T)
  np.testing.assert_allclose(exact(x), normal.logpdf(x), atol=1e-4)


@pytest.mark.evidence("R01", "M")
def test_the_exact_trace_is_the_mean_of_all_sign_vectors():
  made, vars = built(2.0)
  velocity = made.fns["field"](vars).velocity
  x, t = jax.random.normal(KEY(1), (3, 1, 1, 2)), jnp.full(3, 0.4)
  signs = [jnp.full((3, 1, 1, 2), jnp.array(s)) for s in itertools.product((-1.0, 1.0), repeat=2)]
  fn = lambda x: velocity(x, t)
  hutchinson = jax.jit(lambda e: change_of_variables.hutchinson(fn, x, e)[1])
  mean = sum(hutchinson(e) for e in signs) / 4
  np.testing.assert_allclose(mean, change_of_variables.exact(fn, x)[1], atol=1e-6)
  # arXiv:1806.07366, Eq. 9-10: sum_n sigma_n (u_n . w_n) tanh'
  jac = jax.vmap(lambda x, t: jax.jacfwd(lambda x: velocity(x[None], t[None])[0])(x))(x, t)
  np.testing.assert_allclose(mean, np.trace(jac.reshape(3, 2, 2), axis1=1, axis2=2), atol=1e-6)


@pytest.mark.parametrize(
  "args, words",
  [
    ({"gradient": "both"}, "gradient='both': expected one of adjoint, direct"),
    ({"trace": "none"}, "trace='none': expected one of exact, hutchinson"),
    ({"pixels": 1}, "pixels=1: expected True or False"),
    ({"rtol": 0.0}, "rtol=0.0: expected a finite number above 0"),
    ({"max_steps": 0}, "max_steps=0: expected a whole number"),
    ({"net": "Planer"}, "net='Planer': expected one of"),
    ({"net_args": {"width": 3}}, "net_args.width=3: Planar takes no such keyword"),
    ({"net_args": {"M": 0}}, "net_args.M=0: expected a whole number"),
    ({"sampler": {"name": "ancestral", "steps": 0}}, "steps=0"),
  ],
)
def test_bad_models_are_refused(args, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    neural_ode.build(**args)


def test_points_and_conditions_for_another_model_are_refused():
  made, vars = built()
  with pytest.raises(ValueError, match=r"expected image_shape=\(1, 1, 2\)"):
    made.fns["log_prob"](vars, {"image": jnp.zeros((2, 2))}, noise.rows(KEY(1), 2))
  with pytest.raises(ValueError, match="cond has label: expected nothing"):
    made.fns["field"](vars, {"label": jnp.zeros(2, jnp.int32)})

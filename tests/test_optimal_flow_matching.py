"""Optimal flow matching: convexity, inverses, gradients, and maps known in closed form."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import noise
from jaxgen.core import method, step
from jaxgen.models.flow_matching import optimal_flow_matching as model
from jaxgen.nn import icnn
from jaxgen.objectives import optimal_flow_matching as ofm

KEY = jax.random.key
D = 3
NET = icnn.ICNN((8, 8, 4), rank=2, beta=0.1)
psi = lambda params: lambda z: NET.apply({"params": params}, z)
normal = lambda seed, *shape: jax.random.normal(KEY(seed), shape)


@functools.cache
def perturbed():
  """Parameters of NET far from their start."""
  params = jax.jit(NET.init)(KEY(0), jnp.zeros((1, D)))["params"]
  return jax.tree.map(lambda x: x + normal(x.size, *x.shape), params)


def quadratic(seed=1):
  """(Psi(z) = z'Az / 2 + b'z, A, b) with eigenvalues of A from 0.5 to 3."""
  q = jnp.linalg.qr(normal(seed, D, D))[0]
  A, b = (q * jnp.linspace(0.5, 3.0, D)[None]) @ q.T, normal(seed + 1, D)
  return (lambda z: 0.5 * jnp.sum(z * (z @ A), -1) + z @ b), A, b


@pytest.mark.evidence("R07", "M")
def test_networks_are_convex_whatever_their_weights():
  """Curvature of at least beta everywhere, and Jensen's inequality with room for it."""
  x, y = 3.0 * normal(2, 2, 64, D)

  @jax.jit
  def run(params):
    fn = psi(params)
    hessians = jax.vmap(jax.hessian(lambda z: fn(z[None])[0]))(x)
    middle = 0.5 * (fn(x) + fn(y)) - fn(0.5 * (x + y))
    return jnp.linalg.eigvalsh(hessians), middle, NET.beta / 8.0 * jnp.sum((x - y) ** 2, -1)

  for scale in (0.0, 1.0, -1.0, 3.0, -3.0):
    eigenvalues, gap, room = run(jax.tree.map(lambda p, s=scale: s * p, perturbed()))
    assert eigenvalues.min() > NET.beta * (1.0 - 1e-5) - 1e-6 * eigenvalues.max()
    assert (gap > room - 1e-5 * jnp.abs(gap).max()).all()
  assert eigenvalues.max() > 1.5 * eigenvalues.min()  # it is not that quadratic alone


def test_networks_start_near_the_identity():
  """Without pretraining, in 2 dimensions and in 64."""
  for dims in (2, 64):
    net, z = icnn.ICNN(), normal(3, 256, dims)
    params = jax.jit(net.init)(KEY(0), z[:1])
    moved = jax.jit(lambda p, z, net=net: ofm.push(lambda z: net.apply(p, z), z))(params, z) - z
    assert jnp.mean(moved**2) < 0.1


@pytest.mark.evidence("R07", "M")
def test_inverses_and_velocities_of_a_quadratic_potential():
  """z = (t A + (1 - t) I)^-1 (x_t - t b), at both ends of time too."""
  fn, A, b = quadratic()
  t = jnp.array([0.0, 1e-3, 0.1, 0.5, 0.9, 1.0])
  x_t = 2.0 * normal(4, len(t), D)
  u, z = jax.jit(lambda: ofm.velocity(fn, x_t, t, tolerance=1e-4, max_steps=50))()
  H = t[:, None, None] * A[None] + (1.0 - t)[:, None, None] * jnp.eye(D)[None]
  exact = jnp.linalg.solve(H, (x_t - t[:, None] * b[None])[..., None])[..., 0]
  np.testing.assert_allclose(z, exact, atol=2e-4 + 1e-5)  # tolerance / least eigenvalue
  np.testing.assert_allclose(u, exact @ A + b[None] - exact, atol=6e-4)


@pytest.mark.evidence("R07", "M")
def test_flow_lines_are_straight_and_rows_do_not_see_each_other():
  """The velocity along a line is that at its start, grad Psi(z) - z."""
  z, ts = normal(5, 4, D), jnp.linspace(0.0, 1.0, 5)
  fn = psi(perturbed())
  end = ofm.push(fn, z)
  lines = jax.vmap(lambda t: (1.0 - t) * z + t * end)(ts).reshape(-1, D)
  run = jax.jit(lambda x, t: ofm.velocity(fn, x, t, tolerance=1e-4, max_steps=100))
  u, starts = run(lines, jnp.repeat(ts, 4))
  np.testing.assert_allclose(starts.reshape(5, 4, D), jnp.broadcast_to(z, (5, 4, D)), atol=2e-3)
  scale = float(jnp.abs(end).max())
  np.testing.assert_allclose(
    u.reshape(5, 4, D), jnp.broadcast_to(end - z, (5, 4, D)), atol=2e-3 * scale
  )
  alone, _ = run(jnp.repeat(lines[7:8], 20, 0), jnp.full(20, ts[1]))
  np.testing.assert_allclose(alone[3], u[7], atol=1e-4 * scale)


def test_an_inverse_that_is_not_found_says_so():
  keys, (x0, x1) = noise.rows(KEY(0), 8), 3.0 * normal(6, 2, 8, D)
  fn = psi(perturbed())

  @jax.jit
  def run(n):
    options = {"t": jnp.full(8, 0.9), "tolerance": 1e-3, "max_steps": n}
    return ofm.optimal_flow_matching(fn, x0, x1, keys, **options)[1]

  early, late = run(1), run(100)
  assert early.min() > 1e-2 and late.max() <= 1.5e-3  # recomputed, in another order


@functools.cache
def gradients():
  """By the code, by a dense Hessian, and along a direction by differences: in float64."""
  with jax.enable_x64(True):
    params = jax.tree.map(lambda x: jnp.asarray(x, jnp.float64), perturbed())
    x0, x1 = (jnp.asarray(x, jnp.float64) for x in normal(7, 2, 6, D))
    t, keys = jnp.linspace(0.05, 0.95, 6), noise.rows(KEY(0), 6)
    along = jax.tree.map(
      lambda x: jnp.asarray(np.random.RandomState(x.size).randn(*x.shape)), params
    )

    def loss(params):
      of = psi(params)
      return ofm.optimal_flow_matching(of, x0, x1, keys, t=t, tolerance=1e-10, max_steps=200)[
        0
      ].mean()

    def explicit(params):
      """Sec. 3.2 as it is printed: with (start - z) / t and an inverse Hessian."""
      x_t = (1.0 - t)[:, None] * x0 + t[:, None] * x1
      z = ofm.inverse(psi(params), x_t, t, tolerance=1e-10, max_steps=200)
      still = jax.lax.stop_gradient(params)
      hessian = jax.vmap(jax.hessian(lambda z: psi(still)(z[None])[0]))(z)
      matrix = t[:, None, None] * hessian + (1.0 - t)[:, None, None] * jnp.eye(D)[None]
      weight = 2.0 * jnp.linalg.solve(matrix, ((x0 - z) / t[:, None])[..., None])[..., 0]
      return jnp.sum(weight * ofm.push(psi(params), z)) / x0.size

    ours, h = jax.jit(jax.value_and_grad(loss)), 1e-5
    moved = lambda s: ours(jax.tree.map(lambda p, d: p + s * d, params, along))[0]
    slope = (moved(h) - moved(-h)) / (2.0 * h)
    grad = ours(params)[1]
    dot = sum(jax.tree.leaves(jax.tree.map(jnp.vdot, grad, along)))
    return jax.device_get((grad, jax.jit(jax.grad(explicit))(params), slope, dot))


@pytest.mark.evidence("R07", "M")
def test_gradients_are_those_of_the_paper_and_of_differences():
  ours, theirs, slope, along = gradients()
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-7), ours, theirs)
  np.testing.assert_allclose(along, slope, rtol=1e-4)
  assert all((g != 0.0).any() for g in jax.tree.leaves(ours))


@pytest.mark.evidence("R07", "M")
def test_the_loss_of_a_pair_is_twice_its_gap_in_the_dual_of_optimal_transport():
  """Theorem 1, at single pairs: the mean over t is 2 (Psi(x0) + Psi*(x1) - x0'x1).

  So over any plan of the same starts and data the loss differs by a constant, and its minimiser is
  that of the dual problem.
  """
  nodes, weights = np.polynomial.legendre.leggauss(64)  # jumps of CELU'', in gradients
  n, m = 4, len(nodes)
  x0, x1 = normal(9, 2, n, D)
  pairs = jnp.concatenate([x0, x0]), jnp.concatenate([x1, x1[::-1]])  # of two plans
  params = jax.tree.map(lambda p: 0.3 * p, perturbed())
  t, w = jnp.asarray(0.5 * nodes + 0.5, jnp.float32), jnp.asarray(0.5 * weights, jnp.float32)

  def loss(params):
    rows = [jnp.repeat(x, m, axis=0) for x in pairs]
    keys, times = noise.rows(KEY(0), 2 * n * m), jnp.tile(t, 2 * n)
    error, _ = ofm.optimal_flow_matching(psi(params), *rows, keys, t=times, tolerance=1e-4)
    return D * error.reshape(2 * n, m) @ w  # the paper's sum

  @jax.jit
  def run(params):
    fn = psi(params)
    z = ofm.inverse(fn, pairs[1], jnp.ones(2 * n), tolerance=1e-4)
    conjugate = jnp.sum(pairs[1] * z, -1) - fn(z)
    value, pull = jax.vjp(loss, params)
    first = jnp.repeat(jnp.array([1.0, 0.0]), n)
    gap = 2.0 * (fn(pairs[0]) + conjugate - jnp.sum(pairs[0] * pairs[1], -1))
    return value, gap, pull(first)[0], pull(1.0 - first)[0]

  value, gap, a, b = run(params)
  assert gap.min() > 0.01
  np.testing.assert_allclose(value, gap, rtol=2e-3)
  assert abs(value[:n].sum() - value[n:].sum()) > 0.5
  assert optax.tree.norm(jax.tree.map(jnp.subtract, a, b)) < 1e-2 * optax.tree.norm(a)


def _root(S):
  values, vectors = np.linalg.eigh(S)
  return (vectors * np.sqrt(values)) @ vectors.T


@pytest.mark.evidence("R07", "C")
def test_training_finds_the_map_between_two_gaussians():
  """Monge's, in closed form; of independent pairs, one of which says nothing about the map."""
  rng = np.random.RandomState(0)
  covariance = lambda scale: (lambda L: scale * (L @ L.T + 0.5 * np.eye(D)))(rng.randn(D, D))
  S0, S1, m0, m1 = covariance(0.4), covariance(0.2), rng.randn(D), rng.randn(D)
  root = _root(S0)
  A = np.linalg.inv(root) @ _root(root @ S1 @ root) @ np.linalg.inv(root)  # Gelbrich, 1990
  np.testing.assert_allclose(A @ S0 @ A, S1, atol=1e-10)

  steps = 400
  made = model.build(
    image_shape=(1, 1, D),
    start="data",
    net_args={"widths": (16, 16), "rank": 2},
    tx={"lr": 3e-2, "clip": 1.0, "decay": "cosine", "steps": steps},
    ema=0.9,
  )

  def points(key, n=64):
    a, b = jax.random.normal(key, (2, n, D))
    shape = (n, 1, 1, D)
    x0 = a @ np.float32(root) + np.float32(m0)[None]
    x1 = b @ np.float32(_root(S1)) + np.float32(m1)[None]
    return {"start": x0.reshape(shape), "image": x1.reshape(shape)}

  @jax.jit
  def train(state):
    def one(state, i):
      batch = jax.tree.map(lambda x: x[None], points(jax.random.fold_in(KEY(1), i)))
      state, metrics = step.train_step(made, state, batch, KEY(2))
      return state, metrics["net/residual"][0]

    return jax.lax.scan(one, state, jnp.arange(steps))

  state = jax.jit(lambda: step.init_state(made, KEY(0)))()
  state, residuals = train(state)
  assert residuals.max() < 1e-2
  x0 = points(KEY(3), 2000)["start"]
  vars = method.averaged(made, state.vars)
  sample = lambda vars: made.fns["sample"](vars, noise.rows(KEY(4), 2000), {"start": x0})["image"]
  truth = (np.asarray(x0).reshape(-1, D) - m0) @ A + m1
  uvp = lambda x: 100.0 * np.mean(np.sum((x.reshape(-1, D) - truth) ** 2, -1)) / np.trace(S1)
  assert uvp(np.asarray(x0)) > 50.0
  assert uvp(np.asarray(jax.jit(sample)(vars))) < 1.0


def test_samples_move_starts_that_are_given_or_drawn():
  args = {"image_shape": (1, 1, D), "net_args": {"widths": (4,)}}
  drawn, given = model.build(**args), model.build(**args, start="data")
  assert drawn.given == () and given.given == ("start",)
  vars, keys = jax.jit(drawn.init)(KEY(0)), lambda: noise.rows(KEY(1), 5)
  start = noise.normal(keys(), (1, 1, D))
  image = given.fns["sample"](vars, keys(), {"start": start})["image"]
  np.testing.assert_allclose(drawn.fns["sample"](vars, keys())["image"], image, rtol=1e-6)
  field = drawn.fns["field"](vars)
  u = jax.jit(lambda x: field.velocity(x, jnp.zeros(5)))(start)
  np.testing.assert_allclose(start + u, image, atol=1e-5)


@pytest.mark.parametrize(
  "args, words",
  [
    ({"image_shape": (2,)}, "image_shape=(2,): expected three"),
    ({"start": "moons"}, "start='moons': expected noise or data"),
    ({"tolerance": 0.0}, "tolerance=0.0: expected a finite number above 0"),
    ({"max_steps": 0}, "max_steps=0: expected a whole number"),
    ({"net_args": {"beta": 0.0}}, "net_args.beta=0.0: expected a finite number above 0"),
    ({"net_args": {"widths": ()}}, "net_args.widths=(): expected at least one"),
    ({"net_args": {"widths": (0,)}}, "net_args.widths=(0,): expected a tuple"),
    ({"net_args": {"width": 8}}, "net_args.width=8: ICNN takes no such keyword"),
  ],
)
def test_bad_numbers_are_refused(args, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    model.build(**args)


def test_bad_starts_and_conditions_are_refused():
  made = model.build(start="data")
  vars, x = jax.eval_shape(made.init, KEY(0)), jnp.zeros((2, 1, 1, 2))
  keys = lambda: noise.rows(KEY(0), 2)
  for start in ({}, {"start": x[:, 0]}):
    with pytest.raises(ValueError, match=r"start=.*expected a float array \[B, 1, 1, 2\]"):
      made.phases["net"].loss(vars, {"image": x, **start}, keys())
    with pytest.raises(ValueError, match=r"start=.*expected a float array \[B, 1, 1, 2\]"):
      made.fns["sample"](vars, keys(), start)
  for fn in (lambda cond: made.fns["sample"](vars, keys(), {"start": x, **cond}),
             lambda cond: made.fns["field"](vars, cond)):  # fmt: skip
    with pytest.raises(ValueError, match="cond has label: expected nothing"):
      fn({"label": jnp.zeros(2, jnp.int32)})

"""Rectified flow that keeps its boundary conditions, whatever the weights."""

import functools

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData

from jaxgen import nn, noise, paths
from jaxgen.core import method, step
from jaxgen.models.flow_matching import boundary_rectified_flow
from jaxgen.objectives import boundary, velocity

DATA, PATH = GaussianData(), paths.Linear()
normal = lambda seed, *shape: jax.random.normal(jax.random.key(seed), shape)
keys = lambda n, seed=0: noise.rows(jax.random.key(seed), n)
both = pytest.mark.parametrize("bounded", [boundary.masked, boundary.subtracted])
SMALL = dict(
  image_shape=(2, 2, 1), net="ResidualMLP", net_args=dict(width=8, depth=1), n_classes=3
)  # fmt: skip


def wild(x, t):
  """A network that knows nothing of the ends."""
  return 3.0 * jnp.cos(2.0 * x) + 5.0 * paths.expand(t, x) - 1.0


@pytest.mark.evidence("R05", "M")
def test_the_ends_hold_for_any_weights():
  """A network with wild random weights, three times."""
  init, apply = nn.image_net("ResidualMLP", (2, 2, 1), 0, width=8, depth=1)
  x, C, ends = normal(0, 5, 2, 2, 1), normal(1, 1, 2, 2, 1), (jnp.zeros(5), jnp.ones(5))
  flat, unravel = jax.flatten_util.ravel_pytree(jax.jit(init)(jax.random.key(0)).params)

  @jax.jit
  def at_ends(weights):
    fn = lambda x, t: apply(method.Vars(unravel(weights)), x, 1000.0 * t)
    bounded = (boundary.masked, boundary.subtracted)
    return [(fn(x, t), *(b(fn, C)(x, t) for b in bounded)) for t in ends]

  for seed in range(3):
    found = at_ends(3.0 * normal(seed + 2, *flat.shape))
    for (m, *values), known in zip(found, (C - x, x), strict=True):
      scale = np.abs(m).max()
      assert np.abs(m - known).max() > 10.0
      for v in values:  # float32: subtraction rounds to the last digits of m
        np.testing.assert_allclose(v, known, atol=1e-6 * scale)


@pytest.mark.evidence("R05", "M")
def test_between_the_ends():
  """Eq. 106 of the survey by hand; subtraction is of that form, with another network."""
  t, x, C, p = jnp.linspace(0.1, 0.9, 5), normal(0, 5, 3), normal(1, 5, 3), 3.0
  f, g = t[:, None] ** 3, (1.0 - t[:, None]) ** 3
  h = 1.0 - f - g
  v = boundary.masked(wild, C, power=p)(x, t)
  np.testing.assert_allclose(v, g * (C - x) + f * x + h * wild(x, t), rtol=1e-5, atol=1e-5)
  m = (wild(x, t) - g * wild(x, jnp.zeros(5)) - f * wild(x, jnp.ones(5))) / h
  w = boundary.subtracted(wild, C, power=p)(x, t)
  np.testing.assert_allclose(w, g * (C - x) + f * x + h * m, rtol=1e-5, atol=1e-5)
  assert np.abs(v - w).max() > 0.1


@pytest.mark.parametrize("power", [1.5, 8.0])
@pytest.mark.evidence("R05", "M")
def test_the_exact_velocity_is_one_of_them(power):
  """On Gaussian data: subtraction leaves it as it is, and the masks' network is bounded."""
  exact = DATA.field(PATH).velocity
  t = jnp.concatenate([jnp.array([1e-3, 1.0 - 1e-3]), jnp.linspace(0.0, 1.0, 9)])
  x, C = normal(0, len(t), 3), jnp.full((1, 3), DATA.mean)
  np.testing.assert_allclose(exact(x, jnp.zeros(len(t))), C - x, atol=1e-6)
  np.testing.assert_allclose(exact(x, jnp.ones(len(t))), x, atol=1e-6)
  v = boundary.subtracted(exact, C, power=power)(x, t)
  np.testing.assert_allclose(v, exact(x, t), atol=2e-6)

  def m(x, t):
    t = paths.expand(t, x)
    f, g = t**power, (1.0 - t) ** power
    return (exact(x, t[:, 0]) - g * (C - x) - f * x) / (1.0 - f - g)

  inner = (t > 0.0) & (t < 1.0)
  assert np.abs(m(x, t))[inner].max() < 20.0
  np.testing.assert_allclose(
    boundary.masked(m, C, power=power)(x, t)[inner], exact(x, t)[inner], atol=1e-5
  )


@both
@pytest.mark.evidence("R05", "M")
def test_the_score_is_finite_up_to_the_data(bounded):
  """A network alone is off by e at t = 1, and its score by t e / (1 - t)."""
  x, C = normal(0, 6, 3), normal(1, 1, 3)
  score = lambda fn: jax.jit(paths.velocity_field(PATH, fn).score)
  near, nearer = jnp.full(6, 1.0 - 2.0**-7), jnp.full(6, 1.0 - 2.0**-10)
  size = lambda fn: [np.abs(score(fn)(x, t)).max() for t in (near, nearer)]
  plain, ours = size(wild), size(bounded(wild, C, power=2.0))
  assert 7.0 < plain[1] / plain[0] < 9.0  # 8 times nearer
  assert ours[1] < 30.0 and 0.9 < ours[1] / ours[0] < 1.1
  # At the noise the score is that of N(0, I), and the data are expected to be C.
  field, zero = paths.velocity_field(PATH, bounded(wild, C)), jnp.zeros(6)
  np.testing.assert_allclose(field.score(x, zero), -x, atol=1e-5)
  np.testing.assert_allclose(field.predict(x, zero).x, jnp.broadcast_to(C, x.shape), atol=1e-5)


@both
def test_gradients_reach_the_network_between_the_ends(bounded):
  x, C = normal(0, 3, 2), normal(1, 1, 2)

  @jax.jit
  def slope(t):
    fn = lambda s: bounded(lambda x, t: s * wild(x, t), C, power=2.0)(x, jnp.full(3, t))
    return jnp.abs(jax.jacobian(fn)(1.0)).max()

  assert slope(0.5) > 0.1 and max(slope(0.0), slope(1.0)) < 1e-5


@pytest.mark.evidence("R05", "M")
def test_the_minimum_is_the_marginal_velocity():
  """Of subtraction too, whose network at the ends is in every row: no slope at the exact one."""

  @jax.jit
  def slope(size):
    n = 50_000
    x0, x1 = normal(0, n, 1), DATA.mean + DATA.std * normal(1, n, 1)
    C = jnp.full((1, 1), DATA.mean)

    def loss(size):
      m = lambda x, t: DATA.field(PATH).velocity(x, t) + size * jnp.sin(3.0 * x + 1.0) * wide(t, x)
      fn = boundary.subtracted(m, C, power=2.0)
      return velocity.rectified_flow(fn, x0, x1, keys(n)).mean()

    wide = lambda t, x: jnp.sin(jnp.pi * paths.expand(t, x))
    return jax.grad(loss)(size)

  assert abs(slope(0.0)) < 0.02 < abs(slope(0.1))


def test_subtraction_evaluates_the_network_three_times():
  calls = []
  fn = lambda x, t: calls.append(t) or x
  boundary.subtracted(fn, jnp.zeros((1, 2)))(jnp.ones((3, 2)), jnp.full(3, 0.5))
  assert len(calls) == 3
  boundary.masked(fn, jnp.zeros((1, 2)))(jnp.ones((3, 2)), jnp.full(3, 0.5))
  assert len(calls) == 4


@pytest.mark.parametrize("power", [1.0, float("inf"), "2"])
def test_powers_are_refused(power):
  for bounded in (boundary.masked, boundary.subtracted):
    with pytest.raises(ValueError, match="power=.*: expected a finite number above 1"):
      bounded(wild, 0.0, power=power)


@pytest.mark.parametrize("n_classes", [0, 3])
@pytest.mark.evidence("R05", "M")
def test_means_are_those_of_all_that_was_seen(n_classes):
  """Over batches of different sizes, of each class and of all; a class never seen keeps 0."""
  x, label = 5.0 + normal(0, 12, 2, 1), jnp.array([0, 1, 0, 0, 1, 0, 1, 1, 0, 0, 0, 1])
  means = boundary.no_means((2, 1), n_classes)
  for rows in (slice(0, 5), slice(5, 6), slice(6, 12)):
    means = boundary.update_means(means, x[rows], label[rows])
  groups = [x[label == i] for i in range(n_classes)] + [x]
  known = [g.mean(0) if len(g) else jnp.zeros((2, 1)) for g in groups]
  np.testing.assert_allclose(means["mean"], jnp.stack(known), rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(means["count"], [len(g) for g in groups])


@functools.cache
def trained():
  """(method, its state after three steps of 16 rows, the rows)."""
  made = boundary_rectified_flow.build(
    **SMALL, tx=dict(lr=1e-2), sampler=dict(name="euler", steps=1)
  )
  x = 0.3 + 0.1 * normal(0, 3, 1, 16, 2, 2, 1)
  label = jnp.tile(jnp.arange(16) % 3, (3, 1, 1))
  x += label[..., None, None, None] / 3.0

  state = jax.jit(functools.partial(step.init_state, made))(jax.random.key(0))
  train = jax.jit(functools.partial(step.train_step, made))
  for i in range(3):
    state, _ = train(state, {"image": x[i], "label": label[i]}, jax.random.key(i + 1))
  return made, state, x.reshape(48, 2, 2, 1), label.reshape(48)


@pytest.mark.evidence("R05", "M")
def test_one_step_of_euler_is_the_mean_of_the_class():
  """x + (C - x): of the images that training saw, with labels and without."""
  made, state, x, label = trained()
  means = state.extra["net"]["means"]
  np.testing.assert_array_equal(means["count"], [18, 15, 15, 48])
  vars = method.averaged(made, state.vars)
  sample = jax.jit(lambda cond: made.fns["sample"](vars, keys(3), cond)["image"])
  of_class = jnp.stack([x[label == i].mean(0) for i in range(3)])
  np.testing.assert_allclose(sample({"label": jnp.arange(3)}), of_class, atol=1e-5)
  everything = jnp.broadcast_to(x.mean(0), (3, 2, 2, 1))
  np.testing.assert_allclose(sample({}), everything, atol=1e-5)


def test_guidance_keeps_the_end_at_the_data():
  """The weights sum to one: v = x at t = 1, and the class pushes the mean at t = 0 outwards."""
  made, state, x, label = trained()
  vars, x_t = method.averaged(made, state.vars), normal(5, 3, 2, 2, 1)
  field = made.fns["field"](vars, {"label": jnp.arange(3)}, w=2.0)
  np.testing.assert_allclose(field.velocity(x_t, jnp.ones(3)), x_t, atol=1e-5)
  C = jnp.stack([x[label == i].mean(0) for i in range(3)])
  guided = 3.0 * C - 2.0 * x.mean(0, keepdims=True)
  np.testing.assert_allclose(field.predict(x_t, jnp.zeros(3)).x, guided, atol=1e-5)


@pytest.mark.parametrize(
  "args, words",
  [
    (dict(boundary="mask"), "boundary='mask': expected one of masked, subtracted"),
    (dict(power=1.0), "power=1.0: expected a finite number above 1"),
    (dict(ode_steps=0), "ode_steps=0"),
    (dict(guidance_weight=1.0, n_classes=0), "guidance_weight=1.0: expected 0"),
  ],
)
def test_bad_arguments_are_refused(args, words):
  with pytest.raises(ValueError, match=words):
    boundary_rectified_flow.build(**{**SMALL, **args})

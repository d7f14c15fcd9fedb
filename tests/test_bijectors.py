"""Invertible layers: inverse, Jacobian, dependencies and density, at default arguments."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxgen.core import axis
from jaxgen.nn import bijectors
from jaxgen.objectives import change_of_variables

KEY = jax.random.key
X = jax.random.normal(KEY(0), (3, 4, 2, 6))
MASK = bijectors.checkerboard(4, 2)


def mixing(outputs, seed=0, size=1.0):
  """x [B, ...] -> (s, t), each [B, *outputs]; every input reaches every output."""

  def fn(x):
    n = x[0].size
    w = size * jax.random.normal(KEY(seed), (n, 2, *outputs)) / n**0.5
    s, t = jnp.moveaxis(jnp.tensordot(jnp.sin(x.reshape(len(x), n)), w, 1), 1, 0)
    return jnp.tanh(s), t

  return fn


def batch_norm(x, *, inverse=False):
  layer = bijectors.MovingBatchNorm()
  c = x.shape[-1]
  stats = {"mean": jnp.linspace(-1.0, 2.0, c), "var": jnp.linspace(0.2, 5.0, c), "updates": 7.0}
  return layer.apply({"batch_stats": stats}, x, inverse=inverse)


split = functools.partial(bijectors.split_coupling, mixing((4, 2, 3)))
flipped = functools.partial(split, flip=True)
masked = functools.partial(bijectors.masked_coupling, mixing((4, 2, 6)), mask=MASK)
affine = lambda x, *, inverse=False: bijectors.affine(
  x, *mixing((4, 2, 6))(jnp.ones_like(x)), inverse=inverse
)
composed = functools.partial(bijectors.chain, [split, batch_norm, masked, flipped])
LAYERS = {
  "affine": affine,
  "split": split,
  "flipped": flipped,
  "masked": masked,
  "batch norm": batch_norm,
  "composed": composed,
  "logit": bijectors.logit,
}
every_layer = pytest.mark.parametrize("name", LAYERS)
inputs = lambda name: jax.nn.sigmoid(X) if name == "logit" else X


@functools.partial(jax.jit, static_argnums=0)
def jacobians(layer, x):
  """[B, D, D]: dy/dx of every row, flat."""

  def flat(v):
    return layer(v.reshape(1, *x.shape[1:]))[0].reshape(-1)

  return jax.vmap(jax.jacobian(flat))(x.reshape(len(x), -1))


@every_layer
@pytest.mark.evidence("N02", "M")
def test_inverse_and_log_det_are_exact(name):
  layer, x = LAYERS[name], inputs(name)

  @jax.jit
  def run(x):
    y, forward = layer(x)
    back, backward = layer(y, inverse=True)
    return y, forward, back, backward, jacobians(layer, x)

  y, forward, back, backward, jacobian = run(x)
  assert y.shape == x.shape and forward.shape == (len(x),)
  assert jnp.abs(y - x).max() > 0.1 and jnp.abs(forward).min() > 0.1
  np.testing.assert_allclose(back, x, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(backward, -forward, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(forward, jnp.linalg.slogdet(jacobian)[1], rtol=1e-4, atol=1e-5)


def coupled(kept):
  """Which y depend on which x in a coupling that keeps these: itself, and moved ones on kept."""
  kept = np.broadcast_to(kept, X.shape[1:]).ravel()
  return np.eye(len(kept), dtype=bool) | (~kept[:, None] & kept[None, :])


FIRST = np.arange(6) < 3


@pytest.mark.parametrize(
  "layer, allowed",
  [
    (split, coupled(FIRST)),
    (flipped, coupled(~FIRST)),
    (masked, coupled(MASK[0])),
    (batch_norm, np.eye(48, dtype=bool)),
  ],
  ids=["split", "flipped", "masked", "batch norm"],
)
def test_every_allowed_dependence_is_there_and_no_other(layer, allowed):
  assert ((jacobians(layer, X) != 0.0) == allowed[None]).all()


def test_couplings_keep_what_they_keep():
  assert (split(X)[0][..., :3] == X[..., :3]).all() and (split(X)[0][..., 3:] != X[..., 3:]).all()
  assert (flipped(X)[0][..., 3:] == X[..., 3:]).all()
  assert ((masked(X)[0] == X) == MASK).all()


def test_a_coupling_of_an_odd_number_of_channels():
  x = X[..., :5]
  for flip, n, kept in [(False, 3, slice(0, 2)), (True, 3, slice(3, 5))]:
    layer = functools.partial(bijectors.split_coupling, mixing((4, 2, n)), flip=flip)
    y, _ = layer(x)
    np.testing.assert_array_equal(y[..., kept], x[..., kept])
    np.testing.assert_allclose(layer(y, inverse=True)[0], x, atol=1e-5)


@pytest.mark.evidence("N02", "M")
def test_the_density_of_a_flow_integrates_to_one():
  """Two pixels and their two colours of the checkerboard, then the two channels of one pixel."""

  def flow(x):  # [B, 2]
    layers = [
      functools.partial(
        bijectors.masked_coupling,
        mixing((1, 2, 1), i),
        mask=bijectors.checkerboard(1, 2, parity=i),
      )
      for i in (0, 1)
    ]
    h, first = bijectors.chain(layers, x.reshape(-1, 1, 2, 1))
    last = functools.partial(bijectors.split_coupling, mixing((1, 1, 1), 2))
    h, second = last(h.reshape(-1, 1, 1, 2))
    return change_of_variables.normal_log_prob(h, first + second)

  line = jnp.linspace(-12.0, 12.0, 401)
  grid = jnp.stack(jnp.meshgrid(line, line), -1).reshape(-1, 2)
  density = jnp.exp(jax.jit(flow)(grid)).reshape(401, 401)
  np.testing.assert_allclose(np.trapezoid(np.trapezoid(density, line), line), 1.0, atol=1e-3)
  spread = jnp.array([[1.0, 0.0], [0.0, 0.0], [0.0, 1.0]])
  assert jnp.ptp(flow(spread)) > 0.1


def test_logit_of_the_range_and_its_density():
  x = jnp.array([[0.0], [0.5], [1.0]])
  y, _ = bijectors.logit(x)
  np.testing.assert_allclose(y[:, 0], np.log([0.05 / 0.95, 1.0, 0.95 / 0.05]), atol=1e-6)
  np.testing.assert_allclose(bijectors.logit(y, inverse=True)[0], x, atol=1e-6)
  # A logistic y has density 1 / (1 - 2 alpha) on x: uniform, and 1 for alpha = 0.
  for alpha in (0.0, 0.05):
    u = jnp.linspace(0.01, 0.99, 99)[:, None]
    y, log_det = bijectors.logit(u, alpha=alpha)
    log_p = jax.scipy.stats.logistic.logpdf(y[:, 0]) + log_det
    np.testing.assert_allclose(log_p, np.log(1.0 - 2.0 * alpha), atol=1e-5)


# Squeezing


def test_squeeze_orders():
  """Each number says where its pixel was: 100 row + 10 column + channel."""
  row, column, channel = jnp.meshgrid(*map(jnp.arange, (4, 6, 3)), indexing="ij")
  x = (100 * row + 10 * column + channel)[None]
  first = lambda y: y[0, 1, 2].tolist()  # the square of rows 2, 3 and columns 4, 5
  plain = bijectors.squeeze(x)
  assert first(plain) == [240 + c + d for c in range(3) for d in (0, 10, 100, 110)]
  ordered = bijectors.squeeze_ordered(x)
  assert first(ordered) == [240 + d + c for d in (0, 110, 10, 100) for c in range(3)]
  np.testing.assert_array_equal(bijectors.unsqueeze(plain), x)
  np.testing.assert_array_equal(bijectors.unsqueeze_ordered(ordered), x)


def test_factoring_out_is_a_checkerboard():
  """Half of the ordered channels is one colour, one pixel of each row and column of a square."""
  odd = jnp.broadcast_to(bijectors.checkerboard(6, 4), (1, 6, 4, 3))
  kept, factored = jnp.split(bijectors.squeeze_ordered(odd), 2, axis=-1)
  assert not kept.any() and factored.all()


@pytest.mark.parametrize("squeeze", [bijectors.squeeze, bijectors.squeeze_ordered])
def test_odd_images_are_refused(squeeze):
  for shape in [(1, 5, 4, 3), (1, 4, 5, 3)]:
    with pytest.raises(ValueError, match=f"x has height and width {shape[1]}, {shape[2]}: expec"):
      squeeze(jnp.zeros(shape))
  with pytest.raises(ValueError, match="x has 6 channels: expected a multiple of 4"):
    bijectors.unsqueeze(jnp.zeros((1, 2, 2, 6)))


# Moving batch norm

NORM = bijectors.MovingBatchNorm(momentum=0.8)
FRESH = NORM.init(KEY(0), X)


def update(variables, x):
  return NORM.apply(variables, x, train=True, mutable=["batch_stats"])


def moments(x):
  return x.mean((0, 1, 2)), ((x - x.mean((0, 1, 2), keepdims=True)) ** 2).mean((0, 1, 2))


def test_moving_averages_in_closed_form():
  """One batch: its own statistics. Two: weights 0.8 and 1 over 1.8. Then used after the update."""
  batches = [X, 3.0 * X[::-1] + 1.0, 0.5 * X - 2.0]
  means, variances = zip(*map(moments, batches), strict=True)
  variables = FRESH
  for n in (1, 2, 3):
    (y, log_det), variables = update(variables, batches[n - 1])
    weights = 0.8 ** np.arange(n)[::-1]
    mean, var = (np.average(v[:n], axis=0, weights=weights) for v in (means, variances))
    stats = variables["batch_stats"]
    np.testing.assert_allclose(stats["mean"], mean, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(stats["var"], var, rtol=1e-5)
    expected = (batches[n - 1] - mean[None, None, None]) / np.sqrt(var + 1e-4)[None, None, None]
    np.testing.assert_allclose(y, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(log_det, -0.5 * 8 * np.log(var + 1e-4).sum(), rtol=1e-5)
    # Sampling right after the update undoes it.
    back, _ = NORM.apply(variables, y, inverse=True)
    np.testing.assert_allclose(back, batches[n - 1], rtol=1e-4, atol=1e-5)


def test_evaluation_uses_stored_averages_and_leaves_them():
  y, log_det = NORM.apply(FRESH, X)
  np.testing.assert_allclose(y, X / np.sqrt(1.0001), rtol=1e-5)
  np.testing.assert_allclose(log_det, -0.5 * 48 * np.log(1.0001), rtol=1e-3)
  _, stats = update(FRESH, X)
  (other, _), after = NORM.apply(stats, X[:1] + 5.0, mutable=["batch_stats"])
  jax.tree.map(np.testing.assert_array_equal, after, stats)
  mean, var = moments(X)
  expected = (X[:1] + 5.0 - mean[None, None, None]) / np.sqrt(var + 1e-4)[None, None, None]
  np.testing.assert_allclose(other, expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_passes_through_the_share_of_this_batch():
  """Of log_det by a common factor e^a of x: all of it at first, (1 - rho) / (1 - rho^2) next."""
  slope = jax.grad(lambda a, v: update(v, jnp.exp(a) * X)[0][1].sum())
  var = moments(X)[1]
  by_hand = lambda share: -8 * len(X) * (share * var / (var + 1e-4)).sum()
  np.testing.assert_allclose(slope(0.0, FRESH), by_hand(1.0), rtol=1e-4)
  again = update(FRESH, X)[1]
  np.testing.assert_allclose(slope(0.0, again), by_hand(0.2 / 0.36), rtol=1e-4)


def test_statistics_are_those_of_the_global_batch():
  x = jax.random.normal(KEY(2), (8, 2, 2, 6)) * 3.0 + 100.0
  one = update(FRESH, x)
  mesh = Mesh(np.asarray(jax.devices()[:4]), (axis.NAME,))
  specs = dict(in_specs=P(axis.NAME), out_specs=((P(axis.NAME), P(axis.NAME)), P()))
  four = jax.jit(jax.shard_map(lambda x: update(FRESH, x), mesh=mesh, check_vma=False, **specs))(x)
  jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4), one, four)
  assert abs(float(one[0][0].std()) - 1.0) < 1e-3  # no cancellation, however far the mean


def test_training_runs_forward_only():
  with pytest.raises(ValueError, match="train=True: expected False with inverse=True"):
    NORM.apply(FRESH, X, train=True, inverse=True, mutable=["batch_stats"])


# Golden vectors


def test_golden_squeeze():
  x, close = golden.load("squeeze_nflows")
  close(bijectors.squeeze(x["in.x"].transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2), "y")


def test_golden_additive_coupling():
  """s = 0. The identity features enter nflows' network alone, in order."""
  x, close = golden.load("coupling_additive")
  kept = x["w.identity_features"]
  mask = jnp.zeros((1, 6), bool).at[0, kept].set(True)

  def fn(x_kept):
    layer = lambda h, i: (
      h @ x[f"w.transform_net.{i}.weight"].T + x[f"w.transform_net.{i}.bias"][None]
    )
    t = layer(jax.nn.relu(layer(x_kept[:, kept], 0)), 2)
    s = jnp.zeros_like(x_kept)
    return s, s.at[:, x["w.transform_features"]].set(t)

  y, log_det = bijectors.masked_coupling(fn, jnp.asarray(x["in.x"]), mask)
  close(y, "y")
  close(log_det, "logabsdet")
  back, log_det = bijectors.masked_coupling(fn, y, mask, inverse=True)
  close(back, "x_back")
  close(log_det, "logabsdet_inv")


def test_golden_standard_normal():
  x, close = golden.load("standard_normal_logp")
  close(change_of_variables.normal_log_prob(jnp.asarray(x["in.x"]), 0.0), "logp")

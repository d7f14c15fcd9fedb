"""RealNVP: the whole flow against its Jacobian, its masks, its likelihood and its statistics."""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise
from jaxgen.models.flow import realnvp
from jaxgen.nn import bijectors

KEY = jax.random.key
SMALL = dict(image_shape=(4, 4, 1), width=4, n_blocks=0)
build = functools.partial(realnvp.build, **SMALL)
BATCH = {"image": jax.random.randint(KEY(0), (16, 4, 4, 1), 0, 256) / 127.5 - 1.0}
rows = lambda n=16, seed=1: noise.rows(KEY(seed), n)
name = lambda path: "/".join(k.key for k in path)


@functools.cache
def fresh(n_blocks=0):
  return jax.jit(build(n_blocks=n_blocks).init)(KEY(2))


@functools.cache
def perturbed():
  """Every parameter and every statistic away from its start."""
  rng = np.random.default_rng(0)

  def move(path, x):
    draw = 0.3 * rng.standard_normal(x.shape, np.float32)
    return np.asarray(x) * np.exp(draw) if path[-1].key == "var" else np.asarray(x) + draw

  return jax.tree_util.tree_map_with_path(move, fresh()._asdict())


def flow(variables, x, inverse=False):
  net = realnvp.Flow(2, 4, 0, 0.9, jnp.dtype("float32"))
  tree = {"params": variables["params"]["net"], **variables["extra"]["net"]}
  return net.apply(tree, x, inverse=inverse)


@pytest.mark.evidence("N02", "P")
def test_size_of_the_paper_configuration():
  """The port's: chrischute/real-nvp at its defaults, which are the paper's CIFAR-10 numbers."""
  params = jax.eval_shape(realnvp.build().init, KEY(0)).params
  assert sum(x.size for x in jax.tree.leaves(params)) == 19_631_640


@pytest.mark.evidence("N02", "M")
def test_the_whole_flow_is_invertible_and_its_log_det_exact():
  variables = perturbed()
  x = 2.0 * jax.random.normal(KEY(3), (3, 4, 4, 1))

  basis = jnp.eye(16).reshape(16, 4, 4, 1)

  @jax.jit
  def run(variables, x, basis):
    z, forward = flow(variables, x)
    back, backward = flow(variables, z, inverse=True)
    same = jnp.broadcast_to(x[:1], basis.shape)  # rows are independent: each has its own direction
    jacobian = jax.jvp(lambda x: flow(variables, x)[0], (same,), (basis,))[1]
    return z, forward, back, backward, jacobian.reshape(16, 16)

  z, forward, back, backward, jacobian = run(variables, x, basis)
  assert z.shape == x.shape and jnp.abs(forward).min() > 0.1
  np.testing.assert_allclose(back, x, atol=1e-4)
  np.testing.assert_allclose(backward, -forward, atol=1e-4)
  np.testing.assert_allclose(forward[0], jnp.linalg.slogdet(jacobian)[1], atol=1e-3)
  # Every z depends on every x within reach of so many convolutions.
  assert (jnp.abs(jacobian) > 0.0).all()


def test_couplings_move_what_the_paper_says():
  """A flow of identities but for one translation by a constant."""

  def silent(path, x):
    return jnp.zeros_like(x) if "conv_out/g" in name(path) else x

  variables = fresh()._asdict()
  variables["params"] = jax.tree_util.tree_map_with_path(silent, variables["params"])
  x = jax.random.normal(KEY(4), (1, 4, 4, 1))
  run = jax.jit(lambda v: flow(v, x)[0][0, ..., 0])
  still = run(variables)
  np.testing.assert_allclose(still, x[0, ..., 0], rtol=1e-2)

  def moved(*path):
    def push(p, value):
      return value + 1.0 if name(p) == "/".join(("net", *path, "conv_out", "bias")) else value

    params = jax.tree_util.tree_map_with_path(push, variables["params"])
    return np.asarray(run({**variables, "params": params}) != still)

  odd = np.asarray(bijectors.checkerboard(4, 4))[0, ..., 0]
  lower = np.arange(4)[:, None] % 2 * np.ones((1, 4)) == 1  # channels 2 and 3 of a squeezed image
  for i in range(3):
    np.testing.assert_array_equal(moved(f"checkerboard_{i}"), [~odd, odd][i % 2])
    np.testing.assert_array_equal(moved(f"channel_{i}"), [lower, ~lower][i % 2])
  # The second scale has the even pixels: channels of the upper left one and of the lower right.
  upper_left, lower_right = ~odd & ~lower, ~odd & lower
  assert moved("coarser", "checkerboard_0").sum() == 4
  both = moved("coarser", "checkerboard_0") | moved("coarser", "checkerboard_3")
  np.testing.assert_array_equal(both, upper_left | lower_right)


@pytest.mark.evidence("N02", "M")
def test_256_by_256_probabilities_of_two_pixels_sum_to_one():
  """alpha so small that no mass of the flow lies outside of the pixels' range."""
  made = build(image_shape=(1, 2, 1), n_scales=1, alpha=1e-5)
  vars = jax.jit(made.init)(KEY(5))
  vars = vars._replace(params=jax.tree.map(lambda x: x + 0.1, vars.params))
  levels = jnp.arange(256) / 127.5 - 1.0
  pairs = jnp.stack(jnp.meshgrid(levels, levels), -1).reshape(-1, 1, 2, 1)
  p = jnp.exp(jax.jit(made.fns["log_prob"])(vars, {"image": pairs}, rows(256**2)))
  np.testing.assert_allclose(p.sum(), 1.0, atol=5e-3)
  assert p.max() > 2.0 * p.mean()


@functools.cache
def step():
  """A training step without memory of other batches: momentum = 0, in one compilation."""
  vars = fresh(n_blocks=1)

  def loss(params, l2):
    made = build(momentum=0.0, l2=l2, n_blocks=1)
    return made.phases["net"].loss(vars._replace(params=params), BATCH, rows())

  @jax.jit
  def run(params):
    (value, aux), grads = jax.value_and_grad(lambda p: loss(p, 0.0), has_aux=True)(params)
    new = vars._replace(extra=aux.extra)
    log_prob = build(n_blocks=1).fns["log_prob"](new, BATCH, rows())
    return value, aux.metrics, grads, loss(params, 0.1)[0], new.extra, log_prob

  return vars, *run(vars.params)


def test_without_memory_evaluation_is_the_training_step():
  """The last batch's statistics are stored: log_prob is what the loss just computed."""
  _, value, metrics, *_, log_prob = step()
  np.testing.assert_allclose(value, -log_prob.mean(), rtol=1e-5)
  np.testing.assert_allclose(metrics["bits_per_dim"], value / (16 * math.log(2.0)), rtol=1e-6)


def test_statistics_are_updated_and_keep_their_shapes():
  vars, *_, extra, _ = step()
  assert jax.tree.map(jnp.shape, extra) == jax.tree.map(jnp.shape, vars.extra)
  jax.tree.map_with_path(_differs, extra, vars.extra)


def _differs(path, a, b):
  assert (a != b).any(), name(path)


def test_what_gets_a_gradient_and_what_a_penalty():
  vars, value, _, grads, penalised, *_ = step()
  leaves = jax.tree_util.tree_leaves_with_path(vars.params["net"])
  squares = sum(float(jnp.sum(x**2)) for path, x in leaves if path[-1].key == "g")
  np.testing.assert_allclose(penalised, value + 0.1 * squares, rtol=1e-5)
  assert sum(path[-1].key == "g_fixed" for path, _ in leaves) == 10  # one a block
  for (path, x), g in zip(leaves, jax.tree.leaves(grads["net"]), strict=True):
    idle = path[-1].key == "g_fixed" or (path[-1].key == "v" and x.ndim == 1)
    undone = path[-1].key == "bias" and "skip" in name(path)  # by the batch norm of their sum
    assert undone or (g != 0.0).any() == (not idle), name(path)


def test_scales_of_s_start_at_zero_and_one():
  for path, x in jax.tree_util.tree_leaves_with_path(fresh().params["net"]):
    if path[-1].key == "g" and "conv" not in name(path) and "skip" not in name(path):
      assert (x == (1.0 if "channel" in name(path) else 0.0)).all()


def test_images_return_from_their_latents():
  made, vars = build(), perturbed()
  vars = fresh()._replace(**vars)

  @jax.jit
  def run(vars, batch):
    z = made.fns["encode"](vars, batch, None)
    return z, made.fns["decode"](vars, z)["image"]

  z, image = run(vars, BATCH)
  assert z.shape == image.shape == (16, 4, 4, 1)
  np.testing.assert_allclose(image, BATCH["image"], atol=1e-3)


def test_samples_are_decoded_noise_within_the_range():
  made, vars = build(), fresh()
  image = jax.jit(made.fns["sample"])(vars, rows(64))["image"]
  assert image.shape == (64, 4, 4, 1) and jnp.abs(image).max() <= 1.0
  assert jnp.ptp(image) > 1.0


def test_bfloat16_networks_compute_close_to_float32():
  loss = build(momentum=0.0, l2=0.0, dtype="bfloat16", n_blocks=1).phases["net"].loss
  value, aux = jax.jit(loss)(fresh(n_blocks=1), BATCH, rows())
  assert all(x.dtype == jnp.float32 for x in jax.tree.leaves((value, aux)))
  np.testing.assert_allclose(value, step()[1], rtol=2e-2)


@pytest.mark.parametrize(
  "args, words",
  [
    (
      {"image_shape": (6, 4, 1), "n_scales": 3},
      r"image_shape=\(6, 4, 1\): expected height and wid",
    ),
    ({"image_shape": (4, 7, 1)}, r"image_shape=\(4, 7, 1\): expected .* divisible by 2"),
    ({"n_scales": 0}, "n_scales=0: expected a whole number, 1 or more"),
    ({"alpha": 0.5}, "alpha=0.5: expected more than 0 and less than 0.5"),
    ({"momentum": 1.0}, "momentum=1.0"),
    ({"n_blocks": -1}, "n_blocks=-1: expected a whole number, 0 or more"),
    ({"width": 0}, "width=0"),
    ({"l2": float("nan")}, "l2=nan: expected a finite number, 0 or more"),
    ({"dtype": "float17"}, "dtype='float17': expected float32, bfloat16"),
  ],
)
def test_bad_numbers_are_refused(args, words):
  with pytest.raises(ValueError, match=words):
    build(**args)


def test_a_batch_of_another_shape_is_refused():
  made = build()
  vars = jax.eval_shape(made.init, KEY(0))
  for fn in (made.phases["net"].loss, made.fns["log_prob"], made.fns["encode"]):
    with pytest.raises(ValueError, match=r"\(8, 8, 1\): expected image_shape=\(4, 4, 1\)"):
      jax.eval_shape(lambda v, fn=fn: fn(v, {"image": jnp.zeros((2, 8, 8, 1))}, rows(2)), vars)

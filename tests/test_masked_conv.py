"""The gated PixelCNN: what each output depends on, and its cached form against its whole one."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise
from jaxgen.nn import masked_conv
from jaxgen.samplers import autoregressive

KEY = jax.random.key
SMALL = dict(width=6, depth=3, kernel=3, first_kernel=5)


def made(net, shape, far=0.3, **conditions):
  """Parameters far from their start, biases included."""
  tokens = jnp.zeros((1, *shape, net.colours), jnp.int32)
  params = jax.jit(net.init)(KEY(0), tokens, **conditions)
  return jax.tree.map(lambda x: x + far * jax.random.normal(KEY(x.size), x.shape), params)


@pytest.mark.parametrize("colours", [1, 3])
def test_a_token_depends_on_all_before_it_and_on_none_after(colours):
  """No blind spot, in an image wider than a kernel; colours of a pixel in order."""
  wide = SMALL | dict(width=24, kernel=5)  # it sees the whole image, and no ReLU is quiet
  net = masked_conv.GatedPixelCNN(levels=256, colours=colours, **wide)
  shape = (4, 6)
  params = made(net, shape)
  tokens = jax.random.randint(KEY(1), (1, *shape, colours), 0, 256)
  n = tokens.size

  @jax.jit
  def jacobian(x):
    """d logits [n] / d features [n]; features are a linear function of tokens."""
    scaled = lambda net, x: masked_conv.GatedPixelCNN.__call__(net, 127.5 * (x + 1.0))
    logits = lambda x: (net.apply(params, x.reshape(tokens.shape), method=scaled) ** 2).sum(-1)
    return jax.jacobian(lambda x: logits(x).ravel())(x)

  depends = jacobian((tokens / 127.5 - 1.0).ravel()) != 0.0
  assert depends.shape == (n, n)
  np.testing.assert_array_equal(depends, np.tri(n, k=-1, dtype=bool))


@pytest.mark.parametrize("colours, embedding", [(1, 4), (3, 0)])
def test_cached_steps_are_the_whole_forward_pass(colours, embedding):
  """At every position, with both kinds of condition."""
  net = masked_conv.GatedPixelCNN(levels=5, colours=colours, embedding=embedding, **SMALL)
  shape, n = (4, 5), 3
  vector, grid = jax.random.normal(KEY(2), (n, 2)), jax.random.normal(KEY(3), (n, *shape, 3))
  params = made(net, shape, vector=vector[:1], grid=grid[:1])
  tokens = jax.random.randint(KEY(1), (n, *shape, colours), 0, 5)
  whole = jax.jit(net.apply)(params, tokens, vector, grid)
  line = tokens.reshape(n, -1)
  before = jnp.concatenate([jnp.full((n, 1), 4), line[:, :-1]], 1)  # what comes first is not read

  @jax.jit
  def steps(before):
    def run(cache, inputs):
      logits, cache = net.apply(params, cache, *inputs, vector, grid, method="step")
      return cache, logits

    inputs = before.T, jnp.arange(line.shape[1])
    return jax.lax.scan(run, net.cache(n, shape[1]), inputs)[1]

  one_by_one = steps(before).swapaxes(0, 1).reshape(whole.shape)
  np.testing.assert_allclose(one_by_one, whole, rtol=1e-4, atol=1e-4)


def test_conditions_reach_every_place():
  """A vector moves every logit, a grid those at and near its place, the first token among them."""
  net = masked_conv.GatedPixelCNN(levels=2, **SMALL | dict(width=24))
  vector, grid = jnp.zeros((1, 2)), jnp.zeros((1, 4, 5, 1))
  params = made(net, (4, 5), vector=vector, grid=grid)
  apply = jax.jit(lambda v, g: net.apply(params, jnp.zeros((1, 4, 5, 1), jnp.int32), v, g)[0])
  start = apply(vector, grid)
  assert (apply(vector + 1.0, grid) != start).any((-1, -2)).all()
  moved = (apply(vector, grid.at[0, 1, 2].set(1.0)) != start).any((-1, -2))
  assert moved[1, 2] and moved[2:].any() and not moved[0].any()


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_samples_have_the_probabilities_of_the_logits(temperature):
  """Every image of 2 x 2 tokens of two levels, counted against the product of its conditionals."""
  net = masked_conv.GatedPixelCNN(levels=2, width=4, depth=2, kernel=3, first_kernel=3)
  params, n = made(net, (2, 2), far=1.0), 20_000
  images = jnp.asarray(np.arange(16)[:, None] >> np.arange(4) & 1).reshape(16, 2, 2, 1)
  log_p = jax.nn.log_softmax(jax.jit(net.apply)(params, images) / temperature)
  picked = jnp.take_along_axis(log_p, images[..., None], -1)
  p = np.exp(picked.sum((1, 2, 3, 4)))
  np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-5)
  assert p.max() > 2.0 / 16.0  # far from even, so that an order of tokens is seen

  @jax.jit
  def draw(keys):
    step = functools.partial(net.apply, params, method="step")
    return autoregressive.sample(step, net.cache(n, 2), keys, 4, temperature=temperature)

  drawn = draw(noise.rows(KEY(1), n)) @ (1 << jnp.arange(4))
  found = np.bincount(drawn, minlength=16) / n
  assert (np.abs(found - p) < 4.5 * np.sqrt(p * (1.0 - p) / n)).all()


def test_temperature_zero_takes_the_most_probable_token():
  """Of fixed logits, of which the second token's depend on the first."""
  first, second = jnp.array([0.0, 3.0, 1.0]), jnp.array([[9.0, 0, 0], [0, 0, 9.0], [9.0, 0, 0]])

  def step(cache, token, position):
    return jnp.where(position == 0, first[None], second[token]), cache

  tokens = autoregressive.sample(step, (), noise.rows(KEY(0), 3), 2, temperature=0)
  np.testing.assert_array_equal(tokens, [[1, 2]] * 3)
  assert tokens.dtype == jnp.int32
  for bad in (-1.0, float("nan"), True):
    with pytest.raises(ValueError, match="temperature="):
      autoregressive.sample(step, (), noise.rows(KEY(0), 3), 2, temperature=bad)

"""Discretised logistics and mixtures of them: exact probabilities, gradients, samples, vectors."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise
from jaxgen.objectives import likelihood

KEY = jax.random.key


def grid(levels):
  return jnp.linspace(-1.0, 1.0, levels)


@functools.partial(jax.jit, static_argnums=2)
def each_level(mean, log_scale, levels):
  """P of every level, [N, levels], in log, of N logistics."""
  x = jnp.broadcast_to(grid(levels), (len(mean), levels))
  return likelihood.discretized_logistic(x, mean[:, None], log_scale[:, None], levels=levels)


@pytest.mark.parametrize("levels", [2, 32, 256])
def test_the_levels_of_a_logistic_sum_to_one(levels):
  """Means beyond the range of pixels, scales from far below a bin to far above the range."""
  log_scale = jnp.repeat(jnp.array([-20.0, -7.0, -3.0, 0.0, 6.0, 20.0]), 5)
  mean = jnp.tile(jnp.array([-3.0, -1.0, 0.1234, 0.9, 50.0]), 6)
  total = jax.nn.logsumexp(each_level(mean, log_scale, levels), axis=1)
  np.testing.assert_allclose(total, 0.0, atol=3e-5)  # 256 float32 terms of logits up to 1e10


def test_a_logistic_is_that_of_float64():
  """Against differences of the distribution function in float64, on the side of the tail."""
  x, mean, log_scale = grid(256)[:, None], np.linspace(-1.2, 1.2, 7)[None], -2.0
  ours = jax.jit(likelihood.discretized_logistic)(x, jnp.float32(mean), jnp.float32(log_scale))
  a, b = ((np.float64(x) - mean + s / 255) * np.exp(2.0) for s in (1, -1))
  a, b = np.where(a + b > 0, -b, a), np.where(a + b > 0, -a, b)  # the tail: no 1 - 1
  cdf = lambda z: 1.0 / (1.0 + np.exp(-z))
  exact = np.log(cdf(a) - cdf(b))
  np.testing.assert_allclose(ours[1:-1], exact[1:-1], rtol=1e-5, atol=1e-5)


def test_gradients_are_finite_in_the_tails():
  slope = jax.jit(jax.grad(lambda p, x: likelihood.discretized_logistic(x, *p).sum()))
  x, mean, log_scale = (
    a.ravel() for a in jnp.meshgrid(grid(5), jnp.float32([-100, 0, 100]), jnp.arange(-7.0, 8.0))
  )
  by_mean, by_scale = slope((mean, log_scale), x)
  assert jnp.isfinite(by_mean).all() and jnp.isfinite(by_scale).all()
  far = (jnp.abs(x - mean) > 50) & (log_scale < 0)  # a slope that still says where to go,
  far &= x != jnp.sign(mean)  # but in an outermost bin, which holds all that lies there
  assert (jnp.sign(by_mean) == jnp.sign(x - mean))[far].all() and (by_scale[far] > 1.0).all()


def random_params(seed, n, spread=1.5):
  """Of one pixel, [1, 1, 1, n]."""
  return spread * jax.random.normal(KEY(seed), (1, 1, 1, n))


@functools.partial(jax.jit, static_argnames="levels")
def log_prob(x, params, levels):
  """Of pixels x [N, C] that have the same parameters, [N]."""
  params = jnp.broadcast_to(params, (len(x), *params.shape[1:]))
  return likelihood.logistic_mixture(x[:, None, None], params, levels=levels)[:, 0, 0]


@pytest.mark.parametrize("levels, scale", [(256, 0.0), (256, -8.0), (256, 5.0), (32, -2.0)])
def test_mixtures_of_three_channels_sum_to_one(levels, scale):
  """Over green and blue for one red: the mixture of red alone, which sums to one over red.

  scale: about which the log scales lie; those below -7 count as -7.
  """
  params = random_params(0, 40).reshape(1, 1, 1, 4, 10)  # M = 4: the tens are not yet laid out
  logits, rest = params[..., 0], params[..., 1:].reshape(1, 1, 1, 3, 3, 4)
  rest = rest.at[..., 1, :].add(scale)
  red = jnp.concatenate([logits, rest[..., 0, 0, :], rest[..., 0, 1, :]], -1)
  three = jnp.concatenate([logits, rest.reshape(1, 1, 1, 36)], -1)
  total = jax.nn.logsumexp(log_prob(grid(levels)[:, None], red, levels))
  np.testing.assert_allclose(total, 0.0, atol=2e-5)
  for at in (0, levels // 3, levels - 1):
    value = grid(levels)[at]
    green, blue = (g.ravel() for g in jnp.meshgrid(grid(levels), grid(levels)))
    x = jnp.stack([jnp.full_like(green, value), green, blue], -1)
    ours = jax.nn.logsumexp(log_prob(x, three, levels))
    alone = log_prob(value[None, None], red, levels)[0]
    np.testing.assert_allclose(ours, alone, rtol=1e-5, atol=5e-5)  # a sum of 65,536 terms


def test_a_gradient_of_a_mixture_is_finite_where_nothing_fits():
  """Every component e^-7 wide and far from the pixel."""
  params = jnp.zeros((1, 2, 2, 20)).at[..., 2:].set(-9.0)
  x = jnp.ones((1, 2, 2, 3))
  loss, slope = jax.jit(jax.value_and_grad(lambda p: likelihood.logistic_mixture(x, p).sum()))(
    params
  )
  assert jnp.isfinite(loss) and loss < -1e4 and jnp.isfinite(slope).all()


def frequencies(values, levels):
  """How often each cell of a table of levels occurs; values: [N, n] in [-1, 1]."""
  index = np.rint((np.asarray(values) + 1.0) / 2.0 * (levels - 1)).astype(int)
  table = np.zeros((levels,) * index.shape[1])
  np.add.at(table, tuple(index.T), 1.0)
  return table / len(index)


@pytest.mark.parametrize("other, coefficients", [(1, (2.0, 2.0, 0.0)), (2, (0.0, 2.0, 0.0))])
def test_samples_have_their_probabilities(other, coefficients):
  """Red, of a grid's levels, and green or blue given it.

  A sample conditions on what it drew, not on a level: so red is e^-7 wide about levels.
  """
  levels, n = 5, 40_000
  logits, zero = jnp.array([0.3, -0.5]), jnp.zeros(2)
  wide = [jnp.array([-0.3, 0.4]), jnp.array([-1.5, -2.0])]
  channels = [jnp.array([-0.5, 1.0]), jnp.full(2, -9.0), zero + coefficients[0]]
  channels += [*wide, zero + coefficients[1], *wide, zero + coefficients[2]]
  params = jnp.concatenate([logits, *channels])[None, None, None]
  draw = functools.partial(likelihood.sample_logistic_mixture, channels=3)
  x = jax.jit(lambda keys: draw(keys, jnp.broadcast_to(params, (n, 1, 1, 20))))(
    noise.rows(KEY(1), n)
  )
  assert x.shape == (n, 1, 1, 3) and jnp.abs(x).max() == 1.0
  points = jnp.stack(jnp.meshgrid(*[grid(levels)] * 3, indexing="ij"), -1).reshape(-1, 3)
  exact = np.exp(log_prob(points, params, levels)).reshape([levels] * 3).sum(axis=3 - other)
  ours = frequencies(x[:, 0, 0][:, jnp.array([0, other])], levels)
  error = 5.0 * np.sqrt(exact * (1.0 - exact) / n) + 1e-3  # red is up to 1e-2 from its level
  assert (np.abs(ours - exact) < error).all()
  given = exact[[1, 4]] / exact[[1, 4]].sum(axis=1, keepdims=True)
  assert np.abs(given[0] - given[1]).max() > 0.3  # red says something


def test_a_grey_sample_has_its_probabilities():
  levels, n, params = 16, 40_000, random_params(3, 9, 1.0)
  draw = functools.partial(likelihood.sample_logistic_mixture, channels=1)
  tiled = jnp.broadcast_to(params, (n, 1, 1, 9))
  x = jax.jit(draw)(noise.rows(KEY(1), n), tiled)
  exact = np.exp(log_prob(grid(levels)[:, None], params, levels))
  error = 5.0 * np.sqrt(exact * (1.0 - exact) / n)
  assert (np.abs(frequencies(x[:, 0, 0], levels) - exact) < error).all()


def test_without_temperature_a_sample_is_the_likeliest_mean():
  logits, means = jnp.array([0.0, 1.0]), jnp.array([[0.1, -0.2], [0.3, 0.4], [0.5, 2.0]])
  coefficient = jnp.full(2, 0.5)
  channels = [jnp.concatenate([m, jnp.zeros(2), coefficient]) for m in means]
  params = jnp.concatenate([logits, *channels])[None, None, None]
  keys = jax.random.split(KEY(0), 1)
  draw = functools.partial(likelihood.sample_logistic_mixture, channels=3, temperature=0.0)
  x = jax.jit(draw)(keys, params)[0, 0, 0]
  c = np.tanh(0.5)
  red, green = -0.2, 0.4 - 0.2 * c
  np.testing.assert_allclose(x, [red, green, min(2.0 + c * (red + green), 1.0)], rtol=1e-6)


def nhwc(x):
  return x.transpose(0, 2, 3, 1)


# The released codes take the density times the bin's width where a bin's probability is below
# 1e-5. In these vectors no such component weighs anything: ours agree to 1e-6 without it.
@pytest.mark.evidence("V14", "G")
def test_the_mixture_is_that_of_public_code():
  given, close = golden.load("discretized_mix_logistic_loss")
  run = jax.jit(likelihood.logistic_mixture, static_argnames="levels")
  loss = -run(nhwc(given["in.x"]), nhwc(given["in.l"])).sum((1, 2))
  close(loss, "per_image")
  close(loss.sum(), "loss_sum")
  given, close = golden.load("vdvae_dmol")  # nats for each value, and at 5 bits
  close(-run(given["in.x"], given["in.l"]).mean((1, 2)) / 3, "loss")
  x = np.round((given["in.x"] + 1) / 2 * 31) / 31 * 2 - 1
  close(-run(x, given["in.l"], levels=32).mean((1, 2)) / 3, "loss_low_bit")


def test_a_sample_is_that_of_public_code():
  given, close = golden.load("sample_discretized_mix_logistic")
  draw = functools.partial(likelihood.sample_logistic_mixture, channels=3)
  params, uniforms = nhwc(given["in.l"]), (given["in.u0"], given["in.u1"])
  x = jax.jit(lambda keys, p, u: draw(keys, p, uniforms=u))(
    jax.random.split(KEY(0), 3), params, uniforms
  )
  close(x.transpose(0, 3, 1, 2), "x")


def test_what_does_not_fit_is_refused():
  keys = jax.random.split(KEY(0), 1)
  with pytest.raises(ValueError, match="channels=2: expected 1 or 3"):
    likelihood.logistic_mixture(jnp.zeros((1, 1, 1, 2)), jnp.zeros((1, 1, 1, 30)))
  with pytest.raises(ValueError, match=r"params.shape=.*expected \[B, H, W, 10 M\] for 3 channels"):
    likelihood.sample_logistic_mixture(keys, jnp.zeros((1, 1, 1, 9)), channels=3)
  with pytest.raises(ValueError, match="levels=1: expected a whole number, 2 or more"):
    likelihood.logistic_mixture(jnp.zeros((1, 1, 1, 1)), jnp.zeros((1, 1, 1, 3)), levels=1)

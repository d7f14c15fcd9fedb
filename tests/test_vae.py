"""The VAE with either decoder: what its bound is a bound on, and what its networks say."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise
from jaxgen.models.vae import vae

KEY = jax.random.key
SHAPE = (1, 2, 1)


def randomized(made):
  """The Vars of a method whose decoder is far from its start."""
  vars = jax.jit(made.init)(KEY(0))
  noisy = lambda x: x + 0.5 * jax.random.normal(KEY(x.size), x.shape)
  decoder = jax.tree.map(noisy, vars.params["decoder"])
  return vars._replace(params={**vars.params, "decoder": decoder})


def evidence(made, vars, log_likelihood, points=60):
  """log p(x) of a two-dimensional latent by quadrature over z. log_likelihood: z [N, 2] -> [N]."""
  z, w = np.polynomial.hermite_e.hermegauss(points)
  grid = jnp.stack(jnp.meshgrid(jnp.float32(z), jnp.float32(z)), -1).reshape(-1, 2)
  weight = np.log(np.outer(w, w).ravel() / (2.0 * np.pi))
  return jax.nn.logsumexp(log_likelihood(grid) + weight)


@pytest.mark.parametrize("level", [(-1.0, -1.0), (1.0, -1.0)])
def test_the_bound_of_coins_is_below_their_evidence(level):
  """Black and white pixels are their own binarisation: one exact probability to stay below."""
  made = vae.build(image_shape=SHAPE, z_dim=2, width=8)
  vars = randomized(made)
  x = jnp.array([level])

  def log_likelihood(z):
    p = 0.5 + 0.5 * made.fns["decode"](vars, z)["image"].reshape(-1, 2)
    return jnp.sum(jnp.where(x > 0, jnp.log(p), jnp.log1p(-p)), -1)

  exact = evidence(made, vars, log_likelihood)
  image = jnp.broadcast_to(x.reshape(1, *SHAPE), (20_000, *SHAPE))
  bound = jax.jit(made.fns["log_prob"])(vars, {"image": image}, noise.rows(KEY(1), 20_000))
  error = 4.0 * bound.std() / 20_000**0.5
  assert -error < exact - bound.mean() < 1.0  # nats: below, and not by far


def test_the_probabilities_of_8_bit_pixels_sum_to_at_most_one():
  """exp of the Gaussian bound over all 256^2 images of two pixels, averaged over dequantisation."""
  made = vae.build(image_shape=SHAPE, decoder="gaussian", z_dim=2, width=8)
  vars = jax.jit(made.init)(KEY(0))
  level = jnp.arange(256.0) / 127.5 - 1.0
  images = jnp.stack(jnp.meshgrid(level, level), -1).reshape(-1, *SHAPE)

  @jax.jit
  def bound(key):
    return made.fns["log_prob"](vars, {"image": images}, noise.rows(key, len(images)))

  mean = sum(bound(KEY(i)) for i in range(20)) / 20
  total = jnp.exp(mean).sum()
  # Much of the density lies beyond the pixels' range, where no image is.
  assert 0.1 < total < 1.0


@pytest.mark.parametrize("decoder", vae.DECODERS)
def test_loss_and_log_prob_are_one_bound(decoder):
  """beta = 1: the mean of -log_prob with the same keys; beta weighs the KL alone."""
  made = vae.build(image_shape=SHAPE, decoder=decoder, z_dim=2, width=8)
  vars, keys = randomized(made), lambda: noise.rows(KEY(1), 50)
  batch = {"image": jax.random.uniform(KEY(2), (50, *SHAPE), minval=-1.0)}
  loss, aux = made.phases["vae"].loss(vars, batch, keys())
  np.testing.assert_allclose(loss, -made.fns["log_prob"](vars, batch, keys()).mean(), rtol=1e-5)
  four, _ = made.phases["vae"].loss(vars, batch, keys(), beta=4.0)
  np.testing.assert_allclose(four - loss, 3.0 * aux.metrics["kl"], rtol=1e-4)


@pytest.mark.parametrize("decoder", vae.DECODERS)
def test_what_is_encoded_is_the_posterior_that_the_loss_uses(decoder):
  """KL of the samples' moments, which are those of q where the data leaves no noise."""
  made = vae.build(image_shape=SHAPE, decoder=decoder, z_dim=2, width=8)
  vars = randomized(made)
  batch = {"image": jnp.ones((50_000, *SHAPE))}
  z = jax.jit(made.fns["encode"])(vars, batch, noise.rows(KEY(1), 50_000))
  _, aux = made.phases["vae"].loss(vars, batch, noise.rows(KEY(2), 50_000))
  mean, var = z.mean(0), z.var(0)
  kl = 0.5 * (mean**2 + var - jnp.log(var) - 1.0).sum()
  np.testing.assert_allclose(kl, aux.metrics["kl"], rtol=0.02)


def test_samples_are_decoded_means_in_range():
  for decoder in vae.DECODERS:
    made = vae.build(image_shape=SHAPE, decoder=decoder, z_dim=2, width=8)
    vars, keys = randomized(made), noise.rows(KEY(1), 500)
    image = made.fns["sample"](vars, keys)["image"]
    assert image.shape == (500, *SHAPE) and jnp.abs(image).max() <= 1.0
    assert image.std(0).min() > 0.01


@pytest.mark.evidence("V03", "M")
def test_more_draws_bring_the_bound_nearer():
  """arXiv:1509.00519, Theorem 1: of the same 64 images, above the evidence lower bound."""
  made = vae.build(image_shape=(8, 8, 1), decoder="gaussian", z_dim=3, width=16)
  vars = jax.jit(made.init)(jax.random.key(0))
  image = jax.random.uniform(jax.random.key(1), (64, 8, 8, 1), minval=-1.0)

  @functools.partial(jax.jit, static_argnums=0)
  def log_prob(samples):
    keys = noise.rows(jax.random.key(2), 64)
    return made.fns["log_prob"](vars, {"image": image}, keys, samples=samples).mean()

  bound, few, many = (float(log_prob(k)) for k in (0, 4, 256))
  assert bound + 0.1 < few < many - 0.1

"""The autoencoder: its optimum without hidden layers is PCA."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import noise
from jaxgen.core.method import Vars
from jaxgen.data import pipeline, sources
from jaxgen.models.vae import autoencoder

KEY = jax.random.key


def pca(x, n):
  """Mean, the first n principal directions [D, n], and the squared error that they leave."""
  mean = x.mean(0)
  values, vectors = np.linalg.eigh(np.cov(x.T, bias=True))
  return mean, vectors[:, ::-1][:, :n], values[:-n].sum()


def linear(mean, down, up):
  """Vars of the linear autoencoder x -> mean + (x - mean) down up."""
  layer = lambda kernel, bias: {"out": {"kernel": jnp.float32(kernel), "bias": jnp.float32(bias)}}
  return Vars({"encoder": layer(down, -mean @ down), "decoder": layer(up, mean)})


@pytest.mark.evidence("V01", "M")
def test_pca_is_the_optimum_of_a_linear_autoencoder():
  """The error of Eq. 2 there is the sum of the eigenvalues left out, no gradient, and no way down.

  On digits of eight rows of pixels, in any basis of the code.
  """
  examples = pipeline.load(sources.open_source("digits", "train"), np.arange(400))
  image = np.asarray(examples["image"])[:, 2:6, 1:6]
  made = autoencoder.build(image_shape=(4, 5, 1), z_dim=3, width=0)
  mean, v, left = pca(np.float64(image).reshape(400, 20), 3)
  basis = np.random.RandomState(0).randn(3, 3) + 2.0 * np.eye(3)
  keys = lambda: noise.rows(KEY(0), 400)
  loss = lambda p: made.phases["autoencoder"].loss(Vars(p), {"image": image}, keys())[0]
  best = linear(mean, v @ basis, np.linalg.inv(basis) @ v.T).params

  @jax.jit
  def measured(p):
    def step(carry, _):
      p, state = carry
      updates, state = tx.update(jax.grad(loss)(p), state, p)
      return (optax.apply_updates(p, updates), state), None

    tx = optax.adam(optax.cosine_decay_schedule(0.03, 1500))
    start = made.init(KEY(1)).params
    fitted = jax.lax.scan(step, (start, tx.init(start)), None, length=1500)[0][0]
    return loss(p), jax.grad(loss)(p), loss(start), loss(fitted), jax.grad(loss)(start)

  at_pca, gradient, start, fitted, slope = measured(best)
  np.testing.assert_allclose(at_pca, left, rtol=1e-4)
  size = lambda tree: float(optax.tree.norm(tree))
  assert size(gradient) < 1e-3 * size(slope)
  assert start > 2.0 * left
  np.testing.assert_allclose(fitted, left, rtol=2e-3)  # from any start; never below
  assert fitted > left * (1.0 - 1e-4)


def test_the_loss_is_the_error_of_what_is_decoded_from_the_code():
  """Survey Eq. 2: the squared norm of an image's error, its mean over the batch."""
  made = autoencoder.build(image_shape=(2, 3, 1), z_dim=2, width=8)
  vars = jax.jit(made.init)(KEY(0))
  batch = {"image": jax.random.uniform(KEY(1), (5, 2, 3, 1), minval=-1.0)}
  keys = lambda: noise.rows(KEY(2), 5)
  z = made.fns["encode"](vars, batch, keys())
  image = made.fns["decode"](vars, z)["image"]
  loss, aux = made.phases["autoencoder"].loss(vars, batch, keys())
  error = np.asarray(batch["image"] - image).reshape(5, 6)
  assert z.shape == (5, 2) and np.abs(image).max() <= 1.0
  np.testing.assert_allclose(loss, (np.linalg.norm(error, axis=1) ** 2).mean(), rtol=1e-5)
  np.testing.assert_allclose(aux.metrics["mse"], loss / 6.0, rtol=1e-5)


def test_what_is_sampled_is_decoded_from_the_normal_distribution():
  """A linear decoder passes on its mean and covariance."""
  mean, up = np.array([0.3, -0.2]), np.array([[0.5, 0.1], [-0.2, 0.4]])
  made = autoencoder.build(image_shape=(1, 2, 1), z_dim=2, width=0)
  image = jax.jit(made.fns["sample"])(linear(mean, np.eye(2), up), noise.rows(KEY(0), 20_000))
  x = np.asarray(image["image"]).reshape(-1, 2)
  np.testing.assert_allclose(x.mean(0), mean, atol=4.0 * 0.6 / 20_000**0.5)
  np.testing.assert_allclose(np.cov(x.T), up.T @ up, atol=0.01)


@pytest.mark.parametrize(
  "args, words",
  [
    ({"z_dim": 0}, "z_dim=0: expected a whole number, 1 or more"),
    ({"width": -1}, "width=-1: expected a whole number, 0 or more"),
    ({"image_shape": (28, 28)}, "image_shape="),
  ],
)
def test_bad_numbers_are_refused(args, words):
  with pytest.raises(ValueError, match=words):
    autoencoder.build(**args)

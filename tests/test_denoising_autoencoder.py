"""The denoising autoencoder: the chain of an exact or of a trained denoiser ends at the data."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import noise
from jaxgen.core import method
from jaxgen.models.vae import denoising_autoencoder
from jaxgen.objectives import likelihood
from jaxgen.samplers import markov

KEY = jax.random.key
DATA = np.array([0.5, 0.3, 0.05, 0.15])  # P(X) of four states
MOVES = np.array([  # C(X~ | X), a row for each X
  [0.4, 0.3, 0.2, 0.1],
  [0.1, 0.6, 0.2, 0.1],
  [0.3, 0.3, 0.3, 0.1],
  [0.0, 0.2, 0.5, 0.3],
])  # fmt: skip
POSTERIOR = (DATA[:, None] * MOVES / (DATA @ MOVES)).T  # P(X | X~), a row for each X~


def drawn(table):
  """(keys [n], states int [n]) -> states, each drawn from its row of the table."""
  logits = jnp.log(jnp.float32(table))
  return lambda keys, x: jax.vmap(jax.random.categorical)(keys, logits[x])


@pytest.mark.evidence("V02", "M")
def test_the_chain_of_an_exact_denoiser_ends_at_the_data():
  """arXiv:1305.6663, Theorem 1: the eigenvector of the chain's matrix, and what its draws count."""
  values, vectors = np.linalg.eig((MOVES @ POSTERIOR).T)
  stationary = np.real(vectors[:, np.argmax(np.real(values))])
  np.testing.assert_allclose(stationary / stationary.sum(), DATA, atol=1e-12)

  n = 20_000

  @jax.jit
  def counts():
    run = lambda denoise, steps: markov.chain(
      drawn(MOVES), drawn(denoise), jnp.full(n, 2), noise.rows(KEY(0), n), steps
    )
    ends = run(POSTERIOR, 1), run(POSTERIOR, 30), run(np.full((4, 4), 0.25), 30)
    return [jnp.bincount(x, length=4) / n for x in ends]

  one, last, other = counts()
  error = 4.5 * np.sqrt(DATA * (1.0 - DATA) / n)
  assert (np.abs(last - DATA) < error).all()
  np.testing.assert_allclose(one, (MOVES @ POSTERIOR)[2], atol=0.015)  # one step from state 2
  assert np.abs(other - DATA).max() > 0.1  # another denoiser, another end


@pytest.mark.evidence("V02", "M")
@pytest.mark.parametrize("decoder, corruption", [("bernoulli", "salt_pepper"), ("gaussian",) * 2])
def test_the_chain_of_a_trained_denoiser_ends_at_the_data(decoder, corruption):
  """Of one pixel: a coin of 0.8, for which the factorised P(X | X~) is exact; N(0.1, 0.2^2)."""
  made = denoising_autoencoder.build(
    image_shape=(1, 1, 1), decoder=decoder, corruption=corruption, level=0.4, width=16, walkback=1
  )

  def pixels(key, n):
    if decoder == "bernoulli":
      return {"image": jnp.where(jax.random.uniform(key, (n, 1, 1, 1)) < 0.8, 1.0, -1.0)}
    return {"image": 0.1 + 0.2 * jax.random.normal(key, (n, 1, 1, 1))}

  @jax.jit
  def trained():
    vars, tx = made.init(KEY(0)), optax.adam(optax.cosine_decay_schedule(0.02, 1000))

    def step(carry, i):
      params, state = carry
      k_data, k_loss = jax.random.split(jax.random.fold_in(KEY(1), i))
      loss = lambda p: made.phases["autoencoder"].loss(
        vars._replace(params=p), pixels(k_data, 256), noise.rows(k_loss, 256)
      )[0]
      updates, state = tx.update(jax.grad(loss)(params), state, params)
      return (optax.apply_updates(params, updates), state), None

    start = (vars.params, tx.init(vars.params))
    vars = vars._replace(params=jax.lax.scan(step, start, jnp.arange(1000))[0][0])
    return made.fns["sample"](vars, noise.rows(KEY(2), 10_000), steps=30)["image"]

  mean = trained().reshape(-1)
  if decoder == "bernoulli":
    np.testing.assert_allclose(mean.mean(), 2.0 * 0.8 - 1.0, atol=0.03)
    # E[X | X~] has two values: 0.8 + 0.2 of 1 against 0.2 of it, and the other way round.
    likely = 0.8 * np.array([0.8, 0.2]) / (0.8 * np.array([0.8, 0.2]) + 0.2 * np.array([0.2, 0.8]))
    np.testing.assert_allclose([mean.max(), mean.min()], 2.0 * likely - 1.0, atol=0.06)
  else:
    # E[X | X~] of Gaussians is 0.1 + r (X~ - 0.1), r = 0.2^2 / (0.2^2 + 0.4^2) = 0.2.
    np.testing.assert_allclose(mean.mean(), 0.1, atol=0.03)
    np.testing.assert_allclose(mean.std(), 0.2 * (0.2**2 + 0.4**2) ** 0.5, rtol=0.15)


def test_a_chain_starts_where_the_network_takes_an_image_without_content():
  """A network that leaves black and white as they are, and makes coins of 0.9 of grey."""
  made = denoising_autoencoder.build(image_shape=(5, 5, 1), level=1e-9, width=25)
  eye, bias = jnp.eye(25), jnp.full(25, jnp.log(9.0))
  encoder = {"hidden": {"kernel": 3.0 * eye, "bias": jnp.zeros(25)}}
  decoder = {"logits": {"kernel": 30.0 * eye, "bias": bias}}
  vars = method.Vars({"encoder": encoder, "decoder": decoder})
  image = made.fns["sample"](vars, noise.rows(KEY(0), 1000))["image"]
  np.testing.assert_allclose(jnp.abs(image), 1.0, atol=1e-6)
  np.testing.assert_allclose(image.mean(), 0.8, atol=0.02)


def test_corruptions():
  """How many pixels, to what, and that others stay."""
  x = jnp.broadcast_to(jnp.linspace(-0.9, 0.9, 10), (5000, 10))
  apply = lambda name, level: denoising_autoencoder.CORRUPTIONS[name](
    noise.rows(KEY(0), 5000), x, level
  )
  noisy, black, both = (apply(*c) for c in
                        (("gaussian", 0.3), ("masking", 0.25), ("salt_pepper", 0.5)))  # fmt: skip
  np.testing.assert_allclose(noisy.mean(0), x[0], atol=0.02)
  np.testing.assert_allclose(noisy.std(0), 0.3, rtol=0.05)
  np.testing.assert_allclose((black == -1.0).mean(0), 0.25, atol=0.03)
  np.testing.assert_allclose((both == -1.0).mean(0), 0.25, atol=0.03)
  np.testing.assert_allclose((both == 1.0).mean(0), 0.25, atol=0.03)
  assert ((black == x) | (black == -1.0)).all() and ((both == x) | (jnp.abs(both) == 1.0)).all()


@pytest.mark.parametrize("decoder", denoising_autoencoder.RECONSTRUCTIONS)
def test_the_loss_is_of_the_clean_image_given_the_corrupted_one(decoder):
  """Where all is black after the corruption, the code is that of black, whatever the image."""
  made = denoising_autoencoder.build(
    image_shape=(2, 3, 1), decoder=decoder, corruption="masking", level=1.0, width=8, walkback=3
  )
  vars = jax.jit(made.init)(KEY(0))
  white, black = {"image": jnp.ones((4000, 2, 3, 1))}, {"image": -jnp.ones((1, 2, 3, 1))}
  loss, aux = jax.jit(made.phases["autoencoder"].loss)(vars, white, noise.rows(KEY(1), 4000))
  y = jnp.tanh(
    -vars.params["encoder"]["hidden"]["kernel"].sum(0) + vars.params["encoder"]["hidden"]["bias"]
  )
  heads = {k: y @ v["kernel"] + v["bias"] for k, v in vars.params["decoder"].items()}
  if decoder == "bernoulli":
    nll = -jnp.log(jax.nn.sigmoid(heads["logits"])).sum()
    np.testing.assert_allclose(made.fns["encode"](vars, black, noise.rows(KEY(1), 1))[0], y, 1e-5)
  else:  # the dequantised 1 has its own variance
    square = (1.0 - jnp.tanh(heads["mean"])) ** 2 + likelihood.BIN**2 / 12.0
    nll = 0.5 * (square / jnp.exp(heads["log_var"]) + heads["log_var"] + np.log(2 * np.pi)).sum()
  np.testing.assert_allclose(loss, nll, rtol=1e-3)
  np.testing.assert_allclose([aux.metrics["first"], aux.metrics["last"]], nll, rtol=1e-3)


@pytest.mark.parametrize(
  "args, words",
  [
    ({"decoder": "poisson"}, "decoder='poisson': expected one of bernoulli, gaussian"),
    ({"corruption": "blur"}, "corruption='blur': expected one of gaussian, masking, salt_pepper"),
    ({"level": 1.5}, "level=1.5: expected at least 0 and at most 1"),
    ({"level": 0.0}, "level=0.0: expected a finite number above 0"),
    ({"walkback": 0}, "walkback=0: expected a whole number"),
    ({"steps": 2.5}, "steps=2.5: expected a whole number"),
  ],
)
def test_bad_numbers_are_refused(args, words):
  with pytest.raises(ValueError, match=words):
    denoising_autoencoder.build(**args)

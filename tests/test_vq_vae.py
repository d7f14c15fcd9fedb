"""VQ-VAE: what its networks, its loss and its codebook do, with either update."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import noise
from jaxgen.core import method, step
from jaxgen.models.vae import vq_vae
from jaxgen.nn import conv_autoencoder
from jaxgen.objectives import quantization

KEY = jax.random.key
SMALL = {
  "image_shape": (8, 8, 1), "n_codes": 8, "code_dim": 4, "width": 8, "res_width": 4,
  "n_res_blocks": 1,
}  # fmt: skip
image = lambda seed, n=6: jax.random.uniform(KEY(seed), (n, 8, 8, 1), minval=-1.0)


@functools.cache
def built(update):
  """(method, its Vars), with outputs of the encoder far enough apart to use several codes."""
  made = vq_vae.build(**SMALL, update=update)
  vars = jax.jit(made.init)(KEY(0))
  encoder = jax.tree.map(lambda x: 2.0 * x, vars.params["encoder"])
  return made, vars._replace(params={**vars.params, "encoder": encoder})


def loss_of(made):
  return made.phases["vq_vae"].loss


@pytest.mark.evidence("V11", "P")
def test_sizes():
  """The layers of the authors' example for CIFAR-10, weights and biases."""
  conv = lambda size, a, b: size * size * a * b + b
  stack = 2 * (conv(3, 128, 32) + conv(1, 32, 128))
  encoder = conv(4, 3, 64) + conv(4, 64, 128) + conv(3, 128, 128) + stack + conv(1, 128, 64)
  decoder = conv(3, 64, 128) + stack + conv(4, 128, 64) + conv(4, 64, 3)
  for update in vq_vae.UPDATES:
    params, extra = jax.eval_shape(vq_vae.build(update=update).init, KEY(0))
    sizes = {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params.items()}
    codes = {"codebook": 512 * 64} if update == "gradient" else {}
    assert sizes == {"encoder": encoder, "decoder": decoder, **codes}
    assert ("codebook" in extra) == (update == "ema")
  assert (encoder, decoder) == (372_416, 290_307)


def test_an_upsampling_is_a_transposed_convolution():
  """`ConvTranspose2d(C, width, 4, stride=2, padding=1)`, of which lax has the mirrored kernel."""
  x, kernel = jax.random.normal(KEY(0), (2, 5, 3, 6)), jax.random.normal(KEY(1), (4, 4, 6, 7))
  ours = kernel.reshape(2, 2, 2, 2, 6, 7).transpose(0, 2, 4, 1, 3, 5).reshape(24, 28)
  bias = jnp.arange(7.0)
  apply = jax.jit(lambda p, x: conv_autoencoder.Upsample(7).apply({"params": p}, x))
  found = apply({"kernel": {"kernel": ours}, "bias": bias}, x)
  transposed = jax.lax.conv_transpose(
    x, kernel, (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
  )
  np.testing.assert_allclose(found, transposed + bias.reshape(1, 1, 1, 7), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("update", vq_vae.UPDATES)
@pytest.mark.evidence("V11", "M")
def test_the_loss_is_its_terms(update):
  """Survey Box 2 or Eq. 3, of the reconstruction that `decode` makes of `encode`'s tokens."""
  made, vars = built(update)
  batch, keys = {"image": image(1)}, noise.rows(KEY(2), 6)
  loss, aux = jax.jit(loss_of(made))(vars, batch, keys)
  m = aux.metrics

  tokens = jax.jit(made.fns["encode"])(vars, batch, keys)
  assert tokens.shape == (6, 2, 2) and tokens.dtype == jnp.int32
  x_hat = jax.jit(made.fns["decode"])(vars, tokens)["image"]
  assert x_hat.shape == (6, 8, 8, 1) and jnp.abs(x_hat).max() < 1.0  # nothing is cut here
  np.testing.assert_allclose(m["reconstruction"], jnp.mean((x_hat - image(1)) ** 2), rtol=1e-5)

  pull = {"ema": 0.25, "gradient": 1.25}[update] * m["commitment"]
  np.testing.assert_allclose(loss, m["reconstruction"] / 0.253 + pull, rtol=1e-5)
  p = np.bincount(tokens.ravel(), minlength=8) / tokens.size
  np.testing.assert_allclose(m["usage"], np.mean(p > 0), rtol=1e-6)
  entropy = -(p[p > 0] * np.log(p[p > 0])).sum()
  np.testing.assert_allclose(m["perplexity"], np.exp(entropy), rtol=1e-5)
  assert p.max() < 1.0


@pytest.mark.parametrize("update", vq_vae.UPDATES)
@pytest.mark.evidence("V11", "M")
def test_who_moves_what(update):
  """The decoder's gradient reaches the encoder past the codes, and codes only by Eq. 3."""
  made = vq_vae.build(**SMALL, update=update, beta=0.0)
  vars = built(update)[1]
  batch, keys = {"image": image(1)}, noise.rows(KEY(2), 6)
  loss = lambda params: loss_of(made)(vars._replace(params=params), batch, keys)
  slopes, aux = jax.jit(jax.grad(loss, has_aux=True))(vars.params)
  assert all(optax.tree.norm(slopes[k]) > 1e-3 for k in ("encoder", "decoder"))
  if update == "ema":
    before, after = vars.extra["codebook"], aux.extra["codebook"]
    assert jax.tree.structure(before) == jax.tree.structure(after)
    np.testing.assert_allclose(after["count"].sum(), 0.99 * 8 + 0.01 * 24, rtol=1e-5)
    assert jnp.abs(after["codebook"] - before["codebook"]).max() > 1e-4
  else:
    # Of codes in use, the pull of Eq. 3's second term alone.
    tokens = jax.jit(made.fns["encode"])(vars, batch, keys)
    used = np.bincount(tokens.ravel(), minlength=8) > 0
    moved = np.abs(slopes["codebook"]["codes"]).max(1) > 0
    np.testing.assert_array_equal(moved, used)
    assert aux.extra == {} and "revived" not in aux.metrics


def test_dead_codes_are_revived_and_logged():
  """Counts of codes without vectors halve: after two steps they are below 0.4."""
  made = vq_vae.build(**SMALL, decay=0.5, revive=0.4)
  vars, batch = built("ema")[1], {"image": image(1)}
  run = jax.jit(lambda vars, key: loss_of(made)(vars, batch, noise.rows(key, 6))[1])
  revived, used = [], []
  for i in range(4):
    aux = run(vars, KEY(i))
    vars = vars._replace(extra={**vars.extra, **aux.extra})
    revived.append(float(aux.metrics["revived"]))
    used.append(float(aux.metrics["usage"]))
  assert revived[0] == 0.0 and revived[1] == 8 * (1.0 - used[1]) > 0.0
  assert used[2] > used[1]


@pytest.mark.parametrize(
  "args", [{"update": "ema", "decay": 0.9, "revive": 0.5}, {"update": "gradient", "n_codes": 64}]
)
@pytest.mark.evidence("V11", "M")
def test_training_reconstructs(args):
  """Two kinds of images, grey of two shades: their four codes, one a position, lose little."""
  made = vq_vae.build(**{**SMALL, **args}, data_variance=1.0, tx={"lr": 3e-3})
  sign = jnp.where(jnp.arange(8) % 2, 0.8, -0.8).reshape(1, 8, 1, 1, 1)
  batch = {"image": jnp.broadcast_to(sign, (1, 8, 8, 8, 1))}
  state = jax.jit(lambda key: step.init_state(made, key))(KEY(0))
  run = jax.jit(lambda s: step.train_step(made, s, batch, KEY(1)))
  for _ in range(160):
    state, metrics = run(state)
  assert metrics["vq_vae/reconstruction"][0] < 0.1  # of 0.64
  assert metrics["vq_vae/commitment"][0] < 0.01
  assert metrics["vq_vae/perplexity"][0] > 1.9


def test_images_are_cut_to_their_range():
  made, vars = built("ema")
  decoder = jax.tree.map(lambda x: 100.0 * x, vars.params["decoder"])
  vars = vars._replace(params={**vars.params, "decoder": decoder})
  x = jax.jit(made.fns["decode"])(vars, jnp.arange(8).reshape(2, 2, 2))["image"]
  assert x.min() == -1.0 and x.max() == 1.0


def test_codes_start_with_the_variance_of_the_example():
  """A variance of 1 / D, uniform, each counted once."""
  found = jax.jit(vq_vae.build(**{**SMALL, "n_codes": 5000}).init)(KEY(0)).extra["codebook"]
  np.testing.assert_allclose(found["codebook"].var(), 0.25, rtol=0.03)  # four errors of a variance
  assert jnp.abs(found["codebook"]).max() <= 3.0**0.5 / 2.0
  np.testing.assert_array_equal(found["total"], found["codebook"])
  np.testing.assert_array_equal(found["count"], jnp.ones(5000))
  index = jax.jit(quantization.nearest)(found["codebook"], found["codebook"])
  np.testing.assert_array_equal(index, jnp.arange(5000))


@pytest.mark.parametrize(
  "args, words",
  [
    ({"update": "kmeans"}, "update='kmeans': expected one of ema, gradient"),
    ({"n_codes": 0}, "n_codes=0: expected a whole number"),
    ({"code_dim": 2.5}, "code_dim=2.5: expected a whole number"),
    ({"width": 1}, "width=1: expected a whole number, 2 or more"),
    ({"downsamples": 0}, "downsamples=0: expected a whole number"),
    ({"n_res_blocks": -1}, "n_res_blocks=-1: expected a whole number, 0 or more"),
    ({"downsamples": 4}, "image_shape=(8, 8, 1): expected height and width that are multiples"),
    ({"beta": -1.0}, "beta=-1.0: expected a finite number, 0 or more"),
    ({"decay": 1.0}, "decay=1.0: expected at least 0 and less than 1"),
    ({"revive": float("nan")}, "revive=nan: expected a finite number"),
    ({"data_variance": 0.0}, "data_variance=0.0: expected a finite number above 0"),
    ({"codes": 3}, "args.codes=3: vae.vq_vae takes no such keyword"),
  ],
)
def test_bad_models_are_refused(args, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    method.build("vae.vq_vae", {**SMALL, **args})


@pytest.mark.parametrize(
  "tokens, words",
  [
    (np.full((1, 2, 2), 8), "tokens=8: expected 0 to n_codes - 1 = 7"),
    (np.full((1, 2, 2), -1), "tokens=-1: expected 0 to"),
    (np.zeros((1, 4), np.int32), "tokens='int32[1, 4]': expected int32 [B, 2, 2]"),
    (np.zeros((1, 2, 2), np.float32), "tokens='float32[1, 2, 2]': expected int32"),
  ],
)
def test_bad_tokens_are_refused(tokens, words):
  made, vars = built("ema")
  with pytest.raises(ValueError, match=re.escape(words)):
    made.fns["decode"](vars, tokens)

"""PixelVAE: its decoder's order, its bound against direct sums, its sampler."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise
from jaxgen.models.vae import pixel_vae
from jaxgen.nn import masked_conv

KEY = jax.random.key
TINY = dict(z_dim=1, widths=(4,), pixel_width=4, pixel_depth=2, kernel=3, first_kernel=3)


def randomized(params, far):
  return jax.tree.map(lambda x: x + far * jax.random.normal(KEY(x.size), x.shape), params)


def decoder_of(shape, levels, colours, width):
  pixels = masked_conv.GatedPixelCNN(levels, colours, width, 2, 5, 5)
  return pixel_vae.Decoder(pixel_vae.Features((8,), shape), pixels)


@pytest.mark.evidence("V06", "M")
@pytest.mark.parametrize("levels, colours", [(2, 1), (256, 3)])
def test_a_pixel_depends_on_z_and_on_the_pixels_before_it(levels, colours):
  """Jacobians of the logits: all earlier pixels, no later one, and every z. Survey Eq. 21."""
  shape, n = (3, 4), 12 * colours
  net = decoder_of(shape, levels, colours, 48)
  tokens, z = jax.random.uniform(KEY(1), (n,), maxval=levels - 1.0), jnp.array([0.3, -0.7])

  @jax.jit
  def jacobians(tokens, z):
    image = lambda tokens: tokens.reshape(1, *shape, colours)
    params = randomized(net.init(KEY(0), image(tokens), z[None]), 0.3)
    logits = lambda tokens, z: (net.apply(params, image(tokens), z[None]) ** 2).sum(-1).ravel()
    return jax.jacobian(logits, (0, 1))(tokens, z)

  by_tokens, by_z = jacobians(tokens, z)
  np.testing.assert_array_equal(by_tokens != 0.0, np.tri(n, k=-1, dtype=bool))
  assert (by_z != 0.0).all()


@pytest.fixture(scope="module")
def tiny():
  """(method, vars, p(x) of the 16 black and white images of 2 x 2, those images)."""
  made = pixel_vae.build(image_shape=(2, 2, 1), **TINY)
  params = jax.jit(made.init)(KEY(0)).params
  params = {"encoder": params["encoder"], "decoder": randomized(params["decoder"], 0.7)}
  tokens = jnp.asarray(np.arange(16)[:, None] >> np.arange(4) & 1).reshape(16, 2, 2, 1)
  # By quadrature over z of the product of conditionals, each written out.
  z, w = np.polynomial.hermite_e.hermegauss(80)
  pixels = masked_conv.GatedPixelCNN(2, 1, 4, 2, 3, 3)
  net = pixel_vae.Decoder(pixel_vae.Features((4,), (2, 2)), pixels)

  @jax.jit
  def given(z):
    logits = net.apply({"params": params["decoder"]}, tokens, jnp.broadcast_to(z, (16, 1)))
    p = jax.nn.softmax(logits)
    return jnp.where(tokens[..., None] == 1, p[..., 1:], p[..., :1]).prod((1, 2, 3, 4))

  p = sum(np.float64(given(jnp.float32(z))) * w for z, w in zip(z, w, strict=True))
  return made, params, p / np.sqrt(2.0 * np.pi), 2.0 * tokens - 1.0


def test_probabilities_sum_to_one_and_the_bound_is_below_them(tiny):
  """The evidence lower bound below, the importance-sampled one close to log p(x)."""
  made, params, p, images = tiny
  np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-5)
  n = 20
  batch = {"image": jnp.repeat(images, n, axis=0)}
  vars = pixel_vae.Vars(params)

  @jax.jit
  def bounds():
    keys = lambda i: noise.rows(KEY(i), 16 * n)
    log_prob = lambda i, samples: made.fns["log_prob"](vars, batch, keys(i), samples=samples)
    return log_prob(1, 0).reshape(16, n), log_prob(2, 300).reshape(16, n)

  low, near = (np.asarray(x) for x in bounds())
  assert (low.mean(1) < np.log(p) + 4.0 * low.std(1) / n**0.5).all()
  assert low.mean() + 0.01 < np.log(p).mean()
  # 300 draws: what Jensen leaves is var(weight) / 600, below the spread of the estimate.
  np.testing.assert_allclose(near.mean(1), np.log(p), atol=0.02)


def test_bound_loss_and_posterior_are_one(tiny):
  """Closed KL of `posterior`; log p(x | z) of the z that `encode` gives for the same keys."""
  made, params, _, images = tiny
  vars, batch, keys = pixel_vae.Vars(params), {"image": images}, lambda: noise.rows(KEY(1), 16)
  fns = {k: jax.jit(made.fns[k]) for k in ("bound", "posterior", "log_prob")}
  bound, (mean, log_var) = fns["bound"](vars, batch, keys()), fns["posterior"](vars, batch, keys())
  assert bound["kl"].shape == (16, 1) and bound["reconstruction"].shape == (16,)
  kl = 0.5 * (mean**2 + jnp.exp(log_var) - 1.0 - log_var).sum(1)
  np.testing.assert_allclose(bound["kl"][:, 0], kl, rtol=1e-4, atol=1e-6)
  difference = bound["reconstruction"] - bound["kl"][:, 0]
  np.testing.assert_allclose(fns["log_prob"](vars, batch, keys()), difference, rtol=1e-5)
  loss = jax.jit(lambda beta: made.phases["vae"].loss(vars, batch, keys(), beta=beta)[0])
  np.testing.assert_allclose(loss(1.0), -difference.mean(), rtol=1e-5)
  np.testing.assert_allclose(loss(4.0) - loss(1.0), 3.0 * kl.mean(), rtol=1e-3, atol=1e-5)
  z = made.fns["encode"](vars, batch, keys())
  net = pixel_vae.Decoder(
    pixel_vae.Features((4,), (2, 2)), masked_conv.GatedPixelCNN(2, 1, 4, 2, 3, 3)
  )
  tokens = jnp.int32(images > 0)
  log_p = jax.nn.log_softmax(net.apply({"params": params["decoder"]}, tokens, z))
  expected = jnp.take_along_axis(log_p, tokens[..., None], -1).sum((1, 2, 3, 4))
  np.testing.assert_allclose(bound["reconstruction"], expected, rtol=1e-5)


def test_samples_have_the_probabilities_of_the_model(tiny):
  made, params, p, _ = tiny
  n = 20_000
  draw = jax.jit(lambda keys: made.fns["sample"](pixel_vae.Vars(params), keys)["image"])
  image = draw(noise.rows(KEY(3), n))
  assert image.shape == (n, 2, 2, 1) and set(np.unique(image)) == {-1.0, 1.0}
  drawn = np.asarray(image > 0).reshape(n, 4) @ (1 << np.arange(4))
  found = np.bincount(drawn, minlength=16) / n
  assert (np.abs(found - p) < 4.5 * np.sqrt(p * (1.0 - p) / n)).all()


def test_the_sampler_agrees_with_teacher_forcing():
  """At temperature 0 each pixel is the most probable, given those sampled before it."""
  made = pixel_vae.build(image_shape=(4, 3, 3), levels=256, **TINY)
  params = jax.jit(made.init)(KEY(0)).params
  kernels = lambda x: x * (3.0 if x.ndim > 1 else 1.0)  # biases would choose one level everywhere
  params = jax.tree.map(kernels, params)
  vars, keys = pixel_vae.Vars(params), lambda: noise.rows(KEY(1), 4)
  image = jax.jit(lambda k: made.fns["sample"](vars, k, temperature=0)["image"])(keys())
  z = noise.normal(noise.split(keys())[0], (1,))
  net = pixel_vae.Decoder(
    pixel_vae.Features((4,), (4, 3)), masked_conv.GatedPixelCNN(256, 3, 4, 2, 3, 3)
  )
  tokens = jnp.round(127.5 * (image + 1.0)).astype(jnp.int32)
  logits = jax.jit(net.apply)({"params": params["decoder"]}, tokens, z)
  np.testing.assert_array_equal(logits.argmax(-1), tokens)
  assert len(np.unique(image)) > 4 and np.ptp(image, axis=0).max() > 0.0


def test_the_weight_of_the_kl_rises():
  beta = pixel_vae.build(kl_warmup=100).phases["vae"].hparams["beta"]
  np.testing.assert_allclose([beta(0), beta(25), beta(100), beta(500)], [0.0, 0.25, 1.0, 1.0])
  assert pixel_vae.build(kl_warmup=0).phases["vae"].hparams == {}


@pytest.mark.parametrize(
  "args, words",
  [
    ({"levels": 16}, "levels=16: expected 2 or 256"),
    ({"z_dim": 0}, "z_dim=0: expected a whole number"),
    ({"widths": ()}, r"widths=\(\): expected at least one"),
    ({"kernel": 4}, "kernel=4: expected an odd number"),
    ({"first_kernel": 1}, "first_kernel=1: expected a whole number, 3 or more"),
    ({"pixel_depth": 0}, "depth=0: expected a whole number"),
    ({"kl_warmup": -1}, "kl_warmup=-1: expected a whole number"),
    ({"image_shape": (4, 4, 3), "pixel_width": 2}, "width=2: expected a whole number, 3 or more"),
  ],
)
def test_bad_models_are_refused(args, words):
  with pytest.raises(ValueError, match=words):
    pixel_vae.build(**args)

"""DRAW: its filters see what they say they see, and its steps are those of the paper."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes

from jaxgen import noise
from jaxgen.models.vae import draw
from jaxgen.nn import draw as nets

KEY = jax.random.key
SMALL = dict(image_shape=(6, 5, 1), glimpses=3, read_size=2, write_size=3, hidden=8, z_dim=4)


@functools.cache
def small(far=0.5, **args):
  """A small DRAW away from its start: (method, vars)."""
  made = draw.build(**{**SMALL, **args})
  vars = jax.jit(made.init)(KEY(0))
  noisy = lambda x: x + far * jax.random.normal(KEY(x.size), x.shape)
  return made, vars._replace(params=jax.tree.map(noisy, vars.params))


def coins(n):
  """Images that are their own binarisation."""
  return {"image": 2.0 * jax.random.bernoulli(KEY(1), 0.5, (n, *SMALL["image_shape"])) - 1.0}


def numbers(x, y, delta, variance, gamma, n, height, width):
  """The five numbers that `window` turns into this grid."""
  return jnp.array([[
    2 * x / (width + 1) - 1,
    2 * y / (height + 1) - 1,
    np.log(variance),
    np.log(delta * (n - 1) / (max(height, width) - 1)),
    np.log(gamma),
  ]])  # fmt: skip


@pytest.mark.evidence("V10", "M")
@pytest.mark.parametrize("stride", [1, 2])
def test_sharp_filters_read_the_pixels_under_them(stride):
  """Rows 3, 3 + s, 3 + 2s and columns 2, 2 + s, 2 + 2s, from 1; strength 1.5."""
  height, width, n = 9, 7, 3
  image = jax.random.normal(KEY(0), (1, height, width, 2))
  at = numbers(2 + stride, 3 + stride, stride, 1e-3, 1.5, n, height, width)
  f_y, f_x, gamma, box = nets.window(at, n, height, width)
  patch = nets.read_patch(image, f_y, f_x, gamma)
  expected = image[:, 2 : 3 + 2 * stride : stride, 1 : 2 + 2 * stride : stride]
  np.testing.assert_allclose(patch, 1.5 * expected, rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(box[0], [2 + stride, 3 + stride, 2 * stride, 1e-3**0.5], rtol=1e-4)
  # What is read at strength 1.5 and written there is the patch, back in its place, times 1.
  back = nets.write_patch(patch, f_y, f_x, gamma)
  there = jnp.zeros_like(image)
  there = there.at[:, 2 : 3 + 2 * stride : stride, 1 : 2 + 2 * stride : stride].set(expected)
  np.testing.assert_allclose(back, there, rtol=1e-4, atol=1e-5)


@pytest.mark.evidence("V10", "M")
def test_filters_are_the_papers_and_sum_to_one():
  """Eq. 19-26 in numpy, one filter at a time; also where the grid lies off the image."""
  height, width, n = 6, 9, 4
  values = np.random.default_rng(0).normal(size=(5, 5))
  f_y, f_x, gamma, _ = nets.window(jnp.float32(values), n, height, width)
  for b, (g_x, g_y, log_variance, log_delta, log_gamma) in enumerate(values):
    delta = (9 - 1) / (n - 1) * np.exp(log_delta)
    for bank, g, size in ((f_y, (6 + 1) / 2 * (g_y + 1), 6), (f_x, (9 + 1) / 2 * (g_x + 1), 9)):
      for i in range(1, n + 1):
        mu = g + (i - n / 2 - 0.5) * delta
        f = np.exp(-((np.arange(1, size + 1) - mu) ** 2) / (2 * np.exp(log_variance)))
        if f.sum() > 1e-30:
          np.testing.assert_allclose(bank[b, i - 1], f / f.sum(), rtol=2e-4, atol=1e-6)
    np.testing.assert_allclose(gamma[b], np.exp(log_gamma), rtol=1e-6)
  far = nets.window(jnp.array([[40.0, -40.0, -3.0, 1.0, 0.0]]), n, height, width)
  for bank in (f_y, f_x, *far[:2]):
    np.testing.assert_allclose(bank.sum(-1), 1.0, rtol=1e-5)


def test_writing_is_the_transpose_of_reading():
  """<read(x), p> = gamma^2 <x, write(p)>, of any window, by their linearity."""
  at = jax.random.normal(KEY(0), (3, 5))
  *filters, _ = nets.window(at, 3, 6, 5)
  x, p = jax.random.normal(KEY(1), (3, 6, 5, 2)), jax.random.normal(KEY(2), (3, 3, 3, 2))
  inner = lambda a, b: jnp.sum(a * b, axis=(1, 2, 3))
  read, written = nets.read_patch(x, *filters), nets.write_patch(p, *filters)
  np.testing.assert_allclose(
    inner(read, p), filters[2] ** 2 * inner(x, written), rtol=1e-4, atol=1e-5
  )


def test_gradients_reach_the_windows():
  """Of the loss, for each of the five numbers, against a central difference."""
  made, vars = small()
  batch = coins(4)

  @jax.jit
  def loss(nudge):
    attend = dict(vars.params["draw"]["attend"])
    for name in nudge:
      attend[name] = {**attend[name], "bias": attend[name]["bias"] + nudge[name]}
    moved = vars._replace(params={"draw": {**vars.params["draw"], "attend": attend}})
    return made.phases["draw"].loss(moved, batch, noise.rows(KEY(2), 4))[0]

  nudges = lambda h: {"read_window": h[:5], "write_window": h[5:]}
  gradient = jax.jit(jax.grad(lambda h: loss(nudges(h))))(jnp.zeros(10))
  assert jnp.abs(gradient).min() > 1e-4
  numeric = [(loss(nudges(h)) - loss(nudges(-h))) / 0.02 for h in 0.01 * np.eye(10)]
  np.testing.assert_allclose(gradient, numeric, rtol=0.02, atol=5e-3)  # float32, of second order


def sigmoid(x):
  return 1.0 / (1.0 + np.exp(-x))


def lstm(cell, state, x):
  """Flax's parameters in the equations of an LSTM with forget gates."""
  c, h = state
  gate = lambda g: x @ cell[f"i{g}"]["kernel"] + h @ cell[f"h{g}"]["kernel"] + cell[f"h{g}"]["bias"]
  i, f, g, o = (gate(g) for g in "ifgo")
  c = sigmoid(f) * c + sigmoid(i) * np.tanh(g)
  return c, sigmoid(o) * np.tanh(c)


def by_hand(p, x, eps):
  """log p(x | z) of one image, KL of each step, z, canvases: Eq. 1-11 in float64, step by step."""
  dense = lambda name, h: np.tensordot(h, name["kernel"], 1) + name["bias"]
  attend, canvas = p["attend"], p["canvas_start"]
  encoder, decoder = tuple(p["encoder_start"]), tuple(p["decoder_start"])
  kls, zs, canvases = [], [], []

  def grid(name, h, n):
    *filters, _ = nets.window(jnp.float32(dense(attend[name], h))[None], n, *x.shape[:2])
    return (np.float64(f[0]) for f in filters)

  for e in eps:
    seen = [x, x - sigmoid(canvas)]
    if "read_window" in attend:
      f_y, f_x, gamma = grid("read_window", decoder[1], 2)
      seen = [gamma * (f_y @ image[..., 0] @ f_x.T) for image in seen]
    r = np.concatenate([image.ravel() for image in seen])
    encoder = lstm(p["encoder"], encoder, np.concatenate([r, decoder[1]]))
    mean, std = dense(p["mean"], encoder[1]), np.exp(dense(p["log_std"], encoder[1]))
    z = mean + std * e
    decoder = lstm(p["decoder"], decoder, z)
    addition = dense(attend["patch"], decoder[1])
    if "write_window" in attend:
      f_y, f_x, gamma = grid("write_window", decoder[1], 3)
      addition = (f_y.T @ addition[..., 0] @ f_x / gamma)[..., None]
    canvas = canvas + addition
    kls.append(0.5 * np.sum(mean**2 + std**2 - 2 * np.log(std) - 1))
    zs.append(z)
    canvases.append(canvas)
  log_p = np.sum(np.where(x > 0, np.log(sigmoid(canvas)), np.log(sigmoid(-canvas))))
  return log_p, kls, np.concatenate(zs), canvases


@pytest.mark.evidence("V10", "M")
@pytest.mark.parametrize("attention, glimpses", [("selective", 3), ("none", 1)])
def test_the_bound_is_that_of_the_papers_equations(attention, glimpses):
  """And with T = 1 and no attention, that of a VAE of two LSTM steps from a learned state."""
  made, vars = small(attention=attention, glimpses=glimpses)
  batch, keys = coins(3), lambda: noise.rows(KEY(2), 3)
  terms, latents = jax.jit(lambda: (made.fns["bound"](vars, batch, keys()),
                                    made.fns["encode"](vars, batch, keys())))()  # fmt: skip
  decoded = jax.jit(lambda z: made.fns["decode"](vars, z, steps=True))(latents)
  eps = noise.normal(noise.split(keys())[1], (glimpses, SMALL["z_dim"]))
  p = jax.tree.map(np.float64, jax.device_get(vars.params["draw"]))
  assert terms["kl"].shape == (3, glimpses)
  for b in range(3):
    x = 0.5 + 0.5 * np.float64(batch["image"][b])
    log_p, kls, z, canvases = by_hand(p, x, np.float64(eps[b]))
    np.testing.assert_allclose(terms["reconstruction"][b], log_p, rtol=2e-4)
    np.testing.assert_allclose(terms["kl"][b], kls, rtol=2e-4)
    np.testing.assert_allclose(latents[b], z, rtol=1e-3, atol=1e-4)
    means = 2.0 * sigmoid(np.stack(canvases)) - 1.0
    np.testing.assert_allclose(decoded["canvases"][b], means, rtol=1e-3, atol=1e-4)
  np.testing.assert_array_equal(decoded["canvases"][:, -1], decoded["image"])
  loss, aux = made.phases["draw"].loss(vars, batch, keys())
  np.testing.assert_allclose(loss, (terms["kl"].sum(1) - terms["reconstruction"]).mean(), rtol=1e-5)
  np.testing.assert_allclose(aux.metrics["kl"], terms["kl"].sum(1).mean(), rtol=1e-5)


@pytest.mark.evidence("V10", "M")
def test_importance_weights_sum_to_one_over_all_images():
  """Their mean is an unbiased P(x): over the 16 binary images of 2 x 2 pixels these sum to 1."""
  made, vars = small(0.2, image_shape=(2, 2, 1), glimpses=2, write_size=2, z_dim=2)
  bits = (jnp.arange(16)[:, None] >> jnp.arange(4)[None]) & 1
  batch = {"image": (2.0 * bits - 1.0).reshape(16, 2, 2, 1)}

  def log_prob(samples, rows):
    images = {"image": jnp.tile(batch["image"], (rows, 1, 1, 1))}
    found = made.fns["log_prob"](vars, images, noise.rows(KEY(3), 16 * rows), samples=samples)
    return found.reshape(rows, 16)

  many = jax.jit(log_prob, static_argnums=(0, 1))(200, 25)
  sums = jnp.exp(many).sum(axis=1)
  error = sums.std() / 5.0
  assert error < 0.03 and abs(sums.mean() - 1.0) < 4.0 * error
  bound = jax.jit(log_prob, static_argnums=(0, 1))(0, 25).mean()
  assert bound + 0.01 < many.mean() < -jnp.log(16.0) + 0.01  # of uniform images: at most -log 16


def test_samples_come_with_their_strip():
  """Canvases that end in the image, windows inside reach of their numbers, steps that differ."""
  made, vars = small()
  keys = lambda: noise.rows(KEY(1), 5)
  out = jax.jit(lambda keys: made.fns["sample"](vars, keys, steps=True))(keys())
  plain = jax.jit(lambda keys: made.fns["sample"](vars, keys))(keys())
  np.testing.assert_allclose(out["image"], plain["image"], rtol=1e-6)
  assert out["canvases"].shape == (5, 3, 6, 5, 1) and jnp.abs(out["canvases"]).max() <= 1.0
  assert out["windows"].shape == out["read_windows"].shape == (5, 3, 4)
  assert (out["windows"][..., 2:] > 0).all()
  # The first look is before any z; the rest follow from it.
  assert jnp.ptp(out["read_windows"][:, 0], axis=0).max() == 0.0
  assert jnp.ptp(out["read_windows"][:, 1], axis=0).min() > 0.0
  assert jnp.ptp(out["windows"], axis=0).min() > 0.0


def test_the_strip_shows_canvases_and_their_windows():
  with recipes.launcher("glimpses") as glimpses:
    strip = glimpses.strip
  canvases = np.full((2, 4, 6, 5, 1), -1.0)
  canvases[1] = 1.0
  windows = np.tile([3.0, 3.0, 2.0, 0.1], (2, 4, 1))  # joins the centres of pixels 2 and 4
  picture = strip(canvases, windows, 2, scale=10)
  assert picture.shape == (120, 100, 3) and picture.dtype == np.uint8
  red = (picture == [255, 0, 0]).all(-1)
  for panel in (red[:60, :50], red[:60, 50:], red[60:, :50], red[60:, 50:]):
    rows, columns = np.nonzero(panel)
    assert (rows.min(), rows.max(), columns.min(), columns.max()) == (15, 35, 15, 35)
    assert len(rows) == 4 * 20  # one pixel wide
  assert picture[0, 0].max() == 0 and picture[60, 0].min() == 255
  thick = strip(canvases, windows + [0.0, 0.0, 0.0, 0.3], 1, scale=10)
  assert (thick == [255, 0, 0]).all(-1)[:60].sum() == 21**2 - 13**2
  with pytest.raises(ValueError, match="steps=5: expected a whole number, 1 to 4"):
    strip(canvases, windows, 5)


@pytest.mark.parametrize(
  "args, words",
  [
    ({"attention": "soft"}, "attention='soft': expected one of selective, none"),
    ({"read_size": 1}, "read_size=1: expected a whole number, 2 or more"),
    ({"write_size": 1}, "write_size=1: expected a whole number, 2 or more"),
    ({"glimpses": 0}, "glimpses=0: expected a whole number"),
  ],
)
def test_bad_numbers_are_refused(args, words):
  with pytest.raises(ValueError, match=words):
    draw.build(**args)

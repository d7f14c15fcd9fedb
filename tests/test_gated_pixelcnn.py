"""The prior over the codes of a first stage: its probabilities, its steps, its samples."""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from jaxgen import noise
from jaxgen.core import method
from jaxgen.models.autoregressive import gated_pixelcnn

KEY = jax.random.key


def build(*, image_shape=(4, 4, 1), n_codes=2):
  """A first stage whose codes are whether 2 x 2 pixels are light: nothing to train."""
  blocks = lambda x: x.reshape(-1, 2, 2, 2, 2).mean((2, 4))

  def encode(vars, batch, keys):
    method.check_batch(batch, image_shape, 0)
    return jnp.int32(blocks(batch["image"]) > vars.params["threshold"])

  def decode(vars, tokens):
    return {"image": (tokens.repeat(2, 1).repeat(2, 2) - 0.5)[..., None]}

  init = lambda key: method.Vars({"threshold": jnp.zeros((1, 1, 1))}, {"count": jnp.zeros(3)})
  return method.Method(init, fns={"encode": encode, "decode": decode})


sys.modules["jaxgen.models.light"] = sys.modules[__name__]
FIRST = {"model": "light", "args": {"n_codes": 2}}
ARGS = dict(image_shape=(4, 4, 1), first_stage=FIRST, width=6, depth=2, kernel=3, first_kernel=3)


@pytest.fixture(scope="module", params=[0, 3], ids=["no classes", "classes"])
def prior(request):
  """(method, vars far from their start, a table of labels for n examples)."""
  made = gated_pixelcnn.build(**ARGS, n_classes=request.param)
  vars = jax.jit(made.init)(KEY(0))
  noisy = lambda x: x + 0.5 * jax.random.normal(KEY(x.size), x.shape)
  vars = vars._replace(params=vars.params | {"net": jax.tree.map(noisy, vars.params["net"])})
  cond = lambda n: {"label": jnp.full(n, 1)} if request.param else {}
  return made, vars, cond


def enumerated(made, vars, cond):
  """log p of the 16 grids of 2 x 2 codes, by `cache` and `step`, and those grids."""
  tokens = jnp.asarray(np.arange(16)[:, None] >> np.arange(4) & 1)

  @jax.jit
  def log_p():
    cache, total, token = made.fns["cache"](16), 0.0, tokens[:, 0]
    for i in range(4):
      logits, cache = made.fns["step"](vars, cache, token, jnp.int32(i), cond(16))
      token = tokens[:, i]
      total -= optax.softmax_cross_entropy_with_integer_labels(logits, token)
    return total

  return log_p(), tokens.reshape(16, 2, 2)


def test_probabilities_are_those_that_log_prob_gives_and_sum_to_one(prior):
  made, vars, cond = prior
  log_p, _ = enumerated(made, vars, cond)
  np.testing.assert_allclose(jnp.exp(log_p).sum(), 1.0, rtol=1e-5)
  batch = {"image": jax.random.uniform(KEY(1), (200, 4, 4, 1), minval=-1.0)} | cond(200)
  keys = lambda: noise.rows(KEY(2), 200)
  tokens = jax.jit(made.fns["encode"])(vars, batch, keys())
  assert tokens.shape == (200, 2, 2) and tokens.dtype == jnp.int32
  index = tokens.reshape(200, 4) @ (1 << np.arange(4))
  assert len(np.unique(index)) == 16
  log_prob = jax.jit(made.fns["log_prob"])(vars, batch, keys())
  np.testing.assert_allclose(log_prob, log_p[index], rtol=1e-4, atol=1e-4)
  loss, _ = jax.jit(made.phases["prior"].loss)(vars, batch, keys())
  np.testing.assert_allclose(loss, -log_prob.mean() / 4, rtol=1e-5)


def test_samples_are_decoded_codes_with_their_probabilities(prior):
  """Every sample is the image of one of the 16 grids; so often as its probability says."""
  made, vars, cond = prior
  log_p, grids = enumerated(made, vars, cond)
  p, n = np.exp(np.float64(log_p)), 8000
  images = np.asarray(made.fns["decode"](vars, grids)["image"]).reshape(16, -1)
  draw = jax.jit(lambda keys: made.fns["sample"](vars, keys, cond(n))["image"])
  drawn = np.asarray(draw(noise.rows(KEY(3), n))).reshape(n, -1)
  distance = np.abs(drawn[:, None] - images).max(-1)
  np.testing.assert_allclose(distance.min(1), 0.0, atol=1e-5)
  assert np.sort(np.abs(images[:, None] - images).max(-1), axis=1)[:, 1].min() > 1e-3
  found = np.bincount(distance.argmin(1), minlength=16) / n
  rare = 3.0 / n  # of which the count is no normal number
  assert (np.abs(found - p) < 4.5 * np.sqrt(p * (1.0 - p) / n) + rare).all()


def test_a_class_changes_the_codes_and_is_drawn_where_it_is_not_given():
  made = gated_pixelcnn.build(**ARGS, n_classes=3)
  vars = jax.jit(made.init)(KEY(0))
  batch = lambda i: {"image": jnp.zeros((1, 4, 4, 1)), "label": jnp.array([i])}
  log_prob = jax.jit(lambda batch: made.fns["log_prob"](vars, batch, noise.rows(KEY(1), 1)))
  a, b, c = (float(log_prob(batch(i))[0]) for i in range(3))
  assert min(abs(a - b), abs(a - c), abs(b - c)) > 1e-3
  sample = jax.jit(lambda keys: made.fns["sample"](vars, keys)["image"])
  assert sample(noise.rows(KEY(1), 2)).shape == (2, 4, 4, 1)


def test_the_first_stage_is_frozen_and_whole():
  made = gated_pixelcnn.build(**ARGS, n_classes=0)
  first = method.build(FIRST["model"], FIRST["args"])
  vars, own = (jax.eval_shape(m.init, KEY(0)) for m in (made, first))
  assert jax.tree.structure(method.inner(vars, "first_stage")) == jax.tree.structure(own)
  assert method.trained(made) == {"net"}


@pytest.mark.parametrize(
  "args, words",
  [
    ({"first_stage": {"model": "light"}}, "first_stage=.* expected model and args, n_codes"),
    ({"first_stage": {"model": "light", "args": {}}}, "n_codes among the args"),
    ({"first_stage": {"model": "vae.vq", "args": {"n_codes": 2}}}, "model='vae.vq' does not exist"),
    ({"image_shape": (16, 16, 1)}, r"images of shape \(16, 16, 1\): expected image_shape=\(4, 4"),
    ({"n_classes": -1}, "n_classes=-1: expected a whole number, 0 or more"),
    ({"width": 0}, "width=0: expected a whole number, 1 or more"),
    ({"kernel": 4}, "kernel=4: expected an odd number"),
  ],
)
def test_bad_models_are_refused(args, words):
  with pytest.raises(ValueError, match=words):
    gated_pixelcnn.build(**ARGS | args)

"""The classifier whose features measures compare: what it learns, and what its outputs are."""

import functools
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes

from jaxgen import noise
from jaxgen.core import config as config_lib
from jaxgen.core import method, step
from jaxgen.data import pipeline, sources
from jaxgen.models.representation import classifier

KEY = jax.random.key
SIZES = [(8, 8, 1), (16, 16, 1), (28, 28, 1), (32, 32, 3), (4, 12, 2)]


@functools.cache
def trained():
  """(method, Vars, test batch, what it detects there) after the steps of the config for digits."""
  config = config_lib.read(f"{recipes.ROOT}/configs/representation/classifier.py:digits")
  made = method.build(config.model, config.args)
  state = jax.jit(lambda key: step.init_state(made, key))(KEY(0))
  run = jax.jit(lambda state, batch: step.train_step(made, state, batch, KEY(1))[0])
  train, test = (sources.open_source("digits", split) for split in ("train", "test"))
  rows, steps = config.data.batch_size, config.train.steps
  for batch in pipeline.batches(train, rows=rows, micro_batches=1, steps=steps):
    state = run(state, batch)
  batch = pipeline.load(test, np.arange(len(test)))
  return made, state.vars, batch, jax.jit(made.fns["detect"])(state.vars, batch)


def test_it_reads_digits_that_it_has_not_seen():
  _, _, batch, found = trained()
  assert len(batch["label"]) == 179
  assert np.mean(found["logits"].argmax(-1) == batch["label"]) > 0.95


def test_features_tell_classes_apart():
  """The nearest of the classes' mean features says the class; that of their pixels, less often."""
  _, _, batch, found = trained()
  label = batch["label"]

  def accuracy(x):
    known, new = x[::2], x[1::2]
    means = np.stack([known[label[::2] == k].mean(0) for k in range(10)])
    return np.mean(np.square(new[:, None] - means).sum(-1).argmin(1) == label[1::2])

  pool, pixels = np.asarray(found["pool"]), batch["image"].reshape(179, -1)
  assert accuracy(pool) > max(0.95, accuracy(pixels) + 0.03)


def by_hand(p, x, width):
  """pool and logits of images x in float64, from the parameters and no library of networks."""
  for i, stride in enumerate((1, 2, 1, 2)):
    before = int(stride == 1)  # as TensorFlow pads: what is odd goes after the image
    x = np.pad(x, ((0, 0), (before, 1), (before, 1), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(x, (3, 3), (1, 2))[:, ::stride, ::stride]
    x = np.einsum("bhwcij,ijco->bhwo", windows, p[f"conv_{i}"]["kernel"])
    groups = x.reshape(*x.shape[:3], -1, width)
    groups -= groups.mean((1, 2, 4), keepdims=True)
    x = (groups / np.sqrt(groups.var((1, 2, 4), keepdims=True) + 1e-6)).reshape(x.shape)
    x = np.maximum(x * p[f"norm_{i}"]["scale"] + p[f"norm_{i}"]["bias"], 0.0)
  dense = lambda x, name: x @ p[name]["kernel"] + p[name]["bias"]
  pool = np.maximum(dense(x.mean((1, 2)), "hidden"), 0.0)
  return pool, dense(pool, "logits")


def test_outputs_and_loss_are_those_by_hand():
  """The score is the largest log-softmax, the loss minus that of the label, in nats."""
  made, vars, batch, found = trained()
  params = jax.tree.map(np.float64, jax.device_get(vars.params["net"]))
  pool, logits = by_hand(params, np.float64(batch["image"]), width=16)
  log_p = logits - np.log(np.exp(logits).sum(-1, keepdims=True))
  assert pool.shape == (179, 84) and logits.shape == (179, 10)
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-4)
  jax.tree.map(close, found, {"pool": pool, "logits": logits, "score": log_p.max(-1)})
  loss, aux = jax.jit(made.phases["net"].loss)(vars, batch, noise.rows(KEY(0), 179))
  label = batch["label"]
  close(loss, -log_p[np.arange(179), label].mean())
  close(aux.metrics["accuracy"], np.mean(logits.argmax(-1) == label))


def test_contrast_does_not_matter():
  """A convolution without bias is linear, and its norm divides the scale out."""
  made, vars, batch, found = trained()
  half = jax.jit(made.fns["detect"])(vars, {"image": 0.5 * batch["image"]})
  np.testing.assert_allclose(half["logits"], found["logits"], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_it_takes_images_of_any_size_that_halves_twice(shape):
  """The parameters are those of four convolutions with their norms, and of two dense layers."""
  made = classifier.build(image_shape=shape, n_classes=7, width=4, features=5)
  vars = jax.eval_shape(made.init, KEY(0))
  convolutions = 9 * (shape[2] * 4 + 4 * 8 + 8 * 8 + 8 * 16) + 2 * (4 + 8 + 8 + 16)
  size = sum(x.size for x in jax.tree.leaves(vars.params))
  assert size == convolutions + 16 * 5 + 5 + 5 * 7 + 7
  found = jax.eval_shape(made.fns["detect"], vars, {"image": jnp.zeros((3, *shape))})
  shapes = {name: x.shape for name, x in found.items()}
  assert shapes == {"score": (3,), "logits": (3, 7), "pool": (3, 5)}


@pytest.mark.parametrize(
  "args, words",
  [
    ({"image_shape": (28, 30, 1)}, "image_shape=(28, 30, 1): expected height and width divisible"),
    ({"image_shape": (28, 28)}, "image_shape=(28, 28): expected three whole numbers"),
    ({"n_classes": 1}, "n_classes=1: expected a whole number, 2 or more"),
    ({"width": 0}, "width=0: expected a whole number, 1 or more"),
    ({"features": 8.0}, "features=8.0: expected a whole number, 1 or more"),
    ({"tx": {"lr": -1.0}}, "tx.lr=-1.0: expected a finite number above 0"),
  ],
)
def test_bad_arguments_are_refused(args, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    classifier.build(**args)


@pytest.mark.parametrize(
  "batch, words",
  [
    ({"image": np.zeros((2, 8, 8, 3), np.float32)}, r"\(8, 8, 3\): expected image_shape=\(8, 8, 1"),
    ({"image": np.zeros((2, 8, 8, 1), np.uint8)}, "images of uint8: expected float in"),
    ({"image": np.full((2, 8, 8, 1), 255.0, np.float32)}, "image goes from 255.0 to 255.0"),
  ],
)
def test_images_that_do_not_fit_are_refused(batch, words):
  made, vars, *_ = trained()
  with pytest.raises(ValueError, match=words):
    made.fns["detect"](vars, batch)


def test_labels_that_do_not_exist_are_refused():
  made, vars, batch, _ = trained()
  with pytest.raises(ValueError, match="label=12: expected 0 to 9"):
    made.phases["net"].loss(vars, {**batch, "label": batch["label"] + 3}, KEY(0))

"""experiments.traverse: one latent a row, what it changes from left to right."""

import sys

import jax
import numpy as np
import pytest
import recipes
from absl import flags
from absl.testing import flagsaver
from PIL import Image

from jaxgen import noise
from jaxgen.core import checkpoint, loop
from jaxgen.data import pipeline, sources


def run(workdir, *more):
  words = ["traverse", f"--workdir={workdir}", *more]
  module = recipes.launcher("traverse")
  with module as traverse, pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver():
    patch.setattr(sys, "argv", words)
    flags.FLAGS(words)
    traverse.main()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "vae"
  config = recipes.smoke(recipes.ROOT / "configs/vae/vae.py")
  config.train.sample_every = config.train.eval_every = 0
  loop.run(config, folder)
  return folder


def test_the_middle_of_each_row_has_its_latent_at_zero(workdir, capsys):
  run(workdir, "--example=3", "--rows=2")
  told = capsys.readouterr().out.split("nats: ")[1]
  order, kl = zip(*(pair.split(": ") for pair in told.strip().split(", ")), strict=True)
  assert len(order) == 2 and float(kl[0]) >= float(kl[1])
  method, vars = checkpoint.load(workdir)
  batch = pipeline.load(sources.open_source("digits", "test"), np.arange(4))
  keys = noise.rows(loop.root_keys(0).evaluate, 4)
  z = np.array(jax.jit(method.fns["posterior"])(vars, batch, keys)[0])[3:]
  z[0, int(order[0])] = 0.0
  middle = jax.jit(method.fns["decode"])(vars, z)["image"][0, ..., 0]
  picture = np.asarray(Image.open(workdir / "traversals.png").convert("L"), np.float32)
  scale = 8  # images of 8 x 8 are shown at 64 x 64, 4 pixels apart
  assert picture.shape[1] == 9 * 68 - 4
  shown = picture[:64:scale, 4 * 68 : 4 * 68 + 64 : scale]
  np.testing.assert_allclose(shown, 127.5 * (middle + 1.0), atol=1.0)


def test_it_refuses_what_it_cannot_show(workdir):
  with pytest.raises(ValueError, match="example=179: expected a whole number, 0 to 178"):
    run(workdir, "--example=179")
  with pytest.raises(ValueError, match="expected a model with posterior and decode"):
    with pytest.MonkeyPatch.context() as patch:
      bare = checkpoint.load(workdir)[0]._replace(fns={})
      patch.setattr(checkpoint, "load", lambda *_: (bare, None))
      run(workdir)

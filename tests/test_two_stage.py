"""experiments.two_stage: an autoencoder and a prior over its codes, in one command."""

import json
import re
import sys

import jax
import numpy as np
import pytest
import recipes
from absl import flags
from absl.testing import flagsaver

from jaxgen import noise
from jaxgen.core import checkpoint, loop, method
from jaxgen.core import config as config_lib
from jaxgen.data import sources
from jaxgen.metrics import evaluation

FIRST = f"{recipes.ROOT}/configs/vae/vq_vae.py:smoke"
SECOND = f"{recipes.ROOT}/configs/autoregressive/gated_pixelcnn.py:smoke"
WORDS = ("--first.args.tx.lr=0.01", "--first.args.beta=0.5", "--second.train.sample_every=0")
WORDS += ("--second.train.eval_every=0", "--second.args.tx.lr=0.002")


def run(workdir, *more, first=FIRST, second=SECOND):
  """The command, in this process."""
  words = ["two_stage", f"--first={first}", f"--second={second}", f"--workdir={workdir}", *more]
  module = recipes.launcher("two_stage")
  with module as two_stage, pytest.MonkeyPatch.context() as patch, flagsaver.flagsaver():
    patch.setattr(sys, "argv", words)  # where --first looks for fields of its own
    flags.FLAGS(words)
    two_stage.main()


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
  folder = tmp_path_factory.mktemp("runs") / "vq"
  run(folder, *WORDS)
  return folder


same = lambda a, b: all(jax.tree.leaves(jax.tree.map(lambda x, y: (x == y).all(), a, b)))
files = lambda folder: {p: p.stat().st_mtime_ns for p in (folder / "checkpoints").rglob("*")}


@pytest.mark.evidence("V11", "M")
def test_the_second_stage_has_the_first(workdir):
  """Its config, its networks and its codebook; what the prior samples, it decodes."""
  one, two = (json.loads((workdir / i / "config.json").read_text()) for i in "12")
  assert two["args"]["first_stage"] == {"model": "vae.vq_vae", "args": one["args"]}
  assert one["args"]["beta"] == 0.5 and two["init_from"] == {"first_stage": f"{workdir}/1"}
  first, first_vars = checkpoint.load(workdir / "1")
  made, vars = checkpoint.load(workdir / "2")
  assert same(vars.params["first_stage"], first_vars.params)
  assert same(vars.extra["first_stage"], first_vars.extra)
  fresh = jax.jit(first.init)(jax.random.key(1))
  assert not same(fresh.extra, first_vars.extra)

  keys, label = noise.rows(jax.random.key(2), 5), np.arange(5, dtype=np.int32)
  x = jax.jit(lambda vars: made.fns["sample"](vars, keys, {"label": label})["image"])(vars)
  # Whatever was sampled is the decoding of some tokens: its codes give it back.
  assert x.shape == (5, 8, 8, 1) and np.abs(x).max() <= 1.0
  tokens = jax.jit(made.fns["encode"])(vars, {"image": x, "label": label}, keys)
  theirs = jax.jit(first.fns["encode"])(first_vars, {"image": x}, keys)
  np.testing.assert_array_equal(tokens, theirs)


def test_what_is_done_is_not_trained_again(workdir, capfd):
  before = files(workdir / "1"), files(workdir / "2")
  run(workdir, *WORDS)
  assert "".join(capfd.readouterr()).count("nothing to train") == 2
  assert (files(workdir / "1"), files(workdir / "2")) == before


def test_a_first_stage_that_was_stopped_has_no_second(tmp_path, monkeypatch):
  """SIGTERM: the loop returns with fewer steps, and so does the launcher."""
  states = []

  def stopped(config, workdir, **options):
    states.append((config.model, workdir))
    return type("State", (), {"step": np.int32(2)})

  monkeypatch.setattr(loop, "run", stopped)
  run(tmp_path)
  assert states == [("vae.vq_vae", f"{tmp_path}/1")]
  run(tmp_path, "--first.train.steps=2")
  prior = "autoregressive.gated_pixelcnn"
  assert states[1:] == [("vae.vq_vae", f"{tmp_path}/1"), (prior, f"{tmp_path}/2")]


def test_a_prior_alone_wants_its_first_stage(tmp_path):
  """Else it would learn the codes of a random one."""
  config = recipes.smoke("autoregressive/gated_pixelcnn.py")
  with pytest.raises(ValueError, match="init_from={}: expected a run for first_stage too"):
    loop.run(config, tmp_path / "prior")
  assert not (tmp_path / "prior/metrics.jsonl").exists()


def test_nats_of_codes_are_no_bits_of_pixels(workdir):
  made, vars = checkpoint.load(workdir / "2")
  source = sources.open_source("digits", "test")
  data, key = evaluation.Data(source, "digits", "test", 9), jax.random.key(0)
  found = evaluation.of_method(["nats"], made, vars, data, key, 10, 9)
  assert np.isfinite(found["nats"]["value"])
  with pytest.raises(ValueError, match="bits_per_dim.*: this model's log_prob is of codes"):
    evaluation.of_method(["bits_per_dim"], made, vars, data, key, 10, 9)


VAE = f"{recipes.ROOT}/configs/vae/vae.py:smoke"
FLOW = f"{recipes.ROOT}/configs/flow_matching/flow_matching.py:smoke"


@pytest.mark.parametrize(
  "words, configs, given",
  [
    ("(16, 8, 1): expected (8, 8, 1), the first", {}, ["second.args.image_shape=(16,8,1)"]),
    ("first_stage", {"second": VAE}, []),
    ("--first='flow_matching.flow_matching': expected a model that en", {"first": FLOW}, []),
    ("n_codes=0: expected a whole number", {}, ["first.args.n_codes=0"]),
    ("width=0: expected a whole number", {}, ["second.args.width=0"]),
    ("config.train.log_every=0: expected", {}, ["second.train.log_every=0"]),
    ("must start with one of digits", {}, ["second.data.source=digit"]),
  ],
)  # fmt: skip
def test_bad_pipelines_are_refused_before_anything_is_trained(tmp_path, words, configs, given):
  with pytest.raises(ValueError, match=re.escape(words)):
    run(tmp_path / "none", *(f"--{g}" for g in given), **configs)
  assert not (tmp_path / "none").exists()


def test_the_stages_of_each_variant_fit():
  """The variants of the same name of both configs, as the launcher joins them."""
  for variant in ("imagenet128", "olivetti", "cifar16", "digits", "smoke"):
    first, second = (
      config_lib.read(str(path).replace("smoke", variant)) for path in (FIRST, SECOND)
    )
    second.args.first_stage = {"model": first.model, "args": first.args.to_dict()}
    assert second.args.image_shape == first.args.image_shape
    made = method.build(second.model, second.args)
    frozen = jax.eval_shape(made.init, jax.random.key(0)).params["first_stage"]
    theirs = jax.eval_shape(method.build(first.model, first.args).init, jax.random.key(0)).params
    assert jax.tree.map(lambda x: x.shape, frozen) == jax.tree.map(lambda x: x.shape, theirs)

"""The loop: what a run leaves on disk, resuming, stopping, starting from other runs, bad input."""

import json
import os
import re
import signal
import threading
import time

import chex
import fsspec.implementations.memory
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipes
import test_step as kinds
from etils import epath
from PIL import Image

from jaxgen.core import checkpoint, loop, method, report, step
from jaxgen.core.method import Aux, Ema, Method, Phase, Vars

KEY = jax.random.key


def lines(workdir):
  return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("kind", kinds.KINDS)
def test_a_resumed_run_is_the_uninterrupted_one(kind, tmp_path):
  """Acceptance test 3: to the bit, on four devices, for every kind of state."""
  made = kinds.KINDS[kind]
  whole = loop.run(recipes.vectors(tmp_path), tmp_path / "whole", method=made)
  loop.run(recipes.vectors(tmp_path, steps=3), tmp_path / "cut", method=made)
  resumed = loop.run(recipes.vectors(tmp_path), tmp_path / "cut", method=made)
  chex.assert_trees_all_equal(jax.device_get(resumed), jax.device_get(whole))
  losses = lambda name: [
    {k: v for k, v in line.items() if "/" in k} for line in lines(tmp_path / name)
  ]
  assert losses("cut")[-1] == losses("whole")[-1]


@pytest.mark.parametrize("modes", [("jit", "pmap"), ("fsdp", "shard_map"), ("pmap", "fsdp")])
def test_a_run_goes_on_in_another_mode(modes, tmp_path):
  made = kinds.KINDS["adversarial"]
  whole = loop.run(recipes.vectors(tmp_path), tmp_path / "whole", method=made)
  loop.run(recipes.vectors(tmp_path, steps=3, parallel=modes[0]), tmp_path / "cut", method=made)
  config = recipes.vectors(tmp_path, parallel=modes[1])
  resumed = loop.run(config, tmp_path / "cut", method=made)
  chex.assert_trees_all_close(jax.device_get(resumed), jax.device_get(whole), rtol=1e-5, atol=1e-6)


def test_what_a_run_leaves(tmp_path):
  config, made = recipes.vectors(tmp_path, log_every=2), kinds.KINDS["plain"]
  state = loop.run(config, tmp_path / "run", method=made)
  assert int(state.step) == 6
  assert json.loads((tmp_path / "run/config.json").read_text()) == json.loads(config.to_json())
  assert {p.name for p in (tmp_path / "run/checkpoints").glob("[0-9]*")} == {"3", "6"}
  log = lines(tmp_path / "run")
  assert [line["step"] for line in log] == [2, 3, 4, 6]  # and where a checkpoint was due
  assert {"w/loss", "w/error", "w/scale", "w/grad_norm"} < log[0].keys()
  assert log[0]["w/scale"] == 1.5  # the mean of 1 and 2
  assert all(line["steps_per_s"] > 0 and 0 <= line["wait_for_data"] <= 1 for line in log)
  frozen = json.loads((tmp_path / "run/frozen.json").read_text())
  assert frozen["frozen"]["source"] == "init" and len(frozen["frozen"]["sha256"]) == 64
  again = loop.run(config, tmp_path / "run", method=made)  # nothing left to train
  assert len(lines(tmp_path / "run")) == 4
  chex.assert_trees_all_equal(jax.device_get(again), jax.device_get(state))


def test_lines_after_the_last_checkpoint_are_written_again(tmp_path):
  config, made = recipes.vectors(tmp_path, steps=3), kinds.KINDS["plain"]
  loop.run(config, tmp_path / "run", method=made)
  with open(tmp_path / "run/metrics.jsonl", "a") as f:
    f.write('{"step": 5, "w/loss": 0.0}\n{"st')  # of a process that died before step 6 was saved
  loop.run(recipes.vectors(tmp_path), tmp_path / "run", method=made)
  assert [line["step"] for line in lines(tmp_path / "run")] == [2, 3, 4, 6]


class Bucket(fsspec.implementations.memory.MemoryFileSystem):
  """Files under gs://, as gcsfs has them: what is opened to append starts anew."""

  @classmethod
  def _strip_protocol(cls, path):
    return super()._strip_protocol(path.removeprefix("gs://"))

  def open(self, path, mode="rb", **options):
    return super().open(path, mode.replace("a", "w"), **options)


def test_metrics_in_a_bucket():
  fsspec.register_implementation("gcs", Bucket, clobber=True)
  workdir = epath.Path("gs://bucket/run")
  writer = report.JsonLines(workdir, 0)
  for i in (1, 2, 3):
    writer.write_scalars(i, {"loss": 0.5})
  assert [line["step"] for line in lines(workdir)] == [1, 2, 3]
  report.JsonLines(workdir, 2).write_scalars(3, {"loss": 0.25})
  assert [line["loss"] for line in lines(workdir)] == [0.5, 0.5, 0.25]


READS = "__array__ __bool__ __float__ __format__ __int__ block_until_ready item tolist".split()


def test_the_host_reads_from_devices_only_where_it_reports(tmp_path, monkeypatch):
  """Twelve steps cost no more reads than three: neither the loop nor the progress bar waits."""
  seen, array = [], type(jnp.ones(()))
  for name in READS:
    read = getattr(array, name)
    counted = lambda *a, _read=read, _name=name, **k: (seen.append(_name), _read(*a, **k))[1]
    monkeypatch.setattr(array, name, counted)

  def reads(steps, every):
    seen.clear()
    config = recipes.vectors(tmp_path, steps=steps, log_every=every, checkpoint_every=99)
    loop.run(config, tmp_path / f"{steps}_{every}", method=kinds.KINDS["plain"])
    return len(seen)

  reads(3, 99)  # what is only read once
  assert reads(12, 99) == reads(2, 99) < reads(12, 1)


def test_sigterm_saves_and_returns(tmp_path):
  config = recipes.vectors(tmp_path, steps=10**6, log_every=5, checkpoint_every=10**6)
  made, workdir = kinds.KINDS["plain"], tmp_path / "run"

  def terminate():
    while not (workdir / "metrics.jsonl").exists():
      time.sleep(0.01)
    os.kill(os.getpid(), signal.SIGTERM)

  threading.Thread(target=terminate).start()
  before = signal.getsignal(signal.SIGTERM)
  state = loop.run(config, workdir, method=made)
  assert signal.getsignal(signal.SIGTERM) is before
  saved = [int(p.name) for p in (workdir / "checkpoints").glob("[0-9]*")]
  assert saved == [int(state.step)] and saved[0] >= 5
  config.train.steps = saved[0] + 1
  assert int(loop.run(config, workdir, method=made).step) == saved[0] + 1


def breaks_at(step_number, what):
  """A method whose loss, or only its state, is not finite from one step on."""

  def loss(vars, batch, keys, *, now):
    w = vars.params["w"]
    bad = jnp.where(now >= step_number - 1, jnp.nan, 0.0)
    error = jnp.mean((batch["x"] @ w) ** 2)
    extra = {"count": vars.extra["count"] + (bad if what == "state" else 0.0)}
    return error + (bad if what == "loss" else 0.0), Aux({"error": error}, extra)

  phase = Phase(loss, ("w",), optax.sgd(0.0), hparams={"now": lambda step: step})
  return Method(lambda key: Vars({"w": jnp.ones((16, 3))}, {"count": jnp.zeros(())}), {"w": phase})


@pytest.mark.parametrize(
  "what, words",
  [
    ("loss", "by step 6 these are not finite: w/.*loss"),
    ("state", "the state after step 6 is not"),
  ],
)
def test_what_is_not_finite_is_never_saved(what, words, tmp_path):
  """Acceptance test 18: it breaks at step 5; the checkpoint of step 3 is the newest."""
  config = recipes.vectors(tmp_path, log_every=6)
  with pytest.raises(FloatingPointError, match=words):
    loop.run(config, tmp_path / "run", method=breaks_at(5, what))
  assert [p.name for p in (tmp_path / "run/checkpoints").glob("[0-9]*")] == ["3"]


def teacher(width=3):
  """A trained network with an average and statistics."""

  def loss(vars, batch, keys):
    out = batch["x"] @ vars.params["net"]
    return jnp.mean((out - 1.0) ** 2), Aux(extra={"net": vars.extra["net"] + 1.0})

  init = lambda key: Vars({"net": jax.random.normal(key, (16, width))}, {"net": jnp.zeros(())})
  phases = {"net": Phase(loss, ("net",), optax.sgd(0.1))}
  return Method(init, phases, ema={"net_ema": Ema("net", 0.5)})


def student():
  """A second stage: the whole teacher frozen under one name, and a network that starts from it."""

  def loss(vars, batch, keys):
    target = batch["x"] @ vars.params["first_stage"]["net"]
    return jnp.mean((batch["x"] @ vars.params["net"] - 2.0 * target) ** 2), Aux()

  def init(key):
    first = teacher().init(key)
    net = jnp.zeros((16, 3))
    return Vars({"first_stage": first.params, "net": net}, {"first_stage": first.extra})

  phases = {"net": Phase(loss, ("net",), optax.sgd(0.1))}
  return Method(init, phases, ema={"net_ema": Ema("net", 0.5)})


@pytest.fixture
def two_stages(tmp_path, monkeypatch):
  """(config of the second stage, state of the first run); `load` builds both from test methods."""
  first = loop.run(recipes.vectors(tmp_path), tmp_path / "first", method=teacher())
  methods = {"first": teacher(), "second": student()}
  monkeypatch.setattr(method, "build", lambda model, args: methods[args.get("stage", "first")])
  config = recipes.vectors(tmp_path)
  config.args = {"stage": "second"}
  run = str(tmp_path / "first")
  config.init_from = {"first_stage": run, "net": f"{run}:net_ema"}
  return config, jax.device_get(first)


def test_a_second_stage_starts_from_a_first(two_stages, tmp_path):
  config, first = two_stages
  state = loop.run(config, tmp_path / "second")
  for _ in range(2):  # as trained, and as restored
    frozen = state.params["first_stage"]["net"]
    np.testing.assert_array_equal(frozen, first.params["net_ema"])  # averaged
    np.testing.assert_array_equal(state.extra["first_stage"]["net"], first.extra["net"])
    _, state = checkpoint.load(tmp_path / "second")
  origin = json.loads((tmp_path / "second/frozen.json").read_text())["first_stage"]
  assert origin["source"] == str(tmp_path / "first")
  saved = (tmp_path / "second/checkpoints/6/state/_METADATA").read_text()
  assert "first_stage" in saved and "'params', 'first_stage'" not in saved  # frozen: saved once


def test_both_stages_take_the_same_first_step_from_a_source(two_stages, tmp_path):
  config, first = two_stages
  config.train.update(steps=1, log_every=1, checkpoint_every=1)
  made = student()
  broken = made._replace(phases={"net": made.phases["net"]._replace(tx=optax.sgd(0.0))})
  state = loop.run(config, tmp_path / "second", method=broken)
  np.testing.assert_array_equal(state.params["net"], first.params["net_ema"])
  np.testing.assert_array_equal(state.params["net_ema"], first.params["net_ema"])


@pytest.mark.parametrize(
  "source, words",
  [
    ({"nets": "first:net"}, "init_from nets: expected one of first_stage, net"),
    ({"net": "first:ema"}, "the run has net, net_ema"),
    ({"net": "first:net", "first_stage/net": "wide:net"}, r"float32\[16, 4\].*float32\[16, 3\]"),
    ({"net": "nowhere"}, "no config.json, so no run, is there"),
  ],
)
def test_bad_sources_are_refused(source, words, two_stages, tmp_path, monkeypatch):
  config, _ = two_stages
  if "wide" in str(source):
    wide = recipes.vectors(tmp_path)
    wide.args = {"stage": "wide"}
    build = method.build
    chosen = lambda m, args: teacher(4) if args.get("stage") == "wide" else build(m, args)
    monkeypatch.setattr(method, "build", chosen)
    loop.run(wide, tmp_path / "wide")
  config.init_from = {k: str(tmp_path / v) for k, v in source.items()}
  with pytest.raises(ValueError, match=words):
    loop.run(config, tmp_path / "second")


def test_a_checkpoint_of_another_shape_or_model_is_refused(tmp_path):
  """Acceptance test 17: the path and both values, where it differs, is left over or missing."""
  config = recipes.vectors(tmp_path, steps=3)
  loop.run(config, tmp_path / "run", method=teacher(3))
  config.train.steps = 6
  words = r"params/net is float32\[16, 3\], this model has float32\[16, 4\]"
  with pytest.raises(ValueError, match=words):
    loop.run(config, tmp_path / "run", method=teacher(4))
  with pytest.raises(ValueError, match=r"extra/net is float32\[\], this model has nothing"):
    loop.run(config, tmp_path / "run", method=kinds.KINDS["plain"])
  half = teacher(3)
  low = lambda key: jax.tree.map(lambda x: x.astype(jnp.float16), teacher(3).init(key))
  with pytest.raises(ValueError, match="is float32.*, this model has float16"):
    loop.run(config, tmp_path / "run", method=half._replace(init=low))
  phases = {"net": teacher().phases["net"]._replace(tx=optax.sgd(0.1, momentum=0.9))}
  words = r"opt: net/0/trace/net is nothing, this model has float32\[16, 3\]"
  with pytest.raises(ValueError, match=words):
    loop.run(config, tmp_path / "run", method=teacher()._replace(phases=phases))


def test_a_finished_run_loads_when_its_optimizer_has_changed(tmp_path, monkeypatch):
  state = loop.run(recipes.vectors(tmp_path), tmp_path / "run", method=teacher())
  phases = {"net": teacher().phases["net"]._replace(tx=optax.adam(0.1))}
  monkeypatch.setattr(method, "build", lambda model, args: teacher()._replace(phases=phases))
  _, vars = checkpoint.load(tmp_path / "run")
  chex.assert_trees_all_equal(vars.params, jax.device_get(state.params))


@pytest.mark.parametrize(
  "key, value",
  [
    ("train.seed", 1),
    ("data.batch_size", 16),
    ("data.flip", True),
    ("args.ema.decay", 0.5),
    ("model", "flow_matching.flow_matching"),
  ],
)
def test_a_workdir_of_another_run_is_refused(key, value, tmp_path):
  """Acceptance test 3, also 17: another seed, data or model."""
  config = recipes.vectors(tmp_path, steps=1, checkpoint_every=1)
  config.args.ema = dict(profile="fixed", decay=0.9)
  loop.run(config, tmp_path / "run", method=kinds.KINDS["plain"])
  old = config.to_dict()
  for part in key.split("."):
    old = old[part]
  config.update_from_flattened_dict({key: value})
  words = f"holds a run with {key}={old!r}, this config has {key}={value!r}"
  with pytest.raises(ValueError, match=re.escape(words)):
    loop.run(config, tmp_path / "run", method=kinds.KINDS["plain"])


@pytest.mark.parametrize(
  "key, value, words",
  [
    ("train.steps", -1, "config.train.steps=-1: expected a whole number, 0 or more"),
    ("train.log_every", 2.5, "config.train.log_every=2.5"),
    ("train.seed", -1, "config.train.seed=-1: expected a whole number, 0 or more"),
    ("train.parallel", "pmao", "config.train.parallel='pmao': expected one of jit, fsdp"),
    ("train.stpes", 3, "config.train.stpes is unknown; did you mean train.steps?"),
    ("data.batch_size", 0, "config.data.batch_size=0: expected a whole number, 1 or more"),
    ("data.batch_size", True, "config.data.batch_size=True"),
    ("data.batch_size", 6, "data.batch_size=6: expected a multiple of the 4 devices"),
    ("data.flip", 1, "config.data.flip=1: expected True or False"),
    ("data.source", "", "config.data.source='': expected a name"),
    ("data.source", "npx:data", "did you mean npz?"),
    ("data.source", "npz:nowhere", "nowhere does not exist"),
    ("data", None, "config.data=None: expected a table of keywords"),
    ("model", "diffusion.dpm", "did you mean 'diffusion.ddpm'?"),
  ],
)
def test_a_bad_config_is_refused_before_anything_compiles(key, value, words, tmp_path):
  config = recipes.vectors(tmp_path).to_dict()
  *parents, leaf = key.split(".")
  table = config
  for parent in parents:
    table = table[parent]
  table[leaf] = value
  config = type(recipes.vectors(tmp_path))(config)
  with pytest.raises((ValueError, FileNotFoundError), match=re.escape(words)):
    loop.run(config, tmp_path / "run")
  assert not (tmp_path / "run").exists()


def test_a_missing_key_is_refused(tmp_path):
  config = recipes.vectors(tmp_path)
  del config.train["log_every"]
  with pytest.raises(ValueError, match="config.train.log_every is missing"):
    loop.run(config, tmp_path / "run")


@pytest.mark.parametrize(
  "arrays, words",
  [
    ({"image": np.full((9, 8, 8, 1), np.nan, np.float32)}, "image of example 0 has NaN"),
    ({"image": np.zeros((9, 8, 8, 1), np.uint8)}, "n_classes=10 needs labels"),
    (
      {"image": np.zeros((9, 8, 8, 1), np.uint8), "label": np.zeros((9, 1), np.int64)},
      "label must be one number an example",
    ),
    (
      {"image": np.zeros((9, 8, 8, 1), np.uint8), "label": np.arange(9) + 3},
      "label 10 of example 7 is outside 0..9",
    ),
    ({"image": np.zeros((9, 9, 8, 1), np.uint8), "label": np.arange(9)}, r"\(9, 8, 1\): expected"),
  ],
  ids=["NaN", "no labels", "label of rank 2", "label out of range", "another size"],
)
def test_bad_data_is_refused_before_anything_compiles(arrays, words, tmp_path):
  np.savez(tmp_path / "bad.npz", **arrays)
  config = recipes.small("diffusion/ddpm.py")
  config.data.source = f"npz:{tmp_path / 'bad.npz'}"
  config.train.eval_every = 0
  with pytest.raises(ValueError, match=words):
    loop.run(config, tmp_path / "run")


@pytest.mark.parametrize(
  "args, words",
  [
    ({"sampler": {"name": "dimm", "steps": 5}}, "sampler='dimm': expected one of adaptive"),
    ({"sampler": {"name": "ddim", "steps": 5000}}, "steps=5000: expected a whole number, 1 to"),
    ({"guidance_weight": float("nan")}, "guidance_weight=nan: expected a finite number"),
    ({"label_dropout": 7.0}, "label_dropout=7.0: expected at least 0 and at most 1"),
    ({"accumulate": 0}, "net.accumulate=0: expected a whole number, 1 or more"),
  ],
)
def test_a_bad_sampler_is_refused_before_anything_compiles(args, words, tmp_path):
  config = recipes.small("diffusion/ddpm.py")
  config.train.sample_every = 4
  config.args.update(args)
  with pytest.raises(ValueError, match=words):
    loop.run(config, tmp_path / "run")


def test_a_file_that_is_not_an_image_is_refused_at_the_start(tmp_path):
  for i in range(20):
    Image.new("RGB", (8, 8)).save(tmp_path / f"{i}.png")
  (tmp_path / "7.png").write_text("not an image")
  config = recipes.small("diffusion/ddpm.py")
  config.data.source = f"folder:{tmp_path}"
  with pytest.raises(ValueError, match="7.png cannot be read as an image"):
    loop.run(config, tmp_path / "run")


def test_a_model_trained_and_drawn(tmp_path):
  """Real images through the whole loop: losses, evaluation, a grid with one class a row."""
  config = recipes.small("flow_matching/flow_matching.py")
  config.train.update(sample_every=2, eval_every=4)
  loop.run(config, tmp_path / "run")
  assert {p.name for p in (tmp_path / "run/samples").iterdir()} == {
    "samples_00000002.png",
    "samples_00000004.png",
  }
  image = Image.open(tmp_path / "run/samples/samples_00000004.png")
  assert image.size == (8 * 68 - 4, 10 * 68 - 4) and image.mode == "L"
  evaluated = [line for line in lines(tmp_path / "run") if "eval/bits_per_dim" in line]
  assert [line["step"] for line in evaluated] == [4] and evaluated[0]["eval/n"] == 20
  made, vars = checkpoint.load(tmp_path / "run")
  sample = made.fns["sample"](vars, jax.random.split(KEY(0), 2), {"label": jnp.array([1, 2])})
  assert sample["image"].shape == (2, 8, 8, 1)


def test_grids_keep_the_order_and_enlarge():
  images = np.linspace(-1.0, 1.0, 3)[:, None, None, None] * np.ones((1, 16, 16, 3))
  grid = report.grid(images, columns=2)
  assert grid.shape == (132, 132, 3) and grid.dtype == np.uint8
  corners = [grid[63, 63, 0], grid[63, 68, 0], grid[68, 63, 0], grid[68, 68, 0], grid[65, 10, 0]]
  assert [int(c) for c in corners] == [0, 128, 255, 255, 255]


def test_another_train_step_can_be_passed(tmp_path):
  def twice(made, state, batch, key):
    state, _ = step.train_step(made, state, batch, key)
    return step.train_step(made, state.replace(step=state.step - 1), batch, key)

  made = kinds.KINDS["plain"]
  config = recipes.vectors(tmp_path, steps=1, checkpoint_every=1)
  one = loop.run(config, tmp_path / "one", method=made)
  two = loop.run(config, tmp_path / "two", method=made, train_step=twice)
  assert int(one.step) == int(two.step) == 1
  assert jnp.abs(one.params["w"] - two.params["w"]).max() > 1e-4

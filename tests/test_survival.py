"""Runs that are killed, told to stop, out of disk or out of input; checkpoints that are damaged."""

import contextlib
import json
import pathlib
import random
import re
import shutil
import signal
import time

import faults
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipes
import survivor

from jaxgen.core import checkpoint, loop, manifest
from jaxgen.core import config as config_lib
from jaxgen.core.method import Aux, Method, Phase, Vars


def test_a_run_that_is_killed_again_and_again(tmp_path):
  """Acceptance test 1: SIGKILL at random moments, asynchronous saves; it ends as if nothing was."""
  rng, run = random.Random(1), tmp_path / "run"
  for _ in range(15):
    faults.kill_and_look(run, rng)
  end = faults.reached(run) + 3
  _, state = faults.complete(run, steps=end)
  assert state == faults.complete(tmp_path / "whole", steps=end)[1]
  assert faults.steps(run)[-1] == end


def test_two_hosts_that_are_killed_again_and_again(tmp_path):
  """Acceptance test 2: in either order; both go on from the same step."""
  rng, run = random.Random(2), tmp_path / "run"
  for _ in range(6):
    faults.kill_and_look(run, rng, hosts=2)
  end = faults.reached(run) + 3
  _, state = faults.complete(run, hosts=2, steps=end)
  assert state == faults.complete(tmp_path / "whole", hosts=2, steps=end)[1]


@pytest.mark.parametrize("hosts", [2, 1])
def test_sigterm_saves_the_same_step_everywhere(hosts, tmp_path):
  """Acceptance test 9: to one host of two, status 0 on both, and they go on to the bit.

  Acceptance test 10: the same with a single process.
  """
  run = tmp_path / "run"
  started = faults.start(run, hosts, every=10**6, seconds=0.05)
  faults.wait_for_step(started, run, 3)
  faults.send(started[-1], signal.SIGTERM)
  status, outputs = faults.finish(started)
  at = int(faults.said("SIGTERM: stopped after step (.*), which is saved", outputs[0]))
  assert status == [0] * hosts, outputs
  assert faults.steps(run) == [at] and faults.reached(run) == at == faults.saved(run)
  assert len({faults.said("state (.*)", text) for text in outputs}) == 1
  first, state = faults.complete(run, hosts, steps=at + 5)
  assert first == at and state == faults.complete(tmp_path / "whole", hosts, steps=at + 5)[1]


def test_a_host_that_raises_ends_all(tmp_path):
  """Acceptance test 11: within 30 s, the cause in its log."""
  status, outputs = faults.finish(
    faults.start(tmp_path, hosts=2, fault="raise", at=12, host=1, seconds=0.1)
  )
  assert 0 not in status and time.time() - float(faults.said("raise at (.*)", outputs[1])) < 30.0
  assert "RuntimeError: a bad shard" in outputs[1] and "too long" not in outputs[0]


def test_input_that_stalls_ends_the_run(tmp_path):
  """Acceptance test 13, one host: within its limit, the stacks in the log."""
  status, (text,) = faults.finish(faults.start(tmp_path, fault="stall", at=8, timeout=3))
  assert status == [1] and "Timeout (0:00:03)!" in text
  assert "in take" in text and "in _watched" in text
  assert time.time() - float(faults.said("stall at (.*)", text)) < 10.0


@pytest.mark.parametrize("hosts", [1, 2])
def test_a_full_disk(hosts, tmp_path):
  """Acceptance test 14: non-zero, the older checkpoint is whole, and it goes on where room is.

  Acceptance test 16: then falling back, on all hosts.
  """
  run = tmp_path / "run"
  status, outputs = faults.finish(faults.start(run, hosts, fault="full", at=14, seconds=0.1))
  assert 0 not in status and "File too large" in outputs[0], outputs
  kept = faults.saved(run)
  assert kept and [*run.glob("checkpoints/*tmp*")]
  first, state = faults.complete(run, hosts, steps=kept + 10)
  assert first == kept and not [*run.glob("**/*tmp*")]
  assert faults.steps(run) == [kept + 8, kept + 10]
  assert state == faults.complete(tmp_path / "whole", hosts, steps=kept + 10)[1]


def test_an_infinite_batch_is_refused(tmp_path):
  """Acceptance test 18: before it is trained on."""
  with pytest.raises(ValueError, match="x of example .* has NaN or infinity"):
    survivor.run(tmp_path, 20, fault="inf", at=12)
  assert faults.saved(tmp_path) >= 6 and np.isfinite(survivor.load(tmp_path).params["w"]).all()


def test_a_gradient_that_is_not_finite_ends_the_run(tmp_path):
  """Acceptance test 18: though its loss is finite; at the next report, with the last state kept."""

  def loss(vars, batch, keys, *, now):
    error = jnp.mean((batch["x"] @ vars.params["w"]) ** 2)
    return error + jnp.sqrt(jnp.where(now < 6, 1.0, 0.0) * error), Aux()

  phase = Phase(loss, ("w",), optax.sgd(1e-3), hparams={"now": lambda step: step})
  made = Method(lambda key: Vars({"w": jnp.ones((16, 3))}), {"w": phase})
  config = recipes.vectors(tmp_path, steps=20, log_every=5, checkpoint_every=5)
  with pytest.raises(FloatingPointError, match="by step 10 these are not finite: .*w/grad_norm"):
    loop.run(config, tmp_path / "run", method=made)
  assert faults.steps(tmp_path / "run") == [5]


@contextlib.contextmanager
def ending(monkeypatch, how):
  """The last write of every checkpoint takes long, or fails."""
  write = manifest.write

  def slow(folder, note):
    time.sleep(0.5)
    if how == "failing save" and note:
      raise OSError("no space left")
    write(folder, note)

  with monkeypatch.context() as patch:
    patch.setattr(manifest, "write", slow)
    yield


@pytest.mark.parametrize("how", ["normal", "exception", "failing save"])
def test_a_run_ends_with_its_last_checkpoint_on_disk_or_with_an_error(how, tmp_path, monkeypatch):
  """Acceptance test 15: also where a save was under way when it ended."""
  errors = {"exception": "a bad shard", "failing save": "no space left"}
  fails = pytest.raises((RuntimeError, OSError), match=errors[how]) if how in errors else None
  with ending(monkeypatch, how), fails or contextlib.nullcontext():
    if how == "exception":  # in step 5: two batches are fetched ahead
      survivor.run(tmp_path, 10, every=4, fault="raise", at=8)
    survivor.run(tmp_path, 4, every=4)
  assert faults.saved(tmp_path) == (0 if how == "failing save" else 4)


def test_every_example_is_seen_once_an_epoch_wherever_the_run_was_cut(tmp_path):
  """Acceptance test 4: 25 batches of 8 are 4 epochs of 50; cut within epochs."""
  for steps in (3, 10, 17, 25):
    state = survivor.run(tmp_path, steps)
    assert np.asarray(state.extra["w"]["seen"]).sum() == 8 * steps
  np.testing.assert_array_equal(state.extra["w"]["seen"], np.full(survivor.EXAMPLES, 4.0))


@pytest.fixture(scope="module")
def two_checkpoints(tmp_path_factory):
  """A run with checkpoints of steps 4 and 6."""
  folder = tmp_path_factory.mktemp("runs") / "run"
  survivor.run(folder, 6)
  assert faults.steps(folder) == [4, 6]
  return folder


def newest(folder, **options):
  """The step from which a run in `folder` would go on."""
  note = config_lib.identity(survivor.config(6))
  folder = checkpoint.open_workdir(folder)
  with checkpoint.open_manager(folder, note) as manager:
    return checkpoint.newest(manager, note, **options)


def test_flipped_bits_are_found(two_checkpoints):
  """Acceptance test 16: 100 of 100, in any file that the manifest covers and in the manifest."""
  rng, step = random.Random(0), two_checkpoints / "checkpoints/6"
  files = [*json.loads((step / "manifest.json").read_text())["files"], "manifest.json"]
  read = {str(p.relative_to(step)) for p in step.rglob("*") if p.is_file()}
  assert {pathlib.Path(f).name for f in read - set(files)} == set(manifest.NOT_IN_IT)
  for i in range(100):
    path = step / files[i % len(files)]
    at = rng.randrange(8 * path.stat().st_size)
    faults.flip(path, at)
    with pytest.raises(ValueError, match=re.escape(str(path))):
      newest(two_checkpoints)
    if i < len(files):
      assert newest(two_checkpoints, allow_fallback=True) == 4
    faults.flip(path, at)
  assert newest(two_checkpoints) == 6


def test_what_no_manifest_covers_is_not_read(two_checkpoints):
  """Acceptance test 16: Orbax's time stamps, the only files that a save touches after it."""
  expected, step = survivor.load(two_checkpoints), two_checkpoints / "checkpoints/6"
  for path in (step / name for name in manifest.NOT_IN_IT):
    faults.flip(path, 8 * (path.stat().st_size // 2))
    jax.tree.map(np.testing.assert_array_equal, survivor.load(two_checkpoints), expected)
    faults.flip(path, 8 * (path.stat().st_size // 2))


def emptied(folder):
  shutil.rmtree(folder / "6")
  (folder / "6").mkdir()


DAMAGE = {
  "truncated": (lambda f: next((f / "6/state/d").iterdir()).write_bytes(b""), "6/state/d/.*sha256"),
  "deleted": (lambda f: next((f / "6/state/d").iterdir()).unlink(), "6/state/d/.*No such file"),
  "no manifest": (lambda f: (f / "6/manifest.json").unlink(), "6/manifest.json is missing"),
  "empty": (emptied, "6/manifest.json is missing"),
  "another step": (lambda f: (f / "6").rename(f / "9"), "9/manifest.json has step=6: expected 9"),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_damaged_checkpoint_is_refused_and_passed_over_when_asked(
  kind, two_checkpoints, tmp_path
):
  """Acceptance test 16: by training and by what loads a run."""
  run, (damage, words) = tmp_path / "run", DAMAGE[kind]
  shutil.copytree(two_checkpoints, run)
  damage(run / "checkpoints")
  for use in (lambda: survivor.run(run, 8), lambda: survivor.load(run)):
    with pytest.raises(ValueError, match=f"{words}.*--allow_fallback"):
      use()
  whole = survivor.run(tmp_path / "whole", 8)
  state = survivor.run(run, 8, allow_fallback=True)
  jax.tree.map(np.testing.assert_array_equal, jax.device_get(state), jax.device_get(whole))
  assert faults.steps(run) == [6, 8]


def test_no_good_checkpoint(two_checkpoints, tmp_path):
  """Acceptance test 16: then the run is not begun anew, even where falling back is allowed."""
  shutil.copytree(two_checkpoints, tmp_path / "run")
  for step in ("4", "6"):
    (tmp_path / f"run/checkpoints/{step}/manifest.json").unlink()
  with pytest.raises(ValueError, match="has no good checkpoint: .*4/manifest.json"):
    survivor.run(tmp_path / "run", 8, allow_fallback=True)
  assert faults.steps(tmp_path / "run") == [4, 6]


@pytest.mark.parametrize("file", ["frozen/d", "frozen/manifest.json"])
def test_damaged_frozen_networks_are_refused(file, two_checkpoints, tmp_path):
  shutil.copytree(two_checkpoints, tmp_path / "run")
  path = tmp_path / "run" / file
  path = next(path.iterdir()) if path.is_dir() else path
  faults.flip(path, 8 * (path.stat().st_size // 2))
  for use in (lambda: survivor.run(tmp_path / "run", 8), lambda: survivor.load(tmp_path / "run")):
    with pytest.raises(ValueError, match=re.escape(str(path))):
      use()


def test_a_config_that_is_not_the_one_of_the_checkpoint_is_refused(two_checkpoints, tmp_path):
  """Acceptance test 3: the manifest holds the seed and a hash of the config."""
  shutil.copytree(two_checkpoints, tmp_path / "run")
  path = tmp_path / "run/config.json"
  path.write_text(path.read_text().replace('"batch_size": 8', '"batch_size": 16'))
  with pytest.raises(ValueError, match="6/manifest.json has config='.*': expected '"):
    survivor.load(tmp_path / "run")

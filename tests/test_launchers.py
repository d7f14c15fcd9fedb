"""The commands of the README and of TPU_SETUP.md, as a newcomer types them."""

import json
import os
import re
import subprocess
import sys

import commands
import numpy as np
import pod
import processes
import pytest
from PIL import Image

from experiments import launch as launcher

SMOKE = "configs/flow_matching/flow_matching.py:smoke"


def launch(module, *args):
  tests = os.path.join(processes.ROOT, "tests")
  environment = {**processes.environment(), "PYTHONPATH": tests}
  command = [sys.executable, "-m", f"experiments.{module}", *args]
  return subprocess.run(
    command, cwd=processes.ROOT, env=environment, text=True, capture_output=True
  )


def refused(words, module, *args):
  result = launch(module, *args)
  assert result.returncode != 0 and words in result.stderr, result.stderr[-2000:]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
  workdir = tmp_path_factory.mktemp("runs") / "fm"
  config = workdir.parent / "small.py"
  config.write_text(
    "import recipes\nget_config = lambda: recipes.small('flow_matching/flow_matching.py')\n"
  )
  result = launch("train", f"--config={config}", f"--workdir={workdir}", "--config.args.tx.lr=2e-3")
  assert result.returncode == 0, result.stderr[-2000:]
  assert "net/loss" in result.stderr and "4/4" in result.stderr  # the progress bar
  assert json.loads((workdir / "config.json").read_text())["args"]["tx"]["lr"] == 2e-3
  return workdir


def test_sample_writes_a_grid_and_arrays(run):
  one = launch("sample", f"--workdir={run}")
  assert one.returncode == 0 and "80 samples" in one.stdout, one.stderr[-2000:]
  image, arrays = Image.open(run / "sample.png"), np.load(run / "sample.npz")
  assert image.size == (8 * 68 - 4, 10 * 68 - 4)
  assert arrays["image"].shape == (80, 8, 8, 1) and arrays["image"].dtype == np.uint8
  np.testing.assert_array_equal(arrays["label"], np.repeat(np.arange(10), 8))
  options = '--options={"name": "euler", "steps": 3, "w": 1.0}'
  two = launch("sample", f"--workdir={run}", "--n=5", "--label=3", options, "--out=threes")
  assert two.returncode == 0, two.stderr[-2000:]
  assert np.load(run / "threes.npz")["label"].tolist() == [3] * 5


def test_quickstart_leaves_what_the_readme_says(run):
  config, workdir = run.parent / "small.py", run.parent / "quickstart"
  result = launch("quickstart", f"--config={config}", f"--workdir={workdir}")
  assert result.returncode == 0, result.stderr[-2000:]
  for name in ("samples.png", "denoising.png", "loss.png", "metrics.jsonl", "checkpoints"):
    assert (workdir / name).exists() and str(workdir / name) in result.stdout
  assert Image.open(workdir / "denoising.png").size == (8 * 68 - 4, 10 * 68 - 4)


def test_evaluate_prints_and_stores(run):
  result = launch("evaluate", f"--workdir={run}", "--n=30", "--batch_size=7")
  assert result.returncode == 0, result.stderr[-2000:]
  stored = json.loads((run / "evaluation.jsonl").read_text().splitlines()[-1])
  assert stored == json.loads(result.stdout) and stored["n"] == 30 and stored["bits_per_dim"] > 0


@pytest.mark.parametrize(
  "words, module, args",
  [
    ('Did you mean "steps" instead of "stpes"?', "train", ["--config.train.stpes=3"]),
    ("config.data.batch_size=0: expected", "train", ["--config.data.batch_size=0"]),
    ("tx.lr=nan: expected a finite number", "train", ["--config.args.tx.lr=nan"]),
    ("variant='smok': expected one of", "train", ["--config=" + SMOKE[:-1]]),
    ("--workdir", "train", []),
    ("no config.json, so no run, is there", "sample", ["--workdir=nowhere"]),
    ("no config.json, so no run, is there", "evaluate", ["--workdir=nowhere"]),
  ],
)
def test_bad_commands_are_refused(words, module, args, tmp_path):
  if module == "train" and words != "--workdir":
    args = [f"--config={SMOKE}", f"--workdir={tmp_path / 'run'}", *args]
  refused(words, module, *args)


def test_a_label_that_does_not_exist_is_refused(run):
  refused("label=10: expected less than n_classes=10", "sample", f"--workdir={run}", "--label=10")


def on_two_hosts(words, *each, home=lambda i: {}):
  """(exit status, output) of `python` with these words on two hosts, and with words of each."""

  def command(port, i):
    address = [f"--coordinator_address=127.0.0.1:{port}", "--num_processes=2", f"--process_id={i}"]
    return [sys.executable, *words, *each[i], *address], processes.environment(**home(i))

  return processes.launch(lambda port: [command(port, i) for i in range(2)])


TRAIN = ["-m", "experiments.train", f"--config={SMOKE}"]


@pytest.mark.parametrize(
  "words, each",
  [
    (
      "args.tx.lr=0.001 on host 0, args.tx.lr=0.002 on host 1: expected the same on all",
      ([], ["--config.args.tx.lr=2e-3"]),
    ),
    (
      "data.batch_size=5: expected a multiple of the 2 devices",
      [["--config.data.batch_size=5"]] * 2,
    ),
  ],
)
def test_both_hosts_refuse(words, each, tmp_path):
  """Acceptance test 21, and rows that the devices do not divide."""
  status, outputs = on_two_hosts([*TRAIN, f"--workdir={tmp_path / 'run'}"], *each)
  assert status == [1, 1] and all(words in text for text in outputs), outputs
  assert not (tmp_path / "run").exists()


def test_both_hosts_refuse_a_workdir_that_is_not_shared(tmp_path):
  """Also where both have what an earlier run left."""
  for i in range(2):
    (tmp_path / str(i) / "run").mkdir(parents=True)
    (tmp_path / str(i) / "run/config.json").write_text("{}")
  home = lambda i: {"HOME": str(tmp_path / str(i))}
  status, outputs = on_two_hosts([*TRAIN, "--workdir=~/run"], [], [], home=home)
  seen = "a file of host 0 seen in workdir"
  words = f"{seen}=True on host 0, {seen}=False on host 1"
  assert status == [1, 1] and all(words in text for text in outputs), outputs


def test_a_host_that_fails_ends_the_others():
  """Acceptance test 11. Its peer waits in a collective that never comes."""
  code = """
import jax
from experiments import launch
from jax.experimental import multihost_utils
def main():
  multihost_utils.sync_global_devices("both are here")
  if jax.process_index():
    raise RuntimeError("a bad shard")
  multihost_utils.sync_global_devices("one is not")
launch.run(main)
"""
  status, outputs = on_two_hosts(["-c", code], [], [])
  assert status[1] == 1 and status[0] != 0, outputs
  assert "RuntimeError: a bad shard" in outputs[1] and "too long" not in outputs[0], outputs


@pytest.mark.parametrize(
  "words, given",
  [
    ("--num_processes is missing: expected all of", (True, "h:1", None, 0)),
    ("--coordinator_address is missing", (False, None, 2, 0)),
    ("--coordinator_address='h': expected HOST:PORT", (False, "h", 2, 0)),
    ("--coordinator_address='h:99999'", (False, "h:99999", 2, 0)),
    ("--num_processes=0: expected 1 or more", (False, "h:1", 0, 0)),
    ("--process_id=2: expected 0 to num_processes - 1 = 1", (False, "h:1", 2, 2)),
  ],
)
def test_bad_addresses_are_refused(words, given):
  with pytest.raises(ValueError, match=re.escape(words)):
    launcher.hosts(*given)


def test_multihost_without_other_hosts_is_refused(tmp_path):
  words = "no other hosts are found on a TPU pod or under SLURM"
  refused(words, "sample", f"--workdir={tmp_path}", "--multihost")


def test_every_command_of_the_page_fits_the_code():
  """Modules, config files, variants and flags; `make pod` runs them."""
  assert {words[1] for words in pod.PAGE} == {
    f"experiments.{m}" for m in ("train", "sample", "evaluate")
  }
  assert {"--multihost", "--num_processes=2"} <= {word for words in pod.PAGE for word in words}
  for words in pod.PAGE:
    commands.check(words)

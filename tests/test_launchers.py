"""The commands of the README, as a newcomer types them: one process each, one device."""

import json
import os
import subprocess
import sys

import numpy as np
import processes
import pytest
from PIL import Image

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
    "import runs\nget_config = lambda: runs.small('flow_matching/flow_matching.py')\n"
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

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


def launch(module, *args, **more):
  tests = os.path.join(processes.ROOT, "tests")
  environment = {**processes.environment(), "PYTHONPATH": tests, **more}
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
  assert stored == json.loads(result.stdout)
  assert stored["measures"]["bits/dim"]["n"] == 30 and stored["measures"]["bits/dim"]["value"] > 0


def test_evaluate_compares_folders_and_runs(run, tmp_path):
  """Two sets of images, and a run's samples, by a classifier that was just made."""
  rng = np.random.default_rng(0)
  np.savez(tmp_path / "noise.npz", image=rng.integers(0, 256, (40, 8, 8, 1), np.uint8))
  config = "--config=configs/representation/classifier.py:smoke"
  trained = launch("train", config, f"--workdir={tmp_path / 'net'}")
  assert trained.returncode == 0, trained.stderr[-2000:]
  some = ["--measures=frechet,precision_recall", f"--extractors=classifier:{tmp_path / 'net'}"]
  some += ["--reference_n=50"]
  images = [f"--images=npz:{tmp_path / 'noise.npz'}", "--source=digits"]
  result = launch("evaluate", *images, *some, JAXGEN_CACHE=str(tmp_path))
  assert result.returncode == 0, result.stderr[-2000:]
  measures = json.loads(result.stdout)["measures"]
  assert set(measures) == {"FD-Classifier", "precision-Classifier", "recall-Classifier"}
  assert measures["FD-Classifier"]["reference"]["data"] == "digits train, 8x8x1"
  result = launch("evaluate", f"--workdir={run}", "--samples=20", *some, JAXGEN_CACHE=str(tmp_path))
  assert result.returncode == 0, result.stderr[-2000:]
  of_run = json.loads(result.stdout)["measures"]["FD-Classifier"]
  assert of_run["n"] == 20 and of_run["reference"] == measures["FD-Classifier"]["reference"]

  row = {"run": "fm", "evaluations": 3, "measured": True, "values": {}}
  euler = row | {"name": "Euler", "options": {"name": "euler", "steps": 3}}
  shown = row | {"name": "Heun", "options": {"name": "heun", "steps": 2}, "measured": False}
  table = {"title": "a", "note": "b", "n": 20, "measures": ["frechet"], "rows": [euler, shown]}
  table |= {"runs": {}, "facts": {}, "repeat": ["c"], "picture": None}
  (tmp_path / "table.json").write_text(json.dumps(table))
  launched = json.loads((run / "launches.jsonl").read_text().splitlines()[0])
  (run / "launches.jsonl").write_text(json.dumps(launched | {"commit": "abcdef0"}) + "\n")
  words = [f"--table={tmp_path / 'table.json'}", f"--picture={tmp_path / 'a.png'}", *some[1:]]
  result = launch("compare", *words, f"--runs=fm:{run}", JAXGEN_CACHE=str(tmp_path))
  assert result.returncode == 0, result.stderr[-2000:]
  written = json.loads((tmp_path / "table.json").read_text())
  assert written["rows"][0]["values"].keys() == {"FD-Classifier"}
  assert written["rows"][1] == shown and written["runs"]["fm"]["commit"] == "abcdef0"
  assert written["facts"]["FD-Classifier"]["reference"] == of_run["reference"]
  assert Image.open(tmp_path / "a.png").size == (10 * 68 - 4, 2 * 68 - 4)
  refused("--runs='other': expected fm", "compare", *words, "--runs=other:here")


TRAIN_SMOKE = ("train", f"--config={SMOKE}", "--workdir=run")
COMMANDS = {
  "typo": ('Did you mean "steps" instead of "stpes"?', *TRAIN_SMOKE, "--config.train.stpes=3"),
  "typo in args": (
    'Did you mean "warmup" instead of "wramup"?',
    *TRAIN_SMOKE,
    "--config.args.tx.wramup=3",
  ),
  "typo in a flag": ("'wrokdir'. Did you mean: workdir", *TRAIN_SMOKE, "--wrokdir=run"),
  "text": (
    "--config.train.steps=many: invalid literal for int()",
    *TRAIN_SMOKE,
    "--config.train.steps=many",
  ),
  "fraction": (
    "--config.data.batch_size=1.5: invalid literal for int()",
    *TRAIN_SMOKE,
    "--config.data.batch_size=1.5",
  ),
  "no bool": ("Non-boolean argument to boolean flag", *TRAIN_SMOKE, "--config.data.flip=maybe"),
  "table": ("Failed to parse '3' as a ConfigDict", *TRAIN_SMOKE, "--config.train=3"),
  "tuple of text": (
    "image_shape=('8', '8', '1'): expected a tuple or list of whole",
    *TRAIN_SMOKE,
    "--config.args.image_shape=('8', '8', '1')",
  ),
  "tuple as text": (
    "image_shape=('8x8x1',): expected a tuple or list of whole",
    *TRAIN_SMOKE,
    "--config.args.image_shape=8x8x1",
  ),
  "lr NaN": (
    "tx.lr=nan: expected a finite number above 0",
    *TRAIN_SMOKE,
    "--config.args.tx.lr=nan",
  ),
  "lr below 0": ("tx.lr=-1.0: expected a finite number", *TRAIN_SMOKE, "--config.args.tx.lr=-1"),
  "no rows": ("config.data.batch_size=0: expected", *TRAIN_SMOKE, "--config.data.batch_size=0"),
  "no steps": ("config.train.steps=-1: expected a whole", *TRAIN_SMOKE, "--config.train.steps=-1"),
  "too many steps": (
    "config.train.steps=3000000000: expected",
    *TRAIN_SMOKE,
    "--config.train.steps=3000000000",
  ),
  "mode": ("parallel='pmao': expected one of jit", *TRAIN_SMOKE, "--config.train.parallel=pmao"),
  "no config": ("--config must have a value", "train", "--workdir=run"),
  "no workdir": ("--workdir must have a value", "train", f"--config={SMOKE}"),
  "no file": (
    "No such file or directory: 'configs/nothing.py'",
    "train",
    "--config=configs/nothing.py",
    "--workdir=run",
  ),
  "variant": (
    "variant='smok': expected one of",
    "train",
    f"--config={SMOKE[:-1]}",
    "--workdir=run",
  ),
  "no run": ("no config.json, so no run, is there", "sample", "--workdir=nowhere"),
  "no run to score": ("no config.json, so no run, is there", "evaluate", "--workdir=nowhere"),
  "no images to score": ("expected one of --workdir, a run, and --images", "evaluate"),
  "unknown measure": (
    "measures='fid': expected some of bits_per_dim, ",
    "evaluate",
    "--workdir=nowhere",
    "--measures=fid",
  ),
  "measure without its network": (
    "extractors=[]: expected one with pool, for frechet",
    "evaluate",
    "--workdir=nowhere",
    "--measures=frechet",
  ),
  "weights that are not there": (
    "weights.safetensors does not exist; it is made by python -m jaxgen.convert inception",
    "evaluate",
    "--workdir=nowhere",
    "--extractors=inception:weights.safetensors",
  ),
  "row of images": (
    "--row=row.json: expected --workdir, the run whose row it is",
    "evaluate",
    "--images=digits",
    "--row=row.json",
  ),
  "likelihood of images": (
    "measures='bits_per_dim': expected others without a run",
    "evaluate",
    "--images=digits",
  ),
  "no samples": ("--n=0: 0 is not a positive integer", "sample", "--workdir=nowhere", "--n=0"),
  "split": (
    "--split=valid: value should be one of <train|test>",
    "evaluate",
    "--workdir=nowhere",
    "--split=valid",
  ),
}
# Imports once, then runs each command in a copy of itself, as `python -m` would.
FORKS = """
import json, os, runpy, sys, tempfile, traceback
import experiments.launch, jaxgen.core.loop
for module, *args in json.loads(sys.argv[1]):
  with tempfile.TemporaryFile("w+") as out:
    child = os.fork()
    if child:
      status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
      out.seek(0)
      print(json.dumps([status, out.read()]), flush=True)
      continue
    os.dup2(out.fileno(), 1)
    os.dup2(out.fileno(), 2)
    try:
      sys.argv = [module, *args]
      runpy.run_module(f"experiments.{module}", run_name="__main__", alter_sys=True)
    except SystemExit as e:
      print(e, file=sys.stderr, flush=True)
      os._exit(1 if e.code else 0)
    except BaseException:
      traceback.print_exc()
      sys.stderr.flush()
      os._exit(1)
    os._exit(0)
"""


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
  """{case: (exit status, output)} of every command, in a folder that has configs."""
  folder = tmp_path_factory.mktemp("commands")
  (folder / "configs").symlink_to(os.path.join(processes.ROOT, "configs"))
  commands = json.dumps([words[1:] for words in COMMANDS.values()])
  result = subprocess.run(
    [sys.executable, "-c", FORKS, commands], cwd=folder, text=True, capture_output=True,
    env=processes.environment(PYTHONPATH=processes.ROOT), timeout=300,
  )  # fmt: skip
  assert result.returncode == 0, result.stderr[-2000:]
  assert [p.name for p in folder.iterdir()] == ["configs"]
  return dict(zip(COMMANDS, map(json.loads, result.stdout.splitlines()), strict=True))


@pytest.mark.parametrize("case", COMMANDS)
def test_bad_commands_are_refused(case, answers):
  """Acceptance test 24: typos, types, ranges and what is missing, with the near name."""
  status, output = answers[case]
  assert status == 1 and COMMANDS[case][0] in output, output[-2000:]


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
  """Acceptance test 21: before step 1, on all hosts; rows that the devices do not divide too."""
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

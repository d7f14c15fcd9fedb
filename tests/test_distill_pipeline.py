"""From a teacher to students: the halving loop of experiments.distill, consistency distillation."""

import json
import re
import sys

import jax
import numpy as np
import pytest
import recipes
from absl import flags
from absl.testing import flagsaver
from test_launchers import launch

from experiments import distill
from jaxgen import noise
from jaxgen.core import checkpoint, loop, method

PD = "diffusion/progressive_distillation.py"
same = lambda a, b: all(jax.tree.leaves(jax.tree.map(lambda x, y: (x == y).all(), a, b)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
  """A folder with a trained teacher, and a config file of small students."""
  folder = tmp_path_factory.mktemp("distill")
  loop.run(recipes.small(PD), folder / "teacher")
  text = f"import recipes\nget_config = lambda: recipes.small({PD!r})\n"
  (folder / "small.py").write_text(text)
  return folder


@pytest.fixture(scope="module")
def command(runs):
  given = [f"--config={runs / 'small.py'}", f"--teacher={runs / 'teacher'}", f"--workdir={runs}"]
  return ["distill", *given, "--config.args.tx.lr=0.01", "--from_steps=8", "--to_steps=2"]


@pytest.fixture
def parsed(command, monkeypatch):
  """The command's flags, for `distill.main` in this process."""
  monkeypatch.setattr(sys, "argv", command)  # where --config looks for fields of its own
  with flagsaver.flagsaver():
    flags.FLAGS(command)
    yield


@pytest.mark.evidence("D06", "M")
def test_students_halve_the_steps_and_start_as_their_teachers(runs, command, parsed, capfd):
  first = launch(*command)
  assert first.returncode == 0, first.stderr[-2000:]
  before, teacher = checkpoint.load(runs / "teacher")[1], "net_ema"
  for steps in (4, 2):
    made, vars = checkpoint.load(runs / str(steps))
    config = json.loads((runs / str(steps) / "config.json").read_text())
    assert config["args"]["steps"] == steps
    assert config["init_from"]["net"] == config["init_from"]["teacher/net"]
    assert same(vars.params["teacher"]["net"], before.params[teacher])  # the averaged network
    assert not same(vars.params["net"], before.params[teacher])
    sample = lambda vars, keys, made=made: made.fns["sample"](vars, keys)["image"]
    text = str(jax.make_jaxpr(sample)(vars, noise.rows(jax.random.key(0), 2)))
    assert re.findall(r"length=(\d+)", text) == [str(steps)]
    before = vars
  # Again, and further: what is done stays as it is.
  files = lambda n: {p: p.stat().st_mtime_ns for p in (runs / n / "checkpoints").rglob("*")}
  done = files("4") | files("2")
  with flagsaver.flagsaver(to_steps=1):
    distill.main()
  assert "".join(capfd.readouterr()).count("nothing to train") == 2
  assert files("4") | files("2") == done and len(files("1")) > 0


def refused(words, **given):
  with flagsaver.flagsaver(**given), pytest.raises(ValueError, match=re.escape(words)):
    distill.main()


def test_bad_pipelines_are_refused(runs, parsed):
  for n, last in [(8, 3), (6, 1), (8, 8), (4, 8)]:
    words = f"--from_steps={n}: expected --to_steps={last} times 2, 4, 8, ..."
    refused(words, from_steps=n, to_steps=last)
  (runs / "other").mkdir()
  text = (runs / "teacher/config.json").read_text().replace("progressive_distillation", "ddpm")
  (runs / "other/config.json").write_text(text)
  refused("expected a run of diffusion.progressive", teacher=str(runs / "other"))


@pytest.mark.evidence("D08", "M")
def test_a_consistency_model_starts_from_a_teacher(runs):
  teacher = recipes.small(PD)
  config = recipes.smoke("diffusion/consistency.py")
  args = {"net": teacher.args.net, "net_args": teacher.args.net_args.to_dict()}
  config.args.denoiser.args = args
  config.args.tx.lr = 1e-2
  config.train.sample_every = 0
  config.init_from = {name: str(runs / "teacher") for name in ("teacher", "net")}
  loop.run(config, runs / "consistency")
  made, vars = checkpoint.load(runs / "consistency")
  averaged = checkpoint.load(runs / "teacher")[1].params["net_ema"]
  assert same(vars.params["teacher"]["net"], averaged)
  assert not same(vars.params["net"]["net"], averaged)
  rows = noise.rows(jax.random.key(1), 5)
  label = np.arange(5, dtype=np.int32)
  sample = jax.jit(lambda vars: made.fns["sample"](vars, rows, {"label": label})["image"])
  x = sample(method.averaged(made, vars))
  assert x.shape == (5, 8, 8, 1) and np.abs(x).max() <= 1.0 and np.isfinite(x).all()

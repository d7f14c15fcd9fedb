"""What the README says to type works; a newcomer needs nothing else."""

import re
import subprocess
import sys

import commands
import numpy as np
import processes
import pytest
from PIL import Image

from jaxgen import index, results

README = (commands.ROOT / "README.md").read_text()
SHELL = "\n".join(commands.blocks("README.md", "sh"))
EVERY = commands.modules("\n".join([SHELL, *re.findall(r"`(python -m [^`]+)`", README)]))
SMALL = "--config.train.steps=2 --config.train.sample_every=0 --config.train.checkpoint_every=2"
MLP = "--config.args.net_args.width=16 --config.args.net_args.depth=1 --config.train.eval_every=0"
UNET = "--config.args.n_classes=0"  # the smoke variant has ten
DOWNLOADS = "--config=configs/diffusion/ddpm.py:cifar10 --workdir=runs/ddpm".split()


def found(module):
  """[words of every command of the README that starts a module so named]."""
  return [words for words in EVERY if words[1].startswith(module)]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
  """Where a newcomer stands: the project's folders, photos of their own, no runs yet."""
  here = tmp_path_factory.mktemp("home")
  for name in ("configs", "experiments", "jaxgen"):
    (here / name).symlink_to(commands.ROOT / name)
  for i in range(20):
    file = here / f"photos/train/{'ab'[i % 2]}/{i}.png"
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(i).integers(0, 256, (70, 80, 3), np.uint8)).save(file)
  return here


def run(home, *words, **environment):
  environment = {**processes.environment(), "PYTHONPATH": str(home), **environment}
  command = [sys.executable, *words]
  result = subprocess.run(command, cwd=home, env=environment, text=True, capture_output=True)
  assert result.returncode == 0, (words, result.stderr[-2000:])
  return result.stdout + result.stderr


def smoke(words):
  """The same command with a tiny network, for two steps."""
  small = [word.replace(":cifar10", ":smoke") for word in words] + SMALL.split()
  return small + (MLP if ":digits" in " ".join(words) else UNET).split()


@pytest.fixture(scope="module")
def digits(home):
  """The README's first run."""
  words = next(w for w in found("experiments.train") if "--workdir=runs/digits" in w)
  run(home, *smoke(words))
  return home


@pytest.mark.parametrize("words", found("experiments.sample"), ids=" ".join)
def test_sampling(words, digits):
  assert "samples: " in run(digits, *words)


@pytest.fixture(scope="module")
def classifier(digits):
  """The README's extractor."""
  words = next(w for w in found("experiments.train") if "--workdir=runs/classifier" in w)
  run(digits, *[w.replace(":digits", ":smoke") for w in words])
  return digits


@pytest.mark.parametrize(
  "words", [w for w in found("experiments.evaluate") if "--workdir=runs/digits" in w], ids=" ".join
)
def test_evaluating(words, classifier):
  few = [w.replace("--samples=1500", "--samples=50") for w in words]
  output = run(classifier, *few, JAXGEN_CACHE=str(classifier))
  assert "bits/dim" in output and ("FD-Classifier" in output) == ("--extractors" in " ".join(words))


@pytest.mark.parametrize(
  "words",
  [
    w
    for w in found("experiments.train")
    if w[-1] not in ("--workdir=runs/digits", "--workdir=runs/classifier")
    and w[2:] != DOWNLOADS
    and "--config.train.steps=0" not in w  # of public weights: tests/test_convert.py
  ],
  ids=lambda words: words[2],
)
def test_training(words, home):
  """Also your own images; with the variables in front of the command."""
  (line,) = [x for x in commands.lines(SHELL) if words in commands.modules(x)]
  environment = dict(re.findall(r"^(\w+)=(\S+) ", line))
  output = run(home, *smoke(words), **environment)
  assert f"on {8 if environment else 1} devices" in output


@pytest.mark.parametrize("words", found("jaxgen.index"), ids=" ".join)
def test_finding(words, home):
  run(home, *words)


@pytest.mark.parametrize("code", commands.blocks("README.md", "python"))
def test_python(code, home):
  run(home, "-c", code)


def test_every_kind_of_block_is_accounted_for():
  assert set(re.findall(r"^```(\w*)$", README, re.M)) == {"sh", "python", "bibtex", ""}
  known = r"(\w+=\S+ )?python -m |make \w+|pip install -e "
  assert all(re.match(known, line) for line in commands.lines(SHELL))
  for words in EVERY:
    commands.check(words)


def test_make_targets_extras_and_links_exist():
  makefile = (commands.ROOT / "Makefile").read_text()
  for target in re.findall(r"\bmake ([a-z][a-z-]*)\b", README):
    assert f"\n{target}: " in makefile, target
  extras = (commands.ROOT / "setup.cfg").read_text().split("[options.extras_require]")[1]
  for extra in re.findall(r"\.\[(\w+)\]", README):
    assert f"\n{extra} =" in extras, extra
  for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
    assert (commands.ROOT / link).exists(), link


def test_the_table_of_systems_is_what_is_here():
  rows = re.findall(
    r"^\| ([A-Z]\d\d) \| (.+?) \| \[(.+?)\].* \| `(.+?)` \| `(.+?)` \|$", README, re.M
  )
  assert rows == [(s.id, s.name, s.paper, s.module, s.config) for s in index.here()]


def test_the_counts_of_tests_and_equation_numbers_are_reached():
  files = [
    p for f in ("jaxgen", "experiments", "configs") for p in (commands.ROOT / f).rglob("*.py")
  ]
  numbers = sum(len(re.findall(r"\bEqs?\.? ?\(?\d+", path.read_text())) for path in files)
  tests = sum(
    len(re.findall(r"^def test", path.read_text(), re.M))
    for path in (commands.ROOT / "tests").rglob("*.py")
  )
  claimed = re.search(r"^\| jaxgen \|.*\| (\d+) \| (\d+) \| no \|$", README, re.M)
  assert int(claimed[1]) <= tests and int(claimed[2]) <= numbers


def test_results_are_those_of_the_ledger():
  """Every row of the README's short table has its file, and a number that the file rounds to."""
  rows = results.read(commands.ROOT / "results")
  table = README.split("## Results")[1].split("## How")[0]
  named = re.findall(r"^\| `(\w+)\.py:(\w+)` \| .+? \| (.+?) \| ([\d,]+) steps", table, re.M)
  assert len(named) == sum(bool(row["runs"]) for row in rows.values())
  for model, variant, text, steps in named:
    row = rows[f"{model}_{variant}"]
    assert f"{row['steps']:,}" == steps
    values = [[r["values"][name] for r in row["runs"]] for name in row["measures"]]
    known = {f"{np.mean(v):.{digits}f}" for v in values for digits in (1, 2, 3)}
    known |= {f"{np.std(v, ddof=1):.2f}" for v in values if len(v) > 1}
    shown = set(re.findall(r"\d+\.\d+", text))
    assert shown and shown <= {k.lstrip("-") for k in known}, (model, text)

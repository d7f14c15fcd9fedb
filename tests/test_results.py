"""The ledger: what `experiments.evaluate --row` writes, and what it refuses to."""

import json

import pytest

from jaxgen import index, results
from jaxgen.core import checkpoint
from jaxgen.core import config as config_lib
from jaxgen.metrics import evaluation

NATS = {"value": -48.1234567, "n": 500, "how": "new words", "extractor": None, "reference": None}
EFFNET = {"name": "EffNetLite0", "sha256": "0123456789abcdef"}
FD = {
  "value": 3.25,
  "n": 1500,
  "how": "samples",
  "extractor": EFFNET,
  "reference": {"data": "mnist16 train, 16x16x1", "n": 10_000, "hash": "fedcba9876543210"},
}


@pytest.fixture
def path(tmp_path):
  """A row of a config of ours, not run."""
  row = json.loads((index.ROOT / "results/vae_mnist16.json").read_text())
  row |= {"runs": [], "measures": {}}
  path = tmp_path / "row.json"
  path.write_text(json.dumps(row))
  return path


def run(folder, seed=0, commit="abcdef0", **args):
  """What a run of that config leaves, 20 steps in a minute and 29,980 in two."""
  config = config_lib.read("configs/vae/vae.py:mnist16")
  config.train.seed = seed
  config.args.update(args)
  workdir = checkpoint.open_workdir(folder)
  workdir.mkdir(parents=True, exist_ok=True)
  config_lib.snapshot(config, workdir)
  launch = {"step": 0, "commit": commit, "hardware": "2 CPU cores", "jax": "0"}
  (workdir / "launches.jsonl").write_text(json.dumps(launch) + "\n")
  lines = [{"step": 20, "steps_per_s": 1 / 3}, {"step": 20, "eval/nats": 0.0}]
  lines += [{"step": 30_000, "steps_per_s": 29_980 / 120}]
  (workdir / "metrics.jsonl").write_text("".join(json.dumps(x) + "\n" for x in lines))
  return workdir


def test_measures_go_into_the_row(path, tmp_path):
  results.record(path, run(tmp_path / "0"), {"nats": NATS})
  results.record(path, run(tmp_path / "0"), {"FD-EffNetLite0": FD})
  results.record(path, run(tmp_path / "1", seed=1), {"nats": NATS | {"value": -47.0}})
  row = json.loads(path.read_text())
  first = {"seed": 0, "hardware": "2 CPU cores", "minutes": 3.0, "commit": "abcdef0"}
  assert row["runs"] == [
    first | {"values": {"nats": -48.1235, "FD-EffNetLite0": 3.25}},
    first | {"seed": 1, "values": {"nats": -47.0}},
  ]
  assert row["measures"]["nats"]["how"] == "new words"
  told = {k: v for k, v in FD.items() if k != "value"} | {"paper": None, "source": None}
  assert row["measures"]["FD-EffNetLite0"] == told
  assert results.ours(row, "nats") == "-47.56 +- 0.79 (2 seeds)"
  assert results.ours(row, "FD-EffNetLite0") == "3.25 (1 seed)"
  anew = run(tmp_path / "0", commit="0000000")
  with pytest.raises(ValueError, match="the run of commit abcdef0 has FD-EffNetLite0 too"):
    results.record(path, anew, {"nats": NATS | {"value": -1.0}})
  results.record(path, anew, {"nats": NATS | {"value": -1.0}, "FD-EffNetLite0": FD})
  assert json.loads(path.read_text())["runs"][0]["values"] == {"nats": -1.0, "FD-EffNetLite0": 3.25}


def test_what_would_mislead_is_refused(path, tmp_path):
  before = path.read_text()
  with pytest.raises(ValueError, match="is of configs/vae/vae.py:mnist16, 30000 steps"):
    results.record(path, run(tmp_path / "a", width=100), {"nats": NATS})
  with pytest.raises(ValueError, match=r"launches.jsonl: commit abcdef0\+: expected one"):
    results.check_fits(path, run(tmp_path / "b", commit="abcdef0+"))
  workdir = run(tmp_path / "e")
  (workdir / "launches.jsonl").unlink()
  with pytest.raises(ValueError, match="launches.jsonl does not exist"):
    results.check_fits(path, workdir)
  lines = (workdir / "metrics.jsonl").read_text().splitlines(keepends=True)
  (workdir / "metrics.jsonl").write_text("".join(lines[:2]))
  with pytest.raises(ValueError, match="is another run, at step 20"):
    results.check_fits(path, workdir)
  with pytest.raises(ValueError, match="expected finite numbers"):
    results.record(path, run(tmp_path / "c"), {"nats": NATS | {"value": float("nan")}})
  assert path.read_text() == before
  results.record(path, run(tmp_path / "c"), {"FD-EffNetLite0": FD})
  other = FD | {"reference": FD["reference"] | {"hash": "0" * 16}}
  with pytest.raises(ValueError, match="FD-EffNetLite0 of other seeds has .*: expected the same"):
    results.record(path, run(tmp_path / "d", seed=1), {"FD-EffNetLite0": other})


@pytest.mark.parametrize("key", results.read(index.ROOT / "results"))
def test_rows_have_measures_that_exist(key):
  row = results.read(index.ROOT / "results")[key]
  assert row["measures"].keys() <= evaluation.labels()
  for name, measure in row["measures"].items():
    of_features = name.partition("-")[2] or name in evaluation.PAPERS.values()
    if any(name in r["values"] for r in row["runs"]) and of_features:
      assert measure["extractor"] and (measure["reference"] or name.startswith(("IS", "Inc")))
      assert f"--row=results/{key}.json" in " ".join(row["repeat"])

"""The measured runs: results/*.json, one file a config on one data set, the rows of RESULTS.md.

A file has the fields of `FIELDS`; each of its runs, one a seed, those of `RUN`, and each of its
measures those of `MEASURE`. A measure is called by its unit where it has one. A file without runs
says so: its commands are ready and were not run.
"""

import itertools
import json
import math
import re
import statistics

from jaxgen.core import config as config_lib

_text = lambda v: isinstance(v, str) and v.strip() != ""
_count = lambda v: isinstance(v, int) and not isinstance(v, bool) and v > 0
_number = lambda v: isinstance(v, (int, float)) and not isinstance(v, bool) and math.isfinite(v)
_maybe = lambda ok: lambda v: v is None or ok(v)
_object = lambda v: isinstance(v, dict)
_texts = lambda v: isinstance(v, list) and v != [] and all(map(_text, v))

FIELDS = {  # name -> (test, what it is)
  "system": (lambda v: _text(v) and re.fullmatch(r"[A-Z]\d\d", v), "an id of survey.toml"),
  "config": (_text, "a config and its variant, configs/vae/vae.py:mnist"),
  "data": (_text, "the data set"),
  "images": (_count, "how many training images of it"),
  "steps": (_count, "training steps"),
  "measures": (_object, "measure -> object"),
  "runs": (lambda v: isinstance(v, list), "a list of objects, one a seed"),
  "repeat": (_texts, "the commands, with seed 0"),
  "note": (_maybe(_text), "what a reader must know, or null"),
  "picture": (_maybe(_text), "a file of docs/, or null"),
}
MEASURE = {  # all but the paper's number is written by `experiments.evaluate --row`
  "paper": (_maybe(_text), "the number as the paper prints it, or null"),
  "source": (_maybe(_text), "where it prints it, or null"),
  "n": (_count, "over how many images or samples"),
  "how": (_text, "how ours is computed"),
  "extractor": (_maybe(_object), "name and sha256 of the network whose features it has, or null"),
  "reference": (_maybe(_object), "data, n and hash of what samples are compared with, or null"),
}
RUN = {
  "seed": (lambda v: isinstance(v, int) and v >= 0, "config.train.seed"),
  "hardware": (_text, "its class"),
  "minutes": (lambda v: _number(v) and v > 0, "of training steps"),
  "commit": (lambda v: _text(v) and re.fullmatch("[0-9a-f]{7,40}", v), "whose code ran"),
  "values": (_object, "measure -> number"),
}

SOAK = {  # of results/soak/soak.json, the last `make soak`
  "hardware": RUN["hardware"],
  "minutes": RUN["minutes"],
  "commit": RUN["commit"],
  "rows": (lambda v: isinstance(v, dict) and all(map(_text, v.values())), "what -> what came out"),
}


def check(where, row):
  """Raises ValueError, with the place and what is expected, unless `row` has the form above."""
  _check_fields(where, row, FIELDS)
  for name, measure in row["measures"].items():
    _check_fields(f"{where}: measures.{name}", measure, MEASURE)
    if (measure["paper"] is None) != (measure["source"] is None):
      raise ValueError(f"{where}: measures.{name}: expected paper and source, or neither")
  for i, run in enumerate(row["runs"]):
    _check_fields(f"{where}: runs[{i}]", run, RUN)
    values, names = run["values"], ", ".join(row["measures"]) or "nothing"
    if not values.keys() <= row["measures"].keys() or not all(map(_number, values.values())):
      raise ValueError(f"{where}: runs[{i}].values: expected finite numbers for {names}")
  seeds = [run["seed"] for run in row["runs"]]
  if len(set(seeds)) != len(seeds):
    raise ValueError(f"{where}: seeds {seeds}: expected each once")


def _check_fields(where, given, fields):
  if not isinstance(given, dict) or given.keys() != fields.keys():
    raise ValueError(f"{where}: expected an object with the fields {', '.join(fields)}")
  for name, (ok, what) in fields.items():
    if not ok(given[name]):
      raise ValueError(f"{where}: {name}={given[name]!r}: expected {what}")


def check_fits(path, workdir):
  """Raises ValueError where the row, the file `path`, is not of the config of a run's `workdir`."""
  row, config = json.loads(path.read_text()), config_lib.read_snapshot(workdir)
  check(path.name, row)
  plain = lambda c: json.loads(c.to_json())  # no tuples
  wanted, given = plain(config_lib.read(row["config"])), plain(config)
  same = all(wanted[key] == given[key] for key in ("model", "args"))
  if not same or row["steps"] != config.train.steps:
    raise ValueError(
      f"{path} is of {row['config']}, {row['steps']} steps: {workdir} is another run"
    )


def record(path, workdir, measures):
  """Writes the measures of the run in `workdir` into a row, the file `path`.

  measures: name -> {"value", "n", "how", "extractor", "reference"}. The run is known by its seed;
  what was measured before stays, unless other code has trained it since.

  Raises ValueError as `check_fits`, where a measure was computed in another way for another seed,
  and where the run was not launched from a commit.
  """
  check_fits(path, workdir)
  row, seed = json.loads(path.read_text()), config_lib.read_snapshot(workdir).train.seed
  lines = (workdir / "launches.jsonl").read_text().splitlines()
  launch = json.loads(lines[-1])
  run = {"seed": seed, "hardware": launch["hardware"], "minutes": _minutes(workdir)}
  run |= {"commit": launch["commit"], "values": {}}
  others = [r for r in row["runs"] if r["seed"] != seed]
  for before in row["runs"]:
    if before["seed"] == seed and before["commit"] == run["commit"]:
      run["values"] = before["values"]
  for name, measure in measures.items():
    known = row["measures"].get(name, {"paper": None, "source": None})
    new = {k: known[k] for k in ("paper", "source")} | measure
    del new["value"]
    if "how" in known and not measure["extractor"]:
      new["how"] = known["how"]  # which says what the model's density is
    if new != known and any(name in r["values"] for r in others):
      raise ValueError(f"{path}: {name} of other seeds has {known}: expected the same as {new}")
    row["measures"][name] = new
    run["values"][name] = float(f"{measure['value']:.6g}")
  row["runs"] = sorted([*others, run], key=lambda r: r["seed"])
  check(path.name, row)
  path.write_text(json.dumps(row, indent=1) + "\n")


def _minutes(workdir):
  """Of training steps, without compiling, pictures and evaluation."""
  lines = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
  speeds = {x["step"]: x["steps_per_s"] for x in lines if "steps_per_s" in x}
  steps = [0, *speeds]
  return float(f"{sum((b - a) / speeds[b] for a, b in itertools.pairwise(steps)) / 60:.2g}")


def read_soak(folder):
  """The checked content of folder/soak/soak.json. Raises ValueError for another form."""
  row = json.loads((folder / "soak/soak.json").read_text())
  _check_fields("soak.json", row, SOAK)
  return row


def read(folder):
  """Name -> checked row, of the JSON files of a folder, by name. Raises ValueError as `check`."""
  rows = {}
  for path in sorted(folder.glob("*.json")):
    rows[path.stem] = json.loads(path.read_text())
    check(path.name, rows[path.stem])
  return rows


def ours(row, name):
  """Mean and standard deviation of a measure over the seeds, as text."""
  values = [run["values"][name] for run in row["runs"] if name in run["values"]]
  if not values:
    return "not run"
  spread = f" +- {statistics.stdev(values):.2g}" if len(values) > 1 else ""
  return f"{statistics.mean(values):.4g}{spread} ({len(values)} seed{'s' * (len(values) > 1)})"

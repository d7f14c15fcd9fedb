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
  "steps": (lambda v: v == 0 or _count(v), "training steps"),
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
  "minutes": (lambda v: _number(v) and v >= 0, "of training steps"),
  "commit": (lambda v: _text(v) and re.fullmatch("[0-9a-f]{7,40}", v), "whose code ran"),
  "values": (_object, "measure -> number"),
}

SOAK = {  # of results/soak/soak.json, the last `make soak`
  "hardware": RUN["hardware"],
  "minutes": RUN["minutes"],
  "commit": RUN["commit"],
  "rows": (lambda v: isinstance(v, dict) and all(map(_text, v.values())), "what -> what came out"),
}


COMPARISON = {  # of results/comparisons/*.json, whose numbers `experiments.compare` writes
  "title": (_text, "what is compared"),
  "note": (_text, "what a reader must know, and what came out"),
  "n": (_count, "how many samples each"),
  "measures": (_texts, "names of metrics.evaluation"),
  "rows": (lambda v: isinstance(v, list) and v != [], "a list of objects"),
  "runs": (_object, "name -> what `of_run` tells of it, empty before"),
  "facts": (_object, "measure -> its extractor and reference, empty before"),
  "repeat": (_texts, "the commands"),
  "picture": (_maybe(_text), "a file of docs/, or null"),
}
FACTS = ("extractor", "reference")  # of a measure in a comparison
COMPARED = {
  "name": (_text, "a sampler, a model"),
  "run": (_text, "a name"),
  "evaluations": (_count, "of the network, a sample"),
  "options": (_object, "keywords of the method's sample"),
  "measured": (lambda v: isinstance(v, bool), "true, or false for the picture alone"),
  "values": (_object, "measure -> number, empty before"),
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
  """{"seed", "hardware", "minutes", "commit"} of the run in `workdir`, for the row, a file `path`.

  Raises ValueError where the row is of another config, where the run is not at its last step, and
  where it was not trained by the code of one commit, without changes.
  """
  row, config = json.loads(path.read_text()), config_lib.read_snapshot(workdir)
  check(path.name, row)
  plain = lambda c: json.loads(c.to_json())  # no tuples
  wanted, given = plain(config_lib.read(row["config"])), plain(config)
  same = all(wanted[key] == given[key] for key in ("model", "args"))
  same &= all(wanted["data"][key] == given["data"][key] for key in ("batch_size", "flip"))
  at = max((line["step"] for line in _metrics(workdir)), default=0)
  if not same or not row["steps"] == config.train.steps == at:
    raise ValueError(
      f"{path} is of {row['config']}, {row['steps']} steps: {workdir} is another run, at step {at}"
    )
  return of_run(workdir)


def of_run(workdir):
  """{"seed", "hardware", "minutes", "commit"} of the run in `workdir`.

  Raises ValueError where it was not trained by the code of one commit, without changes.
  """
  config = config_lib.read_snapshot(workdir)
  launches = workdir / "launches.jsonl"
  if not launches.exists():
    raise ValueError(f"{launches} does not exist: expected a run that tells the commit of its code")
  told = [json.loads(line) for line in launches.read_text().splitlines()]
  for name in ("commit", "hardware"):
    values = sorted({str(line[name]) for line in told})
    if len(values) > 1 or not RUN[name][0](values[0]):
      raise ValueError(f"{launches}: {name} {', '.join(values)}: expected one, {RUN[name][1]}")
  speeds = {x["step"]: x["steps_per_s"] for x in _metrics(workdir) if "steps_per_s" in x}
  ends = [0, *sorted(speeds)]
  seconds = sum((b - a) / speeds[b] for a, b in itertools.pairwise(ends))
  run = {"seed": config.train.seed, "hardware": told[0]["hardware"]}
  return run | {"minutes": float(f"{seconds / 60:.2g}"), "commit": told[0]["commit"]}


def _metrics(workdir):
  """Lines of metrics.jsonl; a run of no steps has none."""
  path = workdir / "metrics.jsonl"
  return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def record(path, workdir, measures):
  """Writes the measures of the run in `workdir` into a row, the file `path`.

  measures: name -> {"value", "n", "how", "extractor", "reference"}. The run is known by its seed
  and commit; what was measured of it before stays.

  Raises ValueError as `check_fits`, where a measure was computed in another way for another seed,
  and where a measure of this seed, trained by other code, would be lost.
  """
  run = check_fits(path, workdir) | {"values": {}}
  row = json.loads(path.read_text())
  others = [r for r in row["runs"] if r["seed"] != run["seed"]]
  for before in row["runs"]:
    if before["seed"] == run["seed"]:
      lost = before["values"].keys() - measures.keys() if before["commit"] != run["commit"] else ()
      if lost:
        raise ValueError(
          f"{path}: the run of commit {before['commit']} has {', '.join(sorted(lost))} too"
        )
      run["values"] = before["values"]
  for name, measure in measures.items():
    known = row["measures"].get(name, {"paper": None, "source": None})
    new = {k: known[k] for k in ("paper", "source")} | measure
    del new["value"]
    if new != known and any(name in r["values"] for r in others):
      raise ValueError(f"{path}: {name} of other seeds has {known}: expected the same as {new}")
    row["measures"][name] = new
    run["values"][name] = float(f"{measure['value']:.6g}")
  row["runs"] = sorted([*others, run], key=lambda r: r["seed"])
  check(path.name, row)
  path.write_text(json.dumps(row, indent=1) + "\n")


def check_comparison(where, table):
  """Raises ValueError, with the place and what is expected, unless `table` is a COMPARISON."""
  _check_fields(where, table, COMPARISON)
  for name, run in table["runs"].items():
    _check_fields(f"{where}: runs.{name}", run, {k: v for k, v in RUN.items() if k != "values"})
  for name, fact in table["facts"].items():
    _check_fields(f"{where}: facts.{name}", fact, {k: MEASURE[k] for k in FACTS})
  for i, row in enumerate(table["rows"]):
    _check_fields(f"{where}: rows[{i}]", row, COMPARED)
    if not all(map(_number, row["values"].values())):
      raise ValueError(f"{where}: rows[{i}].values: expected finite numbers")


def read_soak(folder):
  """The checked content of folder/soak/soak.json. Raises ValueError for another form."""
  row = json.loads((folder / "soak/soak.json").read_text())
  _check_fields("soak.json", row, SOAK)
  return row


def read(folder, check=check):
  """Name -> checked content, of the JSON files of a folder, by name. Raises ValueError as `check`.

  check: the function above, for rows, or `check_comparison`.
  """
  found = {}
  for path in sorted(folder.glob("*.json")):
    found[path.stem] = json.loads(path.read_text())
    check(path.name, found[path.stem])
  return found


def ours(row, name):
  """Mean and standard deviation of a measure over the seeds, as text."""
  values = [run["values"][name] for run in row["runs"] if name in run["values"]]
  if not values:
    return "not run"
  spread = f" +- {statistics.stdev(values):.2g}" if len(values) > 1 else ""
  return f"{statistics.mean(values):.4g}{spread} ({len(values)} seed{'s' * (len(values) > 1)})"

r"""Samples of several runs, or of one by several samplers, in one table and one picture.

python -m experiments.compare --table=results/comparisons/samplers_mnist16.json
    --runs=teacher:runs/teacher,student:runs/pd/4 --extractors=classifier:runs/classifier
    --picture=docs/samplers_mnist16.png
The table says what to compare (`results.COMPARISON`); its numbers are written by this command, from
the same noise, labels in turn, for every row, against the training data of the first row's run. A
row with `measured` false is only in the picture.
"""

import json
import pathlib

import jax
import numpy as np
from absl import flags

from experiments import launch
from jaxgen import results
from jaxgen.core import checkpoint, inference, loop, parallel, report
from jaxgen.core import config as config_lib
from jaxgen.core import method as method_lib
from jaxgen.data import pipeline
from jaxgen.metrics import evaluation, extractors

TABLE = flags.DEFINE_string("table", None, "A file of results/comparisons.", required=True)
RUNS = flags.DEFINE_list("runs", None, "NAME:FOLDER of the runs that it names.", required=True)
EXTRACTORS = flags.DEFINE_list("extractors", "", "KIND:FILE, of which features are measured.")
PICTURE = flags.DEFINE_string("picture", None, "A PNG, one row of samples a row.")
REFERENCE_N = flags.DEFINE_integer("reference_n", None, "First training images.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of samples.", lower_bound=0)
COLUMNS, BATCH_SIZE = 10, 100


def measure(row, run, networks, names, n, real):
  """Writes the numbers of a row of the table; returns what each was measured with."""
  method, vars, config = run
  key, conditions = loop.root_keys(SEED.value).sample, inference.conditions(config, method, n)
  judged = evaluation.draw_samples(method, vars, key, conditions, **row["options"])
  found = evaluation.compare(names, networks, judged, real, BATCH_SIZE)
  row["values"] = {label: float(f"{x['value']:.6g}") for label, x in found.items()}
  print(json.dumps({row["name"]: row["values"]}), flush=True)
  return {label: {k: x[k] for k in results.FACTS} for label, x in found.items()}


def picture(row, run):
  """A few samples of a row of the table, of classes in turn."""
  method, vars, config = run
  conditions = inference.conditions(config, method, COLUMNS)
  cond = conditions.cond(pipeline.load(conditions, np.arange(COLUMNS)))
  draw = inference.sampler(method, COLUMNS, **row["options"])
  return draw(vars, loop.root_keys(SEED.value).sample, COLUMNS, cond)["image"]


def main():
  path = pathlib.Path(TABLE.value)
  table = json.loads(path.read_text())
  results.check_comparison(path.name, table)
  folders, used = dict(run.split(":", 1) for run in RUNS.value), {r["run"] for r in table["rows"]}
  method_lib.check("--runs", ", ".join(folders), used == folders.keys(), ", ".join(sorted(used)))
  networks = [extractors.load(spec) for spec in EXTRACTORS.value]
  told = dict(run=True, real=False, moments=False, vocabulary=False)
  evaluation.check(table["measures"], networks, **told)
  runs, table["runs"], table["facts"] = {}, {}, {}
  for name, folder in folders.items():
    workdir = checkpoint.open_workdir(folder)
    table["runs"][name] = results.of_run(workdir)
    method, vars = checkpoint.load(folder, launch.FALLBACK.value)
    runs[name] = method, parallel.replicate(vars), config_lib.read_snapshot(workdir)
  for row in table["rows"]:  # refused before anything is drawn
    method, vars, config = runs[row["run"]]
    launch.options(json.dumps(row["options"]), method.fns["sample"])
    loop.trace_sample(config, method, vars, **row["options"])
  data = runs[table["rows"][0]["run"]][2].data
  real = evaluation.open_data(data.source, "train", REFERENCE_N.value, data.image_size)
  for row in table["rows"]:
    if row["measured"]:
      told = (networks, table["measures"], table["n"], real)
      table["facts"] = measure(row, runs[row["run"]], *told)
  pictures = [picture(row, runs[row["run"]]) for row in table["rows"] if PICTURE.value]
  if jax.process_index():
    return
  results.check_comparison(path.name, table)
  path.write_text(json.dumps(table, indent=1) + "\n")
  if PICTURE.value:
    report.save_png(pathlib.Path(PICTURE.value), report.grid(np.concatenate(pictures), COLUMNS))


if __name__ == "__main__":
  launch.run(main)

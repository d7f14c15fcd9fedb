r"""Samples of several runs, or of one by several samplers, in one table and one picture.

python -m experiments.compare --table=results/comparisons/samplers_mnist16.json
    --runs=teacher:runs/teacher,student:runs/pd/4 --extractors=classifier:runs/classifier
    --picture=docs/samplers_mnist16.png
The table says what to compare (`results.COMPARISON`); its numbers are written by this command, from
the same noise, labels in turn, for every row. A row with `measured` false is only in the picture.
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
from jaxgen.data import sources
from jaxgen.metrics import evaluation, extractors

TABLE = flags.DEFINE_string("table", None, "A file of results/comparisons.", required=True)
RUNS = flags.DEFINE_list("runs", None, "NAME:FOLDER of the runs that it names.", required=True)
EXTRACTORS = flags.DEFINE_list("extractors", "", "KIND:FILE, of which features are measured.")
PICTURE = flags.DEFINE_string("picture", None, "A PNG, one row of samples a row.")
REFERENCE_N = flags.DEFINE_integer("reference_n", None, "First training images.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of samples.", lower_bound=0)
COLUMNS, BATCH_SIZE = 10, 100


def main():
  path, key = pathlib.Path(TABLE.value), loop.root_keys(SEED.value).sample
  table = json.loads(path.read_text())
  results.check_comparison(path.name, table)
  folders = dict(run.split(":", 1) for run in RUNS.value)
  missing = sorted({row["run"] for row in table["rows"]} - folders.keys())
  method_lib.check("--runs", ", ".join(folders), not missing, f"{', '.join(missing)} too")
  networks = [extractors.load(spec) for spec in EXTRACTORS.value]
  told = dict(run=True, real=False, moments=False, vocabulary=False)
  evaluation.check(table["measures"], networks, **told)
  table["runs"] = {name: results.of_run(checkpoint.open_workdir(f)) for name, f in folders.items()}
  runs = {name: checkpoint.load(folder, launch.FALLBACK.value) for name, folder in folders.items()}
  for row in table["rows"]:
    method, vars = runs[row["run"]]
    launch.options(json.dumps(row["options"]), method.fns["sample"])
  facts, pictures = {}, []
  for row in table["rows"]:
    (method, vars), folder = runs[row["run"]], checkpoint.open_workdir(folders[row["run"]])
    config, vars = config_lib.read_snapshot(folder), parallel.replicate(vars)
    n_classes = config.args.get("n_classes", 0)
    if row["measured"]:
      spec, size = config.data.source, config.data.image_size or None
      source = sources.open_source(spec, "train", image_size=size)
      n = min(REFERENCE_N.value or len(source), len(source))
      real = evaluation.Data(source, spec, "train", n)
      judged = evaluation.draw_samples(method, vars, key, table["n"], n_classes, **row["options"])
      found = evaluation.compare(table["measures"], networks, judged, real, BATCH_SIZE)
      row["values"] = {name: float(f"{x['value']:.6g}") for name, x in found.items()}
      facts = {name: {k: x[k] for k in ("extractor", "reference")} for name, x in found.items()}
      print(json.dumps({row["name"]: row["values"]}), flush=True)
    if PICTURE.value:
      draw = inference.sampler(method, COLUMNS, **row["options"])
      cond = {"label": np.arange(COLUMNS, dtype=np.int32) % n_classes} if n_classes else {}
      pictures.append(draw(vars, jax.random.clone(key), COLUMNS, cond)["image"])
  if jax.process_index():
    return
  table["facts"] = facts
  results.check_comparison(path.name, table)
  path.write_text(json.dumps(table, indent=1) + "\n")
  if PICTURE.value:
    report.save_png(pathlib.Path(PICTURE.value), report.grid(np.concatenate(pictures), COLUMNS))


if __name__ == "__main__":
  launch.run(main)

r"""Samples from a run: a PNG grid and an npz beside its checkpoints.

python -m experiments.sample --workdir=runs/ddpm --n=64 [--label=3]
    [--options='{"name": "ddim", "steps": 50, "eta": 0.0, "w": 1.5}']
"""

import jax
import numpy as np
from absl import flags

from experiments import launch
from jaxgen.core import checkpoint, inference, loop, parallel, report
from jaxgen.core import config as config_lib
from jaxgen.core import method as method_lib
from jaxgen.data import pipeline

WORKDIR = flags.DEFINE_string("workdir", None, "Folder or bucket of the run.", required=True)
N = flags.DEFINE_integer("n", None, "Samples; by default a grid, one class a row.", lower_bound=1)
LABEL = flags.DEFINE_integer("label", None, "The class of every sample.", lower_bound=0)
SEED = flags.DEFINE_integer("seed", 0, "Sample i of a seed is always the same.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer("batch_size", 64, "Samples at a time.", lower_bound=1)
OPTIONS = flags.DEFINE_string("options", "{}", "Keywords of the method's sample, as JSON.")
OUT = flags.DEFINE_string("out", "sample", "Name of the two files.")


def main():
  method, vars = checkpoint.load(WORKDIR.value, launch.FALLBACK.value)
  method_lib.check("workdir", WORKDIR.value, "sample" in method.fns, "a model that samples")
  options = launch.options(OPTIONS.value, method.fns["sample"])
  workdir = checkpoint.open_workdir(WORKDIR.value)
  config = config_lib.read_snapshot(workdir)
  n_classes = config.args.get("n_classes", 0)
  n, cond = loop.grid_cond(config, method, N.value)
  if LABEL.value is not None:
    if LABEL.value >= n_classes:
      raise ValueError(f"label={LABEL.value}: expected less than n_classes={n_classes}")
    cond["label"] = np.full(n, LABEL.value, np.int32)
  draw = inference.sampler(method, min(n, BATCH_SIZE.value), **options)
  images = draw(parallel.replicate(vars), loop.root_keys(SEED.value).sample, n, cond)["image"]
  if jax.process_index():
    return
  shown = images
  if "start" in cond:  # each beside where it leads
    shown = np.stack([cond["start"], images], axis=1).reshape(2 * n, *images.shape[1:])
  report.save_png(workdir / f"{OUT.value}.png", report.grid(shown, loop.GRID_COLUMNS))
  with (workdir / f"{OUT.value}.npz").open("wb") as f:
    np.savez(f, image=pipeline.to_uint8(images), **cond)
  print(f"{n} samples: {workdir / OUT.value}.png, {workdir / OUT.value}.npz")


if __name__ == "__main__":
  launch.run(main)

r"""Reflow, and distillation: trains a rectified flow on the ends of the trajectories of a run.

python -m experiments.reflow --config=configs/flow_matching/rectified_flow.py:mnist16_reflow
    --teacher=runs/rectified_flow_mnist16 --n=20000 --workdir=runs/reflow
    [--options='{"name": "heun", "steps": 15}']
A teacher is any run with a field, whose noise has a width of 1 or which starts at data, followed by
a solver of ODEs; the student starts as its network. The pairs stay in WORKDIR/pairs.
arXiv:2209.03003, Alg. 1; survey Sec. 7.2.
"""

import json

import jax
import numpy as np
from absl import flags
from ml_collections import config_flags

from experiments import launch
from jaxgen import noise, samplers
from jaxgen.core import checkpoint, inference, loop, parallel
from jaxgen.core import config as config_lib
from jaxgen.core import method as method_lib

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder or bucket of the new run.", required=True)
TEACHER = flags.DEFINE_string(
  "teacher", None, "The run whose trajectories they are.", required=True
)
N = flags.DEFINE_integer("n", None, "How many pairs.", lower_bound=1, required=True)
OPTIONS = flags.DEFINE_string("options", "{}", "Of the teacher's sampler, as JSON.")
SEED = flags.DEFINE_integer("seed", 1, "Of the pairs.", lower_bound=0)
flags.mark_flag_as_required("config")
BATCH_SIZE = 256


def pairs(split, n):
  """{"start", "image": float32 [n, ...], "label": int32 [n]}: ends of the teacher's trajectories.

  Of data to data they start at examples of this split.
  """
  method, vars = checkpoint.load(TEACHER.value, launch.FALLBACK.value)
  config = config_lib.read_snapshot(checkpoint.open_workdir(TEACHER.value))
  check = method_lib.check
  check("--teacher", TEACHER.value, "field" in method.fns, "a run of a model with a field")
  start = "data" if "start" in method.given else "noise"
  check("--config", CONFIG.value.args.start, CONFIG.value.args.start == start, f"start={start}")
  options = launch.options(OPTIONS.value, method.fns["sample"])
  guided = {"w": options.pop("w")} if "w" in options else {}
  sampler = {**config.args.get("sampler", {}), **options}
  solves = f"--options with a name of {', '.join(samplers.SOLVERS)}: an ODE has trajectories"
  check("sampler", sampler.get("name"), sampler.get("name") in samplers.SOLVERS, solves)
  conditions = inference.conditions(config, method, n, split)

  def draw(vars, batch, keys):
    cond, (k_start, k_sample) = conditions.cond(batch), noise.split(keys)
    field = method.fns["field"](method_lib.averaged(method, vars), cond, **guided)
    check("--teacher", TEACHER.value, field.path.prior_std == 1.0, "a run with noise of width 1")
    shape = tuple(config.args.image_shape)
    start = cond.get("start", samplers.initial(field.path, k_start, shape))
    return {"start": start, "image": samplers.draw(field, k_sample, shape, sampler, start=start)}

  run = inference.by_example(draw, BATCH_SIZE)
  found = run(parallel.replicate(vars), conditions, loop.root_keys(SEED.value).sample)
  return {**found, "label": np.arange(n, dtype=np.int32) % max(conditions.n_classes, 1)}


def main():
  config, workdir = CONFIG.value, checkpoint.open_workdir(WORKDIR.value)
  given = config.args.get("coupling") == "given"
  method_lib.check("--config", config.model, given, "one with args.coupling=given")
  folder, splits = workdir / "pairs", {"train": N.value}
  if config.args.start == "data":
    splits["test"] = max(N.value // 10, 1)
  told = json.dumps({f.name: f.value for f in (TEACHER, N, OPTIONS, SEED)})
  if (folder / "of.json").exists():
    before = (folder / "of.json").read_text()
    method_lib.check("--workdir", before, before == told, f"pairs of {told}, or a new folder")
  for split, n in splits.items():
    file = folder / f"{split}.npz"
    if not file.exists():
      found = pairs(split, n)
      if jax.process_index() == 0:
        folder.mkdir(parents=True, exist_ok=True)
        config_lib.write_whole(folder / "of.json", told)
        with (folder / "new.tmp").open("wb") as f:
          np.savez(f, **found)
        (folder / "new.tmp").replace(file)
      config_lib.check_hosts({})  # it is written
  teacher = config_lib.read_snapshot(checkpoint.open_workdir(TEACHER.value))
  net = "net_ema" if teacher.args.get("ema") else "net"
  with config.unlocked():
    config.data.source, config.data.image_size = f"npz:{folder}", 0
    config.init_from = {**config.init_from, "net": f"{TEACHER.value}:{net}"}
  loop.run(config, WORKDIR.value, allow_fallback=launch.FALLBACK.value)


if __name__ == "__main__":
  launch.run(main)

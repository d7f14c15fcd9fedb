r"""What the method of a run offers on a split of its data: nats and bits per dimension.

python -m experiments.evaluate --workdir=runs/ddpm [--n=1000] [--source=npz:data/cifar10]
"""

import json

import jax
from absl import flags

from experiments import launch
from jaxgen.core import checkpoint, inference, parallel, report
from jaxgen.core import config as config_lib
from jaxgen.data import sources

WORKDIR = flags.DEFINE_string("workdir", None, "Folder or bucket of the run.", required=True)
SOURCE = flags.DEFINE_string("source", None, "In place of the run's data.source.")
SPLIT = flags.DEFINE_enum("split", "test", ["train", "test"], "Of the data.")
N = flags.DEFINE_integer("n", None, "The first so many examples; all by default.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Of the noise in a bound or an estimate.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 100, "Examples read and sent at a time; numbers do not depend on it.", lower_bound=1
)


def main():
  method, vars = checkpoint.load(WORKDIR.value, launch.FALLBACK.value)
  workdir = checkpoint.open_workdir(WORKDIR.value)
  config = config_lib.read_snapshot(workdir)
  if "log_prob" not in method.fns:
    raise ValueError(f"model={config.model!r} has nothing to evaluate: no log_prob")
  spec, size = SOURCE.value or config.data.source, config.data.image_size or None
  source = sources.open_source(spec, SPLIT.value, image_size=size)
  evaluate = inference.evaluator(method, BATCH_SIZE.value)
  key, n_classes = jax.random.key(SEED.value), config.args.get("n_classes", 0)
  numbers = evaluate(parallel.replicate(vars), source, key, limit=N.value, n_classes=n_classes)
  if jax.process_index():
    return
  result = {"source": spec, "split": SPLIT.value, "seed": SEED.value, **numbers}
  print(json.dumps(result))
  report.append(workdir / "evaluation.jsonl", json.dumps(result) + "\n")


if __name__ == "__main__":
  launch.run(main)

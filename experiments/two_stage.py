r"""Two stages: an autoencoder, then a prior over its codes; two runs, of which the second has both.

python -m experiments.two_stage --first=configs/vae/vq_vae.py:olivetti
    --second=configs/autoregressive/gated_pixelcnn.py:olivetti --workdir=runs/vq
    [--first.train.steps=500 --second.args.tx.lr=1e-3]
The runs are runs/vq/1 and runs/vq/2; a first stage that is done is not trained again. The second's
args.first_stage is what --first says. arXiv:1711.00937, Sec. 3.3; survey Box 2.
"""

from absl import flags
from ml_collections import config_flags

from experiments import launch
from jaxgen.core import config, loop, method
from jaxgen.data import sources

FIRST = config_flags.DEFINE_config_file("first", lock_config=True)
SECOND = config_flags.DEFINE_config_file("second", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder or bucket of both runs.", required=True)
flags.mark_flags_as_required(["first", "second"])


def main():
  first, second = FIRST.value, SECOND.value
  taken = {"model": first.model, "args": first.args.to_dict()}
  for table in (first, second):
    config.check(table)
    data = table.data
    sources.open_source(data.source, "train", image_size=data.image_size or None)
  codes = {"encode", "decode"} <= method.build(first.model, first.args).fns.keys()
  method.check("--first", first.model, codes, "a model that encodes and decodes")
  fits = "first_stage" in second.args
  method.check("--second", second.model, fits, "a config with args.first_stage, a second stage")
  shape, theirs = (tuple(table.args.image_shape) for table in (second, first))
  method.check("second.args.image_shape", shape, shape == theirs, f"{theirs}, the first stage's")
  with second.unlocked():
    second.args.first_stage = taken
    second.init_from = {**second.init_from, "first_stage": f"{WORKDIR.value}/1"}
  method.build(second.model, second.args)
  state = loop.run(first, f"{WORKDIR.value}/1", allow_fallback=launch.FALLBACK.value)
  if int(state.step) < first.train.steps:
    return  # stopped: the same command goes on
  loop.run(second, f"{WORKDIR.value}/2", allow_fallback=launch.FALLBACK.value)


if __name__ == "__main__":
  launch.run(main)

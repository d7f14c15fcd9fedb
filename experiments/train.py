r"""Trains a config, from where its workdir has it.

python -m experiments.train --config=configs/diffusion/ddpm.py:cifar10 --workdir=runs/ddpm
    [--config.train.parallel=pmap] [--config.args.tx.lr=1e-4] [--multihost]
"""

from absl import app, flags
from ml_collections import config_flags

from jaxgen.core import loop, parallel

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder or bucket of the run.", required=True)
MULTIHOST = flags.DEFINE_bool("multihost", False, "One of several hosts of a pod or a cluster.")
flags.mark_flag_as_required("config")


def main(_):
  parallel.start(multihost=MULTIHOST.value)
  loop.run(CONFIG.value, WORKDIR.value)


if __name__ == "__main__":
  app.run(main)

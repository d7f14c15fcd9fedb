r"""Trains a config, from where its workdir has it.

python -m experiments.train --config=configs/diffusion/ddpm.py:cifar10 --workdir=runs/ddpm
    [--config.train.parallel=pmap] [--config.args.tx.lr=1e-4] [--multihost, see TPU_SETUP.md]
    [--allow_fallback: where the newest checkpoint is damaged, from the one before]
"""

from absl import flags
from ml_collections import config_flags

from experiments import launch
from jaxgen.core import loop

CONFIG = config_flags.DEFINE_config_file("config", lock_config=True)
WORKDIR = flags.DEFINE_string("workdir", None, "Folder or bucket of the run.", required=True)
flags.mark_flag_as_required("config")


def main():
  loop.run(CONFIG.value, WORKDIR.value, allow_fallback=launch.FALLBACK.value)


if __name__ == "__main__":
  launch.run(main)

"""Configs for tests, small enough to train in seconds."""

import contextlib
import importlib
import pathlib
import sys

import ml_collections
import numpy as np
from absl import flags

from jaxgen.core import config as config_lib

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / "configs").glob("*/*.py"))
name = lambda path: f"{path.parent.name}/{path.stem}"


def smoke(path):
  """The smoke variant of a config file."""
  return config_lib.read(f"{ROOT / 'configs' / path}:smoke")


def small(path):
  """The smoke variant with an MLP in place of a UNet: compiles in a few seconds."""
  config = smoke(path)
  if config.args.get("net") == "UNet":
    config.args.net = "ResidualMLP"
    config.args.net_args = dict(width=16, depth=1)
  config.train.sample_every = config.train.eval_every = 0
  return config


@contextlib.contextmanager
def launcher(name):
  """experiments.<name>, its flags in place of those of other launchers until the block ends."""

  def taken():
    named = flags.FLAGS.flags_by_module_dict().items()
    ours = lambda m: m.startswith(("experiments.", "survivor")) and m != "experiments.launch"
    found = {m: list(v) for m, v in named if ours(m)}
    for flag in {f.name for v in found.values() for f in v}:
      delattr(flags.FLAGS, flag)
    return found

  others, module = taken(), sys.modules.get(f"experiments.{name}")
  try:
    yield importlib.reload(module) if module else importlib.import_module(f"experiments.{name}")
  finally:
    taken()
    for owner, found in others.items():
      for flag in found:
        flags.FLAGS[flag.name] = flag
        flags.FLAGS.register_flag_by_module(owner, flag)


def vectors(folder, **train):
  """A config for the methods of test_step, which are passed to `loop.run`; 50 vectors in an npz."""
  folder.mkdir(parents=True, exist_ok=True)
  data = folder / "vectors.npz"
  np.savez(data, x=np.random.default_rng(0).random((50, 16), np.float32))
  config = ml_collections.ConfigDict(smoke("diffusion/ddpm.py").to_dict())
  config.args.n_classes = 0
  config.data.update(source=f"npz:{data}", batch_size=8)
  config.train.update(steps=6, log_every=2, checkpoint_every=3, sample_every=0, eval_every=0)
  config.train.update(train)
  return config

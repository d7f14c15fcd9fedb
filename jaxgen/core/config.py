"""Configs: reading, checking, and the snapshot that a run keeps of its own."""

import difflib
import hashlib
import importlib.util
import json
import pathlib
import uuid

import jax
import ml_collections

from jaxgen.core import parallel

_whole = lambda v, least: isinstance(v, int) and not isinstance(v, bool) and least <= v < 2**31
_COUNT = (lambda v: _whole(v, 1), "a whole number, 1 or more, below 2^31")
_COUNT_OR_0 = (lambda v: _whole(v, 0), "a whole number, 0 or more, below 2^31")
_TEXT = (lambda v: isinstance(v, str) and v != "", "a name")
_TABLE = (lambda v: hasattr(v, "keys"), "a table of keywords")

# What a config holds, and what is allowed. Every key must be there, so that every flag exists.
FIELDS = {
  "model": _TEXT,  # a file below jaxgen/models: "gan.wgan_gp"
  "args": _TABLE,  # keywords of its build()
  "init_from": _TABLE,  # network -> run that it starts from
  "data": {
    "source": _TEXT,  # of data.sources: "digits", "npz:PATH", "tfds:NAME", ...
    "batch_size": _COUNT,  # of one micro-batch, over all devices and hosts
    "image_size": _COUNT_OR_0,  # resize and crop to this; 0 leaves images as they are
    "flip": (lambda v: isinstance(v, bool), "True or False"),  # left and right, at random
    "workers": _COUNT_OR_0,  # processes that load data; 0 uses threads
    "timeout": _COUNT,  # seconds without a batch after which the run ends
  },
  "train": {
    "steps": _COUNT_OR_0,  # 0 saves what the run starts from: converted weights become a run
    "log_every": _COUNT,
    "sample_every": _COUNT_OR_0,  # a grid of samples; 0 for none
    "eval_every": _COUNT_OR_0,  # what the method offers, on the test split; 0 for never
    "eval_examples": _COUNT,  # the first so many test examples
    "checkpoint_every": _COUNT,
    "seed": _COUNT_OR_0,
    "parallel": (lambda v: v in parallel.MODES, f"one of {', '.join(parallel.MODES)}"),
  },
}


def read(path):
  """The ConfigDict of "configs/gan/wgan_gp.py:smoke", a file and a variant of its get_config."""
  path, _, variant = str(path).partition(":")
  spec = importlib.util.spec_from_file_location(pathlib.Path(path).stem, path)
  module = importlib.util.module_from_spec(spec)
  spec.loader.exec_module(module)
  return module.get_config(*([variant] if variant else []))


def check(config, fields=FIELDS, where=""):
  """Raises ValueError for a key that is missing or unknown, or a value out of range."""
  for name in config:
    if name not in fields:
      near = difflib.get_close_matches(name, fields, 1, cutoff=0.0)
      raise ValueError(f"config.{where}{name} is unknown; did you mean {where}{near[0]}?")
  for name, rule in fields.items():
    if name not in config:
      raise ValueError(f"config.{where}{name} is missing")
    value = config[name]
    if isinstance(rule, dict):
      if not hasattr(value, "keys"):
        raise ValueError(f"config.{where}{name}={value!r}: expected a table of keywords")
      check(value, rule, f"{where}{name}.")
    elif not rule[0](value):
      raise ValueError(f"config.{where}{name}={value!r}: expected {rule[1]}")


def check_hosts(values):
  """Raises ValueError on every host where they disagree about `values`, a JSON table."""
  texts = parallel.gather_text(json.dumps(values))
  first, *others = [flat(json.loads(text)) for text in texts]
  for i, other in enumerate(others, 1):
    for key in sorted(first.keys() | other.keys()):
      a, b = repr(first.get(key)), repr(other.get(key))  # nan is nan
      if a != b:
        raise ValueError(f"{key}={a} on host 0, {key}={b} on host {i}: expected the same on all")


def check_shared(workdir, newest):
  """Raises ValueError on every host where `workdir` is not one folder that all of them see.

  newest: step of the newest checkpoint that this host finds there, or None.
  """
  check_hosts({"newest checkpoint in workdir": newest})
  mark = workdir / f"{parallel.gather_text(uuid.uuid4().hex)[0]}.tmp"  # new, unlike any other file
  if jax.process_index() == 0:
    mark.write_text("")
  check_hosts({})  # it is written
  try:
    check_hosts({"a file of host 0 seen in workdir": mark.exists()})
  finally:
    if jax.process_index() == 0:
      mark.unlink()


def snapshot(config, workdir):
  """Writes config.json, from which `checkpoint.load` builds the run."""
  if jax.process_index() == 0:
    write_whole(workdir / "config.json", config.to_json(indent=1) + "\n")


def write_whole(path, text):
  """Writes a file, an epath.Path, of which no reader and no later run ever sees half."""
  new = path.parent / f"{path.name}.tmp"
  new.write_text(text)
  new.replace(path)


def identity(config):
  """{"seed", "config"} of every manifest: what may not change in a run, the latter as a sha256."""
  text = json.dumps(_lasting(config), sort_keys=True)
  return {"seed": config.train.seed, "config": hashlib.sha256(text.encode()).hexdigest()}


def check_resumed(config, workdir):
  """Raises ValueError where the run in `workdir` has another model, data set or seed."""
  old, new = _lasting(read_snapshot(workdir)), _lasting(config)
  for key in sorted(old.keys() | new.keys()):
    if old.get(key) != new.get(key):
      raise ValueError(
        f"workdir {workdir} holds a run with {key}={old.get(key)!r}, this config has"
        f" {key}={new.get(key)!r}: expected the same run, or a new workdir"
      )


def _lasting(config):
  """The values that a run keeps, flat: all but those that say for how long, where and how fast."""
  free = lambda key: key in ("data.workers", "data.timeout") or key.startswith("train.")
  values = flat(json.loads(config.to_json()))
  return {k: v for k, v in values.items() if not free(k) or k == "train.seed"}


def read_snapshot(workdir):
  """The ConfigDict of the run in `workdir`, an epath.Path.

  Raises ValueError where none is, or none that a run could have written.
  """
  path = workdir / "config.json"
  if not path.exists():
    raise ValueError(f"workdir={str(workdir)!r}: no config.json, so no run, is there")
  try:
    config = ml_collections.ConfigDict(json.loads(path.read_text()))
    used = ((_TEXT, config.model), (_TABLE, config.args), (_TEXT, config.data.source))
    bad = [v for rule, v in (*used, (_COUNT_OR_0, config.train.seed)) if not rule[0](v)]
  except (ValueError, TypeError, AttributeError, RecursionError) as e:
    raise ValueError(f"{path} is no config that a run has written: {e!r}") from e
  if bad:
    raise ValueError(f"{path} is no config that a run has written: it has {bad[0]!r}")
  return config


def flat(table, where=""):
  """{"args": {"lr": 1.0}} -> {"args.lr": 1.0}."""
  values = {}
  for name, value in table.items():
    is_table = hasattr(value, "keys")
    values |= flat(value, f"{where}{name}.") if is_table else {where + name: value}
  return values

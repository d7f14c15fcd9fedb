"""Files of network weights: safetensors, or npz, one array a tensor, "params/stem/kernel" its name.

A converted file knows the network it is for and the file it was made from: a dict of strings beside
the arrays, in safetensors its metadata, in npz an array `note` of its JSON.
"""

import json
import pathlib
import re

import jax
import numpy as np
import safetensors
from flax import traverse_util
from safetensors import numpy as safetensors_numpy

from jaxgen.core import method
from jaxgen.data import sources

# Flax's names of a layer's arrays, and torch's.
ARRAYS = {
  "kernel": "weight",
  "scale": "weight",
  "bias": "bias",
  "mean": "running_mean",
  "var": "running_var",
}


def read(path):
  """({name: numpy array}, {name: string}) of a file.

  Raises FileNotFoundError where none is, ValueError for another suffix and for a damaged file.
  """
  path = pathlib.Path(path)
  method.check("path", str(path), path.suffix in (".safetensors", ".npz"), ".safetensors or .npz")
  if not path.is_file():
    raise FileNotFoundError(f"{path} does not exist")
  if path.suffix == ".npz":
    tensors = sources.read_npz(path, path, is_name=re.compile(r"[\w./]+").fullmatch)
    return tensors, json.loads(str(tensors.pop("note", "{}")))
  try:
    with safetensors.safe_open(path, "numpy") as file:
      return {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}
  except (safetensors.SafetensorError, OSError) as error:
    raise ValueError(f"{path} is not a safetensors file: {error}") from error


def write(path, variables, note):
  """Writes the Flax variables of a network, arrays in a tree of dicts, and a note of strings."""
  flat = traverse_util.flatten_dict(variables, sep="/")
  tensors = {name: np.asarray(value, order="C") for name, value in flat.items()}
  safetensors_numpy.save_file(tensors, path, metadata=note)


def load(path, network, module, inputs):
  """(the Flax module, its variables, the note) of a file that `python -m jaxgen.convert` wrote.

  network: the name that its note must have. module: Flax class, to which the note's `args` go.
  inputs: (the module) -> arrays that it can be called with, or their shapes.

  Raises ValueError where the file is of another network or a tensor is missing, left over or of
  another shape or dtype; FileNotFoundError where none is.
  """
  tensors, note = read(path)
  told = note.get("network")
  expected = f"{network}, from python -m jaxgen.convert {network}"
  method.check(f"network of {path}", told, told == network, expected)
  args = json.loads(note["args"])
  net = module(**{k: tuple(v) if isinstance(v, list) else v for k, v in args.items()})
  shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs(net))
  wanted = traverse_util.flatten_dict(shapes, sep="/")
  told = lambda x: "none" if x is None else f"{x.dtype} {x.shape}"
  for name in sorted(wanted.keys() | tensors.keys()):
    ours, given = told(wanted.get(name)), told(tensors.get(name))
    if ours != given:
      raise ValueError(f"{path}: {name} is {given}: expected {ours}")
  return net, traverse_util.unflatten_dict(tensors, sep="/"), note


def need(tensors, name):
  """The array tensors[name]. Raises KeyError, which names it, where there is none."""
  if name not in tensors:
    raise KeyError(f"{name!r} is missing from the state dict")
  return tensors[name]


def fill(net, x, tensors, layer=".".join):
  """The variables of `net`, float32, from a torch state dict; counters of batches are left out.

  x: what the network takes, arrays or their shapes. tensors: {name: array}.
  layer: ["Mixed_5b", "branch1x1", "conv"], the modules around an array -> torch's name of the last.
  KeyError names a tensor that is missing, ValueError one of another shape or those left over.
  """
  left = {k: v for k, v in tensors.items() if not k.endswith(".num_batches_tracked")}

  def take(path, expected):
    _, *modules, array = (key.key for key in path)
    name = f"{layer(modules)}.{ARRAYS[array]}"
    value = np.asarray(need(left, name), np.float32)
    del left[name]
    if array == "kernel" and value.ndim > 1:
      value = np.moveaxis(value, (0, 1), (-1, -2))  # torch has outputs and inputs first
    if value.shape != expected.shape:
      raise ValueError(f"{name} is {value.shape} in our order of axes: expected {expected.shape}")
    return value

  variables = jax.tree_util.tree_map_with_path(take, jax.eval_shape(net.init, jax.random.key(0), x))
  if left:
    raise ValueError(f"no place for {sorted(left)}: expected a state dict of {type(net).__name__}")
  return variables

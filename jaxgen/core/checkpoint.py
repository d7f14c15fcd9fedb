"""Checkpoints, and finished runs as building blocks.

workdir/config.json           the run's config
workdir/checkpoints/<step>/   `state`: step, extra and the networks that change; `opt`: optimizers
workdir/frozen/               the networks that do not change, saved once
workdir/frozen.json           where those came from: name -> {source, sha256}
"""

import functools
import hashlib
import json
import re

import jax
import numpy as np
import orbax.checkpoint as ocp
from etils import epath

from jaxgen.core import config as config_lib
from jaxgen.core import method as method_lib
from jaxgen.core import parallel, step

_KEEP = 2  # newest checkpoints on disk


def open_workdir(workdir):
  """epath.Path of a local folder or a bucket ("gs://...")."""
  path = epath.Path(workdir)
  return path if "://" in str(workdir) else path.expanduser().resolve()


def open_manager(workdir, read_only=False):
  """Orbax's manager of workdir/checkpoints; a context manager that ends with all saves on disk."""
  handlers = {"state": ocp.StandardCheckpointHandler(), "opt": ocp.StandardCheckpointHandler()}
  options = ocp.CheckpointManagerOptions(max_to_keep=_KEEP, read_only=read_only)
  return ocp.CheckpointManager(workdir / "checkpoints", options=options, item_handlers=handlers)


def split(method, state):
  """(what every checkpoint holds, the frozen networks, which are saved once)."""
  changes = method_lib.trained(method)
  frozen = {k: v for k, v in state.params.items() if k not in changes}
  return state.replace(params={k: v for k, v in state.params.items() if k in changes}), frozen


def save(manager, kept):
  """Saves the first part of `split` under its step, unless it is there; returns at once."""
  at = int(kept.step)
  if at in manager.all_steps():
    return
  # Two items, so that `load` never needs the optimizer: a finished run outlives its code.
  items = {k: ocp.args.StandardSave(v) for k, v in _items(kept).items()}
  manager.save(at, args=ocp.args.Composite(**items))


def restore(manager, like, names=("state", "opt")):
  """The newest checkpoint with shapes, dtypes and shardings of `like` (arrays or their shapes).

  Raises:
    ValueError: an array is missing, left over, or of another shape or dtype; names it and both.
  """
  at = manager.latest_step()
  saved, wanted = manager.item_metadata(at), {k: _items(like)[k] for k in names}
  for name in names:
    _compare(f"checkpoint {at}, {name}", saved[name].tree, wanted[name])
  items = {k: ocp.args.StandardRestore(v) for k, v in wanted.items()}
  got = manager.restore(at, args=ocp.args.Composite(**items))
  return like.replace(**got["state"], opt=got["opt"] if "opt" in names else {})


def save_frozen(workdir, frozen, sources):
  """Saves the frozen networks, and where `sources` (the config's init_from) had them from."""
  if not frozen:
    return
  with ocp.StandardCheckpointer() as saver:
    saver.save(workdir / "frozen", frozen, force=True)
  frozen = jax.tree.map(parallel.whole, frozen)
  if jax.process_index() == 0:
    origin = {k: {"source": sources.get(k, "init"), "sha256": sha256(frozen[k])} for k in frozen}
    (workdir / "frozen.json").write_text(json.dumps(origin, indent=1) + "\n")


def restore_frozen(workdir, like):
  """The frozen networks, with the shardings of `like`."""
  return ocp.StandardCheckpointer().restore(workdir / "frozen", like) if like else like


def sha256(tree):
  """Hex digest of a tree's paths and arrays."""
  digest = hashlib.sha256()
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    digest.update(jax.tree_util.keystr(path).encode() + np.asarray(x).tobytes())
  return digest.hexdigest()


def load(workdir):
  """A run -> (Method, Vars), on this process's first device, whatever topology wrote it.

  Raises:
    ValueError: no run or no checkpoint is there, or it does not fit the code.
  """
  workdir = open_workdir(workdir)
  config = config_lib.read_snapshot(workdir)
  method = method_lib.build(config.model, config.args)
  here = jax.sharding.SingleDeviceSharding(jax.local_devices()[0])
  shapes = jax.eval_shape(functools.partial(step.init_state, method), jax.random.key(0))
  like = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=here), shapes)
  kept, frozen = split(method, like)
  if not (workdir / "checkpoints").exists():
    raise ValueError(f"workdir={str(workdir)!r}: no checkpoint is there yet")
  with open_manager(workdir, read_only=True) as manager:
    if manager.latest_step() is None:
      raise ValueError(f"workdir={str(workdir)!r}: no checkpoint is there yet")
    kept = restore(manager, kept, names=("state",))
  return method, kept.replace(params={**kept.params, **restore_frozen(workdir, frozen)}).vars


def start_from(method, state, sources):
  """`state` with networks taken from finished runs, before `calibrate`; averages start from them.

  Args:
    sources: network, or "teacher/net" inside one -> "workdir" (a whole run, averaged) or
      "workdir:network" (one network, as named), with the statistics that this model keeps of it.

  Raises:
    ValueError: a name that the model or the run does not have, or a shape that differs.
  """
  if not sources:
    return state
  params, extra = dict(state.params), dict(state.extra)
  for name, source in sources.items():
    p, e = _read_source(name, source)
    path = name.split("/")
    params = _put(name, params, path, p)
    if e and path[0] in extra:
      extra = _put(name, extra, path, e)
  for name, ema in method.ema.items():
    params[name] = params[ema.source]
  new, old = {"params": params, "extra": extra}, {"params": state.params, "extra": state.extra}
  _compare("init_from", new, old)
  return state.replace(**parallel.place(new, old))


def _read_source(name, source):
  """(params, extra) of a run, or of one of its networks."""
  workdir, colon, net = source.rpartition(":")
  if not colon or net.startswith("//"):
    workdir, net = source, ""
  method, vars = load(workdir)
  if net:
    if net not in vars.params:
      raise ValueError(f"init_from {name}={source!r}: the run has {', '.join(vars.params)}")
    of = method.ema[net].source if net in method.ema else net
    return vars.params[net], vars.extra.get(of)  # statistics are kept by source
  own = method.serves or jax.eval_shape(method.init, jax.random.key(0)).params
  mean = method_lib.averaged(method, vars).params
  return {k: mean[k] for k in own}, vars.extra


def _put(name, tree, path, value):
  if path[0] not in tree:
    raise ValueError(f"init_from {name}: expected one of {', '.join(tree)}")
  value = _put(name, tree[path[0]], path[1:], value) if path[1:] else value
  return {**tree, path[0]: value}


def _items(kept):
  state = {"step": kept.step, "params": kept.params, "extra": kept.extra}
  return {"state": state, "opt": kept.opt}


def _compare(where, saved, wanted):
  saved, wanted = _specs(saved), _specs(wanted)
  for path in sorted(saved.keys() | wanted.keys()):
    if saved.get(path) != wanted.get(path):
      has, wants = saved.get(path, "nothing"), wanted.get(path, "nothing")
      raise ValueError(f"{where}: {path} is {has}, this model has {wants}")


def _specs(tree):
  """{"params/net/kernel": "float32[3, 4]"} for arrays, their shapes, or Orbax's metadata."""
  leaves = jax.tree_util.tree_leaves_with_path(tree)
  spec = lambda x: f"{np.dtype(x.dtype).name}{list(x.shape)}"
  return {"/".join(re.findall(r"\w+", jax.tree_util.keystr(path))): spec(x) for path, x in leaves}

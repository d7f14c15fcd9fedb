"""Checkpoints, and finished runs as building blocks.

workdir/config.json           the run's config
workdir/checkpoints/<step>/   `state`: step, extra and the networks that change; `opt`: optimizers;
                              `manifest.json`, written last: the sha256 of every file of both
workdir/frozen/               the networks that do not change, saved once, with a manifest too
workdir/frozen.json           where those came from: name -> {source, sha256}

What does not agree with its manifest is never restored.
"""

import contextlib
import faulthandler
import functools
import hashlib
import json
import re
import sys
import traceback

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from etils import epath
from flax import traverse_util

from jaxgen.convert import weights
from jaxgen.core import config as config_lib
from jaxgen.core import manifest, parallel, step
from jaxgen.core import method as method_lib

_KEEP = 2  # newest checkpoints on disk
_GRACE = 8  # seconds that a host which failed among several may take to finish a save


def open_workdir(workdir):
  """epath.Path of a local folder or a bucket ("gs://...")."""
  path = epath.Path(workdir)
  return path if "://" in str(workdir) else path.expanduser().resolve()


@contextlib.contextmanager
def open_manager(workdir, note):
  """Orbax's manager of workdir/checkpoints; leaving the context ends with all saves on disk.

  note: what every manifest holds beside the files. What a save that was cut has left is removed.
  Raises what a save in the background has raised.
  """
  folder = workdir / "checkpoints"
  step = lambda path: int(path.name.partition(".")[0])

  def seal():  # called on host 0 when all is written, before the folder gets its final name
    newest = max((p for p in folder.iterdir() if p.name[0].isdigit()), key=step)
    manifest.write(newest, {"step": step(newest), **note})

  options = ocp.CheckpointManagerOptions(
    max_to_keep=_KEEP,
    cleanup_tmp_directories=True,
    async_options=ocp.AsyncOptions(
      post_finalization_callback=seal, barrier_sync_fn=_barrier if jax.process_count() > 1 else None
    ),
  )
  manager = ocp.CheckpointManager(folder, options=options, item_handlers=_handlers())
  try:
    yield manager
  except BaseException:
    if jax.process_count() > 1:  # closing may wait for hosts that wait for this one
      traceback.print_exc()
      faulthandler.dump_traceback_later(_GRACE, exit=True, file=sys.__stderr__)
    raise
  finally:
    try:
      manager.close()
    finally:
      faulthandler.cancel_dump_traceback_later()


def _barrier(key, timeout_ms):
  """Waits for the other hosts, unless the save has failed here: they will not come."""
  if sys.exception():
    raise sys.exception()
  ocp.multihost.get_barrier_sync_fn()(key=key, timeout_ms=timeout_ms)


def _handlers():
  return {"state": ocp.StandardCheckpointHandler(), "opt": ocp.StandardCheckpointHandler()}


def clean(workdir):
  """Removes what a run that was cut has left half written in `workdir`; all hosts call this."""
  if jax.process_index() == 0:
    for path in [*workdir.glob("*.tmp"), *workdir.glob("*.orbax-checkpoint-tmp*")]:
      path.rmtree() if path.is_dir() else path.unlink()


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


def newest(manager, note, names=("state", "opt"), allow_fallback=False):
  """Step of the newest checkpoint, None where there is none; all hosts call this.

  Args:
    note: what its manifest must hold. names: the items whose files are compared with it.
    allow_fallback: pass over damaged checkpoints for the newest good one.

  Raises:
    ValueError: a file is missing or not as it was saved, or no checkpoint is good; names the file.
  """
  for at in sorted(manager.all_steps(), reverse=True):
    damage = manifest.damage(manager.directory / str(at), {"step": at, **note}, names)
    if not damage:
      return at
    if not allow_fallback:
      raise ValueError(f"{damage}; --allow_fallback goes on from the newest good checkpoint")
    logging.warning("%s: passed over", damage)
  if manager.all_steps():
    raise ValueError(f"{manager.directory} has no good checkpoint: {damage}")
  return None


def restore(manager, at, like, names=("state", "opt")):
  """The checkpoint of step `at`, with shapes, dtypes and shardings of `like` (arrays or shapes).

  Raises:
    ValueError: an array is missing, left over, or of another shape or dtype; names it and both.
  """
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
  if jax.process_index() == 0:
    manifest.write(workdir / "frozen", {})
  frozen = jax.tree.map(parallel.whole, frozen)
  if jax.process_index() == 0:
    origin = {k: {"source": sources.get(k, "init"), "sha256": sha256(frozen[k])} for k in frozen}
    config_lib.write_whole(workdir / "frozen.json", json.dumps(origin, indent=1) + "\n")


def restore_frozen(workdir, like):
  """The frozen networks, with the shardings of `like`.

  Raises ValueError for a file that is missing or not as it was saved, and as `restore` does.
  """
  if not like:
    return like
  folder = workdir / "frozen"
  damage = manifest.damage(folder, {}, names=("",))
  if damage:
    raise ValueError(damage)
  with ocp.StandardCheckpointer() as saver:
    _compare("frozen", saver.metadata(folder).item_metadata.tree, like)
    return saver.restore(folder, like)


def sha256(tree, *told):
  """Hex digest of a tree's paths, with dtypes, shapes and values of its arrays, and of texts."""
  digest = hashlib.sha256(json.dumps(told).encode())
  for path, x in jax.tree_util.tree_leaves_with_path(tree):
    x = np.asarray(x)
    digest.update(f"{jax.tree_util.keystr(path)} {x.dtype} {x.shape}".encode() + x.tobytes())
  return digest.hexdigest()


def load(workdir, allow_fallback=False):
  """A run -> (Method, Vars), on this process's first device, whatever topology wrote it.

  Args:
    allow_fallback: pass over damaged checkpoints for the newest good one.

  Raises:
    ValueError: no run or no checkpoint is there, or it is damaged or does not fit the code.
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
  options = ocp.CheckpointManagerOptions(read_only=True)
  folder, items = workdir / "checkpoints", ("state",)
  with ocp.CheckpointManager(folder, options=options, item_handlers=_handlers()) as manager:
    at = newest(manager, config_lib.identity(config), items, allow_fallback)
    if at is None:
      raise ValueError(f"workdir={str(workdir)!r}: no checkpoint is there yet")
    kept = restore(manager, at, kept, items)
  return method, kept.replace(params={**kept.params, **restore_frozen(workdir, frozen)}).vars


def read_sources(sources):
  """Network -> (params, extra), of finished runs and converted weights.

  Args:
    sources: network, or "teacher/net" inside one -> "workdir" (a whole run, averaged) or
      "workdir:network" (one network, as named), with the statistics that this model keeps of it,
      or a .safetensors file of `python -m jaxgen.convert` (one network).

  Raises:
    ValueError: a run or a network in it that is not there, or is damaged.
  """
  return {name: _read_source(name, source) for name, source in sources.items()}


def started_from(method, state, given):
  """`state`, of arrays or their shapes, with the networks of `read_sources`, and their averages.

  Raises ValueError for a name that the model does not have, or a shape that differs.
  """
  params, extra = dict(state.params), dict(state.extra)
  for name, (p, e) in given.items():
    path = name.split("/")
    params = _put(name, params, path, p)
    if e and path[0] in extra:
      extra = _put(name, extra, path, e)
  for name, ema in method.ema.items():
    params[name] = params[ema.source]
  new = state.replace(params=params, extra=extra)
  _compare("init_from", _items(new)["state"], _items(state)["state"])
  return new


def _read_source(name, source):
  """(params, extra) of a run, of one of its networks, or of a file of weights."""
  if source.endswith(".safetensors"):
    flat = {tuple(k.split("/")): v for k, v in weights.read(source)[0].items()}
    tree = traverse_util.unflatten_dict(flat)
    method_lib.check(f"init_from {name}", source, "params" in tree, "a file of jaxgen.convert")
    return tree.pop("params"), tree
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

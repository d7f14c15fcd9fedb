"""The only file that knows how many devices and hosts there are.

Four ways to compile one `train_step`, with one shape of TrainState and one set of numbers:
  jit        one program over the global batch (default)
  fsdp       the same program, parameters and optimizer state split over the devices
  shard_map  one program a device, reductions where `axis` is called
  pmap       the same program a device, through jax.pmap
"""

import functools
import os

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from jaxgen import noise
from jaxgen.core import axis, step

MODES = ("jit", "fsdp", "shard_map", "pmap")
_MICRO_ROWS = P(None, axis.NAME)  # of a training batch [K, B, ...]
_GATHERED = 2**24  # elements of a host that all others take at once
_SMALLEST_SPLIT = 2**10  # elements; smaller arrays stay whole under fsdp
# Seconds until a host gives up on others: that did not start, that died, that have not ended.
_PATIENCE = dict(
  initialization_timeout=180, heartbeat_timeout_seconds=20, shutdown_timeout_seconds=60
)


def start(hosts=None):
  """What a launcher calls before any other JAX function.

  Compiled programs are kept in JAX_COMPILATION_CACHE_DIR, or else in ~/.cache/jaxgen.

  Args:
    hosts: None for one; {} to find the others on a TPU pod or under SLURM; else how to find them,
      coordinator_address ("HOST:PORT" of process 0), num_processes and process_id.

  Raises:
    ValueError: neither a TPU pod nor SLURM is here. Hosts that do not answer end the process.
  """
  logging.set_verbosity(logging.WARNING)  # Orbax tells every file that it moves
  if not jax.config.jax_compilation_cache_dir:
    jax.config.update("jax_compilation_cache_dir", os.path.expanduser("~/.cache/jaxgen"))
  if hosts is None:
    return
  try:
    jax.distributed.initialize(**hosts, **_PATIENCE)
  except ValueError as e:
    if hosts:
      raise
    raise ValueError(f"no other hosts are found on a TPU pod or under SLURM: {e}") from e


def mesh():
  """All devices of all hosts along one axis, which jax.make_mesh would make Explicit."""
  devices = sorted(jax.devices(), key=lambda d: (d.process_index, d.id))  # a host's rows together
  return Mesh(np.asarray(devices), (axis.NAME,))


def check_rows(batch_size):
  """Raises ValueError where the devices do not divide the batch."""
  n = jax.device_count()
  if batch_size % n:
    raise ValueError(f"data.batch_size={batch_size}: expected a multiple of the {n} devices")


def gather_text(text):
  """[text of host 0, of host 1, ...] on every host: all call this."""
  mine = np.frombuffer(text.encode(), np.uint8)
  size = int(multihost_utils.process_allgather(np.int32(mine.size)).max())
  texts = multihost_utils.process_allgather(np.pad(mine, (0, size - mine.size)))
  return [x.tobytes().rstrip(b"\0").decode() for x in np.atleast_2d(texts)]


def compile_init(method, mode):
  """init(key) -> TrainState, the same on every host whatever data it holds."""
  init = functools.partial(step.init_state, method)
  if mode == "pmap":
    return jax.jit(init, out_shardings=NamedSharding(_local_mesh(), P()))
  return jax.jit(init, out_shardings=_state_sharding(method, mode))


def compile_step(method, mode, train_step=step.train_step):
  """(state, batch, key) -> (state, metrics) on every device of every host; `state` is donated.

  Raises ValueError for a mode that does not exist.
  """
  return _compile(functools.partial(train_step, method), method, mode, has_metrics=True)


def compile_calibrate(method, mode):
  """(state, batch, key) -> state. Raises ValueError for a mode that does not exist."""
  return _compile(functools.partial(step.calibrate, method), method, mode, has_metrics=False)


def compile_rows(fn, rows):
  """(vars, inputs, key, first) -> fn(vars, inputs, keys [rows]), whole on every host.

  What sampling uses, in every training mode: the rows are split over the devices, and row i draws
  what row first + i of the sequence of `key` draws, in any batch.
  """
  by_rows, whole = NamedSharding(mesh(), P(axis.NAME)), NamedSharding(mesh(), P())

  def run(vars, inputs, key, first):
    keys = noise.rows(key, rows, first)
    data = jax.lax.with_sharding_constraint(jax.random.key_data(keys), by_rows)
    return fn(vars, inputs, jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys)))

  return jax.jit(run, out_shardings=whole)


def copies(tree):
  """Arrays, split over the devices or not -> whole ones, a tree for each device of this host."""
  whole = NamedSharding(mesh(), P())
  if not all(x.is_fully_replicated for x in jax.tree.leaves(tree)):
    # In one program, since several that talk to other hosts must not run side by side.
    tree = jax.jit(lambda tree: tree, out_shardings=whole)(tree)
  spread = jax.device_put(tree, whole)
  on = lambda i: jax.tree.map(lambda x: x.addressable_shards[i].data, spread)
  return [on(i) for i in range(jax.local_device_count())]


def sum_hosts(x):
  """The sum over the hosts of numpy [n, ...]: all call this."""
  rows = max(1, _GATHERED // max(1, x[:1].size))  # at a time: every host holds those of all hosts
  gather = lambda x: multihost_utils.process_allgather(x, tiled=True).reshape(-1, *x.shape)
  return np.concatenate([gather(x[i : i + rows]).sum(0) for i in range(0, len(x), rows)])


def shard_batch(batch, mode):
  """This host's rows of each micro-batch, numpy [K, b, ...] -> what the compiled step takes."""
  if mode == "pmap":
    n = jax.local_device_count()
    split = lambda x: x.reshape(x.shape[0], n, -1, *x.shape[2:])
    by_device = NamedSharding(_local_mesh(), _MICRO_ROWS)
    return jax.tree.map(lambda x: jax.device_put(split(x), by_device), batch)
  return _from_hosts(batch, _MICRO_ROWS)


def replicate(tree):
  """The same arrays on every host -> whole on every device."""
  whole = NamedSharding(mesh(), P())
  put = lambda x: jax.make_array_from_callback(x.shape, whole, lambda i: x[i])
  return jax.tree.map(lambda x: put(np.asarray(x)), tree)


def to_global(state, mode):
  """Arrays that Orbax and `compile_rows` take: pmap leaves host-local ones on several hosts."""
  if mode == "pmap" and jax.process_count() > 1:
    return multihost_utils.host_local_array_to_global_array(state, mesh(), P())
  return state


def from_global(state, mode):
  """The inverse of `to_global`."""
  if mode == "pmap" and jax.process_count() > 1:
    return multihost_utils.global_array_to_host_local_array(state, mesh(), P())
  return state


def whole(x):
  """An array that this process can read, from one that may be split over hosts: all call this."""
  if not isinstance(x, jax.Array) or x.is_fully_addressable:
    return x
  if x.is_fully_replicated:
    return x.addressable_data(0)
  return multihost_utils.process_allgather(x, tiled=True)


_finite = jax.jit(lambda x: jnp.isfinite(x).all())


def all_finite(tree):
  """Whether no float of these arrays is NaN or infinite, the same answer on all hosts."""
  # An array at a time, since one program for thousands of them takes minutes to compile; and
  # what is here of it, since programs that talk to other hosts must not run side by side.
  floats = [x for x in jax.tree.leaves(tree) if jnp.issubdtype(x.dtype, jnp.inexact)]
  shards = lambda x: x.addressable_shards[: 1 if x.is_fully_replicated else None]
  here = all(jax.device_get([_finite(s.data) for x in floats for s in shards(x)]))
  return bool(multihost_utils.process_allgather(np.bool_(here)).all())


def place(tree, like):
  """Whole arrays, the same on every host -> copies with the sharding of `like`, a tree like it."""

  def put(x, like):
    x = np.array(whole(x))  # a copy: donation must not take a buffer that somebody else holds
    return jax.make_array_from_callback(x.shape, like.sharding, lambda i: x[i])

  return jax.tree.map(put, tree, like)


def _local_mesh():
  return Mesh(np.asarray(jax.local_devices()), (axis.NAME,))


def _from_hosts(batch, spec):
  sharding = NamedSharding(mesh(), spec)
  make = lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x))
  return jax.tree.map(make, batch)


def _split_over_devices(shape, n):
  """FSDP: the largest axis that n divides is split; small or indivisible arrays stay whole."""
  fits = [i for i, d in enumerate(shape) if d and d % n == 0]
  if not fits or np.prod(shape) < _SMALLEST_SPLIT:
    return P()
  largest = max(fits, key=lambda i: shape[i])
  return P(*[axis.NAME if i == largest else None for i in range(len(shape))])


def _state_sharding(method, mode):
  devices = mesh()
  shapes = jax.eval_shape(functools.partial(step.init_state, method), jax.random.key(0))
  spec = lambda x: _split_over_devices(x.shape, devices.size) if mode == "fsdp" else P()
  return jax.tree.map(lambda x: NamedSharding(devices, spec(x)), shapes)


def _compile(fn, method, mode, has_metrics):
  if mode not in MODES:
    raise ValueError(f"parallel={mode!r}: expected one of {', '.join(MODES)}")
  if mode == "pmap":
    # in_axes=None keeps the state free of a replica axis; such arguments cannot be donated on pods.
    donate = (0,) if jax.process_count() == 1 else ()
    return jax.pmap(fn, axis.NAME, in_axes=(None, 1, None), out_axes=None, donate_argnums=donate)
  if mode == "shard_map":
    # check_vma=False: gradients of replicated parameters stay local until axis.mean.
    specs = dict(in_specs=(P(), _MICRO_ROWS, P()), out_specs=P(), check_vma=False)
    return jax.jit(jax.shard_map(fn, mesh=mesh(), **specs), donate_argnums=0)
  state, whole = _state_sharding(method, mode), NamedSharding(mesh(), P())
  return jax.jit(
    fn,
    in_shardings=(state, NamedSharding(mesh(), _MICRO_ROWS), whole),
    out_shardings=(state, whole) if has_metrics else state,
    donate_argnums=0,
  )

"""Batches that depend on (seed, step) only: not on hosts, workers, or where a run was resumed.

Whole *global* batches of indices are formed first and each host loads its contiguous rows. So no
example is lost or reordered when the number of hosts changes, and the step is the position: nothing
else is saved to resume.

What leaves here, as numpy arrays: `image`, `video`, `start` and `labelled` float32 in [-1, 1] from
uint8; other floats float32, unscaled; `label` and other integers int32; bool as it is. Strings are
dropped: captions become tokens on the host, before this.
"""

import collections
import functools

import grain
import jax
import numpy as np
from absl import flags

from jaxgen.data import sources

AHEAD = 4  # batches read ahead in each process
PIXELS = {"image": 4, "video": 5, "start": 4, "labelled": 4}  # rank of a batch [B, (T,) H, W, C]


def to_float(image):
  """uint8 [..., C] -> float32 in [-1, 1]. Raises ValueError for another dtype."""
  image = np.asarray(image)
  if image.dtype != np.uint8:
    raise ValueError(f"image must be uint8, it is {image.dtype}")
  return image.astype(np.float32) / 127.5 - 1


def to_uint8(x):
  """Float [..., C] in [-1, 1] -> uint8, rounded and clipped; inverts to_float.

  Raises ValueError for NaN.
  """
  x = np.asarray(x, np.float32)
  if np.isnan(x).any():
    raise ValueError(f"image has {np.isnan(x).sum()} NaN in {x.size} values")
  return np.clip(np.rint((x + 1) * 127.5), 0, 255).astype(np.uint8)


def order(n, seed, position):
  """The examples, integers like `position`, at these positions of an endless shuffled stream.

  Every n positions are another permutation of 0 ... n - 1. Global batch i of B examples is the
  positions i * B, ..., i * B + B - 1, so batches run on across epochs.
  """
  epoch, place = np.divmod(position, n)
  example = np.empty_like(position)
  for e in np.unique(epoch):
    example[epoch == e] = _permutation(n, seed, int(e))[place[epoch == e]]
  return example


@functools.lru_cache(maxsize=2)
def _permutation(n, seed, epoch):
  return np.random.RandomState([seed, epoch]).permutation(n)  # numpy keeps this stream for ever


def batches(
  source,
  *,
  rows,
  micro_batches=1,
  seed=0,
  steps,
  start=0,
  flip=False,
  n_classes=None,
  workers=0,
  host=None,
  hosts=None,
):
  """Iterator over the global batches start, ..., steps - 1: dicts of [K, rows / hosts, ...].

  source: random access, items are dicts of numpy arrays. rows: of a global micro-batch; K =
  micro_batches. flip: mirrors what is made of pixels along W for half of the examples; the coin
  belongs to the example of the global batch. n_classes: labels must be 0 ... n_classes - 1.
  workers: processes that load (0: threads of this one). host, hosts: this process and how many,
  by default jax's.

  Raises ValueError at once for bad sizes, an empty source and labels out of range where
  `source.labels` is known; while loading for what `load` raises.
  """
  if micro_batches < 1:
    raise ValueError(f"micro_batches={micro_batches} must be at least 1")
  if seed < 0:
    raise ValueError(f"seed={seed} must be at least 0")
  mine = _share(rows, host, hosts)
  _check_labels(source, n_classes)
  size, shape = micro_batches * rows, (micro_batches, rows)

  def read(step):
    position = np.arange(step * size, (step + 1) * size).reshape(shape)[:, mine]
    batch = load(source, order(len(source), seed, position.ravel()), n_classes)
    if flip:
      coins = np.random.RandomState([seed, 1, step]).random_sample(shape)[:, mine].ravel() < 0.5
      for name in batch.keys() & PIXELS:
        batch[name][coins] = batch[name][coins][..., ::-1, :]
    return {name: x.reshape(*position.shape, *x.shape[1:]) for name, x in batch.items()}

  return _iterate(read, start, steps, workers)


def eval_batches(source, *, rows, limit=None, n_classes=None, host=None, hosts=None):
  """Iterator over the source in order, once: dicts of [rows / hosts, ...].

  The last batch is padded with example 0, so all hosts see equally many batches. `weight` float32
  [rows / hosts] is 0 on padding and 1 elsewhere; `index` int32 [rows / hosts] is the position,
  which padding continues. limit: the first examples only. Raises ValueError as `batches` does.
  """
  if limit is not None and limit < 1:
    raise ValueError(f"limit={limit} must be at least 1 or None")
  mine = _share(rows, host, hosts)
  _check_labels(source, n_classes)
  n = len(source) if limit is None else min(limit, len(source))

  def read(i):
    index = np.arange(i * rows, (i + 1) * rows, dtype=np.int32)[mine]
    batch = load(source, np.where(index < n, index, 0), n_classes)
    return {**batch, "weight": (index < n).astype(np.float32), "index": index}

  return _iterate(read, 0, -(-n // rows), workers=0)


def load(source, index, n_classes=None):
  """The examples index [n] of a source as one batch of arrays [n, ...], as the module says.

  Raises ValueError for examples of different keys, shapes or dtypes, images that are neither uint8
  nor float or not [H, W, C] (videos [T, H, W, C]), NaN or infinity, integers beyond int32, and
  labels outside 0 ... n_classes - 1.
  """
  batch = _no_strings(source.take(index)) if hasattr(source, "take") else _stack(source, index)
  batch = {k: _convert(k, v, index) for k, v in sources.checked(batch, index).items()}
  if n_classes is not None:
    _check_range(batch["label"], index, n_classes)
  return batch


def _stack(source, index):
  items = [_no_strings({k: np.asarray(v) for k, v in source[int(i)].items()}) for i in index]
  specs = [{k: (v.shape, v.dtype.name) for k, v in item.items()} for item in items]
  for i, spec in zip(index, specs, strict=True):
    if spec != specs[0]:
      raise ValueError(
        f"examples {index[0]} and {i} differ, {specs[0]} and {spec}: images of several sizes need"
        " image_size to be set"
      )
  return {name: np.stack([item[name] for item in items]) for name in items[0]}


def _no_strings(arrays):
  return {k: v for k, v in arrays.items() if v.dtype.kind not in "SU"}


def prefetch(iterator, put, size=2):
  """Generator of put(batch) with `size` further results in flight.

  put: an asynchronous transfer such as jax.device_put, so no thread is needed.
  """
  waiting = collections.deque()
  for batch in iterator:
    waiting.append(put(batch))
    if len(waiting) > size:
      yield waiting.popleft()
  while waiting:
    yield waiting.popleft()


def _convert(name, x, index):
  if name in PIXELS:
    if x.ndim != PIXELS[name]:
      raise ValueError(f"{name} needs {PIXELS[name] - 1} axes ([T,] H, W, C), it is {x.shape[1:]}")
    if x.dtype == np.uint8:
      return to_float(x)
    if x.dtype.kind != "f":
      raise ValueError(f"{name} must be uint8 or float, it is {x.dtype}")
  if x.dtype.kind in "iu":
    return sources.to_int32(name, x, index)
  return x.astype(np.float32) if x.dtype.kind == "f" else x


def _share(rows, host, hosts):
  host = jax.process_index() if host is None else host
  hosts = jax.process_count() if hosts is None else hosts
  if not 0 <= host < hosts:
    raise ValueError(f"host={host} must be one of 0..{hosts - 1}")
  if rows < 1 or rows % hosts:
    raise ValueError(f"rows={rows} must be positive and a multiple of hosts={hosts}")
  return slice(host * rows // hosts, (host + 1) * rows // hosts)


def _check_labels(source, n_classes):
  if not len(source):
    raise ValueError("the source is empty")
  if n_classes is None:
    return
  labels = getattr(source, "labels", None)
  if labels is not None:
    _check_range(labels, range(len(labels)), n_classes)
  elif "label" not in source[0]:
    raise ValueError(f"n_classes={n_classes} needs labels, this source has {[*source[0]]}")


def _check_range(labels, index, n_classes):
  bad = (labels < 0) | (labels >= n_classes)
  if bad.any():
    i = np.argmax(bad)
    raise ValueError(
      f"label {labels[i]} of example {index[i]} is outside 0..{n_classes - 1} (n_classes)"
    )


def _iterate(read, start, stop, workers):
  options = grain.ReadOptions(num_threads=AHEAD, prefetch_buffer_size=AHEAD)
  data = grain.MapDataset.range(start, stop).map(read).to_iter_dataset(options)
  if workers:
    if not flags.FLAGS.is_parsed():  # grain's processes read its flags, also in a notebook
      flags.FLAGS.mark_as_parsed()
    data = data.mp_prefetch(grain.MultiprocessingOptions(workers, AHEAD))
  return iter(data)

"""Sampling and evaluation of a trained method, over all devices, in batches of any size."""

import concurrent.futures
import dataclasses
import itertools
import math
from typing import Any

import jax
import numpy as np

from jaxgen import noise
from jaxgen.core import method as method_lib
from jaxgen.core import parallel
from jaxgen.data import pipeline, sources
from jaxgen.metrics import likelihood

ROWS = 32  # examples that one device evaluates at a time; another number rounds in another way


def sampler(method, rows, **options):
  """draw(vars, key, n, cond={}, first=0) -> dict of numpy [n, ...], compiled once.

  Sample i of `key` is the same in any batch, on any devices. Networks are replaced by their
  averages. rows: samples at a time; options: keywords of the method's `sample`.
  """
  rows = _for_devices(rows)

  def sample(vars, cond, keys):
    return method.fns["sample"](method_lib.averaged(method, vars), keys, cond, **options)

  run = parallel.compile_rows(sample, rows)

  def draw(vars, key, n, cond=None, first=0):
    parts = []
    for start in range(0, n, rows):
      take = np.minimum(np.arange(start, start + rows), n - 1)
      part = parallel.replicate({k: np.asarray(v)[take] for k, v in (cond or {}).items()})
      parts.append(jax.device_get(run(vars, part, key, np.int32(first + start))))
    return jax.tree.map(lambda *x: np.concatenate(x)[:n], *parts)

  return draw


@dataclasses.dataclass(frozen=True)
class Conditions:
  """What n samples are given, as a source: classes in turn, and arrays of a source's examples."""

  n: int
  n_classes: int = 0
  given: tuple[str, ...] = ()  # of Method
  source: Any = None  # of examples that have them, which begin again at their end

  def __len__(self):
    return self.n

  def __getitem__(self, i):
    label = {"label": np.int32(i % max(self.n_classes, 1))}
    example = self.source[i % len(self.source)] if self.given else {}
    return label | {name: example[name] for name in self.given}

  def cond(self, batch):
    """The `cond` of samples, of a batch that was loaded from here."""
    names = (*self.given, *(("label",) if self.n_classes else ()))
    return {name: batch[name] for name in names}


def conditions(config, method, n, split="test"):
  """The Conditions of n samples of a run, of this split of its data.

  Raises ValueError for data without that split, or without what the method is given.
  """
  source, data = None, config.data
  if method.given:
    source = sources.open_source(data.source, split, image_size=data.image_size or None)
    missing = [name for name in method.given if name not in source[0]]
    method_lib.check("data.source", data.source, not missing, f"data with {', '.join(missing)}")
  return Conditions(n, config.args.get("n_classes", 0), method.given, source)


def by_example(fn, batch_size):
  """run(vars, source, key, limit=None, n_classes=0) -> what `fn` gives, numpy [n, ...].

  The whole of it on every host, to the bit the same for any batch_size and any number of devices
  and hosts on which XLA compiles it in the same way. For that, one program takes ROWS successive
  examples on one device, example i always as its row i mod ROWS; a program over several devices
  would be rounded in another way for each number of them. So every device holds all parameters,
  also those that training splits.

  fn: (vars, batch, keys) -> a tree of arrays [ROWS, ...], floats; keys [ROWS], one an example.
  vars: a tree of arrays. batch_size: examples read and sent at a time, rounded up to ROWS on every
  device.

  Raises ValueError for an empty source or a limit below 1, and FloatingPointError, naming the first
  such example, where a number is not finite.
  """
  rows = _for_devices(batch_size, ROWS)

  @jax.jit
  def compute(vars, block, key):
    return fn(vars, block, noise.rows(key, ROWS, block["index"][0]))

  def run(vars, source, key, limit=None, n_classes=0):
    batches = pipeline.eval_batches(source, rows=rows, limit=limit, n_classes=n_classes or None)
    n, found = min(len(source), limit or len(source)), None
    copies = parallel.copies(vars)
    with concurrent.futures.ThreadPoolExecutor(len(copies)) as pool:  # compiled for all at once
      for batch in batches:
        if found is None:
          like = jax.eval_shape(compute, vars, jax.tree.map(lambda x: x[:ROWS], batch), key)
          found = jax.tree.map(lambda x, n=n: np.zeros((n, *x.shape[1:]), x.dtype), like)
        blocks = _blocks(batch)
        results = pool.map(compute, itertools.cycle(copies), blocks, itertools.repeat(key))
        for block, result in zip(blocks, jax.device_get([*results]), strict=True):
          real = block["weight"] > 0
          for all, x in zip(jax.tree.leaves(found), jax.tree.leaves(result), strict=True):
            all[block["index"][real]] = x[real]
    # Each example is on one host, and 0 on the others.
    found = jax.tree.map(parallel.sum_hosts, found)
    for where, values in jax.tree_util.tree_leaves_with_path(found):
      finite = np.isfinite(values).reshape(n, -1).all(1)
      if not finite.all():
        what = "".join(jax.tree_util.keystr((k,), simple=True) + " " for k in where)
        raise FloatingPointError(f"{what}of example {np.argmin(finite)} is not finite")
    return found

  return run


def evaluator(method, batch_size, **options):
  """evaluate(vars, source, key, limit=None, n_classes=0) -> {"nats", "n", "bits_per_dim"}.

  The mean over the examples of the method's log_prob, survey Eq. 61, as exact as `by_example`,
  which says what batch_size is; options: keywords of log_prob. Of codes there is no bits_per_dim.

  Raises ValueError and FloatingPointError as that does.
  """

  def log_prob(vars, batch, keys):
    vars = method_lib.averaged(method, vars)
    return {"log_prob": method.fns["log_prob"](vars, batch, keys, **options)}

  run = by_example(log_prob, batch_size)

  def evaluate(vars, source, key, limit=None, n_classes=0):
    values = run(vars, source, key, limit, n_classes)["log_prob"]
    nats = math.fsum(values) / len(values)
    found = {"nats": nats, "n": len(values)}
    if method.coded:
      return found
    return {**found, "bits_per_dim": likelihood.bits_per_dim(nats, np.shape(source[0]["image"]))}

  return evaluate


def _blocks(batch):
  """The rows of a batch, ROWS at a time, without blocks that are padding only."""
  cut = lambda i: jax.tree.map(lambda x: x[i : i + ROWS], batch)
  blocks = [cut(i) for i in range(0, len(batch["index"]), ROWS)]
  return [block for block in blocks if block["weight"].any()]


def _for_devices(rows, each=1):
  """`rows` or the next number of which every device has a multiple of `each`."""
  unit = each * jax.device_count()
  return -(-rows // unit) * unit

"""Sampling and evaluation of a trained method, over all devices, in batches of any size."""

import concurrent.futures
import itertools
import math

import jax
import numpy as np

from jaxgen import noise
from jaxgen.core import method as method_lib
from jaxgen.core import parallel
from jaxgen.data import pipeline

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


def evaluator(method, batch_size):
  """evaluate(vars, source, key, limit=None, n_classes=0) -> {"nats", "bits_per_dim", "n"}.

  The mean over the examples of the method's log_prob, survey Eq. 61: to the bit the same for any
  batch_size and any number of devices and hosts on which XLA compiles it in the same way. For that,
  one program evaluates ROWS successive examples on one device, example i always as its row i mod
  ROWS; a program over several devices would be rounded in another way for each number of them. So
  every device holds all parameters, also those that training splits.
  batch_size: examples read and sent at a time, rounded up to ROWS on every device.

  Raises ValueError for an empty source or a limit below 1, and FloatingPointError, naming the first
  such example, where a log_prob is not finite.
  """
  rows = _for_devices(batch_size, ROWS)

  @jax.jit
  def log_prob(vars, block, key):
    keys = noise.rows(key, ROWS, block["index"][0])
    return method.fns["log_prob"](method_lib.averaged(method, vars), block, keys)

  def evaluate(vars, source, key, limit=None, n_classes=0):
    batches = pipeline.eval_batches(source, rows=rows, limit=limit, n_classes=n_classes or None)
    values = np.zeros(min(len(source), limit or len(source)), np.float32)
    copies = parallel.copies(vars)
    with concurrent.futures.ThreadPoolExecutor(len(copies)) as pool:  # compiled for all at once
      for batch in batches:
        blocks = _blocks(batch)
        results = pool.map(log_prob, itertools.cycle(copies), blocks, itertools.repeat(key))
        for block, result in zip(blocks, jax.device_get([*results]), strict=True):
          real = block["weight"] > 0
          values[block["index"][real]] = result[real]
    values = parallel.sum_hosts(values)  # each example is on one host, and 0 on the others
    bad = np.flatnonzero(~np.isfinite(values))
    if bad.size:
      raise FloatingPointError(f"log_prob of test example {bad[0]} is not finite")
    nats = math.fsum(values) / len(values)
    bits_per_dim = -nats / math.prod(batch["image"].shape[1:]) / math.log(2.0)
    return {"nats": nats, "bits_per_dim": bits_per_dim, "n": len(values)}

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

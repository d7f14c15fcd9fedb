"""Sampling and evaluation of a trained method, over all devices, in batches of any size."""

import math

import jax
import numpy as np

from jaxgen.core import method as method_lib
from jaxgen.core import parallel
from jaxgen.data import pipeline


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


def evaluator(method, rows):
  """evaluate(vars, source, key, limit=None, n_classes=0) -> {"nats", "bits_per_dim", "n"}.

  The mean over the examples of the method's log_prob, survey Eq. 61, the same for any number of
  rows and devices. Raises FloatingPointError where it is not finite.
  """
  rows = _for_devices(rows)

  def log_prob(vars, batch, keys):
    return method.fns["log_prob"](method_lib.averaged(method, vars), batch, keys), batch["weight"]

  run = parallel.compile_rows(log_prob, rows)

  def evaluate(vars, source, key, limit=None, n_classes=0):
    total, n = 0.0, 0
    batches = pipeline.eval_batches(source, rows=rows, limit=limit, n_classes=n_classes or None)
    for i, batch in enumerate(batches):
      inputs = parallel.shard_rows(batch)
      values, weight = jax.device_get(run(vars, inputs, key, np.int32(i * rows)))
      values = values[weight > 0].astype(np.float64)
      if not np.isfinite(values).all():
        at = i * rows + int(np.flatnonzero(~np.isfinite(values))[0])
        raise FloatingPointError(f"log_prob of test example {at} is not finite")
      total, n = total + values.sum(), n + len(values)
    dims = math.prod(batch["image"].shape[1:])
    nats = float(total / n)
    return {"nats": nats, "bits_per_dim": -nats / dims / math.log(2.0), "n": n}

  return evaluate


def _for_devices(rows):
  devices = jax.device_count()
  return -(-rows // devices) * devices

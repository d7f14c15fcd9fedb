"""python tests/survivor.py: a launcher like experiments.train, of a tiny run that can be told to
fail. What it learns says which steps it took: `count` is the step, `seen` how often it was given
each example.
"""

import resource
import time
from unittest import mock

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax
import tqdm
from absl import flags

from experiments import launch
from jaxgen import noise
from jaxgen.core import axis, checkpoint, loop, parallel, report
from jaxgen.core import method as method_lib
from jaxgen.core.method import Aux, Ema, Method, Phase, Vars
from jaxgen.data import sources

EXAMPLES, ROWS = 50, 8  # an epoch ends within a batch
BALLAST = 2**18  # floats: so the files of a checkpoint are larger than all others of the run
BIGGEST_FILE = 2**17  # bytes, where the disk is full

FOLDER = flags.DEFINE_string("folder", None, "Of the run.")
STEPS = flags.DEFINE_integer("steps", 10**6, "Of the run.")
EVERY = flags.DEFINE_integer("every", 2, "Steps between checkpoints.")
SECONDS = flags.DEFINE_float("seconds", 0.0, "That every step takes longer.")
TIMEOUT = flags.DEFINE_integer("timeout", 600, "Of the input, in seconds.")
FAULT = flags.DEFINE_string("fault", None, "raise, stall, full or inf: what happens,")
AT = flags.DEFINE_integer("at", 0, "when the batch of this step is loaded,")
HOST = flags.DEFINE_integer("host", 0, "on this host.")


def method():
  """Noise, an average, statistics of the global batch."""

  def loss(vars, batch, keys):
    error = batch["x"] @ vars.params["w"] - noise.normal(keys, (3,))
    extra = dict(vars.extra["w"])
    extra["count"] = extra["count"] + 1
    extra["seen"] = extra["seen"] + axis.total(jax.nn.one_hot(batch["id"], EXAMPLES).sum(0))
    return jnp.mean(error**2), Aux(extra={"w": extra})

  def init(key):
    seen, ballast = jnp.zeros(EXAMPLES), jax.random.normal(key, (BALLAST,))
    extra = {"count": jnp.int32(0), "seen": seen, "ballast": ballast}
    return Vars({"w": jnp.ones((4, 3)), "frozen": jnp.ones(3)}, {"w": extra})

  phases = {"w": Phase(loss, ("w",), optax.adam(1e-2))}
  return Method(init, phases, ema={"w_ema": Ema("w", 0.9)})


def config(steps, every=2, timeout=600):
  """Of a run of `method`."""
  data = dict(source="digits", batch_size=ROWS, image_size=0, flip=False, workers=0)
  train = dict(steps=steps, log_every=1, checkpoint_every=every, seed=0, parallel="jit")
  train.update(sample_every=0, eval_every=0, eval_examples=1)
  c = dict(model="vae.vae", args={}, init_from={}, data={**data, "timeout": timeout}, train=train)
  return ml_collections.ConfigDict(c)


class Examples:
  """The source; it may fail at one of its batches."""

  labels = None

  def __init__(self, fault=None, at=0):
    self._fault, self._left = fault, at
    self._x = np.random.default_rng(0).random((EXAMPLES, 4), np.float32)

  def __len__(self):
    return EXAMPLES

  def __getitem__(self, i):
    return {"x": self._x[i], "id": np.int32(i)}

  def take(self, index):
    """One batch."""
    self._left -= 1
    fault = self._fault if self._left == 0 else None
    if fault:
      print(f"{fault} at {time.time()}", flush=True)
    if fault == "raise":
      raise RuntimeError("a bad shard")
    if fault == "stall":
      time.sleep(1000.0)
    if fault == "full":
      resource.setrlimit(resource.RLIMIT_FSIZE, (BIGGEST_FILE, resource.RLIM_INFINITY))
    x = np.full((len(index), 4), np.inf, np.float32) if fault == "inf" else self._x[index]
    return {"x": x, "id": index.astype(np.int32)}


def run(folder, steps, *, every=2, timeout=600, seconds=0.0, fault=None, at=0, **more):
  """`loop.run` of all that, which prints where it starts."""
  write, open_writers = report.write, report.open_writers

  def slow_write(*args):
    write(*args)
    time.sleep(seconds)

  def tell(workdir, first):
    print(f"starts after step {first}", flush=True)
    return open_writers(workdir, first)

  # Nobody reads before the end: a progress bar would fill the pipe, and the run would wait.
  silent = lambda *_: tqdm.tqdm(disable=True)
  with (
    mock.patch.object(report, "progress", silent),
    mock.patch.object(sources, "open_source", lambda *_, **__: Examples(fault, at)),
    mock.patch.object(report, "write", slow_write),
    mock.patch.object(report, "open_writers", tell),
  ):
    return loop.run(config(steps, every, timeout), folder, method=method(), **more)


def load(folder):
  """`checkpoint.load`'s Vars, as numpy."""
  with mock.patch.object(method_lib, "build", lambda *_: method()):
    return jax.device_get(checkpoint.load(folder)[1])


def main():
  fault = FAULT.value if jax.process_index() == HOST.value else None
  options = dict(every=EVERY.value, timeout=TIMEOUT.value, seconds=SECONDS.value)
  fallback = launch.FALLBACK.value
  state = run(
    FOLDER.value, STEPS.value, fault=fault, at=AT.value, allow_fallback=fallback, **options
  )
  print(f"state {checkpoint.sha256(jax.tree.map(parallel.whole, state))}", flush=True)


if __name__ == "__main__":
  launch.run(main)

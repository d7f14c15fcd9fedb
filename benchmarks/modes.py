r"""What the parallel modes cost: time to compile, time a step, memory a device.

python -m benchmarks.modes [--config=configs/flow_matching/flow_matching.py:mnist16] [--devices=4]
    [--rounds=15]

The modes take turns, a step each, on random images. CPU devices share the cores of this machine, so
only ratios mean something. Compiling is given in CPU seconds, and is not taken from the cache.
"""

import time

import jax
import numpy as np
from absl import app, flags

from jaxgen.core import config as config_lib
from jaxgen.core import method as method_lib
from jaxgen.core import parallel

CONFIG = flags.DEFINE_string(
  "config", "configs/flow_matching/flow_matching.py:mnist16", "A model of images."
)
DEVICES = flags.DEFINE_integer("devices", 4, "CPU devices.", lower_bound=1)
ROUNDS = flags.DEFINE_integer("rounds", 15, "Steps of each mode.", lower_bound=2)

UNITS = {"fastest": "s", "median": "s", "compile": "s", "state": "MB", "temporary": "MB"}


def megabytes(state):
  """Of one device's share of the state."""
  return sum(x.addressable_data(0).nbytes for x in jax.tree.leaves(state)) / 1e6


def main(_):
  jax.config.update("jax_platforms", "cpu")
  jax.config.update("jax_num_cpu_devices", DEVICES.value)
  jax.config.update("jax_enable_compilation_cache", False)
  config = config_lib.read(CONFIG.value)
  method = method_lib.build(config.model, config.args)
  parallel.check_rows(config.data.batch_size)
  shape = (method_lib.micro_batches(method), config.data.batch_size, *config.args.image_shape)
  images = {"image": np.random.default_rng(0).random(shape, np.float32) * 2 - 1}
  key, steps, states, batches, rows = jax.random.key(0), {}, {}, {}, {}
  for mode in parallel.MODES:
    states[mode] = parallel.compile_init(method, mode)(jax.random.key(1))
    batches[mode] = parallel.shard_batch(images, mode)
    lowered = parallel.compile_step(method, mode).lower(states[mode], batches[mode], key)
    since = time.process_time()
    steps[mode] = lowered.compile()
    used = steps[mode].memory_analysis()
    rows[mode] = dict(
      compile=time.process_time() - since,
      state=megabytes(states[mode]),
      temporary=used.temp_size_in_bytes / 1e6,
    )
  times = {mode: [] for mode in parallel.MODES}
  for _ in range(ROUNDS.value + 1):
    for mode in parallel.MODES:
      since = time.perf_counter()
      states[mode], _ = jax.block_until_ready(steps[mode](states[mode], batches[mode], key))
      times[mode].append(time.perf_counter() - since)
  print(f"{CONFIG.value}, {DEVICES.value} CPU devices, {ROUNDS.value} rounds; ratios to jit")
  print("| mode | step, fastest | step, median | compile | state a device | temporary a device |")
  print("| --- | --- | --- | --- | --- | --- |")
  for mode, row in rows.items():
    row |= dict(fastest=min(times[mode][1:]), median=np.median(times[mode][1:]))
    cells = [f"{row[k]:.3g} {unit} ({row[k] / rows['jit'][k]:.2f})" for k, unit in UNITS.items()]
    print(f"| {' | '.join([mode, *cells])} |")


if __name__ == "__main__":
  app.run(main)

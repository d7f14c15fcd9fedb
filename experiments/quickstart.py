r"""Flow matching on 8x8 handwritten digits: trains for two minutes and shows what came of it.

python -m experiments.quickstart [--workdir=runs/quickstart]
"""

import json

import jax
import jax.numpy as jnp
import matplotlib
import numpy as np
from absl import app, flags
from matplotlib import pyplot

from jaxgen import noise, paths
from jaxgen.core import checkpoint, inference, loop, parallel, report
from jaxgen.core import config as config_lib
from jaxgen.core import method as method_lib
from jaxgen.samplers import ode

CONFIG = flags.DEFINE_string(
  "config", "configs/flow_matching/flow_matching.py:digits", "A flow with classes."
)
WORKDIR = flags.DEFINE_string("workdir", "runs/quickstart", "Where everything goes.")
SHOWN = 8  # times of the denoising strip


def denoising(method, vars, keys, image_shape, labels):
  """[n * SHOWN, H, W, C]: each row one sample on its way from noise to data."""
  field = method.fns["field"](method_lib.averaged(method, vars), {"label": labels})
  ts = paths.times(field.path, 7 * (SHOWN - 1))
  solve = jax.jit(lambda x, ts: ode.heun(field.velocity, x, ts))
  strip = [noise.normal(keys, image_shape)]
  for i in range(SHOWN - 1):
    strip.append(solve(strip[-1], ts[7 * i : 7 * i + 8]))
  return jnp.stack(strip, 1).reshape(-1, *image_shape)


def main(_):
  parallel.start()
  matplotlib.use("Agg")
  config, out = config_lib.read(CONFIG.value), checkpoint.open_workdir(WORKDIR.value)
  loop.run(config, out)
  method, vars = checkpoint.load(out)
  key, (n, cond) = loop.root_keys(config.train.seed).sample, loop.grid_cond(config, method)
  images = inference.sampler(method, n)(parallel.replicate(vars), key, n, cond)["image"]
  report.save_png(out / "samples.png", report.grid(images, loop.GRID_COLUMNS))
  labels = np.unique(cond["label"])
  strip = denoising(method, vars, noise.rows(key, len(labels)), config.args.image_shape, labels)
  report.save_png(out / "denoising.png", report.grid(strip, SHOWN))
  lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
  lines = [line for line in lines if "net/loss" in line]
  pyplot.semilogy([x["step"] for x in lines], [x["net/loss"] for x in lines])
  pyplot.xlabel("step")
  pyplot.ylabel("flow matching loss")
  pyplot.savefig(out / "loss.png", dpi=100)
  for name in ("samples.png", "denoising.png", "loss.png", "metrics.jsonl", "checkpoints"):
    print(out / name)


if __name__ == "__main__":
  app.run(main)

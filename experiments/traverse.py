r"""Latent traversals of a VAE: a row a latent, from -3 to 3 standard deviations of its prior.

python -m experiments.traverse --workdir=runs/beta_vae [--example=0] [--rows=10]
The other latents are those of a test image. First is what has most KL over the first 512 of them.
arXiv:1804.03599, Fig. 4.
"""

import jax
import numpy as np
from absl import flags

from experiments import launch
from jaxgen.core import checkpoint, inference, loop, parallel, report
from jaxgen.core import config as config_lib
from jaxgen.core import method as method_lib
from jaxgen.data import sources
from jaxgen.objectives import elbo

WORKDIR = flags.DEFINE_string("workdir", None, "Folder or bucket of the run.", required=True)
EXAMPLE = flags.DEFINE_integer("example", 0, "Which test image.", lower_bound=0)
ROWS = flags.DEFINE_integer("rows", 10, "Latents, at most.", lower_bound=1)
COLUMNS = 9
FIRST = 512  # images for the KL


def main():
  method, vars = checkpoint.load(WORKDIR.value, launch.FALLBACK.value)
  able = {"posterior", "decode"} <= method.fns.keys()
  method_lib.check("workdir", WORKDIR.value, able, "a model with posterior and decode")
  vars = parallel.replicate(method_lib.averaged(method, vars))
  workdir = checkpoint.open_workdir(WORKDIR.value)
  config = config_lib.read_snapshot(workdir)
  data = config.data
  source = sources.open_source(data.source, "test", image_size=data.image_size or None)
  method_lib.check_count("example", EXAMPLE.value, 0, len(source) - 1)
  run = inference.by_example(method.fns["posterior"], FIRST)
  key, n = loop.root_keys(0).evaluate, max(FIRST, EXAMPLE.value + 1)
  mean, log_var = run(vars, source, key, limit=n, n_classes=config.args.get("n_classes", 0))
  kl = np.mean(elbo.normal_kl(mean[:FIRST], log_var[:FIRST], 0.0, 0.0), axis=0)
  order = np.argsort(-kl)[: ROWS.value]
  z = np.tile(mean[EXAMPLE.value], (len(order), COLUMNS, 1))
  for row, i in enumerate(order):
    z[row, :, i] = np.linspace(-3.0, 3.0, COLUMNS)
  decode = jax.jit(lambda vars, z: method.fns["decode"](vars, z)["image"])
  images = np.asarray(decode(vars, z.reshape(-1, z.shape[-1])))
  file = workdir / "traversals.png"
  if not jax.process_index():
    report.save_png(file, report.grid(images, COLUMNS))
    told = ", ".join(f"{i}: {kl[i]:.2f}" for i in order)
    print(f"{file}: latents and their KL in nats: {told}")


if __name__ == "__main__":
  launch.run(main)

r"""What DRAW draws step by step, a row a sample, each window that was written in red.

python -m experiments.glimpses --workdir=runs/draw [--n=8] [--steps=10] [--scale=2]
arXiv:1502.04623, Fig. 1; survey Fig. 7.
"""

import inspect

import jax
import numpy as np
from absl import flags
from PIL import Image, ImageDraw

from experiments import launch
from jaxgen.core import checkpoint, inference, loop, parallel, report
from jaxgen.core import method as method_lib

WORKDIR = flags.DEFINE_string("workdir", None, "Folder or bucket of the run.", required=True)
N = flags.DEFINE_integer("n", 8, "Samples.", lower_bound=1)
STEPS = flags.DEFINE_integer("steps", 10, "How many of the steps are shown.", lower_bound=1)
SCALE = flags.DEFINE_integer("scale", 2, "Pixels a side of a pixel.", lower_bound=1)
SEED = flags.DEFINE_integer("seed", 0, "Sample i of a seed is always the same.", lower_bound=0)


def strip(canvases, windows, steps, *, scale=4):
  """Rows of canvases with their windows in red, uint8 [n * H * scale, steps * W * scale, 3].

  As in Fig. 1 and survey Fig. 7; the border is as wide as the filters, whose centres the square
  joins.

  Args:
    canvases: [n, T, H, W, C] in [-1, 1]. windows: [n, T, 4], of `sample` with steps=True.
    steps: a scalar, how many of the T, evenly spaced, the last among them.
    scale: pixels a side of a pixel.

  Raises:
    ValueError: more steps than there are, or a scale below 1.
  """
  n, total, height, width, channels = np.shape(canvases)
  method_lib.check_count("steps", steps, 1, total)
  method_lib.check_count("scale", scale)
  picture = Image.new("RGB", (steps * width * scale, n * height * scale))
  for row in range(n):
    for column, t in enumerate(np.linspace(0, total - 1, steps + 1).round().astype(int)[1:]):
      pixels = np.uint8(np.rint(127.5 * (np.asarray(canvases[row, t]) + 1.0)))
      pixels = np.broadcast_to(pixels, (height, width, 3))
      panel = Image.fromarray(pixels).resize((width * scale, height * scale), Image.NEAREST)
      x, y, side, std = (float(v) * scale for v in windows[row, t])
      x, y, reach = x - scale / 2, y - scale / 2, side / 2  # pixel 1 is half a pixel from the edge
      square, border = [x - reach, y - reach, x + reach, y + reach], max(1, round(std))
      ImageDraw.Draw(panel).rectangle(square, outline=(255, 0, 0), width=border)
      picture.paste(panel, (column * width * scale, row * height * scale))
  return np.asarray(picture)


def main():
  method, vars = checkpoint.load(WORKDIR.value, launch.FALLBACK.value)
  able = "steps" in inspect.signature(method.fns["sample"]).parameters
  method_lib.check("workdir", WORKDIR.value, able, "a model that draws in steps")
  draw = inference.sampler(method, N.value, steps=True)
  found = draw(parallel.replicate(vars), loop.root_keys(SEED.value).sample, N.value)
  picture = strip(found["canvases"], found["windows"], STEPS.value, scale=SCALE.value)
  file = checkpoint.open_workdir(WORKDIR.value) / "glimpses.png"
  if not jax.process_index():
    report.save_png(file, picture)
    print(f"{N.value} samples: {file}")


if __name__ == "__main__":
  launch.run(main)

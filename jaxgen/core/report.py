"""What a run shows: metrics, pictures, a progress bar, an overview."""

import io
import json
import os
import pathlib
import subprocess
import sys

import jax
import numpy as np
import tqdm
from clu import parameter_overview
from PIL import Image

from jaxgen.core import config as config_lib
from jaxgen.data import pipeline

_GAP = 4
_PIXELS = 64  # smaller images are enlarged to about this in grids


class JsonLines:
  """clu's MetricWriter over workdir/metrics.jsonl (one object a call) and workdir/samples/*.png."""

  def __init__(self, workdir, step):
    self._workdir, self._path = workdir, workdir / "metrics.jsonl"
    if self._path.exists():  # what a run that was cut wrote after its last checkpoint
      lines = self._path.read_text().splitlines(keepends=True)
      whole = [x for x in lines if x.endswith("}\n")]  # the last one may have been cut
      kept = "".join(x for x in whole if json.loads(x)["step"] <= step)
      config_lib.write_whole(self._path, kept)

  def write_scalars(self, step, scalars):
    """scalars: name -> number."""
    line = {"step": step, **{k: float(v) for k, v in scalars.items()}}
    append(self._path, json.dumps(line) + "\n")

  def write_images(self, step, images):
    """images: name -> uint8 [n, H, W, C]; a PNG each."""
    for name, image in images.items():
      save_png(self._workdir / "samples" / f"{name}_{step:08d}.png", image[0])

  def flush(self):
    """Nothing is left to write."""

  close = flush


def append(path, text):
  """Adds to a text file. A bucket cannot (gcsfs starts the file anew): there all is written."""
  if "://" not in str(path):
    with path.open("a") as f:
      f.write(text)
    return
  path.write_text((path.read_text() if path.exists() else "") + text)


def launched(workdir, step):
  """Adds a line to launches.jsonl: from which step, with which code and on what a run goes on."""
  if jax.process_index() == 0:
    line = {"step": step, "commit": commit(), "hardware": hardware(), "jax": jax.__version__}
    append(workdir / "launches.jsonl", json.dumps(line) + "\n")


def commit():
  """The commit of the running code, with "+" where files have changed; None outside of git."""
  root = pathlib.Path(__file__).parents[2]
  here = [f"--git-dir={root / '.git'}", f"--work-tree={root}"]  # not a repository around it
  ask = ["git", *here, "describe", "--always", "--abbrev=7", "--exclude=*", "--dirty=+"]
  try:
    return subprocess.run(ask, check=True, capture_output=True, text=True).stdout.strip()
  except (OSError, subprocess.CalledProcessError):
    return None


def hardware():
  """The class of this run's machines: "2 CPU cores", "8 NVIDIA H100"."""
  kind = jax.devices()[0].device_kind
  return f"{os.cpu_count()} CPU cores" if kind == "cpu" else f"{jax.device_count()} {kind}"


def open_writers(workdir, step):
  """On host 0, JSON lines and, where it is installed, TensorBoard; elsewhere nothing."""
  if jax.process_index():
    return []
  writers = [JsonLines(workdir, step)]
  try:
    from clu.metric_writers import summary_writer  # imports TensorFlow and tensorboard
  except ImportError:
    return writers
  return [*writers, summary_writer.SummaryWriter(str(workdir))]


def write(writers, step, scalars):
  """scalars: name -> number."""
  for writer in writers:
    writer.write_scalars(step, scalars)
    writer.flush()


def write_grid(writers, step, images, columns):
  """images: [n, H, W, C] in [-1, 1], C of 1 or 3."""
  for writer in writers:
    writer.write_images(step, {"samples": grid(images, columns)[None]})
    writer.flush()


def grid(images, columns):
  """[n, H, W, C] in [-1, 1], C of 1 or 3 -> one uint8 image: small ones enlarged, white between."""
  n, h, w, c = images.shape
  rows = -(-n // columns)
  scale = max(1, _PIXELS // max(h, w))
  x = pipeline.to_uint8(images).repeat(scale, 1).repeat(scale, 2)
  missing = rows * columns - n
  x = np.pad(x, ((0, missing), (0, _GAP), (0, _GAP), (0, 0)), constant_values=255)
  h, w = x.shape[1:3]
  x = x.reshape(rows, columns, h, w, c).swapaxes(1, 2).reshape(rows * h, columns * w, c)
  return x[:-_GAP, :-_GAP]


def save_png(path, image):
  """image: uint8 [H, W, C], C of 1 or 3; path: an epath.Path, whose folders are made."""
  buffer = io.BytesIO()
  Image.fromarray(image.squeeze(-1) if image.shape[-1] == 1 else image).save(buffer, "PNG")
  path.parent.mkdir(parents=True, exist_ok=True)
  path.write_bytes(buffer.getvalue())


def say(line):
  """Prints a line above the progress bar, on host 0."""
  if jax.process_index() == 0:
    tqdm.tqdm.write(line, file=sys.stderr)


def progress(first, steps):
  """A bar with loss, steps/s and the time left, on host 0."""
  seconds = 0.1 if sys.stderr.isatty() else 30.0
  bar = dict(initial=first, total=steps, unit="step", dynamic_ncols=True, mininterval=seconds)
  return tqdm.tqdm(disable=jax.process_index() != 0, **bar)


def overview(method, state, compiled, seconds):
  """Prints the parameters of every network but the averages, and what the compiled step takes."""
  own = {name: params for name, params in state.params.items() if name not in method.ema}
  say(parameter_overview.get_parameter_overview(own, include_stats=False))
  memory = compiled.memory_analysis()  # None where the backend does not know
  used = memory and f", {(memory.argument_size_in_bytes + memory.temp_size_in_bytes) / 1e9:.3f} GB"
  say(f"Compiled the step in {seconds:.1f} s{used or ''} a device on {jax.device_count()} devices")

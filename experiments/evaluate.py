r"""Measures of a run, or of images as they are: likelihoods, latents, features, pairs.

python -m experiments.evaluate --workdir=runs/ddpm                     # nats and bits per dimension
python -m experiments.evaluate --workdir=runs/ddpm --measures=frechet,kernel,precision_recall
    --extractors=inception:weights/inception.safetensors [--options='{"steps": 50}']
    [--row=results/ddpm_cifar10.json]
python -m experiments.evaluate --images=folder:a --source=folder:b --measures=frechet,ssim,lpips
    --extractors=inception:weights/inception.safetensors,vgg:weights/lpips.safetensors
"""

import json
import pathlib

import jax
from absl import flags

from experiments import launch
from jaxgen import results
from jaxgen.core import checkpoint, inference, loop, parallel, report
from jaxgen.core import config as config_lib
from jaxgen.core import method as method_lib
from jaxgen.data import text
from jaxgen.metrics import evaluation, extractors, frechet

WORKDIR = flags.DEFINE_string("workdir", None, "Folder or bucket of the run.")
IMAGES = flags.DEFINE_string("images", None, "A source of images in place of a run's samples.")
MEASURES = flags.DEFINE_list("measures", "bits_per_dim,nats", f"Of {', '.join(evaluation.NAMES)}.")
EXTRACTORS = flags.DEFINE_list("extractors", "", "KIND:FILE, of which features are measured.")
SAMPLES = flags.DEFINE_integer("samples", 50_000, "How many samples of a run.", lower_bound=1)
OPTIONS = flags.DEFINE_string("options", "{}", "Keywords of the method's sample, as JSON.")
SOURCE = flags.DEFINE_string("source", None, "The data; by default the run's data.source.")
IMAGE_SIZE = flags.DEFINE_integer(
  "image_size", None, "In place of the run's data.image_size; 0 leaves images.", lower_bound=0
)
SPLIT = flags.DEFINE_enum("split", "test", ["train", "test"], "For likelihoods and latents.")
DRAWS = flags.DEFINE_integer("draws", 500, "Of z an image, for importance_nll.", lower_bound=1)
N = flags.DEFINE_integer("n", None, "The first so many examples of it.", lower_bound=1)
REFERENCE_SPLIT = flags.DEFINE_enum(
  "reference_split", "train", ["train", "test"], "Of the data, for features."
)
REFERENCE_N = flags.DEFINE_integer("reference_n", None, "Its first images.", lower_bound=1)
MOMENTS = flags.DEFINE_string(
  "moments", None, "In place of that: a published npz of mu and sigma, for frechet."
)
VOCABULARY = flags.DEFINE_string(
  "vocabulary", None, "bpe_simple_vocab_16e6.txt.gz of openai/CLIP, for clip_score."
)
ALLOW_FEW = flags.DEFINE_bool("allow_few", False, "Frechet distances of n <= dimensions.")
SEED = flags.DEFINE_integer("seed", 0, "Of samples, and of the noise in a bound.", lower_bound=0)
BATCH_SIZE = flags.DEFINE_integer(
  "batch_size", 100, "Examples read and sent at a time; numbers do not depend on it.", lower_bound=1
)
ROW = flags.DEFINE_string("row", None, "A file of results/, into which the run's numbers go.")


def of_run(names, networks):
  """(label -> what is measured of a run, its folder)."""
  method, vars = checkpoint.load(WORKDIR.value, launch.FALLBACK.value)
  vars, workdir = parallel.replicate(vars), checkpoint.open_workdir(WORKDIR.value)
  config, keys = config_lib.read_snapshot(workdir), loop.root_keys(SEED.value)
  spec, n_classes = SOURCE.value or config.data.source, config.args.get("n_classes", 0)
  size = config.data.image_size if IMAGE_SIZE.value is None else IMAGE_SIZE.value
  if ROW.value:
    results.check_fits(pathlib.Path(ROW.value), workdir)
  fits = (
    SOURCE.value or config.args.get("coupling") != "given" or {*names} <= {*evaluation.OF_FLOWS}
  )
  what = "the data: those of this run are samples of another"
  method_lib.check("--source", SOURCE.value, fits, what)
  found = {}
  if own := [name for name in names if name in evaluation.OF_DATA]:
    told = (
      evaluation.open_data(spec, SPLIT.value, N.value, size),
      keys.evaluate,
      n_classes,
      BATCH_SIZE.value,
    )
    found |= evaluation.of_method(own, method, vars, *told, draws=DRAWS.value)
  if sampled := [name for name in names if name not in evaluation.OF_DATA]:
    method_lib.check("model", config.model, "sample" in method.fns, "one that samples")
    options = launch.options(OPTIONS.value, method.fns["sample"])
    conditions = inference.conditions(config, method, SAMPLES.value)
    drawn = (method, vars, keys.sample, conditions)
    judged = evaluation.draw_samples(*drawn, **options)
    if of_flow := [name for name in sampled if name in evaluation.OF_FLOWS]:
      found |= evaluation.of_flow(of_flow, *drawn, BATCH_SIZE.value, **options)
    if any(name in evaluation.OF_POINTS for name in sampled):
      points = evaluation.open_data(spec, REFERENCE_SPLIT.value, None, size)
      found |= evaluation.of_points(judged, points, BATCH_SIZE.value)
    if of_features := [name for name in sampled if name in evaluation.OF_FEATURES]:
      found |= compare(of_features, networks, judged, spec, size)
  return found, workdir


def of_images(names, networks):
  """Label -> what is measured of images as they are."""
  images = evaluation.open_data(IMAGES.value, "train", N.value, IMAGE_SIZE.value)
  found = {}
  if "clip_score" in names:
    tokenize = text.clip_tokenizer(VOCABULARY.value)
    network = next(n for n in networks if "text" in n.outputs)
    found |= evaluation.of_captions(network, tokenize, images, BATCH_SIZE.value)
  if any(name in evaluation.OF_PAIRS for name in names):
    others = evaluation.open_data(SOURCE.value, REFERENCE_SPLIT.value, N.value, IMAGE_SIZE.value)
    found |= evaluation.of_pairs(names, networks, images, others, BATCH_SIZE.value)
  if of_features := [name for name in names if name in evaluation.OF_FEATURES]:
    judged = evaluation.read_images(images.source, images.n)
    found |= compare(of_features, networks, judged, SOURCE.value, IMAGE_SIZE.value)
  return found


def compare(names, networks, judged, spec, size):
  """Label -> measures of features of the judged, against the reference that the flags name."""
  real = None
  if MOMENTS.value:
    moments, file = frechet.read_moments(MOMENTS.value), pathlib.Path(MOMENTS.value).name
    real = evaluation.Data(moments, file, "", moments.n)
  elif spec:
    real = evaluation.open_data(spec, REFERENCE_SPLIT.value, REFERENCE_N.value, size)
  told = (judged, real, BATCH_SIZE.value)
  return evaluation.compare(names, networks, *told, allow_few=ALLOW_FEW.value)


def main():
  if (WORKDIR.value is None) == (IMAGES.value is None):
    raise ValueError("expected one of --workdir, a run, and --images, images in its place")
  if ROW.value and not WORKDIR.value:
    raise ValueError(f"--row={ROW.value}: expected --workdir, the run whose row it is")
  names, networks = MEASURES.value, [extractors.load(spec) for spec in EXTRACTORS.value]
  given = {"run": WORKDIR, "real": SOURCE, "moments": MOMENTS, "vocabulary": VOCABULARY}
  evaluation.check(names, networks, **{k: v.value is not None for k, v in given.items()})
  found, workdir = of_run(names, networks) if WORKDIR.value else (of_images(names, networks), None)
  if jax.process_index():
    return
  line = json.dumps({"seed": SEED.value, "measures": found})
  print(line)
  if workdir:
    report.append(workdir / "evaluation.jsonl", line + "\n")
  if ROW.value:
    results.record(pathlib.Path(ROW.value), workdir, found)


if __name__ == "__main__":
  launch.run(main)

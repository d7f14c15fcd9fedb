"""Weights of FID's Inception, arXiv:1706.08500, in torchvision's names -> `nn.inception`.

For pytorch-fid's pt_inception-2015-12-05-6726825d.pth, which torch-fidelity serves under another
name. The first digits of its sha256 are in both names, all of them in the source of those who check
it on download. Read the tensors with safetensors; no torch is needed.
"""

import jax
import jax.numpy as jnp

from jaxgen.convert import weights
from jaxgen.nn import inception

SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"
PUBLISHED = {
  "pt_inception-2015-12-05-6726825d.pth": SHA256,
  "weights-inception-2015-12-05-6726825d.pth": SHA256,
}


def from_torch(tensors):
  """State dict {name: array} -> (keywords of InceptionV3, its variables in float32).

  KeyError names a tensor that is missing, ValueError one of another shape or those left over.
  """
  x = jax.ShapeDtypeStruct((1, 299, 299, 3), jnp.float32)
  return {}, weights.fill(inception.InceptionV3(), x, tensors)

"""Weights of LPIPS, arXiv:1801.03924, in the names of torchvision and lpips -> `nn.vgg.LPIPS`.

For torchvision's vgg16-397923af.pth, whose name has the first digits of its sha256 (all of them
stand in the source of those who check it), together with the heads: lpips/weights/v0.1/vgg.pth of
PyPI's lpips 0.1.4, whose RECORD has its sha256. No torch is needed for tensors read with
safetensors.
"""

import jax
import jax.numpy as jnp

from jaxgen.convert import weights
from jaxgen.nn import vgg

PUBLISHED = {
  "vgg16-397923af.pth": "397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",
  "vgg.pth": "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868",
}

_IGNORED = ("classifier.", "alex.", "squeeze.")


def from_torch(tensors):
  """State dicts {name: array} of both files -> (keywords of LPIPS, its variables in float32).

  Heads are called lin0.model.1.weight or vgg.lin0.model.1.weight. Left out are VGG's classifier and
  the heads of other networks, `alex.` and `squeeze.`. KeyError names a tensor that is missing,
  ValueError one of another shape or those left over.
  """
  tensors = {k.removeprefix("vgg."): v for k, v in tensors.items() if not k.startswith(_IGNORED)}
  heads = {k: v for k, v in tensors.items() if k.startswith("lin")}
  features = {k: v for k, v in tensors.items() if k not in heads}
  x = jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32)
  taps, _ = jax.eval_shape(vgg.VGG16().init_with_output, jax.random.key(0), x)
  maps = [taps[name] for name in vgg.TAPS]
  names = _places()
  return {}, {
    "params": {
      "vgg": weights.fill(vgg.VGG16(), x, features, lambda path: names[path[0]])["params"],
      "heads": weights.fill(vgg.Heads(), maps, heads, "{0[0]}.model.1".format)["params"],
    }
  }


def _places():
  """{"conv1_1": "features.0"}: a convolution and its ReLU take two places there, a pool one."""
  names, place = {}, 0
  for i, widths in enumerate(vgg.BLOCKS, 1):
    for j in range(1, len(widths) + 1):
      names[f"conv{i}_{j}"] = f"features.{place}"
      place += 2
    place += 1
  return names

"""Weights of VDVAE, arXiv:2011.10650 -> `nn.vdvae.VDVAE`.

For the files of openai/vdvae, NAME-model.th and NAME-model-ema.th; ffhq256's were trained for 5-bit
images that end elsewhere than ours, see the deviations of the model.
"""

import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.convert import weights
from jaxgen.nn import vdvae

PUBLISHED = {}  # openai/vdvae gives no sha256


def from_torch(tensors, *, enc_blocks, dec_blocks, custom_widths="", bottleneck=0.25):
  """State dict {name: array} -> (keywords of VDVAE, its variables in float32).

  The options are keywords of `models.vae.vdvae.build`; in the official hps.py, enc_blocks,
  dec_blocks, custom_width_str and bottleneck_multiple. The tensors tell everything else.

  KeyError names a tensor that is missing, ValueError one of another shape, those left over and
  text that is no list of blocks.
  """
  left = {name.removeprefix("module."): x for name, x in tensors.items()}
  sides = sorted({side for side, _ in vdvae.parse_blocks("dec_blocks", dec_blocks, "m")})
  biased = [name for name in left if name.startswith("decoder.bias_xs.")]
  shape = lambda name: weights.need(left, f"{name}.weight").shape
  args = {
    "enc_blocks": enc_blocks,
    "dec_blocks": dec_blocks,
    "width": shape("encoder.in_conv")[0],
    "custom_widths": custom_widths,
    "z_dim": shape("decoder.dec_blocks.0.z_proj")[1],
    "bottleneck": bottleneck,
    "no_bias_above": max((left[name].shape[-1] for name in biased), default=0),
    "out": shape("decoder.out_net.out_conv")[0],
  }

  def take(path, expected):
    _, *modules, array = (key.key for key in path)
    theirs = ".".join(modules) if modules[:1] == ["encoder"] else ".".join(["decoder", *modules])
    theirs = theirs.replace("decoder.out_conv", "decoder.out_net.out_conv")
    theirs = re.sub(r"^(enc|dec)(oder\.)block_", r"\1\2\1_blocks.", theirs)
    side = re.fullmatch(r"bias_(\d+)", array)
    ours = {"kernel": "weight"}.get(array, array)
    name = f"{theirs}.{f'bias_xs.{sides.index(int(side[1]))}' if side else ours}"
    value = np.asarray(weights.need(left, name), np.float32)
    del left[name]
    if array == "kernel":
      value = np.moveaxis(value, (0, 1), (-1, -2))  # torch has outputs and inputs first
      value = value[0, 0] if len(expected.shape) == 2 else value  # a convolution of 1 x 1 is dense
    elif value.ndim == 4:
      value = np.moveaxis(value, 1, -1)
    if value.shape != expected.shape:
      raise ValueError(f"{name} is {value.shape} in our order of axes: expected {expected.shape}")
    return value

  net = vdvae.VDVAE(**args)
  x = jax.ShapeDtypeStruct((1, sides[-1], sides[-1], shape("encoder.in_conv")[1]), jnp.float32)
  init = lambda x: net.init(jax.random.key(0), lambda i, mean, log_var: mean, x)
  variables = jax.tree_util.tree_map_with_path(take, jax.eval_shape(init, x))
  if left:
    raise ValueError(f"no place for {sorted(left)}: expected a state dict of VDVAE")
  return args, variables

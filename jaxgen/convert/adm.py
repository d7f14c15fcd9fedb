"""Weights of ADM, arXiv:2105.05233, of its relatives and of its noisy classifier -> `nn.adm`.

For the files of openai/guided-diffusion, openai/improved-diffusion and openai/consistency_models,
and the state dict of EDM's DhariwalUNet (NVlabs/edm), arXiv:2206.00364.
"""

import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.convert import weights
from jaxgen.core import method
from jaxgen.nn import adm

PUBLISHED = {}  # guided-diffusion gives no sha256; not looked up for the others

ARRAYS = weights.ARRAYS | {"label": "weight", "position": "positional_embedding"}

# Our layers of a block, and theirs.
OPENAI = {
  "norm_0": "in_layers.0",
  "conv_0": "in_layers.2",
  "cond": "emb_layers.1",
  "norm_1": "out_layers.0",
  "conv_1": "out_layers.3",
  "shortcut": "skip_connection",
  "proj": "proj_out",
}
EDM = {
  "norm_0": "norm0",
  "conv_0": "conv0",
  "cond": "affine",
  "norm_1": "norm1",
  "conv_1": "conv1",
  "shortcut": "skip",
  "norm": "norm2",
}


def from_torch(
  tensors, *, image_size=None, heads=None, head_channels=None, use_new_attention_order=None
):
  """State dict {name: array} -> (keywords of ADM or Classifier, its variables in float32).

  Tensors with the names of EDM's DhariwalUNet, which may start with "model.", tell everything.
  For OpenAI's give what they were trained with: image_size (of the larger images, for an
  upsampler); head_channels (--num_head_channels; 64 in the classifiers) or else heads
  (--num_heads); and use_new_attention_order, True for ADM's 64x64_diffusion.pt and False for
  everything else of guided-diffusion and improved-diffusion. Consistency models tell it.

  KeyError names a tensor that is missing, ValueError one of another shape, those left over, and a
  keyword that is missing or given with EDM's names.
  """
  left = {name.removeprefix("model."): x for name, x in tensors.items()}
  left = {name: x for name, x in left.items() if not name.endswith(".resample_filter")}
  flags = (image_size, heads, head_channels, use_new_attention_order)
  edm = "map_layer0.weight" in left
  if edm:
    method.check("flags", flags, flags == (None,) * 4, "none for a DhariwalUNet")
    args, names, image_size = _edm(left)
  else:
    method.check_count("image_size", image_size)
    method.check("(heads, head_channels)", flags[1:3], flags[1:3].count(None) == 1, "one of them")
    method.check_count("heads or head_channels", heads if head_channels is None else head_channels)
    args, names = _openai(left, image_size, heads, head_channels)
    new = use_new_attention_order
    if weights.need(left, "middle_block.1.qkv.weight").ndim == 4:  # of cm/unet.py alone
      method.check("use_new_attention_order", new, new is not False, "True for consistency models")
      new = True
    method.check("use_new_attention_order", new, isinstance(new, bool), "True or False")
  order = "edm" if edm else "new" if new else "legacy"
  is_classifier = "out.2.positional_embedding" in left

  def take(path, expected):
    *modules, array = (key.key for key in path[1:])
    module = names.get("/".join(modules))
    if module is None:
      module = f"{names[modules[0]]}.{(EDM if edm else OPENAI).get(modules[1], modules[1])}"
    name = f"{module}.{ARRAYS[array]}"
    value = np.asarray(weights.need(left, name), np.float32)
    del left[name]
    while value.ndim > expected.ndim and value.shape[-1] == 1:  # a convolution of 1 x 1 is dense
      value = value[..., 0]
    if array in ("kernel", "position") or name == "map_label.weight":
      value = np.moveaxis(value, (0, 1), (-1, -2))  # torch has outputs and inputs first
    if value.shape != expected.shape:
      raise ValueError(f"{name} is {value.shape} in our order of axes: expected {expected.shape}")
    if modules[-1] == "qkv" and modules[0] != "pool":
      n_heads = args.get("heads") or value.shape[-1] // 3 // args["head_channels"]
      value = _by_qkv(value, n_heads, order)
    return value

  net = (adm.Classifier if is_classifier else adm.ADM)(**args)
  in_channels = weights.need(left, f"{names['conv_in']}.weight").shape[1]
  x = jax.ShapeDtypeStruct((1, image_size, image_size, in_channels), jnp.float32)
  label = jax.ShapeDtypeStruct((1,), jnp.int32) if args.get("n_classes") else None
  t = jax.ShapeDtypeStruct((1,), jnp.float32)
  inputs = (x, t) if is_classifier else (x, t, label)
  shapes = jax.eval_shape(net.init, jax.random.key(0), *inputs)
  variables = jax.tree_util.tree_map_with_path(take, shapes)
  if left:
    raise ValueError(f"no place for {sorted(left)}: expected a state dict of {type(net).__name__}")
  return args, variables


def _numbers(tensors, pattern):
  """What the pattern's group is, a number, in all names that start with it; in order."""
  found = filter(None, (re.match(pattern, name) for name in tensors))
  return sorted({int(m[1]) for m in found})


def _by_qkv(value, heads, order):
  """[..., 3C] of the heads' q, k and v, in one of three orders -> of q, of k and of v, by heads."""
  split = lambda *sizes: value.reshape(*value.shape[:-1], *sizes)
  parts = {
    "new": lambda: value,
    "legacy": lambda: split(heads, 3, -1).swapaxes(-3, -2),
    "edm": lambda: np.moveaxis(split(heads, -1, 3), -1, -3),  # head, channel, q or k or v
  }
  return parts[order]().reshape(value.shape)


def _openai(tensors, image_size, heads, head_channels):
  """(keywords of ADM or Classifier, {our module: theirs})."""
  blocks = len(_numbers(tensors, r"input_blocks\.(\d+)\."))
  is_classifier = "out.2.positional_embedding" in tensors
  if is_classifier:
    side = math.isqrt(tensors["out.2.positional_embedding"].shape[1] - 1)
    levels = (image_size // side).bit_length()
    ok = image_size == side << (levels - 1)
    method.check("image_size", image_size, ok, f"{side} times a power of 2")
  else:
    levels = 1 + len(_numbers(tensors, r"output_blocks\.(\d+)\.[12]\.(?:conv|in_layers)\."))
  k = max(1, blocks // levels)  # blocks of a level, with its resampling
  attends = [f"input_blocks.{i * k + 1}.1.qkv.weight" in tensors for i in range(levels)]
  resblock_updown = not any(f"input_blocks.{k}.0.op.{x}" in tensors for x in ("weight", "bias"))
  names = {
    "cond/time_0": "time_embed.0",
    "cond/time_1": "time_embed.2",
    "cond": "label_emb",
    "conv_in": "input_blocks.0.0",
    "mid_res_0": "middle_block.0",
    "mid_attn_0": "middle_block.1",
    "mid_res_1": "middle_block.2",
    "norm_out": "out.0",
    "conv_out": "out.2",
    "pool": "out.2",
    "pool/qkv": "out.2.qkv_proj",
    "pool/proj": "out.2.c_proj",
  }
  for i in range(levels):
    for j in range(k):
      down, up = f"input_blocks.{i * k + j + 1}", f"output_blocks.{(levels - 1 - i) * k + j}"
      names |= {f"down_{i}_res_{j}": f"{down}.0", f"down_{i}_attn_{j}": f"{down}.1"}
      names |= {f"up_{i}_res_{j}": f"{up}.0", f"up_{i}_attn_{j}": f"{up}.1"}
    names[f"downsample_{i}"] = f"{down}.0" if resblock_updown else f"{down}.0.op"
    names[f"upsample_{i}"] = f"{up}.{1 + attends[i]}" + ("" if resblock_updown else ".conv")
  args = _fields(tensors, names, OPENAI, levels, attends, image_size) | {
    "n_res_blocks": k - 1,
    "resblock_updown": resblock_updown,
    "group_channels": 1,
    **({"head_channels": head_channels} if head_channels else {"head_channels": 0, "heads": heads}),
    "out_channels": len(
      weights.need(tensors, f"{names['pool/proj' if is_classifier else 'conv_out']}.bias")
    ),
  }
  if "label_emb.weight" in tensors:
    args["n_classes"] = len(tensors["label_emb.weight"])
  return args, names


def _edm(tensors):
  """(keywords of ADM, {our module: theirs}, the size of images)."""
  sizes = _numbers(tensors, r"enc\.(\d+)x\d+_conv\.") or [0]
  levels = max(1, len(_numbers(tensors, r"enc\.(\d+)x\d+_block0\.")))
  n = max(1, len(_numbers(tensors, rf"enc\.{sizes[0]}x{sizes[0]}_block(\d+)\.")))
  side = [f"{sizes[0] >> i}x{sizes[0] >> i}" for i in range(levels + 1)]
  attends = [f"enc.{side[i]}_block0.qkv.weight" in tensors for i in range(levels)]
  names = {
    "cond/time_0": "map_layer0",
    "cond/time_1": "map_layer1",
    "cond/augment": "map_augment",
    "cond": "map_label",
    "conv_in": f"enc.{side[0]}_conv",
    "mid_res_0": f"dec.{side[levels - 1]}_in0",
    "mid_attn_0": f"dec.{side[levels - 1]}_in0",
    "mid_res_1": f"dec.{side[levels - 1]}_in1",
    "norm_out": "out_norm",
    "conv_out": "out_conv",
  }
  for i in range(levels):
    for part in ("res", "attn"):
      names |= {f"down_{i}_{part}_{j}": f"enc.{side[i]}_block{j}" for j in range(n)}
      names |= {f"up_{i}_{part}_{j}": f"dec.{side[i]}_block{j}" for j in range(n + 1)}
    names[f"downsample_{i}"] = f"enc.{side[i + 1]}_down"
    names[f"upsample_{i + 1}"] = f"dec.{side[i]}_up"
  args = _fields(tensors, names, EDM, levels, attends, sizes[0]) | {
    "n_res_blocks": n,
    "resblock_updown": True,
    "group_channels": 4,
    "head_channels": 64,
    "out_channels": len(weights.need(tensors, "out_conv.bias")),
  }
  for name, field in (("map_label", "n_classes"), ("map_augment", "augment")):
    if f"{name}.weight" in tensors:
      args[field] = tensors[f"{name}.weight"].shape[1]
  return args, names, sizes[0]


def _fields(tensors, names, layers, levels, attends, image_size):
  """Keywords that both families tell in the same way."""
  channels = weights.need(tensors, f"{names['cond/time_0']}.weight").shape[1]
  layer = lambda i, ours: weights.need(tensors, f"{names[f'down_{i}_res_0']}.{layers[ours]}.weight")
  widths = [len(layer(i, "conv_0")) for i in range(levels)]
  return {
    "channels": channels,
    "multipliers": tuple(w // channels if w % channels == 0 else w / channels for w in widths),
    "attention": tuple(image_size >> i for i in range(levels) if attends[i]),
    "scale_shift": len(layer(0, "cond")) == 2 * widths[0],
  }

"""Weights of Stable Diffusion 3, arXiv:2403.03206, in the names of Stability-AI/sd3-ref or of
diffusers' `SD3Transformer2DModel` -> `nn.mmdit.MMDiT`.

For sd3_medium.safetensors (its tensors below `model.diffusion_model.`; those of text encoders and
of the autoencoder are left out) and networks of any size. Stable Diffusion 3.5 medium, whose blocks
have a second attention, is another network. Read the tensors with safetensors; no torch is needed.
"""

import itertools
import math
import re

import numpy as np

from jaxgen.convert import weights
from jaxgen.nn import dit, mmdit

PUBLISHED = {}  # none that we could confirm
PREFIX = "model.diffusion_model."  # in files that hold the other networks too

# From diffusers' names to the authors'.
DIFFUSERS = [
  (r"^pos_embed\.proj\.", "x_embedder.proj."),
  (r"^pos_embed\.pos_embed$", "pos_embed"),
  (r"^time_text_embed\.timestep_embedder\.linear_1\.", "t_embedder.mlp.0."),
  (r"^time_text_embed\.timestep_embedder\.linear_2\.", "t_embedder.mlp.2."),
  (r"^time_text_embed\.text_embedder\.linear_1\.", "y_embedder.mlp.0."),
  (r"^time_text_embed\.text_embedder\.linear_2\.", "y_embedder.mlp.2."),
  (r"^transformer_blocks\.", "joint_blocks."),
  (r"\.norm1_context\.linear\.", ".context_block.adaLN_modulation.1."),
  (r"\.norm1\.linear\.", ".x_block.adaLN_modulation.1."),
  (r"\.attn\.to_([qkv])\.", r".x_block.attn.\1."),
  (r"\.attn\.add_([qkv])_proj\.", r".context_block.attn.\1."),
  (r"\.attn\.norm_([qk])\.", r".x_block.attn.ln_\1."),
  (r"\.attn\.norm_added_([qk])\.", r".context_block.attn.ln_\1."),
  (r"\.attn\.to_out\.0\.", ".x_block.attn.proj."),
  (r"\.attn\.to_add_out\.", ".context_block.attn.proj."),
  (r"\.ff_context\.net\.0\.proj\.", ".context_block.mlp.fc1."),
  (r"\.ff_context\.net\.2\.", ".context_block.mlp.fc2."),
  (r"\.ff\.net\.0\.proj\.", ".x_block.mlp.fc1."),
  (r"\.ff\.net\.2\.", ".x_block.mlp.fc2."),
  (r"^norm_out\.linear\.", "final_layer.adaLN_modulation.1."),
  (r"^proj_out\.", "final_layer.linear."),
]


def from_torch(tensors):
  """State dict {name: array} -> (keywords of MMDiT, its variables in float32).

  A table of positions that is not `nn.mmdit.positions` of any base size comes along in "buffers".

  KeyError names a tensor that is missing. ValueError names those that are left over or of another
  shape, and a width that is not 64 times the number of blocks.
  """
  if any(name.startswith(PREFIX) for name in tensors):
    tensors = {k.removeprefix(PREFIX): v for k, v in tensors.items() if k.startswith(PREFIX)}
  theirs = "pos_embed.proj.weight" in tensors
  left = {_renamed(name): np.asarray(value, np.float32) for name, value in tensors.items()}

  def take(name, *shape):
    value = weights.need(left, name)
    del left[name]
    if shape and value.shape != shape:
      raise ValueError(f"{name} is {value.shape}: expected {shape}")
    return value

  def layer(name, inputs=None, outputs=None):
    w = take(f"{name}.weight")
    inputs, outputs = inputs or w.shape[-1], outputs or len(w)
    if w.shape != (outputs, inputs):
      raise ValueError(f"{name}.weight is {w.shape}: expected {(outputs, inputs)}")
    return {"kernel": w.T, "bias": take(f"{name}.bias", outputs)}

  def swapped(layer):
    """diffusers has the scale before the shift where a modulation has no gates."""
    swap = lambda v: np.concatenate(np.split(v, 2, axis=-1)[::-1], axis=-1)
    return {k: swap(v) for k, v in layer.items()} if theirs else layer

  def stream(name, ours, has_output):
    if f"{name}.attn.q.weight" in left:
      for array in ("weight", "bias"):
        parts = [take(f"{name}.attn.{part}.{array}") for part in "qkv"]
        left[f"{name}.attn.qkv.{array}"] = np.concatenate(parts)
    modulation = layer(f"{name}.adaLN_modulation.1", width, (6 if has_output else 2) * width)
    found = {
      "modulation": modulation if has_output else swapped(modulation),
      "qkv": layer(f"{name}.attn.qkv", width, 3 * width),
    }
    for part in "qk" if qk_norm else "":
      norm = f"{name}.attn.ln_{part}"
      found[f"norm_{part}"] = {"scale": take(f"{norm}.weight", mmdit.HEAD)}
      if qk_norm == "ln":
        found[f"norm_{part}"]["bias"] = take(f"{norm}.bias", mmdit.HEAD)
    if has_output:
      found["proj"] = layer(f"{name}.attn.proj", width, width)
      found["fc_0"] = layer(f"{name}.mlp.fc1", width, 4 * width)
      found["fc_1"] = layer(f"{name}.mlp.fc2", 4 * width, width)
    return {f"{ours}_{k}": v for k, v in found.items()}

  patch = take("x_embedder.proj.weight")  # OIHW
  width, _, patch_size, _ = patch.shape
  starts = lambda i: any(name.startswith(f"joint_blocks.{i}.") for name in left)
  depth = next(i for i in itertools.count() if not starts(i))
  if width != mmdit.HEAD * depth:
    raise ValueError(f"{depth} blocks of width {width}: expected a width of {mmdit.HEAD * depth}")
  norm = "joint_blocks.0.x_block.attn.ln_q"
  qk_norm = "ln" if f"{norm}.bias" in left else "rms" if f"{norm}.weight" in left else ""
  params = {
    "patch": {
      "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, width),
      "bias": take("x_embedder.proj.bias", width),
    },
    "time_0": layer("t_embedder.mlp.0", dit.FREQUENCIES, width),
    "time_1": layer("t_embedder.mlp.2", width, width),
    "pooled_0": layer("y_embedder.mlp.0", None, width),
    "pooled_1": layer("y_embedder.mlp.2", width, width),
    "context": layer("context_embedder", None, width),
    "out_modulation": swapped(layer("final_layer.adaLN_modulation.1", width, 2 * width)),
    "out": layer("final_layer.linear", width),
  }
  for i in range(depth):
    params[f"block_{i}"] = stream(f"joint_blocks.{i}.x_block", "x", True)
    params[f"block_{i}"] |= stream(f"joint_blocks.{i}.context_block", "context", i < depth - 1)
  size, base, buffers = _positions(take("pos_embed"), width)
  if left:
    raise ValueError(f"no place for {sorted(left)}: expected an MMDiT with {depth} blocks")
  return {
    "patch_size": patch_size,
    "depth": depth,
    "out_channels": len(params["out"]["bias"]) // patch_size**2,
    "qk_norm": qk_norm,
    "pos_embed_max_size": size,
    "pos_embed_base_size": base,
  }, {"params": params, **buffers}


def _renamed(name):
  """In the authors' names."""
  for old, new in DIFFUSERS:
    name = re.sub(old, new, name)
  return name


def _positions(table, width):
  """(size, base size, the table as a buffer where it is not ours to the precision of float16)."""
  size = math.isqrt(table.shape[1])
  if table.shape != (1, size**2, width):
    raise ValueError(f"pos_embed is {table.shape}: expected {(1, size**2, width)}")
  step = math.asin(np.clip(table[0, min(1, size - 1), 0], 0.0, 1.0))  # its first wave is a sine
  base = max(round(step * size), 1)
  ours = mmdit.positions(width, size, size, max_size=size, base_size=base)
  if np.allclose(table[0], ours, rtol=0.0, atol=1e-3):
    return size, base, {}
  return size, base, {"buffers": {"positions": table.reshape(size, size, width)}}

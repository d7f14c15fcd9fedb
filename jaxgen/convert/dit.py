"""Weights of DiT, arXiv:2212.09748, in the names of facebookresearch/DiT or of diffusers'
`DiTTransformer2DModel` -> `nn.dit.DiT`.

For DiT-XL-2-256x256.pt, DiT-XL-2-512x512.pt, SiT-XL-2-256x256.pt (arXiv:2401.08740, whose names are
DiT's) and networks of any size, whose table of positions, where the file has one, is that of
`nn.dit.positions`. diffusers embeds times at other frequencies than the authors
(`downscale_freq_shift=1`) though its weights are theirs: ours are the authors'. Read the tensors
with safetensors; no torch is needed.
"""

import itertools
import math
import re

import numpy as np

from jaxgen.convert import weights
from jaxgen.nn import dit

PUBLISHED = {}  # the authors give no sha256

# From diffusers' names to the authors'. There every block has the embeddings, all the same.
DIFFUSERS = [
  (r"^pos_embed\.proj\.", "x_embedder.proj."),
  (r"^pos_embed\.pos_embed$", "pos_embed"),
  (r"^transformer_blocks\.\d+\.norm1\.emb\.timestep_embedder\.linear_1", "t_embedder.mlp.0"),
  (r"^transformer_blocks\.\d+\.norm1\.emb\.timestep_embedder\.linear_2", "t_embedder.mlp.2"),
  (r"^transformer_blocks\.\d+\.norm1\.emb\.class_embedder\.", "y_embedder."),
  (r"^transformer_blocks\.", "blocks."),
  (r"\.norm1\.linear\.", ".adaLN_modulation.1."),
  (r"\.attn1\.to_([qkv])\.", r".attn.\1."),
  (r"\.attn1\.to_out\.0\.", ".attn.proj."),
  (r"\.ff\.net\.0\.proj\.", ".mlp.fc1."),
  (r"\.ff\.net\.2\.", ".mlp.fc2."),
  (r"^proj_out_1\.", "final_layer.adaLN_modulation.1."),
  (r"^proj_out_2\.", "final_layer.linear."),
]


def from_torch(tensors, *, heads=None):
  """State dict {name: array} -> (keywords of DiT, its variables in float32).

  They are those of scan=False; `nn.dit.stack` turns their params into those of scan=True.
  heads: of attention, of which the tensors tell nothing. Unless it is given, it is that of the
  width in `nn.dit.SIZES`.

  KeyError names a tensor that is missing. ValueError names those that are left over, that are of
  another shape or that differ from block to block, positions that are not ours, and a width for
  which heads must be given.
  """
  left = _renamed(tensors)

  def take(name, *shape):
    value = weights.need(left, name)
    del left[name]
    if shape and value.shape != shape:
      raise ValueError(f"{name} is {value.shape}: expected {shape}")
    return value

  def layer(name, inputs, outputs=None):
    w = take(f"{name}.weight")
    shape = len(w) if outputs is None else outputs, inputs
    if w.shape != shape:
      raise ValueError(f"{name}.weight is {w.shape}: expected {shape}")
    return {"kernel": w.T, "bias": take(f"{name}.bias", len(w))}

  def block(name):
    if f"{name}.attn.q.weight" in left:
      for array in ("weight", "bias"):
        left[f"{name}.attn.qkv.{array}"] = np.concatenate(
          [take(f"{name}.attn.{part}.{array}") for part in "qkv"]
        )
    fc_0 = layer(f"{name}.mlp.fc1", width)
    return {
      "modulation": layer(f"{name}.adaLN_modulation.1", width, 6 * width),
      "qkv": layer(f"{name}.attn.qkv", width, 3 * width),
      "proj": layer(f"{name}.attn.proj", width, width),
      "fc_0": fc_0,
      "fc_1": layer(f"{name}.mlp.fc2", len(fc_0["bias"]), width),
    }

  patch = take("x_embedder.proj.weight")  # OIHW
  width, _, patch_size, _ = patch.shape
  heads = heads or {s["width"]: s["heads"] for s in dit.SIZES.values()}.get(width)
  if heads is None:
    raise ValueError(f"heads={heads}: expected a number, as the width is {width}")
  params = {
    "patch": {
      "kernel": patch.transpose(2, 3, 1, 0).reshape(-1, width),
      "bias": take("x_embedder.proj.bias", width),
    },
    "time_0": layer("t_embedder.mlp.0", dit.FREQUENCIES, width),
    "time_1": layer("t_embedder.mlp.2", width, width),
    "out_modulation": layer("final_layer.adaLN_modulation.1", width, 2 * width),
    "out": layer("final_layer.linear", width),
  }
  classes = "y_embedder.embedding_table.weight"
  if classes in left:
    params["label"] = {"embedding": take(classes, len(left[classes]), width)}
  depth = next(
    i for i in itertools.count(1) if not any(name.startswith(f"blocks.{i}.") for name in left)
  )
  params |= {f"block_{i}": block(f"blocks.{i}") for i in range(depth)}
  _check_positions(left.pop("pos_embed", None), width)
  if left:
    raise ValueError(f"no place for {sorted(left)}: expected a DiT with {depth} blocks")
  return {
    "patch_size": patch_size,
    "width": width,
    "depth": depth,
    "heads": heads,
    "mlp_ratio": len(params["block_0"]["fc_0"]["bias"]) / width,
    "out_channels": len(params["out"]["bias"]) // patch_size**2,
    "n_classes": len(params["label"]["embedding"]) - 1 if "label" in params else 0,
  }, {"params": params}


def _renamed(tensors):
  """{the authors' name: float32 array}."""
  found = {}
  for name, value in tensors.items():
    short = name
    for old, new in DIFFUSERS:
      short = re.sub(old, new, short)
    value = np.asarray(value, np.float32)
    if short in found and not np.array_equal(found[short], value):
      raise ValueError(f"{name} differs from that of another block: expected one embedding for all")
    found[short] = value
  return found


def _check_positions(table, width):
  """Raises ValueError for a table [1, N, width] that is not ours, to the precision of float16."""
  if table is None:
    return
  side = math.isqrt(table.shape[1])
  ours = dit.positions(width, side, side)[None]
  if table.shape != ours.shape or not np.allclose(table, ours, rtol=0.0, atol=1e-3):
    raise ValueError(f"pos_embed {table.shape} is not the table of {side} x {side} patches")

"""Weights of DDPM, arXiv:2006.11239, in the layout of diffusers' `UNet2DModel` -> `nn.unet.UNet`.

For google/ddpm-cifar10-32 and its siblings of any size, whose configuration has DownBlock2D,
AttnDownBlock2D, UpBlock2D and AttnUpBlock2D blocks, `attention_head_dim=None`, `freq_shift=1`,
`flip_sin_to_cos=False`, `downsample_padding=0`, `norm_eps=1e-6`, and as `norm_num_groups` the
`unet.group_count` of its width. Read the tensors with safetensors; no torch is needed.
"""

import itertools

import numpy as np

from jaxgen.convert import weights
from jaxgen.core import method

# Attention's names before diffusers 0.15, in files that are still served, and since.
RENAMED = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}

PUBLISHED = {}  # not looked up


def from_torch(tensors, *, image_size):
  """(args, variables) of UNet, float32, from a state dict {name: array}.

  The number of levels, of blocks and the place of attention follow from the names; image_size, a
  scalar, says which heights those places have. KeyError names a tensor that is missing, ValueError
  those that have no place, and an image_size that is no whole number above 0.
  """
  method.check_count("image_size", image_size)
  left = {}
  for name, value in tensors.items():
    for old, new in RENAMED.items():
      name = name.replace(old, new)
    left[name] = np.asarray(value, np.float32)

  def present(prefix):
    return any(name.startswith(prefix) for name in left)

  def count(prefix):
    return next(n for n in itertools.count() if not present(f"{prefix}.{n}."))

  def take(name):
    weights.need(left, name)
    return left.pop(name)

  def layer(prefix):
    w = take(f"{prefix}.weight")
    kernel = w.transpose(2, 3, 1, 0) if w.ndim == 4 else w.T  # OIHW -> HWIO
    return {"kernel": kernel, "bias": take(f"{prefix}.bias")}

  def norm(prefix):
    return {"scale": take(f"{prefix}.weight"), "bias": take(f"{prefix}.bias")}

  def res(prefix):
    out = {
      "norm_0": norm(f"{prefix}.norm1"),
      "conv_0": layer(f"{prefix}.conv1"),
      "cond": layer(f"{prefix}.time_emb_proj"),
      "norm_1": norm(f"{prefix}.norm2"),
      "conv_1": layer(f"{prefix}.conv2"),
    }
    c_in, c_out = out["conv_0"]["kernel"].shape[2:]
    if c_in != c_out:
      shortcut = layer(f"{prefix}.conv_shortcut")
      out["shortcut"] = {**shortcut, "kernel": shortcut["kernel"][0, 0]}  # 1x1 -> dense
    return out

  def attn(prefix):
    return {
      "norm": norm(f"{prefix}.group_norm"),
      "q": layer(f"{prefix}.to_q"),
      "k": layer(f"{prefix}.to_k"),
      "v": layer(f"{prefix}.to_v"),
      "proj": layer(f"{prefix}.to_out.0"),
    }

  levels = count("down_blocks")
  cond = {"time_0": layer("time_embedding.linear_1"), "time_1": layer("time_embedding.linear_2")}
  if present("class_embedding."):
    cond["label"] = {"embedding": take("class_embedding.weight")}
  params = {
    "cond": cond,
    "conv_in": layer("conv_in"),
    "mid_res_0": res("mid_block.resnets.0"),
    "mid_attn_0": attn("mid_block.attentions.0"),
    "mid_res_1": res("mid_block.resnets.1"),
    "norm_out": norm("conv_norm_out"),
    "conv_out": layer("conv_out"),
  }
  n_res_blocks, attention = count("down_blocks.0.resnets"), []
  for i in range(levels):
    down, up = f"down_blocks.{i}", f"up_blocks.{levels - 1 - i}"  # up_blocks.0 is the lowest
    attends = present(f"{down}.attentions.")
    attention += [image_size >> i] * attends
    for ours, theirs, n in (("down", down, n_res_blocks), ("up", up, n_res_blocks + 1)):
      for j in range(n):
        params[f"{ours}_{i}_res_{j}"] = res(f"{theirs}.resnets.{j}")
        if attends:
          params[f"{ours}_{i}_attn_{j}"] = attn(f"{theirs}.attentions.{j}")
    if i < levels - 1:
      params[f"downsample_{i}"] = layer(f"{down}.downsamplers.0.conv")
    if i > 0:
      params[f"upsample_{i}"] = layer(f"{up}.upsamplers.0.conv")
  if left:
    raise ValueError(
      f"no place for {sorted(left)}: expected a UNet2DModel with {levels} levels "
      f"of {n_res_blocks} blocks"
    )
  widths = [params[f"down_{i}_res_0"]["conv_1"]["kernel"].shape[-1] for i in range(levels)]
  channels = params["conv_in"]["kernel"].shape[-1]
  args = {
    "channels": channels,
    "multipliers": tuple(width // channels for width in widths),
    "n_res_blocks": n_res_blocks,
    "attention": tuple(attention),
    "out_channels": params["conv_out"]["kernel"].shape[-1],
    "n_classes": len(cond["label"]["embedding"]) - 1 if "label" in cond else 0,
  }
  return args, {"params": params}

"""Weights of CLIP, arXiv:2103.00020, in the names of OpenAI and OpenCLIP or of Hugging Face's
`CLIPModel` -> `nn.clip.CLIP`.

For OpenAI's files, whose sha256 stand in the addresses of clip/clip.py (openai/CLIP), OpenCLIP's
ViT and ModifiedResNet with the text tower of CLIP, and model.safetensors of openai/clip-vit-*.
"""

import itertools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.convert import weights
from jaxgen.nn import clip

PUBLISHED = {
  "RN50.pt": "afeb0e10f9e5a86da6080e35cf09123aca3b358a0c3e3b6c78a7b63bc04b6762",
  "RN101.pt": "8fa8567bab74a42d41c5915025a8e4538c3bdbe8804a470a72f30b0d94fab599",
  "RN50x4.pt": "7e526bd135e493cef0776de27d5f42653e6b4c8bf9e0f653bb11773263205fdd",
  "RN50x16.pt": "52378b407f34354e150460fe41077663dd5b39c54cd0bfd2b27167a4a06ec9aa",
  "RN50x64.pt": "be1cfb55d75a9666199fb2206c106743da0f6468c9d327f3e0d0a543a9919d9c",
  "ViT-B-32.pt": "40d365715913c9da98579312b702a82c18be219cc2a73407c4526f58eba950af",
  "ViT-B-16.pt": "5806e77cd80f8b59890b7e101eabd078d9fb84e6937f9e85e4ecb61988df416f",
  "ViT-L-14.pt": "b8cca3fd41ae0c99ba7e8951adf17d267cdb84cd88be6f7c2e0eca1737a03836",
  "ViT-L-14-336px.pt": "3035c92b350959924f9f00213499208652fc7ea050643e8b385c2dac08641f02",
}

# Numbers of the network, positions 0, 1, 2, ... and counters of batches: no weights.
BUFFERS = re.compile(
  r"input_resolution|context_length|vocab_size|.*\.(position_ids|num_batches_tracked)"
)

# From our names of arrays, "text.transformer.block_0.ln_1.scale", to OpenAI's.
OPENAI = [
  (r"\.embedding$", ".weight"),
  (r"block_(\d+)\.(in_proj|out_proj)", r"resblocks.\1.attn.\2"),
  (r"block_(\d+)\.(c_fc|c_proj)", r"resblocks.\1.mlp.\2"),
  (r"block_", r"resblocks."),
  (r"in_proj\.", r"in_proj_"),
  (r"(layer\d)_", r"\1."),
  (r"downsample_conv", "downsample.0"),
  (r"downsample_bn", "downsample.1"),
  (r"^text\.", ""),
]
HUGGING_FACE = [
  (r"\.embedding$", ".weight"),
  (r"^text\.", "text_model."),
  (r"^visual\.proj$", "visual_projection.weight"),
  (r"^visual\.", "vision_model."),
  (r"^text_projection$", "text_projection.weight"),
  (r"conv1", "embeddings.patch_embedding"),
  (r"(class|token)_embedding", r"embeddings.\1_embedding"),
  (r"positional_embedding", "embeddings.position_embedding.weight"),
  (r"transformer\.block_", "encoder.layers."),
  (r"in_proj", "self_attn.[qkv]_proj"),
  (r"out_proj", "self_attn.out_proj"),
  (r"c_fc", "mlp.fc1"),
  (r"c_proj", "mlp.fc2"),
  (r"ln_(\d)", r"layer_norm\1"),
  (r"ln_pre", "pre_layrnorm"),
  (r"ln_post", "post_layernorm"),
  (r"ln_final", "final_layer_norm"),
]


def from_torch(tensors, *, activation=None):
  """State dict {name: array} -> (keywords of CLIP, its variables in float32).

  activation: "quick_gelu" or "gelu", of which the tensors tell nothing. Unless it is given, it is
  "gelu" where the image tower is wider than 1,024, as in OpenCLIP's H, g and bigG of LAION, else
  "quick_gelu", as in all of OpenAI's. Give it for OpenCLIP's smaller networks, most of which have
  "gelu", and for the large ones of MetaCLIP and DFN, which have "quick_gelu".
  Heads are 64 wide; in image towers wider than 1,024 there are 16, as in OpenCLIP's.

  KeyError names a tensor that is missing, ValueError one of another shape or those left over.
  """
  left = {name: x for name, x in tensors.items() if not BUFFERS.fullmatch(name)}
  hugging_face = any(name.startswith("text_model.") for name in left)

  def names(ours):
    """Theirs of one of our arrays: one, or those of q, k and v."""
    module, _, array = ours.rpartition(".")
    theirs = f"{module}.{weights.ARRAYS[array]}" if array in weights.ARRAYS else ours
    for pattern, by in HUGGING_FACE if hugging_face else OPENAI:
      theirs = re.sub(pattern, by, theirs)
    return [theirs.replace("[qkv]", x) for x in "qkv"] if "[qkv]" in theirs else [theirs]

  def read(ours):
    """The tensor, with axes in the order of ours."""
    parts = [np.asarray(weights.need(left, name), np.float32) for name in names(ours)]
    value = np.concatenate(parts) if len(parts) > 1 else parts[0]
    if ours.endswith("kernel") or (hugging_face and ours in ("visual.proj", "text_projection")):
      value = np.moveaxis(value, (0, 1), (-1, -2))  # torch has outputs and inputs first
    return value

  def count(ours):
    """How many modules "text.transformer.block_{}." there are."""
    prefixes = (names(ours.format(i))[0] for i in itertools.count())
    present = lambda prefix: any(name.startswith(prefix) for name in left)
    return sum(1 for _ in itertools.takewhile(present, prefixes))

  def take(path, expected):
    ours = ".".join(key.key for key in path[1:])
    value = read(ours)
    for name in names(ours):
      del left[name]
    if value.shape != expected.shape:
      theirs = " and ".join(names(ours))
      raise ValueError(f"{theirs} is {value.shape} in our order of axes: expected {expected.shape}")
    return value

  context_length, transformer_width = read("text.positional_embedding").shape
  args = {
    "embed_dim": read("text_projection").shape[1],
    "context_length": context_length,
    "vocab_size": read("text.token_embedding.embedding").shape[0],
    "transformer_width": transformer_width,
    "transformer_heads": transformer_width // 64,
    "transformer_layers": count("text.transformer.block_{}."),
  }
  side = lambda ours: math.isqrt(len(read(ours)) - 1)  # of the map, without the token before it
  width = read("visual.conv1.kernel").shape[-1]
  resnet = any(name.startswith("visual.attnpool.") for name in left)
  if resnet:
    args |= {
      "image_resolution": 32 * side("visual.attnpool.positional_embedding"),
      "vision_layers": [count(f"visual.layer{i}_{{}}.") for i in range(1, 5)],
      "vision_width": 2 * width,  # the first convolution has half of it
    }
  else:
    patch_size = read("visual.conv1.kernel").shape[0]
    args |= {
      "image_resolution": patch_size * side("visual.positional_embedding"),
      "vision_layers": count("visual.transformer.block_{}."),
      "vision_width": width,
      "vision_patch_size": patch_size,
      "vision_head_width": width // 16 if width > 1024 else 64,
      "vision_mlp_ratio": read("visual.transformer.block_0.c_fc.bias").size / width,
    }
  large = not resnet and width > 1024
  args["activation"] = activation or ("gelu" if large else "quick_gelu")

  net = clip.CLIP(**args)
  x = jax.ShapeDtypeStruct((1, *2 * (args["image_resolution"],), 3), jnp.float32)
  tokens = jax.ShapeDtypeStruct((1, context_length), jnp.int32)
  shapes = jax.eval_shape(net.init, jax.random.key(0), x, tokens)
  variables = jax.tree_util.tree_map_with_path(take, shapes)
  if left:
    raise ValueError(f"no place for {sorted(left)}: expected a state dict of CLIP")
  return args, variables

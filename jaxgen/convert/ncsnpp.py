"""Weights of NCSN++ and DDPM++, arXiv:2011.13456, of two projects -> `nn.ncsnpp.NCSNpp`.

EDM's (NVlabs/edm, arXiv:2206.00364): the state dict of its `SongUNet`, or of a preconditioner
around one. The authors' own (yang-song/score_sde_pytorch): the state dict `model` of a checkpoint
of `ncsnpp` with BigGAN blocks. No torch is needed for tensors read with safetensors.
"""

import collections
import re

import jax
import jax.numpy as jnp
import numpy as np
from flax import traverse_util

from jaxgen.convert import weights
from jaxgen.nn import ncsnpp

PUBLISHED = {}  # not looked up

# score_sde's names of the layers of a block, and EDM's.
BLOCK = {
  "GroupNorm_0": "norm0",
  "Conv_0": "conv0",
  "Dense_0": "affine",
  "GroupNorm_1": "norm1",
  "Conv_1": "conv1",
  "Conv_2": "skip",
}


def from_torch(tensors, *, height=None, resample_filter=None):
  """State dict {name: array} -> (keywords of NCSNpp, its variables in float32).

  height: of the images, and resample_filter: of the network, for files of score_sde, whose names
  tell neither; its configurations have (1, 3, 3, 1) where the image is added on the way down, else
  (1, 1), the default. EDM's files tell both. None tells the dropout.

  KeyError names a tensor that is missing, in EDM's words, ValueError one of another shape, those
  left over and a height that is needed.
  """
  prefix = re.compile(r"(module\.|model\.)*")
  left = {prefix.sub("", k, count=1): np.asarray(v, np.float32) for k, v in tensors.items()}
  left.pop("sigmas", None)
  if "all_modules.0.bias" in left or "all_modules.0.W" in left:
    if height is None:
      raise ValueError("height=None: expected that of the images, which the names do not tell")
    left = _edm_names(left, height)
  filters = [left.pop(name) for name in list(left) if name.endswith(".resample_filter")]
  args, heights = _args(left)
  if filters:  # outer product of the taps, scaled
    resample_filter = np.rint(filters[0][0, 0, 0] / filters[0][0, 0, 0, 0]).astype(int).tolist()
  usual = (1, 1) if args["encoder"] == "standard" else (1, 3, 3, 1)
  args["resample_filter"] = tuple(resample_filter or usual)

  def fill(path, expected):
    module, *layer, array = path
    name = re.sub(r"^(enc|dec)_(\d+)", lambda m: f"{m[1]}.{_square(heights[int(m[2])])}", module)
    name = f"map_{layer[0]}" if module == "map" else ".".join([name, *layer])
    name = f"{name}.{weights.ARRAYS[array]}"
    value = weights.need(left, name)
    del left[name]
    if value.ndim > 1:
      value = np.moveaxis(value, (0, 1), (-1, -2))  # torch has outputs and inputs first
    if value.ndim > len(expected.shape):
      value = value[0, 0]  # 1x1 -> dense
    if layer == ["qkv"]:  # theirs are q, k, v of the first channel, then of the second, ...
      value = np.concatenate([value[..., i::3] for i in range(3)], axis=-1)
    if value.shape != expected.shape:
      raise ValueError(f"{name} is {value.shape} in our order of axes: expected {expected.shape}")
    return value

  net = ncsnpp.NCSNpp(**args)
  channels = left[f"enc.{_square(heights[0])}_conv.weight"].shape[1]
  x = jax.ShapeDtypeStruct((1, heights[0], heights[0], channels), jnp.float32)
  label = jnp.zeros(1, jnp.int32) if args["n_classes"] else None
  shapes = jax.eval_shape(net.init, jax.random.key(0), x, jnp.zeros(1), label)["params"]
  flat = {path: fill(path, s) for path, s in traverse_util.flatten_dict(shapes).items()}
  variables = {"params": traverse_util.unflatten_dict(flat)}
  if args["embedding"] == "fourier":
    variables["constants"] = {"map": {"frequencies": left.pop("map_noise.freqs")}}
  if left:
    raise ValueError(f"no place for {sorted(left)}: expected a state dict of SongUNet or ncsnpp")
  return args, variables


def _square(height):
  return f"{height}x{height}"


def _args(tensors):
  """(keywords of NCSNpp, heights of its levels) that EDM's names and shapes tell."""
  shape = lambda name: weights.need(tensors, name).shape
  has = lambda part: any(part in name for name in tensors)
  found = (re.match(r"enc\.(\d+)x\1_", name) for name in tensors)
  heights = sorted({int(m[1]) for m in found if m}, reverse=True)
  if not heights:
    raise KeyError("'enc.32x32_conv.weight', of any height, is missing from the state dict")
  enc = [f"enc.{_square(h)}" for h in heights]
  first, last = (f"dec.{_square(h)}_aux_conv.weight" for h in (heights[0], heights[-1]))
  channels = shape(f"{enc[0]}_conv.weight")[0]
  return {
    "channels": channels,
    "multipliers": tuple(shape(f"{e}_block0.conv1.weight")[0] // channels for e in enc),
    "n_res_blocks": sum(
      name.startswith(f"{enc[0]}_block") and name.endswith(".norm0.weight") for name in tensors
    ),
    "attention": tuple(
      h for h, e in zip(heights, enc, strict=True) if f"{e}_block0.qkv.weight" in tensors
    ),
    "embedding": "fourier" if "map_noise.freqs" in tensors else "positional",
    "noise_multiplier": shape("map_layer0.weight")[1] // channels,
    "encoder": "residual" if has("_residual.") else "skip" if has("_aux_skip.") else "standard",
    "decoder": "skip" if first != last and last in tensors else "standard",
    "out_channels": shape(first)[0],
    "n_classes": shape("map_label.weight")[1] if has("map_label.") else 0,
    "augment": shape("map_augment.weight")[1] if has("map_augment.") else 0,
  }, heights


def _edm_names(tensors, height):
  """score_sde's list `all_modules` in EDM's names and layouts: modules are told by their order."""
  left = dict(tensors)
  places = {int(m[1]) for m in (re.match(r"all_modules\.(\d+)\.", name) for name in left) if m}
  order = collections.deque(sorted(places))
  out = {}

  def is_next(array):
    return bool(order) and f"all_modules.{order[0]}.{array}" in left

  def take(place, array):
    value = weights.need(left, f"all_modules.{place}.{array}")
    del left[f"all_modules.{place}.{array}"]
    return value

  def put(name):
    if not order:
      raise KeyError(f"{name!r} is missing from the state dict, after all of its modules")
    start = f"all_modules.{order.popleft()}."
    for full in [k for k in left if k.startswith(start)]:
      *layer, array = full.removeprefix(start).split(".")
      out[".".join([name, *(BLOCK.get(x, x) for x in layer), array])] = left.pop(full)

  def put_aux(name, layer):  # the one layer of a module
    place = order.popleft()
    for array in ("weight", "bias"):
      out[f"{name}.{array}"] = take(place, f"{layer}.{array}")

  def put_attention(name):
    if not is_next("NIN_0.W"):
      return
    place = order.popleft()
    for array in ("weight", "bias"):
      out[f"{name}.norm2.{array}"] = take(place, f"GroupNorm_0.{array}")
    w, b = ([take(place, f"NIN_{i}.{array}") for i in range(4)] for array in ("W", "b"))
    qkv = np.stack([a.T for a in w[:3]], axis=1)
    out[f"{name}.qkv.weight"] = qkv.reshape(-1, qkv.shape[-1])[:, :, None, None]
    out[f"{name}.qkv.bias"] = np.stack(b[:3], axis=1).reshape(-1)
    out[f"{name}.proj.weight"] = w[3].T[:, :, None, None]
    out[f"{name}.proj.bias"] = b[3]

  blocks = [n for n in sorted(places) if f"all_modules.{n}.Conv_1.weight" in left]
  resampling = 0  # blocks that need a shortcut though their width stays
  for n in blocks:
    c_out, c_in = weights.need(left, f"all_modules.{n}.Conv_0.weight").shape[:2]
    resampling += c_out == c_in and f"all_modules.{n}.Conv_2.weight" in left
  levels = resampling // 2 + 1
  n_res_blocks = (len(blocks) - resampling - 2 - levels) // (2 * levels)
  squares = [_square(height >> i) for i in range(levels)]

  if is_next("W"):
    out["map_noise.freqs"] = take(order.popleft(), "W")
  put("map_layer0")
  put("map_layer1")
  for i, s in enumerate(squares):
    put(f"enc.{s}_down" if i else f"enc.{s}_conv")
    if is_next("Conv2d_0.weight"):
      put_aux(f"enc.{s}_aux_residual", "Conv2d_0")
    elif is_next("Conv_0.weight") and not is_next("Conv_1.weight"):
      put_aux(f"enc.{s}_aux_skip", "Conv_0")
    for j in range(n_res_blocks):
      put(f"enc.{s}_block{j}")
      put_attention(f"enc.{s}_block{j}")
  put(f"dec.{squares[-1]}_in0")
  put_attention(f"dec.{squares[-1]}_in0")
  put(f"dec.{squares[-1]}_in1")
  for i, s in reversed(list(enumerate(squares))):
    if i < levels - 1:
      put(f"dec.{s}_up")
    for j in range(n_res_blocks + 1):
      put(f"dec.{s}_block{j}")
    put_attention(f"dec.{s}_block{n_res_blocks}")
    if i == 0 or not is_next("Conv_1.weight"):
      put(f"dec.{s}_aux_norm")
      put(f"dec.{s}_aux_conv")
  return out | left

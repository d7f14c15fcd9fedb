"""JAX as strict as in the other tests; torchvision beside a CPU build of torch."""

import importlib.util
import pathlib

import jax
import torch

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

# torchvision's compiled operators load only beside the CUDA build of torch. Its Python code works
# without them once the two operators that it describes on import have a name.
for library in pathlib.Path(importlib.util.find_spec("torchvision").origin).parent.glob("_C.*"):
  try:
    torch.ops.load_library(str(library))
  except OSError:
    pass
for name, schema in {
  "nms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
  "qnms": "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}.items():
  if not hasattr(torch.ops.torchvision, name):
    torch.library.define(f"torchvision::{name}", schema)

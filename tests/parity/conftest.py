"""JAX as strict as in the other tests; torchvision beside a CPU build of torch."""

import importlib.util
import pathlib
import sys

import jax

jax.config.update("jax_numpy_rank_promotion", "raise")
jax.config.update("jax_debug_key_reuse", True)

sys.path.insert(0, str(pathlib.Path(__file__).parents[3] / "shared/tools"))
if importlib.util.find_spec("torchvision_ops"):
  import torchvision_ops  # noqa: F401  before anything that imports torchvision

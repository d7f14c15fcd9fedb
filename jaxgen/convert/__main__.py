r"""Public weights -> a file that jaxgen.metrics' extractors and a config's `init_from` read.

python -m jaxgen.convert inception pt_inception-2015-12-05-6726825d.pth inception.safetensors
python -m jaxgen.convert vgg vgg16-397923af.pth vgg.pth lpips.safetensors    # LPIPS wants both
python -m jaxgen.convert adm 256x256_diffusion.pt adm.safetensors \
    --options='{"image_size": 256, "head_channels": 64, "use_new_attention_order": false}'

Reads safetensors and npz; .pth, .pt and .bin files with PyTorch, where it is installed, which
unpickles no code. The sha256 of each source is compared with the published one and recorded.
"""

import argparse
import hashlib
import importlib
import json
import pathlib
import sys

from jaxgen.convert import weights

NETWORKS = (
  "adm",
  "clip",
  "ddpm",
  "dit",
  "efficientnet",
  "i3d",
  "inception",
  "mmdit",
  "ncsnpp",
  "vdvae",
  "vgg",
)


def check_published(path, published):
  """The sha256 of a file. Raises ValueError unless it is one of `published`, if there are any."""
  with path.open("rb") as file:
    found = hashlib.file_digest(file, "sha256").hexdigest()
  if published and found not in published.values():
    known = ", ".join(f"{name} {digits}" for name, digits in published.items())
    raise ValueError(
      f"{path} has sha256 {found}: expected a published one ({known}); --unpublished takes any"
    )
  return found


def read(path, trusted):
  """{name: numpy array} of a file, TorchScript archives only if `trusted`: loading runs their code.

  Raises ValueError for what holds no tensors, ImportError without PyTorch, and as `weights.read`.
  """
  if path.suffix in (".safetensors", ".npz"):
    return weights.read(path)[0]
  try:
    import torch
  except ImportError as error:
    raise ImportError(f"{path} needs PyTorch to be read: pip install torch") from error
  try:
    tensors = torch.load(path, map_location="cpu", weights_only=True)
  except Exception as error:  # torch raises several kinds, of them RuntimeError for an archive
    if not trusted:
      raise ValueError(f"{path} cannot be read as plain tensors: {error}") from error
    tensors = torch.jit.load(path, map_location="cpu").state_dict()
  if isinstance(tensors, dict):
    tensors = tensors.get("state_dict", tensors)
  good = isinstance(tensors, dict) and all(isinstance(x, torch.Tensor) for x in tensors.values())
  if not good:
    raise ValueError(f"{path} holds other things than tensors with names: expected a state dict")
  whole = lambda x: x.float() if x.is_floating_point() else x  # NumPy has no bfloat16
  return {name: whole(value).numpy() for name, value in tensors.items()}


def convert(network, sources, out, unpublished=False, **options):
  """Writes the weights in some files as one of ours; returns {name of a file: its sha256}.

  options: keywords of the network's from_torch.

  Raises ValueError for a file that is not the published one, unless `unpublished`, and for an `out`
  that is there; KeyError and ValueError for other tensors than the network's; and as `read` does,
  ImportError among them.
  """
  module = importlib.import_module(f"jaxgen.convert.{network}")
  if out.suffix != ".safetensors" or out.exists():
    raise ValueError(f"{out}: expected a new file, .safetensors")
  if len({path.name for path in sources}) < len(sources):
    raise ValueError(f"{', '.join(map(str, sources))}: expected files of different names")
  if network == "clip" and unpublished and "activation" not in options:
    raise ValueError("--options has no activation: only published files tell it, not tensors")
  published = {} if unpublished else module.PUBLISHED
  sha256 = {path.name: check_published(path, published) for path in sources}
  tensors = {}
  for path in sources:
    tensors |= read(path, trusted=sha256[path.name] in module.PUBLISHED.values())
  args, variables = module.from_torch(tensors, **options)
  note = {"network": network, "args": json.dumps(args), "sources": json.dumps(sha256)}
  weights.write(out, variables, note)
  return sha256


def main():
  """Converts what the command line names; a ValueError, ImportError or the like ends it."""
  parser = argparse.ArgumentParser(prog="jaxgen.convert", description=__doc__.splitlines()[0])
  parser.add_argument("network", choices=NETWORKS)
  parser.add_argument("source", nargs="+", type=pathlib.Path, help="the original file or files")
  parser.add_argument("out", type=pathlib.Path, help="a new .safetensors file")
  parser.add_argument("--unpublished", action="store_true", help="whatever their sha256 is")
  parser.add_argument("--options", default="{}", help="what tensors do not tell, as JSON")
  args = parser.parse_args()
  try:
    options = json.loads(args.options)
    sha256 = convert(args.network, args.source, args.out, args.unpublished, **options)
  except (ImportError, KeyError, OSError, TypeError, ValueError) as error:
    sys.exit(f"{type(error).__name__}: {error}")
  print(f"{args.out}: {args.network}, from {', '.join(f'{k} {v}' for k, v in sha256.items())}")


if __name__ == "__main__":
  main()

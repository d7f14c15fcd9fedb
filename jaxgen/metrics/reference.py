"""What samples are compared with: features of a data set, computed once and kept on disk.

They are found again by a hash of the images' pixels, their number and the extractor with its
weights, so they are never those of another data set, split, resolution or network.
"""

import hashlib
import json
import os
import pathlib
import re
from typing import NamedTuple

import jax
import numpy as np

from jaxgen.core import parallel
from jaxgen.data import sources
from jaxgen.metrics import frechet

VERSION = 1  # of what is computed from the same pixels and weights: one more where that changes


class Reference(NamedTuple):
  """The first n images or videos of a data set, seen by one extractor."""

  name: str  # "mnist16 train, 16x16x1": for people
  n: int
  hash: str  # of all that its features depend on
  file: str  # the beginning of the names of its files


def open_reference(source, spec, split, n, extractor):
  """The Reference for the first n examples of a source, which is called by its spec and split.

  extractor: an extractors.Extractor. Reads every pixel. Raises ValueError for fewer examples, and
  where they are images and the extractor takes videos, or the other way round.
  """
  if extractor.media not in source[0]:
    told = f"{extractor.label} takes {extractor.media}"
    raise ValueError(f"{told}, the {split} split of {spec} has {', '.join(source[0])}")
  if not 1 <= n <= len(source):
    raise ValueError(f"reference_n={n}: expected 1 to {len(source)}, the {split} split of {spec}")
  pixels = hashlib.sha256()
  for i in range(n):
    x = np.ascontiguousarray(source[i][extractor.media])
    pixels.update(f"{x.dtype} {x.shape}".encode())
    pixels.update(x.data)
  depends = [VERSION, pixels.hexdigest(), n, extractor.label, extractor.sha256]
  hash = hashlib.sha256(json.dumps(depends).encode()).hexdigest()[:16]
  data, size = re.split(r"[:/]", spec.rstrip("/"))[-1], "x".join(map(str, x.shape))
  file = re.sub(r"[^\w.-]+", "_", f"{data}-{split}-{size}-{extractor.label}-{n}-{hash}")
  return Reference(f"{data} {split}, {size}", n, hash, file)


def load(reference, wanted, compute):
  """{(output, "moments"): frechet.Moments, (output, "features"): float32 [n, D]} of a Reference.

  wanted: the keys. compute: (outputs) -> {output: features [n, D]}, called on all hosts for those
  that host 0 does not have on disk: in JAXGEN_CACHE, or ~/.cache/jaxgen. Other hosts get {}.
  """
  folder = pathlib.Path(os.environ.get("JAXGEN_CACHE", "~/.cache/jaxgen")).expanduser()
  file = lambda key: folder / "statistics" / f"{reference.file}-{'-'.join(key)}.npz"
  kinds = {(output, kind) for output, _ in wanted for kind in ("features", "moments")}
  here = [key for key in sorted(kinds) if file(key).is_file()]
  here = [tuple(key) for key in json.loads(parallel.gather_text(json.dumps(here))[0])]
  known = lambda output, kind: (output, kind) in here or (output, "features") in here
  missing = sorted({output for output, kind in wanted if not known(output, kind)})
  computed = compute(missing) if missing else {}
  if jax.process_index():
    return {}
  found = {}
  for output, kind in wanted:
    path = file((output, kind))
    if (output, kind) in here:
      found[output, kind] = _read(path, kind)
      continue
    x = computed[output] if output in computed else _read(file((output, "features")), "features")
    found[output, kind] = x if kind == "features" else frechet.moments(x)
    _write(path, found[output, kind])
  return found


def _read(file, kind):
  if kind == "moments":
    return frechet.read_moments(file)
  return sources.read_npz(file, file)["features"]


def _write(file, value):
  file.parent.mkdir(parents=True, exist_ok=True)
  new = file.with_suffix(f".{os.getpid()}.tmp.npz")  # others may be writing the same
  if isinstance(value, frechet.Moments):
    frechet.write_moments(new, value)
  else:
    np.savez(new, features=value)
  new.replace(file)

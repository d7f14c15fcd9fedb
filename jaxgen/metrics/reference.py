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


class Reference(NamedTuple):
  """The first n images or videos of a data set, seen by one extractor."""

  name: str  # "mnist16 train, 16x16x1": for people
  n: int
  hash: str  # of all that its features depend on
  file: str  # the beginning of the names of its files


def open_reference(source, spec, split, n, extractor):
  """The Reference for the first n examples of a source, which is called by its spec and split.

  extractor: an extractors.Extractor. Reads every pixel. Raises ValueError for fewer examples, and
  KeyError where they have no image or video, whichever the extractor takes.
  """
  if not 1 <= n <= len(source):
    raise ValueError(f"reference_n={n}: expected 1 to {len(source)}, the {split} split of {spec}")
  pixels = hashlib.sha256()
  for i in range(n):
    x = np.ascontiguousarray(source[i][extractor.media])
    pixels.update(f"{x.dtype} {x.shape}".encode())
    pixels.update(x.data)
  depends = [pixels.hexdigest(), n, extractor.label, extractor.sha256]
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
  here = [key for key in sorted(wanted) if file(key).is_file()]
  here = [tuple(key) for key in json.loads(parallel.gather_text(json.dumps(here))[0])]
  missing = [key for key in sorted(wanted) if key not in here]
  computed = compute(sorted({output for output, _ in missing})) if missing else {}
  if jax.process_index():
    return {}
  found = {key: _read(file(key), key[1]) for key in here}
  for output, kind in missing:
    x = computed[output]
    found[output, kind] = x if kind == "features" else frechet.moments(x)
    _write(file((output, kind)), found[output, kind])
  return found


def _read(file, kind):
  if kind == "moments":
    return frechet.read_moments(file)
  return sources.read_npz(file, file)["features"]


def _write(file, value):
  file.parent.mkdir(parents=True, exist_ok=True)
  new = file.with_suffix(".tmp.npz")
  if isinstance(value, frechet.Moments):
    frechet.write_moments(new, value)
  else:
    np.savez(new, features=value)
  new.replace(file)

"""Golden vectors: inputs and outputs of public implementations, NAME.npz and NAME.json.

Those whose licence allows it are in tests/golden/; the others in ../shared/golden, where it exists.
"""

import json
import pathlib

import numpy as np
import pytest

FOLDERS = [
  pathlib.Path(__file__).parent / "golden",
  pathlib.Path(__file__).parents[2] / "shared/golden",
]


def load(name):
  """({"in.x" and "w.x": array}, close): close(ours, "x") compares with out.x as NAME.json says."""
  found = [f for f in FOLDERS if (f / f"{name}.npz").exists()]
  if not found:
    pytest.skip(f"golden vector {name} is not at hand: it is not redistributed")
  note = json.loads((found[0] / f"{name}.json").read_text())
  with np.load(found[0] / f"{name}.npz") as f:
    arrays = dict(f)

  def close(ours, key, where=True, **wider):
    theirs = arrays[f"out.{key}"]
    tolerance = {"rtol": note["rtol"], "atol": note["atol"]}
    tolerance |= note.get("keys", {}).get(key, {}) | wider
    ours, theirs, where = np.broadcast_arrays(np.asarray(ours, np.float64), theirs, where)
    np.testing.assert_allclose(ours[where], theirs[where].astype(np.float64), **tolerance)

  return {k: v for k, v in arrays.items() if not k.startswith("out.")}, close

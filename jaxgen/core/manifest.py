"""manifest.json: the sha256 of every file of a folder, written last, and of itself."""

import concurrent.futures
import hashlib
import json

import jax

from jaxgen.core import parallel

NAME = "manifest.json"
NOT_IN_IT = ("_CHECKPOINT_METADATA", "commit_success.txt")  # Orbax still writes them; never read


def write(folder, note):
  """Writes folder/manifest.json. folder: an epath.Path; note: a table that it holds too."""
  files = [root / name for root, _, names in folder.walk() for name in names]
  names = [str(p.relative_to(folder)) for p in files if p.name not in NOT_IN_IT]
  files = dict(zip(names, _digests(folder, names), strict=True))
  (folder / NAME).write_text(_sealed({**note, "files": files}))


def damage(folder, note, names):
  """What is not as it was written, "" where all is; the same on all hosts, which all call this.

  note: what the manifest must hold. names: tuple, how the paths of the files to compare begin.
  """
  mine = _difference(folder, note, names) if jax.process_index() == 0 else ""
  return parallel.gather_text(mine)[0]


def _difference(folder, note, names):
  path = folder / NAME
  if not path.exists():
    return f"{path} is missing"
  text = path.read_bytes()
  try:
    table = json.loads(text)
    table.pop("sha256")
  except (ValueError, AttributeError, KeyError) as e:
    return f"{path} is damaged: {e!r}"
  if text != _sealed(table).encode():
    return f"{path} is damaged: its own sha256 differs"
  for key, value in note.items():
    if table.get(key) != value:
      return f"{path} has {key}={table.get(key)!r}: expected {value!r}"
  files = {k: v for k, v in table["files"].items() if k.startswith(names)}
  for (name, digest), found in zip(files.items(), _digests(folder, files), strict=True):
    if digest != found:
      return f"{folder / name}: sha256 is {found}, {NAME} has {digest}"
  return ""


def _sealed(table):
  own = hashlib.sha256(json.dumps(table).encode()).hexdigest()
  return json.dumps({**table, "sha256": own}, indent=1) + "\n"


def _digests(folder, names):
  with concurrent.futures.ThreadPoolExecutor() as pool:
    return list(pool.map(_digest, [folder / name for name in names]))


def _digest(path):
  try:
    with path.open("rb") as f:
      return hashlib.file_digest(f, "sha256").hexdigest()
  except OSError as e:
    return f"unknown ({e})"

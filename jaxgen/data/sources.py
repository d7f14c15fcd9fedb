"""Where examples come from: digits, npz, folders, array_record, TensorFlow Datasets, what is drawn.

A source is a random-access sequence: `len(source)`; `source[i]`, one example as a dict of numpy
arrays; `source.labels`, int32 [N], or None where finding them would mean reading every example;
and, where that is faster, `source.take(index [n])`, a dict of arrays [n, ...].

  image      uint8, or float in [-1, 1], [H, W, C]        label      int32 scalar
  video      the same, [T, H, W, C]                       caption    string
  start      of the form of image: what it is made from, or where a flow to it starts
  anything else (embedding, tokens, ...) as it was stored

Files are untrusted: nothing is unpickled or unpacked to disk, and sizes are checked before memory
is taken. Links to files are followed, wherever they lead, since files are only decoded; links to
folders, pipes and devices are refused.
"""

import collections
import concurrent.futures
import contextlib
import dataclasses
import difflib
import importlib
import io
import json
import math
import pathlib
import threading
import zipfile
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from jaxgen.core import method
from jaxgen.data import sprites, toys, views

MAX_BYTES = 16 * 2**30  # of all the arrays of one npz file
MAX_RATIO = 200  # of those bytes to the file's, where they are more than SMALL
SMALL = 2**26
MAX_LINE = 2**20  # bytes of one caption
MAX_PIXELS = 50_000_000  # of one image file
_PARSING = threading.Lock()  # NumPy's headers: `ast` of Python 3.11 fails in two threads at once
FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".webp": "WEBP", ".bmp": "BMP"}


def open_source(spec, split, *, image_size=None):
  """The "train" or "test" split of the data named by `spec`.

  spec: digits                scikit-learn's 8x8 digits; every tenth image is a test image
        npz:PATH              PATH/train.npz and PATH/test.npz, or one file, the train split
        folder:PATH           images in PATH/train and PATH/test, or in PATH, the train split;
                              sub-folders are classes, captions.jsonl beside them gives captions
        array_record:PATH     PATH/train.array_record and PATH/test.array_record, or one file
        tfds:NAME             tensorflow_datasets.data_source(NAME)
        toy:NAME              points of `data.toys`, always the same 50,000 for training and 10,000
                              for tests, as float images [1, 1, 2]
        dsprites              `data.sprites`: 737,280 images with their factors
        pair:A->B             of two sources: the images of B, each with one of A as its `start`
        binarized:SPEC        of a source: pixels are 0 or 255, drawn once
        few_labels:N:SPEC     of a source: every image with one of N whose label is known
        quadrants:N:SPEC      of a source: images with 1, 2 or 3 quadrants of them as `start`
  image_size: every image comes out of `square`: uint8 [image_size, image_size, C].

  Raises ValueError for an unknown kind or split, for data that is empty, damaged or not finite, for
  labels that are not integers, and for image_size with video or float images; FileNotFoundError for
  a missing path; ImportError for a missing optional package.
  """
  kind, _, where = spec.partition(":")
  known = (*KINDS, *VIEWS)
  if kind not in known:
    near = difflib.get_close_matches(kind, known, n=1)
    hint = f"; did you mean {near[0]}?" if near else ""
    raise ValueError(f"source={spec!r} must start with one of {', '.join(known)}{hint}")
  if (kind in ALONE) == bool(where):
    alone = " or ".join(map(repr, ALONE))
    raise ValueError(f"source={spec!r} must be {alone}, or a kind, a colon and a path or name")
  if split not in ("train", "test"):
    raise ValueError(f"split={split!r} must be 'train' or 'test'")
  if kind in VIEWS:  # of images that have their size
    return VIEWS[kind](where, split, lambda of: open_source(of, split, image_size=image_size))
  source = KINDS[kind](where, split)
  if not len(source):
    raise ValueError(f"source={spec!r} has no examples in its {split} split")
  if image_size is None:
    return source
  if image_size < 1:
    raise ValueError(f"image_size={image_size} must be at least 1")
  if "image" not in source[0]:
    raise ValueError(f"image_size={image_size} needs images, source={spec!r} has {[*source[0]]}")
  square(source[0]["image"], image_size)
  return Squares(source, image_size)


def square(image, size):
  """uint8 [H, W, C] -> uint8 [size, size, C]: shorter side to `size`, then the centre.

  The filter is Pillow's bicubic, which is antialiased when it shrinks. Raises ValueError for an
  image that is not uint8.
  """
  if image.dtype != np.uint8:
    raise ValueError(f"image_size={size} needs uint8 images, these are {image.dtype}")
  height, width, channels = image.shape
  scale = size / min(height, width)
  shape = max(size, round(width * scale)), max(size, round(height * scale))
  left, top = (shape[0] - size) // 2, (shape[1] - size) // 2
  planes = [Image.fromarray(image[..., c]) for c in range(channels)]
  planes = [np.asarray(p.resize(shape, Image.Resampling.BICUBIC)) for p in planes]
  return np.stack(planes, axis=-1)[top : top + size, left : left + size]


def checked(arrays, index):
  """The same arrays, `label` as int32, after checks; the row j of each is the example index[j].

  Raises ValueError for arrays of objects, NaN or infinity, float images or videos that look like
  pixels of 0 ... 255, and for labels that are not integers or do not fit int32.
  """
  for name, values in arrays.items():
    if values.dtype.hasobject:
      raise ValueError(f"{name} holds Python objects; numbers or strings are needed")
    if np.issubdtype(values.dtype, np.inexact):
      finite = np.isfinite(values).all(axis=tuple(range(1, values.ndim)))
      if not finite.all():
        raise ValueError(f"{name} of example {index[np.argmin(finite)]} has NaN or infinity")
    if name in ("image", "video", "start", "labelled") and values.dtype.kind == "f":
      method.check_scale(name, values)
  if "label" not in arrays:
    return arrays
  if not np.issubdtype(arrays["label"].dtype, np.integer):
    raise ValueError(f"label must be integers, these are {arrays['label'].dtype}")
  if arrays["label"].ndim != 1:
    raise ValueError(f"label must be one number an example, these are {arrays['label'].shape[1:]}")
  return {**arrays, "label": to_int32("label", arrays["label"], index)}


def to_int32(name, values, index):
  """Integers [n, ...] of the examples index [n] as int32; ValueError for one that does not fit."""
  fits = (values == values.astype(np.int32)).all(axis=tuple(range(1, values.ndim)))
  if not fits.all():
    row = np.argmin(fits)
    raise ValueError(f"{name} {values[row]} of example {index[row]} does not fit int32")
  return values.astype(np.int32)


def read_npz(file, name, is_name=str.isidentifier):
  """Every array of an npz file (a path or a binary stream), each decompressed once; none pickled.

  is_name: whether an array may be called so.

  Raises ValueError, with `name` in it, for a damaged file, pickled objects, a header that does not
  agree with the size of its member, two arrays of one name, and more than MAX_BYTES in all or
  MAX_RATIO times the size of the file.
  """
  try:
    with zipfile.ZipFile(file) as archive:
      members = archive.infolist()
      total = sum(member.file_size for member in members)
      limit = min(MAX_BYTES, max(SMALL, MAX_RATIO * archive.fp.seek(0, io.SEEK_END)))
      if total > limit:
        raise ValueError(f"it unpacks to {total} bytes, the limit is {limit}")
      names = [member.filename.removesuffix(".npy") for member in members]
      for array, times in collections.Counter(names).items():
        if not is_name(array) or times > 1:
          raise ValueError(f"array {array!r}: expected names like those of variables, each once")
      with _PARSING:
        return {n: _read_member(archive, m) for n, m in zip(names, members, strict=True)}
  except Exception as error:  # zipfile and NumPy raise a dozen kinds for a damaged file
    reason = str(error).partition("\n")[0]  # below it NumPy advises to trust the file
    raise ValueError(f"{name} is not a safe npz file: {reason}") from error


def write_array_record(path, examples):
  """Writes an iterable of examples, dicts of numpy arrays, for the source array_record:PATH.

  Raises ValueError for what `checked` refuses, and ImportError without array_record.
  """
  module = _optional("array_record.python.array_record_module", "array_record")
  writer = module.ArrayRecordWriter(str(path), "group_size:1")
  try:
    for i, example in enumerate(examples):
      arrays = checked({k: np.asarray(v)[None] for k, v in example.items()}, [i])
      record = io.BytesIO()
      np.savez(record, **{k: v[0] for k, v in arrays.items()})
      writer.write(record.getvalue())
  finally:
    writer.close()


@dataclasses.dataclass(frozen=True)
class Arrays:
  """Examples in memory: arrays [N, ...]."""

  arrays: dict[str, np.ndarray]

  def __len__(self):
    return len(next(iter(self.arrays.values()), ()))

  def __getitem__(self, i):
    return {name: values[i] for name, values in self.arrays.items()}

  def take(self, index):
    """The examples index [n] at once, as arrays [n, ...]."""
    return {name: values[index] for name, values in self.arrays.items()}

  @property
  def labels(self):
    return self.arrays.get("label")


@dataclasses.dataclass(frozen=True)
class Folder:
  """Image files under `root`; `labels` int32 [N] or None, `captions` N strings or None."""

  root: pathlib.Path
  names: tuple[str, ...]
  labels: np.ndarray | None
  captions: tuple[str, ...] | None

  def __len__(self):
    return len(self.names)

  def __getitem__(self, i):
    example = {"image": _decode(self.root / self.names[i])}
    if self.labels is not None:
      example["label"] = self.labels[i]
    if self.captions is not None:
      example["caption"] = np.array(self.captions[i])
    return example


@dataclasses.dataclass(frozen=True)
class Records:
  """Examples read one by one: `read(records[i])` is a dict of arrays.

  Raises RuntimeError for a damaged record, ValueError for what `checked` refuses.
  """

  records: Any
  read: Any
  labels = None

  def __len__(self):
    return len(self.records)

  def __getitem__(self, i):
    example = {k: np.asarray(v)[None] for k, v in self.read(self.records[i]).items()}
    return {k: v[0] for k, v in checked(example, [i]).items()}


@dataclasses.dataclass(frozen=True)
class Squares:
  """Another source with its images, and their starts, made uint8 [size, size, C]."""

  source: Any
  size: int

  def __len__(self):
    return len(self.source)

  def __getitem__(self, i):
    example = self.source[i]
    images = {k: square(v, self.size) for k, v in example.items() if k in ("image", "start")}
    return {**example, **images}

  @property
  def labels(self):
    return self.source.labels


def _digits(_, split):
  data = _optional("sklearn.datasets", "scikit-learn").load_digits()
  keep = (np.arange(len(data.images)) % 10 == 9) == (split == "test")
  image = np.rint(data.images[keep, :, :, None] * 255 / 16).astype(np.uint8)
  return Arrays({"image": image, "label": data.target[keep].astype(np.int32)})


def _npz(path, split):
  file = _split_file(path, split, "npz")
  arrays = read_npz(file, file)
  first = next(iter(arrays), None)
  for name in arrays:
    a, b = arrays[first].shape, arrays[name].shape
    if not b or a[:1] != b[:1]:
      raise ValueError(f"{file}: {first} {a} and {name} {b} need the same first dimension")
  try:
    return Arrays(checked(arrays, range(len(Arrays(arrays)))))
  except ValueError as error:
    raise ValueError(f"{file}: {error}") from error


def _folder(path, split):
  path = pathlib.Path(path)
  if not path.is_dir():
    raise FileNotFoundError(f"folder {path} does not exist")
  roots = [path / name for name in ("train", "test") if (path / name).is_dir()]
  root = path / split if roots else path
  if not root.is_dir() or (root == path and split == "test"):
    raise ValueError(f"folder {path} has no {split} split: there is no folder {path / split}")
  # A class that is absent from one split must not renumber the others, hence all roots.
  folders = {f.name for r in roots or [path] for f in r.iterdir() if f.is_dir()}
  classes = {name: i for i, name in enumerate(sorted(f for f in folders if f[0] != "."))}
  found = sorted(root.rglob("*"))
  link = next((f for f in found if f.is_symlink() and f.is_dir()), None)
  if link:  # rglob passes over what is in it
    raise ValueError(f"{link} is a link to a folder: expected folders, and links to files only")
  files = [f.relative_to(root) for f in found if f.suffix.lower() in FORMATS]
  files = [f for f in files if not any(part[0] == "." for part in f.parts)]
  if not files:
    raise ValueError(f"folder {root} has no images ({', '.join(FORMATS)})")
  stray = next((f for f in files if classes and len(f.parts) == 1), None)
  if stray:
    raise ValueError(f"image {root / stray} is outside the class folders {', '.join(classes)}")
  labels = np.array([classes[f.parts[0]] for f in files], np.int32) if classes else None
  with concurrent.futures.ThreadPoolExecutor() as pool:
    list(pool.map(_check_header, [root / f for f in files]))
  names = tuple(f.as_posix() for f in files)
  return Folder(root, names, labels, _captions(root / "captions.jsonl", names))


def _array_record(path, split):
  file = _split_file(path, split, "array_record")
  module = _optional("array_record.python.array_record_data_source", "array_record")
  try:
    records = module.ArrayRecordDataSource(str(file))
  except (RuntimeError, ValueError) as error:
    raise ValueError(f"{file} is not an array_record file: {error}") from error
  return Records(records, lambda record: read_npz(io.BytesIO(record), file))


def _tfds(name, split):
  tfds = _optional("tensorflow_datasets", '"jaxgen[tfds]"')
  names = {"image": "image", "video": "video", "label": "label", "text": "caption"}

  def read(example):
    kept = {names[k]: v for k, v in example.items() if k in names}
    return {k: v.decode() if isinstance(v, bytes) else v for k, v in kept.items()}

  return Records(tfds.data_source(name, split=split), read)


def _toy(name, split):
  sets = {"gaussians8": toys.gaussians8, "moons": toys.moons, "checkerboard": toys.checkerboard}
  method.check("source", f"toy:{name}", name in sets, f"toy: and one of {', '.join(sets)}")
  seed, n = (0, 50_000) if split == "train" else (1, 10_000)
  points = sets[name](np.random.RandomState(seed), n)  # numpy keeps this stream for ever
  return Arrays({"image": points[:, None, None].astype(np.float32)})


KINDS = {
  "digits": _digits,
  "npz": _npz,
  "folder": _folder,
  "array_record": _array_record,
  "tfds": _tfds,
  "toy": _toy,
  "dsprites": lambda _, split: sprites.open_sprites(split),
}
ALONE = ("digits", "dsprites")  # whose names say all
VIEWS = {
  "pair": views.pair,
  "binarized": views.binarized,
  "few_labels": views.few_labels,
  "quadrants": views.quadrants,
}


def _optional(module, package):
  try:
    return importlib.import_module(module)
  except ImportError as error:
    raise ImportError(f"this source needs {module}: pip install {package}") from error


def _split_file(path, split, suffix):
  path = pathlib.Path(path)
  if not path.exists():
    raise FileNotFoundError(f"{path} does not exist")
  if path.is_file() and split == "test":
    raise ValueError(f"{path} is one file, the train split; test needs a folder with both splits")
  file = path / f"{split}.{suffix}" if path.is_dir() else path
  if not file.exists():
    raise FileNotFoundError(f"{file} does not exist, so {path} has no {split} split")
  if not file.is_file():
    raise ValueError(f"{file} is no file but a folder, a pipe or a device")
  return file


def _read_member(archive, member):
  name, npy = member.filename, np.lib.format
  readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
  with archive.open(member) as stream:
    version = npy.read_magic(stream)
    if version not in readers:
      raise ValueError(f"{name} has npy version {version}, one of {[*readers]} is needed")
    shape, _, dtype = readers[version](stream)
    declared = stream.tell() + math.prod(shape) * dtype.itemsize
  if dtype.hasobject:
    raise ValueError(f"{name} holds pickled Python objects")
  if dtype.kind not in "biufSU" or not dtype.itemsize:
    raise ValueError(f"{name} holds {dtype}; numbers or strings are needed")
  if declared != member.file_size:
    raise ValueError(f"{name} declares {declared} bytes and has {member.file_size}")
  with archive.open(member) as stream:
    return npy.read_array(stream, allow_pickle=False)


@contextlib.contextmanager
def _opened(path):
  """The Pillow image of a file, not decoded yet; any failure names the file."""
  try:
    if not path.is_file():
      raise ValueError("it is no file but a folder, a pipe, a device or a broken link")
    with Image.open(path, formats=[FORMATS[path.suffix.lower()]]) as image:
      if image.width * image.height > MAX_PIXELS:
        raise ValueError(f"{image.width}x{image.height} is more than {MAX_PIXELS} pixels")
      yield image
  except Exception as error:  # Pillow raises a dozen kinds for a damaged file
    raise ValueError(f"{path} cannot be read as an image: {error}") from error


def _check_header(path):
  with _opened(path):
    pass


def _decode(path):
  """RGB uint8 [H, W, 3] of an image file, upright, without transparency; 16-bit grey is scaled."""
  with _opened(path) as image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):  # Pillow's own conversion would clip it to white
      image = Image.fromarray(((np.asarray(image, np.uint32) + 128) // 257).astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def _captions(file, names):
  if not file.exists():
    return None
  if not file.is_file():
    raise ValueError(f"{file} is no file but a folder, a pipe or a device")
  captions = dict.fromkeys(names)
  with open(file, "rb") as stream:
    for number, line in enumerate(iter(lambda: stream.readline(MAX_LINE + 1), b""), 1):
      if len(line) > MAX_LINE:
        raise ValueError(f"{file}, line {number} has more than {MAX_LINE} bytes")
      try:
        row = json.loads(line)
        name, text = row["file"] + "", row["caption"] + ""
      except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(
          f'{file}, line {number} must be {{"file": name, "caption": text}}'
        ) from error
      if name in captions:
        captions[name] = text
  missing = next((name for name in names if captions[name] is None), None)
  if missing:
    raise ValueError(f"{file} has no caption for {missing}")
  return tuple(captions.values())

"""Sources made from others: pairs, binarised pixels, few labels, images in part."""

import dataclasses
from typing import Any

import numpy as np

from jaxgen.core import method


def pair(where, split, open_source):
  """`Pair` of "A->B". Raises ValueError for another form."""
  specs = where.split("->")
  method.check("source", f"pair:{where}", len(specs) == 2, "pair:A->B, where A and B are sources")
  return Pair(*map(open_source, specs))


def binarized(where, split, open_source):
  """`Binarized` of a spec. Raises ValueError for images that are not uint8."""
  return Binarized(_pixels("binarized", open_source(where)), seed=0 if split == "train" else 1)


def few_labels(where, split, open_source):
  """`FewLabels` of "N:SPEC" to train on, and the images themselves, in its form, as tests.

  Images are as they were, uint8 or in [-1, 1].

  Raises ValueError for another form, data without labels, and N of which no class has its share.
  """
  n, spec = _numbered("few_labels", where)
  source = open_source(spec)
  name = f"few_labels:{where}"
  method.check("source", name, "label" in source[0], "a source with labels")
  labels = source.labels
  if labels is None:
    labels = np.array([source[i]["label"] for i in range(len(source))], np.int32)
  if split == "test":
    return FewLabels(source, np.arange(len(source)), labels)
  classes, counts = np.unique(labels, return_counts=True)
  fits = n % len(classes) == 0 and 0 < n <= len(classes) * counts.min()
  most = f"of {len(classes)}, the classes, up to {len(classes) * counts.min()}"
  method.check("source", name, fits, f"few_labels:N:SPEC, N a multiple {most}")
  few = np.stack([np.flatnonzero(labels == c)[: n // len(classes)] for c in classes], axis=1)
  return FewLabels(source, few.ravel(), labels[few.ravel()])


def quadrants(where, split, open_source):
  """`Quadrants` of "N:SPEC". Raises ValueError for another form, and images that are not uint8."""
  n, spec = _numbered("quadrants", where)
  method.check("source", f"quadrants:{where}", n in (1, 2, 3), "quadrants:N:SPEC, N of 1, 2 or 3")
  return Quadrants(_pixels("quadrants", open_source(spec)), n)


def _pixels(kind, source):
  image = source[0].get("image")
  found = None if image is None else str(image.dtype)
  method.check("image", found, found == "uint8", f"uint8, as {kind} needs it")
  return source


def _numbered(kind, where):
  n, _, spec = where.partition(":")
  method.check("source", f"{kind}:{where}", n.isdecimal() and spec, f"{kind}:N:SPEC")
  return int(n), spec


@dataclasses.dataclass(frozen=True)
class Pair:
  """The images of `second` with images of `first` as their starts; the shorter one begins again.

  Both are as they were, uint8 or in [-1, 1].
  """

  first: Any
  second: Any

  def __len__(self):
    return max(len(self.first), len(self.second))

  def __getitem__(self, i):
    start = self.first[i % len(self.first)]["image"]
    return {**self.second[i % len(self.second)], "start": start}

  @property
  def labels(self):
    labels = self.second.labels
    return None if labels is None else labels[np.arange(len(self)) % len(labels)]


@dataclasses.dataclass(frozen=True)
class Binarized:
  """Pixels of 0 or 255, white with the probability of their brightness; drawn once and for all."""

  source: Any
  seed: int

  def __len__(self):
    return len(self.source)

  def __getitem__(self, i):
    example = self.source[i]
    image = example["image"]
    coin = np.random.RandomState([self.seed, i]).random_sample(image.shape)
    return {**example, "image": np.where(255.0 * coin < image, 255, 0).astype(np.uint8)}

  @property
  def labels(self):
    return self.source.labels


@dataclasses.dataclass(frozen=True)
class FewLabels:
  """Every image, with one of the few that have labels, `labelled`, and its `label`; in turn.

  Images are as they were, uint8 or in [-1, 1]. index, few: which have labels, and these, int32 [N].
  """

  source: Any
  index: np.ndarray
  few: np.ndarray

  def __len__(self):
    return len(self.source)

  def __getitem__(self, i):
    j = i % len(self.index)
    labelled = self.source[int(self.index[j])]["image"]
    return {"image": self.source[i]["image"], "labelled": labelled, "label": self.few[j]}

  @property
  def labels(self):
    return np.resize(self.few, len(self))


@dataclasses.dataclass(frozen=True)
class Quadrants:
  """Images with what is seen of them as `start`, float in [-1, 1], and 0 elsewhere: no pixel is 0.

  Seen are the lower left quadrant, the left half (2), or all but the upper right one (3).
  """

  source: Any
  n: int

  def __len__(self):
    return len(self.source)

  def __getitem__(self, i):
    example = self.source[i]
    height, width = (size // 2 for size in example["image"].shape[:2])
    seen = np.zeros(example["image"].shape, bool)
    seen[height:, :width] = True
    seen[:height, :width] = self.n > 1
    seen[height:, width:] = self.n > 2
    start = np.where(seen, example["image"] / np.float32(127.5) - np.float32(1.0), np.float32(0.0))
    return {**example, "start": start}

  @property
  def labels(self):
    return self.source.labels

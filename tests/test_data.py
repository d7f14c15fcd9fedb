"""Batches depend on (seed, step) only; a source gives what was stored, or one clear error."""

import collections
import concurrent.futures
import functools
import gc
import io
import json
import struct
import sys
import time
import types
import zipfile
import zlib

import numpy as np
import pytest
from PIL import Image

from jaxgen.data import pipeline, sources, sprites, views


def numbered(n, classes=3):
  """n examples whose image [4, 6, 1] is their number in the left half, 0 in the right."""
  image = np.zeros((n, 4, 6, 1), np.uint8)
  image[:, :, :3] = np.arange(n)[:, None, None, None]
  return sources.Arrays({"image": image, "label": np.arange(n, dtype=np.int32) % classes})


def ids(batch):
  """The numbers of the examples of a batch of `numbered`, mirrored or not."""
  return pipeline.to_uint8(batch["image"]).max(axis=(-3, -2, -1)).astype(int)


def same(a, b):
  assert a.keys() == b.keys()
  for name in a:
    assert a[name].dtype == b[name].dtype
    np.testing.assert_array_equal(a[name], b[name])


def joined(hosts, read, axis):
  """The global batches from the shares of `hosts` hosts."""
  for shares in zip(*[read(host=h, hosts=hosts) for h in range(hosts)], strict=True):
    yield {k: np.concatenate([s[k] for s in shares], axis=axis) for k in shares[0]}


def save_images(root, images):
  for name, pixels in images.items():
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(root / name)


def solid(value, shape=(4, 5, 3)):
  return np.full(shape, value, np.uint8)


# Pixels


def test_pixels_become_floats_and_back():
  image = np.arange(256, dtype=np.uint8).reshape(16, 16, 1)
  x = pipeline.to_float(image)
  assert x.dtype == np.float32 and x[0, 0, 0] == -1 and x[-1, -1, 0] == 1
  np.testing.assert_array_equal(pipeline.to_uint8(x), image)
  np.testing.assert_array_equal(pipeline.to_uint8([-9.0, 0.003, 9.0]), [0, 128, 255])
  with pytest.raises(ValueError, match="1 NaN"):
    pipeline.to_uint8([np.nan, 0])
  with pytest.raises(ValueError, match="uint8, it is float64"):
    pipeline.to_float(np.zeros(3))


# Order and batches


@pytest.mark.parametrize("rows", [3, 7, 10, 24])
def test_every_epoch_is_another_permutation_and_nothing_is_lost_between(rows):
  n, epochs = 7, 12
  steps = -(-n * epochs // rows)
  read = lambda seed: np.concatenate(
    [
      ids(b)[0]
      for b in pipeline.batches(numbered(n), rows=rows, steps=steps, seed=seed, host=0, hosts=1)
    ]
  )
  stream = read(5)
  perms = stream[: n * epochs].reshape(epochs, n)
  np.testing.assert_array_equal(np.sort(perms, axis=1), np.tile(np.arange(n), (epochs, 1)))
  assert len({tuple(p) for p in perms}) == epochs
  assert not np.array_equal(stream, read(6))


def digits(folder, monkeypatch):
  return sources.open_source("digits", "test")


def npz(folder, monkeypatch):
  np.savez(folder / "train.npz", **numbered(10).arrays)
  return sources.open_source(f"npz:{folder}", "train")


def folder(folder, monkeypatch):
  names = [f"{'ab'[i % 2]}/{i}.png" for i in range(10)]
  save_images(folder, {name: numbered(10)[i]["image"][..., 0] for i, name in enumerate(names)})
  lines = [json.dumps({"file": name, "caption": f"number {name}"}) for name in names]
  (folder / "captions.jsonl").write_text("\n".join(lines))
  return sources.open_source(f"folder:{folder}", "train")


def array_record(folder, monkeypatch):
  sources.write_array_record(folder / "train.array_record", [*numbered(10)])
  return sources.open_source(f"array_record:{folder}", "train")


def tfds(folder, monkeypatch):
  fake = types.SimpleNamespace(data_source=lambda name, split: [*numbered(10)])
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
  return sources.open_source("tfds:numbers", "train")


def toy(folder, monkeypatch):
  points = sources.open_source("toy:moons", "test")
  return sources.Arrays(points.take(np.arange(30)))


def pair(folder, monkeypatch):
  for part in ("a", "b"):
    (folder / part).mkdir()
  npz(folder / "a", monkeypatch)
  npz(folder / "b", monkeypatch)
  return sources.open_source(f"pair:npz:{folder / 'a'}->npz:{folder / 'b'}", "train")


def dsprites(folder, monkeypatch):
  return sprites.Sprites(sources.open_source("dsprites", "test").numbers[:30])


def view(spec):
  """A source of ten digits, seen in another way."""

  def made(folder, monkeypatch):
    few = sources.open_source("digits", "train").take(np.arange(10))
    np.savez(folder / "train.npz", **few)
    return sources.open_source(f"{spec}:npz:{folder}", "train")

  made.__name__ = spec.partition(":")[0]
  return made


EVERY = [digits, npz, folder, array_record, tfds, toy, dsprites]
EVERY += [pair, view("binarized"), view("few_labels:9"), view("quadrants:3")]


@pytest.mark.parametrize("kind", EVERY)
def test_a_batch_depends_on_the_seed_and_the_step_only(kind, tmp_path, monkeypatch):
  """Acceptance test 5: batch i by iteration, random access and after a restart; 1 to 3 hosts."""
  assert {*sources.KINDS, *sources.VIEWS} == {kind.__name__ for kind in EVERY}
  source, size = kind(tmp_path, monkeypatch), 12
  steps = len(source) // size + 3  # beyond the first epoch

  def read(start=0, end=steps, **kw):
    options = dict(rows=6, micro_batches=2, seed=3, flip=True, host=0, hosts=1)
    return list(pipeline.batches(source, start=start, steps=end, **{**options, **kw}))

  whole, mirrored = read(), lambda x: x + x[..., ::-1, :]
  assert len(whole) == steps and read(steps) == []
  for i, batch in enumerate(whole):
    stored = pipeline.load(source, pipeline.order(len(source), 3, size * i + np.arange(size)))
    flat = {name: x.reshape(size, *x.shape[2:]) for name, x in batch.items()}
    for name in flat.keys() & pipeline.PIXELS:
      np.testing.assert_array_equal(mirrored(flat.pop(name)), mirrored(stored.pop(name)))
    same(flat, stored)
  for hosts in (1, 2, 3):
    for start in range(steps):
      for end in {start + 1, steps}:
        shares = joined(hosts, functools.partial(read, start, end), axis=1)
        for a, b in zip(whole[start:end], shares, strict=True):
          same(a, b)
  for a, b in zip(whole[1:], read(1, workers=1), strict=True):
    same(a, b)


def test_the_coin_of_a_flip_belongs_to_the_example():
  source = numbered(50)
  read = lambda flip: pipeline.batches(source, rows=50, steps=20, flip=flip, host=0, hosts=1)
  plain, flipped = [np.concatenate([b["image"][0] for b in read(f)]) for f in (False, True)]
  heads = (plain != flipped).any(axis=(1, 2, 3))
  np.testing.assert_array_equal(flipped[heads], plain[heads][:, :, ::-1])
  zero = (plain == -1).all(axis=(1, 2, 3))  # mirrored or not, example 0 looks the same
  assert 0.44 < heads[~zero].mean() < 0.56
  per_step = heads.reshape(20, 50)
  assert len({tuple(row) for row in per_step}) == 20


def test_a_video_is_mirrored_along_its_width():
  video = np.random.default_rng(0).integers(0, 256, (1, 3, 4, 5, 2)).astype(np.uint8)
  read = pipeline.batches(
    sources.Arrays({"video": video}), rows=8, steps=1, flip=True, host=0, hosts=1
  )
  rows, x = next(read)["video"][0], pipeline.to_float(video[0])
  kinds = [np.array_equal(r, x) + 2 * np.array_equal(r, x[:, :, ::-1]) for r in rows]
  assert set(kinds) == {1, 2}


def test_what_becomes_of_each_dtype():
  source = sources.Arrays(
    {
      "image": np.ones((2, 2, 2, 1), np.float64) / 3,
      "embedding": np.ones((2, 5), np.float16),
      "tokens": np.array([[1, 2], [3, 4]], np.uint8),
      "mask": np.ones((2, 2), bool),
      "label": np.array([0, 1], np.int64),
      "caption": np.array(["a", "longer"]),
    }
  )
  batch = pipeline.load(source, [1, 0])
  dtypes = {k: v.dtype.name for k, v in batch.items()}
  assert dtypes == dict(
    image="float32", embedding="float32", tokens="int32", mask="bool", label="int32"
  )
  np.testing.assert_array_equal(batch["tokens"], [[3, 4], [1, 2]])
  assert batch["image"][0, 0, 0, 0] == np.float32(1 / 3)


@pytest.mark.parametrize(
  "change, words",
  [
    (dict(rows=6, hosts=4), "rows=6 must be positive and a multiple of hosts=4"),
    (dict(rows=0), "rows=0 must be positive"),
    (dict(host=2, hosts=2), "host=2 must be one of 0..1"),
    (dict(micro_batches=0), "micro_batches=0 must be at least 1"),
    (dict(seed=-1), "seed=-1 must be at least 0"),
    (dict(n_classes=2), r"label 2 of example 2 is outside 0\.\.1"),
    (dict(source=[{"image": solid(0)}], n_classes=2), "n_classes=2 needs labels"),
    (dict(source=sources.Arrays({"image": solid(0)}), n_classes=2), "n_classes=2 needs labels"),
    (dict(source=[]), "source is empty"),
  ],
)
def test_bad_arguments_raise_before_the_first_batch(change, words):
  options = dict(source=numbered(8), rows=4, steps=1, host=0, hosts=1)
  with pytest.raises(ValueError, match=words):
    pipeline.batches(**{**options, **change})


@pytest.mark.parametrize("values, bad", [([0, 1, -1], -1), ([0, 1, 7], 7)])
def test_labels_that_only_loading_shows_are_checked_then(values, bad):
  source = [{"image": solid(0), "label": np.int32(v)} for v in values]
  read = pipeline.batches(source, rows=3, steps=1, n_classes=3, host=0, hosts=1)
  with pytest.raises(ValueError, match=rf"label {bad} of example 2 is outside 0\.\.2"):
    next(read)


@pytest.mark.parametrize(
  "second, words",
  [
    ({"image": solid(0, (4, 6, 3))}, "examples 0 and 1 differ.*image_size to be set"),
    ({"image": solid(0), "extra": np.zeros(1)}, "examples 0 and 1 differ"),
    ({"image": solid(0).astype(np.float32)}, "examples 0 and 1 differ"),
  ],
)
def test_examples_must_be_alike(second, words):
  with pytest.raises(ValueError, match=words):
    pipeline.load([{"image": solid(0)}, second], [0, 1])


@pytest.mark.parametrize(
  "example, words",
  [
    ({"image": solid(0, (4, 5))}, r"image needs 3 axes"),
    ({"video": solid(0)}, r"video needs 4 axes"),
    ({"image": solid(0).astype(np.uint16)}, "image must be uint8 or float, it is uint16"),
    ({"latent": np.array([1, np.inf])}, "latent of example 0 has NaN or infinity"),
    ({"tokens": np.array([1, 2**40])}, "tokens .* of example 0 does not fit int32"),
    ({"label": np.int64(2**40)}, f"label {2**40} of example 0 does not fit int32"),
    ({"label": np.float32(1)}, "label must be integers, these are float32"),
    ({"thing": np.array([{}, None])}, "thing holds Python objects"),
  ],
)
def test_examples_that_no_model_can_take(example, words):
  with pytest.raises(ValueError, match=words):
    pipeline.load([example], [0])


# Evaluation


@pytest.mark.parametrize("hosts", [1, 2])
@pytest.mark.parametrize("n, rows, limit", [(10, 4, None), (3, 8, None), (8, 4, None), (9, 4, 5)])
def test_evaluation_sees_every_example_once(n, rows, limit, hosts):
  read = lambda **kw: pipeline.eval_batches(numbered(n), rows=rows, limit=limit, n_classes=3, **kw)
  parts = list(joined(hosts, read, axis=0))
  seen = limit or n
  assert len(parts) == -(-seen // rows)
  assert all(len(v) == rows for part in parts for v in part.values())
  batch = {k: np.concatenate([p[k] for p in parts]) for k in parts[0]}
  real = batch["weight"] == 1
  assert batch["weight"].dtype == np.float32 and set(batch["weight"]) <= {0.0, 1.0}
  assert batch["index"].dtype == np.int32
  np.testing.assert_array_equal(batch["index"], np.arange(len(parts) * rows))
  np.testing.assert_array_equal(ids(batch)[real], np.arange(seen))
  np.testing.assert_array_equal(ids(batch)[~real], 0)
  with pytest.raises(ValueError, match="limit=0"):
    pipeline.eval_batches(numbered(n), rows=rows, limit=0)


def test_prefetch_keeps_results_in_flight_and_in_order():
  put = []
  stream = pipeline.prefetch(iter(range(6)), lambda i: put.append(i) or 10 * i, size=2)
  assert next(stream) == 0 and put == [0, 1, 2]
  assert next(stream) == 10 and put == [0, 1, 2, 3]
  assert list(stream) == [20, 30, 40, 50] and put == list(range(6))


# Sources


def test_digits():
  data = pytest.importorskip("sklearn.datasets").load_digits()
  train, test = [sources.open_source("digits", s) for s in ("train", "test")]
  assert len(train) == 1618 and len(test) == 179
  np.testing.assert_array_equal(test.labels, data.target[9::10])
  example = test[2]
  assert example["image"].shape == (8, 8, 1) and example["image"].dtype == np.uint8
  np.testing.assert_array_equal(
    example["image"][..., 0], np.rint(data.images[29] * 255 / 16).astype(np.uint8)
  )
  assert example["label"].dtype == np.int32
  np.testing.assert_array_equal(
    train[9]["image"], sources.open_source("digits", "train")[9]["image"]
  )
  assert train[9]["label"] == data.target[10]


def test_points():
  """Always the same; the first moments and the supports of the sets."""
  for name, std in [("gaussians8", 0.5 + 0.1 / 25), ("moons", None), ("checkerboard", 1.0 / 3.0)]:
    train, test = (sources.open_source(f"toy:{name}", split) for split in ("train", "test"))
    assert (len(train), len(test)) == (50_000, 10_000) and train[3]["image"].shape == (1, 1, 2)
    assert (train[3]["image"] == sources.open_source(f"toy:{name}", "train")[3]["image"]).all()
    assert not (train.take(np.arange(9))["image"] == test.take(np.arange(9))["image"]).any()
    x = pipeline.load(train, np.arange(50_000))["image"].reshape(-1, 2)
    if std:
      np.testing.assert_allclose(x.mean(0), 0.0, atol=0.02)
      np.testing.assert_allclose(x.var(0), std, rtol=0.02)
    else:  # (3 raw - 1) / 5, of mean (1/2, 1/4) and noise of 0.2
      np.testing.assert_allclose(x.mean(0), (0.1, -0.05), atol=0.02)
    if name == "checkerboard":
      column, row = np.floor(2.0 * (x + 1.0)).T
      assert (np.abs(x) <= 1.0).all() and ((column + row) % 2 == 0).all()
      assert len(set(zip(column, row, strict=True))) == 8


def test_a_pair_gives_every_image_of_both_and_keeps_the_labels_of_the_second():
  first, second = numbered(3), numbered(7)
  pair = views.Pair(first, second)
  batch = next(pipeline.eval_batches(pair, rows=7, host=0, hosts=1))
  np.testing.assert_array_equal(ids(batch), np.arange(7))
  starts = ids({"image": batch["start"]})
  np.testing.assert_array_equal(starts, [0, 1, 2, 0, 1, 2, 0])
  np.testing.assert_array_equal(batch["label"], second.labels)
  assert batch["start"].dtype == np.float32 and batch["start"].min() == -1.0
  swapped = views.Pair(second, first)
  np.testing.assert_array_equal(swapped.labels, [0, 1, 2, 0, 1, 2, 0])
  assert swapped[5]["label"] == 2 and ids({"image": swapped[5]["start"][None] / 127.5 - 1.0}) == 5
  flipped = next(pipeline.batches(pair, rows=7, steps=1, flip=True, host=0, hosts=1))
  side = lambda x: x[0, :, 0, 0, 0] > x[0, :, 0, -1, 0]  # which half is bright
  bright = (ids({"image": flipped["start"][0]}) > 0) & (ids({"image": flipped["image"][0]}) > 0)
  assert (side(flipped["image"]) == side(flipped["start"]))[bright].all()
  sized = sources.open_source("pair:digits->digits", "test", image_size=4)
  assert sized[0]["start"].shape == sized[0]["image"].shape == (4, 4, 1)
  assert (sized[0]["start"] == sized[0]["image"]).all() and len(sized) == 179


def test_sprites_are_what_their_factors_say():
  train, test = (sources.open_source("dsprites", split) for split in ("train", "test"))
  assert {*train.numbers, *test.numbers} == {*range(3 * 6 * 40 * 32 * 32)}
  assert len(train) + len(test) == 737_280 and len(test) == 73_728
  batch = test.take(np.arange(50))
  np.testing.assert_array_equal(batch["image"], sprites.render(batch["factors"]))
  assert batch["factors"].min() == 0 and (batch["factors"].max(0) < sprites.COUNTS).all()
  centred = lambda shape, **kw: sprites.render(
    np.array([[shape, *(kw.get(k, 5 * (k == "scale")) for k in sprites.FACTORS[1:])]])
  )[0, ..., 0]
  square = centred(0)
  # Half a side is 0.75 * 14 = 10.5 pixels around (16.5, 16.5).
  assert (square[6:27, 6:27] == 255).all() and square.sum() == 255 * 21**2
  moved = centred(0, position_x=3, position_y=7)
  np.testing.assert_array_equal(np.roll(square, (7, 3), (0, 1)), moved)
  for shape in range(3):
    np.testing.assert_array_equal(centred(shape), centred(shape, orientation=39))
    assert (centred(shape) != centred(shape, orientation=7)).any()
    whole, half = centred(shape).sum(), centred(shape, scale=0).sum()
    np.testing.assert_allclose(half / whole, 0.25, atol=0.03)


def test_binarized_pixels_are_drawn_once_with_the_probability_of_their_brightness():
  grey = sources.Arrays({"image": np.full((2000, 4, 4, 1), 51, np.uint8)})
  train, test = (views.binarized("", split, lambda _: grey) for split in ("train", "test"))
  batch = pipeline.load(train, np.arange(2000))["image"]
  assert {*np.unique(batch)} == {-1.0, 1.0}
  np.testing.assert_allclose((batch > 0).mean(axis=(0, 3)), 0.2, atol=0.04)
  np.testing.assert_array_equal(train[7]["image"], train[7]["image"])
  assert (train[7]["image"] != train[8]["image"]).any()
  assert (train[7]["image"] != test[7]["image"]).any()


def test_few_labels_shows_every_image_and_only_the_labels_it_may():
  source = sources.open_source("digits", "train")
  view = sources.open_source("few_labels:20:digits", "train")
  every = pipeline.load(view, np.arange(len(source)))
  np.testing.assert_array_equal(every["image"], pipeline.load(source, np.arange(1618))["image"])
  seen = {(x.tobytes(), int(y)) for x, y in zip(every["labelled"], every["label"], strict=True)}
  assert len(seen) == 20
  assert collections.Counter(y for _, y in seen) == dict.fromkeys(range(10), 2)
  known = pipeline.load(source, np.arange(len(source)))
  truth = {(x.tobytes(), int(y)) for x, y in zip(known["image"], known["label"], strict=True)}
  assert seen < truth
  np.testing.assert_array_equal(view.labels, every["label"])
  test = pipeline.load(sources.open_source("few_labels:20:digits", "test"), np.arange(179))
  np.testing.assert_array_equal(test["image"], test["labelled"])
  np.testing.assert_array_equal(test["label"], sources.open_source("digits", "test").labels)


def test_quadrants_hide_the_rest():
  image = pipeline.load(sources.open_source("digits", "test"), np.arange(9))["image"]
  for n in (1, 2, 3):
    start = pipeline.load(sources.open_source(f"quadrants:{n}:digits", "test"), np.arange(9))[
      "start"
    ]
    seen = start != 0.0
    assert seen.mean() == n / 4 and seen[:, 4:, :4].all()
    assert seen[:, :4, :4].all() == (n > 1) and not seen[:, :4, 4:].any()
    np.testing.assert_array_equal(start[seen], image[seen])
  sized = sources.open_source("quadrants:2:digits", "test", image_size=4)[0]
  assert sized["image"].shape == sized["start"].shape == (4, 4, 1)


def test_npz(tmp_path):
  stored = dict(
    image=np.random.default_rng(0).integers(0, 256, (5, 4, 3, 3)).astype(np.uint8),
    label=np.arange(5),
    caption=np.array(["a", "bb", "c", "d", "é"]),
    embedding=np.ones((5, 7), np.float16),
  )
  np.savez_compressed(tmp_path / "train.npz", **stored)
  np.savez(tmp_path / "test.npz", video=np.zeros((2, 3, 4, 5, 1), np.uint8))
  source = sources.open_source(f"npz:{tmp_path}", "train")
  assert len(source) == 5 and source.labels.dtype == np.int32
  for i, example in enumerate(source):
    assert example.keys() == stored.keys()
    for name, value in example.items():
      np.testing.assert_array_equal(value, stored[name][i])
  assert len(sources.open_source(f"npz:{tmp_path / 'train.npz'}", "train")) == 5
  test = sources.open_source(f"npz:{tmp_path}", "test")
  assert test.labels is None and test[1]["video"].shape == (3, 4, 5, 1)


def test_array_record(tmp_path):
  examples = [
    {
      "image": solid(i, (2, 3, 1)),
      "label": np.int64(i),
      "caption": np.array(f"number {i}"),
      "embedding": np.full(4, i, np.float16),
    }
    for i in range(4)
  ]
  sources.write_array_record(tmp_path / "train.array_record", examples)
  source = sources.open_source(f"array_record:{tmp_path}", "train")
  assert len(source) == 4 and source.labels is None
  for i in (3, 0, 2):
    assert source[i].keys() == examples[i].keys() and source[i]["label"].dtype == np.int32
    for name, value in source[i].items():
      np.testing.assert_array_equal(value, examples[i][name])
  with pytest.raises(ValueError, match="thing holds Python objects"):
    sources.write_array_record(tmp_path / "bad", [{"thing": np.array([{}, None])}])


def test_tfds(monkeypatch):
  """The adapter, against a stand-in for the package."""
  calls = []

  def data_source(name, split):
    calls.append((name, split))
    return [{"image": solid(i), "label": np.int64(i), "text": b"hi", "id": b"x"} for i in range(3)]

  fake = types.SimpleNamespace(data_source=data_source)
  monkeypatch.setitem(sys.modules, "tensorflow_datasets", fake)
  source = sources.open_source("tfds:cifar10/plain:3.0.2", "test")
  assert calls == [("cifar10/plain:3.0.2", "test")] and len(source) == 3
  example = source[2]
  assert example.keys() == {"image", "label", "caption"} and str(example["caption"]) == "hi"
  assert example["label"] == 2 and example["label"].dtype == np.int32
  np.testing.assert_array_equal(example["image"], solid(2))


@pytest.mark.parametrize(
  "spec, module, words",
  [
    ("tfds:cifar10", "tensorflow_datasets", r'pip install "jaxgen\[tfds\]"'),
    ("digits", "sklearn.datasets", "pip install scikit-learn"),
    (
      "array_record:{}",
      "array_record.python.array_record_data_source",
      "pip install array_record",
    ),
  ],
)
def test_a_missing_package_is_named(spec, module, words, monkeypatch, tmp_path):
  (tmp_path / "train.array_record").touch()
  monkeypatch.setitem(sys.modules, module, None)
  with pytest.raises(ImportError, match=words):
    sources.open_source(spec.format(tmp_path), "train")


def test_folder_with_splits_classes_and_captions(tmp_path):
  train, test = tmp_path / "train", tmp_path / "test"
  save_images(train, {"cat/b.png": solid(1), "cat/a.PNG": solid(2), "dog/c.bmp": solid(3)})
  save_images(test, {"dog/x.png": solid(4), "ant/y.png": solid(5), ".cache/z.png": solid(6)})
  (train / "cat" / "readme.txt").write_text("not an image")
  lines = [
    {"file": name, "caption": name.upper() + "\u2028é"}
    for name in ("cat/a.PNG", "cat/b.png", "dog/c.bmp")
  ]
  (train / "captions.jsonl").write_text(
    "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines), encoding="utf-8"
  )
  source = sources.open_source(f"folder:{tmp_path}", "train")
  assert [int(e["image"][0, 0, 0]) for e in source] == [2, 1, 3]
  assert [str(e["caption"]) for e in source] == [line["caption"] for line in lines]
  held_out = sources.open_source(f"folder:{tmp_path}", "test")
  # ant 0, cat 1, dog 2, though neither split has all three
  np.testing.assert_array_equal(source.labels, [1, 1, 2])
  np.testing.assert_array_equal(held_out.labels, [0, 2])
  assert held_out[1]["label"] == 2 and held_out[1]["label"].dtype == np.int32
  assert held_out[1].keys() == {"image", "label"}


def test_folder_without_classes_reads_every_mode_as_rgb(tmp_path):
  grey = np.array([[0, 100], [200, 255]], np.uint8)
  Image.fromarray(grey).save(tmp_path / "a.png")
  Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "b.png")
  Image.fromarray(grey > 150).save(tmp_path / "c.png")
  Image.fromarray(np.stack([grey] * 3 + [grey], -1)).save(tmp_path / "d.png")
  Image.fromarray(grey).convert("P").save(tmp_path / "e.png")
  source = sources.open_source(f"folder:{tmp_path}", "train")
  expect = [grey, grey, np.where(grey > 150, 255, 0), grey, grey]
  for example, pixels in zip(source, expect, strict=True):
    assert example.keys() == {"image"} and example["image"].dtype == np.uint8
    np.testing.assert_array_equal(example["image"], np.stack([pixels] * 3, -1))


def test_square_crops_the_centre_and_is_antialiased():
  image = np.arange(5 * 9 * 2, dtype=np.uint8).reshape(5, 9, 2)
  np.testing.assert_array_equal(sources.square(image, 5), image[:, 2:7])
  np.testing.assert_array_equal(sources.square(image.swapaxes(0, 1), 5), image.swapaxes(0, 1)[2:7])
  stripes = np.zeros((32, 64, 1), np.uint8)
  stripes[:, ::2] = 200
  assert np.ptp(sources.square(stripes, 8).astype(int)) <= 4
  assert abs(sources.square(stripes, 8).mean() - 100) < 2
  halves = solid(10, (8, 8, 1))
  halves[:, 4:] = 250
  small = sources.square(halves, 2)[..., 0].astype(int)
  assert small.shape == (2, 2) and (small[:, 0] < 40).all() and (small[:, 1] > 220).all()
  assert sources.square(solid(7, (3, 100, 3)), 64).shape == (64, 64, 3)


def test_image_size_makes_a_mixed_folder_uniform(tmp_path):
  save_images(tmp_path, {"a.png": solid(1, (4, 6, 3)), "b.png": solid(2, (8, 8, 3))})
  spec = f"folder:{tmp_path}"
  with pytest.raises(ValueError, match="image_size to be set"):
    next(pipeline.batches(sources.open_source(spec, "train"), rows=2, steps=1, host=0, hosts=1))
  source = sources.open_source(spec, "train", image_size=4)
  batch = next(pipeline.eval_batches(source, rows=2, host=0, hosts=1))
  np.testing.assert_array_equal(ids(batch), [1, 2])
  assert batch["image"].shape == (2, 4, 4, 3)
  assert sources.open_source("digits", "test", image_size=16)[0]["image"].shape == (16, 16, 1)
  assert sources.open_source("digits", "test", image_size=16).labels is not None


def test_a_file_of_records_is_read_in_a_worker(tmp_path):
  sources.write_array_record(tmp_path / "train.array_record", [{"image": solid(3)}])
  source = sources.open_source(f"array_record:{tmp_path}", "train", image_size=4)
  batch = next(pipeline.batches(source, rows=2, steps=1, workers=1, host=0, hosts=1))
  np.testing.assert_array_equal(ids(batch), [[3, 3]])


def test_records_are_read_in_several_threads():
  """Python 3.11 cannot parse in two threads at once, which a garbage collection brings about."""
  content = saved(image=IMAGE, label=np.arange(3))
  read = lambda _: sources.read_npz(io.BytesIO(content), "record").keys()
  yields = lambda *_: time.sleep(0)
  threshold = gc.get_threshold()
  gc.callbacks.append(yields)
  gc.set_threshold(50)
  try:
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
      assert all(keys == {"image", "label"} for keys in pool.map(read, range(2000)))
  finally:
    gc.callbacks.remove(yields)
    gc.set_threshold(*threshold)


# Bad input


def npy(header, body=b""):
  text = (header + "\n").encode()
  return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def zipped(**members):
  out = io.BytesIO()
  with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
    for name, content in members.items():
      archive.writestr(f"{name}.npy", content)
  return out.getvalue()


def saved(**arrays):
  out = io.BytesIO()
  np.savez_compressed(out, **arrays)
  return out.getvalue()


def png_header(width, height):
  chunk = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
  end = b"IEND"
  parts = [
    struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (chunk, end)
  ]
  return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


IMAGE = np.zeros((3, 2, 2, 1), np.uint8)
NAN = np.array([[0.0], [np.nan], [0.0]], np.float32)
HEADER = "{'descr': '<f8', 'fortran_order': False, 'shape': (%s,), }"
NPZ = {
  "pickled": (saved(image=np.array([{"a": 1}, None])), "image.npy holds pickled Python objects"),
  "terabytes": (zipped(image=npy(HEADER % 2**39)), "image.npy declares 43980"),
  "truncated": (saved(image=IMAGE)[:-30], "is not a safe npz file"),
  "text": (b"hello", "is not a safe npz file: File is not a zip file"),
  "damaged": (saved(image=IMAGE).replace(b"PK\x05\x06", b"PK\x05\x07"), "is not a safe npz file"),
  "not npy": (zipped(image=b"hello" * 9), "is not a safe npz file"),
  "lengths": (saved(image=IMAGE, label=np.arange(2)), r"image \(3,.*label \(2,\) need the same"),
  "scalar": (saved(image=IMAGE, n=np.int32(3)), r"n \(\) need the same first dimension"),
  "only a scalar": (saved(n=np.int32(3)), r"n \(\)"),
  "no arrays": (zipped(), "has no examples"),
  "no rows": (saved(image=IMAGE[:0]), "has no examples in its train split"),
  "nan": (saved(image=IMAGE, latent=NAN), "latent of example 1 has NaN or infinity"),
  "big label": (saved(image=IMAGE, label=np.array([0, 2**40, 1])), f"label {2**40} of example 1"),
  "float label": (saved(image=IMAGE, label=np.zeros(3)), "label must be integers"),
}


@pytest.mark.parametrize("case", NPZ)
def test_bad_npz(case, tmp_path):
  content, words = NPZ[case]
  (tmp_path / "train.npz").write_bytes(content)
  with pytest.raises(ValueError, match=words) as error:
    sources.open_source(f"npz:{tmp_path}", "train")
  assert str(tmp_path) in str(error.value)


def test_a_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
  file = tmp_path / "train.npz"
  np.savez_compressed(file, image=np.zeros((100, 100, 100, 3), np.uint8))
  assert file.stat().st_size < 10_000
  assert len(sources.open_source(f"npz:{file}", "train")) == 100
  monkeypatch.setattr(sources, "MAX_BYTES", 1_000_000)
  with pytest.raises(ValueError, match="unpacks to 3000128 bytes, the limit is 1000000"):
    sources.open_source(f"npz:{file}", "train")


IMAGES = {
  "text": (b"hello", "cannot be read as an image"),
  "empty file": (b"", "cannot be read as an image"),
  "60 megapixels": (png_header(10_000, 6_000), "10000x6000 is more than 50000000 pixels"),
  "bomb": (png_header(2**30, 2**30), "cannot be read as an image"),
  "no pixels": (png_header(4, 4), "cannot be read as an image"),
  "other format": (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "cannot be read as an"),
}


@pytest.mark.parametrize("case", IMAGES)
def test_bad_image(case, tmp_path):
  content, words = IMAGES[case]
  (tmp_path / "bad.png").write_bytes(content)
  with pytest.raises(ValueError, match=words) as error:
    _ = sources.open_source(f"folder:{tmp_path}", "train")[0]
  assert str(tmp_path / "bad.png") in str(error.value)


@pytest.fixture
def tree(tmp_path):
  """One folder for each thing that can be wrong with a path."""
  for name in ("empty", "captioned", "broken", "float", "video", "records"):
    (tmp_path / name).mkdir()
  save_images(
    tmp_path, {"plain/a.png": solid(0), "mixed/a.png": solid(0), "mixed/k/b.png": solid(0)}
  )
  save_images(tmp_path, {"captioned/a.png": solid(0), "broken/a.png": solid(0)})
  save_images(tmp_path, {"halves/test/a.png": solid(0)})
  (tmp_path / "captioned" / "captions.jsonl").write_text('{"file": "b.png", "caption": "b"}\n')
  (tmp_path / "broken" / "captions.jsonl").write_text('{"file": "a.png", "caption": 3}\n')
  np.savez(tmp_path / "float" / "train.npz", image=np.zeros((2, 4, 4, 1), np.float32))
  np.savez(tmp_path / "video" / "train.npz", video=np.zeros((2, 3, 4, 4, 1), np.uint8))
  (tmp_path / "records" / "train.array_record").write_bytes(b"hello" * 100)
  return tmp_path


@pytest.mark.parametrize(
  "spec, options, error, words",
  [
    ("foldre:x", {}, ValueError, "toy, dsprites, pair, .*quadrants; did you mean folder"),
    ("mnist", {}, ValueError, "source='mnist' must start with one of"),
    ("npz", {}, ValueError, "a kind, a colon and a path"),
    ("digits:x", {}, ValueError, "must be 'digits' or 'dsprites'"),
    ("digits", {"split": "valid"}, ValueError, "split='valid' must be 'train' or 'test'"),
    ("digits", {"image_size": 0}, ValueError, "image_size=0 must be at least 1"),
    ("npz:{}/nowhere", {}, FileNotFoundError, "nowhere does not exist"),
    ("array_record:{}/nowhere", {}, FileNotFoundError, "nowhere does not exist"),
    ("folder:{}/nowhere", {}, FileNotFoundError, "nowhere does not exist"),
    ("npz:{}/float", {"split": "test"}, FileNotFoundError, "has no test split"),
    ("npz:{}/float/train.npz", {"split": "test"}, ValueError, "is one file, the train split"),
    ("npz:{}/float", {"image_size": 2}, ValueError, "needs uint8 images, these are float32"),
    ("npz:{}/video", {"image_size": 2}, ValueError, "image_size=2 needs images"),
    ("folder:{}/empty", {}, ValueError, "empty has no images"),
    ("folder:{}/plain", {"split": "test"}, ValueError, "plain has no test split"),
    ("folder:{}/halves", {}, ValueError, "halves has no train split"),
    ("folder:{}/mixed", {}, ValueError, "a.png is outside the class folders k"),
    ("folder:{}/captioned", {}, ValueError, "has no caption for a.png"),
    ("folder:{}/broken", {}, ValueError, "captions.jsonl, line 1 must be"),
    ("array_record:{}/records", {}, ValueError, "train.array_record is not an array_record file"),
    ("toy:rings", {}, ValueError, "source='toy:rings': expected toy: and one of gaussians8, moons"),
    ("pair:digits", {}, ValueError, "source='pair:digits': expected pair:A->B"),
    ("pair:digits->digit", {}, ValueError, "source='digit' must start with one of"),
    ("few_labels:digits", {}, ValueError, "source='few_labels:digits': expected few_labels:N:SPEC"),
    ("few_labels:15:digits", {}, ValueError, "N a multiple of 10, the classes, up to 1430"),
    ("few_labels:10:dsprites", {}, ValueError, "expected a source with labels"),
    ("quadrants:4:digits", {}, ValueError, "expected quadrants:N:SPEC, N of 1, 2 or 3"),
    ("quadrants:1:npz:{}/float", {}, ValueError, "image='float32': expected uint8"),
    ("binarized:npz:{}/float", {}, ValueError, "image='float32': expected uint8, as binarized"),
    ("binarized:npz:{}/video", {}, ValueError, "image=None: expected uint8"),
  ],
)
def test_bad_specs(spec, options, error, words, tree):
  with pytest.raises(error, match=words):
    sources.open_source(spec.format(tree), **{"split": "train", **options})

"""Files of weights: what is written is read, and what does not fit is refused by name."""

import hashlib
import json
import pathlib
import re
import sys

import flax.linen as nn
import jax
import numpy as np
import pytest
import recipes
from safetensors import numpy as safetensors_numpy

from jaxgen.convert import __main__ as command
from jaxgen.convert import inception, weights
from jaxgen.core import checkpoint, loop, method
from jaxgen.data import pipeline
from jaxgen.metrics import extractors

SHARED = pathlib.Path(__file__).parents[2] / "shared/data/weights"
X = np.zeros((1, 3), np.float32)


class Net(nn.Module):
  width: int = 2

  @nn.compact
  def __call__(self, x):
    return nn.Dense(self.width, name="out")(x)


def written(folder, network="net", **changed):
  """A file for Net(width=4); changed: tensors in place of its own, None for none."""
  tree = {"kernel": np.arange(12, dtype=np.float32).reshape(3, 4), "bias": np.ones(4, np.float32)}
  tree = {k: v for k, v in (tree | changed).items() if v is not None}
  path = folder / "net.safetensors"
  note = {"network": network, "args": json.dumps({"width": 4})}
  weights.write(path, {"params": {"out": tree}}, note)
  return path


def test_a_file_gives_back_the_network(tmp_path):
  net, variables, note = weights.load(written(tmp_path), "net", Net, lambda net: [X])
  assert net.width == 4 and note["network"] == "net"
  np.testing.assert_array_equal(variables["params"]["out"]["kernel"].ravel(), np.arange(12))
  np.savez(
    tmp_path / "net.npz",
    note=json.dumps({"network": "net", "args": '{"width": 4}'}),
    **{f"params/out/{k}": v for k, v in variables["params"]["out"].items()},
  )
  _, same, _ = weights.load(tmp_path / "net.npz", "net", Net, lambda net: [X])
  assert checkpoint.sha256(same) == checkpoint.sha256(variables)


def test_the_digest_is_of_names_and_values():
  tree = {"a": np.zeros(4, np.float32), "b": np.ones(2, np.float32)}
  assert checkpoint.sha256(tree) == checkpoint.sha256(jax.tree.map(jax.numpy.asarray, tree))
  others = [
    {"a": tree["a"], "c": tree["b"]},
    {"a": tree["a"].reshape(2, 2), "b": tree["b"]},
    {"a": tree["a"].astype(np.int32), "b": tree["b"]},
    {"a": tree["a"], "b": tree["b"] + 1e-6},
  ]
  assert (
    len({checkpoint.sha256(t) for t in [tree, *others]} | {checkpoint.sha256(tree, "gelu")}) == 6
  )


@pytest.mark.parametrize(
  "changed, words",
  [
    ({"network": "clip"}, "='clip': expected net, from python -m jaxgen.convert net"),
    ({"bias": None}, "params/out/bias is none: expected float32 (4,)"),
    ({"extra": np.zeros(1)}, "params/out/extra is float64 (1,): expected none"),
    ({"bias": np.zeros(5, np.float32)}, "bias is float32 (5,): expected float32 (4,)"),
    ({"bias": np.zeros(4, np.float16)}, "bias is float16 (4,): expected float32 (4,)"),
  ],
)
def test_what_does_not_fit_is_named(changed, words, tmp_path):
  with pytest.raises(ValueError, match=re.escape(words)):
    weights.load(written(tmp_path, **changed), "net", Net, lambda net: [X])


def test_damaged_and_other_files_are_refused(tmp_path):
  for name, error, words in (
    ("a.pth", ValueError, "expected .safetensors or .npz"),
    ("a.safetensors", FileNotFoundError, "does not exist"),
  ):
    with pytest.raises(error, match=words):
      weights.read(tmp_path / name)
  path = written(tmp_path)
  path.write_bytes(path.read_bytes()[:-9])
  with pytest.raises(ValueError, match="is not a safetensors file"):
    weights.read(path)
  np.savez(tmp_path / "a.npz", **{"a b": np.zeros(1)})
  with pytest.raises(ValueError, match="is not a safe npz file: array 'a b'"):
    weights.read(tmp_path / "a.npz")


def convert(monkeypatch, *words):
  monkeypatch.setattr(sys, "argv", ["convert", *map(str, words)])
  command.main()


def test_the_command_checks_and_records_where_weights_come_from(tmp_path, monkeypatch, capsys):
  source, out = tmp_path / "original.safetensors", tmp_path / "ours.safetensors"
  safetensors_numpy.save_file({"w": np.ones(3, np.float32)}, source)
  sha256 = hashlib.sha256(source.read_bytes()).hexdigest()
  monkeypatch.setattr(inception, "from_torch", lambda tensors: ({"k": 1}, {"params": tensors}))
  with pytest.raises(SystemExit, match=f"has sha256 {sha256}: expected a published one"):
    convert(monkeypatch, "inception", source, out)
  monkeypatch.setattr(inception, "PUBLISHED", {"original": sha256})
  convert(monkeypatch, "inception", source, out)
  assert sha256 in capsys.readouterr().out
  tensors, note = weights.read(out)
  assert note["network"] == "inception" and json.loads(note["args"]) == {"k": 1}
  assert json.loads(note["sources"]) == {"original.safetensors": sha256}
  np.testing.assert_array_equal(tensors["params/w"], np.ones(3))
  with pytest.raises(SystemExit, match="ours.safetensors: expected a new file"):
    convert(monkeypatch, "inception", source, out)
  monkeypatch.setattr(inception, "PUBLISHED", {"original": "0" * 64})
  convert(monkeypatch, "inception", source, tmp_path / "any.safetensors", "--unpublished")
  with pytest.raises(SystemExit, match="expected files of different names"):
    convert(monkeypatch, "inception", source, source, tmp_path / "two.safetensors")
  with pytest.raises(SystemExit, match="--options has no activation"):
    convert(monkeypatch, "clip", source, tmp_path / "clip.safetensors", "--unpublished")


def test_an_extractor_that_is_not_there_says_what_makes_it():
  words = "python -m jaxgen.convert inception SOURCE nowhere from pt_inception-2015-12-05"
  with pytest.raises(FileNotFoundError, match=words):
    extractors.load("inception:nowhere")
  with pytest.raises(ValueError, match="extractor='resnet:a': expected KIND:PATH, of inception"):
    extractors.load("resnet:a")


def test_public_weights_are_loaded_and_told_by_their_digest(tmp_path, monkeypatch):
  source = SHARED / "efficientnet_lite0_fp16.safetensors"
  if not source.exists():
    pytest.skip(f"the weights of EfficientNet-Lite0 are not at hand: {source}")
  out = tmp_path / "efficientnet.safetensors"
  convert(monkeypatch, "efficientnet", source, out, "--unpublished")
  extractor = extractors.load(f"efficientnet:{out}")
  assert (extractor.label, extractor.outputs) == ("EffNetLite0", ("pool", "logits"))
  assert not extractor.published  # but made from the file that is
  x = np.random.default_rng(0).uniform(-1, 1, (2, 16, 16, 1)).astype(np.float32)
  run = jax.jit(lambda v, x: extractors.features(extractor, v, x, ("pool",)))
  pool = run(extractor.variables, x)["pool"]
  assert pool.shape == (2, 1280) and float(np.ptp(pool)) > 0.1
  again = run(extractor.variables, np.repeat(pipeline.to_float(pipeline.to_uint8(x)), 3, -1))
  np.testing.assert_array_equal(again["pool"], pool)  # as a file would hold them, grey as RGB


def test_converted_weights_become_a_run(tmp_path):
  """Without data or a step; the file of another network is refused by the array that differs."""
  config = recipes.small("diffusion/ddpm.py")
  params = method.build(config.model, config.args).init(jax.random.key(7)).params["net"]
  file = tmp_path / "net.safetensors"
  weights.write(file, {"params": params}, {"network": "ddpm", "args": "{}"})
  config.init_from = {"net": str(file)}
  config.train.steps, config.data.source = 0, "npz:nowhere"
  loop.run(config, tmp_path / "run")
  _, vars = checkpoint.load(tmp_path / "run")
  jax.tree.map(np.testing.assert_array_equal, vars.params["net"], params)
  jax.tree.map(np.testing.assert_array_equal, vars.params["net_ema"], params)
  loop.run(config, tmp_path / "run")  # nothing to train
  weights.write(file, {"params": {"out": params["out"]}}, {})
  with pytest.raises(ValueError, match="params/net/block_0_in/bias is nothing, this model has"):
    loop.run(config, tmp_path / "other")
  weights.write(file, {"other": params}, {})
  with pytest.raises(ValueError, match="expected a file of jaxgen.convert"):
    loop.run(config, tmp_path / "other")

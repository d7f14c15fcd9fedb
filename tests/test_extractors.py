"""Feature extractors: sizes, resizing, conversion, and EfficientNet's answers to photographs.

Their arithmetic is compared with torch's in `tests/parity/test_extractors.py`.
"""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from PIL import Image

from jaxgen.convert import efficientnet as convert_efficientnet
from jaxgen.convert import i3d as convert_i3d
from jaxgen.convert import inception as convert_inception
from jaxgen.convert import weights
from jaxgen.nn import efficientnet, i3d, inception

SHARED = pathlib.Path(__file__).parents[2] / "shared"

NETS = {
  "inception": (inception.InceptionV3(), (2, 32, 24, 3), convert_inception),
  "efficientnet": (efficientnet.EfficientNetLite0(), (2, 32, 24, 3), convert_efficientnet),
  "i3d": (i3d.I3D(), (2, 64, 32, 24, 3), convert_i3d),
}


def shapes(name):
  net, shape, _ = NETS[name]
  x = jax.ShapeDtypeStruct(shape, jnp.uint8)
  return jax.eval_shape(net.init, jax.random.key(0), x)


# torch-fidelity 0.4.0's extractor, efficientnet_lite_pytorch 0.1.0's and piergiaj/pytorch-i3d's
# InceptionI3d, each counted by its own modules; of I3D's, 7,280 are scales that are 1.
@pytest.mark.parametrize(
  "name, params", [("inception", 23_850_960), ("efficientnet", 4_652_008), ("i3d", 12_697_264)]
)
def test_sizes(name, params):
  assert sum(leaf.size for leaf in jax.tree.leaves(shapes(name)["params"])) == params


# The comments of torch-fidelity's forward pass; the tables of the papers.
MAPS = {
  "inception": {
    "Conv2d_1a_3x3": (149, 149, 32),
    "Conv2d_2a_3x3": (147, 147, 32),
    "Conv2d_2b_3x3": (147, 147, 64),
    "Conv2d_3b_1x1": (73, 73, 80),
    "Conv2d_4a_3x3": (71, 71, 192),
    "Mixed_5b": (35, 35, 256),
    "Mixed_5d": (35, 35, 288),
    "Mixed_6a": (17, 17, 768),
    "Mixed_6e": (17, 17, 768),
    "Mixed_7a": (8, 8, 1280),
    "Mixed_7c": (8, 8, 2048),
  },
  "efficientnet": {
    "stem": (112, 112, 32),
    "block_0": (112, 112, 16),
    "block_2": (56, 56, 24),
    "block_4": (28, 28, 40),
    "block_7": (14, 14, 80),
    "block_10": (14, 14, 112),
    "block_14": (7, 7, 192),
    "block_15": (7, 7, 320),
  },
  "i3d": {
    "Conv3d_1a_7x7": (32, 112, 112, 64),
    "Conv3d_2c_3x3": (32, 56, 56, 192),
    "Mixed_3b": (32, 28, 28, 256),
    "Mixed_3c": (32, 28, 28, 480),
    "Mixed_4b": (16, 14, 14, 512),
    "Mixed_4f": (16, 14, 14, 832),
    "Mixed_5b": (8, 7, 7, 832),
    "Mixed_5c": (8, 7, 7, 1024),
  },
}
FEATURES = {
  "inception": {"pool": 2048, "logits": 1008, "class_logits": 1008, "spatial": 2023},
  "efficientnet": {"pool": 1280, "logits": 1000},
  "i3d": {"pool": 1024, "logits": 400},
}


@pytest.mark.parametrize("name", NETS)
def test_shapes_of_maps_and_features(name):
  net, shape, _ = NETS[name]

  def run(variables, x):
    return net.apply(variables, x, capture_intermediates=True, mutable=["intermediates"])

  features, seen = jax.eval_shape(run, shapes(name), jax.ShapeDtypeStruct(shape, jnp.uint8))
  for layer, expected in MAPS[name].items():
    (found,) = seen["intermediates"][layer]["__call__"]
    assert found.shape == (2, *expected), layer
  assert {k: v.shape for k, v in features.items()} == {k: (2, n) for k, n in FEATURES[name].items()}
  assert all(v.dtype == jnp.float32 for v in features.values())


def test_bilinear_resize_by_hand():
  up = [[1, 0], [0.5, 0.5], [0, 1], [0, 1]]  # at 0, 1/2, 1, 3/2: beyond the last row is the last
  np.testing.assert_array_equal(inception.bilinear(2, 4), up)
  down = [[1, 0, 0, 0, 0], [0, 0, 0.5, 0.5, 0]]  # at 0, 5/2: the others are not looked at
  np.testing.assert_array_equal(inception.bilinear(5, 2), down)
  np.testing.assert_array_equal(inception.bilinear(299, 299), np.eye(299))
  x = np.array([[0.0, 10.0], [100.0, 150.0]], np.float32)[None, :, :, None]
  expected = [
    [0, 5, 10, 10],
    [50, 65, 80, 80],
    [100, 125, 150, 150],
    [100, 125, 150, 150],
  ]
  np.testing.assert_allclose(jax.jit(inception.resize, static_argnums=1)(x, 4)[0, ..., 0], expected)


def test_depthwise_convolution_is_the_grouped_one():
  rng = np.random.default_rng(0)

  @jax.jit
  def both():
    found = []
    for size, k, stride in (((8, 7), 3, 1), ((8, 7), 3, 2), ((9, 6), 5, 2), ((2, 3), 5, 1)):
      x = jnp.asarray(rng.standard_normal((2, *size, 4)), jnp.float32)
      kernel = jnp.asarray(rng.standard_normal((k, k, 1, 4)), jnp.float32)
      expected = jax.lax.conv_general_dilated(
        x,
        kernel,
        (stride, stride),
        "SAME",
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=4,
      )
      net = efficientnet.Depthwise(k, stride)
      found.append((net.apply({"params": {"kernel": kernel}}, x), expected))
    return found

  for ours, expected in both():
    np.testing.assert_allclose(ours, expected, rtol=1e-5, atol=1e-5)


def test_efficientnet_with_its_weights():
  """Logits of the public package, and the classes of 40 photographs of 40 classes."""
  weights = SHARED / "data/weights/efficientnet_lite0_fp16.safetensors"
  strip = SHARED / "data/imagenet1000_128/images_00.jpg"
  if not (weights.exists() and strip.exists()):
    pytest.skip("EfficientNet's weights and the photographs are not at hand")
  args, variables = convert_efficientnet.from_torch(safetensors.numpy.load_file(weights))
  apply = jax.jit(efficientnet.EfficientNetLite0(**args).apply)

  # What efficientnet_lite_pytorch 0.1.0 answers to a pattern, in float32 with these weights.
  h, w, c = np.ogrid[:224, :224, 1:4]
  logits = apply(variables, (h * w * c // 7 % 256).astype(np.uint8)[None])["logits"]
  expected = [0.1592, -0.3704, -1.3563, -2.8443, 0.2251, -2.3787, 1.3911, 1.2235]
  np.testing.assert_allclose(logits[0, ::125], expected, rtol=0, atol=2e-4)

  # 30 and 38 are right; 22 and 34 with the colours in the other order.
  label = np.arange(0, 240, 6)
  image = np.asarray(Image.open(strip)).reshape(-1, 128, 128, 3)[label]
  logits = np.concatenate([apply(variables, x)["logits"] for x in np.split(image, 4)])
  best = np.argsort(-logits, axis=1)
  assert (best[:, 0] == label).sum() >= 28
  assert (best[:, :5] == label[:, None]).sum() >= 37


def state_dict(name):
  """Tensors that from_torch takes: a kernel's outputs and inputs come first."""
  tensors = {}
  for path, leaf in jax.tree_util.tree_leaves_with_path(shapes(name)):
    _, *modules, array = (key.key for key in path)
    layer, shape = ".".join(modules), leaf.shape
    if name == "efficientnet":
      layers = [convert_efficientnet.LAYERS.get(m, m) for m in modules]
      layer = ".".join(layers).replace("block_", "_blocks.")
    if array == "kernel":
      shape = (*shape[:-3:-1], *shape[:-2])
    if layer == "logits":
      layer = "logits.conv3d"
      shape = (*shape, 1, 1, 1) if array == "kernel" else shape
    tensors[f"{layer}.{weights.ARRAYS[array]}"] = np.zeros(shape, np.float16)
  return tensors


TENSORS = {
  "inception": ("Mixed_7c.branch3x3dbl_3b.bn.running_var", "fc.bias", "AuxLogits.fc.bias"),
  "efficientnet": ("_blocks.15._bn2.running_mean", "_fc.weight", "_blocks.16._bn0.weight"),
  "i3d": ("Mixed_4f.b3b.bn.weight", "logits.conv3d.weight", "Mixed_6a.b0.conv3d.weight"),
}


@pytest.mark.parametrize("name", NETS)
def test_missing_left_over_and_misshapen_tensors_are_named(name):
  from_torch, given = NETS[name][2].from_torch, state_dict(name)
  args, variables = from_torch({**given, "some.bn.num_batches_tracked": np.zeros((), np.int64)})
  assert args == {}
  assert jax.tree.map(lambda v: (v.shape, str(v.dtype)), variables) == jax.tree.map(
    lambda v: (v.shape, "float32"), shapes(name)
  )
  norm, head, unknown = TENSORS[name]
  for missing in (norm, head):
    with pytest.raises(KeyError, match=missing):
      from_torch({k: v for k, v in given.items() if k != missing})
  with pytest.raises(ValueError, match=unknown):
    from_torch({**given, unknown: np.zeros(3)})
  for misshapen in (norm, head):
    with pytest.raises(ValueError, match=f"{misshapen} is .5,. in our order of axes: expected"):
      from_torch({**given, misshapen: np.zeros(5)})


@pytest.mark.parametrize("name", NETS)
def test_other_inputs_are_refused(name):
  net, shape, _ = NETS[name]
  for bad in (shape[1:], (*shape[:-1], 1), (0, *shape[1:]), (*shape[:-2], 0, 3)):
    with pytest.raises(ValueError, match="x.shape="):
      net.apply({}, np.zeros(bad, np.uint8))
  for dtype in (np.int32, np.float64, np.float16):
    with pytest.raises(ValueError, match="x.dtype='.*': expected uint8 or float32"):
      net.apply({}, np.zeros(shape, dtype))


def test_i3d_wants_nine_frames():
  with pytest.raises(ValueError, match="9 frames or more"):
    i3d.I3D().apply({}, np.zeros((1, 8, 16, 16, 3), np.uint8))
  x = jax.ShapeDtypeStruct((1, 9, 16, 16, 3), jnp.uint8)
  assert jax.eval_shape(i3d.I3D().apply, shapes("i3d"), x)["logits"].shape == (1, 400)

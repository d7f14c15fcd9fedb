"""Our feature extractors against torch, with the same random weights.

The Inception beside torch-fidelity's own. For I3D no public implementation is at hand: it is stated
again here with torch's functions, from the published table of layers. EfficientNet's weights are
public, so that `tests/test_extractors.py` can ask it for classes.
"""

import jax
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch_fidelity import feature_extractor_inceptionv3, interpolate_compat_tensorflow

from jaxgen.convert import i3d as convert_i3d
from jaxgen.convert import inception as convert_inception
from jaxgen.nn import i3d, inception

torch.set_num_threads(2)

SIZES = [(32, 32), (299, 299), (331, 277), (5, 1)]


def randomised(shapes):
  """{name: random array}, as wide as keeps a signal alive: zeros and ones hide mistakes."""
  rng = np.random.default_rng(0)

  def draw(name, shape):
    z = rng.standard_normal(shape).astype(np.float32)
    if len(shape) > 1:
      return z * np.float32(np.sqrt(2 / np.prod(shape[1:])))
    if name.endswith("running_var"):
      return 1 + np.abs(z)
    return np.float32(0.2) * z + name.endswith("bn.weight")

  return {name: draw(name, shape) for name, shape in shapes.items()}


def nchw(x):
  return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


@pytest.fixture(scope="module")
def fid():
  """(torch-fidelity's extractor, our variables), every tensor random."""
  theirs = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *a, **k: {})
    patch.setattr(theirs, "load_state_dict", lambda self, state: None)
    model = theirs("inception", ["2048", "logits_unbiased", "logits"])
  state = model.state_dict()
  tensors = randomised({k: tuple(v.shape) for k, v in state.items() if v.ndim})
  model.load_state_dict({k: torch.from_numpy(v) for k, v in tensors.items()}, strict=False)
  args, variables = convert_inception.from_torch({k: v.numpy() for k, v in state.items()})
  assert args == {}
  return model, variables


def test_inception(fid):
  model, variables = fid
  seen = {}
  model.Mixed_6d.branch1x1.register_forward_hook(lambda *a: seen.update(map=a[2]))
  apply = jax.jit(inception.InceptionV3().apply)
  for height, width in ((32, 32), (331, 277)):
    x = np.random.default_rng(1).integers(0, 256, (2, height, width, 3), dtype=np.uint8)
    with torch.no_grad():
      pool, logits, class_logits = (y.numpy() for y in model(nchw(x)))
    spatial = seen["map"][:, :7].permute(0, 2, 3, 1).reshape(2, 2023).numpy()
    assert pool.std() > 0.1 and spatial.std() > 0.1  # a signal is there to compare
    assert np.abs(class_logits - logits).max() > 0.1
    ours = apply(variables, x)
    close(ours["pool"], pool, 1e-5)
    close(ours["logits"], logits, 1e-5)
    close(ours["class_logits"], class_logits, 1e-5)
    close(ours["spatial"], spatial, 1e-5)


@pytest.mark.parametrize("height, width", SIZES)
def test_resize(height, width):
  x = np.random.default_rng(2).uniform(0, 255, (2, height, width, 3)).astype(np.float32)
  theirs = interpolate_compat_tensorflow.interpolate_bilinear_2d_like_tensorflow1x(
    nchw(x), size=(299, 299), align_corners=False
  )
  ours = jax.jit(inception.resize, static_argnums=1)(x, 299)
  close(ours, theirs.numpy().transpose(0, 2, 3, 1), 1e-6)


def close(ours, theirs, rtol):
  """Within rtol of the largest value."""
  np.testing.assert_allclose(ours, theirs, rtol=0, atol=rtol * np.abs(theirs).max())


# arXiv:1705.07750, Fig. 3 and arXiv:1409.4842, Table 1, in the order of the former:
# 1x1; 3x3 after its reduction; 5x5 (here 3x3) after its reduction; 1x1 after the pool.
MIXED = """
3b 192 64 96 128 16 32 32
3c 256 128 128 192 32 96 64
4b 480 192 96 208 16 48 64
4c 512 160 112 224 24 64 64
4d 512 128 128 256 24 64 64
4e 512 112 144 288 32 64 64
4f 528 256 160 320 32 128 128
5b 832 256 160 320 32 128 128
5c 832 384 192 384 48 128 128
"""


def i3d_shapes():
  layers = {
    "Conv3d_1a_7x7": (64, 3, 7),
    "Conv3d_2b_1x1": (64, 64, 1),
    "Conv3d_2c_3x3": (192, 64, 3),
  }
  for row in MIXED.split("\n")[1:-1]:
    name, *numbers = row.split()
    c, b0, b1a, b1b, b2a, b2b, b3b = map(int, numbers)
    layers |= {
      f"Mixed_{name}.b0": (b0, c, 1),
      f"Mixed_{name}.b1a": (b1a, c, 1),
      f"Mixed_{name}.b1b": (b1b, b1a, 3),
      f"Mixed_{name}.b2a": (b2a, c, 1),
      f"Mixed_{name}.b2b": (b2b, b2a, 3),
      f"Mixed_{name}.b3b": (b3b, c, 1),
    }
  shapes = {"logits.conv3d.weight": (400, 1024, 1, 1, 1), "logits.conv3d.bias": (400,)}
  for name, (out, c, k) in layers.items():
    shapes[f"{name}.conv3d.weight"] = (out, c, k, k, k)
    for array in ("weight", "bias", "running_mean", "running_var"):
      shapes[f"{name}.bn.{array}"] = (out,)
  return shapes


def same(x, kernel, strides):
  """x [B, C, T, H, W] padded as TensorFlow pads: the odd row behind."""
  pads = []
  for n, k, s in zip(x.shape[:1:-1], kernel[::-1], strides[::-1], strict=True):
    total = max((-(-n // s) - 1) * s + k - n, 0)
    pads += [total // 2, total - total // 2]
  return F.pad(x, pads)


def i3d_reference(tensors, x):
  """(logits, pool) of x [B, 3, T, 224, 224] in [-1, 1]."""

  def unit(x, name, stride=1):
    w = tensors[f"{name}.conv3d.weight"]
    y = F.conv3d(same(x, w.shape[2:], [stride] * 3), w, stride=stride)
    mean, var, scale, bias = (
      tensors[f"{name}.bn.{array}"] for array in ("running_mean", "running_var", "weight", "bias")
    )
    return F.relu(F.batch_norm(y, mean, var, scale, bias, eps=1e-3))

  def pool(x, kernel, strides):
    return F.max_pool3d(same(x, kernel, strides), kernel, strides)  # after a ReLU 0 pads as -inf

  x = pool(unit(x, "Conv3d_1a_7x7", 2), (1, 3, 3), (1, 2, 2))
  x = unit(unit(x, "Conv3d_2b_1x1"), "Conv3d_2c_3x3")
  x = pool(x, (1, 3, 3), (1, 2, 2))
  for row in MIXED.split("\n")[1:-1]:
    name = "Mixed_" + row.split()[0]
    if name == "Mixed_4b":
      x = pool(x, (3, 3, 3), (2, 2, 2))
    if name == "Mixed_5b":
      x = pool(x, (2, 2, 2), (2, 2, 2))
    b1, b2 = (unit(unit(x, f"{name}.b{i}a"), f"{name}.b{i}b") for i in (1, 2))
    b3 = unit(pool(x, (3, 3, 3), (1, 1, 1)), f"{name}.b3b")
    x = torch.cat([unit(x, f"{name}.b0"), b1, b2, b3], 1)
  x = F.avg_pool3d(x, (2, 7, 7), 1)
  logits = F.conv3d(x, tensors["logits.conv3d.weight"], tensors["logits.conv3d.bias"])
  return logits.squeeze((3, 4)).mean(2), x.mean((2, 3, 4))


def test_i3d():
  tensors = randomised(i3d_shapes())
  args, variables = convert_i3d.from_torch(tensors)
  assert args == {}
  x = np.random.default_rng(1).integers(0, 256, (1, 17, 40, 28, 3), dtype=np.uint8)
  frames = interpolate_compat_tensorflow.interpolate_bilinear_2d_like_tensorflow1x(
    nchw(x[0].astype(np.float32)), size=(224, 224), align_corners=False
  )
  with torch.no_grad():
    logits, pool = i3d_reference(
      {k: torch.from_numpy(v) for k, v in tensors.items()},
      frames.transpose(0, 1)[None] * 2 / 255 - 1,
    )
  assert pool.std() > 0.1
  ours = jax.jit(i3d.I3D().apply)(variables, x)
  close(ours["logits"], logits.numpy(), 1e-5)
  close(ours["pool"], pool.numpy(), 1e-5)

"""PSNR and SSIM beside scikit-image, LPIPS and VGG-16 beside lpips and torchvision."""

import functools
import pathlib

import jax
import lpips
import numpy as np
import pytest
import torch
from safetensors import numpy as safetensors_numpy
from skimage import metrics

from jaxgen.convert import vgg as convert_vgg
from jaxgen.metrics import reconstruction
from jaxgen.nn import vgg

SHARED = pathlib.Path(__file__).parents[3] / "shared"
torch.set_num_threads(2)


@pytest.mark.parametrize("dtype, data_range", [(np.uint8, 255), (np.float32, 2)])
@pytest.mark.parametrize("shape", [(3, 33, 40, 3), (3, 28, 28, 1), (3, 11, 11, 3)])
def test_psnr_and_ssim(shape, dtype, data_range):
  rng = np.random.default_rng(0)
  ramp = np.linspace(0, 1, shape[2])[None, None, :, None]
  y = ramp + rng.normal(0, [[[[0.0]]], [[[0.02]]], [[[0.3]]]], shape)
  x, y = (np.clip(z, 0, 1) for z in (np.broadcast_to(ramp, shape), y))
  y[0] = 0.5 * x[0] + 0.5
  if dtype == np.uint8:
    x, y = (np.rint(255 * z).astype(dtype) for z in (x, y))
  else:
    x, y = ((2 * z - 1).astype(dtype) for z in (x, y))
  theirs = functools.partial(
    metrics.structural_similarity,
    data_range=data_range,
    gaussian_weights=True,
    sigma=1.5,
    use_sample_covariance=False,
    channel_axis=-1,
  )
  ours = jax.jit(reconstruction.ssim, static_argnames="data_range")(x, y, data_range=data_range)
  # In float64: in float32 scikit-image's own variances cancel.
  expected = [theirs(a, b) for a, b in zip(x.astype(float), y.astype(float), strict=True)]
  assert np.ptp(expected) > 0.1
  np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-5)

  ours = jax.jit(reconstruction.psnr, static_argnames="data_range")(x, y, data_range=data_range)
  peak = functools.partial(metrics.peak_signal_noise_ratio, data_range=data_range)
  np.testing.assert_allclose(ours, [peak(a, b) for a, b in zip(x, y, strict=True)], rtol=1e-5)


@pytest.fixture(scope="module")
def theirs():
  """lpips with a random VGG and the published heads, and its tensors under the published names."""
  torch.manual_seed(0)
  model = lpips.LPIPS(net="vgg", pnet_rand=True, pretrained=True, verbose=False)
  tensors = {}
  for name, value in model.net.state_dict().items():
    _, place, array = name.split(".")
    if array == "bias":
      value.normal_(0, 0.1)
    tensors[f"features.{place}.{array}"] = value.numpy()
  for i, head in enumerate(model.lins):
    tensors[f"lin{i}.model.1.weight"] = head.model[1].weight.detach().numpy()
  return model, tensors


def nchw(x):
  return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def test_lpips(theirs):
  model, tensors = theirs
  args, variables = convert_vgg.from_torch(tensors)
  assert args == {}
  rng = np.random.default_rng(0)
  x = rng.uniform(-1, 1, (3, 64, 45, 3)).astype(np.float32)
  y = np.clip(x + rng.normal(0, [[[[0.01]]], [[[0.1]]], [[[1.0]]]], x.shape), -1, 1)
  y = y.astype(np.float32)
  with torch.no_grad():
    expected = model(nchw(x), nchw(y)).numpy().reshape(-1)
    maps = model.net(model.scaling_layer(nchw(x)))
  assert (np.diff(np.log(expected)) > 1).all()
  found = jax.jit(vgg.LPIPS().apply)(variables, x, y)
  np.testing.assert_allclose(found, expected, rtol=1e-4)

  features = jax.jit(
    lambda x: vgg.VGG16().apply({"params": variables["params"]["vgg"]}, vgg.normalise(x))
  )(x)
  for tap, expected in zip(vgg.TAPS, maps, strict=True):
    expected = expected.numpy().transpose(0, 2, 3, 1)
    assert expected.std() > 1e-2
    np.testing.assert_allclose(features[tap], expected, rtol=0, atol=1e-5 * expected.max())


def test_heads_are_the_published_ones(theirs):
  file = SHARED / "data/weights/lpips_v0.1_linear_heads.safetensors"
  if not file.exists():
    pytest.skip(f"{file.name} is not at hand: it is not redistributed")
  _, tensors = theirs
  features = {k: v for k, v in tensors.items() if k.startswith("features.")}
  found = convert_vgg.from_torch(features | safetensors_numpy.load_file(file))[1]
  expected = convert_vgg.from_torch(tensors)[1]
  jax.tree.map(np.testing.assert_array_equal, found, expected)

"""Our flow layers against nflows and normflows, with the same random weights."""

import functools

import jax
import jax.numpy as jnp
import normflows
import numpy as np
import pytest
import torch
from nflows import transforms

from jaxgen.nn import bijectors

torch.set_num_threads(2)
RNG = np.random.default_rng(0)
normal = lambda *shape: RNG.standard_normal(shape).astype(np.float32)
IMAGE = normal(3, 4, 6, 4)  # [B, H, W, C]


def nchw(x):
  return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def nhwc(x):
  return x.detach().numpy().transpose(0, 2, 3, 1)


def weights(n_in, n_out):
  return normal(3, 3, n_in, n_out) / n_in**0.5 / 3.0


def conv(w):
  """The same convolution for them, [B, C, H, W], and for us, [B, H, W, C]."""

  def theirs(x, context=None):
    return torch.nn.functional.conv2d(x, torch.from_numpy(w.transpose(3, 2, 0, 1)), padding=1)

  def ours(x):
    dims = ("NHWC", "HWIO", "NHWC")
    return jax.lax.conv_general_dilated(x, w, (1, 1), "SAME", dimension_numbers=dims)

  return theirs, ours


class Module(torch.nn.Module):
  """A function as the module that nflows and normflows ask for."""

  def __init__(self, fn):
    super().__init__()
    self.forward = fn


def agree(layer, theirs, back, x, **tolerance):
  """Output and log_det in both directions; theirs, back: x -> (y, log_det) in torch's layout."""
  tolerance = {"rtol": 1e-5, "atol": 1e-5} | tolerance
  y, log_det = jax.jit(layer)(x)
  x_back, log_det_back = jax.jit(functools.partial(layer, inverse=True))(y)
  y_torch, log_det_torch = theirs(nchw(x))
  np.testing.assert_allclose(y, nhwc(y_torch), **tolerance)
  np.testing.assert_allclose(log_det, log_det_torch.detach().numpy(), rtol=1e-4, atol=1e-4)
  back_torch, log_det_torch = back(nchw(np.asarray(y)))
  np.testing.assert_allclose(x_back, nhwc(back_torch), **tolerance)
  np.testing.assert_allclose(log_det_back, log_det_torch.detach().numpy(), rtol=1e-4, atol=1e-4)


def nflows_coupling(w, flip):
  """nflows scales by sigmoid(. + 2) + 1e-3, and has the shift in the first half."""
  theirs, ours = conv(w)
  mask = torch.tensor([1, 1, -1, -1] if flip else [-1, -1, 1, 1])  # > 0 is moved
  layer = transforms.AffineCouplingTransform(mask, lambda n_in, n_out: Module(theirs))

  def fn(x):
    shift, scale = jnp.split(ours(x), 2, axis=-1)
    return jnp.log(jax.nn.sigmoid(scale + 2.0) + 1e-3), shift

  return layer, functools.partial(bijectors.split_coupling, fn, flip=flip)


def nflows_norm(c):
  """Affine parameters at 1 and 0, as RealNVP has none; the variance is nflows' without its eps."""
  mean, var = normal(c), np.exp(normal(c))
  layer = transforms.BatchNorm(c, eps=1e-4).eval()
  with torch.no_grad():
    layer.running_mean.copy_(torch.from_numpy(mean))
    layer.running_var.copy_(torch.from_numpy(var))
    layer.unconstrained_weight.fill_(np.log(np.expm1(1.0 - 1e-4)))
  stats = {"batch_stats": {"mean": mean, "var": var, "updates": np.float32(1.0)}}
  return layer, functools.partial(bijectors.MovingBatchNorm().apply, stats)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.evidence("N02", "G")
def test_channel_coupling(flip):
  theirs, ours = nflows_coupling(weights(2, 4), flip)
  agree(ours, theirs, theirs.inverse, IMAGE)


@pytest.mark.evidence("N02", "G")
def test_checkerboard_coupling():
  """Eq. 9 in normflows' own words; its networks see b x."""
  s_theirs, s_ours = conv(weights(4, 4))
  t_theirs, t_ours = conv(weights(4, 4))
  mask = bijectors.checkerboard(4, 6)
  b = nchw(np.asarray(jnp.broadcast_to(mask, (1, 4, 6, 4)), np.float32))
  layer = normflows.flows.MaskedAffineFlow(b[0], Module(t_theirs), Module(s_theirs))

  def ours(x, *, inverse=False):
    fn = lambda x: (s_ours(x), t_ours(x))
    return bijectors.masked_coupling(fn, x, mask, inverse=inverse)

  agree(ours, layer, layer.inverse, IMAGE, atol=1e-4)


@pytest.mark.parametrize("alpha", [0.05, 1e-3])
def test_logit(alpha):
  layer = normflows.transforms.Logit(alpha=alpha)  # its forward leads to the data
  x = 1.0 / (1.0 + np.exp(-IMAGE))
  agree(functools.partial(bijectors.logit, alpha=alpha), layer.inverse, layer, x)


def test_squeeze():
  theirs = transforms.SqueezeTransform()
  y, _ = theirs(nchw(IMAGE))
  np.testing.assert_array_equal(bijectors.squeeze(jnp.asarray(IMAGE)), nhwc(y))
  np.testing.assert_array_equal(bijectors.unsqueeze(jnp.asarray(nhwc(y))), IMAGE)


def test_batch_norm():
  theirs, ours = nflows_norm(4)
  x = IMAGE.reshape(-1, 4)  # nflows normalises vectors
  y, log_det = ours(x)
  y_torch, log_det_torch = theirs(torch.from_numpy(x))
  np.testing.assert_allclose(y, y_torch.detach().numpy(), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(log_det, log_det_torch.detach().numpy(), rtol=1e-4, atol=1e-4)
  back, log_det = ours(y, inverse=True)
  back_torch, log_det_torch = theirs.inverse(torch.from_numpy(np.array(y)))
  np.testing.assert_allclose(back, back_torch.detach().numpy(), rtol=1e-4, atol=1e-5)
  np.testing.assert_allclose(log_det, log_det_torch.detach().numpy(), rtol=1e-4, atol=1e-4)


@pytest.mark.evidence("N02", "G")
def test_composition():
  """Couplings of both halves at full and half resolution; log_dets add up."""
  fine = [nflows_coupling(weights(2, 4), flip) for flip in (False, True)]
  mask = torch.cat([-torch.ones(8), torch.ones(8)])
  w = weights(8, 16)
  theirs_net, ours_net = conv(w)
  theirs_coarse = transforms.AffineCouplingTransform(mask, lambda *_: Module(theirs_net))

  def fn(x):
    shift, scale = jnp.split(ours_net(x), 2, axis=-1)
    return jnp.log(jax.nn.sigmoid(scale + 2.0) + 1e-3), shift

  def coarse(x, *, inverse=False):
    y, log_det = bijectors.split_coupling(fn, bijectors.squeeze(x), inverse=inverse)
    return bijectors.unsqueeze(y), log_det

  squeeze = transforms.SqueezeTransform()
  layers = [theirs for theirs, _ in fine]
  layers += [squeeze, theirs_coarse, transforms.InverseTransform(transforms.SqueezeTransform())]
  theirs = transforms.CompositeTransform(layers)
  ours = functools.partial(bijectors.chain, [ours for _, ours in fine] + [coarse])
  agree(ours, theirs, theirs.inverse, IMAGE, atol=1e-4)

"""Our UNet against diffusers' UNet2DModel, with the same random weights."""

import functools

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgen.convert import ddpm
from jaxgen.nn import unet

torch.set_num_threads(2)


def reference(channels, multipliers, n_res_blocks, attends, groups, n_classes=0):
  """A UNet2DModel in DDPM's configuration, every tensor random: zeros and ones hide mistakes."""
  attn = [f"{'Attn' if a else ''}{{}}Block2D" for a in attends]
  model = diffusers.UNet2DModel(
    block_out_channels=[channels * m for m in multipliers],
    down_block_types=[name.format("Down") for name in attn],
    up_block_types=[name.format("Up") for name in reversed(attn)],
    layers_per_block=n_res_blocks,
    norm_num_groups=groups,
    norm_eps=1e-6,
    attention_head_dim=None,
    freq_shift=1,
    flip_sin_to_cos=False,
    downsample_padding=0,
    num_class_embeds=n_classes + 1 if n_classes else None,
  )
  rng = np.random.default_rng(0)
  with torch.no_grad():
    for name, p in model.named_parameters():
      z = rng.standard_normal(p.shape).astype(np.float32)
      if p.ndim > 1:
        p.copy_(torch.from_numpy(z / np.sqrt(z[0].size)))
      else:
        p.copy_(torch.from_numpy(0.2 * z + (name.endswith("weight"))))
  return model.eval()


def tensors(model):
  return {name: value.numpy() for name, value in model.state_dict().items()}


def nchw(x):
  return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def nhwc(x):
  return x.detach().numpy().transpose(0, 2, 3, 1)


def inputs(batch, height, width):
  x = np.random.default_rng(1).standard_normal((batch, height, width, 3)).astype(np.float32)
  return x, np.linspace(0, 999, batch).round().astype(np.int32)


SMALL = dict(channels=16, multipliers=(1, 2, 3), n_res_blocks=1)


@pytest.mark.parametrize("attends, n_classes", [((0, 1, 0), 0), ((1, 0, 1), 5)])
@pytest.mark.evidence("D02", "G", "W")
def test_small_output_and_gradient(attends, n_classes):
  model = reference(**SMALL, attends=attends, groups=4, n_classes=n_classes)
  x, t = inputs(3, 16, 8)
  label = np.array([0, 3, n_classes], np.int32) if n_classes else None
  w = np.random.default_rng(2).standard_normal(x.shape).astype(np.float32)

  x_torch = nchw(x).requires_grad_()
  y_torch = model(
    x_torch, torch.from_numpy(t), None if label is None else torch.from_numpy(label)
  ).sample
  (y_torch * nchw(w)).sum().backward()

  net = unet.UNet(
    **SMALL, attention=tuple(16 // 2**i for i in range(3) if attends[i]), n_classes=n_classes
  )
  args, variables = ddpm.from_torch(tensors(model), image_size=16)
  params = variables["params"]
  assert unet.UNet(**args) == net
  assert_same_tree(net, params, x, t, label)

  def objective(x):
    y = net.apply({"params": params}, x, t, label)
    return jnp.sum(y * w), y

  grad, y = jax.jit(jax.grad(objective, has_aux=True))(x)
  np.testing.assert_allclose(y, nhwc(y_torch), rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(grad, nhwc(x_torch.grad), rtol=1e-4, atol=1e-4)


@pytest.mark.evidence("D02", "G", "P", "W")
def test_cifar10_size():
  model = reference(128, (1, 2, 2, 2), 2, (0, 1, 0, 0), groups=32)
  x, t = inputs(2, 32, 32)
  with torch.no_grad():
    expected = nhwc(model(nchw(x), torch.from_numpy(t)).sample)
  net = unet.UNet()
  args, variables = ddpm.from_torch(tensors(model), image_size=32)
  params = variables["params"]
  assert unet.UNet(**args) == net
  assert_same_tree(net, params, x, t, None)
  got = jax.jit(net.apply)({"params": params}, x, t)
  np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-4)


def test_old_names_missing_and_left_over():
  given = tensors(reference(**SMALL, attends=(0, 1, 0), groups=4))
  convert = functools.partial(ddpm.from_torch, image_size=16)
  params = convert(given)[1]["params"]
  old = {}
  for name, value in given.items():
    for before, since in ddpm.RENAMED.items():
      name = name.replace(since, before)
    old[name] = value
  assert "mid_block.attentions.0.proj_attn.weight" in old
  jax.tree.map(np.testing.assert_array_equal, convert(old)[1]["params"], params)

  for name in given:
    if "." in name:
      with pytest.raises((KeyError, ValueError), match=r"\.(weight|bias)"):
        convert({k: v for k, v in given.items() if k != name})
  with pytest.raises(KeyError, match="up_blocks.1.attentions.0.to_v.bias"):
    convert({k: v for k, v in given.items() if k != "up_blocks.1.attentions.0.to_v.bias"})
  with pytest.raises(ValueError, match="encoder.weight"):
    convert({**given, "encoder.weight": np.zeros(3)})


def assert_same_tree(net, params, x, t, label):
  expected = jax.eval_shape(net.init, jax.random.key(0), x, t, label)["params"]
  assert jax.tree.map(np.shape, params) == jax.tree.map(lambda p: p.shape, expected)

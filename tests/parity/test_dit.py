"""Our DiT against diffusers' DiTTransformer2DModel, with the same random weights."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgen.convert import dit as convert
from jaxgen.nn import dit

torch.set_num_threads(2)


def reference(heads, depth, sample_size, patch_size):
  """Every tensor random, embeddings the same in all blocks, times embedded as the authors do."""
  model = diffusers.DiTTransformer2DModel(
    num_attention_heads=heads,
    attention_head_dim=16,
    in_channels=4,
    out_channels=8,
    num_layers=depth,
    sample_size=sample_size,
    patch_size=patch_size,
    num_embeds_ada_norm=10,
    norm_eps=1e-6,
  )
  rng = np.random.default_rng(0)
  first = model.transformer_blocks[0].norm1.emb.state_dict()
  with torch.no_grad():
    for p in model.parameters():
      p.copy_(torch.from_numpy(rng.standard_normal(p.shape) / np.sqrt(p[0].numel())))
    for block in model.transformer_blocks:
      block.norm1.emb.load_state_dict(first)
      block.norm1.emb.time_proj.downscale_freq_shift = 0
  return model.eval()


@pytest.mark.parametrize("heads, depth, sample_size, patch_size", [(2, 3, 8, 2), (3, 2, 16, 4)])
@pytest.mark.evidence("D14", "G", "W")
def test_output_and_gradient(heads, depth, sample_size, patch_size):
  model = reference(heads, depth, sample_size, patch_size)
  rng = np.random.default_rng(1)
  x = rng.standard_normal((3, sample_size, sample_size, 4)).astype(np.float32)
  w = rng.standard_normal((3, sample_size, sample_size, 8)).astype(np.float32)
  t, label = np.array([0, 500, 999], np.int32), np.array([0, 7, 10], np.int32)  # 10: null

  nchw = lambda x: torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
  nhwc = lambda x: x.detach().numpy().transpose(0, 2, 3, 1)
  x_torch = nchw(x).requires_grad_()
  y_torch = model(x_torch, torch.from_numpy(t), torch.from_numpy(label)).sample
  (y_torch * nchw(w)).sum().backward()

  tensors = {name: value.numpy() for name, value in model.state_dict().items()}
  args, variables = convert.from_torch(tensors, heads=heads)
  assert (args["depth"], args["patch_size"], args["n_classes"]) == (depth, patch_size, 10)
  net = dit.DiT(**args)

  def objective(x):
    y = net.apply(variables, x, t, label)
    return jnp.sum(y * w), y

  grad, y = jax.jit(jax.grad(objective, has_aux=True))(x)
  assert np.std(y) > 0.3  # else the tolerances say little
  np.testing.assert_allclose(y, nhwc(y_torch), rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(grad, nhwc(x_torch.grad), rtol=1e-4, atol=1e-4)


def test_embeddings_that_differ_are_refused():
  model = reference(2, 2, 8, 2)
  tensors = {name: value.numpy().copy() for name, value in model.state_dict().items()}
  name = "transformer_blocks.1.norm1.emb.timestep_embedder.linear_2.bias"
  tensors[name] += 0.1
  with pytest.raises(ValueError, match=name):
    convert.from_torch(tensors, heads=2)

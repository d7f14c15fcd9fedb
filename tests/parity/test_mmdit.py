"""Our MM-DiT, its grid of times and their Euler steps against diffusers'."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgen import paths
from jaxgen.convert import mmdit as convert
from jaxgen.nn import mmdit
from jaxgen.samplers import grids, ode

torch.set_num_threads(2)


def reference(depth, patch_size, qk_norm, max_size):
  """Every tensor random but the table of positions."""
  model = diffusers.SD3Transformer2DModel(
    sample_size=4 * patch_size,
    patch_size=patch_size,
    in_channels=4,
    out_channels=4,
    num_layers=depth,
    num_attention_heads=depth,
    caption_projection_dim=64 * depth,
    joint_attention_dim=12,
    pooled_projection_dim=10,
    pos_embed_max_size=max_size,
    qk_norm=qk_norm,
  )
  rng = np.random.default_rng(0)
  with torch.no_grad():
    for p in model.parameters():
      p.copy_(torch.from_numpy(rng.standard_normal(p.shape) / np.sqrt(p[0].numel())))
  return model.eval()


@pytest.mark.parametrize(
  "qk_norm, depth, patch_size, max_size",
  [(None, 2, 2, 6), ("rms_norm", 3, 2, 5), ("layer_norm", 2, 4, 4)],
)
@pytest.mark.evidence("R03", "G", "W")
def test_output_and_gradients(qk_norm, depth, patch_size, max_size):
  model = reference(depth, patch_size, qk_norm, max_size)
  rng = np.random.default_rng(1)
  draw = lambda *shape: rng.standard_normal(shape).astype(np.float32)
  shape = (3, 2 * patch_size, 4 * patch_size, 4)  # not square
  x, w, context, pooled = draw(*shape), draw(*shape), draw(3, 5, 12), draw(3, 10)
  t = np.array([0.5, 500.0, 1000.0], np.float32)

  nchw = lambda x: torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))
  nhwc = lambda x: x.detach().numpy().transpose(0, 2, 3, 1)
  x_torch, context_torch = nchw(x).requires_grad_(), torch.from_numpy(context).requires_grad_()
  pooled_torch = torch.from_numpy(pooled).requires_grad_()
  y_torch = model(x_torch, context_torch, pooled_torch, torch.from_numpy(t)).sample
  (y_torch * nchw(w)).sum().backward()

  args, variables = convert.from_torch({k: v.numpy() for k, v in model.state_dict().items()})
  ours = {None: "", "rms_norm": "rms", "layer_norm": "ln"}[qk_norm]
  assert args == dict(
    patch_size=patch_size,
    depth=depth,
    out_channels=4,
    qk_norm=ours,
    pos_embed_max_size=max_size,
    pos_embed_base_size=4,
  )
  assert set(variables) == {"params"}  # their table is ours
  net = mmdit.MMDiT(**args)

  def objective(x, context, pooled):
    y = net.apply(variables, x, t, context, pooled)
    return jnp.sum(y * w), y

  grads, y = jax.jit(jax.grad(objective, (0, 1, 2), has_aux=True))(x, context, pooled)
  assert np.std(y) > 0.3  # else the tolerances say little
  theirs = [nhwc(x_torch.grad), context_torch.grad.numpy(), pooled_torch.grad.numpy()]
  for a, b in zip([y, *grads], [nhwc(y_torch), *theirs], strict=True):
    np.testing.assert_allclose(a, b, rtol=2e-4, atol=2e-4 * np.abs(b).max())


@pytest.mark.parametrize("shift, n", [(1.0, 10), (3.0, 28), (3.0, 1), (6.5, 7)])
@pytest.mark.evidence("R03", "G")
def test_levels(shift, n):
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
  scheduler.set_timesteps(n)
  ts = grids.shifted(paths.Linear(), n, shift=shift)
  # 1 - t of a float32 t is exact to 6e-8 near sigma = 0.
  np.testing.assert_allclose(1.0 - np.asarray(ts), scheduler.sigmas.numpy(), rtol=1e-5, atol=1e-6)


@pytest.mark.evidence("R03", "G")
def test_sampling():
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
  scheduler.set_timesteps(12)
  x = np.random.default_rng(0).standard_normal((2, 4, 4, 3)).astype(np.float32)
  x_torch = torch.from_numpy(x)
  for t in scheduler.timesteps:
    out = 0.8 * torch.tanh(x_torch) * (0.5 + t / 2000.0) + 0.1 * torch.cos(t / 100.0)
    x_torch = scheduler.step(out, t, x_torch).prev_sample

  def velocity(x, t):
    t = 1000.0 * (1.0 - t).reshape(-1, 1, 1, 1)
    return -(0.8 * jnp.tanh(x) * (0.5 + t / 2000.0) + 0.1 * jnp.cos(t / 100.0))

  ours = jax.jit(lambda x: ode.euler(velocity, x, grids.shifted(paths.Linear(), 12)))(x)
  np.testing.assert_allclose(ours, x_torch.numpy(), rtol=1e-4, atol=1e-5)

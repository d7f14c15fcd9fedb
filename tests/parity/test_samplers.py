"""Our samplers beside diffusers' schedulers, with the same network and the same noise."""

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from jaxgen import paths
from jaxgen.samplers import ancestral, ddim, guidance, ode

SHAPE = (2, 8, 8, 3)
TOLERANCE = dict(rtol=1e-4, atol=1e-4)  # float32 on both sides, tables of float32 in diffusers


def network(x, t, tanh, cos):
  """Written once for torch and JAX; t: the scheduler's own time."""
  return 0.8 * tanh(x) * (0.5 + t / 2000) + 0.1 * cos(t / 100)


def ours(x, t):
  return network(x, paths.expand(t - 1.0, x), jnp.tanh, jnp.cos)  # diffusers counts from 0


def theirs(x, t):
  return network(x, torch.as_tensor(t, dtype=torch.float32), torch.tanh, torch.cos)


def field(clip):
  made = paths.eps_field(paths.Discrete(), ours)
  return guidance.clipped(made) if clip else made


def start():
  return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


def times(scheduler):
  """The scheduler's times in ours: one more, and the data at the end."""
  return jnp.array([*(scheduler.timesteps.numpy() + 1.0), 0.0], jnp.float32)


keys = lambda: jax.random.split(jax.random.key(0), SHAPE[0])


@pytest.mark.parametrize("variance, v", [("fixed_small", 0.0), ("fixed_large", 1.0)])
@pytest.mark.parametrize("steps", [20, 1000])
@pytest.mark.evidence("D02", "G")
def test_ancestral_is_ddpm_scheduler(variance, v, steps):
  scheduler = diffusers.DDPMScheduler(
    1000, variance_type=variance, clip_sample=True, timestep_spacing="leading"
  )
  scheduler.set_timesteps(steps)
  noise = np.random.default_rng(1).standard_normal((steps, *SHAPE)).astype(np.float32)
  drawn = iter(torch.from_numpy(noise))
  x, z = torch.from_numpy(start()), diffusers.schedulers.scheduling_ddpm
  original, z.randn_tensor = z.randn_tensor, lambda *args, **kwargs: next(drawn)
  try:
    for t in scheduler.timesteps:
      x = scheduler.step(theirs(x, t), t, x).prev_sample
  finally:
    z.randn_tensor = original
  x_ours = ancestral.ancestral(field(True), start(), keys(), times(scheduler), v=v, z=noise)
  np.testing.assert_allclose(x_ours, x.numpy(), **TOLERANCE)


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
def test_ddim_is_ddim_scheduler(eta, spacing):
  scheduler = diffusers.DDIMScheduler(
    1000, clip_sample=True, set_alpha_to_one=True, timestep_spacing=spacing
  )
  scheduler.set_timesteps(25)
  noise = np.random.default_rng(1).standard_normal((25, *SHAPE)).astype(np.float32)
  ts, x = times(scheduler), torch.from_numpy(start())
  for t, z in zip(scheduler.timesteps, torch.from_numpy(noise), strict=True):
    x = scheduler.step(
      theirs(x, t), t, x, eta=eta, use_clipped_model_output=True, variance_noise=z
    ).prev_sample
  if spacing == "linspace":
    # diffusers steps 1000 // 25 back from each t, although its times are 999 / 24 apart.
    x_ours = start()
    for i in range(25):
      pair = jnp.array([ts[i], max(ts[i] - 40.0, 0.0)])
      z = noise[i][None]
      x_ours = ddim.ddim(field(True), x_ours, keys(), pair, eta=eta, z=z)
  else:
    x_ours = ddim.ddim(field(True), start(), keys(), ts, eta=eta, z=noise)
  np.testing.assert_allclose(x_ours, x.numpy(), **TOLERANCE)


@pytest.mark.evidence("R06", "G")
def test_euler_is_flow_match_euler_scheduler():
  scheduler = diffusers.FlowMatchEulerDiscreteScheduler(1000)
  scheduler.set_timesteps(20)
  x = torch.from_numpy(start())
  for t in scheduler.timesteps:
    x = scheduler.step(theirs(x, t), t, x).prev_sample
  velocity = lambda x, t: -network(x, paths.expand(1000.0 * (1.0 - t), x), jnp.tanh, jnp.cos)
  x_ours = ode.euler(velocity, start(), 1.0 - jnp.asarray(scheduler.sigmas.numpy()))
  np.testing.assert_allclose(x_ours, x.numpy(), **TOLERANCE)


def test_forward_process_is_add_noise():
  scheduler = diffusers.DDPMScheduler(1000)
  x, eps = np.random.default_rng(2).standard_normal((2, *SHAPE)).astype(np.float32)
  t = np.array([0, 700])
  theirs = scheduler.add_noise(*map(torch.from_numpy, (x, eps)), torch.from_numpy(t)).numpy()
  ours = paths.interpolate(paths.Discrete(), x, eps, jnp.asarray(t + 1, jnp.float32))
  np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)

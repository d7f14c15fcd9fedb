"""Losses and penalties of generators against critics."""

import jax
import jax.numpy as jnp

from jaxgen import noise, paths


def wasserstein_critic(real, fake):
  """E D(x_fake) - E D(x), a scalar: minus the estimated Wasserstein distance.

  arXiv:1704.00028, Eq. 3; survey Box 4. real, fake: scores of equally many data and samples, [B].
  """
  return jnp.mean(fake.astype(jnp.float32)) - jnp.mean(real.astype(jnp.float32))


def wasserstein_generator(fake):
  """-E D(x_fake), a scalar. arXiv:1704.00028, Alg. 1, line 12; survey Box 4. fake: scores [B]."""
  return -jnp.mean(fake.astype(jnp.float32))


def gradient_penalty(critic, keys, x, x_fake, *, u=None):
  """(|grad D(x_hat)| - 1)^2 per example [B], with x_hat uniform on the segment from x_fake to x.

  arXiv:1704.00028, Eq. 3; survey Box 4.

  Args:
    critic: x [B, ...] -> scores [B], each of its own row. x, x_fake: [B, ...]. keys: [B].
    u: [B] in place of the uniform weight of x (tests, ablations).
  """
  x, x_fake = x.astype(jnp.float32), x_fake.astype(jnp.float32)
  u = paths.expand(noise.uniform(keys) if u is None else u, x)
  gradient = jax.grad(lambda x_hat: jnp.sum(critic(x_hat)))(u * x + (1.0 - u) * x_fake)
  square = jnp.sum(gradient**2, axis=tuple(range(1, x.ndim)))
  return (jnp.sqrt(square + 1e-12) - 1.0) ** 2  # the square root has no slope at 0

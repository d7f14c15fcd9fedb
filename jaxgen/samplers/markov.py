"""The Markov chain of a denoising autoencoder. Bengio et al., 2013. arXiv:1305.6663."""

import jax
import jax.numpy as jnp

from jaxgen import noise
from jaxgen.core import method


def chain(corrupt, denoise, x, keys, steps):
  """x [B, ...] after `steps` times X~ ~ C(X~ | X), X ~ P(X | X~). arXiv:1305.6663, Sec. 2.

  Where P(X | X~) is exact and every state can be reached, the chain forgets x and ends at the
  distribution of the data (Theorem 1).

  Args:
    corrupt, denoise: (keys [B], [B, ...]) -> [B, ...], draws of X~ and of X.
    x: [B, ...]. keys: [B]. steps: scalar, 1 or more.

  Raises:
    ValueError: `steps` that are no such number.
  """
  method.check_count("steps", steps)

  def step(x, i):
    k_corrupt, k_denoise = noise.split(noise.fold_in(keys, i))
    return denoise(k_denoise, corrupt(k_corrupt, x)), None

  return jax.lax.scan(step, x, jnp.arange(steps))[0]

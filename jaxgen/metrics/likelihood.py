"""Bits per dimension, and the log-likelihood of latent variable models by importance sampling.

A bare equation number is one of arXiv:1509.00519.
"""

import math

import jax
import jax.numpy as jnp

from jaxgen import noise
from jaxgen.core import method
from jaxgen.objectives import elbo


def bits_per_dim(log_prob, shape):
  """-log P in bits for each of an example's numbers, like log_prob. Survey Eq. 61.

  log_prob: log P(x) in nats, a scalar or [B]. shape: of one example, (H, W, C).
  Raises ValueError for a shape that is none.
  """
  method.check_counts("shape", shape)
  return -log_prob / math.prod(shape) / math.log(2.0)


def importance_nll(log_weights):
  """-log of the mean weight, per example [B], in nats; on average no less than -log p(x).

  The more draws, the closer (Theorem 1). log_weights: [K, B], of K draws each. Eq. 8.
  Raises ValueError for another shape.
  """
  shape = log_weights.shape
  method.check("log_weights.shape", shape, len(shape) == 2 and 0 not in shape, "[K, B]")
  return math.log(len(log_weights)) - jax.nn.logsumexp(log_weights, axis=0)


def importance_log_weights(log_likelihood, mean, log_var, keys, *, samples):
  """log p(x, z) / q(z | x) of `samples` z an example, [K, B], in nats; one at a time. Sec. 3.

  q = N(mean, e^log_var) and p(z) = N(0, I), as in `elbo.gaussian_bound`.

  Args:
    log_likelihood: z [B, D] -> log p(x | z) [B], in nats.
    mean, log_var: of q, [B, D]. keys: [B].
    samples: K.

  Raises ValueError unless it is a whole number, 1 or more.
  """
  method.check_count("samples", samples)
  mean, log_var = mean.astype(jnp.float32), log_var.astype(jnp.float32)

  def draw(i):
    eps = noise.normal(noise.fold_in(keys, i), mean.shape[1:])
    z = elbo.reparameterize(keys, mean, log_var, eps=eps)
    prior = 0.5 * ((eps - z) * (eps + z) + log_var)  # log p(z) / q(z | x); constants cancel
    return log_likelihood(z) + jnp.sum(prior, axis=1)

  return jax.lax.map(draw, jnp.arange(samples))

"""What the numbers that a network gives a pixel mean: p(x | z) of NVAE and of VDVAE.

arXiv:2007.03898, Sec. 4; arXiv:2011.10650, Sec. 4.
"""

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp

from jaxgen.core import method
from jaxgen.objectives import likelihood


class Pixels(NamedTuple):
  """p(x | z): what it is a distribution of, and how its parameters are read."""

  out: int  # how many parameters a pixel has
  data: Callable  # (keys [B], images [B, H, W, C] in [-1, 1]) -> x likewise
  log_prob: Callable  # (x, parameters [B, H, W, out]) -> [B, H, W], nats
  draw: Callable  # (keys [B], parameters) -> images likewise
  middle: Callable  # parameters -> images likewise: their mean, of a mixture the likeliest part's


def bernoulli(channels):
  """`Pixels` of images [B, H, W, C] in [-1, 1] that are binarised anew each time.

  What is drawn of them is their mean. channels: a scalar, C.
  """
  return Pixels(
    channels,
    lambda keys, x: 2.0 * likelihood.binarize(keys, x) - 1.0,
    lambda x, logits: jnp.sum(likelihood.bernoulli(0.5 * (x + 1.0), logits), -1),
    lambda keys, logits: likelihood.bernoulli_mean(logits),
    likelihood.bernoulli_mean,
  )


def logistic_mixture(channels, mixtures, levels):
  """`Pixels` of the highest bits of 8-bit images [B, H, W, C] in [-1, 1]. arXiv:1701.05517.

  channels: C, 1 or 3. mixtures: a scalar, of components. levels: a scalar, 2 to the power of the
  bits; they are even from -1 to 1. Raises ValueError for other channels.
  """
  method.check("image_shape[2]", channels, channels in (1, 3), "1 or 3 channels")

  def data(keys, x):
    if levels == 256:
      return x
    return jnp.floor(jnp.round(127.5 * (x + 1.0)) * levels / 256.0) * 2.0 / (levels - 1.0) - 1.0

  log_prob = functools.partial(likelihood.logistic_mixture, levels=levels)
  draw = functools.partial(likelihood.sample_logistic_mixture, channels=channels)
  middle = functools.partial(draw, None, uniforms=(0.5, 0.5))
  return Pixels(mixtures * (10 if channels == 3 else 3), data, log_prob, draw, middle)

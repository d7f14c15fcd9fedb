"""Bits per dimension."""

import math

from jaxgen.core import method


def bits_per_dim(log_prob, shape):
  """-log P in bits for each of an example's numbers, like log_prob; survey Eq. 61.

  log_prob: log P(x) in nats, a scalar or [B]. shape: of one example, (H, W, C).
  Raises ValueError for a shape that is none.
  """
  method.check_counts("shape", shape)
  return -log_prob / math.prod(shape) / math.log(2.0)

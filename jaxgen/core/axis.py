"""Reductions over the devices of a step: real under pmap and shard_map, the identity elsewhere.

With these, a statistic of the batch (batch norm, minibatch stddev, a codebook's counts) is one of
the *global* batch in every parallel mode, and models never ask for the mode.
"""

import jax
import jax.numpy as jnp

NAME = "data"


def name():
  """NAME inside pmap and shard_map, None elsewhere: what `nn.BatchNorm(axis_name=...)` wants."""
  try:
    jax.lax.axis_size(NAME)
  except NameError:
    return None
  return NAME


def mean(tree):
  """Average over the devices of every leaf."""
  return jax.lax.pmean(tree, NAME) if name() else tree


def total(tree):
  """Sum over the devices of every leaf."""
  return jax.lax.psum(tree, NAME) if name() else tree


def gather(x):
  """[b, ...] on each device -> [B, ...], the rows of the global batch in order, on all of them."""
  return jax.lax.all_gather(x, NAME, tiled=True) if name() else x


def first_row(n):
  """Position in the global batch of the first of this device's n rows."""
  return jax.lax.axis_index(NAME) * n if name() else jnp.int32(0)

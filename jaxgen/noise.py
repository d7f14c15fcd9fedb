"""Randomness with one key an example: row i draws the same noise on any device and in any batch.

An objective or a sampler receives `keys` [B]; in a notebook `jax.random.split(key, B)`. Shapes are
those of one example. A key is drawn from or split, never both. What is drawn once for the whole
batch uses `shared(keys)`.
"""

import itertools

import jax
import jax.numpy as jnp

from jaxgen.core import axis


def rows(key, n, first=0):
  """Keys [n] of the rows first, first + 1, ... of the sequence that `key` stands for."""
  return jax.vmap(jax.random.fold_in, (None, 0))(key, first + jnp.arange(n))


def split(keys, n=2):
  """[B] -> n arrays of keys [B]."""
  # On key data: slicing an array of keys is a false error of jax_debug_key_reuse.
  data = jax.random.key_data(jax.vmap(lambda k: jax.random.split(k, n))(keys))
  impl = jax.random.key_impl(keys)
  return tuple(jax.random.wrap_key_data(data[:, i], impl=impl) for i in range(n))


def repeat(keys, n):
  """[B] -> [n * B], n keys of each row: its 0th, then all rows' 1st, and so on."""
  parts = [jax.random.key_data(k) for k in split(keys, n)]
  return jax.random.wrap_key_data(jnp.concatenate(parts), impl=jax.random.key_impl(keys))


def fold_in(keys, i):
  """Keys [B] for step or layer i >= 0, never equal to a split of the same keys."""
  # jax.random.split(k, n)[i] is jax.random.fold_in(k, i); the high bit keeps the two apart.
  return jax.vmap(jax.random.fold_in, (0, None))(keys, jnp.uint32(2**31) + jnp.uint32(i))


def shared(keys):
  """[B] -> one key, the same on every device and independent of every row's."""
  data = axis.gather(jax.random.key_data(keys)[:1])[0]
  key = jax.random.wrap_key_data(data, impl=jax.random.key_impl(keys))
  return jax.random.fold_in(key, 0x5EED)


def normal(keys, shape=()):
  """Standard normal [B, *shape]."""
  return jax.vmap(lambda k: jax.random.normal(k, shape))(keys)


def uniform(keys, shape=(), low=0.0, high=1.0):
  """Uniform on [low, high), [B, *shape]."""
  return jax.vmap(lambda k: jax.random.uniform(k, shape, minval=low, maxval=high))(keys)


def gumbel(keys, shape=()):
  """Noise whose argmax, added to logits, is a draw of their softmax; [B, *shape].

  arXiv:1611.01144, Sec. 2.1.
  """
  u = uniform(keys, shape, jnp.finfo(jnp.float32).tiny, 1.0)
  return -jnp.log(-jnp.log(u))


def randint(keys, low, high, shape=()):
  """Integers low, ..., high - 1, int32 [B, *shape]."""
  return jax.vmap(lambda k: jax.random.randint(k, shape, low, high))(keys)


def bernoulli(keys, p, shape=()):
  """True with probability p, bool [B, *shape]."""
  return jax.vmap(lambda k: jax.random.bernoulli(k, p, shape))(keys)


def rademacher(keys, shape=()):
  """-1 or 1, float32 [B, *shape]."""
  return jax.vmap(lambda k: jax.random.rademacher(k, shape, jnp.float32))(keys)


def stream(keys, draw=uniform):
  """draw(shape) -> [B, *shape], new noise at each call: what networks with dropout take.

  The calls are counted while the network is traced; inside `nn.scan` fold the layer into `keys`.
  """
  count = itertools.count()
  return lambda shape: draw(fold_in(keys, next(count)), shape)

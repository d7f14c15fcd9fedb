"""Sampling token after token, for every autoregressive prior and decoder.

p(x) is the product of p(x_i | x_<i), survey Eq. 20 for pixels (arXiv:1601.06759, Eq. 1) and survey
Eq. 27 for the codes of an image.
"""

import jax
import jax.numpy as jnp

from jaxgen import noise
from jaxgen.core import method


def sample(step, cache, keys, n_tokens, *, temperature=1.0):
  """Tokens x_i ~ p(x_i | x_<i) one after another, int32 [n, L]; survey Eq. 20, 27.

  Token i of an example has its own noise, `fold_in(keys, i)`.

  Args:
    step: (cache, token [n], position, a scalar) -> (logits [n, K] of p(x_position), cache); token
      is the one before, and zeros at position 0.
    cache: a tree of arrays [n, ...], what `step` starts from.
    keys: [n]. n_tokens: a scalar, L.
    temperature: what logits are divided by; 0 takes the most probable token.

  Raises:
    ValueError: a temperature that is no finite number, 0 or more.
  """
  method.check_weight("temperature", temperature)

  def advance(carry, position):
    logits, cache = step(*carry, position)
    if temperature:
      logits = logits / temperature + noise.gumbel(noise.fold_in(keys, position), logits.shape[1:])
    token = jnp.argmax(logits, axis=-1).astype(jnp.int32)
    return (cache, token), token

  start = jnp.zeros(len(keys), jnp.int32)
  _, tokens = jax.lax.scan(advance, (cache, start), jnp.arange(n_tokens))
  return tokens.T

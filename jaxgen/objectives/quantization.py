"""Vector quantisation: codes, what pulls them and the encoder together, how many are in use.

A bare equation number is one of Neural Discrete Representation Learning, van den Oord, Vinyals,
Kavukcuoglu, 2017, arXiv:1711.00937; survey Box 2. K codes are the rows of a codebook [K, D]. Losses
are means over positions and over D, as in the authors' code, where the paper has sums over D.
"""

import jax
import jax.numpy as jnp

from jaxgen import noise
from jaxgen.core import axis, method

_EXACT = jax.lax.Precision.HIGHEST  # not the few bits that an accelerator multiplies with


def nearest(z, codebook):
  """Index of the code nearest to each vector, int32 [...]; Eq. 1. z: [..., D]. codebook: [K, D]."""
  z, codebook = z.astype(jnp.float32), codebook.astype(jnp.float32)
  length = jnp.sum(codebook**2, -1)
  product = jnp.matmul(z, codebook.T, precision=_EXACT)
  # Less |z|^2, which all K distances have.
  return jnp.argmin(jnp.expand_dims(length, range(z.ndim - 1)) - 2.0 * product, -1)


def straight_through(z, z_q):
  """z_q to the bit, with the gradient of z: the identity to z, none to z_q; [B, ..., D]. Sec. 3.2.

  z, z_q: [B, ..., D]; survey Box 2.
  """
  return jax.lax.stop_gradient(z_q) + (z - jax.lax.stop_gradient(z))


def commitment(z, z_q):
  """Pulls the encoder's outputs to their codes: |z - sg(z_q)|^2, a mean per example [B].

  Eq. 3, third term; survey Box 2. z, z_q: [B, ..., D].
  """
  return _mean_square(z - jax.lax.stop_gradient(z_q))


def dictionary(z, z_q):
  """Pulls codes to the encoder's outputs: |sg(z) - z_q|^2, a mean per example [B].

  Eq. 3, second term. z, z_q: [B, ..., D].
  """
  return _mean_square(jax.lax.stop_gradient(z) - z_q)


def gradient_loss(z, z_q, *, beta=0.25):
  """What trains encoder and codebook together by gradients, per example [B]. Eq. 3, last two terms.

  z, z_q: [B, ..., D]. beta: of the commitment.
  """
  return dictionary(z, z_q) + beta * commitment(z, z_q)


def start(codebook):
  """The statistics of `ema_update` before any data: each code [D] counts as one vector seen.

  {"codebook": [K, D], "count": [K], "total": [K, D]}. codebook: [K, D]. arXiv:1711.00937, App. A.1
  leaves the start open; with counts of 0 the first update throws codes that are not in use far out.
  """
  return {"codebook": codebook, "count": jnp.ones(len(codebook)), "total": codebook}


def ema_update(statistics, z, index, *, decay=0.99, eps=1e-5):
  """Moves codes to the moving averages of the vectors they are nearest to. App. A.1; survey Box 2.

  Args:
    statistics: {"codebook": [K, D], "count": [K], "total": [K, D]}; the same on every device.
    z: [B, ..., D], of this device's rows. index: int32 [B, ...], their codes.
    decay: gamma of the paper. eps: what Laplace smoothing adds to a count, the authors' code.

  Returns:
    The new statistics, of the global batch, like the old ones.
  """
  K, D = statistics["total"].shape
  one_hot = jax.nn.one_hot(index.reshape(-1), K)
  sums = jnp.matmul(one_hot.T, z.reshape(-1, D).astype(jnp.float32), precision=_EXACT)
  n, sums = axis.total((one_hot.sum(0), sums))
  count = decay * statistics["count"] + (1.0 - decay) * n  # Eq. 6
  total = decay * statistics["total"] + (1.0 - decay) * sums  # Eq. 7
  smooth = (count + eps) / (count.sum() + K * eps) * count.sum()
  return {"codebook": total / smooth[:, None], "count": count, "total": total}  # Eq. 8


def revive(statistics, z, keys, *, threshold):
  """Dead codes restart at encoder outputs of the global batch: (statistics, how many restarted).

  arXiv:2005.00341, Sec. 3.1: a code whose mean count is below the threshold.

  Args:
    statistics: as `ema_update` returns them. z: [..., D], of this device's rows. keys: [B].
    threshold: 0 revives nothing.

  Returns:
    (statistics, scalar float32): a restarted code counts as one vector seen.
  """
  K, D = statistics["total"].shape
  pool = axis.gather(z.reshape(-1, D).astype(jnp.float32))
  fresh = start(pool[jax.random.randint(noise.shared(keys), (K,), 0, len(pool))])
  dead = statistics["count"] < threshold
  mask = {"codebook": dead[:, None], "count": dead, "total": dead[:, None]}
  return jax.tree.map(jnp.where, mask, fresh, statistics), jnp.sum(dead, dtype=jnp.float32)


def frequencies(index, n_codes):
  """The share of each code among all indices of the global batch, [K]. arXiv:1711.00937.

  index: int32 [B, ...]. n_codes: K, the length of the result, [K].
  """
  n = axis.total(jnp.zeros(n_codes).at[index.reshape(-1)].add(1.0))
  return n / n.sum()


def perplexity(p):
  """exp of the entropy of p, scalar: K for codes used alike, 1 for one alone. arXiv:1711.00937.

  p: [K], a distribution.
  """
  return jnp.exp(-jnp.sum(jax.scipy.special.xlogy(p, p)))


def usage(p):
  """The share of codes that were used at all, scalar. p: [K]. arXiv:1711.00937."""
  return jnp.mean(p > 0.0)


def gumbel_softmax(keys, logits, *, temperature, hard=False, gumbel=None):
  """A relaxed draw of one of K, [B, ..., K]. arXiv:1611.01144, Eq. 2; arXiv:1611.00712.

  Args:
    keys: [B]. logits: [B, ..., K]. temperature: a positive number or scalar; near 0 a one-hot draw.
    hard: one-hot, with the gradient of the soft draw; arXiv:1611.01144, Sec. 2.2.
    gumbel: like `logits`, [B, ..., K], in place of noise (tests, ablations).

  Raises ValueError for a temperature that is known and not positive.
  """
  known = method.concrete(temperature)
  if known is not None:
    method.check_positive("temperature", known.item())
  gumbel = noise.gumbel(keys, logits.shape[1:]) if gumbel is None else gumbel
  soft = jax.nn.softmax((logits + gumbel) / temperature)
  one_hot = jax.nn.one_hot(jnp.argmax(soft, -1), logits.shape[-1])
  return straight_through(soft, one_hot) if hard else soft


def _mean_square(x):
  return jnp.mean(x**2, axis=tuple(range(1, x.ndim)))

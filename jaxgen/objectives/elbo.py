"""Evidence lower bounds, their terms and the estimators of their gradients, in nats.

A bare equation number is one of Auto-Encoding Variational Bayes, Kingma, Welling, 2013,
arXiv:1312.6114. The three bounds of K draws, `iwae`, `stl` and `dreg`, have one signature and one
value; what differs is the gradient.
"""

import math

import jax
import jax.numpy as jnp

from jaxgen import noise
from jaxgen.core import axis, method


def normal_kl(mean_q, log_var_q, mean_p, log_var_p):
  """KL(N(mean_q, e^log_var_q) || N(mean_p, e^log_var_p)) in nats, elementwise.

  arXiv:1312.6114, App. B.
  """
  wider = log_var_q - log_var_p  # expm1: no cancellation where the two are almost equal
  return 0.5 * (jnp.expm1(wider) - wider + (mean_q - mean_p) ** 2 * jnp.exp(-log_var_p))


def standard_kl(mean, log_var):
  """KL(N(mean, e^log_var) || N(0, I)) in nats, per example [B]. mean, log_var: [B, ...].

  arXiv:1312.6114, App. B; survey Eq. 3.
  """
  return _sum(normal_kl(mean, log_var, 0.0, 0.0))


def monte_carlo_kl(log_q, log_p, z):
  """log q(z) - log p(z) in nats, per example [B]: over z ~ q its mean is KL(q || p).

  log_q, log_p: z -> [B, ...], summed over all but B. z: [B, ...].
  """
  return _sum(log_q(z) - log_p(z))


def reparameterize(keys, mean, log_var, *, eps=None):
  """z = mean + e^(log_var / 2) eps, [B, ...]. arXiv:1312.6114, Sec. 2.4; survey Eq. 13-14.

  keys: [B]. mean, log_var: [B, ...]. eps: like mean, in place of normal noise (tests, ablations).
  """
  eps = noise.normal(keys, mean.shape[1:]) if eps is None else eps
  return mean + jnp.exp(0.5 * log_var) * eps


def gaussian_bound(log_likelihood, mean, log_var, keys, *, eps=None):
  """E_q log p(x | z), from one z an example, and KL(q(z | x) || p(z)); the bound is the difference.

  p(x), the integral of p(x | z) p(z) over z (survey Eq. 5), is E_q p(x, z) / q(z | x) (survey
  Eq. 6-7), and by Jensen log p(x) >= E_q log p(x | z) - KL (survey Eq. 8-11; arXiv:1312.6114,
  Eq. 3 and 10). Here q = N(mean, e^log_var) and p(z) = N(0, I).

  Args:
    log_likelihood: z [B, D] -> log p(x | z) [B], in nats.
    mean, log_var: of q, [B, D]. keys: [B]. eps: of `reparameterize`.

  Returns:
    (log p(x | z) [B], KL [B]), in nats.
  """
  mean, log_var = mean.astype(jnp.float32), log_var.astype(jnp.float32)
  z = reparameterize(keys, mean, log_var, eps=eps)
  return log_likelihood(z), standard_kl(mean, log_var)


def hierarchical_bound(reconstruction, kls):
  """log p(x | z) less the KL of every group of latents, per example [B], in nats; survey Eq. 31.

  The survey prints + before the first KL; that too is subtracted, as in arXiv:1602.02282, Eq. 4.
  reconstruction: [B]. kls: [B, L], of L groups, each given the groups drawn before it.
  """
  return reconstruction - jnp.sum(kls, axis=1)  # survey Eq. 31


def marginal_bound(bounds, log_q):
  """A bound on log p(x) whose label is not known, [B], in nats. arXiv:1406.5298, Eq. 7.

  bounds: [B, Y], on log p(x, y) of each label. log_q: [B, Y], log q(y | x), normalised.
  """
  return jnp.sum(jnp.exp(log_q) * (bounds - log_q), axis=1)


def beta(reconstruction, kl, *, beta):
  """The loss beta KL - E_q log p(x | z) in nats, elementwise; survey Eq. 16.

  reconstruction: E_q log p(x | z). beta: weight of kl; 1 is the bound's.
  """
  return beta * kl - reconstruction


def capacity(reconstruction, kl, *, gamma, capacity):
  """The loss gamma |KL - C| - E_q log p(x | z) in nats, elementwise; survey Eq. 17.

  reconstruction: E_q log p(x | z). gamma: weight. capacity: C, which kl is drawn to and which grows
  in training. arXiv:1804.03599, Eq. 8.
  """
  return gamma * jnp.abs(kl - capacity) - reconstruction


def free_bits(kl, *, nats):
  """The KL term of a loss in which each group has `nats` for nothing: a scalar, in nats.

  The sum over groups of max(nats, mean of KL over the global batch). arXiv:1606.04934, Eq. 15.
  kl: [B, L], of L groups.
  """
  return jnp.sum(jnp.maximum(nats, axis.mean(jnp.mean(kl, axis=0))))


def log_weights(log_likelihood, mean, log_var, keys, *, samples):
  """log p(x, z) / q(z | x) of `samples` z an example, [K, B], in nats; one at a time.

  q = N(mean, e^log_var) and p(z) = N(0, I), as in `gaussian_bound`. arXiv:1509.00519, Sec. 3.

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
    z = reparameterize(keys, mean, log_var, eps=eps)
    prior = 0.5 * ((eps - z) * (eps + z) + log_var)  # log p(z) / q(z | x); constants cancel
    return log_likelihood(z) + jnp.sum(prior, axis=1)

  return jax.lax.map(draw, jnp.arange(samples))


def importance_bound(log_weights):
  """log of the mean weight, per example [B], in nats; on average no more than log p(x).

  The more draws, the closer: arXiv:1509.00519, Eq. 8 and Theorem 1; survey Eq. 25.
  log_weights: [K, B], of K draws each.
  """
  return jax.nn.logsumexp(log_weights, axis=0) - math.log(len(log_weights))


def importance_sampled(log_weight, keys, *, samples):
  """`importance_bound` of `samples` draws, [B], in nats; one at a time. arXiv:1509.00519, Eq. 8.

  log_weight: keys [B] -> log p(x, z) / q(z | x) of one draw of z, [B], in nats. keys: [B].
  samples: K. Raises ValueError unless it is a whole number, 1 or more.
  """
  method.check_count("samples", samples)
  draw = lambda i: log_weight(noise.fold_in(keys, i))
  return importance_bound(jax.lax.map(draw, jnp.arange(samples)))


def iwae(draw, log_weight, q, keys, *, samples):
  """The bound of K draws and its plain gradient, [B], in nats. arXiv:1509.00519, Eq. 8 and 14.

  The draws are rows of one large batch: K times the memory and no loop.

  Args:
    draw: (q, keys [B]) -> z, a tree of [B, ...], by reparameterisation.
    log_weight: (q, z) -> log p(x, z) / q(z | x), [B], in nats.
    q: what the distribution of z depends on, a tree of arrays: (mean, log_var), or all parameters
      of an encoder. Those of a decoder stay inside log_weight.
    keys: [B].
    samples: K.

  Raises ValueError unless it is a whole number, 1 or more.
  """
  return importance_bound(_weights(log_weight, q, _draws(draw, q, keys, samples)))


def stl(draw, log_weight, q, keys, *, samples):
  """`iwae` without the score of q in its gradient: sticking the landing. [B], in nats.

  arXiv:1703.09194, Sec. 3: z still moves with q, log q(z | x) has a q that does not. For K = 1 this
  is unbiased and without variance where q is the posterior; for K > 1 it is biased
  (arXiv:1810.04152, Sec. 3).

  draw, log_weight, q, keys, samples: of `iwae`, which raises the same ValueError.
  """
  z = _draws(draw, q, keys, samples)
  return importance_bound(_weights(log_weight, jax.lax.stop_gradient(q), z))


def dreg(draw, log_weight, q, keys, *, samples):
  """`iwae` with the doubly reparameterised gradient, unbiased for every K. [B], in nats.

  arXiv:1810.04152, Eq. 8: along z the share of each draw enters squared, elsewhere (the decoder)
  once.

  draw, log_weight, q, keys, samples: of `iwae`, which raises the same ValueError.
  """
  z, fixed = _draws(draw, q, keys, samples), jax.lax.stop_gradient(q)
  share = jax.nn.softmax(_weights(log_weight, fixed, jax.lax.stop_gradient(z)), axis=0)
  z = jax.tree.map(lambda z: _with_gradient_times(z, jax.lax.stop_gradient(share)), z)
  return importance_bound(_weights(log_weight, fixed, z))  # whose slope is `share` once more


def _draws(draw, q, keys, samples):
  """z, a tree of [K, B, ...]."""
  method.check_count("samples", samples)
  return jax.vmap(lambda i: draw(q, noise.fold_in(keys, i)))(jnp.arange(samples))


def _weights(log_weight, q, z):
  """survey Eq. 24, [K, B]."""
  return jax.vmap(lambda z: log_weight(q, z))(z)


# An identity to XLA, which then finds that both weights of `dreg` are one computation.
@jax.custom_vjp
def _with_gradient_times(z, share):
  """z [K, B, ...], whose gradient is multiplied by share [K, B]."""
  return z


_with_gradient_times.defvjp(
  lambda z, share: (z, share),
  lambda share, g: (g * share.reshape(share.shape + (1,) * (g.ndim - 2)), jnp.zeros_like(share)),
)


def _sum(x):
  return jnp.sum(x, axis=tuple(range(1, x.ndim)))

"""Evidence lower bounds and their terms, in nats.

A bare equation number is one of Auto-Encoding Variational Bayes, Kingma, Welling, 2013,
arXiv:1312.6114.
"""

import jax.numpy as jnp

from jaxgen import noise


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


def _sum(x):
  return jnp.sum(x, axis=tuple(range(1, x.ndim)))

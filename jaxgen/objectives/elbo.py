"""Evidence lower bounds and their terms, in nats.

A bare equation number is one of arXiv:2006.11239.
"""

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from jaxgen import noise, paths
from jaxgen.core import method
from jaxgen.objectives import likelihood


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


def diffusion_prior(path, x):
  """L_T = KL(q(x_T | x) || N(0, I)) in nats, per example [B]. arXiv:2006.11239, Eq. 5.

  path: any of `paths`; T is its noise end. x: data [B, ...].
  """
  alpha, sigma = path.alpha(path.t_noise), path.sigma(path.t_noise)
  return standard_kl(alpha * x, 2.0 * jnp.log(sigma))


def diffusion_term(field, x, x_t, t, *, v=1.0, log_cdf=norm.logcdf):
  """L_{t-1} = KL(q(x_{t-1} | x_t, x) || p(x_{t-1} | x_t)) in nats, per example [B]. Eq. 5.

  The KLs of survey Eq. 81. At t = 1 it is L_0 = -log P(x | x_1), Eq. 13.

  Args:
    field: on a paths.Discrete. x, x_t: [B, ...]. t: [B] in 1, ..., T.
    v: log variance of p between log beta-tilde_t (0) and log beta_t (1), where the field does not
      predict it. At t = 1, where beta-tilde_t is 0, both are beta-tilde_2, as in the official code;
      a predicted v mixes beta-tilde_2 with beta_1.
    log_cdf: of likelihood.discretized_gaussian.
  """
  p = field.predict(x_t, t)
  t = paths.expand(t, x)
  q = paths.posterior(field.path, t, t - 1.0)
  second = paths.posterior(field.path, 2.0, 1.0).small
  log_small = jnp.log(jnp.where(t > 1.0, q.small, second))
  large = q.large if p.v is not None else jnp.where(t > 1.0, q.large, second)
  mix = v if p.v is None else p.v
  log_var = mix * jnp.log(large) + (1.0 - mix) * log_small
  mean = q.x_weight * p.x + q.x_t_weight * x_t
  kl = normal_kl(q.x_weight * x + q.x_t_weight * x_t, log_small, mean, log_var)
  decoder = likelihood.discretized_gaussian(x, mean, 0.5 * log_var, log_cdf=log_cdf)
  return _sum(jnp.where(t > 1.0, kl, -decoder))


def diffusion_bound(field, x, keys, *, terms, v=1.0):
  """An unbiased estimate of the bound on -log P(x) in nats, per example [B]. Eq. 5.

  `terms` times t, one in each of as many equal strata of 1, ..., T, stand for the whole sum; with
  terms = T it is every t once.

  Args:
    field, v: of `diffusion_term`. x: 8-bit images [B, ...] in [-1, 1]. keys: [B].

  Raises:
    ValueError: terms is not 1 to T.
  """
  n_steps = int(field.path.t_noise)
  method.check_count("terms", terms, 1, n_steps)

  def step(total, i):
    k_t, k_eps = noise.split(noise.fold_in(keys, i))
    t = 1.0 + jnp.floor((i + noise.uniform(k_t)) * (n_steps / terms))
    t = jnp.minimum(t, n_steps)  # i + u rounds up to i + 1 once in 2^24
    x_t = paths.interpolate(field.path, x, noise.normal(k_eps, x.shape[1:]), t)
    return total + diffusion_term(field, x, x_t, t, v=v), None

  total = jax.lax.scan(step, jnp.zeros(len(x)), jnp.arange(terms))[0]
  return diffusion_prior(field.path, x) + total * (n_steps / terms)


def _sum(x):
  return jnp.sum(x, axis=tuple(range(1, x.ndim)))

"""The evidence lower bound of diffusion models and its terms, in nats.

A bare equation number is one of arXiv:2006.11239. The bound is that of Deep Unsupervised Learning
using Nonequilibrium Thermodynamics, Sohl-Dickstein et al., 2015, arXiv:1503.03585: its chain, its
ratio, and the terms that are left after integration.

Survey D01, Eq. 74-81.
"""

import math

import jax
import jax.numpy as jnp
from jax.scipy.stats import norm

from jaxgen import noise, paths
from jaxgen.core import axis, method
from jaxgen.objectives import elbo, likelihood


def chain(path, x, keys, *, eps=None):
  """x_0, x_1, ..., x_T, data turned into noise step by step, [T + 1, B, ...].

  arXiv:1503.03585, Eq. 1-3; survey Eq. 74, 76. Each state is made from the one before it.

  path: a paths.Discrete. x: data [B, ...]. keys: [B]. eps: [T, B, ...] in place of normal noise.
  """

  def step(x, inputs):
    t, eps = inputs
    eps = noise.normal(noise.fold_in(keys, t), x.shape[1:]) if eps is None else eps
    now, last = jnp.float32(t), t - 1.0
    kept = path.alpha(now) / path.alpha(last)  # sqrt(1 - beta_t)
    x = kept * x + jnp.sqrt(paths.posterior(path, now, last).large) * eps  # survey Eq. 78
    return x, x

  xs = jax.lax.scan(step, x, (_steps(path), eps))[1]
  return jnp.concatenate([x[None], xs])


def ratio(field, xs, *, v=1.0):
  """log p(x_0, ..., x_T) / q(x_1, ..., x_T | x_0) in nats, per example [B].

  Its mean over the chain of x_0 is the bound K of survey Eq. 80, the mean of its exponential
  P(x_0): arXiv:1503.03585, Eq. 8-11; survey Eq. 80.

  Args:
    field, v: of `term`.
    xs: [T + 1, B, ...], of `chain` from 8-bit images in [-1, 1].
  """
  path = field.path

  def step(total, inputs):
    t, x, x_t = inputs
    t = jnp.full(x.shape[:1], jnp.float32(t))
    mean, log_var, q = _reverse(field, x_t, t, v)
    t = paths.expand(t, x)
    kept = path.alpha(t) / path.alpha(t - 1.0)
    forward = likelihood.gaussian(x_t, kept * x, jnp.log(q.large))  # survey Eq. 78
    decoder = likelihood.discretized_gaussian(x, mean, 0.5 * log_var)
    back = jnp.where(t > 1.0, likelihood.gaussian(x, mean, log_var), decoder)
    return total + _sum(back - forward), None

  start = _sum(likelihood.gaussian(xs[-1], 0.0, 0.0))  # survey Eq. 77, and the p(x^(T)) of Eq. 79
  inputs = (_steps(path), xs[:-1], xs[1:])
  return jax.lax.scan(step, start, inputs, reverse=True)[0]  # survey Eq. 75, 79


def constant(path, n):
  """C of survey Eq. 81, H_q(x_T | x_0) - H_q(x_1 | x_0) - H_p(x_T), in nats, a scalar.

  arXiv:1503.03585, Eq. 14, where p(x_0 | x_1) is q(x_1 | x_0) p(x_0) / p(x_1), App. B.2, and the
  data have mean 0 and variance 1 in each of their n values. path: a paths.Discrete.
  """
  wider = jnp.log(path.sigma(path.t_noise)) - jnp.log(path.sigma(1.0))
  return n * (wider - 0.5 * math.log(2.0 * math.pi * math.e))


def prior(path, x):
  """L_T = KL(q(x_T | x) || N(0, I)) in nats, per example [B]. arXiv:2006.11239, Eq. 5.

  path: any of `paths`; T is its noise end. x: data [B, ...].
  """
  alpha, sigma = path.alpha(path.t_noise), path.sigma(path.t_noise)
  return elbo.standard_kl(alpha * x, 2.0 * jnp.log(sigma))


def term(field, x, x_t, t, *, v=1.0, log_cdf=norm.logcdf):
  """L_{t-1} = KL(q(x_{t-1} | x_t, x) || p(x_{t-1} | x_t)) in nats, per example [B]. Eq. 5.

  The KLs of survey Eq. 81. At t = 1 it is L_0 = -log P(x | x_1), Eq. 13.

  Args:
    field: on a paths.Discrete. x, x_t: [B, ...]. t: [B] in 1, ..., T.
    v: log variance of p between log beta-tilde_t (0) and log beta_t (1), where the field does not
      predict it. At t = 1, where beta-tilde_t is 0, both are beta-tilde_2, as in the official code;
      a predicted v mixes beta-tilde_2 with beta_1.
    log_cdf: of likelihood.discretized_gaussian.
  """
  mean, log_var, q = _reverse(field, x_t, t, v)
  t = paths.expand(t, x)
  log_small = jnp.log(jnp.where(t > 1.0, q.small, 1.0))
  kl = elbo.normal_kl(q.x_weight * x + q.x_t_weight * x_t, log_small, mean, log_var)
  decoder = likelihood.discretized_gaussian(x, mean, 0.5 * log_var, log_cdf=log_cdf)
  return _sum(jnp.where(t > 1.0, kl, -decoder))


def _reverse(field, x_t, t, v):
  """Mean and log variance of p(x_{t-1} | x_t), and the Posterior at t."""
  p = field.predict(x_t, t)
  t = paths.expand(t, x_t)
  q = paths.posterior(field.path, t, t - 1.0)
  second = paths.posterior(field.path, 2.0, 1.0).small
  log_small = jnp.log(jnp.where(t > 1.0, q.small, second))
  large = q.large if p.v is not None else jnp.where(t > 1.0, q.large, second)
  mix = v if p.v is None else p.v
  log_var = mix * jnp.log(large) + (1.0 - mix) * log_small
  return q.x_weight * p.x + q.x_t_weight * x_t, log_var, q


def terms(field, x, keys, *, v=1.0, eps=None, log_cdf=norm.logcdf):
  """L_0, L_1, ..., L_T in nats, [T + 1, B]: their sum is the bound on -log P(x). Eq. 5.

  arXiv:1503.03585, Eq. 14; survey Eq. 80-81, whose C is -(L_0 + L_T) and whose t counts from 2.

  Args:
    field, v, log_cdf: of `term`. x: 8-bit images [B, ...] in [-1, 1]. keys: [B].
    eps: [T, B, ...], the noise of x_1, ..., x_T in place of normal noise (tests).
  """

  def step(_, inputs):
    t, eps = inputs
    eps = noise.normal(noise.fold_in(keys, t), x.shape[1:]) if eps is None else eps
    t = jnp.full(x.shape[:1], jnp.float32(t))
    x_t = paths.interpolate(field.path, x, eps, t)
    return None, term(field, x, x_t, t, v=v, log_cdf=log_cdf)

  terms = jax.lax.scan(step, None, (_steps(field.path), eps))[1]
  return jnp.concatenate([terms, prior(field.path, x)[None]])


def bound(field, x, keys, *, terms, v=1.0):
  """An unbiased estimate of the bound on -log P(x) in nats, per example [B]. Eq. 5.

  `terms` times t, one in each of as many equal strata of 1, ..., T, stand for the whole sum; with
  terms = T it is every t once.

  Args:
    field, v: of `term`. x: 8-bit images [B, ...] in [-1, 1]. keys: [B].

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
    return total + term(field, x, x_t, t, v=v), None

  total = jax.lax.scan(step, jnp.zeros(len(x)), jnp.arange(terms))[0]
  return prior(field.path, x) + total * (n_steps / terms)


def hybrid(fn, x, keys, *, path, vlb_weight=1e-3, t=None, eps=None, log_cdf=norm.logcdf):
  """L_simple + vlb_weight L_vlb at one time an example, per example [B].

  arXiv:2102.09672, Eq. 16; survey Eq. 88. L_vlb, in bits per value, trains only the variance.

  Args:
    fn: of paths.learned_field: (x_t [B, ...], t [B]) -> [B, ..., 2C], with t = 1, ..., T.
    x: 8-bit images [B, ...] in [-1, 1]. keys: [B]. path: a paths.Discrete.
    t, eps: [B] and [B, ...] in place of uniform times and normal noise (tests, ablations).
    log_cdf: of likelihood.discretized_gaussian.
  """
  x, (k_t, k_eps) = x.astype(jnp.float32), noise.split(keys)
  t = noise.randint(k_t, 1, len(path.betas) + 1).astype(jnp.float32) if t is None else t
  eps = noise.normal(k_eps, x.shape[1:]) if eps is None else eps
  x_t = paths.interpolate(path, x, eps, t)
  mean, v = jnp.split(fn(x_t, t), 2, axis=-1)
  simple = jnp.mean((eps - mean) ** 2, axis=tuple(range(1, x.ndim)))
  fixed = jnp.concatenate([jax.lax.stop_gradient(mean), v], axis=-1)
  field = paths.learned_field(path, lambda *_: fixed)
  vlb = len(path.betas) * _bits(term(field, x, x_t, t, log_cdf=log_cdf), x)
  return simple + vlb_weight * vlb


def vlb(fn, x, keys, *, path, p, eps=None, log_cdf=norm.logcdf):
  """An unbiased estimate of L_0 + ... + L_{T-1} from one time an example, in bits per value.

  arXiv:2102.09672, Eq. 18: t is drawn with probability p[t - 1], its term divided by it.

  Args:
    fn, x, keys, path, eps, log_cdf: of `hybrid`. p: [T], of `time_weights`.

  Returns:
    (estimate [B], t [B], the terms L_{t-1} themselves [B]).
  """
  x, (k_t, k_eps) = x.astype(jnp.float32), noise.split(keys)
  i = jnp.searchsorted(jnp.cumsum(p), noise.uniform(k_t), side="right")
  i = jnp.minimum(i, len(p) - 1)  # the sum of p rounds to less than 1
  t = i + 1.0
  eps = noise.normal(k_eps, x.shape[1:]) if eps is None else eps
  x_t = paths.interpolate(path, x, eps, t)
  field = paths.learned_field(path, fn)
  terms = _bits(term(field, x, x_t, t, log_cdf=log_cdf), x)
  return terms / p[i], t, terms


def time_weights(history, count, *, uniform=1e-3):
  """Probabilities [T] of the times, by the terms last seen: p_t ~ sqrt(E L_t^2).

  arXiv:2102.09672, Eq. 18 and Sec. 3.3. They are equal until every time has a full history.

  history, count: [T, N] and [T], of `time_history`. uniform: share of equal probabilities.
  """
  n_steps, n = history.shape
  size = jnp.sqrt(jnp.mean(history**2, axis=1))
  p = (1.0 - uniform) * size / jnp.sum(size) + uniform / n_steps
  return jnp.where(jnp.all(count >= n), p, 1.0 / n_steps)


def time_history(history, count, t, terms):
  """(history [T, N], count [T]) after a batch: the last N terms of each time, and how many it had.

  arXiv:2102.09672, Sec. 3.3. The same on every device: rows are gathered, and taken in order.

  history, count: float32 [T, N] and int32 [T], zero at first. t: [B] in 1, ..., T. terms: [B].
  """
  t, terms = axis.gather((t.astype(jnp.int32), jax.lax.stop_gradient(terms)))
  n_steps, n = history.shape
  same, row = t[:, None] == t[None, :], jnp.arange(len(t))
  earlier = jnp.sum(same & (row[:, None] > row[None, :]), axis=1)
  later = jnp.sum(same, axis=1) - earlier - 1
  i = jnp.where(later < n, t - 1, n_steps)  # of more than N equal times the last N are kept
  slot = (count[t - 1] + earlier) % n
  return history.at[i, slot].set(terms, mode="drop"), count.at[t - 1].add(1)


def _steps(path):
  return jnp.arange(1, len(path.betas) + 1)


def _bits(nats, x):
  return nats / (math.prod(x.shape[1:]) * math.log(2.0))


def _sum(x):
  return jnp.sum(x, axis=tuple(range(1, x.ndim)))

"""Denoising score matching, in the parameterisations that papers use."""

import jax.numpy as jnp

from jaxgen import noise, paths
from jaxgen.objectives import preconditioning


def simple(eps_fn, x, keys, *, path=paths.Discrete(), t=None, eps=None):
  """L_simple: |eps - eps_theta(x_t, t)|^2, per example [B].

  arXiv:2006.11239, Eq. 14; survey Eq. 83, Box 8. The mean over pixels takes the place of the
  paper's sum, as in its code.

  Args:
    eps_fn: (x_t [B, ...], t [B]) -> [B, ...], with t = 1, ..., T.
    x: data [B, ...]. keys: [B].
    path: a paths.Discrete.
    t, eps: [B] and [B, ...] in place of uniform times and normal noise (tests, ablations).
  """
  x = x.astype(jnp.float32)
  k_t, k_eps = noise.split(keys)
  t = noise.randint(k_t, 1, len(path.betas) + 1).astype(jnp.float32) if t is None else t
  eps = noise.normal(k_eps, x.shape[1:]) if eps is None else eps
  error = eps - eps_fn(paths.interpolate(path, x, eps, t), t)
  return jnp.mean(error**2, axis=tuple(range(1, x.ndim)))


def variance(path, t):
  """lambda = sigma^2, elementwise in t, path.t_noise to path.t_data: every level counts alike.

  arXiv:2011.13456, Sec. 3.3, 1 / E |grad log p_0t|^2 but for a constant.
  """
  return path.sigma(t) ** 2


def likelihood(path, t):
  """lambda = g^2, elementwise in t, path.t_noise to path.t_data, which grows with the noise.

  The loss is then a bound on the log-likelihood but for a constant. arXiv:2101.09258, Sec. 4.
  """
  return paths.sde(path, t)[1]


def denoising(eps_fn, x, keys, *, path=paths.VP(), t_min=1e-5, weight=variance, t=None, eps=None):
  """lambda(t) |s(x_t, t) - grad log p_0t(x_t | x)|^2, per example [B]. arXiv:2011.13456, Eq. 7.

  The score is s = -eps_fn / sigma. The mean over pixels takes the place of the paper's sum, as in
  its code with reduce_mean; without, the code has half the sum.

  Args:
    eps_fn: (x_t [B, ...], t [B]) -> [B, ...].
    x: data [B, ...]. keys: [B].
    path: whose t grows with the noise, to path.t_noise.
    t_min: the smallest of the uniform times, above 0, where the score of the data would be needed.
    weight: (path, t) -> lambda: `variance` or `likelihood`.
    t, eps: [B] and [B, ...] in place of uniform times and normal noise (tests, ablations).
  """
  x = x.astype(jnp.float32)
  k_t, k_eps = noise.split(keys)
  t = noise.uniform(k_t, (), t_min, path.t_noise) if t is None else t
  eps = noise.normal(k_eps, x.shape[1:]) if eps is None else eps
  error = eps - eps_fn(paths.interpolate(path, x, eps, t), t)
  square = jnp.mean(error**2, axis=tuple(range(1, x.ndim)))
  return weight(path, t) / variance(path, t) * square


def edm(denoiser, x, keys, *, row=preconditioning.EDM(), u=None, eps=None):
  """lambda(sigma) |D(x + sigma eps, sigma) - x|^2, per example [B]. arXiv:2206.00364, Eq. 2, 8.

  sigma and lambda are those of Table 1. The mean over pixels takes the place of the paper's sum.

  Args:
    denoiser: (x + sigma eps [B, ...], sigma [B]) -> [B, ...], as of `preconditioning.denoiser`.
    x: data [B, ...]. keys: [B].
    row: an object of `preconditioning`: the paper's own, VP, VE or iDDPM.
    u, eps: [B] and [B, ...] in place of `row.draw` and normal noise (tests, ablations).
  """
  x = x.astype(jnp.float32)
  k_sigma, k_eps = noise.split(keys)
  sigma = row.sigma(row.draw(k_sigma) if u is None else u)
  eps = noise.normal(k_eps, x.shape[1:]) if eps is None else eps
  error = denoiser(x + paths.expand(sigma, x) * eps, sigma) - x
  return row.weight(sigma) * jnp.mean(error**2, axis=tuple(range(1, x.ndim)))

"""Our log-probabilities and divergences beside torch.distributions."""

import jax
import numpy as np
import pytest
import torch
from torch import distributions as td

from jaxgen.objectives import elbo, likelihood

close = lambda ours, theirs: np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
normals = lambda n: np.random.default_rng(n).standard_normal((n, 5, 3)).astype(np.float32)
normal = lambda mean, log_var: td.Normal(torch.tensor(mean), torch.tensor(0.5 * log_var).exp())


def test_kl_is_theirs():
  mean, log_var, mean_p, log_var_p = normals(4)
  theirs = td.kl_divergence(normal(mean, log_var), normal(mean_p, log_var_p))
  close(elbo.normal_kl(mean, log_var, mean_p, log_var_p), theirs)
  prior = normal(np.zeros_like(mean), np.zeros_like(mean))
  close(elbo.standard_kl(mean, log_var), td.kl_divergence(normal(mean, log_var), prior).sum(-1))


def test_pixels_are_theirs():
  x, mean, log_var = normals(3)
  close(likelihood.gaussian(x, mean, log_var), normal(mean, log_var).log_prob(torch.tensor(x)))
  coins, logits = (x > 0).astype(np.float32), 5.0 * mean
  theirs = td.Bernoulli(logits=torch.tensor(logits)).log_prob(torch.tensor(coins))
  close(likelihood.bernoulli(coins, logits), theirs)


@pytest.mark.evidence("V03", "G")
def test_the_bound_and_its_gradients_are_theirs():
  """A linear decoder, the same noise: both terms, and slopes along mean and log variance."""
  x, mean, log_var, eps, w = normals(5)
  w = w[:3]

  def ours(mean, log_var):
    log_likelihood = lambda z: likelihood.gaussian(x, z @ w, 0.0).sum(-1)
    keys = jax.random.split(jax.random.key(0), len(x))
    terms = elbo.gaussian_bound(log_likelihood, mean, log_var, keys, eps=eps)
    return (terms[0] - terms[1]).sum(), terms

  slopes, terms = jax.grad(ours, (0, 1), has_aux=True)(mean, log_var)
  leaves = [torch.tensor(a, requires_grad=True) for a in (mean, log_var)]
  q = td.Normal(leaves[0], (0.5 * leaves[1]).exp())
  z = q.loc + q.scale * torch.tensor(eps)
  likelihood_torch = td.Normal(z @ torch.tensor(w), 1.0).log_prob(torch.tensor(x)).sum(-1)
  kl = td.kl_divergence(q, td.Normal(0.0, 1.0)).sum(-1)
  (likelihood_torch - kl).sum().backward()
  close(terms[0], likelihood_torch.detach())
  close(terms[1], kl.detach())
  for slope, leaf in zip(slopes, leaves, strict=True):
    np.testing.assert_allclose(slope, leaf.grad, rtol=1e-4, atol=1e-5)

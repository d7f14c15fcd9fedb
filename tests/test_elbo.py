"""Bounds where the evidence and the posterior are exact.

`LINEAR`: p(z) = N(0, I), p(x | z) = N(Wz + b, s^2); the columns of W are orthogonal, so that the
posterior's covariance is diagonal. `CHAIN`: z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1).
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from scipy import stats

from jaxgen import noise
from jaxgen.core import axis
from jaxgen.objectives import elbo, likelihood

KEY = jax.random.key
RNG = np.random.default_rng(0)
N = 4000  # draws of each statistic
W = np.float32(np.linalg.qr(RNG.standard_normal((4, 2)))[0].T * [[1.5], [0.7]])
B = np.float32([[0.3, -0.2, 0.1, 0.5]])
STD = 0.6
X = np.float32(RNG.standard_normal((3, 4)))
EVIDENCE = stats.multivariate_normal(B[0], W.T.astype(float) @ W + STD**2 * np.eye(4)).logpdf(X)
VAR = np.tile(1.0 / (1.0 + (W**2).sum(1) / STD**2), (3, 1))
POSTERIOR = tuple(map(np.float32, ((X - B) @ W.T * VAR / STD**2, np.log(VAR))))
OTHER = (POSTERIOR[0] + np.float32([[0.3, -0.4]]), POSTERIOR[1] + np.float32([[0.9, -0.4]]))
ESTIMATORS = {"iwae": elbo.iwae, "stl": elbo.stl, "dreg": elbo.dreg}


def log_likelihood(z, w=W):
  """log p(x | z) [3]; z: [3, 2]."""
  return likelihood.gaussian(X, z @ w + B, 2.0 * math.log(STD)).sum(1)


def log_weight(q, z, w=W):
  ratio = likelihood.gaussian(z, 0.0, 0.0) - likelihood.gaussian(z, *q)
  return log_likelihood(z, w) + ratio.sum(1)


def draw(q, keys):
  return elbo.reparameterize(keys, *q)


def many(fn, rows, seed=0, n=N):
  """fn(keys [rows]) n times, stacked: one compiled call."""
  return jax.jit(lambda key: jax.vmap(fn)(jax.random.split(key, (n, rows))))(KEY(seed))


def error(draws):
  """Five standard errors of the mean of draws [N, ...]."""
  return 5.0 * np.std(draws, axis=0) / math.sqrt(len(draws)) + 1e-5


def agree(draws, others):
  """Whether the means of two sets of draws are one, entry by entry."""
  gap = np.abs(np.mean(draws, axis=0) - np.mean(others, axis=0))
  return gap <= np.hypot(error(draws), error(others))


@pytest.mark.parametrize("q", [POSTERIOR, OTHER], ids=["posterior", "other"])
def test_the_bound_lies_below_the_evidence_by_the_kl_to_the_posterior(q):
  def bound(keys):
    reconstruction, kl = elbo.gaussian_bound(log_likelihood, *q, keys)
    return reconstruction - kl

  bounds = many(bound, 3)
  gap = elbo.normal_kl(*q, *POSTERIOR).sum(1)
  assert (gap == 0.0).all() == (q is POSTERIOR) and (q is POSTERIOR or (gap > 0.1).all())
  assert (np.abs(EVIDENCE - gap - bounds.mean(0)) < error(bounds)).all()


def test_weights_at_the_posterior_are_the_evidence():
  """Without variance: every draw, and the bound of any number of them."""
  weights = many(lambda keys: elbo.log_weights(log_likelihood, *POSTERIOR, keys, samples=5), 3, n=9)
  np.testing.assert_allclose(weights, np.broadcast_to(EVIDENCE, (9, 5, 3)), rtol=2e-6)
  for estimator in ESTIMATORS.values():
    bounds = many(lambda keys, e=estimator: e(draw, log_weight, POSTERIOR, keys, samples=5), 3, n=9)
    np.testing.assert_allclose(bounds, np.broadcast_to(EVIDENCE, (9, 3)), rtol=2e-6)


@pytest.mark.evidence("V09", "M")
def test_more_draws_bring_the_bound_nearer_to_the_evidence():
  """arXiv:1509.00519, Theorem 1, by more than the error of either mean."""
  weights = many(lambda keys: elbo.log_weights(log_likelihood, *OTHER, keys, samples=256), 3)
  parts = lambda k: weights[:, : 4 * k].reshape(-1, k, 3)
  bounds = [jax.vmap(elbo.importance_bound)(parts(k)) for k in (1, 4, 16, 64)]
  for few, more in zip(bounds, bounds[1:], strict=False):
    assert (more.mean(0) - few.mean(0) > np.hypot(error(few), error(more))).all()
  assert (bounds[-1].mean(0) < EVIDENCE + error(bounds[-1])).all()
  last = jax.vmap(elbo.importance_bound)(weights)
  # To first order the bound of K draws is too low by the variance of a weight over 2 K.
  slack = np.exp(weights - EVIDENCE[None, None]).var((0, 1)) / 512
  assert (np.abs(last.mean(0) - EVIDENCE) < error(last) + slack).all() and (slack < 0.01).all()


def test_a_batch_of_draws_is_draws_one_by_one():
  keys = jax.random.split(KEY(0), 3)
  one_by_one = jax.jit(functools.partial(elbo.log_weights, log_likelihood, samples=6))
  at_once = jax.jit(lambda q, keys: elbo.iwae(draw, log_weight, q, keys, samples=6))
  bound = elbo.importance_bound(one_by_one(*OTHER, keys))
  np.testing.assert_allclose(at_once(OTHER, keys), bound, rtol=1e-5)


def test_a_divergence_by_draws_has_the_exact_mean():
  p = OTHER
  log_density = lambda q: lambda z: likelihood.gaussian(z, *q)
  kl = lambda p: many(
    lambda keys: elbo.monte_carlo_kl(log_density(POSTERIOR), log_density(p), draw(POSTERIOR, keys)),
    3,
  )
  exact = elbo.normal_kl(*POSTERIOR, *p).sum(1)
  assert (exact > 0.1).all() and (np.abs(kl(p).mean(0) - exact) < error(kl(p))).all()
  assert (kl(POSTERIOR) == 0.0).all()


def slopes(q, k, n=N):
  """By estimator, gradients of the sum of bounds: by q [n, 3, 4], and by W [n, 2, 4]."""

  def bound(q, w, keys, estimator):
    return estimator(draw, functools.partial(log_weight, w=w), q, keys, samples=k).sum()

  def each(keys):
    by = lambda e: jax.grad(bound, (0, 1))(q, W, keys, e)
    return {name: (jnp.concatenate(by(e)[0], -1), by(e)[1]) for name, e in ESTIMATORS.items()}

  return many(each, 3, n=n)


@pytest.mark.parametrize("k", [1, 5])
def test_at_the_posterior_the_path_gradient_is_zero_in_every_draw(k):
  found = slopes(POSTERIOR, k, n=50)
  plain, w = found["iwae"]
  assert np.abs(plain).max() > 0.1 and np.abs(w).max() > 1.0
  for name in ("stl", "dreg"):
    assert np.abs(found[name][0]).max() < 2e-5  # float32: of terms up to 10


def test_with_one_draw_all_gradients_have_the_exact_mean():
  """Of log p(x) - KL(q || posterior). The doubly reparameterised one is then the path gradient."""
  exact = jax.jit(jax.grad(lambda q: -elbo.normal_kl(*q, *POSTERIOR).sum()))(OTHER)
  exact, found = np.concatenate(exact, -1), slopes(OTHER, 1)
  for by_q, by_w in found.values():
    assert (np.abs(by_q.mean(0) - exact) < error(by_q)).all()
    np.testing.assert_allclose(by_w, found["iwae"][1], rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(found["dreg"][0], found["stl"][0], rtol=1e-5, atol=1e-6)


def test_with_more_draws_the_doubly_reparameterised_gradient_is_unbiased():
  """arXiv:1810.04152, Eq. 8. Its mean is the plain one's; that of sticking the landing is not."""
  found = slopes(OTHER, 8, 20_000)
  plain, by_w = found["iwae"]
  assert agree(plain, found["dreg"][0]).all()
  assert not agree(plain, found["stl"][0]).any(-1).all()
  assert found["dreg"][0].var(0).mean() < 0.5 * plain.var(0).mean()
  for name in ("stl", "dreg"):
    np.testing.assert_allclose(found[name][1], by_w, rtol=1e-4, atol=1e-4)


X_CHAIN = jnp.array([0.5, -1.0])


def chain_draw(q, keys):
  """z1 ~ N(a, e^c), z2 ~ N(d z1, e^f)."""
  keys = noise.split(keys)
  z1 = elbo.reparameterize(keys[0], q["a"], q["c"])
  return z1, elbo.reparameterize(keys[1], q["d"] * z1, q["f"])


def chain_log_weight(q, z):
  z1, z2 = z
  gaussian = likelihood.gaussian
  p = gaussian(X_CHAIN, z1, 0.0) + gaussian(z1, z2, 0.0) + gaussian(z2, 0.0, 0.0)
  return p - gaussian(z1, q["a"], q["c"]) - gaussian(z2, q["d"] * z1, q["f"])


CHAIN = {
  "a": X_CHAIN * 2 / 3,
  "c": jnp.full(2, math.log(2 / 3)),
  "d": jnp.full(2, 0.5),
  "f": jnp.full(2, math.log(0.5)),
}  # the posterior


def chain_slopes(q, k, n=N):
  """By estimator, gradients of the sum of bounds by the four numbers of q, [n, 2, 4]."""

  def bound(q, keys, estimator):
    return estimator(chain_draw, chain_log_weight, q, keys, samples=k).sum()

  def each(keys):
    by = lambda e: jnp.stack(list(jax.grad(bound)(q, keys, e).values()), -1)
    return {name: by(e) for name, e in ESTIMATORS.items()}

  return many(each, 2, n=n)


def test_estimators_hold_where_one_latent_is_drawn_given_another():
  """No variance at the posterior of the chain; unbiased elsewhere."""
  bounds = many(
    lambda keys: elbo.iwae(chain_draw, chain_log_weight, CHAIN, keys, samples=3), 2, n=9
  )
  evidence = jnp.broadcast_to(likelihood.gaussian(X_CHAIN, 0.0, math.log(3.0)), (9, 2))
  np.testing.assert_allclose(bounds, evidence, rtol=1e-5)
  found = chain_slopes(CHAIN, 3, n=50)
  assert np.abs(found["iwae"]).max() > 0.1
  assert np.abs(found["stl"]).max() < 2e-5 and np.abs(found["dreg"]).max() < 2e-5
  found = chain_slopes(jax.tree.map(lambda v: v + 0.4, CHAIN), 4)
  assert agree(found["iwae"], found["dreg"]).all()


def test_a_hierarchy_is_exact_at_its_posterior():
  """Top down: q(z2 | x) = N(x / 3, 2 / 3), q(z1 | z2, x) = N((z2 + x) / 2, 1 / 2)."""
  log_var = lambda v: jnp.full(2, math.log(v))

  def bound(keys):
    keys = noise.split(keys)
    z2 = elbo.reparameterize(keys[0], X_CHAIN / 3, log_var(2 / 3))
    mean = 0.5 * (z2 + X_CHAIN)
    z1 = elbo.reparameterize(keys[1], mean, log_var(0.5))
    kls = [
      elbo.standard_kl(X_CHAIN / 3, log_var(2 / 3)),
      elbo.normal_kl(mean, log_var(0.5), z2, 0.0),
    ]
    return elbo.hierarchical_bound(likelihood.gaussian(X_CHAIN, z1, 0.0), jnp.stack(kls, 1))

  bounds = many(bound, 2)
  exact = likelihood.gaussian(X_CHAIN, 0.0, math.log(3.0))
  assert (np.abs(bounds.mean(0) - exact) < error(bounds)).all()


def test_an_unknown_label_is_summed_out():
  """With q(y | x) = p(y | x) the bound is exact; with another it is below, by the KL to that."""
  joint = 3.0 * jax.random.normal(KEY(0), (6, 10))  # log p(x, y)
  exact = jax.nn.logsumexp(joint, axis=1)
  posterior = jax.nn.log_softmax(joint)
  np.testing.assert_allclose(elbo.marginal_bound(joint, posterior), exact, rtol=1e-5)
  log_q = jax.nn.log_softmax(jax.random.normal(KEY(1), (6, 10)))
  q, bound = np.exp(np.float64(log_q)), elbo.marginal_bound(joint, log_q)
  sums = [sum(q[i, y] * (joint[i, y] - np.log(q[i, y])) for y in range(10)) for i in range(6)]
  np.testing.assert_allclose(bound, sums, rtol=1e-5)
  np.testing.assert_allclose(exact - bound, (q * (log_q - posterior)).sum(1), rtol=1e-5)
  assert (bound < exact - 0.1).all()


def test_beta_one_is_the_bound_and_the_capacity_is_where_the_gradient_turns():
  reconstruction, kl = jnp.array([-3.0, -1.0]), jnp.array([2.0, 6.0])
  np.testing.assert_allclose(elbo.beta(reconstruction, kl, beta=1.0), kl - reconstruction)
  np.testing.assert_allclose(elbo.beta(reconstruction, kl, beta=4.0), [11.0, 25.0])
  loss = lambda kl, c: elbo.capacity(reconstruction, kl, gamma=30.0, capacity=c).sum()
  np.testing.assert_allclose(loss(kl, 5.0), 3.0 + 1.0 + 30.0 * (3.0 + 1.0))
  np.testing.assert_allclose(jax.grad(loss)(kl, 5.0), [-30.0, 30.0])
  np.testing.assert_allclose(jax.grad(loss)(kl, 0.0), [30.0, 30.0])


def test_free_bits_are_of_the_global_batch():
  """Three groups, 0.5 nats: below on both devices, above on one, above on both."""
  kl = jnp.float32([[0.1, 0.1, 0.9], [0.2, 0.3, 0.8], [0.3, 1.0, 0.7], [0.2, 0.8, 0.6]])
  value_and_grad = jax.value_and_grad(functools.partial(elbo.free_bits, nats=0.5))
  value, grad = jax.jit(value_and_grad)(kl)
  np.testing.assert_allclose(value, 0.5 + 0.55 + 0.75, rtol=1e-6)
  np.testing.assert_allclose(grad, np.tile([0.0, 0.25, 0.25], (4, 1)))

  def step(shift, kl):  # a parameter that every row shares
    return axis.mean(jax.value_and_grad(lambda s: elbo.free_bits(kl * s[None], nats=0.5))(shift))

  mesh = Mesh(np.asarray(jax.devices()[:2]), (axis.NAME,))
  specs = dict(in_specs=(P(), P(axis.NAME)), out_specs=P(), check_vma=False)
  two = jax.jit(jax.shard_map(step, mesh=mesh, **specs))(jnp.ones(3), kl)
  one = jax.jit(step)(jnp.ones(3), kl)
  np.testing.assert_allclose(one[1], [0.0, 0.55, 0.75], rtol=1e-6)
  jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-6), two, one)


def test_no_draws_are_refused():
  keys = jax.random.split(KEY(0), 3)
  for estimator in ESTIMATORS.values():
    with pytest.raises(ValueError, match="samples=0: expected a whole number, 1 or more"):
      estimator(draw, log_weight, OTHER, keys, samples=0)
  with pytest.raises(ValueError, match="samples=0"):
    elbo.log_weights(log_likelihood, *OTHER, keys, samples=0)

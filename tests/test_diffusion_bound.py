"""The bound of diffusion models: its chain, its terms, and the distribution that it bounds."""

import functools

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData

from jaxgen import noise, paths
from jaxgen.objectives import diffusion_elbo, elbo, likelihood
from jaxgen.samplers import guidance

KEY = jax.random.key
T = 20
PATH = paths.Discrete(tuple(np.linspace(0.01, 0.4, T).tolist()))
DATA = GaussianData(mean=0.1, std=0.2)  # 4.5 std from the outermost values


def reverse_variance(path, t):
  """Of q(x_{t-1} | x_t) for DATA: what is left of x_{t-1} once x_t is known."""
  q, alpha = paths.posterior(path, t, t - 1.0), path.alpha(t)
  known = alpha**2 * DATA.std**2 / (alpha**2 * DATA.std**2 + path.sigma(t) ** 2)
  return q.small + q.x_weight**2 * DATA.std**2 * (1.0 - known)


def exact_field(path):
  """DATA's field with the v whose variance is that of the chain run backwards."""

  def predict(x_t, t):
    p, t = DATA.field(path).predict(x_t, t), paths.expand(t, x_t)
    q = paths.posterior(path, t, t - 1.0)
    small = jnp.log(jnp.where(t > 1.0, q.small, paths.posterior(path, 2.0, 1.0).small))
    v = (jnp.log(reverse_variance(path, t)) - small) / (jnp.log(q.large) - small)
    return p._replace(v=jnp.broadcast_to(v, x_t.shape))

  return paths.Field(path, predict)


def evidence(field, x, v=1.0):
  """log P(x) of one 8-bit value under the reverse chain of DATA's field, exactly: it is Gaussian.

  The chain is linear, so its two ends say what each step does.
  """
  at = lambda x_t: diffusion_elbo._reverse(
    field, jnp.full((T, 1), x_t), jnp.arange(T, 0.0, -1.0), v
  )[:2]
  (m0, log_var), (m1, _) = at(0.0), at(1.0)
  mean, var = 0.0, 1.0
  for start, slope, own in np.hstack([m0, m1 - m0, jnp.exp(log_var)]):
    mean, var = start + slope * mean, slope**2 * var + own
  return likelihood.discretized_gaussian(x, mean, 0.5 * jnp.log(var))[:, 0]


def quadrature(n=24):
  """Nodes of DATA and of normal noise in one dimension, [n^2, 1] each, and their weights [n^2]."""
  z, w = np.polynomial.hermite_e.hermegauss(n)
  x, eps = np.meshgrid(z, z, indexing="ij")
  column = lambda a: jnp.asarray(a.reshape(-1, 1), jnp.float32)
  return column(DATA.mean + DATA.std * x), column(eps), np.outer(w, w).ravel() / (2.0 * np.pi)


@pytest.mark.evidence("D01", "M")
def test_the_forward_chain_has_the_marginals_of_the_path():
  """Survey Eq. 76-78: T small steps make what `interpolate` makes at once, and end in noise."""
  x = jnp.full((20_000, 1), 0.8)
  xs = jax.jit(functools.partial(diffusion_elbo.chain, PATH))(x, noise.rows(KEY(0), 20_000))
  assert xs.shape == (T + 1, 20_000, 1) and jnp.array_equal(xs[0], x)
  t = jnp.arange(1.0, T + 1)
  np.testing.assert_allclose(xs[1:].mean((1, 2)), 0.8 * PATH.alpha(t), atol=0.03)  # 4 / 20,000^.5
  np.testing.assert_allclose(xs[1:].std((1, 2)), PATH.sigma(t), rtol=0.02)
  once = jnp.zeros((T, 1, 1)).at[4].set(1.0)  # noise of step 5 alone, scaled by what follows
  xs = diffusion_elbo.chain(PATH, jnp.zeros((1, 1)), noise.rows(KEY(0), 1), eps=once)
  exact = np.sqrt(PATH.betas[4] * np.prod(1.0 - np.asarray(PATH.betas[5:])))
  np.testing.assert_allclose(xs[-1, 0, 0], exact, rtol=1e-5)
  np.testing.assert_array_equal(xs[:5], 0.0)


@pytest.mark.evidence("D01", "M")
def test_terms_of_the_exact_reverse_chain_sum_to_the_entropy_of_the_data():
  """At the optimum of survey Eq. 81 the bound is tight over the data, however long the steps are.

  -E sum L = E log P(x) with P the data's distribution, but for x_T, which is not quite noise.
  """
  x, eps, w = quadrature()
  eps = jnp.broadcast_to(eps, (T, *eps.shape))

  @functools.partial(jax.jit, static_argnums=0)
  def run(field):
    return diffusion_elbo.terms(field, x, noise.rows(KEY(0), len(x)), eps=eps) @ w

  terms = run(exact_field(PATH))
  assert terms.shape == (T + 1,) and (terms[1:] > 0.0).all()
  alpha, sigma = PATH.alpha(float(T)), PATH.sigma(float(T))
  end = elbo.normal_kl(alpha * DATA.mean, jnp.log(alpha**2 * DATA.std**2 + sigma**2), 0.0, 0.0)
  entropy = 0.5 * np.log(2.0 * np.pi * np.e * DATA.std**2) - np.log(likelihood.BIN)
  # 1e-3: the last step's Gaussian, std 0.1, is integrated over bins of 0.008
  np.testing.assert_allclose(terms.sum(), entropy + end, atol=1e-3)
  for v in (0.0, 1.0):  # either fixed variance costs nats at every step, which a learned one saves
    change = lambda p, v=v: p._replace(v=jnp.full_like(p.x, v))
    fixed = paths.Field(PATH, lambda x_t, t, c=change: c(exact_field(PATH).predict(x_t, t)))
    assert (run(fixed)[1:-1] > terms[1:-1]).all()


@pytest.mark.evidence("D01", "M")
@pytest.mark.parametrize("v", [0.0, 1.0])
def test_the_bound_is_below_the_evidence_of_its_own_chain(v):
  """For each x -sum L <= log P(x), and the mean of exp(log ratio) over chains is P(x) itself."""
  field, n = DATA.field(PATH), 10_000
  pixels = jnp.array([-0.2, 0.1, 0.4])
  x = jnp.round((jnp.repeat(pixels, n)[:, None] + 1.0) * 127.5) / 127.5 - 1.0
  keys = noise.rows(KEY(1), len(x))

  @jax.jit
  def run(x, keys):
    xs = diffusion_elbo.chain(PATH, x, keys)
    terms = diffusion_elbo.terms(field, x, noise.fold_in(keys, 1), v=v)
    return diffusion_elbo.ratio(field, xs, v=v), terms

  ratio, terms = run(x, keys)
  ratio, bound = ratio.reshape(3, n), -terms.sum(0).reshape(3, n)
  exact = evidence(field, x[::n], v)
  error = lambda a: 5.0 * a.std(1) / n**0.5
  assert (bound.mean(1) < exact).all() and (exact - bound.mean(1) < 1.0).all()
  # Two estimates of one bound: survey Eq. 80, from a chain, and Eq. 81, from T separate times.
  np.testing.assert_array_less(jnp.abs(ratio.mean(1) - bound.mean(1)), error(ratio) + error(bound))
  weight = jnp.exp(ratio - exact[:, None])  # arXiv:1503.03585, Eq. 9
  np.testing.assert_array_less(jnp.abs(weight.mean(1) - 1.0), error(weight))


@pytest.mark.evidence("D01", "M")
def test_the_entropies_of_the_first_paper_are_the_two_ends_of_the_sum():
  """C of survey Eq. 81 is -(L_0 + L_T), with L_0 of the step that undoes the first one."""
  x = jnp.sqrt(3.0) * jnp.array([-1.0, 0.0, 1.0])  # mean 0, variance 1 with these weights
  w = np.array([1.0, 4.0, 1.0]) / 6.0
  path, n_dims = PATH, 1
  log_pi = lambda second_moment: -0.5 * (second_moment + np.log(2.0 * np.pi))
  first = 0.5 * np.log(2.0 * np.pi * np.e * path.sigma(1.0) ** 2)  # H_q(x_1 | x_0)
  second_moment = path.alpha(1.0) ** 2 + path.sigma(1.0) ** 2
  decoder = -first + log_pi(1.0) - log_pi(second_moment)  # E log q(x_1 | x_0) pi(x_0) / pi(x_1)
  prior = diffusion_elbo.prior(path, x[:, None]) @ w
  np.testing.assert_allclose(diffusion_elbo.constant(path, n_dims), decoder - prior, rtol=1e-5)
  twice = diffusion_elbo.constant(path, 2)
  np.testing.assert_allclose(twice, 2.0 * (decoder - prior), rtol=1e-5)


def test_the_strata_of_the_bound_and_its_terms_agree():
  """diffusion_bound with terms = T is the sum of the same terms, with other noise."""
  x = jnp.round((jax.random.normal(KEY(2), (4000, 1)) * 0.3 + 1.2) * 127.5) / 127.5 - 1.0
  field, keys = DATA.field(PATH), noise.rows(KEY(3), 4000)
  whole = jax.jit(lambda: diffusion_elbo.bound(field, x, keys, terms=T))()
  terms = jax.jit(lambda: diffusion_elbo.terms(field, x, noise.fold_in(keys, 0)))().sum(0)
  error = 4.0 * float(jnp.std(whole - terms)) / 4000**0.5
  np.testing.assert_allclose(terms.mean(), whole.mean(), atol=error)


@pytest.mark.evidence("D01", "G")
def test_golden_bound_term_by_term():
  """guided-diffusion's calc_bpd_loop: a cosine chain of 20 steps with learned variance."""
  given, close = golden.load("calc_bpd_loop_T20")
  rows = lambda a: jnp.moveaxis(jnp.asarray(a), -3, -1)  # channels last
  path, x = paths.Discrete(tuple(paths.cosine_betas(20).tolist())), rows(given["in.x_start"])

  def fn(x_t, t):
    t = paths.expand(t, x_t) - 1.0
    eps = 0.8 * jnp.tanh(x_t) * (0.5 + t / 2000) + 0.1 * jnp.cos(t / 100)
    return jnp.concatenate([eps, jnp.sin(3.0 * x_t)], axis=-1)

  field = guidance.clipped(paths.learned_field(path, fn))
  eps = rows(given["in.noise"])[::-1]  # ours begins with x_1
  run = functools.partial(diffusion_elbo.terms, field, log_cdf=likelihood.tanh_log_cdf)
  terms = jax.jit(run)(x, noise.rows(KEY(0), 2), eps=eps) / (x[0].size * np.log(2.0))
  # L_0 is left out, and 0.3 % of the sum: bins of probability 1e-6 are float32 noise in the source.
  close(terms[-2::-1].T, "vb", where=np.arange(20) < 19)
  close(terms[-1], "prior_bpd")
  close(terms.sum(0), "total_bpd", rtol=3e-3)

  @jax.jit
  def errors(t, eps):
    p = field.predict(paths.interpolate(path, x, eps, t), jnp.full(2, t))
    return jnp.mean((p.x - x) ** 2, (1, 2, 3)), jnp.mean((p.eps - eps) ** 2, (1, 2, 3))

  xstart_mse, mse = zip(
    *(errors(t, eps[int(t) - 1]) for t in np.arange(20.0, 0.0, -1)), strict=True
  )
  close(np.stack(xstart_mse, 1), "xstart_mse")
  close(np.stack(mse, 1), "mse")

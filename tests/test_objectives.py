"""Losses, bounds and densities against closed forms, then golden vectors."""

import functools
import math

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData
from scipy.stats import multivariate_normal, norm

from jaxgen import noise, paths
from jaxgen.objectives import (
  adversarial,
  change_of_variables,
  diffusion_elbo,
  elbo,
  likelihood,
  score,
  velocity,
)
from jaxgen.samplers import guidance

DATA = GaussianData()
keys = lambda: noise.rows(jax.random.key(0), 512)
X = DATA.mean + DATA.std * jax.random.normal(jax.random.key(1), (512, 3))
LEVELS = jnp.arange(256.0)[:, None] / 127.5 - 1.0


def test_flow_matching_of_a_known_network():
  """v = 0 leaves the squared length of the target, which is x - eps at every t."""
  eps = jax.random.normal(jax.random.key(2), X.shape)
  loss = velocity.flow_matching(lambda x, t: jnp.zeros_like(x), X, keys(), eps=eps)
  assert loss.shape == (512,)
  np.testing.assert_allclose(loss, ((X - eps) ** 2).mean(-1), rtol=1e-5)


@pytest.mark.parametrize(
  "loss, exact",
  [
    (velocity.flow_matching, DATA.field(paths.Linear()).velocity),
    (score.simple, lambda x, t: DATA.field(paths.Discrete()).predict(x, t).eps),
  ],
  ids=["flow matching", "denoising score matching"],
)
@pytest.mark.evidence("D02", "M")
@pytest.mark.evidence("R06", "M")
def test_the_exact_field_is_the_minimum(loss, exact):
  """The slope along a perturbation of the network vanishes there, and not beside it."""

  @jax.jit
  def slope(size):
    n = 100_000
    keys, x = noise.rows(jax.random.key(3), n), DATA.mean + DATA.std * _normal(4, n)
    fn = lambda size: loss(lambda x, t: exact(x, t) + size * jnp.sin(3.0 * x), x, keys).mean()
    return jax.grad(fn)(size)

  assert abs(slope(0.0)) < 0.01 < abs(slope(0.1))


def _normal(seed, n):
  return jax.random.normal(jax.random.key(seed), (n, 1))


def test_score_matching_draws_every_time_once_in_a_while():
  path = paths.Discrete(betas=(0.1, 0.2, 0.3))
  seen = []
  score.simple(lambda x, t: seen.append(t) or x, X, keys(), path=path)
  values, counts = np.unique(seen[0], return_counts=True)
  np.testing.assert_array_equal(values, [1.0, 2.0, 3.0])
  assert counts.min() > 512 / 3 * 0.8


@pytest.mark.parametrize("loss", [velocity.flow_matching, score.simple])
def test_losses_are_float32_for_low_precision_data(loss):
  fn = lambda x, t: x
  low = loss(fn, X.astype(jnp.bfloat16), keys())
  assert low.dtype == jnp.float32
  np.testing.assert_allclose(
    low.mean(), loss(fn, X, keys()).mean(), rtol=1e-2
  )  # 8 bits of mantissa


def test_kl_of_normals_is_its_integral():
  q, p = norm(0.3, np.exp(0.2)), norm(-0.5, np.exp(-0.1))
  z = np.linspace(-15.0, 15.0, 200_001)
  integral = np.trapezoid(q.pdf(z) * (q.logpdf(z) - p.logpdf(z)), z)
  np.testing.assert_allclose(elbo.normal_kl(0.3, 0.4, -0.5, -0.2), integral, rtol=1e-5)
  assert elbo.normal_kl(0.3, 0.4, 0.3, 0.4) == 0.0


def linear_gaussian():
  """x = W z + b + s n with z, n ~ N(0, I) and the columns of W orthogonal: p(z | x) is diagonal.

  Returns log p(x | z), log p(x), and mean and log variance of p(z | x), for 512 x.
  """
  w = jnp.array([[1.0, 0.5], [-1.0, 0.5], [0.0, 2.0]])
  b, s = jnp.array([[0.3, -0.2, 0.1]]), 0.7
  var = 1.0 / (1.0 + jnp.sum(w**2, 0) / s**2)
  mean = var[None] * ((X - b) @ w) / s**2
  log_likelihood = lambda z: likelihood.gaussian(X, z @ w.T + b, 2.0 * math.log(s)).sum(-1)
  exact = multivariate_normal(b[0], w @ w.T + s**2 * np.eye(3)).logpdf(X)
  return log_likelihood, exact, mean, jnp.broadcast_to(jnp.log(var)[None], mean.shape)


@pytest.mark.parametrize("shift, widen", [(0.0, 0.0), (0.5, 0.0), (-0.2, 0.7), (0.0, -1.0)])
@pytest.mark.evidence("V03", "M")
def test_the_elbo_misses_the_evidence_by_the_kl_to_the_posterior(shift, widen):
  """log p(x) - ELBO = KL(q || p(z | x)): nothing at the true posterior, and never below."""
  log_likelihood, exact, mean, log_var = linear_gaussian()
  q = mean + shift, log_var + widen

  @jax.jit
  def bound(keys):
    one = lambda k: elbo.gaussian_bound(log_likelihood, *q, noise.rows(k, 512))
    terms = jax.lax.map(one, keys)
    return terms[0] - terms[1]

  draws = bound(jax.random.split(jax.random.key(7), 400))  # [400, 512]
  gap = exact - draws.mean(0)
  kl = elbo.normal_kl(*q, mean, log_var).sum(-1)
  error = 5.0 * draws.std(0) / 20.0
  assert (jnp.abs(gap - kl) < error).all()
  np.testing.assert_allclose(gap.mean(), kl.mean(), atol=0.02)
  assert (kl.mean() > 0.1) == (shift != 0.0 or widen != 0.0)


def test_reparameterized_samples_have_the_moments_and_their_gradients():
  """d E[z^2] / d mean = 2 mean, d E[z^2] / d log_var = e^log_var."""
  keys = noise.rows(jax.random.key(8), 100_000)
  square = lambda m, v: jnp.mean(
    elbo.reparameterize(keys, jnp.full((100_000, 1), m), jnp.full((100_000, 1), v)) ** 2
  )
  value, slopes = jax.jit(jax.value_and_grad(square, (0, 1)))(0.5, -1.0)
  np.testing.assert_allclose(value, 0.25 + np.exp(-1.0), atol=0.01)
  np.testing.assert_allclose(slopes, [1.0, np.exp(-1.0)], atol=0.02)


@pytest.mark.evidence("V03", "M")
def test_standard_kl_is_survey_eq_3():
  mean, log_var = jax.random.normal(jax.random.key(9), (2, 4, 3))
  exact = 0.5 * (mean**2 + jnp.exp(log_var) - log_var - 1.0).sum(-1)
  np.testing.assert_allclose(elbo.standard_kl(mean, log_var), exact, rtol=1e-5)


def test_bernoulli_pixels_sum_to_one_and_keep_large_logits():
  logits = jnp.array([-200.0, -3.0, 0.0, 3.0, 200.0])
  p = jnp.exp(likelihood.bernoulli(jnp.array([[0.0], [1.0]]), logits[None]))
  np.testing.assert_allclose(p.sum(0), 1.0, rtol=1e-6)
  np.testing.assert_allclose(likelihood.bernoulli(1.0, -200.0), -200.0)


def test_gaussian_pixels_are_scipys():
  x, mean, log_var = jax.random.normal(jax.random.key(10), (3, 5, 4))
  exact = norm.logpdf(x, mean, np.exp(0.5 * log_var))
  np.testing.assert_allclose(likelihood.gaussian(x, mean, log_var), exact, rtol=1e-5, atol=1e-6)


def test_binarized_pixels_are_coins_of_their_brightness():
  x = jnp.broadcast_to(jnp.array([[-1.0, -0.5, 0.0, 1.0]]), (20_000, 4))
  b = likelihood.binarize(noise.rows(jax.random.key(11), len(x)), x)
  np.testing.assert_array_equal(jnp.unique(b), [0.0, 1.0])
  np.testing.assert_allclose(b.mean(0), [0.0, 0.25, 0.5, 1.0], atol=0.015)


@pytest.mark.evidence("G06", "M")
def test_gradient_penalty_of_a_linear_critic():
  """Its gradient is w at every point: (|w| - 1)^2, with |w| = 5; and none for |w| = 1."""
  x, x_fake = jax.random.normal(jax.random.key(12), (2, 512, 2))
  w = jnp.array([3.0, 4.0])
  penalty = lambda w: adversarial.gradient_penalty(lambda x: x @ w, keys(), x, x_fake)
  np.testing.assert_allclose(penalty(w), np.full(512, 16.0), rtol=1e-5)
  np.testing.assert_allclose(penalty(w / 5.0), np.zeros(512), atol=1e-6)
  slope = jax.grad(lambda w: penalty(w).mean())(w)
  np.testing.assert_allclose(slope, 2.0 * 4.0 * w / 5.0, rtol=1e-5)
  flat = jax.grad(lambda w: penalty(w).mean())(jnp.zeros(2))
  assert jnp.isfinite(flat).all()  # of a square root at 0


def test_gradient_penalty_is_taken_between_each_pair():
  """D(x) = |x|^2 / 2 has the gradient x; u is the weight of the data."""
  x, x_fake = jax.random.normal(jax.random.key(13), (2, 6, 2, 2, 1))
  u = jnp.linspace(0.0, 1.0, 6)
  critic = lambda x: 0.5 * jnp.sum(x**2, (1, 2, 3))
  ours = adversarial.gradient_penalty(critic, keys()[:6], x, x_fake, u=u)
  middle = u[:, None, None, None] * x + (1.0 - u)[:, None, None, None] * x_fake
  np.testing.assert_allclose(ours, (jnp.sqrt(2.0 * critic(middle)) - 1.0) ** 2, rtol=1e-5)


@pytest.mark.evidence("G06", "G")
def test_golden_wasserstein_losses():
  x, close = golden.load("gan_losses")
  real, fake = x["in.real"][:, 0], x["in.fake"][:, 0]
  close(adversarial.wasserstein_critic(real, fake), "wasserstein_d")
  close(adversarial.wasserstein_generator(fake), "wasserstein_g")


@pytest.mark.parametrize("log_std", [-7.0, -4.0, -1.0, 1.0])
def test_the_256_probabilities_of_a_pixel_sum_to_one(log_std):
  mean = jnp.linspace(-1.2, 1.2, 7)[None]
  p = jnp.exp(likelihood.discretized_gaussian(LEVELS, mean, log_std))
  np.testing.assert_allclose(p.sum(0), 1.0, rtol=1e-4)  # 256 float32 terms


def test_discretized_gaussian_keeps_its_tails():
  """Where 1 - 1 would be left of the difference of two distribution functions."""
  x, mean, std = LEVELS[200, 0], -0.5, 0.05
  up, down = ((x - mean + s * likelihood.BIN / 2) / std for s in (1, -1))
  exact = norm.logcdf(-down) + np.log1p(-np.exp(norm.logcdf(-up) - norm.logcdf(-down)))
  ours = likelihood.discretized_gaussian(x, mean, jnp.log(std))
  np.testing.assert_allclose(ours, exact, rtol=1e-4)
  slope = jax.grad(lambda m: likelihood.discretized_gaussian(x, m, jnp.log(std)))(mean)
  assert jnp.isfinite(slope) and slope > 0


def test_dequantized_pixels_stay_in_their_bins():
  x = likelihood.dequantize(noise.rows(jax.random.key(0), 256), LEVELS)
  np.testing.assert_array_equal(jnp.round((x + 1.0) * 127.5), jnp.arange(256.0)[:, None])


@pytest.mark.evidence("R06", "M")
def test_ode_log_prob_of_gaussian_data_is_its_density():
  """One dimension: Hutchinson's estimate is exact there. 1e-3: Heun's error with 100 steps."""
  x = X[:, :1]
  log_prob = change_of_variables.ode_log_prob
  exact = norm.logpdf(x[:, 0], DATA.mean, DATA.std)
  for path, ts in [(paths.Linear(), jnp.linspace(1.0, 0.0, 101)), (paths.VP(), None)]:
    ts = paths.times(path, 400)[::-1] if ts is None else ts
    ours = jax.jit(functools.partial(log_prob, DATA.field(path).velocity))(x, keys(), ts)
    # VP stops at t = 1e-3, where the data has a little noise, and starts from almost N(0, 1).
    np.testing.assert_allclose(ours, exact, atol=1e-3 if ts[0] == 1.0 else 2e-2)


def test_hutchinson_agrees_with_the_exact_trace_in_expectation():
  """A linear field that rotates and stretches: log-density N(z) + trace, whatever the rotation."""
  a = jnp.array([[0.4, 2.0], [-1.0, -0.1]])
  x = jnp.broadcast_to(jnp.array([0.3, -0.2]), (20_000, 2))
  run = functools.partial(change_of_variables.ode_log_prob, lambda x, t: x @ a.T)
  ours = jax.jit(run)(x, noise.rows(jax.random.key(5), len(x)), jnp.linspace(0.0, 1.0, 41))
  z = jax.scipy.linalg.expm(a) @ x[0]
  exact = norm.logpdf(z).sum() + jnp.trace(a)
  assert ours.std() > 0.5
  np.testing.assert_allclose(ours.mean(), exact, atol=4 * ours.std() / 20_000**0.5)


def test_diffusion_bound_is_below_the_evidence_and_its_terms_add_up():
  """Gaussian data in one dimension: the exact reverse mean leaves only the chain's steps."""
  path = paths.Discrete(tuple(np.linspace(1e-4, 0.2, 100)))
  x = jnp.round((X[:, :1] * 0.3 + 1.0) * 127.5) / 127.5 - 1.0
  field = GaussianData(DATA.mean * 0.3, DATA.std * 0.3).field(path)
  bound = jax.jit(functools.partial(diffusion_elbo.bound, field), static_argnames="terms")
  whole = bound(x, keys(), terms=100)
  evidence = -norm.logpdf(x[:, 0], DATA.mean * 0.3, DATA.std * 0.3) - np.log(likelihood.BIN)
  assert 0.0 < float(jnp.mean(whole - evidence)) < 0.2  # nats
  few = bound(x, keys(), terms=10)
  error = 4 * float(jnp.std(few - whole)) / 512**0.5
  np.testing.assert_allclose(few.mean(), whole.mean(), atol=error)


def test_bound_terms_out_of_range_are_refused():
  with pytest.raises(ValueError, match="terms=101: expected a whole number, 1 to 100"):
    path = paths.Discrete((0.01,) * 100)
    diffusion_elbo.bound(DATA.field(path), X, keys(), terms=101)


def test_golden_normal_kl():
  x, close = golden.load("normal_kl")
  close(elbo.normal_kl(*(x[f"in.{k}"] for k in ("mean1", "logvar1", "mean2", "logvar2"))), "kl")


def test_golden_discretized_gaussian():
  x, close = golden.load("discretized_gaussian_log_likelihood")
  log_cdf = likelihood.tanh_log_cdf
  ours = likelihood.discretized_gaussian(
    x["in.x"], x["in.means"], x["in.log_scales"], log_cdf=log_cdf
  )
  z = jnp.linspace(-5.0, 5.0, 1001)
  assert jnp.abs(jnp.exp(log_cdf(z)) - norm.cdf(z)).max() < 2e-4
  close(ours, "log_probs", where=np.asarray(ours) > -6)  # the source's float32 noise below


golden_term = functools.partial(diffusion_elbo.term, log_cdf=likelihood.tanh_log_cdf)


def _per_dim(nats, x):
  return np.asarray(nats) / x[0].size / np.log(2.0)


@pytest.mark.evidence("D02", "G")
def test_golden_terms_of_the_bound():
  x, close = golden.load("vlb_terms_bpd")
  path, t = paths.Discrete(), jnp.asarray(x["in.t"] + 1, jnp.float32)
  eps, v = np.split(x["in.model_output"], 2, axis=1)

  def predict(x_t, t):
    return paths.eps_field(path, lambda *_: eps).predict(x_t, t)._replace(v=(v + 1.0) / 2.0)

  field = paths.Field(path, predict)
  ours = golden_term(field, x["in.x_start"], x["in.x_t"], t)
  close(_per_dim(ours, x["in.x_t"]), "vb")
  close(field.predict(x["in.x_t"], t).x, "pred_xstart")


def test_golden_whole_bound():
  """guided-diffusion's calc_bpd_loop on a cosine chain of 20 steps with learned variance."""
  x, close = golden.load("calc_bpd_loop_T20")
  bar = lambda t: np.cos((t / 20 + 0.008) / 1.008 * np.pi / 2) ** 2
  path = paths.Discrete(tuple(min(1 - bar(i + 1) / bar(i), 0.999) for i in range(20)))
  eps_fn = lambda x_t, t: (
    0.8 * jnp.tanh(x_t) * (0.5 + (t - 1) / 2000) + 0.1 * jnp.cos((t - 1) / 100)
  )
  clipped = guidance.clipped(
    paths.eps_field(path, lambda x_t, t: eps_fn(x_t, paths.expand(t, x_t)))
  )
  field = paths.Field(
    path, lambda x_t, t: clipped.predict(x_t, t)._replace(v=(jnp.sin(3.0 * x_t) + 1.0) / 2.0)
  )
  start, terms = jnp.asarray(x["in.x_start"]), []
  for t in range(1, 21):
    t_rows = jnp.full(2, float(t))
    x_t = paths.interpolate(path, start, x["in.noise"][20 - t], t_rows)
    terms.insert(0, _per_dim(golden_term(field, start, x_t, t_rows), start))
  prior = _per_dim(diffusion_elbo.prior(path, start), start)
  # L_0 is left out, and 0.3 % of the sum: bins of probability 1e-6 are float32 noise in the source,
  # which subtracts distribution functions near one. test_golden_discretized_gaussian has the rest.
  close(np.stack(terms, 1), "vb", where=np.arange(20) < 19)
  close(prior, "prior_bpd")
  ours = np.stack(terms, 1).sum(1) + prior
  close(ours, "total_bpd", rtol=3e-3)


@pytest.mark.evidence("R06", "G")
def test_golden_conditional_flow_matching():
  x, close = golden.load("cfm_fm_lipman")
  with jax.enable_x64(True):
    path, t = paths.Linear(sigma_min=0.1), jnp.asarray(x["in.t"])
    close(paths.interpolate(path, x["in.x1"], x["in.epsilon"], t), "x_t")
    close(paths.velocity(path, x["in.x1"], x["in.epsilon"], t), "u_t")
    close(path.sigma(t), "sigma_t")

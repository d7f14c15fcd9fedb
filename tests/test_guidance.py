"""Guidance: closed forms on Gaussian data, independence from the batch, golden vectors."""

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData

from jaxgen import paths
from jaxgen.samplers import ancestral, guidance, ode

DATA, Y, TAU = GaussianData(), 1.5, 0.4  # a label y = x + TAU noise, seen to be Y
PATHS = [paths.VP(), paths.EDM(), paths.Linear()]
by_type = lambda value: type(value).__name__
keys = lambda n: jax.random.split(jax.random.key(0), n)


def log_prob_fn(path):
  """Exact log p(y | x_t): y is normal around E[x | x_t]. Constants are left out."""

  def fn(x_t, t):
    a, s = path.alpha(paths.expand(t, x_t)), path.sigma(paths.expand(t, x_t))
    variance = DATA.std**2 * s**2 / (a**2 * DATA.std**2 + s**2) + TAU**2
    error = Y - DATA.field(path).predict(x_t, t).x
    return jnp.sum(-0.5 * error**2 / variance, axis=tuple(range(1, x_t.ndim)))

  return fn


precision = 1.0 / DATA.std**2 + 1.0 / TAU**2
POSTERIOR = GaussianData((DATA.mean / DATA.std**2 + Y / TAU**2) / precision, precision**-0.5)


def inputs(path, n=4):
  t = jnp.linspace(0.2, 0.8, n)
  return jax.random.normal(jax.random.key(1), (n, 5)) * (path.alpha(t) + path.sigma(t))[:, None], t


def agree(ours, theirs, **tolerance):
  np.testing.assert_allclose(ours.x, theirs.x, **tolerance)
  np.testing.assert_allclose(ours.eps, theirs.eps, **tolerance)


@pytest.mark.evidence("D09", "M")
@pytest.mark.parametrize("path", PATHS, ids=by_type)
def test_classifier_guidance_gives_the_field_of_the_posterior(path):
  x_t, t = inputs(path)
  guided = guidance.classifier(DATA.field(path), log_prob_fn(path), 1.0)
  agree(guided.predict(x_t, t), POSTERIOR.field(path).predict(x_t, t), rtol=1e-4, atol=1e-5)
  without = guidance.classifier(DATA.field(path), log_prob_fn(path), 0.0)
  agree(without.predict(x_t, t), DATA.field(path).predict(x_t, t), rtol=0.0)


@pytest.mark.evidence("D09", "M")
def test_classifier_guidance_tilts_samples_as_theory_says():
  path = paths.Discrete()
  x, ts = jax.random.normal(jax.random.key(1), (5, 1000)), paths.times(path, 250)

  @jax.jit
  def run(x):
    fn = log_prob_fn(path)
    guide = jax.grad(lambda x_t, t: jnp.sum(fn(x_t, t)))
    by_field = guidance.classifier(DATA.field(path), fn, 1.0)
    return (
      ancestral.ancestral(DATA.field(path), x, keys(5), ts, guide=guide),
      ancestral.ancestral(by_field, x, keys(5), ts),
      ode.heun(by_field.velocity, x, jnp.linspace(1000.0, 1.0, 101)),
    )

  for sample in run(x):
    moments = [POSTERIOR.mean, POSTERIOR.std]
    np.testing.assert_allclose(
      [sample.mean(), sample.std()], moments, atol=0.02
    )  # 0.0044 is the error of a mean


@pytest.mark.evidence("D09", "M")
def test_classifier_guidance_does_not_depend_on_the_batch():
  path, w = paths.VP(), jax.random.normal(jax.random.key(2), (5, 3))
  label = jnp.array([0, 2, 1, 2])
  x_t, t = inputs(path)

  def predict(rows):
    log_prob = guidance.label_log_prob(lambda x_t, t: jnp.tanh(x_t) @ w, label[rows])
    return guidance.classifier(DATA.field(path), log_prob, 3.0).predict(x_t[rows], t[rows])

  whole, one = predict(slice(None)), predict(slice(2, 3))
  agree(one, jax.tree.map(lambda a: a[2:3], whole), rtol=1e-5, atol=1e-6)
  # log p(y | x_t) of a linear classifier has gradient w_y - sum_k p_k w_k.
  p = jax.nn.softmax(jnp.tanh(x_t) @ w)
  gradient = (w.T[label] - p @ w.T) * (1.0 - jnp.tanh(x_t) ** 2)
  shift = 3.0 * path.sigma(t)[:, None] * gradient
  eps = DATA.field(path).predict(x_t, t).eps - shift
  np.testing.assert_allclose(whole.eps, eps, rtol=1e-4, atol=1e-5)


def test_the_log_probability_of_a_label_is_that_of_softmax():
  logits = jnp.array([[1.0, 2.0, 3.0], [0.0, 0.0, 5.0]])
  log_prob = guidance.label_log_prob(lambda x, t: logits, jnp.array([2, 0]))(None, None)
  known = [3.0 - np.log(np.exp([1.0, 2.0, 3.0]).sum()), -np.log(2.0 + np.exp(5.0))]
  np.testing.assert_allclose(log_prob, known, rtol=1e-6)


@pytest.mark.evidence("D10", "M")
@pytest.mark.parametrize("path", PATHS, ids=by_type)
def test_classifier_free_guidance_of_gaussians_moves_their_mean(path):
  x_t, t = inputs(path)
  cond, uncond = GaussianData(0.7, 0.5).field(path), GaussianData(0.2, 0.5).field(path)
  known = GaussianData(0.7 + 3.0 * (0.7 - 0.2), 0.5).field(path).predict(x_t, t)
  agree(guidance.classifier_free(cond, uncond, 3.0).predict(x_t, t), known, rtol=1e-4, atol=1e-5)
  without = guidance.classifier_free(cond, uncond, 0.0)
  agree(without.predict(x_t, t), cond.predict(x_t, t), rtol=0.0)


@pytest.mark.evidence("D10", "M")
@pytest.mark.parametrize("make", ["classifier_free", "rescaled"])
@pytest.mark.parametrize("path", PATHS, ids=by_type)
def test_guidance_holds_in_its_interval_only(path, make):
  rest, make = ((0.7,) if make == "rescaled" else ()), getattr(guidance, make)
  cond, uncond = GaussianData(0.7, 0.5).field(path), GaussianData(0.2, 0.4).field(path)
  x_t, t = inputs(path)
  level = np.asarray(path.sigma(t) / path.alpha(t))
  low, high = sorted((level[0], level[2]))
  ours = make(cond, uncond, 3.0, *rest, interval=(low, high)).predict(x_t, t)
  guided, plain = make(cond, uncond, 3.0, *rest).predict(x_t, t), cond.predict(x_t, t)
  inside = jnp.asarray((low < level) & (level <= high))[:, None]
  assert inside.sum() == 2 and not np.allclose(guided.x, plain.x, atol=1e-2)
  pick = lambda a, b: jnp.where(inside, a, b)
  known = plain._replace(x=pick(guided.x, plain.x), eps=pick(guided.eps, plain.eps))
  tolerance = 1e-4 if rest else 0.0  # v and back is rounded
  agree(ours, known, rtol=tolerance, atol=tolerance)


@pytest.mark.evidence("D10", "M")
@pytest.mark.parametrize("path", PATHS, ids=by_type)
def test_rescaled_guidance_has_the_std_of_the_conditional_model(path):
  cond, uncond = GaussianData(0.7, 0.5).field(path), GaussianData(0.2, 0.4).field(path)
  x_t, t = inputs(path)
  plain = guidance.classifier_free(cond, uncond, 7.0).predict(x_t, t)
  predict = lambda phi: guidance.rescaled(cond, uncond, 7.0, phi).predict(x_t, t)
  v = lambda p: path.alpha(t)[:, None] * p.eps - path.sigma(t)[:, None] * p.x
  agree(predict(0.0), plain, rtol=1e-4, atol=1e-5)
  whole, std = predict(1.0), v(cond.predict(x_t, t)).std(axis=1)
  np.testing.assert_allclose(v(whole).std(axis=1), std, rtol=1e-4)
  assert not np.allclose(v(plain).std(axis=1), std, rtol=1e-2)
  between = 0.3 * v(plain) + 0.7 * v(whole)
  np.testing.assert_allclose(v(predict(0.7)), between, rtol=1e-4, atol=1e-5)
  together = paths.interpolate(path, whole.x, whole.eps, t)
  np.testing.assert_allclose(together, x_t, rtol=1e-4, atol=1e-4)


@pytest.mark.evidence("D10", "M")
def test_dynamic_thresholds_are_of_each_example():
  path, t = paths.VP(), jnp.array([0.3, 0.5])
  x = jax.random.normal(jax.random.key(1), (2, 4, 5, 3)) * jnp.array([0.1, 3.0])[:, *[None] * 3]
  x_t = paths.interpolate(path, x, 0.5 * x, t)
  p = guidance.dynamic_threshold(paths.x_field(path, lambda *_: x), 0.9).predict(x_t, t)
  s = np.quantile(np.abs(np.asarray(x[1])), 0.9)
  np.testing.assert_allclose(p.x[1], np.clip(x[1], -s, s) / s, rtol=1e-5)
  np.testing.assert_array_equal(p.x[0], x[0])  # it lies in [-1, 1]
  np.testing.assert_allclose(paths.interpolate(path, p.x, p.eps, t), x_t, rtol=1e-4, atol=1e-5)


FIELD = DATA.field(paths.VP())
NUMBER = lambda label, n=2: guidance.label_log_prob(lambda *_: jnp.zeros((n, 3)), label)(None, None)


@pytest.mark.parametrize(
  "call, words",
  [
    (lambda: guidance.classifier_free(FIELD, FIELD, 1.0, interval=(2.0, 1.0)), r"interval=\(2.0"),
    (lambda: guidance.rescaled(FIELD, FIELD, 1.0, 1.5), "phi=1.5: expected at least 0"),
    (lambda: guidance.dynamic_threshold(FIELD, 99.5), "percentile=99.5: expected above 0"),
    (lambda: guidance.classifier(FIELD, log_prob_fn(paths.VP()), np.nan), "scale=nan"),
    (lambda: NUMBER(None), "label=None: expected an int32 array"),
    (lambda: NUMBER(jnp.zeros(2)), "expected an int32 array"),
    (lambda: NUMBER(jnp.array([0, 3])), "expected 0 to 2, as the classifier's classes"),
    (lambda: NUMBER(jnp.array([0, 1, 2])), r"label=\(3,\): expected 2, as of x_t"),
    (
      lambda: guidance.classifier(FIELD, lambda x, t: jnp.sum(x), 1.0).predict(*inputs(FIELD.path)),
      r"log_prob_fn=\(\): expected a result \[B\]",
    ),
  ],
)
def test_bad_guidance_is_refused(call, words):
  with pytest.raises(ValueError, match=words):
    call()


@pytest.mark.evidence("D09", "G")
def test_golden_classifier_guidance():
  """Of guided-diffusion, which counts t from 0."""
  x, close = golden.load("classifier_guidance")
  path, x_t, t = paths.Discrete(), x["in.x_t"], jnp.asarray(x["in.t"] + 1.0, jnp.float32)
  log_prob = lambda x_t, t: jnp.sum(x_t * x["in.grad"], axis=(1, 2, 3))
  field = paths.x_field(path, lambda *_: x["in.pred_xstart"])
  p, t = guidance.classifier(field, log_prob, 1.0).predict(x_t, t), paths.expand(t, x_t)
  q = paths.posterior(path, t, t - 1.0)
  close(p.x, "cond_pred_xstart")
  close(q.x_weight * p.x + q.x_t_weight * x_t, "cond_mean")


@pytest.mark.evidence("D09", "G")
def test_golden_guided_mean():
  """One ancestral step a row, of a field that has the vector's mean and variance."""
  x, close = golden.load("classifier_guidance")
  path = paths.Discrete()

  def step(x_t, t, mean, variance, gradient):
    q = paths.posterior(path, t, t - 1.0)
    small, large = jnp.log(jnp.where(q.small > 0.0, q.small, 1e-30)), jnp.log(q.large)
    v = (jnp.log(variance) - small) / (large - small)
    field = paths.Field(
      path, lambda x, _: paths.Prediction((mean[None] - q.x_t_weight * x) / q.x_weight, x, v[None])
    )
    ts, z, guide = jnp.stack([t, t - 1.0]), jnp.zeros((1, 1, *x_t.shape)), lambda *_: gradient[None]
    return ancestral.ancestral(field, x_t[None], keys(1), ts, guide=guide, z=z)[0]

  given = [x[f"in.{name}"] for name in ("x_t", "t", "mean", "variance", "grad")]
  given[1] = jnp.asarray(given[1] + 1.0, jnp.float32)
  ours = jax.jit(jax.vmap(step))(*given)
  close(
    ours, "new_mean", where=(x["in.t"] > 0)[:, None, None, None]
  )  # at 0 one step alone has no beta-tilde

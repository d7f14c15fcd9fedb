"""Improved DDPM: its losses, its importance sampler, its schedules and learned variances."""

import functools
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import recipes
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P
from oracles import GaussianData
from scipy.stats import norm, qmc

from jaxgen import noise, paths
from jaxgen.core import axis, method, step
from jaxgen.core import config as config_lib
from jaxgen.models.diffusion import improved_ddpm
from jaxgen.objectives import diffusion_elbo, likelihood, score

KEY = jax.random.key
rows = lambda a: jnp.moveaxis(jnp.asarray(a), 1, -1)  # channels last
keys = lambda n, seed=0: noise.rows(KEY(seed), n)


@pytest.mark.evidence("D04", "G")
def test_golden_hybrid_loss():
  x, close = golden.load("training_losses_hybrid")
  out, t = rows(x["in.model_output"]), jnp.asarray(x["in.t"] + 1, jnp.float32)
  given = dict(path=paths.Discrete(), t=t, eps=rows(x["in.noise"]), log_cdf=likelihood.tanh_log_cdf)

  @jax.jit
  def loss(vlb_weight):
    fn = lambda *_: out
    return diffusion_elbo.hybrid(fn, rows(x["in.x_start"]), keys(5), vlb_weight=vlb_weight, **given)

  close(loss(0.0), "mse")
  close(loss(1e-3), "loss")
  close(loss(1e-3) - loss(0.0), "vb")


@pytest.mark.evidence("D04", "G")
def test_golden_learned_variance():
  x, close = golden.load("p_mean_variance_learned_range_clip0")
  path, t = paths.Discrete(), jnp.asarray(x["in.t"] + 1, jnp.float32)
  field = paths.learned_field(path, lambda *_: rows(x["in.model_output"]))
  x_t = rows(x["in.x_t"])
  mean, log_var, _ = diffusion_elbo._reverse(field, x_t, t, 1.0)
  first = lambda a: np.moveaxis(np.asarray(a), -1, 1)
  close(first(mean), "mean")
  close(first(log_var), "log_variance")
  close(first(jnp.exp(log_var)), "variance")
  close(first(field.predict(x_t, t).x), "pred_xstart")


@pytest.mark.evidence("D04", "G")
def test_golden_schedules():
  _, close = golden.load("betas_cosine_1000")
  close(improved_ddpm.chain("cosine", 1000).betas, "betas")
  _, close = golden.load("betas_linear_1000")
  close(improved_ddpm.chain("linear", 1000).betas, "betas")
  shorter = np.asarray(improved_ddpm.chain("linear", 250).betas)
  np.testing.assert_allclose(shorter[[0, -1]], [4e-4, 0.08], rtol=1e-6)


@pytest.mark.evidence("D04", "G")
def test_golden_importance_of_times():
  x, close = golden.load("loss_second_moment_weights")
  history, count = jnp.zeros((6, 3)), jnp.zeros(6, jnp.int32)
  t, terms = jnp.asarray(x["in.ts"] + 1), jnp.asarray(x["in.losses"], jnp.float32)
  close(
    diffusion_elbo.time_weights(*diffusion_elbo.time_history(history, count, t, terms)), "weights"
  )
  for part in np.split(np.arange(24), 6):  # in six batches
    history, count = diffusion_elbo.time_history(history, count, t[part], terms[part])
  close(diffusion_elbo.time_weights(history, count), "weights")


def test_history_keeps_the_last_terms_of_each_time_in_order():
  """Against a list for each time; a batch has more of one time than the history holds."""
  rng, n_steps, n = np.random.default_rng(0), 4, 3
  history, count = jnp.zeros((n_steps, n)), jnp.zeros(n_steps, jnp.int32)
  lists, update = [[] for _ in range(n_steps)], jax.jit(diffusion_elbo.time_history)
  for i in range(6):
    t = rng.integers(1, 3 if i < 5 else 5, 8)
    terms = rng.random(8, np.float32)
    history, count = update(history, count, jnp.asarray(t), jnp.asarray(terms))
    for a, b in zip(t, terms, strict=True):
      lists[a - 1] = lists[a - 1] + [b]
    p = diffusion_elbo.time_weights(history, count)
    full = all(len(seen) >= n for seen in lists)
    assert full or np.allclose(p, 0.25)
  for seen, held, c in zip(lists, history, count, strict=True):
    assert len(seen) == c and set(np.asarray(held[: len(seen)])) == set(seen[-n:])


def test_history_is_the_same_on_two_devices():
  mesh = Mesh(np.asarray(jax.devices()[:2]), (axis.NAME,))
  t = jnp.array([1, 3, 3, 3, 2, 3, 1, 3])
  terms = jnp.arange(8.0)
  empty = jnp.zeros((3, 2)), jnp.zeros(3, jnp.int32)
  specs = dict(in_specs=(P(), P(), P(axis.NAME), P(axis.NAME)), out_specs=P(), check_vma=False)
  two = jax.jit(jax.shard_map(diffusion_elbo.time_history, mesh=mesh, **specs))(*empty, t, terms)
  one = diffusion_elbo.time_history(*empty, t, terms)
  assert all(jnp.array_equal(a, b) for a, b in zip(one, two, strict=True))


PATH = improved_ddpm.chain("cosine", 30)
DATA = GaussianData(mean=0.1, std=0.2)


def gaussian_fn(x_t, t):
  """DATA's noise predictor, and a v that differs from row to row."""
  eps = DATA.field(PATH).predict(x_t, t).eps
  return jnp.concatenate([eps, jnp.cos(3.0 * x_t)], axis=-1)


@pytest.mark.evidence("D04", "M")
def test_importance_sampling_is_unbiased_and_less_noisy():
  """The mean of L_t / p_t is L_0 + ... + L_{T-1} for any p; p ~ sqrt(E L_t^2) has less variance."""
  n = 10_000
  x = jnp.round((DATA.mean + DATA.std * jax.random.normal(KEY(0), (n, 1)) + 1) * 127.5) / 127.5 - 1
  field = paths.learned_field(PATH, gaussian_fn)
  eps = np.random.default_rng(0).standard_normal((30, n, 1), np.float32)
  terms = jax.jit(functools.partial(diffusion_elbo.terms, field))(x, keys(n), eps=eps)
  terms = terms[:-1] / np.log(2.0)
  history = jnp.sqrt(jnp.mean(terms**2, axis=1, keepdims=True))
  p = diffusion_elbo.time_weights(history, jnp.ones(30, jnp.int32))
  np.testing.assert_allclose(p.sum(), 1.0, rtol=1e-5)
  assert p.min() >= 1e-3 / 30 and p.max() / p.min() > 5.0
  # Not compiled as a whole, where XLA may compute a term twice, and rounds it twice.
  estimate = functools.partial(diffusion_elbo.vlb, gaussian_fn, path=PATH)
  spread = []
  for weights in (jnp.full(30, 1 / 30), p):
    values, t, own = estimate(x, keys(n, 1), p=weights)
    np.testing.assert_allclose(values, own / weights[t.astype(int) - 1], rtol=1e-6)
    error = 4.0 * values.std() / n**0.5
    np.testing.assert_allclose(values.mean(), terms.mean(1).sum(), atol=error)
    counts = np.bincount(t.astype(int), minlength=31)[1:]
    assert (np.abs(counts - n * weights) < 5.0 * np.sqrt(n * weights) + 1.0).all()
    spread.append(float(values.std()))
  assert spread[1] < 0.8 * spread[0]


@pytest.mark.evidence("D04", "M")
def test_hybrid_trains_the_mean_by_l_simple_and_only_the_variance_by_the_bound():
  x = jax.random.uniform(KEY(0), (6, 4, 4, 2), minval=-1.0)
  t, eps = jnp.array([1.0, 2.0, 5.0, 12.0, 29.0, 30.0]), jax.random.normal(KEY(1), x.shape)
  out = jax.random.normal(KEY(2), (6, 4, 4, 4))

  @jax.jit
  def gradients(out):
    given = dict(path=PATH, t=t, eps=eps)
    hybrid = lambda out: diffusion_elbo.hybrid(lambda *_: out, x, keys(6), **given).sum()
    simple = lambda out: score.simple(lambda *_: out[..., :2], x, keys(6), **given).sum()
    x_t = paths.interpolate(PATH, x, eps, t)
    bound = lambda out: diffusion_elbo.term(paths.learned_field(PATH, lambda *_: out), x, x_t, t)
    return [jax.grad(f)(out) for f in (hybrid, simple, lambda out: bound(out).sum())]

  hybrid, simple, bound = gradients(out)
  np.testing.assert_allclose(hybrid[..., :2], simple[..., :2], rtol=1e-5, atol=1e-8)
  weight = 1e-3 * 30 / (32 * np.log(2.0))  # lambda T, in bits per value
  np.testing.assert_allclose(hybrid[..., 2:], weight * bound[..., 2:], rtol=1e-4, atol=1e-8)
  assert jnp.abs(bound[..., :2]).min((1, 2, 3)).max() > 0.0 and jnp.abs(hybrid[..., 2:]).max() > 0.0


@pytest.mark.evidence("D04", "M")
def test_the_best_learned_variance_is_that_of_the_reverse_chain():
  """On Gaussian data L_hybrid's v, one number a time, goes to q(x_{t-1} | x_t)'s variance."""
  even = norm.ppf(qmc.Sobol(2, rng=0).random_base2(13).astype(np.float32))  # few rows do
  x, eps, t = DATA.mean + DATA.std * even[:, :1], even[:, 1:], jnp.arange(2.0, 31.0, 4.0)
  q, alpha = paths.posterior(PATH, t, t - 1.0), PATH.alpha(t)
  left = 1.0 - alpha**2 * DATA.std**2 / (alpha**2 * DATA.std**2 + PATH.sigma(t) ** 2)
  variance = q.small + q.x_weight**2 * DATA.std**2 * left
  low, high = jnp.log(q.small), jnp.log(q.large)
  best = 2.0 * (jnp.log(variance) - low) / (high - low) - 1.0  # the raw v
  assert (best > -1.0).all() and (best < 1.0).all()

  @jax.jit
  def slope(raw, t):
    def loss(raw):
      eps_fn = DATA.field(PATH).predict
      fn = lambda x_t, t: jnp.concatenate([eps_fn(x_t, t).eps, jnp.full_like(x_t, raw)], axis=-1)
      rows = jnp.full(len(x), t)
      return diffusion_elbo.hybrid(fn, x, keys(len(x)), path=PATH, t=rows, eps=eps).mean()

    return jax.grad(loss)(raw)

  for i in (0, 3, 7):
    at = lambda shift, i=i: float(slope(best[i] + shift, t[i]))
    width = 0.1 / float(0.5 * (high - low)[i])  # a tenth of a nat of log variance
    assert at(-width) < 0.0 < at(width), i


def smoke(**args):
  config = config_lib.read(recipes.ROOT / "configs/diffusion/improved_ddpm.py:smoke")
  plain = dict(net="ResidualMLP", net_args={"width": 16, "depth": 1}, n_classes=0, **args)
  return method.build(config.model, {**config.args, **plain})


BATCH = {
  "image": jnp.asarray(np.random.default_rng(0).uniform(-1, 1, (1, 16, 8, 8, 1)), jnp.float32)
}


@pytest.mark.parametrize("objective", ["simple", "hybrid", "vlb"])
def test_every_objective_steps_samples_and_has_a_bound(objective):
  made = smoke(objective=objective, T=30, history=2)
  state = jax.jit(lambda key: step.init_state(made, key))(KEY(0))
  out = state.params["net"]["out"]["kernel"].shape[-1]
  assert out == (64 if objective == "simple" else 128)
  run = jax.jit(lambda s: step.train_step(made, s, BATCH, KEY(1)))
  for _ in range(2):
    state, metrics = run(state)
  assert np.isfinite(metrics["net/loss"][0])
  if objective == "vlb":
    assert int(state.extra["sampler"]["count"].sum()) == 32
  else:
    assert state.extra == {}

  @jax.jit
  def use(vars):
    x = made.fns["sample"](vars, keys(3))["image"]
    p = made.fns["field"](vars).predict(x, jnp.full(3, 9.0))
    return x, p.v, made.fns["log_prob"](vars, {"image": BATCH["image"][0]}, keys(16))

  x, v, log_prob = use(state.vars)
  assert x.shape == (3, 8, 8, 1) and np.isfinite(log_prob).all()
  assert (v is None) == (objective == "simple") and (v is None or v.shape == x.shape)


def test_the_network_counts_time_as_asked():
  """T_net: 4000 steps are 0, 0.25, ..., 999.75 to the network, as in the official code."""
  made = smoke(objective="hybrid", T=40, T_net=10)
  same = smoke(objective="hybrid", T=40, T_net=40)
  vars = jax.jit(made.init)(KEY(0))
  noisy = lambda a: a + 0.1 * jax.random.normal(KEY(a.size), a.shape)
  vars = vars._replace(params=jax.tree.map(noisy, vars.params))
  x = jax.random.normal(KEY(1), (1, 8, 8, 1))
  # v is free of the path, and only the network's time, 8 / 4 = 2, is left of it.
  v = lambda m, t: jax.jit(lambda t: m.fns["field"](vars).predict(x, t).v)(jnp.full(1, t))
  np.testing.assert_allclose(v(made, 9.0), v(same, 3.0), rtol=1e-5, atol=1e-6)
  assert jnp.abs(v(made, 9.0) - v(same, 9.0)).max() > 1e-4


@pytest.mark.parametrize(
  "args, words",
  [
    ({"schedule": "cosin"}, "schedule='cosin': expected one of linear, cosine"),
    ({"schedule": "linear", "T": 20}, "T=20: expected a whole number, 21 or more"),
    ({"T": 0}, "T=0: expected a whole number, 2 or more"),
    ({"objective": "elbo"}, "objective='elbo': expected one of simple, hybrid, vlb"),
    ({"vlb_weight": -1.0}, "vlb_weight=-1.0: expected a finite number, 0 or more"),
    ({"history": 0}, "history=0: expected a whole number, 1 or more"),
    ({"T_net": 0.0}, "T_net=0.0: expected a finite number above 0"),
    ({"bound_terms": 4001}, "bound_terms=4001: expected a whole number, 1 to 4000"),
    ({"sampler": {"name": "ancestral", "steps": 4001}}, "steps=4001"),
    ({"net": "Unet"}, "net='Unet': expected one of"),
  ],
)
def test_bad_arguments_are_refused(args, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    improved_ddpm.build(**args)

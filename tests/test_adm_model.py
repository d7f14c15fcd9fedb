"""ADM and its noisy classifier: guidance by gradients, and a classifier that stays as it was."""

import functools
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from oracles import GaussianData

from jaxgen import noise, paths
from jaxgen.core import method, step
from jaxgen.models.diffusion import adm, improved_ddpm
from jaxgen.models.representation import noisy_classifier
from jaxgen.samplers import ancestral, ddim, guidance

KEY = jax.random.key
keys = lambda n, seed=0: noise.rows(KEY(seed), n)


def labelled(n=16):
  """Images that are dark or bright, and which."""
  rng = np.random.default_rng(0)
  label = rng.integers(0, 2, n)
  image = np.clip(label[:, None, None, None] - 0.5 + 0.2 * rng.normal(size=(n, 8, 8, 1)), -1, 1)
  return {"image": jnp.asarray(image, jnp.float32), "label": jnp.asarray(label, jnp.int32)}


CLASSIFIER = {
  "net_args": {
    "channels": 8, "multipliers": (1, 2), "n_res_blocks": 1, "attention": (), "head_channels": 8,
  }
}  # fmt: skip
SMALL = dict(
  image_shape=(8, 8, 1),
  n_classes=2,
  net="ResidualMLP",
  net_args={"width": 16, "depth": 1},
  sampler={"name": "ancestral", "steps": 5},
  bound_terms=2,
  classifier={"model": "representation.noisy_classifier", "args": CLASSIFIER},
)


@functools.cache
def built(n_classes=2, guided=True):
  """(Method, a fresh state) with a classifier of two labels, or none."""
  args = {**CLASSIFIER, "n_classes": 2}
  classifier = {"model": "representation.noisy_classifier", "args": args} if guided else {}
  made = adm.build(**{**SMALL, "n_classes": n_classes, "classifier": classifier})
  return made, jax.jit(lambda key: step.init_state(made, key))(KEY(0))


@functools.cache
def trained_classifier():
  """(Method, its variables after 60 steps on `labelled`)."""
  tx = {"lr": 3e-3, "steps": 60, "decay": "linear"}
  made = noisy_classifier.build(image_shape=(8, 8, 1), n_classes=2, tx=tx, **CLASSIFIER)
  state = jax.jit(lambda key: step.init_state(made, key))(KEY(0))
  batch = jax.tree.map(lambda x: x[None], labelled(64))
  run = jax.jit(lambda s: step.train_step(made, s, batch, KEY(1)))
  for _ in range(60):
    state, metrics = run(state)
  return made, state.vars, {k: float(v[0]) for k, v in metrics.items()}


@pytest.mark.evidence("D09", "G")
def test_golden_guided_predictions():
  """condition_score, of Alg. 2, at the times of a batch."""
  x, close = golden.load("classifier_guidance")
  path, x_t = paths.Discrete(), jnp.asarray(x["in.x_t"])
  times = jnp.asarray(x["in.t"] + 1, jnp.float32)
  t = paths.expand(times, x_t)
  eps = (x_t - path.alpha(t) * x["in.pred_xstart"]) / path.sigma(t)
  log_prob = lambda x_t, t: jnp.sum(x_t * x["in.grad"], (1, 2, 3))
  field = guidance.classifier(paths.eps_field(path, lambda *_: eps), log_prob, 1.0)
  p, q = field.predict(x_t, times), paths.posterior(path, t, t - 1.0)
  close(p.x, "cond_pred_xstart")
  close(q.x_weight * p.x + q.x_t_weight * x_t, "cond_mean")


@pytest.mark.evidence("D09", "M")
def test_a_known_classifier_shifts_samples_as_it_should():
  """p(x) p(y | x)^s is Gaussian for Gaussian data and p(y | x) ~ e^(b x): the mean moves by s b
  std^2 and the std stays. log p(y | x_t) is b E(x | x_t), but for a constant."""
  data, path, b, s = GaussianData(mean=0.1, std=0.4), improved_ddpm.chain("linear", 400), 1.5, 0.8
  log_prob = lambda x_t, t: b * data.field(path).predict(x_t, t).x[:, 0]
  n, x = 20_000, jax.random.normal(KEY(1), (20_000, 1))
  ts = paths.times(path, 400)
  guide = lambda x_t, t: s * jax.grad(lambda x_t: log_prob(x_t, t).sum())(x_t)
  exact = [data.mean + s * b * data.std**2, data.std]

  @jax.jit
  def run():
    plain = data.field(path)
    by_field = guidance.classifier(plain, log_prob, s)
    return (
      ancestral.ancestral(plain, x, keys(n), ts, guide=guide),  # Alg. 1
      ancestral.ancestral(by_field, x, keys(n), ts),
      ddim.ddim(by_field, x, keys(n), ts),  # Alg. 2
    )

  for found in run():
    np.testing.assert_allclose([found.mean(), found.std()], exact, atol=0.02)


@pytest.mark.evidence("D09", "M")
def test_a_step_of_training_leaves_the_classifier_alone():
  made, state = built()
  assert set(state.params) == {"net", "net_ema", "classifier"}
  assert method.trained(made) == {"net", "net_ema"}
  batch = jax.tree.map(lambda x: x[None], labelled())
  new, metrics = jax.jit(lambda s: step.train_step(made, s, batch, KEY(1)))(state)
  same = jax.tree.map(jnp.array_equal, state.params["classifier"], new.params["classifier"])
  assert all(jax.tree.leaves(same)) and np.isfinite(metrics["net/loss"][0])
  moved = jax.tree.map(
    lambda a, b: not jnp.array_equal(a, b), state.params["net"], new.params["net"]
  )
  assert any(jax.tree.leaves(moved))


def test_the_classifier_learns_and_says_what_it_sees():
  made, vars, metrics = trained_classifier()
  batch = labelled(64)
  found = jax.jit(made.fns["detect"])(vars, batch)
  assert found["logits"].shape == (64, 2) and found["score"].shape == (64,)
  assert jnp.mean(found["logits"].argmax(-1) == batch["label"]) > 0.95
  assert metrics["net/accuracy"] > 0.6 and metrics["net/loss"] < 0.65  # over all times
  np.testing.assert_allclose(
    found["score"], jax.nn.log_softmax(found["logits"]).max(-1), rtol=1e-5, atol=1e-6
  )
  late = jax.jit(functools.partial(made.fns["detect"], t=1000.0))
  eps = jax.random.normal(KEY(5), batch["image"].shape)
  assert late(vars, {"image": eps})["score"].mean() < found["score"].mean()  # less sure of noise


@pytest.mark.evidence("D09", "M")
@pytest.mark.parametrize("name, n_classes", [("ancestral", 2), ("ddim", 0)])
def test_a_trained_classifier_draws_samples_to_its_label(name, n_classes):
  """With the conditional network (its null class at first) and with one that knows no classes."""
  made, state = built(n_classes)
  params = {**state.params, "classifier": trained_classifier()[1].params}
  vars = state.vars._replace(params=params)

  @jax.jit
  def brightness(label):
    given = dict(name=name, steps=20, scale=4.0)
    return made.fns["sample"](vars, keys(16), {"label": label}, **given)["image"].mean((1, 2, 3))

  dark, bright = (brightness(jnp.full(16, label)) for label in (0, 1))  # of the same noise
  assert (bright - dark).mean() > 0.04 and (bright > dark).mean() > 0.9


def test_without_a_classifier_it_is_improved_ddpm():
  made, state = built(guided=False)
  assert set(state.params) == {"net", "net_ema"}
  with pytest.raises(ValueError, match="label=2: expected 0 to 1"):
    made.fns["field"](state.vars, {"label": jnp.array([2])})


def other(**args):
  return {"model": "representation.noisy_classifier", "args": {**CLASSIFIER, **args}}


@pytest.mark.parametrize(
  "args, words",
  [
    ({"classifier": other(T=100)}, "classifier.args.T=100: expected 1000, as here"),
    ({"classifier": other(schedule="linear")}, "classifier.args.schedule='linear': expected 'cos"),
    ({"classifier": other(image_shape=(16, 16, 1))}, "classifier.args.image_shape=(16, 16, 1)"),
    ({"classifier": other(net_args={"width": 3})}, "net_args.width=3: Classifier takes no such"),
    ({"classifier": {"model": "diffusion.ddpm"}}, "expected {} or model and args"),
    ({"classifier": {"model": "x.y", "args": {}}}, "model='x.y' does not exist"),
    ({"classifier_scale": -1.0}, "classifier_scale=-1.0: expected a finite number, 0 or more"),
    ({"schedule": "sigmoid"}, "schedule='sigmoid': expected one of linear, cosine"),
  ],
)
def test_bad_arguments_are_refused(args, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    adm.build(**{**SMALL, **args})


@pytest.mark.parametrize(
  "args, words",
  [
    ({"n_classes": 1}, "n_classes=1: expected a whole number, 2 or more"),
    ({"T": 1}, "T=1: expected a whole number, 2 or more"),
    ({"image_shape": (8, 8)}, "image_shape=(8, 8): expected three whole numbers"),
    ({"tx": {"lr": 0.0}}, "tx.lr=0.0: expected a finite number above 0"),
  ],
)
def test_bad_arguments_of_the_classifier_are_refused(args, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    noisy_classifier.build(**args)


def test_a_time_that_does_not_exist_is_refused():
  made, vars, _ = trained_classifier()
  with pytest.raises(ValueError, match="t=1001.0: expected 0 to 1000.0"):
    made.fns["detect"](vars, labelled(), t=1001.0)

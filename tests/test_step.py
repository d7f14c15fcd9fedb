"""The train step on tiny methods, one for each kind of state: its numbers, and in every mode."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import linen as nn

from jaxgen import noise
from jaxgen.core import axis, optim, parallel, step
from jaxgen.core.method import Aux, Ema, Method, Phase, Vars, averaged, micro_batches

KEY = jax.random.key
STEPS = 10


def plain():
  """Stochastic loss, average, an hparam that varies in time."""

  def loss(vars, batch, keys, *, scale):
    x = batch["x"] @ vars.params["w"]
    error = (x + scale * noise.normal(keys, (3,))) ** 2
    return jnp.mean(error), Aux({"error": jnp.mean(error)})

  return Method(
    lambda key: Vars({"w": jax.random.normal(key, (16, 3)), "frozen": jnp.ones(3)}),
    {"w": Phase(loss, ("w",), optax.sgd(0.1), hparams={"scale": lambda step: 1.0 + step})},
    ema={"w_ema": Ema("w", 0.9)},
  )


class Net(nn.Module):
  out: int
  batch_norm: bool = False

  @nn.compact
  def __call__(self, x):
    x = nn.Dense(32, use_bias=not self.batch_norm)(x)
    if self.batch_norm:
      x = nn.BatchNorm(use_running_average=False, momentum=0.9, axis_name=axis.name())(x)
    return nn.Dense(self.out)(nn.tanh(x))


def adversarial():
  """Batch norm, three critic steps, and a lazy penalty on the critic's optimizer."""
  gen, critic = Net(16, batch_norm=True), Net(1)

  def init(key):
    k_gen, k_critic = jax.random.split(key)
    g = gen.init(k_gen, jnp.zeros((2, 4)))
    params = {"gen": g["params"], "critic": critic.init(k_critic, jnp.zeros((1, 16)))["params"]}
    return Vars(params, {"gen": {"batch_stats": g["batch_stats"]}})

  def generate(vars, keys):
    variables = {"params": vars.params["gen"], **vars.extra["gen"]}
    return gen.apply(variables, noise.normal(keys, (4,)), mutable=["batch_stats"])

  score = lambda vars, x: critic.apply({"params": vars.params["critic"]}, x).mean()

  def critic_loss(vars, batch, keys):
    return score(vars, generate(vars, keys)[0]) - score(vars, batch["x"]), Aux()

  def gen_loss(vars, batch, keys):
    fake, stats = generate(vars, keys)
    return -score(vars, fake), Aux(extra={"gen": stats})

  def penalty(vars, batch, keys):
    per_row = lambda x: jnp.sum(critic.apply({"params": vars.params["critic"]}, x))
    return jnp.mean(jnp.sum(jax.grad(per_row)(batch["x"]) ** 2, -1)), Aux()

  sgd = optax.sgd(0.1)
  phases = {
    "critic": Phase(critic_loss, ("critic",), sgd, repeats=3),
    "gen": Phase(gen_loss, ("gen",), sgd),
    "lazy": Phase(penalty, ("critic",), "critic", every=2),
  }
  return Method(init, phases, ema={"gen_ema": Ema("gen", 0.9)})


def accumulation(k=2):
  """k micro-batches an update."""

  def loss(vars, batch, keys):
    return jnp.mean((batch["x"] @ vars.params["w"] - noise.normal(keys, (3,))) ** 2), Aux()

  phase = Phase(loss, ("w",), optax.sgd(0.1), accumulate=k)
  return Method(lambda key: Vars({"w": jnp.ones((16, 3))}), {"w": phase})


def codebook():
  """State that no gradient touches: counts of the global batch, restarts from its rows."""

  def loss(vars, batch, keys):
    x, (count, total) = batch["x"] * vars.params["scale"], vars.extra["vq"]
    codes = total / jnp.maximum(count, 1e-3)[:, None]
    index = jnp.argmin(jnp.sum((x[:, None] - codes[None]) ** 2, -1), 1)
    one_hot = jax.nn.one_hot(index, len(count))
    n, s = axis.total((one_hot.sum(0), one_hot.T @ jax.lax.stop_gradient(x)))
    count, total = 0.9 * count + 0.1 * n, 0.9 * total + 0.1 * s
    rows = jax.lax.stop_gradient(axis.gather(x))
    pick = jax.random.randint(noise.shared(keys), count.shape, 0, len(rows))
    dead = count < 0.3
    total = jnp.where(dead[:, None], rows[pick], total)
    book = (jnp.where(dead, 1.0, count), total)
    return jnp.mean((x - codes[index]) ** 2), Aux(extra={"vq": book})

  init = lambda key: Vars({"scale": jnp.ones(())}, {"vq": (jnp.ones(8), _normal(key, (8, 16)))})
  return Method(init, {"vq": Phase(loss, ("scale",), optax.sgd(1e-2))})


def calibrated():
  """Data-dependent initialisation from the global batch."""

  def calibrate(vars, batch, keys):
    x = batch["x"]
    mean = axis.mean(x.mean(0, keepdims=True))
    var = axis.mean(((x - mean) ** 2).mean(0, keepdims=True))
    return vars._replace(params={"net": {"shift": -mean, "log_scale": -0.5 * jnp.log(var)}})

  def loss(vars, batch, keys):
    p = vars.params["net"]
    y = (batch["x"] + p["shift"]) * jnp.exp(p["log_scale"])
    return jnp.mean(0.5 * jnp.sum(y**2, -1) - p["log_scale"].sum()), Aux()

  init = lambda key: Vars({"net": {"shift": jnp.zeros((1, 16)), "log_scale": jnp.zeros((1, 16))}})
  phases = {"net": Phase(loss, ("net",), optax.sgd(1e-2))}
  return Method(init, phases, ema={"net_ema": Ema("net", 0.5)}, calibrate=calibrate)


_normal = jax.random.normal
KINDS = {f.__name__: f() for f in (plain, adversarial, accumulation, codebook, calibrated)}


def batch_of(method, rows=32):
  shape = (micro_batches(method), rows, 16)
  return {"x": np.random.default_rng(0).random(shape, np.float32)}


def start(method):
  state, batch = step.init_state(method, KEY(0)), batch_of(method)
  return step.calibrate(method, state, batch, KEY(1)) if method.calibrate else state


@functools.cache
def steps_on_one_device(kind):
  method = KINDS[kind]
  state, run = start(method), jax.jit(lambda s, b: step.train_step(method, s, b, KEY(2)))
  for _ in range(STEPS):
    state, metrics = run(state, batch_of(method))
  return jax.device_get((state, metrics))


def steps(method, mode, host=0, hosts=1):
  """(state, metrics) on all devices of all hosts; each has its rows of the batch."""
  rows = lambda x: np.split(x, hosts, axis=1)[host]
  batch = parallel.shard_batch(jax.tree.map(rows, batch_of(method)), mode)
  state = parallel.compile_init(method, mode)(KEY(0))
  if method.calibrate:
    state = parallel.compile_calibrate(method, mode)(state, batch, KEY(1))
  run = parallel.compile_step(method, mode)
  for _ in range(STEPS):
    state, metrics = run(state, batch, KEY(2))
  return parallel.to_global(state, mode), metrics


def assert_is_one_device(kind, leaves):
  """leaves: of (state, metrics) after STEPS steps in some mode on some devices."""
  expected = jax.tree_util.tree_leaves_with_path(steps_on_one_device(kind))
  for a, (path, b) in zip(leaves, expected, strict=True):
    where = kind + jax.tree_util.keystr(path)
    np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5, err_msg=where)


@pytest.mark.parametrize("mode", parallel.MODES)
@pytest.mark.parametrize("kind", KINDS)
def test_four_devices_take_the_steps_of_one(kind, mode, monkeypatch):
  """Acceptance test 8: state and losses within 1e-5 over 10 steps, for every kind of state."""
  monkeypatch.setattr(parallel, "_SMALLEST_SPLIT", 1)  # fsdp splits what it can
  leaves = jax.tree.leaves(steps(KINDS[kind], mode))
  assert (mode == "fsdp") == any(not x.is_fully_replicated for x in leaves)
  assert_is_one_device(kind, leaves)


def test_an_unknown_mode_is_refused():
  with pytest.raises(ValueError, match="parallel='pmao': expected one of jit, fsdp"):
    parallel.compile_step(plain(), "pmao")


def test_accumulation_is_one_big_batch():
  """The gradient of the mean over 32 rows, however they are cut."""
  x = np.random.default_rng(0).random((32, 16), np.float32)

  def run(k):
    loss = lambda vars, batch, keys: (jnp.mean((batch["x"] @ vars.params["w"]) ** 2), Aux())
    phase = Phase(loss, ("w",), optax.adam(1e-2), accumulate=k)
    method = Method(lambda key: Vars({"w": jnp.ones((16, 3))}), {"w": phase})
    batch = {"x": x.reshape(k, -1, 16)}
    return step.train_step(method, step.init_state(method, KEY(0)), batch, KEY(1))[0].params["w"]

  np.testing.assert_allclose(run(4), run(1), rtol=1e-6)


def test_repeats_are_updates_on_their_own_micro_batches():
  """Three SGD updates by hand."""
  loss = lambda vars, batch, keys: (jnp.mean((batch["x"] - vars.params["w"][None]) ** 2), Aux())
  phase = Phase(loss, ("w",), optax.sgd(0.5), repeats=3)
  method = Method(lambda key: Vars({"w": jnp.zeros(16)}), {"w": phase})
  batch = batch_of(method)
  state, _ = step.train_step(method, step.init_state(method, KEY(0)), batch, KEY(1))
  w = np.zeros(16)
  for x in batch["x"]:
    w = w - 0.5 * 2.0 * (w - x.mean(0)) / 16
  np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)


def test_a_phase_that_does_not_run_reports_nothing():
  method = KINDS["adversarial"]
  state = start(method)
  run = jax.jit(lambda s: step.train_step(method, s, batch_of(method), KEY(1)))
  counts = []
  for _ in range(4):
    state, metrics = run(state)
    counts.append(int(metrics["lazy/loss"][1]))
  assert counts == [1, 0, 1, 0] and int(metrics["critic/loss"][1]) == 3


def test_updates_that_are_skipped_are_logged():
  """Also where the optimizer is part of a chain."""
  scale = lambda vars, batch, keys: (jnp.sum(batch["x"]) * vars.params["w"], Aux())
  tx = optax.chain(optim.adam(lr=0.1, skip=10.0), optax.scale(1.0))
  method = Method(lambda key: Vars({"w": jnp.ones(())}), {"w": Phase(scale, ("w",), tx)})
  state = step.init_state(method, KEY(0))
  for size, w, skipped in ((9.0, 0.9, 0.0), (11.0, 0.9, 1.0)):
    state, metrics = step.train_step(method, state, {"x": jnp.full((1, 1, 1), size)}, KEY(1))
    np.testing.assert_allclose(state.params["w"], w, rtol=1e-5)
    assert metrics["w/skipped"] == (skipped, 1.0)


def test_ema_is_its_closed_form_and_frozen_networks_stay():
  method = KINDS["plain"]
  state, history = start(method), []
  for _ in range(3):
    history.append(state.params["w"])
    state, metrics = step.train_step(method, state, batch_of(method), KEY(1))
  mean = history[0]
  for w in [*history[1:], state.params["w"]]:
    mean = 0.9 * mean + 0.1 * w
  np.testing.assert_allclose(state.params["w_ema"], mean, rtol=1e-6)
  np.testing.assert_array_equal(state.params["frozen"], jnp.ones(3))
  np.testing.assert_array_equal(averaged(method, state.vars).params["w"], state.params["w_ema"])
  assert float(metrics["w/scale"][0]) == 3.0 and int(state.step) == 3  # the hparam is logged


def test_noise_differs_between_steps_phases_and_rows():
  seen = []

  def loss(vars, batch, keys):
    z = noise.normal(keys)
    jax.debug.callback(lambda z: seen.extend(z.tolist()), z)
    return vars.params["w"] * z.mean(), Aux()

  phase = Phase(loss, ("w",), optax.sgd(0.0), repeats=2)
  method = Method(lambda key: Vars({"w": jnp.ones(())}), {"a": phase, "b": phase})
  state = step.init_state(method, KEY(0))
  for _ in range(2):
    state, _ = step.train_step(method, state, {"x": jnp.zeros((2, 8, 1))}, KEY(1))
  jax.effects_barrier()
  assert len(set(seen)) == len(seen) == 2 * 2 * 2 * 8


def test_extra_of_another_shape_is_refused():
  loss = lambda vars, batch, keys: (vars.params["w"], Aux(extra={"count": jnp.zeros(3)}))
  phases = {"w": Phase(loss, ("w",), optax.sgd(0.1))}
  method = Method(lambda key: Vars({"w": jnp.ones(())}, {"count": jnp.zeros(2)}), phases)
  with pytest.raises(ValueError, match=r"Aux.extra\['count'\]"):
    step.train_step(method, step.init_state(method, KEY(0)), batch_of(method), KEY(1))

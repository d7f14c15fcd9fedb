"""WGAN-GP: its losses by hand, its networks piece by piece, and a mixture that it must cover."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise
from jaxgen.core import method, step
from jaxgen.models.gan import wgan_gp

KEY = jax.random.key
SMALL = {
  "image_shape": (8, 8, 1),
  "gen_args": {"channels": (4, 4)},
  "critic_args": {"channels": (4, 4)},
  "z_dim": 3,
}
TOY = {"image_shape": (1, 1, 2), "net": "MLP", "z_dim": 2}


@pytest.mark.evidence("G06", "C")
def test_it_covers_the_eight_gaussians():
  """Survey Box 4 on the paper's toy data (Fig. 1 and its code): every mode, about equally often."""
  angle = 2 * np.pi * np.arange(8) / 8
  centres = np.sqrt(2) * np.stack([np.cos(angle), np.sin(angle)], axis=1).astype(np.float32)

  def draw(key):
    k_mode, k_eps = jax.random.split(key)
    x = jnp.asarray(centres)[jax.random.randint(k_mode, (128,), 0, 8)]
    return (x + 0.014 * jax.random.normal(k_eps, x.shape)).reshape(-1, 1, 1, 2)

  widths = {"gen_args": {"width": 64}, "critic_args": {"width": 64}}
  tx = {"lr": 1e-3, "b1": 0.5, "b2": 0.9}
  made = wgan_gp.build(**TOY, **widths, gp_weight=0.1, gen_rows=1, n_critic=2, tx=tx)

  def train(state, key):
    batch = {"image": jax.vmap(draw)(jax.random.split(key, 2))}
    return step.train_step(made, state, batch, KEY(2))[0], None

  run = jax.jit(lambda s: jax.lax.scan(train, s, jax.random.split(KEY(1), 1000))[0])
  vars = run(step.init_state(made, KEY(0))).vars
  x = made.fns["sample"](vars, jax.random.split(KEY(3), 2000))["image"].reshape(-1, 2)
  distance = np.linalg.norm(np.asarray(x)[:, None] - centres, axis=-1)
  near = distance.min(1) < 0.2
  share = np.bincount(distance.argmin(1)[near], minlength=8) / len(x)
  # Five seeds had 0.65 or more of the samples near a mode, 0.047 or more at the rarest.
  assert near.mean() > 0.5 and share.min() > 0.03, share


@pytest.fixture(scope="module")
def conditional():
  """A small model with three classes whose every parameter is random, and a batch of 6."""
  made = wgan_gp.build(**SMALL, n_classes=3)
  vars = jax.jit(made.init)(KEY(0))
  noisy = lambda x: x + 0.3 * jax.random.normal(KEY(x.size), x.shape)
  vars = vars._replace(params=jax.tree.map(noisy, vars.params))
  image = jax.random.uniform(KEY(1), (6, 8, 8, 1), minval=-1.0)
  return made, vars, {"image": image, "label": jnp.array([0, 1, 2, 0, 1, 2])}


@pytest.mark.evidence("G06", "M")
def test_the_losses_are_box_4(conditional):
  """Both losses put together from the networks' own outputs at the same noise, and statistics."""
  made, vars, batch = conditional
  gen, critic = wgan_gp.Generator((8, 8, 1), (4, 4), 3), wgan_gp.Critic((4, 4), 2, 3)
  keys = lambda: jax.random.split(KEY(2), 6)

  def generated(z, label):
    variables = {"params": vars.params["gen"], **vars.extra["gen"]}
    return gen.apply(variables, z, label, train=True, mutable=["batch_stats"])[0]

  def scored(x):
    score, logits = critic.apply({"params": vars.params["critic"]}, x)
    return score, jax.nn.log_softmax(logits)

  def entropy(log_p, label):
    return -jnp.sum(log_p * jax.nn.one_hot(label, 3), -1).mean()

  @jax.jit
  def run():
    label = batch["label"]
    fake = scored(generated(noise.normal(noise.split(keys())[0], (3,)), label))[0].mean()
    real, log_p = scored(batch["image"])
    k_z, k_label = noise.split(noise.repeat(keys(), 2))
    drawn = noise.randint(k_label, 0, 3)
    score, log_q = scored(generated(noise.normal(k_z, (3,)), drawn))
    by_hand = (
      fake - real.mean() + entropy(log_p, label),
      -score.mean() + 0.1 * entropy(log_q, drawn),
      jnp.mean(log_p.argmax(-1) == label),
    )
    return by_hand, [made.phases[k].loss(vars, batch, keys()) for k in ("critic", "gen")]

  (critic_loss, gen_loss, accuracy), ((ours, aux), (ours_gen, gen_aux)) = run()
  penalty = aux.metrics["penalty"]  # tested with the objectives
  np.testing.assert_allclose(ours, critic_loss + 10.0 * penalty, rtol=1e-5)
  np.testing.assert_allclose(ours_gen, gen_loss, rtol=1e-5)
  np.testing.assert_allclose(aux.metrics["accuracy"], accuracy)
  moved = jax.tree.map(lambda a, b: jnp.abs(a - b).max(), gen_aux.extra["gen"], vars.extra["gen"])
  assert all(x > 0 for x in jax.tree.leaves(moved))


def test_conditional_batch_norm_is_a_row_of_its_tables():
  layer = wgan_gp.BatchNorm(train=True, dtype=jnp.float32, n_classes=3)
  x, label = jax.random.normal(KEY(0), (4, 5, 5, 2)) * 3.0 + 1.0, jnp.array([2, 0, 1, 2])
  variables = layer.init(KEY(1), x, label)
  scale, shift = jax.random.normal(KEY(2), (2, 3, 2))
  params = {"scale": {"embedding": scale}, "shift": {"embedding": shift}}
  y, _ = layer.apply({**variables, "params": params}, x, label, mutable=["batch_stats"])
  normal = (x - x.mean((0, 1, 2))[None, None, None]) / x.std((0, 1, 2))[None, None, None]
  per_row = lambda table: table[label][:, None, None, :]
  np.testing.assert_allclose(y, per_row(scale) * normal + per_row(shift), atol=1e-4)


def test_the_class_of_a_sample_is_the_one_asked_for(conditional):
  """Labels change the sample, and without any they are drawn, one a key."""
  made, vars, _ = conditional

  @jax.jit
  def sample(vars, cond):
    return made.fns["sample"](vars, jax.random.split(KEY(3), 9), cond)["image"]

  each = jnp.stack([sample(vars, {"label": jnp.full(9, i)}) for i in range(3)])
  drawn = sample(vars, {})
  match = jnp.abs(each - drawn[None]).max((2, 3, 4)) < 1e-6  # [3, 9]
  np.testing.assert_array_equal(match.sum(0), np.ones(9))
  assert (match.sum(1) > 0).all()


def test_the_critic_sees_each_row_alone(conditional):
  """No normalisation across rows, without which the penalty is one of each example."""
  made, vars, batch = conditional
  critic = wgan_gp.Critic((4, 4), 2, 3)
  scores = lambda x: critic.apply({"params": vars.params["critic"]}, x)[0]
  jacobian = jax.jit(jax.jacobian(scores))(batch["image"])
  size = jnp.abs(jacobian).max((2, 3, 4))  # [6, 6]
  np.testing.assert_array_equal(size > 0, np.eye(6, dtype=bool))


def test_doubling_and_halving():
  x = jnp.arange(16.0).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(wgan_gp.double(x)[0, :2, :4, 0], [[0, 0, 1, 1], [0, 0, 1, 1]])
  np.testing.assert_array_equal(wgan_gp.halve(x)[0, 0, :, 0], [2.5, 4.5])
  np.testing.assert_array_equal(wgan_gp.halve(wgan_gp.double(x)), x)


def test_the_critic_gets_more_updates_and_its_own_schedule():
  """Linear decay to 0 by the last step, for both networks: a third step moves neither."""
  assert method.micro_batches(wgan_gp.build()) == 5
  tx = {"lr": 1e-3, "decay": "linear", "steps": 2}
  made = wgan_gp.build(**TOY, gen_args={"width": 4}, critic_args={"width": 4}, n_critic=2, tx=tx)
  run = jax.jit(lambda s: step.train_step(made, s, {"image": jnp.ones((2, 4, 1, 1, 2))}, KEY(1))[0])
  one = run(step.init_state(made, KEY(0)))
  two = run(one)
  three = run(two)
  moved = lambda a, b, net: any(
    jax.tree.leaves(jax.tree.map(lambda x, y: (x != y).any(), a.params[net], b.params[net]))
  )
  for net in ("gen", "critic"):
    assert moved(one, two, net) and not moved(two, three, net), net


def test_repeated_keys_are_new_ones():
  repeat = lambda n: jax.random.key_data(noise.repeat(noise.rows(KEY(0), n), 2))
  data, again = repeat(3), repeat(1)
  assert data.shape[0] == 6 and len(np.unique(data, axis=0)) == 6
  np.testing.assert_array_equal(again, data[jnp.array([0, 3])])

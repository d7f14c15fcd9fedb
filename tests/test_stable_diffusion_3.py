"""Stable Diffusion 3: texts as arrays, what is dropped of them, times, guidance, errors."""

import functools
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from configs.flow_matching import stable_diffusion_3 as config
from jaxgen import noise
from jaxgen.convert import mmdit as convert
from jaxgen.core import axis, method, step
from jaxgen.core.method import Vars
from jaxgen.models.flow_matching import stable_diffusion_3 as model

KEY = jax.random.key
fresh_keys = lambda: jax.random.split(KEY(0), 4)  # a key is used once
ENCODERS = (((0, 2), (0, 3), (0, 2)), ((0, 2), (3, 5), (2, 5)), ((2, 3), (0, 6), (0, 0)))
TINY = dict(
  image_shape=(4, 4, 2),
  context_shape=(3, 6),
  embedding_size=5,
  encoders=ENCODERS,
  net_args=dict(depth=1, pos_embed_max_size=2, pos_embed_base_size=2),
)
build = functools.partial(model.build, **TINY)
RNG = np.random.default_rng(0)
BATCH = {
  k: RNG.standard_normal((4, *s)).astype(np.float32)
  for k, s in {"image": (4, 4, 2), "context": (3, 6), "embedding": (5,)}.items()
}
BATCH["context"][:, :2, 5] = 0.0  # nobody's
TEXT = {k: BATCH[k] for k in ("context", "embedding")}


@functools.cache
def random_vars():
  """Nothing is zero: outputs depend on every part."""
  draw = lambda s: np.random.default_rng(s.size).standard_normal(s.shape).astype(np.float32)
  small = lambda s: 0.3 * draw(s)
  return jax.tree.map(small, jax.eval_shape(build().init, KEY(0)))


# Texts


def test_each_encoder_is_dropped_by_itself():
  keys = jax.random.split(KEY(1), 4000)
  ones = jnp.ones((4000, 3, 6)), jnp.ones((4000, 5))
  drop = lambda keys: model.drop_text(keys, *ones, 0.464, ENCODERS)
  context, embedding = map(np.asarray, jax.jit(drop)(keys))
  gone = 1.0 - np.stack([context[:, 0, 0], context[:, 1, 3], context[:, 2, 5]])
  np.testing.assert_allclose(gone.mean(axis=1), 0.464, atol=0.03)  # 4 standard errors
  np.testing.assert_allclose(np.prod(gone, axis=0).mean(), 0.1, atol=0.02)  # no text at all
  for i, (tokens, channels, whole) in enumerate(ENCODERS):
    part = context[:, slice(*tokens), slice(*channels)].reshape(4000, -1)
    part = np.concatenate([part, embedding[:, slice(*whole)]], axis=1)
    np.testing.assert_array_equal(part, np.tile(1.0 - gone[i][:, None], part.shape[1]))
  np.testing.assert_array_equal(context[:, :2, 5], 1.0)  # nobody's
  more = jax.random.split(KEY(2), 4000)
  context, embedding = (x.reshape(4000, -1) for x in model.drop_text(more, *ones, 0.5, ()))
  np.testing.assert_array_equal(context.min(axis=1), embedding.max(axis=1))  # all or nothing
  assert 0.45 < embedding.mean() < 0.55


def test_loss_sees_the_text_as_often_as_it_should():
  for rate, seen in ((0.0, True), (1.0, False)):
    loss = build(text_dropout=rate).phases["net"].loss
    run = jax.jit(lambda text, keys, loss=loss: loss(random_vars(), BATCH | text, keys)[0])
    for name in TEXT:
      assert (run({}, fresh_keys()) != run({name: -TEXT[name]}, fresh_keys())) == seen, name


@pytest.mark.evidence("R03", "M")
def test_loss_is_that_of_the_paper():
  """Eq. 2, 12 at the paper's time s = 1 - t, 1 at the noise: |v(z_s, 1000 s) - (eps - x)|^2."""
  made, vars = build(text_dropout=0.0, shift=2.0, times="mode"), random_vars()
  k_loss, _, k_t = noise.split(fresh_keys(), 3)
  _, k_eps = noise.split(k_loss)
  x, eps, u = BATCH["image"], noise.normal(k_eps, (4, 4, 2)), noise.uniform(k_t)
  s = 1.0 - u - 1.29 * (jnp.cos(jnp.pi * u / 2.0) ** 2 - 1.0 + u)  # Eq. 20
  s = 2.0 * s / (1.0 + s)  # Eq. 23

  def ours(vars):
    z = (1.0 - s).reshape(4, 1, 1, 1) * x + s.reshape(4, 1, 1, 1) * eps
    net = model.mmdit.MMDiT(**TINY["net_args"], out_channels=2)
    v = net.apply({"params": vars.params["net"]}, z, 1000.0 * s, *TEXT.values())
    return jnp.mean((v - (eps - x)) ** 2), made.phases["net"].loss(vars, BATCH, fresh_keys())[0]

  expected, found = jax.jit(ours)(vars)
  np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_density_and_shift_enter():
  options = [{}, {"shift": 1.0}, {"times": "uniform"}, {"times_args": {"m": 1.0}}]
  losses = [build(text_dropout=0.0, **o).phases["net"].loss for o in options]
  run = jax.jit(lambda vars: [loss(vars, BATCH, fresh_keys())[0] for loss in losses])
  assert len({float(x) for x in run(random_vars())}) == len(options)


@pytest.mark.evidence("R03", "G", "W")
def test_denoiser_of_the_authors_code():
  """Their network in our field: x = z - sigma v of sd3_impls.py, at sigma = 1 - t."""
  v, close = golden.load("sd3_mmdit_tiny_noqk")
  args, variables = convert.from_torch({k[2:]: x for k, x in v.items() if k.startswith("w.")})
  channels = args.pop("out_channels")
  made = model.build(
    image_shape=(8, 8, channels),
    context_shape=(5, 12),
    embedding_size=10,
    encoders=(),
    net_args=args,
  )
  vars = Vars({"net": variables["params"]}, {"net": {"buffers": variables["buffers"]}})
  z, sigma = v["in.x"].transpose(0, 2, 3, 1), v["in.t"] / 1000.0
  cond = {"context": v["in.context"], "embedding": v["in.y"]}
  predict = lambda: made.fns["field"](vars, cond, w=0.0).predict(z, 1.0 - sigma)
  x = jax.jit(predict)().x
  close(((z - x) / sigma.reshape(2, 1, 1, 1)).transpose(0, 3, 1, 2), "out")


def test_guidance_is_away_from_no_text():
  made, vars = build(), random_vars()
  t = np.array([0.1, 0.4, 0.7, 0.9], np.float32)

  @jax.jit
  def run(text):
    at = lambda cond, w: made.fns["field"](vars, cond, w=w).velocity(BATCH["image"], t)
    nothing = jax.tree.map(jnp.zeros_like, text)
    return at(text, 0.0), at(nothing, 0.0), at(text, 2.0)

  c, u, guided = run(TEXT)
  np.testing.assert_allclose(guided, 3.0 * c - 2.0 * u, rtol=1e-3, atol=1e-3)
  assert np.abs(c - u).max() > 0.01


# Steps and samples of texts


def test_steps_of_two_devices_and_samples_in_any_batch():
  made = build(sampler=dict(name="euler", steps=2, grid="shifted"), tx=dict(lr=1e-3))
  assert made.given == ("context", "embedding")
  state = jax.jit(lambda key: step.init_state(made, key))(KEY(0))
  batch = {k: v[None] for k, v in BATCH.items()}
  run = lambda s, b: step.train_step(made, s, b, KEY(1))[1]
  mesh = Mesh(np.asarray(jax.devices()[:2]), (axis.NAME,))
  specs = dict(in_specs=(P(), P(None, axis.NAME)), out_specs=P(), check_vma=False)
  two = jax.jit(jax.shard_map(run, mesh=mesh, **specs))(state, batch)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5)
  jax.tree.map(close, two, jax.jit(run)(state, batch))

  draw = jax.jit(lambda keys, cond: made.fns["sample"](random_vars(), keys, cond)["image"])
  whole = draw(fresh_keys(), TEXT)
  assert whole.shape == (4, 4, 4, 2) and np.isfinite(whole).all()
  np.testing.assert_allclose(
    draw(fresh_keys()[1:3], {k: v[1:3] for k, v in TEXT.items()}), whole[1:3], rtol=1e-3, atol=1e-4
  )


def test_labels_have_texts_of_their_own():
  made = build(n_classes=3, encoders=(), text_dropout=0.0, guidance_weight=0.0)
  assert made.given == () and set(made.fns) == {"sample", "field"}
  shapes = jax.eval_shape(made.init, KEY(0)).params["net"]
  assert shapes["text"].shape == (3, 3 * 6 + 5)
  table = RNG.standard_normal((3, 23)).astype(np.float32)
  vars = Vars({"net": random_vars().params["net"] | {"text": table}})
  label, t = np.array([0, 2, 2, 1], np.int32), np.full(4, 0.3, np.float32)

  @jax.jit
  def run(label):
    at = lambda made, cond: made.fns["field"](vars, cond, w=0.0).velocity(BATCH["image"], t)
    rows = jnp.asarray(table)[label]
    text = {"context": rows[:, :18].reshape(4, 3, 6), "embedding": rows[:, 18:]}
    nothing = jax.tree.map(jnp.zeros_like, text)
    plain = build()
    return at(made, {"label": label}), at(plain, text), at(made, {}), at(plain, nothing)

  labelled, as_text, null, no_text = run(label)
  np.testing.assert_allclose(labelled, as_text, rtol=1e-4, atol=1e-4)
  np.testing.assert_allclose(null, no_text, rtol=1e-4, atol=1e-4)
  assert np.abs(labelled - null).max() > 0.01


# Configs and errors


@pytest.mark.evidence("R03", "P")
def test_config_is_the_paper():
  c = config.get_config()
  made = method.build(c.model, c.args)
  params = jax.eval_shape(made.init, KEY(0)).params
  assert sum(x.size for x in jax.tree.leaves(params)) == 2_028_328_000
  assert 0.464**3 == pytest.approx(0.1, abs=1e-3)


def loss_of(**arrays):
  return build().phases["net"].loss(random_vars(), BATCH | arrays, fresh_keys())


CALLS = [
  ("context_shape=(3,): expected two whole", lambda: build(context_shape=(3,))),
  ("embedding_size=0: expected a whole", lambda: build(embedding_size=0)),
  ("encoders[1]=((0, 2), (3, 7), (2, 5)): expected three", lambda: build(
    encoders=(ENCODERS[0], ((0, 2), (3, 7), (2, 5))))),
  ("encoders[0]=((0, 2),): expected three", lambda: build(encoders=(((0, 2),),))),
  ("encoders[0]=3: expected three", lambda: build(encoders=(3,))),
  ("text_dropout=1.5: expected", lambda: build(text_dropout=1.5)),
  ("n_classes=-1: expected", lambda: build(n_classes=-1)),
  ("guidance_weight=nan: expected", lambda: build(guidance_weight=float("nan"))),
  ("shift=0: expected", lambda: build(shift=0)),
  ("pixels=1: expected True or False", lambda: build(pixels=1)),
  ("ode_steps=0: expected", lambda: build(ode_steps=0)),
  ("times='normal': expected one of", lambda: build(times="normal")),
  ("times_args.a=4.0: logit_normal takes no", lambda: build(times_args={"a": 4.0})),
  ("net_args.width=64: MMDiT takes no", lambda: build(net_args=dict(width=64))),
  ("depth=0: expected", lambda: build(net_args=dict(depth=0))),
  ("height=5: expected a multiple of patch_size=2", lambda: build(image_shape=(5, 4, 2))),
  ("width=6: expected a multiple of patch_size=2, at most 4", lambda: build(image_shape=(4, 6, 2))),
  ("expected image_shape=(4, 4, 2)", lambda: loss_of(image=BATCH["image"][:, :2])),
  ("context=(4, 2, 6): expected a float", lambda: loss_of(context=BATCH["context"][:, 1:])),
  ("embedding='int32': expected a", lambda: loss_of(embedding=np.zeros((4, 5), np.int32))),
  ("context=None: expected a float array", lambda: build().fns["field"](random_vars(), {})),
  ("w=inf: expected", lambda: build().fns["field"](random_vars(), TEXT, w=float("inf"))),
  ("cond has context, embedding", lambda: build(n_classes=3).fns["field"](random_vars(), TEXT)),
  ("variant='x': expected one of", lambda: config.get_config("x")),
]  # fmt: skip


@pytest.mark.parametrize("words, call", CALLS, ids=[words for words, _ in CALLS])
def test_bad_input(words, call):
  with pytest.raises(ValueError, match=re.escape(words)):
    call()

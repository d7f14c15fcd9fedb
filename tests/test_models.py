"""The contract that every model keeps. Models are found by their configs: nothing to register."""

import functools
import importlib
import inspect
import re

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import recipes
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jaxgen import noise
from jaxgen.core import axis, checkpoint, inference, method, step
from jaxgen.core import config as config_lib
from jaxgen.data import pipeline, sources

KEY = jax.random.key
ROOT = recipes.ROOT


@functools.cache
def built(path):
  """(config, method, state, one batch) of a smoke variant."""
  config = recipes.smoke(path)
  made = method.build(config.model, config.args)
  source = sources.open_source(config.data.source, "train")
  k = method.micro_batches(made)
  batch = next(pipeline.batches(source, rows=config.data.batch_size, micro_batches=k, steps=1))
  return config, made, jax.jit(lambda key: step.init_state(made, key))(KEY(0)), batch


def configs_with(fn):
  """Parametrises over the configs whose methods offer `fn`."""
  smoke = lambda path: (lambda c: method.build(c.model, c.args))(recipes.smoke(path))
  found = [path for path in recipes.CONFIGS if fn in smoke(path).fns]
  return pytest.mark.parametrize("path", found, ids=recipes.name)


every_config = pytest.mark.parametrize("path", recipes.CONFIGS, ids=recipes.name)


def with_sgd(made):
  """Adam turns the rounding noise of a zero gradient (a key bias of attention) into full steps."""
  plain = lambda p: p if isinstance(p.tx, str) else p._replace(tx=optax.sgd(1e-2))
  return made._replace(phases={k: plain(p) for k, p in made.phases.items()})


@functools.cache
def one_step(path):
  """(method with SGD, its state, state and metrics after a step on one device, that step)."""
  _, made, _, batch = built(path)
  made = with_sgd(made)
  state = jax.jit(lambda key: step.init_state(made, key))(KEY(0))
  run = jax.jit(lambda s: step.train_step(made, s, batch, KEY(1)))
  return made, state, *run(state), run


@every_config
def test_a_step_trains_what_it_owns_and_nothing_else(path):
  made, state, new, metrics, _ = one_step(path)
  assert {*made.fns} <= {*method.FNS}
  assert all(np.isfinite(v).all() for v in jax.tree.leaves(metrics))
  assert jax.tree.structure(new) == jax.tree.structure(state)
  for net in state.params:
    pairs = zip(jax.tree.leaves(state.params[net]), jax.tree.leaves(new.params[net]), strict=True)
    moved = any((a != b).any() for a, b in pairs)
    assert moved == (net in method.trained(made)), net


@every_config
def test_a_checkpoint_goes_on_to_the_bit(path, tmp_path):
  """Acceptance test 3: the step after a state, and after what a checkpoint of it gives back."""
  _, _, state, _, run = one_step(path)
  workdir, note = checkpoint.open_workdir(tmp_path), {"seed": 0}
  with checkpoint.open_manager(workdir, note) as manager:
    checkpoint.save(manager, state)
  with checkpoint.open_manager(workdir, note) as manager:
    restored = checkpoint.restore(manager, checkpoint.newest(manager, note), state)
  chex.assert_trees_all_equal(run(jax.device_get(restored)), run(state))


@every_config
def test_two_devices_take_the_step_of_one(path):
  """Under shard_map, the strictest mode: no local ratios, row slices or noise per device."""
  made, state, *one, _ = one_step(path)
  run = lambda s, b: step.train_step(made, s, b, KEY(1))
  mesh = Mesh(np.asarray(jax.devices()[:2]), (axis.NAME,))
  specs = dict(in_specs=(P(), P(None, axis.NAME)), out_specs=P(), check_vma=False)
  two = jax.jit(jax.shard_map(run, mesh=mesh, **specs))(state, built(path)[3])

  def close(where, a, b):
    atol = 2e-6 + 2e-5 * np.abs(a).max(initial=0)
    np.testing.assert_allclose(b, a, rtol=2e-5, atol=atol, err_msg=jax.tree_util.keystr(where))

  jax.tree_util.tree_map_with_path(close, *jax.device_get((tuple(one), two)))


@configs_with("sample")
def test_a_sample_is_the_same_on_four_devices_and_on_one_in_any_batch(path):
  config, made, state, _ = built(path)
  conditions = inference.conditions(config, made, 12)
  cond = conditions.cond(pipeline.load(conditions, np.arange(12)))
  draw = inference.sampler(made, 4)
  whole = draw(state.vars, KEY(2), 12, cond)["image"]
  assert whole.shape == (12, *config.args.image_shape) and np.isfinite(whole).all()
  alone = jax.jit(lambda keys, cond: made.fns["sample"](state.vars, keys, cond)["image"])
  part = alone(noise.rows(KEY(2), 3, first=5), {k: v[5:8] for k, v in cond.items()})
  np.testing.assert_allclose(part, whole[5:8], rtol=1e-5, atol=1e-5)
  assert (np.ptp(whole, axis=0) > 0).any(axis=(0, 1)).all()


@configs_with("log_prob")
def test_evaluation_does_not_depend_on_the_batch(path):
  """10 examples as evaluation takes them, and in another program, which rounds in another way."""
  config, made, state, _ = built(path)
  source = sources.open_source(config.data.source, "test")
  result = inference.evaluator(made, 4)(state.vars, source, KEY(3), limit=10)
  assert result["n"] == 10 and 0.0 < result.get("bits_per_dim", 1.0) < 20.0
  assert ("bits_per_dim" in result) != made.coded
  batch = pipeline.load(source, np.arange(10))
  alone = made.fns["log_prob"](state.vars, batch, noise.rows(KEY(3), 10))
  np.testing.assert_allclose(result["nats"], np.mean(alone), rtol=1e-5)


def variants(path):
  """Those of a config, the paper's data set first."""
  return re.findall(r"\w+", re.search(r"VARIANTS = \(([^)]*)\)", path.read_text())[1])


@every_config
def test_variants_are_complete_and_fit_their_models(path):
  """Every variant passes the check, builds, and names its paper, command and expected number."""
  text = path.read_text()
  doc = text[: text.index("\nimport")]
  paper = r"arXiv:\d{4}\.\d{4,5}|doi:10\.\d{4}|https://(openreview|proceedings)\S+"  # no arXiv
  assert re.search(paper, doc) and "Paper:" in doc and "Ours" in doc
  assert f"python -m experiments.train --config={path.relative_to(ROOT)}:" in doc
  for variant in variants(path):
    config = config_lib.read(f"{path}:{variant}")
    config_lib.check(config)
    module = importlib.import_module(f"jaxgen.models.{config.model}")
    assert set(config.args) == set(inspect.signature(module.build).parameters)  # all are flags
    vars = jax.eval_shape(method.build(config.model, config.args).init, KEY(0))
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(vars.params))
    if variant == variants(path)[0]:  # the paper's, which the defaults of `build` are
      defaults = jax.eval_shape(method.build(config.model, {}).init, KEY(0))
      chex.assert_trees_all_equal(vars, defaults)
  with pytest.raises(ValueError, match=f"variant='non': expected one of {variants(path)[0]}, "):
    config_lib.read(f"{path}:non")


def test_every_model_has_a_config_of_the_same_name():
  models = ROOT / "jaxgen/models"
  files = {str(p.relative_to(models).with_suffix("")) for p in models.glob("*/[a-z]*.py")}
  assert files == {str(p.relative_to(ROOT / "configs").with_suffix("")) for p in recipes.CONFIGS}


def larger(side, channels):
  """Keywords of a WGAN-GP whose critic mirrors its generator."""
  critic = {"channels": sorted(channels), "downs": 5}
  return {"image_shape": (side, side, 3), "gen_args": {"channels": channels}, "critic_args": critic}


@pytest.mark.parametrize(
  "model, args, sizes",
  [
    ("diffusion.ddpm", {}, {"net": 35_746_307}),  # the official code's, hojonathanho/diffusion
    # Eleven classes, the null class among them, each with 4 * 128 numbers.
    ("diffusion.ddpm", {"n_classes": 10}, {"net": 35_746_307 + 11 * 512}),
    # The official code's, igul222/improved_wgan_training; with classes, the head beside the score.
    ("gan.wgan_gp", {}, {"gen": 1_204_483, "critic": 1_053_825}),
    ("gan.wgan_gp", {"n_classes": 10}, {"gen": 1_218_307, "critic": 1_053_825 + 10 * 129}),
    # Those of kwotsin/mimicry for larger images.
    (
      "gan.wgan_gp",
      larger(64, (1024, 512, 256, 128, 64)),
      {"gen": 12_220_675, "critic": 10_141_441},
    ),
    (
      "gan.wgan_gp",
      larger(128, (1024, 1024, 512, 256, 128, 64)),
      {"gen": 32_150_787, "critic": 29_017_857},
    ),
  ],
)
@pytest.mark.evidence("D02", "P")
@pytest.mark.evidence("G06", "P")
def test_sizes(model, args, sizes):
  params = jax.eval_shape(method.build(model, args).init, KEY(0)).params
  assert {k: sum(x.size for x in jax.tree.leaves(v)) for k, v in params.items()} == sizes


conditional = [path for path in recipes.CONFIGS if recipes.smoke(path).args.get("n_classes")]


@pytest.mark.parametrize("path", conditional, ids=recipes.name)
def test_guidance_pushes_away_from_the_null_class(path):
  """w = 0 is the conditional model; w > 0 is (1 + w) conditional - w unconditional, in x."""
  config = recipes.small(path)
  made = method.build(config.model, config.args)
  if "field" not in made.fns:
    pytest.skip("no field: nothing guides it")
  vars = jax.jit(made.init)(KEY(0))
  noisy = lambda x: x + 0.3 * jax.random.normal(KEY(x.size), x.shape)
  vars = vars._replace(params=jax.tree.map(noisy, vars.params))
  field = made.fns["field"]
  x, label = 0.1 * jax.random.normal(KEY(1), (3, 8, 8, 1)), jnp.array([1, 2, 3])
  t = jnp.full(3, 0.5 if "flow" in config.model else 1.0)
  at = lambda vars, cond, w, x=x, t=t: field(vars, cond, w=w).predict(x, t).x
  told = {"label": label}
  cond, null, guided = jax.jit(
    lambda vars: (at(vars, told, 0.0), at(vars, {}, 0.0), at(vars, told, 2.0))
  )(vars)
  assert jnp.abs(cond - null).max() > 1e-3
  np.testing.assert_allclose(guided, 3.0 * cond - 2.0 * null, atol=1e-4)
  if "ddpm" in config.model:  # where the guided x leaves [-1, 1], it is clipped
    x, t = jax.random.normal(KEY(2), x.shape), jnp.full(3, 800.0)
    assert jnp.abs(at(vars, told, 3.0, x, t)).max() == 1.0


def test_bfloat16_compute_keeps_float32_parameters_and_losses():
  config = recipes.small("flow_matching/flow_matching.py")
  losses = []
  for dtype in ("float32", "bfloat16"):
    config.args.net_args = dict(width=16, depth=1, dtype=dtype)
    made = method.build(config.model, config.args)
    state = jax.jit(lambda key, made=made: step.init_state(made, key))(KEY(0))
    batch = {"image": jnp.ones((1, 8, 8, 8, 1)), "label": jnp.zeros((1, 8), jnp.int32)}
    run = jax.jit(lambda s, made=made, batch=batch: step.train_step(made, s, batch, KEY(1)))
    for _ in range(3):
      state, metrics = run(state)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(state.params))
    losses.append(metrics["net/loss"][0])
    assert losses[-1].dtype == jnp.float32
  np.testing.assert_allclose(*losses, rtol=2e-2)  # eight bits of mantissa


@pytest.mark.parametrize(
  "model, args, words",
  [
    ("diffusion.dppm", {}, "model='diffusion.dppm' does not exist; did you mean 'diffusion.ddpm'"),
    (
      "diffusion.ddpm",
      {"emma": 1},
      "args.emma=1: diffusion.ddpm takes no such keyword; did you mean 'ema'?",
    ),
    ("diffusion.ddpm", {"net": "UNnet"}, "net='UNnet': expected one of ADM, DiT"),
    ("diffusion.ddpm", {"net_args": {"width": 3}}, "net_args.width=3: UNet takes no such keyword"),
    ("diffusion.ddpm", {"tx": {"lr": float("nan")}}, "tx.lr=nan"),
    ("diffusion.ddpm", {"beta_T": 1.5}, "beta_T=1.5: expected between 0 and 1"),
    ("vae.vae", {"decoder": "poisson"}, "decoder='poisson': expected one of bernoulli, gaussian"),
    ("vae.vae", {"z_dim": 0}, "z_dim=0: expected a whole number, 1 or more"),
    ("gan.wgan_gp", {"net": "DCGAN"}, "net='DCGAN': expected one of ResNet, MLP"),
    ("gan.wgan_gp", {"net": "MLP", "n_classes": 2, "gen_args": {}}, "n_classes=2: expected 0 for"),
    (
      "gan.wgan_gp",
      {"gen_args": {"width": 3}},
      "gen_args.width=3: Generator takes no such keyword",
    ),
    ("gan.wgan_gp", {"image_shape": (30, 30, 3)}, "image_shape=(30, 30, 3): expected height and"),
    ("gan.wgan_gp", {"gp_weight": float("nan")}, "gp_weight=nan: expected a finite number"),
    ("gan.wgan_gp", {"n_critic": 2.5}, "n_critic=2.5: expected a whole number"),
    ("gan.wgan_gp", {"z_dim": 0}, "z_dim=0: expected a whole number"),
    ("gan.wgan_gp", {"class_weights": (1.0,)}, "class_weights=(1.0,): expected two"),
    ("gan.wgan_gp", {"gen_args": {"channels": ()}}, "gen_args.channels=(): expected at least one"),
    (
      "gan.wgan_gp",
      {"gen_args": {"channels": (8, -8)}},
      "gen_args.channels=(8, -8): expected a tuple",
    ),
    ("gan.wgan_gp", {"critic_args": {"downs": 5}}, "critic_args.downs=5: expected 0 to 4, its"),
    ("gan.wgan_gp", {"gen_args": {"dtype": "float17"}}, "gen_args.dtype='float17': expected float"),
  ],
)
def test_bad_models_are_refused(model, args, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    method.build(model, args)


def test_an_image_that_the_unet_cannot_halve_is_refused():
  made = method.build("diffusion.ddpm", {"image_shape": (30, 30, 3)})
  with pytest.raises(ValueError, match="x has height and width 30, 30: expected multiples of 8"):
    jax.eval_shape(made.init, KEY(0))


@pytest.mark.parametrize(
  "batch, words",
  [
    ({"image": jnp.zeros((1, 8, 28, 28, 1))}, r"\(28, 28, 1\): expected image_shape=\(8, 8, 1\)"),
    ({"image": jnp.zeros((1, 8, 8, 8, 1))}, "n_classes=10: expected data with labels"),
  ],
)
def test_a_batch_for_another_model_is_refused(batch, words):
  for path in recipes.CONFIGS:
    config = recipes.small(path)
    if "labels" in words and not config.args.get("n_classes"):
      continue
    made = method.build(config.model, config.args)
    state = jax.eval_shape(lambda made=made: step.init_state(made, KEY(0)))
    k = method.micro_batches(made)
    wrong = jax.tree.map(lambda x, k=k: jnp.repeat(x, k, axis=0), batch)
    run = lambda s, made=made, wrong=wrong: step.train_step(made, s, wrong, KEY(1))
    with pytest.raises(ValueError, match=words):
      jax.eval_shape(run, state)

"""DiT: size, initialisation and outputs of the authors' code, its two layouts, guidance, errors."""

import functools
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs.diffusion import dit as config
from jaxgen.convert import dit as convert
from jaxgen.core import method
from jaxgen.core.method import Vars
from jaxgen.models.diffusion import dit as model
from jaxgen.nn import dit, embeddings

KEY = jax.random.key
N_CLASSES = 5
SMALL = dict(width=24, depth=2, heads=3)
NET = dit.DiT(**SMALL, out_channels=6, n_classes=N_CLASSES)
X = np.random.default_rng(1).standard_normal((3, 4, 8, 3)).astype(np.float32)  # not square
T = np.array([0.0, 10.0, 999.0], np.float32)
LABEL = np.array([0, 3, N_CLASSES], np.int32)
tiny = functools.partial(model.build, n_classes=N_CLASSES, size="S", net_args=SMALL)


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(net, x=X, label=LABEL):
  x = jax.ShapeDtypeStruct((1, *x.shape[1:]), jnp.float32)
  return jax.eval_shape(net.init, KEY(0), x, T[:1], None if label is None else label[:1])["params"]


@functools.cache
def random_params():
  """Nothing is zero: outputs depend on every part."""
  rng = np.random.default_rng(0)
  draw = lambda s: 0.2 * rng.standard_normal(s.shape).astype(np.float32)
  return jax.tree.map(draw, shapes(NET))


@functools.cache
def forward(net):
  return jax.jit(lambda params, *args: net.apply({"params": params}, *args))


def authors():
  """(tensors of their tiny network, its inputs as ours, close)."""
  v, close = golden.load("dit_tiny_forward")
  tensors = {name[2:]: value for name, value in v.items() if name.startswith("w.")}
  x, label = v["in.x"].transpose(0, 2, 3, 1), v["in.y"].astype(np.int32)
  return tensors, (x, v["in.t"], label), lambda y, *args: close(y.transpose(0, 3, 1, 2), *args)


# The authors' numbers


@pytest.mark.evidence("D14", "G", "W")
def test_outputs_of_the_authors_network():
  tensors, inputs, close = authors()
  args, variables = convert.from_torch(tensors, heads=3)
  assert args == dict(
    patch_size=2, width=24, depth=2, heads=3, mlp_ratio=4.0, out_channels=8, n_classes=5
  )
  net = dit.DiT(**args)
  close(forward(net)(variables["params"], *inputs), "out")


@pytest.mark.evidence("D14", "G", "W")
def test_guidance_of_the_authors_code():
  """forward_with_cfg at scale 2.5: its first half is ours guided in 3 of 4 channels."""
  tensors, (x, t, label), close = authors()
  made = tiny(image_shape=(8, 8, 4), guided_channels=3)
  vars = Vars({"net": convert.from_torch(tensors, heads=3)[1]["params"]})
  predict = lambda cond, w: made.fns["field"](vars, cond, w=w).predict(x[:2], t[:2] + 1.0)
  both = lambda p: jnp.concatenate([p.eps, 2.0 * p.v - 1.0], axis=-1)
  guided, free = jax.jit(lambda cond: (predict(cond, 1.5), predict({}, 1.5)))({"label": label[:2]})
  second = jnp.concatenate([both(guided)[..., :3], both(free)[..., 3:]], axis=-1)
  close(jnp.concatenate([both(guided), second]), "cfg")


def test_all_channels_are_guided_unless_told():
  vars = Vars({"net": random_params()})

  @jax.jit
  def run(cond):
    def eps(n, cond, w):
      made = tiny(image_shape=(4, 8, 3), guided_channels=n)
      return made.fns["field"](vars, cond, w=w).predict(X, T + 1.0).eps

    return [eps(n, cond, 2.0) for n in (None, 3, 1)], eps(1, cond, 0.0), eps(1, {}, 2.0)

  (every, three, one), c, u = run({"label": jnp.minimum(LABEL, N_CLASSES - 1)})
  close = functools.partial(np.testing.assert_allclose, rtol=1e-4, atol=1e-5)
  close(every, 3.0 * c - 2.0 * u)
  close(three, every)
  close(one[..., :1], every[..., :1])
  close(one[..., 1:], c[..., 1:])
  assert np.abs(every - one)[..., 1:].max() > 0.01


@pytest.mark.evidence("D14", "G")
def test_positions():
  _, close = golden.load("dit_sincos_pos_embed")
  close(dit.positions(64, 8, 8), "d64_g8")
  close(dit.positions(32, 4, 4), "d32_g4")


def test_positions_of_a_grid_that_is_not_square():
  column, row = 2, 1  # of 2 rows and 3 columns; frequencies 1 and 0.01
  expected = [f(i * w) for i in (column, row) for f in (np.sin, np.cos) for w in (1.0, 0.01)]
  np.testing.assert_allclose(dit.positions(8, 2, 3)[3 * row + column], expected, atol=1e-6)


@pytest.mark.evidence("D14", "G")
def test_times():
  v, close = golden.load("dit_timestep_embedding")
  waves = embeddings.timestep_embedding(v["in.t"], dit.FREQUENCIES, endpoint=False, cos_first=True)
  close(waves, "e")


@pytest.mark.evidence("D14", "P")
def test_sizes():
  numbers = {
    ("XL", 2): 674_834_720,
    ("XL", 8): 675_664_640,
    ("L", 2): 457_840_672,
    ("L", 8): 458_578_432,
    ("B", 2): 130_315_808,
    ("B", 8): 130_869_248,
    ("S", 2): 32_865_056,
    ("S", 8): 33_142_016,
  }
  for (name, patch_size), expected in numbers.items():
    net = dit.DiT(**dit.SIZES[name], patch_size=patch_size, n_classes=1000)
    assert size(shapes(net.clone(scan=True), np.zeros((1, 32, 32, 4)))) == expected, net
    if patch_size == 2 and name in ("S", "XL"):  # of ImageNet 512 too
      assert size(shapes(net, np.zeros((1, 64, 64, 4)))) == expected, net


# Initialisation and layouts


def test_initialisation():
  p = jax.jit(NET.init)(KEY(0), X, T, LABEL)["params"]
  jax.tree.map(lambda x: np.testing.assert_array_equal(x, 0.0), [p["out"], p["out_modulation"]])
  biases = [v["bias"] for k, v in p.items() if "bias" in v]
  biases += [v["bias"] for v in p["block_1"].values()] + [p["block_1"]["modulation"]["kernel"]]
  assert not any(b.any() for b in biases)
  for kernel in [p["patch"]["kernel"], *(p["block_1"][n]["kernel"] for n in ("qkv", "fc_0"))]:
    limit = np.sqrt(6.0 / sum(kernel.shape))  # of Xavier's uniform, fused and flattened
    assert 0.95 * limit < np.abs(kernel).max() <= limit
  for values in (p["time_0"]["kernel"], p["time_1"]["kernel"], p["label"]["embedding"]):
    error = 4.0 / np.sqrt(2 * values.size)  # four standard errors
    np.testing.assert_allclose(np.std(values), 0.02, rtol=error)


def test_blocks_are_the_identity_and_the_output_zero():
  """adaLN-Zero: arXiv:2212.09748, Sec. 3.2."""
  block = dit.Block(3, 4.0, jnp.float32)
  x, c = X.reshape(3, 4, 24), X.reshape(3, -1)[:, :24]
  np.testing.assert_array_equal(jax.jit(block.init_with_output)(KEY(0), x, c)[0], x)
  assert not jax.jit(NET.init_with_output)(KEY(0), X, T, LABEL)[0].any()


def test_one_block_compiled_for_all():
  """The same output and gradients, and the same parameters after stack and unstack."""
  params, w = random_params(), np.random.default_rng(2).standard_normal((3, 4, 8, 6))
  stacked = dit.stack(params)
  scanned = NET.clone(scan=True)
  assert jax.tree.map(jnp.shape, stacked) == jax.tree.map(jnp.shape, shapes(scanned))
  jax.tree.map(np.testing.assert_array_equal, dit.unstack(stacked), params)

  def run(net, params):
    objective = lambda p: jnp.sum(net.apply({"params": p}, X, T, LABEL) * w.astype(np.float32))
    return jax.value_and_grad(objective)(params)

  y, grads = jax.jit(functools.partial(run, NET))(params)
  z, others = jax.jit(functools.partial(run, scanned))(stacked)
  np.testing.assert_allclose(y, z, rtol=1e-4)
  close = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-3)
  jax.tree.map(close, dit.stack(grads), others)
  p = jax.jit(scanned.init)(KEY(0), X, T, LABEL)["params"]["blocks"]["qkv"]["kernel"]
  assert (p[0] != p[1]).all()


def test_patches_and_back():
  patches = dit.patchify(X, 2)
  np.testing.assert_array_equal(patches[:, 5], X[:, 2:4, 2:4].reshape(3, -1))  # row 1, column 1
  np.testing.assert_array_equal(dit.unpatchify(patches, 2, 4, 8), X)


def test_half_precision():
  y = forward(NET)(random_params(), X, T, LABEL)
  half = forward(NET.clone(dtype="bfloat16"))(random_params(), X, T, LABEL)
  assert half.dtype == jnp.float32
  assert 0.0 < np.std(half - y) < 0.03 * np.std(y)  # one rounding is 0.4 %


# Labels


def test_labels_and_the_null_class():
  run, params = forward(NET), random_params()
  y = run(params, X, T, LABEL)
  for label in (0, 1, N_CLASSES):
    same = LABEL == label
    z = run(params, X, T, np.full(3, label, np.int32))
    moved = np.abs(z - y).max(axis=(1, 2, 3)) > 1e-3
    np.testing.assert_array_equal(moved, ~same)
  predict = lambda: (
    tiny(image_shape=(4, 8, 3)).fns["field"](Vars({"net": params})).predict(X, T + 1)
  )
  null = run(params, X, T, np.full(3, N_CLASSES, np.int32))
  np.testing.assert_allclose(jax.jit(predict)().eps, null[..., :3], rtol=1e-4, atol=1e-5)


def test_without_classes():
  made = tiny(image_shape=(4, 8, 3), n_classes=0, clip=True)
  vars = jax.jit(made.init)(KEY(0))
  assert "label" not in vars.params["net"]
  keys = jax.random.split(KEY(0), 2)
  x = jax.jit(functools.partial(made.fns["sample"], name="ancestral", steps=2))(vars, keys)["image"]
  assert x.shape == (2, 4, 8, 3) and np.isfinite(x).all()


def test_loss_sees_the_label_as_often_as_it_should():
  vars, image = Vars({"net": random_params()}), np.clip(X, -1.0, 1.0)
  for rate, seen in ((0.0, True), (1.0, False)):
    loss = tiny(image_shape=(4, 8, 3), label_dropout=rate).phases["net"].loss
    run = jax.jit(lambda label, keys, loss=loss: loss(vars, {"image": image, "label": label}, keys))
    at = lambda label, run=run: run(np.full(3, label, np.int32), jax.random.split(KEY(0), 3))[0]
    assert (at(0) != at(4)) == seen


# Configs and errors


def test_config_is_the_paper():
  c = config.get_config()
  made = method.build(c.model, c.args)
  assert size(jax.eval_shape(made.init, KEY(0))) == 674_834_720
  c = config.get_config("mnist16")
  assert size(jax.eval_shape(method.build(c.model, c.args).init, KEY(0))) == 976_008


CALLS = [
  ("size='M': expected one of S, B, L, XL", lambda: model.build(size="M")),
  ("height=7: expected a multiple of patch_size=2", lambda: tiny(image_shape=(7, 8, 3))),
  ("width=9: expected a multiple of patch_size=2", lambda: tiny(image_shape=(8, 9, 3))),
  ("patch_size=0: expected a whole", lambda: model.build(patch_size=0)),
  ("heads=5: expected a divisor of width=24", lambda: tiny(net_args={**SMALL, "heads": 5})),
  ("heads=1: expected a divisor of width=6", lambda: tiny(net_args=dict(width=6, heads=1))),
  ("heads=0: expected a divisor", lambda: shapes(NET.clone(heads=0))),
  ("net_args.width=0: expected a whole", lambda: tiny(net_args=dict(width=0))),
  ("net_args.wide=8", lambda: tiny(net_args=dict(wide=8))),
  ("net_args.dtype='int8'", lambda: tiny(net_args=dict(dtype="int8"))),
  ("mlp_ratio=-1: expected", lambda: tiny(net_args=dict(mlp_ratio=-1))),
  ("net_args.scan='no': expected True or False", lambda: tiny(net_args=dict(scan="no"))),
  ("guided_channels=5: expected a whole number, 1 to 4", lambda: tiny(guided_channels=5)),
  ("clip=1: expected", lambda: tiny(clip=1)),
  ("beta_T=2: expected", lambda: tiny(beta_T=2)),
  ("bound_terms=20: expected", lambda: tiny(T=10, bound_terms=20)),
  ("steps=250: expected a whole number, 1 to 10", lambda: tiny(T=10, bound_terms=1)),
  ("label=(1,): expected None", lambda: shapes(NET.clone(n_classes=0), label=LABEL)),
  ("label=None: expected int32", lambda: shapes(NET, label=None)),
  ("dim=6: expected a multiple of 4", lambda: dit.positions(6, 2, 2)),
  ("variant='x': expected one of", lambda: config.get_config("x")),
]


@pytest.mark.parametrize("words, call", CALLS, ids=[words for words, _ in CALLS])
def test_bad_input(words, call):
  with pytest.raises(ValueError, match=re.escape(words)):
    call()


# Weights


def exported():
  """Tensors of a network in the authors' names, and our parameters."""
  p = random_params()
  layer = lambda name, d: {f"{name}.weight": d["kernel"].T, f"{name}.bias": d["bias"]}
  theirs = {"qkv": "attn.qkv", "proj": "attn.proj", "fc_0": "mlp.fc1", "fc_1": "mlp.fc2"}
  theirs["modulation"] = "adaLN_modulation.1"
  tensors = {
    "pos_embed": dit.positions(24, 4, 4)[None].astype(np.float16),
    "x_embedder.proj.weight": p["patch"]["kernel"].reshape(2, 2, 3, 24).transpose(3, 2, 0, 1),
    "x_embedder.proj.bias": p["patch"]["bias"],
    "y_embedder.embedding_table.weight": p["label"]["embedding"],
    **layer("t_embedder.mlp.0", p["time_0"]),
    **layer("t_embedder.mlp.2", p["time_1"]),
    **layer("final_layer.adaLN_modulation.1", p["out_modulation"]),
    **layer("final_layer.linear", p["out"]),
  }
  for i in range(2):
    for name, d in p[f"block_{i}"].items():
      tensors |= layer(f"blocks.{i}.{theirs[name]}", d)
  return tensors, p


def test_conversion_keeps_every_tensor():
  tensors, params = exported()
  args, variables = convert.from_torch(tensors, heads=3)
  jax.tree.map(np.testing.assert_array_equal, variables["params"], params)
  assert dit.DiT(**args) == NET
  del tensors["pos_embed"]
  again = convert.from_torch(tensors, heads=3)[1]
  jax.tree.map(np.testing.assert_array_equal, again, variables)
  del tensors["y_embedder.embedding_table.weight"]
  args, variables = convert.from_torch(tensors, heads=3)
  assert args["n_classes"] == 0 and "label" not in variables["params"]


def test_conversion_refuses_what_does_not_fit():
  tensors, _ = exported()
  optional = {"pos_embed", "y_embedder.embedding_table.weight"}
  for name in tensors.keys() - optional:
    with pytest.raises(KeyError, match=re.escape(name)):
      convert.from_torch({k: v for k, v in tensors.items() if k != name}, heads=3)
  for words, changed, heads in [
    ("no place for .'extra'", {"extra": np.zeros(3)}, 3),
    ("no place for .'blocks.3.attn.proj.bias'", {"blocks.3.attn.proj.bias": np.zeros(24)}, 3),
    ("blocks.1.attn.qkv.weight is", {"blocks.1.attn.qkv.weight": np.zeros((24, 24))}, 3),
    ("y_embedder.* is", {"y_embedder.embedding_table.weight": np.zeros((6, 8))}, 3),
    ("blocks.0.mlp.fc2.bias is", {"blocks.0.mlp.fc2.bias": np.zeros(3)}, 3),
    ("pos_embed .* is not", {"pos_embed": tensors["pos_embed"][:, ::-1]}, 3),
    ("pos_embed .* is not", {"pos_embed": tensors["pos_embed"][:, :15]}, 3),
    ("heads=None: expected a number, as the width is 24", {}, None),
  ]:
    with pytest.raises(ValueError, match=words):
      convert.from_torch({**tensors, **changed}, heads=heads)

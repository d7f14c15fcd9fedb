"""Networks of jaxgen.nn: sizes and initialisation of the papers, conditioning, dropout, errors."""

import functools
import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise
from jaxgen.nn import embeddings, mlp, unet

KEY = jax.random.key(0)
HERE = pathlib.Path(__file__).parent
B, H, N_CLASSES = 4, 8, 3
SMALL = dict(channels=8, multipliers=(1, 2), n_res_blocks=1, attention=(4,), n_classes=N_CLASSES)
UNET = unet.UNet(**SMALL, dropout=0.5)
MLP = mlp.ResidualMLP(width=16, depth=2, n_classes=N_CLASSES)
X = np.random.default_rng(1).standard_normal((B, H, H, 3)).astype(np.float32)
T = np.array([0, 10, 500, 999], np.int32)
LABEL = np.array([0, 1, 2, N_CLASSES], np.int32)
nets = pytest.mark.parametrize("net", [UNET, MLP], ids=["unet", "mlp"])


def golden(name):
  """(arrays, assert_close) of a golden vector."""
  for folder in (HERE / "golden", HERE.parents[1] / "shared/golden"):
    if (folder / f"{name}.npz").exists():
      rule = json.loads((folder / f"{name}.json").read_text())
      return np.load(folder / f"{name}.npz"), functools.partial(
        np.testing.assert_allclose, rtol=rule["rtol"], atol=rule["atol"]
      )
  pytest.skip(f"golden vector {name}.npz is neither in tests/golden nor in ../shared/golden")


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(net, x=X, label=LABEL):
  return jax.eval_shape(net.init, KEY, x, np.zeros(len(x), np.float32), label)["params"]


@functools.cache
def random_params(net):
  """Nothing is zero: outputs depend on every part."""
  rng = np.random.default_rng(0)

  def draw(s):
    fan_in = s.size // s.shape[-1]
    return rng.standard_normal(s.shape).astype(np.float32) / np.sqrt(fan_in).astype(np.float32)

  return jax.tree.map(draw, shapes(net))


@functools.cache
def forward(net):
  """One program for many tests: (params, x, t, label) -> output."""
  return jax.jit(lambda params, *args: net.apply({"params": params}, *args))


@functools.cache
def dropped(net):
  """The same with dropout: (params, x, t, label, keys) -> output."""
  return jax.jit(
    lambda params, *args, keys: net.apply({"params": params}, *args, noise.stream(keys))
  )


def keys(seed=0):
  return jax.random.split(jax.random.key(seed), B)


# Embeddings


def test_timestep_embedding_of_guided_diffusion():
  v, close = golden("timestep_embedding_guided")
  for dim in (128, 7):
    close(
      embeddings.timestep_embedding(v["in.timesteps"], dim, endpoint=False, cos_first=True),
      v[f"out.dim{dim}"],
    )


def test_timestep_embedding_of_diffusers():
  v, close = golden("diffusers_timestep_embedding")
  close(embeddings.timestep_embedding(v["in.t"], 32), v["out.default"])
  close(
    embeddings.timestep_embedding(v["in.t"], 32, endpoint=False, cos_first=True),
    v["out.flip_shift0"],
  )


def test_timestep_embedding_closed_form():
  t = jnp.array([0, 3], jnp.int32)
  y = embeddings.timestep_embedding(t, 7, max_period=100)  # frequencies 1, 0.1, 0.01
  angles = np.array([3.0, 0.3, 0.03])
  np.testing.assert_allclose(y[1], [*np.sin(angles), *np.cos(angles), 0], atol=1e-6)
  np.testing.assert_array_equal(y[0], [0, 0, 0, 1, 1, 1, 0])
  assert y.dtype == jnp.float32


# UNet: size and initialisation


def test_unet_has_the_size_of_ddpm():
  parts = {
    "cond": 328_704,
    "conv_in": 3_584,
    "down_0": 870_272,
    "down_1": 3_480_320,
    "down_2": 3_215_104,
    "down_3": 2_625_024,
    "mid": 2_888_704,
    "up_3": 6_692_608,
    "up_2": 6_692_608,
    "up_1": 7_155_712,
    "up_0": 1_789_952,
    "norm_out": 256,
    "conv_out": 3_459,
  }
  params = shapes(unet.UNet(), np.zeros((1, 32, 32, 3)), None)
  found = dict.fromkeys(parts, 0)
  for name, tree in params.items():
    name = name.replace("sample", "")  # the authors count downsample_0 in down_0
    part = next(part for part in parts if name.startswith(part))
    found[part] += size(tree)
  assert found == parts
  assert size(params) == 35_746_307


def test_groups():
  assert unet.group_count(128) == unet.group_count(192) == unet.group_count(256) == 32
  assert [unet.group_count(c) for c in (2, 8, 16, 24, 64)] == [1, 2, 4, 6, 16]


def test_unet_initialisation():
  key = jax.random.key(0, impl="rbg")  # compiles 3x faster
  params = jax.jit(UNET.init)(key, X, T, LABEL)["params"]
  y = forward(UNET)(params, X, T, LABEL)
  assert y.shape == X.shape and y.dtype == jnp.float32
  assert 0 < jnp.abs(y).max() < 1e-3

  flat = {"/".join(p.key for p in path): v for path, v in jax.tree.leaves_with_path(params)}
  assert all(not v.any() for name, v in flat.items() if name.endswith("bias"))
  for name, v in flat.items():
    if name.endswith("kernel"):
      fans = np.prod(v.shape[:-2]) * (v.shape[-2] + v.shape[-1])
      zero = any(part in name for part in ("conv_1", "proj", "conv_out"))
      bound = np.sqrt((1e-10 if zero else 1) * 6 / fans)  # of a uniform with variance 2 / fans
      np.testing.assert_allclose(jnp.abs(v).max(), bound, rtol=0.05, err_msg=name)


# UNet: its parts


def test_attention_is_softmax_over_all_pixels():
  x = X[:2, :4, :2]  # [B, H, W, C]
  net = unet.Attention(groups=1, dtype=jnp.float32)
  rng = np.random.default_rng(2)
  params = jax.tree.map(
    lambda s: rng.standard_normal(s.shape).astype(np.float32),
    jax.eval_shape(net.init, KEY, x)["params"],
  )
  dense = lambda name, h: h @ params[name]["kernel"] + params[name]["bias"]
  h = (x - x.mean((1, 2, 3), keepdims=True)) / np.sqrt(x.var((1, 2, 3), keepdims=True) + 1e-6)
  h = h * params["norm"]["scale"] + params["norm"]["bias"]
  w = np.einsum("bhwc,bHWc->bhwHW", dense("q", h), dense("k", h)) * 3**-0.5
  w = np.exp(w) / np.exp(w).sum((3, 4), keepdims=True)
  expected = x + dense("proj", np.einsum("bhwHW,bHWc->bhwc", w, dense("v", h)))
  np.testing.assert_allclose(net.apply({"params": params}, x), expected, rtol=1e-5, atol=1e-5)


def test_upsample():
  np.testing.assert_array_equal(unet.upsample(X), X.repeat(2, axis=1).repeat(2, axis=2))


def test_dropout_by_hand():
  x = jnp.array([[1.0, 2.0, 3.0, 4.0]])
  draw = lambda shape: jnp.array([[0.0, 0.24, 0.25, 0.99]]).reshape(1, *shape)
  np.testing.assert_allclose(unet.dropout(x, 0.25, draw), [[0, 0, 4, 16 / 3]], rtol=1e-6)
  assert unet.dropout(x, 0.25, None) is x


def test_dropout_of_the_unet():
  args = random_params(UNET), X, T, LABEL
  off, on = forward(UNET)(*args), dropped(UNET)(*args, keys=keys())
  assert (jnp.abs(on - off).max((1, 2, 3)) > 1e-2).all()
  np.testing.assert_array_equal(on, dropped(UNET)(*args, keys=keys()))
  other = dropped(UNET)(*args, keys=keys(1))
  assert (jnp.abs(on - other).max((1, 2, 3)) > 1e-2).all()


# Both networks


@nets
def test_a_row_does_not_depend_on_the_others(net):
  run = functools.partial(dropped(net), random_params(net))
  y = run(X, T, LABEL, keys=keys())
  roll = lambda a: jnp.roll(a, 1, axis=0)
  data = jax.random.key_data(keys())
  rolled = run(roll(X), roll(T), roll(LABEL), keys=jax.random.wrap_key_data(roll(data)))
  np.testing.assert_allclose(rolled, roll(y), rtol=1e-5, atol=1e-5)
  others = X.copy()
  others[1:] += 1
  np.testing.assert_allclose(run(others, T, LABEL, keys=keys())[0], y[0], rtol=1e-5, atol=1e-5)


@nets
def test_time_and_label_matter(net):
  run = functools.partial(forward(net), random_params(net))
  y = run(X, T, LABEL)
  assert y.shape == X.shape and y.dtype == jnp.float32
  for other in (run(X, T + 1, LABEL), run(X, T, (LABEL + 1) % (N_CLASSES + 1))):
    assert (jnp.abs(other - y).max((1, 2, 3)) > 1e-2).all()  # the null class is a class too


@nets
def test_bfloat16_computes_close_to_float32(net):
  half = net.clone(dtype=jnp.bfloat16)
  assert shapes(half) == shapes(net)
  assert all(p.dtype == jnp.float32 for p in jax.tree.leaves(shapes(half)))
  y, y_half = (forward(n)(random_params(net), X, T, LABEL) for n in (net, half))
  assert y_half.dtype == jnp.float32
  # A rounding to 8 bits is up to 0.4 % off, and the errors of some 30 layers partly cancel: 0.6 %.
  error = jnp.sqrt(jnp.mean((y_half - y) ** 2) / jnp.mean(y**2))
  assert 1e-4 < error < 0.02


@nets
def test_label_errors(net):
  with pytest.raises(ValueError, match=r"label=None: expected int32 \[B\], as n_classes=3"):
    shapes(net, X, None)
  with pytest.raises(ValueError, match=r"label=\(4,\): expected None, as n_classes=0"):
    shapes(net.clone(n_classes=0), X, LABEL)


def test_shape_errors_of_the_unet():
  with pytest.raises(ValueError, match=r"height and width 8, 9: expected multiples of 2"):
    shapes(UNET, np.zeros((B, 8, 9, 3)))
  with pytest.raises(ValueError, match=r"attention=\(5,\): expected heights among \[8, 4\]"):
    shapes(UNET.clone(attention=(5,)))


# Residual MLP


def test_mlp_size_and_identity_at_initialisation():
  net = mlp.ResidualMLP(n_classes=10)
  x = X[..., :1]
  assert size(shapes(net, x)) == 2_008_640

  params = jax.jit(MLP.init)(KEY, X, T, LABEL)["params"]
  assert not forward(MLP)(params, X, T, LABEL).any()
  params["out"]["kernel"] = random_params(MLP)["out"]["kernel"]
  y = forward(MLP)(params, X, T, LABEL)
  assert jnp.abs(y).max() > 0.1
  params["block_0_in"]["kernel"] += 1.0
  np.testing.assert_array_equal(forward(MLP)(params, X, T + 1, LABEL), y)

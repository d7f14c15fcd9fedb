"""MM-DiT: sizes and outputs of the authors' code, its positions and grids of times, errors."""

import functools
import re

import flax.linen as nn
import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import paths
from jaxgen.convert import mmdit as convert
from jaxgen.nn import dit, mmdit
from jaxgen.samplers import grids, ode

KEY = jax.random.key
NET = mmdit.MMDiT(
  depth=2, out_channels=3, qk_norm="rms", pos_embed_max_size=6, pos_embed_base_size=3
)
RNG = np.random.default_rng(1)
X, CONTEXT, POOLED = (
  RNG.standard_normal(s).astype(np.float32) for s in ((3, 4, 8, 3), (3, 5, 12), (3, 10))
)
T = np.array([0.0, 10.0, 999.0], np.float32)


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(net, *, image=(4, 8, 3), context=(5, 12), pooled=10):
  arrays = [jax.ShapeDtypeStruct((1, *s), jnp.float32) for s in (image, (), context, (pooled,))]
  arrays[1] = jax.ShapeDtypeStruct((1,), jnp.float32)
  return jax.eval_shape(net.init, KEY(0), *arrays)["params"]


@functools.cache
def random_params(net):
  """Nothing is zero: outputs depend on every part."""
  rng = np.random.default_rng(0)
  draw = lambda s: (rng.standard_normal(s.shape) / np.sqrt(s.shape[0])).astype(np.float32)
  return jax.tree.map(draw, shapes(net))


@functools.cache
def forward(net):
  return jax.jit(lambda params, *args: net.apply({"params": params}, *args))


# The authors' numbers


@functools.cache
def authors():
  """(tensors of their tiny network, its inputs as ours, close)."""
  v, close = golden.load("sd3_mmdit_tiny_noqk")
  tensors = {name[2:]: value for name, value in v.items() if name.startswith("w.")}
  inputs = v["in.x"].transpose(0, 2, 3, 1), v["in.t"], v["in.context"], v["in.y"]
  return tensors, inputs, lambda y, *args: close(y.transpose(0, 3, 1, 2), *args)


@pytest.mark.evidence("R03", "G", "W")
def test_outputs_of_the_authors_network():
  tensors, inputs, close = authors()
  args, variables = convert.from_torch(tensors)
  base = args.pop("pos_embed_base_size")  # of no meaning: their table is random
  assert args == dict(patch_size=2, depth=2, out_channels=4, qk_norm="", pos_embed_max_size=6)
  assert variables["buffers"]["positions"].shape == (6, 6, 128)
  net = mmdit.MMDiT(**args, pos_embed_base_size=base)
  close(jax.jit(net.apply)(variables, *inputs), "out")


@pytest.mark.evidence("R03", "P")
def test_sizes():
  """The paper's networks; the table of positions is none of their parameters."""
  texts = dict(image=(128, 128, 16), context=(154, 4096), pooled=2048)
  for depth, qk_norm, expected in [
    (18, "", 856_159_552),
    (24, "", 2_028_328_000),
    (24, "rms", 2_028_334_144),
    (30, "", 3_962_392_384),
    (38, "rms", 8_056_627_520),
  ]:
    net = mmdit.MMDiT(depth=depth, qk_norm=qk_norm)
    # All blocks but the last are of one size: traced once. The whole of 24: the model's test.
    with nn.intercept_methods(past_blocks):
      found = size(shapes(net, **texts))
    h = jax.ShapeDtypeStruct((1, 1, 64 * depth), jnp.float32)
    c = jax.ShapeDtypeStruct((1, 64 * depth), jnp.float32)
    for last, n in ((False, depth - 1), (True, 1)):
      block = mmdit.Block(qk_norm, last, jnp.float32)
      found += n * size(jax.eval_shape(block.init, KEY(0), h, h, c))
    assert found == expected, net
  whole = {norm: size(shapes(NET.clone(qk_norm=norm))) for norm in mmdit.NORMS}
  assert whole["rms"] - whole[""] == 8 * mmdit.HEAD  # queries and keys, 2 streams, 2 blocks
  assert whole["ln"] - whole["rms"] == 8 * mmdit.HEAD


def past_blocks(call, args, kwargs, context):
  """Interceptor of Flax: blocks give what they are given."""
  return args[:2] if isinstance(context.module, mmdit.Block) else call(*args, **kwargs)


def test_positions():
  """The middle of the table; on its own grid with steps of 1 it is DiT's."""
  ours = functools.partial(mmdit.positions, 8)
  np.testing.assert_allclose(ours(4, 4, max_size=4, base_size=4), dit.positions(8, 4, 4), atol=1e-6)
  whole = ours(6, 6, max_size=6, base_size=2).reshape(6, 6, 8)
  middle = ours(2, 3, max_size=6, base_size=2).reshape(2, 3, 8)
  np.testing.assert_array_equal(middle, whole[2:4, 1:4])
  row, column = 3 / 3, 2 / 3  # of the second row, the second column
  expected = [f(i * w) for i in (column, row) for f in (np.sin, np.cos) for w in (1.0, 0.01)]
  np.testing.assert_allclose(middle[1, 1], expected, atol=1e-6)


def test_a_table_of_a_checkpoint_takes_the_place_of_ours():
  run = jax.jit(lambda v: NET.apply(v, X, T, CONTEXT, POOLED))
  params = random_params(NET)
  y = run({"params": params})
  table = mmdit.positions(128, 6, 6, max_size=6, base_size=3).reshape(6, 6, 128)
  same = run({"params": params, "buffers": {"positions": table}})
  np.testing.assert_allclose(same, y, rtol=1e-5, atol=1e-5)
  other = run({"params": params, "buffers": {"positions": table[::-1]}})
  assert np.abs(other - y).max() > 1e-2


# What the network does


def test_output_is_zero_at_first_and_tokens_of_text_have_no_order():
  variables = jax.jit(NET.init)(KEY(0), X, T, CONTEXT, POOLED)
  assert set(variables) == {"params"}
  assert not forward(NET)(variables["params"], X, T, CONTEXT, POOLED).any()
  run, params = forward(NET), random_params(NET)
  y = run(params, X, T, CONTEXT, POOLED)
  np.testing.assert_allclose(run(params, X, T, CONTEXT[:, ::-1], POOLED), y, rtol=1e-4, atol=1e-4)
  for changed in (
    (-X, T, CONTEXT, POOLED),
    (X, T + 5.0, CONTEXT, POOLED),
    (X, T, -CONTEXT, POOLED),
    (X, T, CONTEXT, -POOLED),
  ):
    assert (np.abs(run(params, *changed) - y).max(axis=(1, 2, 3)) > 1e-2).all()
  assert (np.abs(run(params, X[:, :, ::-1], T, CONTEXT, POOLED)[:, :, ::-1] - y) > 1e-2).any()


def test_half_precision():
  args = (random_params(NET), X, T, CONTEXT, POOLED)
  y, half = forward(NET)(*args), forward(NET.clone(dtype="bfloat16"))(*args)
  assert half.dtype == jnp.float32
  assert 0.0 < np.std(half - y) < 0.05 * np.std(y)  # one rounding is 0.4 %


# Weights


@functools.cache
def exported(net):
  """Tensors of a network in the authors' names, and our parameters."""
  p = random_params(net)
  layer = lambda name, d: {f"{name}.weight": d["kernel"].T, f"{name}.bias": d["bias"]}
  theirs = {"qkv": "attn.qkv", "proj": "attn.proj", "fc_0": "mlp.fc1", "fc_1": "mlp.fc2"}
  theirs["modulation"] = "adaLN_modulation.1"
  rest = {"time_0": "t_embedder.mlp.0", "time_1": "t_embedder.mlp.2", "out": "final_layer.linear"}
  rest |= {"pooled_0": "y_embedder.mlp.0", "pooled_1": "y_embedder.mlp.2"}
  rest |= {"context": "context_embedder", "out_modulation": "final_layer.adaLN_modulation.1"}
  table = mmdit.positions(128, 6, 6, max_size=6, base_size=3)
  tensors = {
    "pos_embed": table[None].astype(np.float16),
    "x_embedder.proj.weight": p["patch"]["kernel"].reshape(2, 2, 3, 128).transpose(3, 2, 0, 1),
    "x_embedder.proj.bias": p["patch"]["bias"],
  }
  for name, old in rest.items():
    tensors |= layer(old, p[name])
  for i in range(2):
    for name, d in p[f"block_{i}"].items():
      stream, _, part = name.partition("_")
      stem = f"joint_blocks.{i}.{stream}_block"
      if part.startswith("norm_"):
        arrays = {"scale": "weight", "bias": "bias"}
        tensors |= {f"{stem}.attn.ln_{part[-1]}.{arrays[k]}": v for k, v in d.items()}
      else:
        tensors |= layer(f"{stem}.{theirs[part]}", d)
  return tensors, p


@pytest.mark.parametrize("qk_norm", mmdit.NORMS)
def test_conversion_keeps_every_tensor(qk_norm):
  net = NET.clone(qk_norm=qk_norm)
  tensors, params = exported(net)
  for prefix in ("", convert.PREFIX):
    beside = {"first_stage_model.decoder.norm_out.bias": np.zeros(3)} if prefix else {}
    args, variables = convert.from_torch({prefix + k: v for k, v in tensors.items()} | beside)
    assert mmdit.MMDiT(**args) == net and set(variables) == {"params"}
    jax.tree.map(np.testing.assert_array_equal, variables["params"], params)


def test_conversion_refuses_what_does_not_fit():
  tensors, _ = exported(NET)
  gone = {"joint_blocks.0.x_block.attn.ln_q.weight": "no place for"}  # read as without norms
  for name in tensors.keys() - gone.keys():
    with pytest.raises(KeyError, match=re.escape(name)):
      convert.from_torch({k: v for k, v in tensors.items() if k != name})
  block = "joint_blocks.1"
  for words, changed in [
    ("no place for .'extra'", {"extra": np.zeros(3)}),
    ("no place for .*x_block.attn2", {f"{block}.x_block.attn2.proj.bias": np.zeros(128)}),
    ("3 blocks of width 128: expected a width of 192", {"joint_blocks.2.a": np.zeros(3)}),
    ("x_block.attn.qkv.weight is", {f"{block}.x_block.attn.qkv.weight": np.zeros((128, 128))}),
    (
      "context_block.adaLN",
      {f"{block}.context_block.adaLN_modulation.1.weight": np.zeros((768, 128))},
    ),
    ("x_block.attn.ln_k.weight is", {f"{block}.x_block.attn.ln_k.weight": np.zeros(3)}),
    ("pos_embed is", {"pos_embed": np.zeros((1, 35, 128))}),
  ]:
    with pytest.raises(ValueError, match=words):
      convert.from_torch({**tensors, **changed})


# Grids of times


@pytest.mark.evidence("R03", "G")
def test_levels_of_the_authors_code():
  """Their 1000 levels are ours before the data, but that ours end at the shift of the last."""
  v, close = golden.load("sd3_sigmas_shift3")
  move = lambda s: 3.0 * s / (1.0 + 2.0 * s)
  ts = np.asarray(grids.shifted(paths.Linear(), 1000, shift=3.0), np.float64)
  steps = np.linspace(1000.0, 1000.0 * move(1e-3), 1000)  # of timesteps
  sigmas = np.interp(v["in.timestep"], steps[::-1], (1.0 - ts)[:-1][::-1])
  inside = v["in.timestep"] >= steps[-1]
  assert inside.sum() >= 4 and ts[0] == 0.0 and ts[-1] == 1.0
  close(sigmas, "some", inside, rtol=1e-4, atol=1e-5)  # interpolation, and 1 - t in float32


@pytest.mark.evidence("R03", "G")
def test_euler_of_the_authors_code():
  v, close = golden.load("sd3_sample_euler")
  denoise = lambda x, t: 0.7 * jnp.tanh(x) * (1.0 - t).reshape(-1, 1, 1, 1) + 0.2 * x
  field = paths.x_field(paths.Linear(), denoise)
  close(
    jax.jit(lambda x, ts: ode.euler(field.velocity, x, ts))(v["in.x"], 1.0 - v["in.sigmas"]), "x"
  )


@pytest.mark.evidence("R03", "G")
def test_euler_of_diffusers():
  v, close = golden.load("diffusers_flowmatch_euler")
  ts = grids.shifted(paths.Linear(), 10, shift=1.0)
  close(1.0 - ts, "sigmas")
  close(1000.0 * (1.0 - ts[:-1]), "timesteps")

  def velocity(x, t):
    t = 1000.0 * (1.0 - t).reshape(-1, 1, 1, 1)
    return -(0.8 * jnp.tanh(x) * (0.5 + t / 2000.0) + 0.1 * jnp.cos(t / 100.0))

  close(jax.jit(lambda x: ode.euler(velocity, x, ts))(v["in.x_T"]), "x_0")


def test_shift_moves_steps_to_the_noise():
  plain, moved = (np.asarray(grids.shifted(paths.Linear(), 9, shift=s)) for s in (1.0, 3.0))
  for ts in (plain, moved):
    assert (np.diff(ts) > 0.0).all() and ts[0] == 0.0 and ts[-1] == 1.0 and len(ts) == 10
  assert (moved[1:-2] < plain[1:-2]).all()
  np.testing.assert_array_equal(grids.shifted(paths.Linear(), 1), [0.0, 1.0])
  np.testing.assert_allclose(grids.shifted(paths.Cosine(), 9), 1.0 - moved, atol=1e-6)


# Errors


CALLS = [
  ("height=7: expected a multiple of patch_size=2", lambda: shapes(NET, image=(7, 8, 3))),
  (
    "width=14: expected a multiple of patch_size=2, at most 12",
    lambda: shapes(NET, image=(8, 14, 3)),
  ),
  ("qk_norm='l2': expected one of '', 'rms', 'ln'", lambda: shapes(NET.clone(qk_norm="l2"))),
  ("context=(1, 12): expected an array of 3 axes", lambda: shapes(NET, context=(12,))),
  ("dim=6: expected a multiple of 4", lambda: mmdit.positions(6, 2, 2)),
  ("patches of width=5: expected", lambda: mmdit.positions(8, 2, 5, max_size=4)),
  ("shift=0: expected a finite number above 0", lambda: grids.shifted(paths.Linear(), 4, shift=0)),
  ("steps=0: expected", lambda: grids.shifted(paths.Linear(), 0)),
  ("expected one whose times are from 0 to 1", lambda: grids.shifted(paths.EDM(), 4)),
]


@pytest.mark.parametrize("words, call", CALLS, ids=[words for words, _ in CALLS])
def test_bad_input(words, call):
  with pytest.raises(ValueError, match=re.escape(words)):
    call()

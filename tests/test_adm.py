"""ADM, its relatives and its classifier: sizes, published outputs, conversion, parts and errors."""

import functools
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise
from jaxgen.convert import adm as convert
from jaxgen.nn import adm

KEY = jax.random.key(0)
B, H, N_CLASSES, AUGMENT = 3, 8, 5, 9
SMALL = dict(channels=16, multipliers=(1, 2), n_res_blocks=1, attention=(4,), head_channels=8)
NET = adm.ADM(**SMALL, n_classes=N_CLASSES, augment=AUGMENT, dropout=0.5)
X = np.random.default_rng(1).standard_normal((B, H, H, 3)).astype(np.float32)
T = np.array([0.0, 10.5, 999.0], np.float32)
LABEL = np.array([0, N_CLASSES - 1, N_CLASSES], np.int32)
ZEROS = np.zeros((B, AUGMENT), np.float32)
TINY = adm.ADM(16, (1,), 1, (), 8, n_classes=N_CLASSES, augment=AUGMENT)


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def shapes(net, x=X, **kwargs):
  return jax.eval_shape(functools.partial(net.init, **kwargs), KEY, x, np.zeros(len(x), np.float32))


@functools.cache
def params(net):
  """Nothing is zero: outputs depend on every part."""
  rng = np.random.default_rng(0)

  def draw(s):
    fan_in = s.size // s.shape[-1]
    return rng.standard_normal(s.shape).astype(np.float32) / np.sqrt(fan_in).astype(np.float32)

  return jax.tree.map(draw, shapes(net, label=LABEL)["params"])


@functools.cache
def forward(net):
  return jax.jit(lambda params, *args: net.apply({"params": params}, *args))


def run(label=LABEL, augment=ZEROS):
  """One program for many tests: NET with random weights."""
  return forward(NET)(params(NET), X, T, label, None, augment)


# Sizes, of shared/params.json


def count(image_size, in_channels=3, classifier=False, n_classes=0, **fields):
  net = adm.Classifier(**fields) if classifier else adm.ADM(n_classes=n_classes, **fields)
  x = np.zeros((1, image_size, image_size, in_channels), np.float32)
  return size(shapes(net, x, **({"label": np.zeros(1, np.int32)} if n_classes else {})))


LARGE = dict(channels=256, multipliers=(1, 1, 2, 2, 4, 4), n_res_blocks=2)
UPSAMPLER = dict(image_size=256, in_channels=6, multipliers=(1, 1, 2, 2, 4, 4), n_res_blocks=2)
UPSAMPLER |= dict(n_classes=1000, out_channels=6, head_channels=0, heads=4)
IMPROVED = dict(head_channels=0, heads=4, scale_shift=True, resblock_updown=False)


@pytest.mark.evidence("D09", "P")
@pytest.mark.parametrize(
  "expected, flags",
  [
    (295_904_454, dict(image_size=64, n_classes=1000, out_channels=6)),
    (553_838_086, dict(image_size=256, n_classes=1000, out_channels=6, **LARGE)),
    (552_814_086, dict(image_size=256, out_channels=6, **LARGE)),  # ImageNet and LSUN
    (311_795_910, UPSAMPLER),
    (65_438_568, dict(image_size=64, classifier=True)),
    (
      42_568_040,
      dict(image_size=128, classifier=True, multipliers=(1, 1, 2, 3, 4), n_res_blocks=2),
    ),
    (
      54_448_360,
      dict(image_size=512, classifier=True, multipliers=(0.5, 1, 1, 2, 2, 4, 4), n_res_blocks=2),
    ),
  ],
  ids=lambda x: str(x) if isinstance(x, int) else "",
)
def test_sizes_of_guided_diffusion(expected, flags):
  assert count(**flags) == expected


@pytest.mark.evidence("D04", "P")
@pytest.mark.parametrize(
  "expected, flags",
  [
    (52_546_438, dict(image_size=32, channels=128, multipliers=(1, 2, 2, 2), out_channels=6)),
    (121_060_483, dict(image_size=64, channels=128)),
    (273_049_350, dict(image_size=64, n_classes=1000, out_channels=6)),
    (279_792_390, UPSAMPLER),
  ],
  ids=lambda x: str(x) if isinstance(x, int) else "",
)
def test_sizes_of_improved_diffusion(expected, flags):
  assert count(**{"attention": (16, 8), **flags, **IMPROVED}) == expected


@pytest.mark.evidence("D08", "P")
@pytest.mark.evidence("D12", "P")
def test_size_of_consistency_models_and_of_edm():
  flags = dict(image_size=64, n_classes=1000)
  assert count(**flags, group_channels=4) == 295_899_267
  assert count(**flags, augment=AUGMENT) == 295_899_267 + 192 * AUGMENT


# Outputs and weights of the public code


def channels_last(x):
  return np.moveaxis(x, 1, -1)


def channels_first(x):
  return np.moveaxis(x, -1, 1)


def load(name):
  """(arrays in.*, state dict, close) of a golden vector."""
  arrays, close = golden.load(name)
  return arrays, {k[2:]: v for k, v in arrays.items() if k.startswith("w.")}, close


FLAGS = dict(image_size=8, head_channels=8, use_new_attention_order=False)


@pytest.mark.evidence("D09", "G")
@pytest.mark.evidence("D09", "W")
def test_adm_is_guided_diffusions():
  v, tensors, close = load("adm_unet_tiny_adm")
  args, variables = convert.from_torch(tensors, **FLAGS)
  net = adm.ADM(**args)
  y = jax.jit(net.apply)(variables, channels_last(v["in.x"]), v["in.t"], v["in.y"].astype(int))
  close(channels_first(y), "out")
  assert args == dict(
    channels=32,
    multipliers=(1, 2),
    n_res_blocks=1,
    attention=(4,),
    head_channels=8,
    scale_shift=True,
    resblock_updown=True,
    group_channels=1,
    n_classes=5,
    out_channels=6,
  )


@pytest.mark.evidence("D09", "G")
@pytest.mark.evidence("D09", "W")
def test_classifier_is_guided_diffusions():
  v, tensors, close = load("adm_classifier_tiny")
  args, variables = convert.from_torch(tensors, **FLAGS)
  net = adm.Classifier(**args)
  close(jax.jit(net.apply)(variables, channels_last(v["in.x"]), v["in.t"]), "logits")
  with pytest.raises(ValueError, match="image_size=12: expected 4 times a power of 2"):
    convert.from_torch(tensors, **FLAGS | {"image_size": 12})


@pytest.mark.evidence("D12", "G")
@pytest.mark.evidence("D12", "W")
def test_adm_is_edms_dhariwalunet():
  v, tensors, close = load("edm_dhariwalunet_tiny")
  args, variables = convert.from_torch(tensors)
  net = adm.ADM(**args)
  x, sigma = channels_last(v["in.x"]), v["in.sigma"].reshape(-1, 1, 1, 1)
  scale = np.sqrt(sigma**2 + 0.5**2)  # arXiv:2206.00364, Tab. 1, sigma_data 0.5
  label = v["in.labels"].argmax(-1)
  F = jax.jit(net.apply)(variables, x / scale, np.log(sigma).reshape(-1) / 4, label)
  close(channels_first(0.5**2 / scale**2 * x + 0.5 * sigma / scale * F), "D")

  bare = {k.removeprefix("model."): x for k, x in tensors.items()}
  jax.tree.map(np.testing.assert_array_equal, convert.from_torch(bare)[1], variables)
  with pytest.raises(ValueError, match="none for a DhariwalUNet"):
    convert.from_torch(tensors, image_size=8)


@functools.cache
def state_dict(C=32):
  """Of improved-diffusion's UNet of two levels, with attention in the second."""
  rng = np.random.default_rng(3)
  out, E = {}, 4 * C

  def layer(name, *shape):
    out[f"{name}.weight"] = rng.standard_normal(shape).astype(np.float32)
    if name != "label_emb":
      out[f"{name}.bias"] = rng.standard_normal(shape[0]).astype(np.float32)

  def res(name, a, b):
    layer(f"{name}.in_layers.0", a)
    layer(f"{name}.in_layers.2", b, a, 3, 3)
    layer(f"{name}.emb_layers.1", b, E)
    layer(f"{name}.out_layers.0", b)
    layer(f"{name}.out_layers.3", b, b, 3, 3)
    if a != b:
      layer(f"{name}.skip_connection", b, a, 1, 1)

  def attention(name, c):
    layer(f"{name}.norm", c)
    layer(f"{name}.qkv", 3 * c, c, 1)
    layer(f"{name}.proj_out", c, c, 1)

  layer("time_embed.0", E, C)
  layer("time_embed.2", E, E)
  layer("label_emb", N_CLASSES, E)
  layer("input_blocks.0.0", C, 3, 3, 3)
  for j, a, b in ((1, C, C), (2, C, C), (4, C, 2 * C), (5, 2 * C, 2 * C)):
    res(f"input_blocks.{j}.0", a, b)
    if j > 3:
      attention(f"input_blocks.{j}.1", b)
  layer("input_blocks.3.0.op", C, C, 3, 3)
  res("middle_block.0", 2 * C, 2 * C)
  attention("middle_block.1", 2 * C)
  res("middle_block.2", 2 * C, 2 * C)
  for j, a in enumerate([4 * C, 4 * C, 3 * C, 3 * C, 2 * C, 2 * C]):
    res(f"output_blocks.{j}.0", a, 2 * C if j < 3 else C)
    if j < 3:
      attention(f"output_blocks.{j}.1", 2 * C)
  layer("output_blocks.2.2.conv", 2 * C, 2 * C, 3, 3)
  layer("out.0", C)
  layer("out.2", 6, C, 3, 3)
  return out


FLAGS_4 = dict(image_size=H, heads=4, use_new_attention_order=False)
equal = functools.partial(jax.tree.map, np.testing.assert_array_equal)


@pytest.mark.evidence("D04", "W")
def test_weights_of_improved_diffusion_convert():
  tensors = state_dict()
  args, variables = convert.from_torch(tensors, **FLAGS_4)
  assert args == dict(
    channels=32,
    multipliers=(1, 2),
    n_res_blocks=2,
    attention=(4,),
    head_channels=0,
    heads=4,
    scale_shift=False,
    resblock_updown=False,
    group_channels=1,
    n_classes=N_CLASSES,
    out_channels=6,
  )
  p = variables["params"]
  kernel = lambda name: tensors[f"{name}.weight"].transpose(2, 3, 1, 0)
  equal(p["up_1_res_2"]["conv_0"]["kernel"], kernel("output_blocks.2.0.in_layers.2"))
  equal(p["up_0_res_0"]["conv_1"]["kernel"], kernel("output_blocks.3.0.out_layers.3"))
  equal(p["down_1_attn_1"]["norm"]["scale"], tensors["input_blocks.5.1.norm.weight"])
  equal(p["downsample_0"]["kernel"], kernel("input_blocks.3.0.op"))
  equal(p["upsample_1"]["kernel"], kernel("output_blocks.2.2.conv"))
  equal(p["cond"]["label"], tensors["label_emb.weight"])
  y = jax.jit(adm.ADM(**args).apply)(variables, X, T, LABEL)
  assert y.shape == (B, H, H, 6) and np.isfinite(y).all()


@pytest.mark.evidence("D08", "W")
def test_orders_of_attention_convert_to_one():
  tensors, heads = state_dict(), 4
  _, expected = convert.from_torch(tensors, **FLAGS_4)
  new = {}
  for name, x in tensors.items():
    if ".qkv." in name:
      x = x.reshape(heads, 3, -1, *x.shape[1:]).swapaxes(0, 1).reshape(x.shape)
    new[name] = x
  equal(convert.from_torch(new, **FLAGS_4 | {"use_new_attention_order": True})[1], expected)

  # Consistency models have convolutions of 1 x 1, 2-D, and q, k, v first.
  flags = FLAGS_4 | {"use_new_attention_order": None}
  cm = {k: x[..., None] if re.search(r"(qkv|proj_out)\.weight", k) else x for k, x in new.items()}
  equal(convert.from_torch(cm, **flags)[1], expected)
  with pytest.raises(ValueError, match="order=False: expected True for consistency models"):
    convert.from_torch(cm, **FLAGS_4)


def test_edms_order_of_attention():
  heads, c = 2, 4
  q_k_v = np.arange(3 * heads * c).reshape(3, heads, c)
  theirs = q_k_v.transpose(1, 2, 0).reshape(1, -1)  # NVlabs/edm, UNetBlock: head, channel, q k v
  equal(convert._by_qkv(theirs, heads, "edm"), q_k_v.reshape(1, -1))


CONVERSIONS = {
  "out.2.bias": (KeyError, "'out.2.bias' is missing", lambda d: d.pop("out.2.bias")),
  "left over": (ValueError, "no place for .'out.3.bias'.", lambda d: d.update({"out.3.bias": 0})),
  "shape": (ValueError, "out.0.bias is .7,.", lambda d: d.update({"out.0.bias": np.zeros(7)})),
  "not a network": (KeyError, "is missing", lambda d: d.clear()),
}


@pytest.mark.parametrize("case", CONVERSIONS)
def test_a_wrong_state_dict_is_refused(case):
  error, words, change = CONVERSIONS[case]
  tensors = dict(state_dict())
  change(tensors)
  with pytest.raises(error, match=words):
    convert.from_torch(tensors, **FLAGS_4)


def test_half_a_dhariwalunet_is_refused():
  with pytest.raises(KeyError, match="enc.8x8_block0.conv0.weight' is missing"):
    tensors = {
      "map_layer0.weight": np.zeros((16, 4)),
      "enc.8x8_conv.weight": np.zeros((4, 3, 3, 3)),
    }
    convert.from_torch(tensors)


@pytest.mark.parametrize(
  "flags, words",
  [
    ({"image_size": None}, "image_size=None: expected a whole number"),
    ({"heads": None}, "heads, head_channels.=.None, None.: expected one of them"),
    ({"head_channels": 8}, "heads, head_channels.=.4, 8.: expected one of them"),
    ({"heads": 0}, "heads or head_channels=0: expected a whole number"),
    ({"heads": 5}, "heads=5: expected a divisor of 64"),
    ({"use_new_attention_order": None}, "use_new_attention_order=None: expected True or False"),
    ({"image_size": 9}, "height and width 9, 9"),
  ],
  ids=lambda x: "" if isinstance(x, str) else "-".join(map(str, *x.items())),
)
def test_a_wrong_flag_is_refused(flags, words):
  with pytest.raises(ValueError, match=words):
    convert.from_torch(state_dict(), **FLAGS_4 | flags)


# Parts


def test_initialisation():
  """Residual blocks and the output are 0, the rest has torch's uniform(-1, 1) / sqrt(fan_in)."""
  key = jax.random.key(0, impl="rbg")  # compiles 3x faster
  p = jax.jit(TINY.init)(key, X, T, LABEL)["params"]
  assert not forward(TINY)(p, X, T, LABEL).any()
  flat = {"/".join(k.key for k in path): v for path, v in jax.tree.leaves_with_path(p)}
  zero = r".*(conv_1|proj|conv_out)/.*|cond/augment/kernel"
  for name, v in flat.items():
    module, _, array = name.rpartition("/")
    if re.fullmatch(zero, name):
      assert not v.any(), name
    elif f"{module}/kernel" in flat:
      fan_in = flat[f"{module}/kernel"][..., 0].size
      found = np.abs(v).max() * np.sqrt(fan_in)
      assert 0.7 < found <= 1.0, name  # the largest of 16 or more
  np.testing.assert_allclose(p["cond"]["label"].std(), 1.0, atol=0.15)  # 5 * 64 normal numbers


def test_the_null_class_adds_nothing():
  """The network without classes has other dropout too, which nothing turns on here."""
  y = run()
  free = adm.ADM(**SMALL)
  cond = {k: v for k, v in params(NET)["cond"].items() if k not in ("label", "augment")}
  expected = forward(free)({**params(NET), "cond": cond}, X, T)
  np.testing.assert_allclose(y[2], expected[2], rtol=1e-4, atol=1e-5)  # two programs, float32
  assert (jnp.abs(y - expected).max((1, 2, 3))[:2] > 1e-2).all()
  for label, row in ((LABEL + 1, 2), (LABEL - 1, 0)):  # of no class
    np.testing.assert_array_equal(np.isnan(run(label=label)).any((1, 2, 3)), np.arange(B) == row)


def test_dropout_only_with_draw():
  drop = jax.jit(lambda *args, keys: NET.apply({"params": params(NET)}, *args, noise.stream(keys)))
  keys = jax.random.split(KEY, B)
  on = drop(X, T, LABEL, keys=keys)
  assert (jnp.abs(on - run()).max((1, 2, 3)) > 1e-2).all()
  flip = drop(X[::-1], T[::-1], LABEL[::-1], keys=keys[::-1])  # noise is the example's
  np.testing.assert_allclose(flip[::-1], on, rtol=1e-4, atol=1e-5)


def test_augmentation_labels():
  ones = run(augment=np.ones((B, AUGMENT), np.float32))
  assert (jnp.abs(ones - run()).max((1, 2, 3)) > 1e-2).all()
  cond = adm.Conditioning(4, 0, AUGMENT)
  p = {"params": {**COND_PARAMS, "augment": {"kernel": np.ones((AUGMENT, 4), np.float32)}}}
  apply = jax.jit(cond.apply)
  none = apply(p, T)
  np.testing.assert_array_equal(apply(p, T, None, ZEROS), none)
  np.testing.assert_array_equal(none, forward(COND)(COND_PARAMS, T))


def test_times_are_embedded_unscaled():
  found = forward(COND)(COND_PARAMS, np.full(B, 3.0, np.float32))
  k = COND_PARAMS["time_0"]["kernel"]
  w = np.array([1.0, 0.01])  # 10000 ** -(i / 2), cosines first: no end point
  h = np.r_[np.cos(3.0 * w), np.sin(3.0 * w)] @ k
  h = (h / (1 + np.exp(-h))) @ COND_PARAMS["time_1"]["kernel"]
  np.testing.assert_allclose(found[0], h, rtol=1e-4, atol=1e-5)


COND = adm.Conditioning(4)
COND_PARAMS = jax.tree.map(
  lambda s: np.linspace(-1, 1, s.size, dtype=np.float32).reshape(s.shape) * (len(s.shape) > 1),
  jax.eval_shape(COND.init, KEY, np.zeros(1, np.float32))["params"],
)


def test_groups():
  assert [adm._group_count(c, 1) for c in (32, 64, 192)] == [32, 32, 32]  # guided-diffusion
  assert [adm._group_count(c, 4) for c in (32, 64, 128)] == [8, 16, 32]  # EDM
  assert [adm._group_count(c, 1) for c in (2, 8, 24, 48)] == [1, 2, 6, 12]


def test_a_width_is_rounded_not_cut():
  """240 * (176 / 240) is 175.99999999999997 in float64."""
  net = adm.ADM(**SMALL | dict(channels=240, multipliers=(176 / 240, 1), head_channels=16))
  assert shapes(net)["params"]["conv_in"]["bias"].shape == (176,)


def test_downsample_is_the_mean_of_four():
  x = np.arange(16.0).reshape(1, 4, 4, 1)
  np.testing.assert_array_equal(adm.downsample(x)[0, ..., 0], [[2.5, 4.5], [10.5, 12.5]])


def test_bfloat16():
  """The output is float32, and near: 8 bits of mantissa over 15 layers."""
  nets = TINY, TINY.clone(dtype=jnp.bfloat16)
  expected, y = (forward(net)(params(TINY), X, T, LABEL) for net in nets)
  assert y.dtype == jnp.float32 and expected.dtype == jnp.float32
  error = jnp.abs(y - expected).max() / jnp.abs(expected).max()
  assert 0 < error < 0.05


# Errors


@pytest.mark.parametrize(
  "fields, x, label, words",
  [
    ({"multipliers": ()}, X, None, r"multipliers=\(\): expected at least one"),
    (
      {"multipliers": (1, 2, 2, 2, 2)},
      X,
      None,
      "x has height and width 8, 8: expected multiples of 16",
    ),
    ({}, X[:, :, :7], None, "x has height and width 8, 7: expected multiples of 2"),
    ({"attention": (4, 5)}, X, None, r"attention=\(4, 5\): expected heights among \[8, 4\]"),
    ({"channels": 10, "multipliers": (1.25,)}, X[:, :4, :4], None, "=12.5: expected a whole"),
    ({"head_channels": 5}, X, None, "head_channels=5: expected a divisor of 32"),
    ({"head_channels": 0, "heads": 3}, X, None, "heads=3: expected a divisor of 32"),
    ({"head_channels": 0, "heads": 0}, X, None, "heads=0: expected a divisor of 32"),
    ({}, X, LABEL, "label=.3,.: expected None, as n_classes=0"),
    ({"n_classes": 5}, X, None, "label=None: expected int32 .B., as n_classes=5"),
  ],
)
def test_bad_input_is_refused(fields, x, label, words):
  with pytest.raises(ValueError, match=words):
    shapes(adm.ADM(**{**SMALL, **fields}), x, label=label)


def test_other_augmentation_labels_are_refused():
  with pytest.raises(ValueError, match=r"augment=\(3, 8\): expected None or \(3, 9\)"):
    shapes(NET, label=LABEL, augment=np.zeros((B, 8)))


def test_the_classifier_refuses_the_same():
  with pytest.raises(ValueError, match="attention=.3,.: expected heights among"):
    shapes(adm.Classifier(**SMALL | {"attention": (3,)}))

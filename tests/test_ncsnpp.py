"""NCSN++ and DDPM++: numbers of EDM and score SDE, sizes, resampling, conditioning, errors."""

import functools
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from jaxgen import noise
from jaxgen.convert import ncsnpp as convert
from jaxgen.nn import ncsnpp, unet

B, N_CLASSES = 3, 4
DDPMPP = ncsnpp.NCSNpp(multipliers=(2, 2, 2), augment=9)
NCSNPP = DDPMPP.clone(
  embedding="fourier", noise_multiplier=2, encoder="residual", resample_filter=(1, 3, 3, 1)
)
SMALL = NCSNPP.clone(
  channels=8,
  multipliers=(1, 2),
  n_res_blocks=1,
  attention=(4,),
  dropout=0.5,
  n_classes=N_CLASSES,
  decoder="skip",
)
RNG = np.random.default_rng(0)
X = RNG.standard_normal((B, 8, 8, 3)).astype(np.float32)
T = np.array([-1.5, 0.4, 0.7], np.float32)
LABEL = np.array([0, 3, N_CLASSES], np.int32)
AUGMENT = RNG.standard_normal((B, 9)).astype(np.float32)


def shapes(net, height=8, label=LABEL, augment=None):
  x = jax.ShapeDtypeStruct((B, height, height, 3), jnp.float32)
  more = {} if augment is None else {"augment": augment}  # which UNet does not take
  return jax.eval_shape(functools.partial(net.init, **more), jax.random.key(0), x, T, label)


def size(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def random_variables(net, label=LABEL):
  """Nothing is zero: outputs depend on every part."""
  rng = np.random.default_rng(1)

  def draw(s):
    fan_in = s.size // s.shape[-1]
    return (rng.standard_normal(s.shape) / np.sqrt(fan_in)).astype(np.float32)

  return jax.tree.map(draw, shapes(net, label=label))


VARIABLES = random_variables(SMALL)


@functools.cache
def forward(net):
  """One program for many tests: (variables, x, t, label, augment) -> output."""
  return jax.jit(lambda vars, x, t, label, augment: net.apply(vars, x, t, label, None, augment))


def run(label=LABEL, augment=AUGMENT, variables=VARIABLES, net=SMALL):
  return forward(net)(variables, X, T, label, augment)


def differ(a, b):
  return jnp.abs(a - b).max((1, 2, 3)) > 1e-2


# Numbers of the public codes


@pytest.mark.evidence("D12", "G", "W")
def test_golden_network_of_edm():
  v, close = golden.load("edm_songunet_tiny_ddpmpp")
  args, variables = convert.from_torch({k[2:]: w for k, w in v.items() if k.startswith("w.")})
  label = v["in.labels"].argmax(axis=1).astype(np.int32)
  x, sigma = v["in.x"].transpose(0, 2, 3, 1), v["in.sigma"]
  s = sigma[:, None, None, None]
  c = np.sqrt(s**2 + 0.5**2)  # c_in is 1 / c; sigma_data is 0.5, arXiv:2206.00364, Table 1
  net = ncsnpp.NCSNpp(**args)
  f = jax.jit(functools.partial(net.apply, augment=v["in.augment"]))
  f = f(variables, x / c, np.log(sigma) / 4, label)
  close((0.5**2 / c**2 * x + 0.5 * s / c * f).transpose(0, 3, 1, 2), "D")


@pytest.mark.evidence("D05", "G", "W")
@pytest.mark.parametrize("encoder", ["skip", "residual"])
def test_golden_network_of_score_sde(encoder):
  """Made by the authors' code: skip with Fourier features, residual with sinusoids; both FIR."""
  v, close = golden.load(f"score_sde_ncsnpp_tiny_{encoder}")
  tensors = {f"module.{k[2:]}": w for k, w in v.items() if k.startswith("w.")}
  tensors["module.sigmas"] = np.zeros(1000)
  args, variables = convert.from_torch(tensors, height=8)
  net = ncsnpp.NCSNpp(**args)
  assert (net.encoder, net.resample_filter, net.attention) == (encoder, (1, 3, 3, 1), (4,))
  t = v["in.time_cond"]
  t = np.log(t) if encoder == "skip" else t  # their network takes the logarithm itself
  y = jax.jit(net.apply)(variables, v["in.x"].transpose(0, 2, 3, 1), t)
  close(y.transpose(0, 3, 1, 2), "h")

  with pytest.raises(ValueError, match="height=None: expected that of the images"):
    convert.from_torch(tensors)
  del tensors[next(name for name in tensors if name.endswith("Conv_1.bias"))]
  with pytest.raises(KeyError, match=r"conv1.bias' is missing from the state dict"):
    convert.from_torch(tensors, height=8)


def edm_names(variables):
  """The inverse of the conversion, for a network of 8 x 8."""
  out = {"map_noise.freqs": variables["constants"]["map"]["frequencies"]}
  for path, value in traverse_util.flatten_dict(variables["params"]).items():
    *modules, array = path
    name = re.sub(r"(enc|dec)_(\d)", lambda m: f"{m[1]}." + "84"[int(m[2])], ".".join(modules))
    name = re.sub(r"\.([84])_", r".\1x\1_", name).replace("map.", "map_")
    if modules[-1] == "qkv":
      value = np.stack(np.split(value, 3, axis=-1), axis=-1).reshape(value.shape)
    value = np.moveaxis(value, (-1, -2), (0, 1)) if value.ndim > 1 else value
    if value.ndim == 2 and "map" not in name and "affine" not in name:
      value = value[:, :, None, None]
    out[f"{name}.{'bias' if array == 'bias' else 'weight'}"] = value
  taps = np.array([1, 3, 3, 1])
  out["enc.4x4_down.conv0.resample_filter"] = (np.outer(taps, taps) / 64)[None, None]
  return out


def test_weights_of_edm_bring_fields_and_frequencies():
  tensors = edm_names(VARIABLES)
  args, variables = convert.from_torch({f"model.{k}": w for k, w in tensors.items()})
  assert ncsnpp.NCSNpp(**args, dropout=SMALL.dropout) == SMALL
  jax.tree.map(np.testing.assert_array_equal, variables, VARIABLES)
  with pytest.raises(ValueError, match=r"no place for \['enc.8x8_more.weight'\]"):
    convert.from_torch(tensors | {"enc.8x8_more.weight": np.zeros(1)})
  with pytest.raises(ValueError, match=r"enc.4x4_down.skip.bias is \(9,\) .*: expected \(8,\)"):
    convert.from_torch(tensors | {"enc.4x4_down.skip.bias": np.zeros(9)})
  with pytest.raises(KeyError, match="'map_layer1.bias' is missing"):
    convert.from_torch({k: w for k, w in tensors.items() if k != "map_layer1.bias"})


# The order of score_sde's modules without images at the sides; attention is that of a block before.
STANDARD = """
  map.layer0 map.layer1 enc_0_conv enc_0_block0 enc_1_down enc_1_block0 attention
  dec_1_in0 attention dec_1_in1 dec_1_block0 dec_1_block1 attention
  dec_0_up dec_0_block0 dec_0_block1 dec_0_aux_norm dec_0_aux_conv
""".split()


def score_sde_names(params):
  """Those of a network of the modules `STANDARD`."""
  theirs = {ours: name for name, ours in convert.BLOCK.items()}
  flat, out = traverse_util.flatten_dict(params, sep="."), {}
  for i, module in enumerate(STANDARD):
    attends, start = module == "attention", f"all_modules.{i}"
    block = STANDARD[i - 1] if attends else module
    for name in [name for name in flat if name.startswith(f"{block}.")]:
      *layer, array = name.removeprefix(f"{block}.").split(".")
      value = flat[name]
      if bool({*layer} & {"norm2", "qkv", "proj"}) != attends:
        continue
      if layer == ["qkv"]:
        for j, part in enumerate(np.split(value, 3, axis=-1)):
          out[f"{start}.NIN_{j}.{'W' if array == 'kernel' else 'b'}"] = part
      elif layer == ["proj"]:
        out[f"{start}.NIN_3.{'W' if array == 'kernel' else 'b'}"] = value
      else:
        if layer == ["skip"] and array == "kernel":
          value = value[None, None]
        value = value if value.ndim == 1 else np.moveaxis(value, (-1, -2), (0, 1))
        layer = ["GroupNorm_0" if attends else theirs[x] for x in layer]
        out[".".join([start, *layer, "bias" if array == "bias" else "weight"])] = value
  return out


@pytest.mark.evidence("D05", "W")
def test_weights_of_score_sdes_ddpmpp():
  """Encoder and decoder "standard", which the golden vectors of its code do not have."""
  net = SMALL.clone(
    embedding="positional",
    noise_multiplier=1,
    encoder="standard",
    decoder="standard",
    resample_filter=(1, 1),
    n_classes=0,
    augment=0,
  )
  variables = random_variables(net, None)
  args, found = convert.from_torch(score_sde_names(variables["params"]), height=8)
  assert ncsnpp.NCSNpp(**args, dropout=net.dropout) == net
  jax.tree.map(np.testing.assert_array_equal, found, variables)


# Sizes: parameters of the official configurations, frozen frequencies apart

SKIP = NCSNPP.clone(
  encoder="skip", decoder="skip", augment=0, n_res_blocks=2, multipliers=(1, 1, 2, 2, 2, 2, 2)
)
FOUR = dict(multipliers=(1, 2, 2, 2), augment=0)
HIGH = dict(channels=16, multipliers=(1, 2, 4, 8, 16, 32, 32, 32), n_res_blocks=1)


@pytest.mark.evidence("D12", "P")
@pytest.mark.parametrize(
  "net, height, count",
  [
    (DDPMPP, 32, 55_733_891),
    (NCSNPP, 32, 56_397_827),
    (DDPMPP.clone(n_classes=10), 32, 55_735_299),
    (DDPMPP.clone(augment=0), 32, 55_732_739),
    (DDPMPP.clone(multipliers=(1, 2, 2, 2)), 64, 61_805_571),
  ],
)
def test_sizes_of_edm(net, height, count):
  label = LABEL if net.n_classes else None
  assert size(shapes(net, height, label)["params"]) == count


@pytest.mark.evidence("D05", "P")
@pytest.mark.parametrize(
  "net, height, count",
  [
    (ncsnpp.NCSNpp(), 32, 61_804_419),
    (ncsnpp.NCSNpp(n_res_blocks=8), 32, 106_632_579),
    (NCSNPP.clone(**FOUR), 32, 62_758_787),
    (NCSNPP.clone(**FOUR, embedding="positional", noise_multiplier=1), 32, 62_693_251),
    (
      NCSNPP.clone(**FOUR, n_res_blocks=8, embedding="positional", noise_multiplier=1),
      32,
      107_521_411,
    ),
    (SKIP, 256, 65_574_421),
    (SKIP.clone(**HIGH), 1024, 105_785_880),
    (unet.UNet(attend_once=True), 32, 35_218_947),
    (unet.UNet(attend_once=True, multipliers=(1, 1, 2, 2, 4, 4)), 256, 111_569_923),
  ],
)
def test_sizes_of_score_sde(net, height, count):
  assert size(shapes(net, height, None)["params"]) == count


def test_initialisation():
  assert shapes(SMALL)["constants"]["map"]["frequencies"].shape == (
    8,
  )  # channels each, sin and cos
  wide = SMALL.clone(multipliers=(1,), attention=(), noise_multiplier=200)
  variables = jax.jit(wide.init)(jax.random.key(0, impl="rbg"), X, T, LABEL)
  frequencies = variables["constants"]["map"]["frequencies"]
  np.testing.assert_allclose([frequencies.mean(), frequencies.std()], [0, 16], atol=2.5)
  flat = traverse_util.flatten_dict(variables["params"], sep="/")
  assert {v.dtype for v in flat.values()} == {jnp.dtype("float32")}
  assert all(not v.any() for name, v in flat.items() if name.endswith("bias"))
  for name, v in flat.items():
    if name.endswith("kernel") and v.size > 200:
      fans = np.prod(v.shape[:-2]) * (v.shape[-2] + v.shape[-1])
      zero = any(part in name for part in ("conv1", "proj", "aux_conv"))
      scale = 1e-5 if zero else 0.2**0.5 if "qkv" in name else 1
      np.testing.assert_allclose(jnp.abs(v).max(), scale * np.sqrt(6 / fans), rtol=0.05)


# Resampling


def convolved(x, taps, pad, **dilation):
  """Every channel with the outer product of the taps, whose sum is 1."""
  f = np.outer(taps, taps) / np.sum(taps) ** 2
  kernel = np.repeat(f[:, :, None, None], x.shape[-1], axis=-1).astype(np.float32)
  return jax.lax.conv_general_dilated(
    x,
    kernel,
    padding=[pad] * 2,
    dimension_numbers=("NHWC", "HWIO", "NHWC"),
    feature_group_count=x.shape[-1],
    **{"window_strides": (1, 1)} | dilation,
  )


@pytest.mark.parametrize("taps", [(1, 1), (1, 3, 3, 1), (1, 2, 5, 3, 1, 4)])
def test_resampling_is_a_convolution(taps):
  n = len(taps)
  p = (n - 1) // 2
  w = RNG.standard_normal((3, 3, 3, 5)).astype(np.float32)

  @jax.jit
  def all_of_them(x):
    conv = functools.partial(
      jax.lax.conv_general_dilated, rhs=w, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    return (
      (ncsnpp.downsample(x, taps), convolved(x, taps, (p, p), window_strides=(2, 2))),
      # EDM's transposed convolution, with 4 times the filter.
      (
        ncsnpp.upsample(x, taps),
        4 * convolved(x, taps[::-1], (n - 1 - p, n - 1 - p), lhs_dilation=(2, 2)),
      ),
      # The two orders of a convolution that halves, in score_sde and in EDM.
      (
        conv(ncsnpp.fir(x, taps, n // 2), window_strides=(2, 2), padding="VALID"),
        convolved(
          conv(x, window_strides=(1, 1), padding=[(1 + p, 1 + p)] * 2),
          taps,
          (0, 0),
          window_strides=(2, 2),
        ),
      ),
    )

  for ours, theirs in all_of_them(X):
    np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


def test_two_equal_taps_are_a_mean_and_a_repetition():
  mean = X.reshape(B, 4, 2, 4, 2, 3).mean((2, 4))
  np.testing.assert_allclose(ncsnpp.downsample(X, (1, 1)), mean, rtol=1e-6, atol=1e-6)
  np.testing.assert_array_equal(ncsnpp.upsample(X, (1, 1)), unet.upsample(X))


# What the network is told


def test_time_label_and_augmentation_matter():
  y = run()
  assert y.shape == X.shape and y.dtype == jnp.float32
  assert differ(forward(SMALL)(VARIABLES, X, T + 1, LABEL, AUGMENT), y).all()
  assert differ(run(label=(LABEL + 1) % (N_CLASSES + 1)), y).all()
  assert differ(run(augment=AUGMENT + 1), y).all()
  moved = jax.tree.map(lambda v: v + 0.1, VARIABLES["constants"])
  assert differ(run(variables=VARIABLES | {"constants": moved}), y).all()


def test_no_augmentation_is_zeros():
  mapping = ncsnpp.Mapping(16, 32, "fourier", N_CLASSES, 9, jnp.float32)
  variables = {name: tree["map"] for name, tree in VARIABLES.items()}
  told = [mapping.apply(variables, T, LABEL, a) for a in (None, 0 * AUGMENT, AUGMENT)]
  np.testing.assert_array_equal(told[0], told[1])
  assert jnp.abs(told[2] - told[1]).max() > 0.1


def test_the_null_label_tells_nothing_of_the_class():
  params = dict(VARIABLES["params"])
  label = {**params["map"]["label"], "kernel": 2 * params["map"]["label"]["kernel"]}
  params["map"] = {**params["map"], "label": label}
  changed = differ(run(variables=VARIABLES | {"params": params}), run())
  np.testing.assert_array_equal(changed, LABEL < N_CLASSES)


def test_what_is_no_class_is_nan():
  y = run(label=np.array([-1, 0, N_CLASSES + 1], np.int32))
  np.testing.assert_array_equal(np.isnan(y).any((1, 2, 3)), [True, False, True])


def test_dropout_only_with_draw():
  dropped = jax.jit(lambda keys: SMALL.apply(VARIABLES, X, T, LABEL, noise.stream(keys), AUGMENT))
  keys = lambda seed: jax.random.split(jax.random.key(seed), B)
  y = dropped(keys(0))
  assert differ(y, run()).all() and differ(y, dropped(keys(1))).all()
  np.testing.assert_array_equal(y, dropped(keys(0)))


def test_rows_are_independent():
  y = run()
  others = X.copy()
  others[1:] += 1
  y_others = forward(SMALL)(VARIABLES, others, T, LABEL, AUGMENT)
  np.testing.assert_allclose(y_others[0], y[0], rtol=1e-5, atol=1e-5)
  assert differ(y_others, y)[1:].all()


def test_bfloat16_computes_close_to_float32():
  half = SMALL.clone(dtype=jnp.bfloat16)
  assert shapes(half) == shapes(SMALL)
  y, y_half = run(), run(net=half)
  assert y_half.dtype == jnp.float32
  # As test_nn.py has it for the UNet: roundings of 0.4 % that partly cancel.
  error = jnp.sqrt(jnp.mean((y_half - y) ** 2) / jnp.mean(y**2))
  assert 1e-4 < error < 0.02


@pytest.mark.parametrize(
  "fields, height, words",
  [
    ({}, 9, "x has height and width 9, 9: expected multiples of 2"),
    ({"attention": (5,)}, 8, r"attention=\(5,\): expected heights among \[8, 4\]"),
    ({"multipliers": ()}, 8, r"multipliers=\(\): expected at least one"),
    ({"embedding": "sine"}, 8, "embedding='sine': expected one of positional, fourier"),
    ({"encoder": "unet"}, 8, "encoder='unet': expected one of standard, skip, residual"),
    ({"decoder": "residual"}, 8, "decoder='residual': expected one of standard, skip"),
    ({"resample_filter": (1, 2, 1)}, 8, r"resample_filter=\(1, 2, 1\): expected an even number"),
    ({"channels": 132}, 8, "channels=132: expected widths of 4, 8, ..., 128"),
    ({"channels": 2}, 8, "channels=2: expected widths of 4"),
    ({"n_classes": 0}, 8, r"label=\(3,\): expected None, as n_classes=0"),
  ],
)
def test_errors(fields, height, words):
  with pytest.raises(ValueError, match=words):
    shapes(SMALL.clone(**fields), height)


def test_errors_of_conditioning():
  with pytest.raises(ValueError, match=r"label=None: expected int32 \[B\], as n_classes=4"):
    shapes(SMALL, label=None)
  with pytest.raises(ValueError, match=r"augment=\(3, 8\): expected None or \(3, 9\)"):
    shapes(SMALL, augment=AUGMENT[:, :8])
  with pytest.raises(ValueError, match=r"augment=\(3, 9\): expected None or \(3, 0\)"):
    shapes(SMALL.clone(augment=0), augment=AUGMENT)

"""VDVAE against the official code's numbers, its size, and what its bound is made of."""

import functools
import re

import golden
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxgen import noise
from jaxgen.convert import vdvae as convert
from jaxgen.models.vae import vdvae
from jaxgen.nn import pixels
from jaxgen.nn import vdvae as nets
from jaxgen.objectives import elbo

KEY = jax.random.key
BLOCKS = {"enc_blocks": "8x1,8d2,4x1,4d4,1x1", "dec_blocks": "1x1,4m1,4x1,8m4,8x1"}  # the vector's
SMALL = dict(
  image_shape=(4, 4, 1), enc_blocks="4d4", dec_blocks="1,4m1", width=8, z_dim=2,
  custom_widths="1:12", head="bernoulli", pixel_mean=127.5, pixel_std=127.5,
)  # fmt: skip


def tiny():
  """({name: input}, close, {official name: weight}) of the golden vector."""
  vector, close = golden.load("vdvae_tiny_elbo")
  return vector, close, {k[2:]: x for k, x in vector.items() if k.startswith("w.")}


@functools.cache
def small():
  """(the Method, Vars far from their start, a batch of one image 1000 times)."""
  made = vdvae.build(**SMALL)
  vars = jax.jit(made.init)(KEY(0))
  noisy = lambda x: x + 0.2 * jax.random.normal(KEY(x.size), x.shape)
  image = jnp.sign(jax.random.normal(KEY(1), (1, 4, 4, 1)))  # black and white: no noise in the data
  return made, vars._replace(params=jax.tree.map(noisy, vars.params)), {
    "image": jnp.broadcast_to(image, (1000, 4, 4, 1))
  }  # fmt: skip


@pytest.mark.evidence("V14", "G", "W")
def test_the_official_code_gives_the_same_bound():
  vector, close, tensors = tiny()
  args, variables = convert.from_torch(tensors, **BLOCKS)
  assert (args["width"], args["z_dim"], args["no_bias_above"], args["out"]) == (16, 4, 8, 20)
  net = nets.VDVAE(**args)

  def draw(i, mean, log_var):
    eps = vector[f"in.eps{i}"].transpose(0, 2, 3, 1)
    return elbo.reparameterize(None, mean, log_var, eps=eps)

  @jax.jit
  def run(x):
    numbers, _, kl, _ = net.apply(variables, draw, x)
    nats = pixels.logistic_mixture(3, 2, 256).log_prob(x, numbers)
    return -nats.sum((1, 2)).mean() / x[0].size, kl.sum(1).mean() / x[0].size

  distortion, rate = run(vector["in.x"])
  close(distortion, "distortion")
  close(rate, "rate")
  close(distortion + rate, "elbo")


def test_other_tensors_are_refused():
  _, _, tensors = tiny()
  name = "decoder.gain"
  with pytest.raises(KeyError, match="'decoder.gain' is missing"):
    convert.from_torch({k: x for k, x in tensors.items() if k != name}, **BLOCKS)
  with pytest.raises(ValueError, match=r"decoder.gain is \(1, 1, 1, 3\).*: expected \(1, 1, 1, 16"):
    convert.from_torch({**tensors, name: np.ones((1, 3, 1, 1))}, **BLOCKS)
  with pytest.raises(ValueError, match=r"no place for \['encoder.enc_blocks.4.c1.bias"):
    convert.from_torch(tensors, **BLOCKS | {"enc_blocks": "8x1,8d2,4x1,4d4"})


def count(tree):
  return sum(x.size for x in jax.tree.leaves(tree))


@functools.cache
def block_size(module, *shapes):
  """Parameters of a block: of each kind once, for tracing a thousand layers takes its time."""
  rest = (lambda mean, log_var: mean,) if isinstance(module, nets.DecoderBlock) else ()
  init = lambda *x: module.init(KEY(0), *x, *rest)
  return count(jax.eval_shape(init, *(jax.ShapeDtypeStruct(s, jnp.float32) for s in shapes)))


def size(image_shape, enc_blocks, dec_blocks, width, z_dim=16, out=100, no_bias_above=64):
  """Parameters of a net, added up."""
  encoder = nets.parse_blocks("enc_blocks", enc_blocks, "d")
  decoder = nets.parse_blocks("dec_blocks", dec_blocks, "m")
  shape = lambda side: (1, min(side, 3), min(side, 3), width)  # 3 x 3 convolutions, or 1 x 1
  total = 9 * image_shape[-1] * width + width + 2 * width + width * out + out
  total += sum(block_size(nets.Block(width // 4, width), shape(side)) for side, _ in encoder)
  block = nets.DecoderBlock(z_dim, width // 4, 1.0)
  total += sum(block_size(block, shape(side), shape(side)) for side, _ in decoder)
  return total + sum(side**2 * width for side in {s for s, _ in decoder} if side <= no_bias_above)


def test_the_sum_over_blocks_is_the_size_of_the_net():
  net = dict(image_shape=(8, 8, 3), **BLOCKS, width=16, z_dim=4, no_bias_above=4)
  made = vdvae.build(**net, mixtures=2)
  assert count(jax.eval_shape(made.init, KEY(0)).params) == size(**net, out=20)


@pytest.mark.evidence("V14", "P")
def test_sizes():
  """Those of the official code for CIFAR-10, ImageNet at 64 x 64 and FFHQ at 256 x 256."""
  cifar10 = {k: vdvae.build.__kwdefaults__[k] for k in ("image_shape", "enc_blocks", "dec_blocks")}
  assert size(**cifar10, width=384) == 39_145_700
  enc = "64x11,64d2,32x20,32d2,16x9,16d2,8x8,8d2,4x7,4d4,1x5"
  dec = "1x2,4m1,4x3,8m4,8x7,16m8,16x15,32m16,32x31,64m32,64x12"
  assert size((64, 64, 3), enc, dec, 512) == 125_005_860
  enc = "256x3,256d2,128x8,128d2,64x12,64d2,32x17,32d2,16x7,16d2,8x5,8d2,4x5,4d4,1x4"
  dec = "1x2,4m1,4x3,8m4,8x4,16m8,16x9,32m16,32x21,64m32,64x13,128m64,128x7,256m128"
  assert size((256, 256, 3), enc, dec, 512) == 114_874_852
  assert len(nets.parse_blocks("dec_blocks", dec, "m")) == 66  # stochastic layers


def test_every_group_starts_from_a_standard_normal_prior():
  """Zero last layers of the priors, and last layers of blocks by 1 / sqrt(blocks)."""
  made = vdvae.build(**SMALL | {"width": 64, "custom_widths": ""})
  params = jax.jit(made.init)(KEY(0)).params["net"]
  assert all(jnp.all(params[f"block_{i}"]["prior"]["c4"]["kernel"] == 0.0) for i in range(2))
  for net, blocks in ((params["encoder"]["block_0"], 1), (params["block_0"]["resnet"], 2)):
    kernel = net["c4"]["kernel"]  # [16, 64], uniform
    np.testing.assert_allclose(jnp.abs(kernel).max(), (16 * blocks) ** -0.5, rtol=0.02)


@pytest.mark.evidence("V14", "M")
def test_the_bound_is_that_of_its_groups():
  """Per group the KL is the mean of log q - log p; loss and log_prob are the same bound."""
  made, vars, batch = small()
  net = nets.VDVAE("4d4", "1,4m1", 8, "1:12", 2, 0.25, 64, 1)

  @jax.jit
  def run(vars, batch):
    keys = lambda: noise.rows(KEY(2), 1000)
    draw = lambda i, *q: elbo.reparameterize(noise.fold_in(keys(), i), *q)
    _, _, kl, ratio = net.apply({"params": vars.params["net"]}, draw, batch["image"])
    fns = made.fns["bound"], made.fns["log_prob"], made.phases["net"].loss
    more = made.fns["log_prob"](vars, batch, keys(), samples=8)
    return kl, ratio, more, *(f(vars, batch, keys()) for f in fns)

  kl, ratio, more, bound, log_prob, (loss, aux) = run(vars, batch)
  assert kl.shape == (1000, 2) and kl.min() >= 0.0 and (kl.mean(0) > 0.02).all()
  error = 5.0 * (kl + ratio).std(0) / 1000**0.5
  assert (jnp.abs((kl + ratio).mean(0)) < error).all()
  exact = bound["reconstruction"] - bound["kl"].sum(1)
  np.testing.assert_allclose(log_prob, exact, rtol=1e-5, atol=1e-5)
  np.testing.assert_allclose(loss, -exact.mean() / 16, rtol=1e-5)
  np.testing.assert_allclose(aux.metrics["distortion"] + aux.metrics["rate"], loss, rtol=1e-6)
  assert more.mean() > exact.mean() + 0.01


def test_what_is_encoded_decodes_to_what_the_bound_saw():
  made, vars, batch = small()
  batch = {"image": batch["image"][:50]}

  @jax.jit
  def run(vars):
    keys = lambda: noise.rows(KEY(3), 50)
    z = made.fns["encode"](vars, batch, keys())
    return z, made.fns["decode"](vars, z)["image"], made.fns["bound"](vars, batch, keys())

  z, image, bound = run(vars)
  assert z.shape == (50, 2 * (1 + 16))
  p, x = 0.5 + 0.5 * image, 0.5 + 0.5 * batch["image"]
  nats = jnp.log(x * p + (1.0 - x) * (1.0 - p)).sum((1, 2, 3))
  sure = bound["reconstruction"] < -40.0  # where some p has rounded to 0 or 1
  assert sure.mean() < 0.5
  np.testing.assert_allclose(bound["reconstruction"][~sure], nats[~sure], rtol=1e-3)


def test_without_temperature_there_is_one_sample():
  made, vars, _ = small()
  draw = jax.jit(made.fns["sample"], static_argnames="temperature")
  one, many = (
    draw(vars, noise.rows(KEY(4), 50), temperature=t)["image"].std(0).max() for t in (1e-4, 1.0)
  )
  assert one < 1e-3 and many > 0.05
  with pytest.raises(ValueError, match="temperature=0.0: expected a finite number above 0"):
    made.fns["sample"](vars, noise.rows(KEY(4), 2), temperature=0.0)


@pytest.mark.parametrize("bits", [3, 5])
def test_bits_are_the_highest_of_eight(bits):
  x, levels = jnp.arange(256.0) / 127.5 - 1.0, 2**bits
  ours = pixels.logistic_mixture(3, 2, levels).data(None, x)
  expected = np.arange(256) // (256 // levels) / (0.5 * (levels - 1)) - 1.0
  np.testing.assert_allclose(ours, expected, atol=1e-6)
  assert pixels.logistic_mixture(3, 2, 256).data(None, x) is x


def test_the_middle_is_the_mean_of_the_likeliest_logistic():
  gray = jnp.array([0.5, 1.0, 0.3, -0.4, -1.0, 0.0])  # of two: logits, means, log scales
  middle = lambda C, p: jax.jit(pixels.logistic_mixture(C, 2, 256).middle)(p[None, None, None])
  np.testing.assert_allclose(middle(1, gray).ravel(), [-0.4], rtol=1e-6)
  # Red is 0.2; green 0.1 + tanh(1) red; blue -0.3 + tanh(2) red + tanh(3) green.
  rest = [[0.9, 0.2], [0.0] * 2, [5.0, 1.0], [0.9, 0.1], [0.0] * 2, [5.0, 2.0]]
  rest += [[0.9, -0.3], [0.0] * 2, [5.0, 3.0]]
  colour = jnp.array([0.0, 1.0, *np.ravel(rest)])
  green = 0.1 + np.tanh(1.0) * 0.2
  expected = [0.2, green, -0.3 + np.tanh(2.0) * 0.2 + np.tanh(3.0) * green]
  np.testing.assert_allclose(middle(3, colour).ravel(), expected, rtol=1e-5)


@pytest.mark.parametrize(
  "args, words",
  [
    ({"enc_blocks": "32x2,32e2"}, "enc_blocks='32x2,32e2': expected blocks such as 8, 8x2 and 8d4"),
    ({"dec_blocks": "1x1,32d1"}, "dec_blocks='1x1,32d1': expected blocks such as 8, 8x2 and 8m4"),
    ({"enc_blocks": "16x2"}, "enc_blocks='16x2': expected 32, or a divisor"),
    ({"enc_blocks": "32d3"}, "enc_blocks='32d3': expected 32, or a divisor, where 32d3 is"),
    ({"dec_blocks": "2,32m2"}, "expected sides among [1, 4, 8, 16, 32], none after"),
    ({"dec_blocks": "4,1,32m1"}, "none after a larger one"),
    ({"dec_blocks": "1,32m4"}, "and m and one before it"),
    ({"dec_blocks": "1,16m1"}, "dec_blocks='1,16m1': expected 32 as the last side"),
    ({"custom_widths": "8=3"}, "custom_widths='8=3': expected side:width, commas between them"),
    ({"custom_widths": "8:999"}, "none wider than one before, and a width of 384 at the last"),
    ({"custom_widths": "32:16"}, "a width of 384 at the last"),
    ({"custom_widths": "5:400"}, "sides among [1, 4, 8, 16, 32]"),
    (
      {"bottleneck": 0.001},
      "bottleneck=0.001: expected more than 0, at most 1, with channels left",
    ),
    ({"head": "mse"}, "head='mse': expected one of dmol, bernoulli"),
    ({"levels": 31}, "levels=31: expected 2, 4, 8 ... or 256"),
    ({"pixel_std": 0.0}, "pixel_std=0.0: expected a finite number above 0"),
    ({"mixtures": 0}, "mixtures=0: expected a whole number"),
    ({"image_shape": (32, 32, 2)}, "image_shape[2]=2: expected 1 or 3 channels"),
    ({"image_shape": (32, 16, 3)}, "image_shape=(32, 16, 3): expected a square"),
  ],
)
def test_bad_models_are_refused(args, words):
  with pytest.raises(ValueError, match=re.escape(words)):
    vdvae.build(**args)

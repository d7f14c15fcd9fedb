"""Denoising autoencoder. Vincent et al., 2008. doi:10.1145/1390156.1390294.

Survey V02, Sec. 2.

Extracting and Composing Robust Features with Denoising Autoencoders; and as a generative model,
with the defaults, Generalized Denoising Auto-Encoders as Generative Models, Bengio et al., 2013,
arXiv:1305.6663. One hidden layer of tanh learns P(X | X~), factorised over pixels, of an image
given a corrupted one; alternating it with the corruption is a Markov chain whose distribution is
the data's. Walkback training, Alg. 1, also trains on what the chain comes across.

Deviations: a fixed number of walkback steps in place of a geometric one, as in the experiments of
the paper; Adam; chains that start without an image of the data; pixels in [-1, 1]; the images of
`sample` are means, not draws; the stacking of layers of 2008 is left out.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen import noise
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.objectives import elbo, likelihood
from jaxgen.samplers import markov


def gaussian(keys, x, level):
  """x [B, D] + level eps. keys: [B]. level: scalar. arXiv:1305.6663, Sec. 2."""
  return x + level * noise.normal(keys, x.shape[1:])


def masking(keys, x, level):
  """x [B, D] in [-1, 1] with each pixel black with a probability.

  keys: [B]. level: scalar, the probability; doi:10.1145/1390156.1390294, Sec. 2.3, blackens that
  fraction of the pixels of every image.
  """
  return jnp.where(noise.uniform(keys, x.shape[1:]) < level, -1.0, x)


def salt_pepper(keys, x, level):
  """x [B, D] in [-1, 1] with each pixel -1 or 1, a fair coin, with a probability.

  keys: [B]. level: scalar, the probability. That of arXiv:1305.6663 for MNIST.
  """
  u = noise.uniform(keys, x.shape[1:])
  return jnp.where(u < 0.5 * level, -1.0, jnp.where(u < level, 1.0, x))


CORRUPTIONS = {"gaussian": gaussian, "masking": masking, "salt_pepper": salt_pepper}


class Reconstruction(NamedTuple):
  """P(X | X~) of pixels; `out` is what the decoder returns, a tuple of `outputs` arrays [B, D]."""

  outputs: tuple[str, ...]
  data: Callable  # (keys [B], pixels [B, D] in [-1, 1]) -> x [B, D]
  log_prob: Callable  # (x [B, D], *out) -> [B, D], nats
  draw: Callable  # (keys [B], *out) -> x [B, D]
  mean: Callable  # (*out) -> pixels [B, D] in [-1, 1]


def _coins(keys, pixels):
  return 2.0 * likelihood.binarize(keys, pixels) - 1.0


RECONSTRUCTIONS = {
  "bernoulli": Reconstruction(
    ("logits",),
    _coins,
    lambda x, logits: likelihood.bernoulli(0.5 * (x + 1.0), logits),  # cross-entropy
    lambda keys, logits: _coins(keys, likelihood.bernoulli_mean(logits)),
    likelihood.bernoulli_mean,
  ),
  # Squared error, weighed by a variance so that there is a distribution to draw from.
  "gaussian": Reconstruction(
    ("mean", "log_var"),
    likelihood.dequantize,
    lambda x, mean, log_var: likelihood.gaussian(x, jnp.tanh(mean), log_var),
    lambda keys, mean, log_var: elbo.reparameterize(keys, jnp.tanh(mean), log_var),
    lambda mean, log_var: jnp.tanh(mean),
  ),
}


class Encoder(nn.Module):
  """y = tanh(W x + b). doi:10.1145/1390156.1390294, Sec. 2.2."""

  width: int

  @nn.compact
  def __call__(self, x):
    """x: [B, D] -> [B, width]."""
    return nn.tanh(nn.Dense(self.width, name="hidden")(x))


class Decoder(nn.Module):
  """An affine map for each of `outputs`. doi:10.1145/1390156.1390294, Sec. 2.2."""

  out: int
  outputs: tuple[str, ...]

  @nn.compact
  def __call__(self, y):
    """y: [B, width] -> a tuple of [B, out]."""
    return tuple(nn.Dense(self.out, name=name)(y) for name in self.outputs)


def build(
  *,
  image_shape=(28, 28, 1),
  decoder="bernoulli",
  corruption="salt_pepper",
  level=0.5,
  width=2000,
  walkback=5,
  steps=100,
  tx={"lr": 1e-3},
  ema=0.0,
):
  """The Method; the defaults are those of arXiv:1305.6663 for MNIST.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1].
    decoder: "bernoulli", cross-entropy of images binarised anew, or "gaussian", squared error.
    corruption: "gaussian", "masking" or "salt_pepper".
    level: standard deviation of the first, fraction of pixels of the others.
    width: of the hidden layer.
    walkback: corrupted images for each image, each but the first from a step of the chain; 1 is
      the plain denoising criterion.
    steps: of the chain from a grey image to a sample.
    tx, ema: of `optim.adam` and `optim.averages`; both networks are averaged.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  for name, value, table in (
    ("decoder", decoder, RECONSTRUCTIONS),
    ("corruption", corruption, CORRUPTIONS),
  ):
    method.check(name, value, value in table, f"one of {', '.join(table)}")
  method.check_positive("level", level)
  if corruption != "gaussian":
    method.check_unit("level", level)
  method.check_count("width", width)
  method.check_count("walkback", walkback)
  method.check_count("steps", steps)
  dims, p = math.prod(image_shape), RECONSTRUCTIONS[decoder]
  encoder_net, decoder_net = Encoder(width), Decoder(dims, p.outputs)

  def init(key):
    k_encoder, k_decoder = jax.random.split(key)
    encoder = encoder_net.init(k_encoder, jnp.zeros((1, dims)))
    decoder = decoder_net.init(k_decoder, jnp.zeros((1, width)))
    return Vars({"encoder": encoder["params"], "decoder": decoder["params"]})

  def data(batch, keys):
    method.check_batch(batch, image_shape, 0)
    return p.data(keys, batch["image"].astype(jnp.float32).reshape(-1, dims))

  def corrupt(keys, x):
    return CORRUPTIONS[corruption](keys, x, level)

  def encoded(vars, x):
    return encoder_net.apply({"params": vars.params["encoder"]}, x)

  def decoded(vars, y):
    return decoder_net.apply({"params": vars.params["decoder"]}, y)

  def loss(vars, batch, keys):
    """-log P(x | x~) in nats an image, averaged over the x~ of a walk that starts at x.

    doi:10.1145/1390156.1390294, Eq. 5; arXiv:1305.6663, Alg. 1.
    """
    k_data, k_walk = noise.split(keys)
    x = data(batch, k_data)

    def walk(x_t, i):
      k_corrupt, k_draw = noise.split(noise.fold_in(k_walk, i))
      out = decoded(vars, encoded(vars, corrupt(k_corrupt, x_t)))
      return jax.lax.stop_gradient(p.draw(k_draw, *out)), -p.log_prob(x, *out).sum(1).mean()

    losses = jax.lax.scan(walk, x, jnp.arange(walkback))[1]
    return losses.mean(), Aux({"first": losses[0], "last": losses[-1]})

  def encode(vars, batch, keys):
    """y = f(x) of the image itself, [B, width]; `keys` binarise or dequantise it."""
    return encoded(vars, data(batch, keys))

  def decode(vars, latents):
    """{"image": E[X | y] [B, H, W, C], in [-1, 1]}. latents: y [B, width]."""
    return {"image": p.mean(*decoded(vars, latents)).reshape(-1, *image_shape)}

  def sample(vars, keys, cond={}, *, steps=steps):
    """{"image": E[X | X~] [n, *image_shape], in [-1, 1]}, X~ at the end of a chain.

    The chain starts at a draw of P(X | X~ = 0): from uniform noise, of which training has seen
    nothing, some chains came to images in negative and stayed there.

    cond: {}, no classes. steps: of the chain. Raises ValueError for 0.
    """
    method.check_cond(cond, 0)
    k_start, k_chain, k_last = noise.split(keys, 3)
    denoise = lambda keys, x: p.draw(keys, *decoded(vars, encoded(vars, x)))
    start = denoise(k_start, jnp.zeros((len(keys), dims)))
    x = markov.chain(corrupt, denoise, start, k_chain, steps)
    return decode(vars, encoded(vars, corrupt(k_last, x)))

  return Method(
    init,
    {"autoencoder": Phase(loss, ("encoder", "decoder"), optim.adam(**tx))},
    ema={**optim.averages("encoder", ema), **optim.averages("decoder", ema)},
    fns={"sample": sample, "encode": encode, "decode": decode},
  )

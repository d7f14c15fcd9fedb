"""PixelVAE: A Latent Variable Model for Natural Images. Gulrajani et al., 2016. arXiv:1611.05013.

Survey V06, Eq. 21; on the way Eq. 15-16 and 20.

A convolutional VAE whose decoder is a gated PixelCNN: z is turned into a map of features, which
shifts every gate of both stacks, so that each pixel is given z and the pixels before it. Pixels are
binary, drawn anew from grey ones each time they are seen, or of 256 levels, the colours of one in
order. Sizes are the defaults of the authors' code for MNIST, with the 1 + 12 layers of its command;
the KL counts more and more over the first steps, as there: a decoder that can do without z learns
to, survey Eq. 15.

There is no `decode`: E[x | z] has no closed form, and `sample` draws instead.

Deviations: one level of latents (the paper's larger models have two); the map enters at every layer
and not beside the image; nearest neighbours and a convolution take the place of transposed ones;
no weight normalisation; the head is that of the gated PixelCNN, one layer of ReLU, where theirs has
two gated ones.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxgen import noise
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.nn import masked_conv
from jaxgen.objectives import elbo, likelihood
from jaxgen.samplers import autoregressive


class Encoder(nn.Module):
  """The mean and the log variance of q(z | x). widths: of the halvings, from fine to coarse."""

  widths: tuple[int, ...]
  z_dim: int

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C] -> two of [B, z_dim]."""
    before = self.widths[0]
    for width in self.widths:
      x = nn.relu(nn.Conv(before, (3, 3))(x))
      x = nn.relu(nn.Conv(width, (3, 3), strides=2)(x))
      before = width
    for _ in range(2):
      x = nn.relu(nn.Conv(self.widths[-1], (3, 3))(x))
    x = nn.Dense(2 * self.z_dim)(x.reshape(len(x), -1))
    return jnp.split(x, 2, axis=-1)


class Features(nn.Module):
  """z as a map of features. widths: of `Encoder`; shape: (H, W), that of an image in [-1, 1]."""

  widths: tuple[int, ...]
  shape: tuple[int, int]

  @nn.compact
  def __call__(self, z):
    """z: [B, D] -> [B, H, W, widths[0]]."""
    halved = lambda i: tuple(-(-side // 2**i) for side in self.shape)
    (h, w), width = halved(len(self.widths)), self.widths[-1]
    x = nn.relu(nn.Dense(h * w * width)(z)).reshape(-1, h, w, width)
    for _ in range(2):
      x = nn.relu(nn.Conv(width, (3, 3))(x))
    for i, width in reversed(list(enumerate((self.widths[0], *self.widths[:-1])))):
      h, w = halved(i)
      x = x.repeat(2, axis=1).repeat(2, axis=2)[:, :h, :w]
      for _ in range(2):
        x = nn.relu(nn.Conv(width, (3, 3))(x))
    return x


class Decoder(nn.Module):
  """p(x | z) of pixels in [-1, 1], survey Eq. 21: a PixelCNN on the features of z."""

  features: Features
  pixels: masked_conv.GatedPixelCNN

  def __call__(self, tokens, z):
    """Logits [B, H, W, C, K]. tokens: int32 [B, H, W, C]. z: [B, D]."""
    return self.pixels(tokens, grid=self.features(z))


def build(
  *,
  image_shape=(28, 28, 1),
  levels=2,
  z_dim=64,
  widths=(32, 64, 64),
  pixel_width=32,
  pixel_depth=13,
  kernel=5,
  first_kernel=7,
  kl_warmup=10_000,
  tx={"lr": 1e-3},
  ema=0.0,
):
  """The Method; the defaults are those of the authors' code for MNIST.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1].
    levels: 2 for binary pixels, 256 for 8-bit ones.
    z_dim: length of z. widths: of the encoder and of the map of z, for each halving of the sides.
    pixel_width, pixel_depth, kernel, first_kernel: of `masked_conv.GatedPixelCNN`.
    kl_warmup: steps over which the weight of the KL rises from 0 to 1; 0 is 1 from the start.
    tx, ema: of `optim.adam` and `optim.averages`; both networks are averaged.

  Raises:
    ValueError: a number out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check("levels", levels, levels in (2, 256), "2 or 256")
  method.check_count("z_dim", z_dim)
  method.check_counts("widths", widths)
  method.check("widths", widths, len(widths) > 0, "at least one")
  method.check_count("kl_warmup", kl_warmup, 0)
  *shape, colours = image_shape
  masked_conv.check_sizes(pixel_width, pixel_depth, kernel, first_kernel, colours)
  widths = tuple(widths)
  encoder_net = Encoder(widths, z_dim)
  pixels = masked_conv.GatedPixelCNN(
    levels, colours, pixel_width, pixel_depth, kernel, first_kernel
  )
  decoder_net = Decoder(Features(widths, tuple(shape)), pixels)

  def init(key):
    k_encoder, k_decoder = jax.random.split(key)
    image = jnp.zeros((1, *image_shape))
    encoder = encoder_net.init(k_encoder, image)
    decoder = decoder_net.init(k_decoder, image.astype(jnp.int32), jnp.zeros((1, z_dim)))
    return Vars({"encoder": encoder["params"], "decoder": decoder["params"]})

  def tokenize(batch, keys):
    """Pixels as int32 [B, H, W, C]: drawn where they are binary."""
    method.check_batch(batch, image_shape, 0)
    x = batch["image"].astype(jnp.float32)
    if levels == 2:
      return likelihood.binarize(keys, x).astype(jnp.int32)
    return jnp.round(127.5 * (x + 1.0)).astype(jnp.int32)

  def pixels_of(tokens):
    return 2.0 * tokens / (levels - 1) - 1.0

  def encoded(vars, tokens):
    return encoder_net.apply({"params": vars.params["encoder"]}, pixels_of(tokens))

  def with_posterior(fn, vars, batch, keys, **options):
    """fn(z -> log p(x | z), mean, log_var, keys), of pixels drawn by `keys`."""
    k_data, k_z = noise.split(keys)
    tokens = tokenize(batch, k_data)

    def log_likelihood(z):
      logits = decoder_net.apply({"params": vars.params["decoder"]}, tokens, z)
      nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
      return -jnp.sum(nats, axis=(1, 2, 3))  # survey Eq. 20

    return fn(log_likelihood, *encoded(vars, tokens), k_z, **options)

  terms = functools.partial(with_posterior, elbo.gaussian_bound)  # log p(x | z) [B] and KL [B]

  def bound(vars, batch, keys):
    """{"reconstruction": log p(x | z), [B], "kl": of q(z | x) to the prior, [B, 1]}, in nats."""
    reconstruction, kl = terms(vars, batch, keys)
    return {"reconstruction": reconstruction, "kl": kl[:, None]}

  def loss(vars, batch, keys, *, beta=1.0):
    """-(E_q log p(x | z) - beta KL) in nats, survey Eq. 16; beta = 1 is a bound on log p(x)."""
    reconstruction, kl = terms(vars, batch, keys)
    metrics = {"reconstruction": -reconstruction.mean(), "kl": kl.mean()}
    return elbo.beta(reconstruction, kl, beta=beta).mean(), Aux(metrics)

  def log_prob(vars, batch, keys, *, samples=0):
    """A lower bound on log P in nats, [B]: of images binarised by `keys`, or of 8-bit images.

    samples: how many z an image an importance-sampled bound draws, which is closer to log P.
    """
    if samples:
      weights = with_posterior(elbo.log_weights, vars, batch, keys, samples=samples)
      return elbo.importance_bound(weights)
    reconstruction, kl = terms(vars, batch, keys)
    return reconstruction - kl

  def posterior(vars, batch, keys):
    """Mean and log variance of q(z | x), two of [B, z_dim]."""
    return tuple(encoded(vars, tokenize(batch, keys)))

  def encode(vars, batch, keys):
    """z ~ q(z | x), [B, z_dim]."""
    k_data, k_z = noise.split(keys)
    return elbo.reparameterize(k_z, *posterior(vars, batch, k_data))

  def sample(vars, keys, cond={}, *, temperature=1.0):
    """{"image": [n, *image_shape], in [-1, 1]}: z ~ N(0, I), then pixel after pixel; survey Eq. 21.

    cond: {}, no classes. temperature: of the pixels; at 0 each is the most probable.
    """
    method.check_cond(cond, 0)
    k_z, k_pixels = noise.split(keys)
    params = vars.params["decoder"]
    z = noise.normal(k_z, (z_dim,))
    grid = decoder_net.features.apply({"params": params["features"]}, z)
    step = functools.partial(pixels.apply, {"params": params["pixels"]}, grid=grid, method="step")
    n_tokens = shape[0] * shape[1] * colours
    tokens = autoregressive.sample(
      step, pixels.cache(len(keys), shape[1]), k_pixels, n_tokens, temperature=temperature
    )
    return {"image": pixels_of(tokens.reshape(-1, *image_shape))}

  fns = (sample, log_prob, bound, posterior, encode)
  rise = {"beta": optax.linear_schedule(0.0, 1.0, kl_warmup)} if kl_warmup else {}
  return Method(
    init,
    {"vae": Phase(loss, ("encoder", "decoder"), optim.adam(**tx), hparams=rise)},
    ema={**optim.averages("encoder", ema), **optim.averages("decoder", ema)},
    fns={fn.__name__: fn for fn in fns},
  )

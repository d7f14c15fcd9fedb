"""VAE: Auto-Encoding Variational Bayes. Kingma, Welling, 2013. arXiv:1312.6114.

Survey V03, Eq. 3-14, 18-19.

Encoder and decoder with one hidden layer of tanh, App. C, trained on the bound of Eq. 10 with one
z an example. Two decoders: Bernoulli, for images that are binarised anew each time they are seen,
and Gaussian, for dequantised 8-bit images.

Deviations: Adam takes the place of Adagrad, and Flax's initialisation that of N(0, 0.01);
the parameters have no prior (the paper's small weight decay).
"""

import functools
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


class GaussianMLP(nn.Module):
  """The mean and the log variance of a diagonal Gaussian. App. C.2."""

  width: int
  out: int

  @nn.compact
  def __call__(self, x):
    """x: [B, D] -> two of [B, out]."""
    h = nn.tanh(nn.Dense(self.width, name="hidden")(x))
    return nn.Dense(self.out, name="mean")(h), nn.Dense(self.out, name="log_var")(h)


class BernoulliMLP(nn.Module):
  """The logits of independent coins. App. C.1."""

  width: int
  out: int

  @nn.compact
  def __call__(self, z):
    """z: [B, D] -> [B, out]."""
    return nn.Dense(self.out, name="logits")(nn.tanh(nn.Dense(self.width, name="hidden")(z)))


class Decoder(NamedTuple):
  """p(x | z): a network, the data that it is a distribution of, and its numbers."""

  net: type[nn.Module]
  data: Callable  # (keys [B], pixels [B, D] in [-1, 1]) -> x [B, D]
  log_prob: Callable  # (x [B, D], what the network returns) -> [B, D], nats
  mean: Callable  # what the network returns -> pixels [B, D] in [-1, 1]
  unit: float  # nats to add to log_prob for each pixel: log of the width of a bin
  outputs: int  # how many numbers a pixel has


DECODERS = {
  "bernoulli": Decoder(
    BernoulliMLP,
    likelihood.binarize,
    likelihood.bernoulli,
    likelihood.bernoulli_mean,
    0.0,
    1,
  ),
  # The mean stays within the range of pixels, as in App. C.2.
  "gaussian": Decoder(
    GaussianMLP,
    likelihood.dequantize,
    lambda x, p: likelihood.gaussian(x, jnp.tanh(p[0]), p[1]),
    lambda p: jnp.tanh(p[0]),
    math.log(likelihood.BIN),
    2,
  ),
}


def build(
  *,
  image_shape=(28, 28, 1),
  decoder="bernoulli",
  z_dim=20,
  width=500,
  tx={"lr": 1e-3},
  ema=0.0,
):
  """The Method; the defaults are one of the paper's MNIST models.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1].
    decoder: "bernoulli" or "gaussian".
    z_dim: length of z. width: of the hidden layers.
    tx, ema: of `optim.adam` and `optim.averages`; both networks are averaged.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check("decoder", decoder, decoder in DECODERS, f"one of {', '.join(DECODERS)}")
  method.check_count("z_dim", z_dim)
  method.check_count("width", width)
  dims, p = math.prod(image_shape), DECODERS[decoder]
  encoder_net, decoder_net = GaussianMLP(width, z_dim), p.net(width, dims)

  def init(key):
    k_encoder, k_decoder = jax.random.split(key)
    encoder = encoder_net.init(k_encoder, jnp.zeros((1, dims)))
    decoder = decoder_net.init(k_decoder, jnp.zeros((1, z_dim)))
    return Vars({"encoder": encoder["params"], "decoder": decoder["params"]})

  def inferred(vars, batch, keys):
    """x [B, D] as the decoder takes it, and mean and log variance of q(z | x), [B, z_dim]."""
    method.check_batch(batch, image_shape, 0)
    pixels = batch["image"].astype(jnp.float32)
    x = p.data(keys, pixels.reshape(len(pixels), dims))
    return x, *encoder_net.apply({"params": vars.params["encoder"]}, x)

  def decoded(vars, z):
    return decoder_net.apply({"params": vars.params["decoder"]}, z)

  def with_posterior(fn, vars, batch, keys, **options):
    """fn(z -> log p(x | z), mean, log_var, keys), of x drawn by `keys`."""
    k_data, k_z = noise.split(keys)
    x, mean, log_var = inferred(vars, batch, k_data)
    log_likelihood = lambda z: jnp.sum(p.log_prob(x, decoded(vars, z)) + p.unit, axis=1)
    return fn(log_likelihood, mean, log_var, k_z, **options)

  terms = functools.partial(with_posterior, elbo.gaussian_bound)  # log p(x | z) [B] and KL [B]

  def loss(vars, batch, keys, *, beta=1.0):
    """-(E_q log p(x | z) - beta KL) in nats, survey Eq. 16; beta = 1 is the paper's, survey Eq. 12.

    Minimising it is maximising a bound on the log p(x) of survey Eq. 4.
    """
    reconstruction, kl = (term.mean() for term in terms(vars, batch, keys))
    value = elbo.beta(reconstruction, kl, beta=beta)
    return value, Aux({"reconstruction": -reconstruction, "kl": kl})

  def log_prob(vars, batch, keys, *, samples=0):
    """A lower bound on log P in nats, [B]: of images binarised by `keys`, or of 8-bit images.

    samples: how many z an image an importance-sampled bound draws, which is closer to log P.
    """
    if samples:
      weights = with_posterior(elbo.log_weights, vars, batch, keys, samples=samples)
      return elbo.importance_bound(weights)
    reconstruction, kl = terms(vars, batch, keys)
    return reconstruction - kl

  def bound(vars, batch, keys):
    """{"reconstruction": log p(x | z) [B], of one z each, "kl": [B, 1]}, in nats."""
    reconstruction, kl = terms(vars, batch, keys)
    return {"reconstruction": reconstruction, "kl": kl[:, None]}

  def posterior(vars, batch, keys):
    """Mean and log variance of q(z | x), two of [B, z_dim]."""
    return inferred(vars, batch, keys)[1:]

  def encode(vars, batch, keys):
    """z ~ q(z | x), [B, z_dim]."""
    k_data, k_z = noise.split(keys)
    mean, log_var = posterior(vars, batch, k_data)
    return elbo.reparameterize(k_z, mean, log_var)

  def decode(vars, latents):
    """{"image": E[x | z], [B, H, W, C]}. latents: z [B, z_dim]."""
    return {"image": p.mean(decoded(vars, latents)).reshape(-1, *image_shape)}

  def sample(vars, keys, cond={}):
    """{"image": [n, *image_shape]}: E[x | z] at z ~ N(0, I). cond: {}, no classes."""
    method.check_cond(cond, 0)
    return decode(vars, noise.normal(keys, (z_dim,)))

  return Method(
    init,
    {"vae": Phase(loss, ("encoder", "decoder"), optim.adam(**tx))},
    ema={**optim.averages("encoder", ema), **optim.averages("decoder", ema)},
    fns={
      "sample": sample,
      "log_prob": log_prob,
      "bound": bound,
      "posterior": posterior,
      "encode": encode,
      "decode": decode,
    },
  )

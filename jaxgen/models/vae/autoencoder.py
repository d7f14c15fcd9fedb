"""Autoencoder. Rumelhart, Hinton, Williams, 1986. doi:10.21236/ADA164453.

Survey V01, Eq. 1-2.

Learning Internal Representations by Error Propagation passes patterns through fewer units than
they have numbers. Here the networks have the sizes of `vae.vae`, so that the two can be compared:
a code has no prior, and what is decoded from N(0, I) is no sample (survey Fig. 1).

Deviations: images in place of the paper's patterns, Adam in place of gradient descent with
momentum, tanh in place of the logistic function, and a code without a nonlinearity.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen import noise
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars


class Network(nn.Module):
  """One hidden layer of tanh, or where `width` is 0 none: a linear map."""

  width: int
  out: int

  @nn.compact
  def __call__(self, x):
    """x: [B, D] -> [B, out]."""
    h = nn.tanh(nn.Dense(self.width, name="hidden")(x)) if self.width else x
    return nn.Dense(self.out, name="out")(h)


def build(*, image_shape=(28, 28, 1), z_dim=20, width=500, tx={"lr": 1e-3}, ema=0.0):
  """The Method; the defaults are the sizes of `vae.vae` for MNIST.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1].
    z_dim: length of the code.
    width: of the hidden layers; 0 makes both networks linear, whose optimum is that of PCA.
    tx, ema: of `optim.adam` and `optim.averages`; both networks are averaged.

  Raises:
    ValueError: a number out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_count("z_dim", z_dim)
  method.check_count("width", width, 0)
  dims = math.prod(image_shape)
  encoder_net, decoder_net = Network(width, z_dim), Network(width, dims)

  def init(key):
    k_encoder, k_decoder = jax.random.split(key)
    encoder = encoder_net.init(k_encoder, jnp.zeros((1, dims)))
    decoder = decoder_net.init(k_decoder, jnp.zeros((1, z_dim)))
    return Vars({"encoder": encoder["params"], "decoder": decoder["params"]})

  def encode(vars, batch, keys):
    """z = f(x), survey Eq. 1, [B, z_dim]; `keys` are not used."""
    method.check_batch(batch, image_shape, 0)
    x = batch["image"].astype(jnp.float32).reshape(-1, dims)
    return encoder_net.apply({"params": vars.params["encoder"]}, x)

  def decode(vars, latents):
    """{"image": g(z) [B, H, W, C]}, in [-1, 1] unless linear. latents: z [B, z_dim]."""
    x = decoder_net.apply({"params": vars.params["decoder"]}, latents)
    return {"image": (jnp.tanh(x) if width else x).reshape(-1, *image_shape)}

  def loss(vars, batch, keys):
    """||x - g(f(x))||^2, the sum over an image, and its mean over the batch: survey Eq. 2."""
    error = batch["image"] - decode(vars, encode(vars, batch, keys))["image"]
    return jnp.sum(error**2, axis=(1, 2, 3)).mean(), Aux({"mse": jnp.mean(error**2)})

  def sample(vars, keys, cond={}):
    """{"image": g(z) [n, *image_shape]} at z ~ N(0, I), in [-1, 1] unless linear. cond: {}."""
    method.check_cond(cond, 0)
    return decode(vars, noise.normal(keys, (z_dim,)))

  return Method(
    init,
    {"autoencoder": Phase(loss, ("encoder", "decoder"), optim.adam(**tx))},
    ema={**optim.averages("encoder", ema), **optim.averages("decoder", ema)},
    fns={"sample": sample, "encode": encode, "decode": decode},
  )

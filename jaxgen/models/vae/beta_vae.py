"""beta-VAE. Higgins et al., 2017. https://openreview.net/forum?id=Sy2fzU9gl

Survey V04, Eq. 16.

A VAE whose KL counts beta times, so that each latent costs more than it does in the bound and the
few that stay in use tend to stand for one factor of the data each. `bound` gives the KL of every
latent. A large beta from the first step on brings about the collapse of survey Eq. 15;
`kl_warmup` starts without that cost.

Deviations: the networks are the convolutional ones of arXiv:1804.03599, App. A.1, for dSprites too,
where the paper has an MLP (`widths=()`, `dense=(1200, 1200)`, its decoder with one more layer and
tanh), and Adam takes the place of Adagrad there; the Gaussian decoder learns its variance.
"""

import math

import jax
import jax.numpy as jnp
import optax

from jaxgen import noise
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.models.vae import vae
from jaxgen.nn import conv_autoencoder
from jaxgen.objectives import elbo


def build(
  *,
  image_shape=(64, 64, 1),
  decoder="bernoulli",
  z_dim=10,
  widths=(32, 32, 32, 32),
  dense=(256, 256),
  beta=4.0,
  kl_warmup=0,
  tx={"lr": 5e-4},
  ema=0.0,
):
  """The Method; the defaults are for dSprites.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1]; H and W are multiples of 2^n for n
      convolutions.
    decoder: "bernoulli" or "gaussian", of `vae.vae`.
    z_dim: length of z.
    widths: channels of the convolutions, none for an MLP. dense: of the layers behind them.
    beta: weight of the KL. kl_warmup: steps over which it rises linearly from 0; 0 for none.
    tx, ema: of `optim.adam` and `optim.averages`; both networks are averaged.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check("decoder", decoder, decoder in vae.DECODERS, f"one of {', '.join(vae.DECODERS)}")
  method.check_count("z_dim", z_dim)
  method.check_counts("widths", widths)
  method.check_counts("dense", dense)
  divisor = 2 ** len(widths)
  fits = all(side % divisor == 0 for side in image_shape[:2])
  allowed = f"height and width multiples of {divisor} for {len(widths)} widths"
  method.check("image_shape", image_shape, fits, allowed)
  method.check_weight("beta", beta)
  method.check_count("kl_warmup", kl_warmup, 0)
  dims, p = math.prod(image_shape), vae.DECODERS[decoder]
  out_shape = (*image_shape[:2], p.outputs * image_shape[2])
  encoder_net = conv_autoencoder.Encoder(tuple(widths), tuple(dense), z_dim)
  decoder_net = conv_autoencoder.Decoder(out_shape, tuple(widths), tuple(dense))

  def init(key):
    k_encoder, k_decoder = jax.random.split(key)
    encoder = encoder_net.init(k_encoder, jnp.zeros((1, *image_shape)))
    decoder = decoder_net.init(k_decoder, jnp.zeros((1, z_dim)))
    return Vars({"encoder": encoder["params"], "decoder": decoder["params"]})

  def inferred(vars, batch, keys):
    """x [B, D] as the decoder takes it, and mean and log variance of q(z | x), [B, z_dim]."""
    method.check_batch(batch, image_shape, 0)
    pixels = batch["image"].astype(jnp.float32)
    x = p.data(keys, pixels.reshape(-1, dims))
    images = x.reshape(-1, *image_shape)
    return x, *encoder_net.apply({"params": vars.params["encoder"]}, images)

  def decoded(vars, z):
    out = decoder_net.apply({"params": vars.params["decoder"]}, z)
    parts = [part.reshape(-1, dims) for part in jnp.split(out, p.outputs, axis=-1)]
    return parts[0] if p.outputs == 1 else parts

  def likelihood(vars, x):
    return lambda z: jnp.sum(p.log_prob(x, decoded(vars, z)) + p.unit, axis=1)

  def bound(vars, batch, keys):
    """log p(x | z) [B] of one z, and KL [B, z_dim], a column for each latent, in nats."""
    k_data, k_z = noise.split(keys)
    x, mean, log_var = inferred(vars, batch, k_data)
    z = elbo.reparameterize(k_z, mean, log_var)
    kl = elbo.normal_kl(mean, log_var, 0.0, 0.0)
    return {"reconstruction": likelihood(vars, x)(z), "kl": kl}

  # From 0, latents are in use before they cost, against survey Eq. 15.
  schedule = optax.linear_schedule(0.0, beta, kl_warmup) if kl_warmup else lambda step: beta

  def loss(vars, batch, keys, *, beta=beta):
    """-(E_q log p(x | z) - beta KL) in nats, survey Eq. 16; beta = 1 is a VAE's."""
    terms = bound(vars, batch, keys)
    reconstruction, kl = terms["reconstruction"], terms["kl"].sum(1)
    metrics = {"reconstruction": -reconstruction.mean(), "kl": kl.mean()}
    return elbo.beta(reconstruction, kl, beta=beta).mean(), Aux(metrics)

  def log_prob(vars, batch, keys, *, samples=0):
    """A lower bound on log P in nats, [B]: of images binarised by `keys`, or of 8-bit images.

    samples: how many z an image an importance-sampled bound draws, which is closer to log P.
    """
    if samples:
      k_data, k_z = noise.split(keys)
      x, mean, log_var = inferred(vars, batch, k_data)
      weights = elbo.log_weights(likelihood(vars, x), mean, log_var, k_z, samples=samples)
      return elbo.importance_bound(weights)
    terms = bound(vars, batch, keys)
    return elbo.hierarchical_bound(terms["reconstruction"], terms["kl"])

  def posterior(vars, batch, keys):
    """Mean and log variance of q(z | x), two of [B, z_dim]; `keys` draw x."""
    return inferred(vars, batch, keys)[1:]

  def encode(vars, batch, keys):
    """z ~ q(z | x), [B, z_dim]."""
    k_data, k_z = noise.split(keys)
    return elbo.reparameterize(k_z, *posterior(vars, batch, k_data))

  def decode(vars, latents):
    """{"image": E[x | z] [B, H, W, C], in [-1, 1]}. latents: z [B, z_dim]."""
    return {"image": p.mean(decoded(vars, latents)).reshape(-1, *image_shape)}

  def sample(vars, keys, cond={}):
    """{"image": E[x | z] [n, *image_shape], in [-1, 1]} at z ~ N(0, I). cond: {}, no classes."""
    method.check_cond(cond, 0)
    return decode(vars, noise.normal(keys, (z_dim,)))

  fns = (sample, log_prob, bound, posterior, encode, decode)
  return Method(
    init,
    {"vae": Phase(loss, ("encoder", "decoder"), optim.adam(**tx), hparams={"beta": schedule})},
    ema={**optim.averages("encoder", ema), **optim.averages("decoder", ema)},
    fns={fn.__name__: fn for fn in fns},
  )

"""IWAE: Importance Weighted Autoencoders. Burda, Grosse, Salakhutdinov, 2015. arXiv:1509.00519.

Survey V09, Eq. 23-25.

One or more layers of Gaussian latents between networks of two hidden layers of tanh, Sec. 5, for
images that are binarised anew each time they are seen, trained on the bound of K draws. Two other
estimators of its gradient by the encoder: sticking the landing (arXiv:1703.09194) and the doubly
reparameterised one (arXiv:1810.04152).

Deviation: the bias of the pixels starts at 0, not at the data's mean as in the released code.
"""

import math
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen import noise
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.objectives import elbo, likelihood

GRADIENTS: dict[str, Callable] = {"iwae": elbo.iwae, "stl": elbo.stl, "dreg": elbo.dreg}


class MLP(nn.Module):
  """Two hidden layers of tanh and one linear layer for each parameter of a distribution."""

  width: int
  out: int
  heads: tuple[str, ...]

  @nn.compact
  def __call__(self, x):
    """x: [B, D] -> [B, out] for each head."""
    glorot = nn.initializers.xavier_uniform()
    for i in range(2):
      x = nn.tanh(nn.Dense(self.width, kernel_init=glorot, name=f"hidden_{i}")(x))
    return tuple(nn.Dense(self.out, kernel_init=glorot, name=name)(x) for name in self.heads)


def stages(pass_updates):
  """A factor of the learning rate at each update: 10^(-i/7) for 3^i passes over the data. Sec. 5.

  i = 0, ..., 7: 3280 passes in all, after which the last factor, 1/10, stays.
  pass_updates: updates in one pass, a scalar.
  """
  rates = [optax.constant_schedule(10.0 ** (-i / 7)) for i in range(8)]
  return optax.join_schedules(rates, np.cumsum(3 ** np.arange(7)) * pass_updates)


def build(
  *,
  image_shape=(28, 28, 1),
  z_dims=(50,),
  widths=(200,),
  samples=50,
  gradient="iwae",
  pass_updates=3000,
  tx={"lr": 1e-3, "eps": 1e-4},
  ema=0.0,
):
  """The Method; the defaults are the paper's model of MNIST with one layer of latents.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1].
    z_dims: lengths of the latents z_1, z_2, ... from the image up.
    widths: of the hidden layers below each of them.
    samples: K, draws of the bound that is trained.
    gradient: of that bound by the encoder: "iwae", "stl" or "dreg".
    pass_updates: updates in one pass over the data, of `stages`.
    tx, ema: of `optim.adam` and `optim.averages`; both networks are averaged.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  for name, values in (("z_dims", z_dims), ("widths", widths)):
    method.check_counts(name, values)
  fits = len(widths) == len(z_dims) > 0
  method.check("widths", widths, fits, f"one for each of z_dims={z_dims}, at least one")
  method.check_count("samples", samples)
  method.check("gradient", gradient, gradient in GRADIENTS, f"one of {', '.join(GRADIENTS)}")
  method.check_count("pass_updates", pass_updates)
  dims, layers, estimate = math.prod(image_shape), range(len(z_dims)), GRADIENTS[gradient]
  gaussian, sizes = ("mean", "log_var"), (dims, *z_dims)
  up = [MLP(widths[i], sizes[i + 1], gaussian) for i in layers]  # q(z_i+1 | z_i), where z_0 = x
  down = [MLP(widths[i], sizes[i], gaussian if i else ("logits",)) for i in layers]

  def init(key):
    keys = jax.random.split(key, (2, len(layers)))
    start = lambda net, key, size: net.init(key, jnp.zeros((1, size)))["params"]
    encoder = {f"z_{i + 1}": start(up[i], keys[0, i], sizes[i]) for i in layers}
    decoder = {f"z_{i}": start(down[i], keys[1, i], sizes[i + 1]) for i in layers}
    return Vars({"encoder": encoder, "decoder": decoder})

  def q(encoder, i, below):
    """Mean and log variance of q(z_i+1 | z_i), [B, D] each."""
    return up[i].apply({"params": encoder[f"z_{i + 1}"]}, below)

  def p(vars, i, above):
    """Mean and log variance of p(z_i | z_i+1), [B, D] each; for i = 0, of pixels, logits."""
    return down[i].apply({"params": vars.params["decoder"][f"z_{i}"]}, above)

  def observed(batch, keys):
    """x [B, D] of zeros and ones."""
    method.check_batch(batch, image_shape, 0)
    pixels = batch["image"].astype(jnp.float32)
    return likelihood.binarize(keys, pixels.reshape(len(pixels), dims))

  def drawing(x):
    """(encoder, keys) -> z_1, z_2, ... ~ q(z | x), [B, D] each."""

    def draw(encoder, keys):
      z = [x]
      for i, k in enumerate(noise.split(keys, len(layers))):
        z.append(elbo.reparameterize(k, *q(encoder, i, z[-1])))  # survey Eq. 23
      return z[1:]

    return draw

  def log_terms(vars, encoder, x, z):
    """log p(x | z_1), of the latents log q(z_i | z_i-1), and log p(z_i | z_i+1); lists of [B]."""
    log_x = jnp.sum(likelihood.bernoulli(x, *p(vars, 0, z[0])), axis=1)
    log_density = lambda z, mean, log_var: jnp.sum(likelihood.gaussian(z, mean, log_var), axis=1)
    log_q = [log_density(z[i], *q(encoder, i, [x, *z][i])) for i in layers]
    log_p = [log_density(z[i - 1], *p(vars, i, z[i])) for i in layers[1:]]
    return log_x, log_q, [*log_p, log_density(z[-1], 0.0, 0.0)]

  def weighing(vars, x):
    """(encoder, z) -> log w [B] = log p(x, z) / q(z | x). Eq. 8; survey Eq. 24."""

    def log_weight(encoder, z):
      log_x, log_q, log_p = log_terms(vars, encoder, x, z)
      return log_x + sum(log_p) - sum(log_q)

    return log_weight

  def loss(vars, batch, keys):
    """-E log 1/K sum_k w_k, in nats. Eq. 8, with the gradient of Eq. 13-14; survey Eq. 25."""
    k_data, k_z = noise.split(keys)
    x = observed(batch, k_data)
    encoder = vars.params["encoder"]
    bound = estimate(drawing(x), weighing(vars, x), encoder, k_z, samples=samples).mean()
    return -bound, Aux({"bound": bound})

  def bound(vars, batch, keys):
    """{"reconstruction": log p(x | z_1) [B], "kl": [B, L]}, in nats, of one draw an example.

    The last column is KL(q(z_L | z_L-1) || N(0, I)), the others log q(z_i | z_i-1) / p(z_i | z_i+1)
    of the draw.
    """
    k_data, k_z = noise.split(keys)
    x, encoder = observed(batch, k_data), vars.params["encoder"]
    z = drawing(x)(encoder, k_z)
    reconstruction, log_q, log_p = log_terms(vars, encoder, x, z)
    kls = [a - b for a, b in zip(log_q[:-1], log_p[:-1], strict=True)]
    kls.append(elbo.standard_kl(*q(encoder, layers[-1], [x, *z][-2])))
    return {"reconstruction": reconstruction, "kl": jnp.stack(kls, axis=1)}

  def log_prob(vars, batch, keys, *, samples=0):
    """A lower bound on log P in nats, [B]: of images binarised by `keys`.

    samples: how many z an image an importance-sampled bound draws, one after the other, which is
    closer to log P; 0: the evidence lower bound.
    """
    method.check_count("samples", samples, 0)
    if not samples:
      terms = bound(vars, batch, keys)
      return elbo.hierarchical_bound(terms["reconstruction"], terms["kl"])
    k_data, k_z = noise.split(keys)
    x, encoder = observed(batch, k_data), vars.params["encoder"]
    draw, log_weight = drawing(x), weighing(vars, x)
    weigh = lambda keys: log_weight(encoder, draw(encoder, keys))
    return elbo.importance_sampled(weigh, k_z, samples=samples)

  def posterior(vars, batch, keys):
    """Mean and log variance of q(z | x), [B, D] each; of a model with one layer of latents."""
    return q(vars.params["encoder"], 0, observed(batch, keys))

  def encode(vars, batch, keys):
    """The uppermost latents of one draw from q(z | x), [B, D]."""
    k_data, k_z = noise.split(keys)
    return drawing(observed(batch, k_data))(vars.params["encoder"], k_z)[-1]

  def generate(vars, z, through):
    """E[x | z_1], where through(i, mean, log_var) -> z_i below the uppermost z."""
    for i in reversed(layers[1:]):
      z = through(i, *p(vars, i, z))
    (logits,) = p(vars, 0, z)
    return {"image": likelihood.bernoulli_mean(logits).reshape(-1, *image_shape)}

  def decode(vars, latents):
    """{"image": E[x | z_1], [B, H, W, C] in [-1, 1]}, z_1 a chain of means.

    latents: the uppermost, [B, D].
    """
    return generate(vars, latents, lambda i, mean, log_var: mean)

  def sample(vars, keys, cond={}):
    """{"image": [n, *image_shape]} in [-1, 1]: E[x | z_1] of z ~ p(z). cond: {}, no classes."""
    method.check_cond(cond, 0)
    keys = noise.split(keys, len(layers))
    z = noise.normal(keys[0], (z_dims[-1],))
    return generate(vars, z, lambda i, mean, log_var: elbo.reparameterize(keys[i], mean, log_var))

  fns = {
    "sample": sample, "log_prob": log_prob, "bound": bound, "encode": encode, "decode": decode
  }  # fmt: skip
  if len(layers) == 1:
    fns["posterior"] = posterior
  return Method(
    init,
    {
      "vae": Phase(
        loss,
        ("encoder", "decoder"),
        optax.chain(optim.adam(**tx), optax.scale_by_schedule(stages(pass_updates))),
      )
    },
    ema={**optim.averages("encoder", ema), **optim.averages("decoder", ema)},
    fns=fns,
  )

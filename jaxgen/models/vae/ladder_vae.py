"""LVAE: Ladder Variational Autoencoders. Sonderby et al., 2016. arXiv:1602.02282.

Survey V12, Eq. 29-31.

L groups of latents, drawn from the top down in the prior, each given the one above it. The ladder's
posterior draws in the same order: it multiplies each group's prior with a Gaussian that a
deterministic pass from the image up has found. `inference="bottom_up"` is what the paper compares
it with, the hierarchical VAE whose posterior draws from the image up. Both with batch
normalisation, a KL that is switched on over `kl_warmup` steps, and images that are binarised anew
each time they are seen.

Groups are numbered as in the survey: z_1 is the top one, which the paper calls z_L. `z_dims` and
`widths` are written as in the paper, from the image up.

Deviations: 1e-6 is added to variances; no fine-tuning with more draws at the end of training.
"""

import functools
import itertools
import math
from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax.numpy as jnp
import optax

from jaxgen import noise
from jaxgen.core import axis, method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.objectives import elbo, likelihood

dense = functools.partial(nn.Dense, kernel_init=nn.initializers.glorot_uniform())


class MLP(nn.Module):
  """Two layers, each with batch normalisation and max(x, 0.1 x). Sec. 3."""

  width: int

  @nn.compact
  def __call__(self, x, train):
    """x: [B, D] -> [B, width]. train: with this batch's statistics."""
    for i in range(2):
      x = dense(self.width, use_bias=False, name=f"dense_{i}")(x)
      x = nn.BatchNorm(
        use_running_average=not train, momentum=0.9, epsilon=1e-4, axis_name=axis.name(),
        use_fast_variance=False, name=f"norm_{i}",
      )(x)  # fmt: skip
      x = nn.leaky_relu(x, 0.1)
    return x


class Gaussian(nn.Module):
  """Mean and log variance, the variance a softplus. Sec. 2."""

  dim: int

  @nn.compact
  def __call__(self, h):
    """h: [B, D] -> two of [B, dim]."""
    var = nn.softplus(dense(self.dim, name="var")(h)) + 1e-6
    return dense(self.dim, name="mean")(h), jnp.log(var)


def merge(a, b):
  """The product of two Gaussians, normalised: their precisions add. Sec. 2.1.

  a, b: (mean, log variance), each [B, D]; so is the result.
  """
  log_precision = jnp.logaddexp(-a[1], -b[1])
  mean = a[0] * jnp.exp(-a[1] - log_precision) + b[0] * jnp.exp(-b[1] - log_precision)
  return mean, -log_precision


def _ladder(x, up, found, prior, draw, L):
  """q(z | x) = prod q(z_l | z_<l, x), survey Eq. 30; Sec. 2.1."""
  likelihoods, z, groups = [], None, []
  for i in range(L):
    x = up(i, x)
    likelihoods.append(found(i, x))
  for i in reversed(range(L)):
    p = prior(i, z)
    q = likelihoods[i] if z is None else merge(likelihoods[i], p)
    z = draw(i, *q)
    groups.append((z, q, p))
  return groups


def _bottom_up(x, up, found, prior, draw, L):
  """q(z | x) = q(z_L | x) prod q(z_l | z_>l): the lowest first. Sec. 2."""
  drawn = []
  for i in range(L):
    q = found(i, up(i, x))
    x = draw(i, *q)
    drawn.append((x, q))
  above = [*(z for z, _ in drawn[1:]), None]
  return [(*drawn[i], prior(i, above[i])) for i in reversed(range(L))]


class Inference(NamedTuple):
  """q(z | x), and the KL of a group in nats, elementwise: from one z where p depends on it."""

  # (x [B, D], up, found, prior, draw, L) -> [(z, q, p)] of the L groups, the top one first. Of
  # group i, from the lowest, 0: up: (i, [B, D]) -> [B, D]; found: (i, [B, D]) -> q; prior: (i, z of
  # the group above or None) -> p; draw: (i, mean, log_var) -> z.
  groups: Callable
  kl: Callable  # (z, q, p) -> nats


def _log_ratio(z, q, p):
  return likelihood.gaussian(z, *q) - likelihood.gaussian(z, *p)


INFERENCE = {
  "ladder": Inference(_ladder, lambda z, q, p: elbo.normal_kl(*q, *p)),
  # The z above depends on this one: E log q - log p is no mean of the KL of two Gaussians.
  "bottom_up": Inference(_bottom_up, _log_ratio),
}


class Hierarchy(nn.Module):
  """p(z), p(x | z) and q(z | x)."""

  z_dims: tuple
  widths: tuple
  out: int
  inference: str

  @nn.compact
  def __call__(self, draw, x=None, n=1, *, train=False):
    """Logits of x [B, out], z of each group, their KL [B, L] and log p / q [B, L], in nats.

    draw: (i, mean, log_var) -> z [B, D] of group i, the lowest is 0, of q or, without x, of p.
    x: [B, D] of 0 and 1, or None for n examples. train: with this batch's statistics.
    """
    L = len(self.z_dims)
    up = lambda i, h: MLP(self.widths[i], name=f"up_{i}")(h, train)
    down = lambda i, h: MLP(self.widths[i], name=f"down_{i}")(h, train)
    found = lambda i, h: Gaussian(self.z_dims[i], name=f"q_{i}")(h)

    def prior(i, z):  # p(z) = prod p(z_l | z_<l), survey Eq. 29; i counts from below
      if z is None:
        zeros = jnp.zeros((n if x is None else len(x), self.z_dims[i]))
        return zeros, zeros
      return Gaussian(self.z_dims[i], name=f"p_{i}")(down(i + 1, z))

    inference = INFERENCE[self.inference]
    if x is None:
      z, groups = None, []
      for i in reversed(range(L)):
        p = prior(i, z)
        z = draw(i, *p)
        groups.append((z, p, p))
    else:
      groups = inference.groups(x, up, found, prior, draw, L)
    zs = [z for z, *_ in groups]
    kl, ratio = (
      jnp.stack([jnp.sum(f(*group), axis=1) for group in groups], axis=1)
      for f in (inference.kl, _log_ratio)
    )
    return dense(self.out, name="logits")(down(0, zs[-1])), zs, kl, -ratio


def build(
  *,
  image_shape=(28, 28, 1),
  z_dims=(64, 32, 16, 8, 4),
  widths=(512, 256, 128, 64, 64),
  inference="ladder",
  kl_warmup=47_000,
  tx={"lr": 1e-3},
  ema=0.0,
):
  """The Method; the defaults are the paper's five groups for MNIST.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1].
    z_dims: length of each group of latents, from the image up.
    widths: of the layers between each group and what is below it.
    inference: "ladder" or "bottom_up".
    kl_warmup: steps over which the weight of the KL rises from 0 to 1; 0 for none.
    tx, ema: of `optim.adam` and `optim.averages`. Batch statistics are those of the raw network.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_counts("z_dims", z_dims)
  method.check_counts("widths", widths)
  method.check("z_dims", z_dims, len(z_dims) > 0, "one group or more")
  method.check("widths", widths, len(widths) == len(z_dims), f"{len(z_dims)}, one for each group")
  method.check("inference", inference, inference in INFERENCE, f"one of {', '.join(INFERENCE)}")
  method.check_count("kl_warmup", kl_warmup, 0)
  dims = math.prod(image_shape)
  net = Hierarchy(tuple(z_dims), tuple(widths), dims, inference)

  def init(key):
    variables = net.init(key, lambda i, mean, log_var: mean, jnp.zeros((1, dims)))
    return Vars({"net": variables["params"]}, {"net": {"batch_stats": variables["batch_stats"]}})

  def apply(vars, *args, **options):
    return net.apply({"params": vars.params["net"], **vars.extra["net"]}, *args, **options)

  def drawn(keys):
    """(i, mean, log_var) -> z of group i, by its own noise."""
    return lambda i, *q: elbo.reparameterize(noise.fold_in(keys, i), *q)

  def coins(batch, keys):
    method.check_batch(batch, image_shape, 0)
    pixels = batch["image"].astype(jnp.float32)
    return likelihood.binarize(keys, pixels.reshape(len(pixels), dims))

  def log_likelihood(x, logits):
    return jnp.sum(likelihood.bernoulli(x, logits), axis=1)

  def bound(vars, batch, keys):
    """{"reconstruction": log p(x | z) [B], "kl": [B, L], top group first}, in nats, of one z."""
    k_data, k_z = noise.split(keys)
    x = coins(batch, k_data)
    logits, _, kl, _ = apply(vars, drawn(k_z), x)
    return {"reconstruction": log_likelihood(x, logits), "kl": kl}

  def loss(vars, batch, keys, *, beta=1.0):
    """The negative bound in nats, survey Eq. 31, with beta times its KL. Sec. 2.2."""
    k_data, k_z = noise.split(keys)
    x = coins(batch, k_data)
    draw = drawn(k_z)
    (logits, _, kl, _), stats = apply(vars, draw, x, train=True, mutable=["batch_stats"])
    reconstruction, kl = log_likelihood(x, logits), kl.sum(axis=1)
    metrics = {"reconstruction": -reconstruction.mean(), "kl": kl.mean()}
    return elbo.beta(reconstruction, kl, beta=beta).mean(), Aux(metrics, {"net": stats})

  def log_prob(vars, batch, keys, *, samples=0):
    """A lower bound on log P of images binarised by `keys`, in nats [B].

    samples: how many z an image an importance-sampled bound draws, which is closer to log P.
    """
    method.check_count("samples", samples, 0)
    if not samples:
      parts = bound(vars, batch, keys)
      return elbo.hierarchical_bound(parts["reconstruction"], parts["kl"])  # survey Eq. 31
    k_data, k_z = noise.split(keys)
    x = coins(batch, k_data)

    def log_weight(keys):
      logits, _, _, ratio = apply(vars, drawn(keys), x)
      return log_likelihood(x, logits) + ratio.sum(axis=1)

    return elbo.importance_sampled(log_weight, k_z, samples=samples)

  def encode(vars, batch, keys):
    """z ~ q(z | x), all groups as one [B, D], the top one first."""
    k_data, k_z = noise.split(keys)
    return jnp.concatenate(apply(vars, drawn(k_z), coins(batch, k_data))[1], axis=1)

  def decode(vars, latents):
    """{"image": E[x | z], [B, H, W, C] in [-1, 1]}. latents: z [B, D], of `encode`."""
    ends = itertools.accumulate(reversed(z_dims))
    zs = jnp.split(latents, list(ends)[:-1], axis=1)[::-1]
    logits, *_ = apply(vars, lambda i, mean, log_var: zs[i], None, len(latents))
    return {"image": likelihood.bernoulli_mean(logits).reshape(-1, *image_shape)}

  def sample(vars, keys, cond={}):
    """{"image": [n, *image_shape]} in [-1, 1]: E[x | z], z ~ p(z). cond: {}, no classes."""
    method.check_cond(cond, 0)
    logits, *_ = apply(vars, drawn(keys), None, len(keys))
    return {"image": likelihood.bernoulli_mean(logits).reshape(-1, *image_shape)}

  schedule = {"beta": optax.linear_schedule(0.0, 1.0, kl_warmup)} if kl_warmup else {}
  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx), hparams=schedule)},
    ema=optim.averages("net", ema),
    fns={fn.__name__: fn for fn in (sample, log_prob, bound, encode, decode)},
  )

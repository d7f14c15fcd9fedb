"""NVAE: A Deep Hierarchical Variational Autoencoder. Vahdat, Kautz, 2020. arXiv:2007.03898.

Survey V13, Sec. 2.6.4.

A hierarchical VAE (survey Eq. 29-31) whose posterior is given relative to its prior, with depthwise
convolutions in its decoder and batch norm throughout. What keeps it stable: a penalty on the
largest singular value of every convolution and on the scales of batch norm, and a KL term that
comes in slowly, balanced over the groups while it does. The network is in `jaxgen.nn.nvae`.

Deviations: biases start at 0; weight decay is decoupled; the moving variances of batch norm are of
the biased estimate. The temperature of samples is for latents alone, and the statistics of batch
norm are not adjusted to it.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import noise
from jaxgen.core import axis, method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.nn import nvae, pixels
from jaxgen.objectives import elbo


def balance(kl, groups):
  """Weights [L] of the groups of latents, 1 on average, larger where the KL is. App. A.

  In proportion to the mean over the global batch of a group's KL, and to the number of groups
  of its scale over the number of positions there. No gradient goes through them.

  kl: [B, L], in nats. groups: a scalar for each scale, how many, top first; resolutions double.
  """
  pixels = jnp.concatenate([jnp.full(n, 4.0**i / n) for i, n in enumerate(groups)])
  strength = (axis.mean(jnp.mean(jnp.abs(kl), 0)) + 0.01) / pixels
  return jax.lax.stop_gradient(strength / jnp.mean(strength))


def stacked(weights):
  """{"RxC": [N, R, C]}: the matrices [R, C] of a tree, those of one shape together.

  weights: of the tree, [R, C] each.
  """
  found = {}
  for w in jax.tree.leaves(weights):
    found.setdefault("{}x{}".format(*w.shape), []).append(w)
  return {shape: jnp.stack(group) for shape, group in found.items()}


def singular_values(w, u, *, iterations):
  """The largest singular value of each matrix, and vectors to start from next time.

  Power iterations, through which no gradient goes. arXiv:1802.05957, App. A.

  Args:
    w: a dict of [N, R, C], of `stacked`. u: likewise of [N, R], left singular vectors so far.
    iterations: how many.

  Returns:
    (a dict of [N], a dict of u [N, R]).
  """
  fixed = jax.lax.stop_gradient(w)
  unit = lambda x: x / jnp.maximum(jnp.linalg.norm(x, axis=-1, keepdims=True), 1e-3)
  right = lambda w, u: unit(jnp.einsum("nrc,nr->nc", w, u))
  left = lambda w, v: unit(jnp.einsum("nrc,nc->nr", w, v))

  def step(_, u_v):
    v = jax.tree.map(right, fixed, u_v[0])
    return jax.tree.map(left, fixed, v), v

  start = (u, jax.tree.map(lambda w: jnp.zeros_like(w[:, 0]), fixed))
  u, v = jax.lax.fori_loop(0, iterations, step, start)
  value = lambda w, u, v: jnp.einsum("nr,nrc,nc->n", u, w, v)
  return jax.tree.map(value, w, u, v), u


def build(
  *,
  image_shape=(28, 28, 1),
  decoder="bernoulli",
  mixtures=10,
  bits=8,
  groups=(5, 10),
  z_channels=20,
  width=32,
  blocks=2,
  cells=3,
  group_cells=2,
  flows=0,
  penalty=1e-2,
  penalty_start=1e-2,
  kl_warmup=18_000,
  tx={"lr": 1e-2, "eps": 1e-3, "weight_decay": 3e-4},
):
  """The Method; the defaults are the official code's on MNIST, but for the schedule of the rate.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1].
    decoder: "bernoulli" or "logistic_mixture", with `mixtures` components, of `bits` bits.
    groups, z_channels, width, blocks, cells, group_cells, flows: of `nvae.NVAE`. Images are framed
      in black up to a multiple of 2^(blocks + scales - 1).
    penalty: lambda, of the singular values and the scales of batch norm; it moves there from
      `penalty_start` with the weight of the KL.
    kl_warmup: steps over which that weight rises linearly from 1e-4 to 1; 0 is 1 from the start.
    tx: of `optim.adamax`.

  Raises:
    ValueError: a number or a name out of range; in use, a batch, cond or option that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  known = ("bernoulli", "logistic_mixture")
  method.check("decoder", decoder, decoder in known, f"one of {', '.join(known)}")
  method.check_counts("groups", groups)
  method.check("groups", groups, len(groups) > 0, "one scale or more")
  counts = {"mixtures": mixtures, "z_channels": z_channels, "width": width, "cells": cells}
  for name, value in (counts | {"group_cells": group_cells}).items():
    method.check_count(name, value)
  for name, value in {"blocks": blocks, "flows": flows, "kl_warmup": kl_warmup}.items():
    method.check_count(name, value, 0)
  method.check_count("bits", bits, 1, 8)
  method.check_positive("penalty", penalty)
  method.check_positive("penalty_start", penalty_start)
  H, W, C = image_shape
  p = pixels.bernoulli(C) if decoder == known[0] else pixels.logistic_mixture(C, mixtures, 2**bits)
  net = nvae.NVAE(p.out, tuple(groups), z_channels, width, blocks, cells, group_cells, flows)
  factor = 2 ** (blocks + len(groups) - 1)
  framed = tuple(-(-n // factor) * factor for n in (H, W))
  frame = [((f - n) // 2, (f - n + 1) // 2) for f, n in zip(framed, (H, W), strict=True)]
  scales = [i for i, n in enumerate(groups) for _ in range(n)]  # of each group
  sides = [[n * 2**i // factor for n in framed] for i in scales]

  def init(key):
    k_net, k_u = jax.random.split(key)
    x = jnp.zeros((1, *framed, C))
    made = net.init(k_net, lambda i, mean, log_var: mean, x.shape[:3], x)
    w = stacked(made["weights"])
    u = {k: jax.random.normal(jax.random.fold_in(k_u, i), w[k].shape[:2]) for i, k in enumerate(w)}
    _, u = singular_values(w, u, iterations=40)
    return Vars({"net": made["params"]}, {"net": {"batch_stats": made["batch_stats"], "u": u}})

  def applied(vars, draw, n, x=None, **options):
    """An `nvae.Output` whose head is of [n, H, W, out], and what has changed."""
    variables = {"params": vars.params["net"], "batch_stats": vars.extra["net"]["batch_stats"]}
    made = net.apply(variables, draw, (n, *framed), x, **options)
    out, changed = made if options else (made, {})
    (top, _), (left, _) = frame
    return out._replace(head=out.head[:, top : top + H, left : left + W]), changed

  def normals(keys, temperature=1.0):
    """Draws z of group i from a Normal, `temperature` times as wide."""

    def draw(i, mean, log_var):
      eps = temperature * noise.normal(noise.fold_in(keys, i), mean.shape[1:])
      return elbo.reparameterize(None, mean, log_var, eps=eps)

    return draw

  def data(batch, keys):
    """x of p(x | z), [B, H, W, C] in [-1, 1]."""
    method.check_batch(batch, image_shape, 0)
    return p.data(keys, batch["image"].astype(jnp.float32))

  def inferred(vars, x, keys, **options):
    """(log p(x | z) [B], the `nvae.Output`, what has changed), of z ~ q(z | x)."""
    seen = jnp.pad(x, ((0, 0), *frame, (0, 0)), constant_values=-1.0)
    out, changed = applied(vars, normals(keys), len(x), seen, **options)
    return jnp.sum(p.log_prob(x, out.head), (1, 2)), out, changed

  def loss(vars, batch, keys, *, beta=1.0):
    """beta KL - E_q log p(x | z) in nats, Eq. 1, and lambda times both penalties, Eq. 3.

    The KL is balanced where beta < 1; beta = 1 gives the bound of survey Eq. 31.
    """
    k_data, k_z = noise.split(keys)
    options = {"train": True, "mutable": ["batch_stats", "weights"]}
    reconstruction, out, changed = inferred(vars, data(batch, k_data), k_z, **options)
    weights = jnp.where(beta < 1.0, balance(out.kl, groups), 1.0)
    kl = jnp.sum(weights[None] * out.kl, 1).mean()
    w, u = stacked(changed["weights"]), vars.extra["net"]["u"]
    sigma, u = singular_values(w, u, iterations=4)
    sigma = sum(jnp.sum(s) for s in sigma.values())
    flat = jax.tree_util.tree_leaves_with_path(vars.params["net"])
    scale = sum(jnp.max(jnp.abs(x)) for path, x in flat if path[-1].key == "scale")  # batch norm's
    penalties = penalty_start ** (1.0 - beta) * penalty**beta * (sigma + scale)  # Eq. 3
    metrics = {"kl": out.kl.sum(1).mean(), "reconstruction": -reconstruction.mean()}
    metrics |= {"singular_values": sigma, "norm_scales": scale}
    extra = {"net": {"batch_stats": changed["batch_stats"], "u": u}}
    return beta * kl - reconstruction.mean() + penalties, Aux(metrics, extra)  # Eq. 1

  def bound(vars, batch, keys):
    """{"reconstruction": log p(x | z) [B], of one z each, "kl": [B, L], top first}, in nats.

    Where there are flows, the KL is that of the drawn z, not a mean over z.
    """
    k_data, k_z = noise.split(keys)
    reconstruction, out, _ = inferred(vars, data(batch, k_data), k_z)
    return {"reconstruction": reconstruction, "kl": out.kl}

  def log_prob(vars, batch, keys, *, samples=0):
    """A lower bound on log P in nats, [B]: of images binarised by `keys`, or of `bits` bits.

    samples: how many z an image an importance-sampled bound draws, which is closer to log P.
    """
    method.check_count("samples", samples, 0)
    k_data, k_z = noise.split(keys)
    x = data(batch, k_data)

    def log_weight(keys):
      reconstruction, out, _ = inferred(vars, x, keys)
      return reconstruction + out.log_ratio

    if samples:
      return elbo.importance_sampled(log_weight, k_z, samples=samples)
    reconstruction, out, _ = inferred(vars, x, k_z)
    return elbo.hierarchical_bound(reconstruction, out.kl)

  def encode(vars, batch, keys):
    """z ~ q(z | x) of all groups one after the other, top first, [B, D]; with flows, after them."""
    k_data, k_z = noise.split(keys)
    z = inferred(vars, data(batch, k_data), k_z)[1].z
    return jnp.concatenate([part.reshape(len(part), -1) for part in z], 1)

  def decode(vars, latents):
    """{"image": [B, H, W, C]} in [-1, 1]: E[x | z], of a mixture the likeliest component's mean.

    latents: of `encode`, [B, D].
    """
    ends = np.cumsum([math.prod(side) * z_channels for side in sides])
    parts = jnp.split(latents, ends[:-1], 1)
    given = lambda i, *_: parts[i].reshape(-1, *sides[i], z_channels)
    return {"image": p.middle(applied(vars, given, len(latents))[0].head)}

  def sample(vars, keys, cond={}, *, temperature=1.0):
    """{"image": [n, *image_shape]} in [-1, 1]: drawn, but of coins the mean. cond: {}, no classes.

    temperature: factor of the standard deviation of every latent's prior; 0 or more.
    """
    method.check_cond(cond, 0)
    method.check_weight("temperature", temperature)
    k_z, k_x = noise.split(keys)
    out, _ = applied(vars, normals(k_z, temperature), len(keys))
    return {"image": p.draw(k_x, out.head)}

  rise = {"beta": lambda step: jnp.clip(step / kl_warmup, 1e-4, 1.0)} if kl_warmup else {}
  phase = Phase(loss, ("net",), optim.adamax(**tx), hparams=rise)
  fns = (sample, log_prob, bound, encode, decode)
  return Method(init, {"vae": phase}, fns={fn.__name__: fn for fn in fns})

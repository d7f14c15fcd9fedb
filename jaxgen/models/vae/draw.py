"""DRAW: A Recurrent Neural Network For Image Generation. Gregor et al., 2015. arXiv:1502.04623.

Survey V10, Eq. 26.

An encoder and a decoder, two LSTMs, which draw an image in T steps: the encoder reads where it
errs, the decoder adds to a canvas. With attention each sees a grid of Gaussian filters, whose
place, stride, width and strength the decoder chooses (`jaxgen.nn.draw`). Images lie in [-1, 1];
their pixels are binarised anew each time they are seen, which changes nothing in data that are
binary already. experiments/glimpses.py shows the steps.

Deviations: the filters are normalised over the pixels there are, however far off the image their
grid lies (the constant of released codes that keeps Z from 0 is not needed). The paper names Adam
and no learning rate; clipping is that of public reimplementations. LSTMs have no peepholes.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen import noise
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.nn import draw
from jaxgen.objectives import elbo, likelihood


def build(
  *,
  image_shape=(28, 28, 1),
  attention="selective",
  glimpses=64,
  read_size=2,
  write_size=5,
  hidden=256,
  z_dim=100,
  tx={"lr": 1e-3, "clip": 5.0},
  ema=0.0,
):
  """The Method; the defaults are the paper's MNIST model, Table 3.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1].
    attention: "selective" or "none": what the two LSTMs see.
    glimpses: T. read_size, write_size: filters along a side of the grids; not used without one.
    hidden: numbers of an LSTM's state. z_dim: length of the z of one step.
    tx, ema: of `optim.adam` and `optim.averages`.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  known = draw.ATTENTION
  method.check("attention", attention, attention in known, f"one of {', '.join(known)}")
  method.check_count("glimpses", glimpses)
  method.check_count("read_size", read_size, 2)
  method.check_count("write_size", write_size, 2)
  method.check_count("hidden", hidden)
  method.check_count("z_dim", z_dim)
  net = draw.Glimpse(image_shape, attention, read_size, write_size, hidden, z_dim)
  z_shape = (glimpses, z_dim)

  def call(vars, *args, method):
    return net.apply({"params": vars.params["draw"]}, *args, method=method)

  def init(key):
    def both(net):
      return net.infer(net.start(1), jnp.zeros((1, z_dim)), jnp.zeros((1, *image_shape)))

    return Vars({"draw": nn.init(both, net)(key)["params"]})

  def binary(batch, keys):
    method.check_batch(batch, image_shape, 0)
    return likelihood.binarize(keys, batch["image"].astype(jnp.float32))

  def inferred(vars, x, eps):
    """log p(x | z) [B] in nats, and z, means and log variances of the steps, of [B, T, D]."""
    step = lambda carry, eps: call(vars, carry, eps, x, method="infer")
    start = call(vars, len(x), method="start")
    (_, _, canvas), found = jax.lax.scan(step, start, jnp.swapaxes(eps, 0, 1))
    log_p = jnp.sum(likelihood.bernoulli(x, canvas), axis=(1, 2, 3))  # Eq. 9
    return log_p, *(jnp.swapaxes(x, 0, 1) for x in found)

  def bound(vars, batch, keys):
    """{"reconstruction": log p(x | z) [B], "kl": of each step, [B, T]}, in nats."""
    k_data, k_z = noise.split(keys)
    log_p, _, mean, log_var = inferred(vars, binary(batch, k_data), noise.normal(k_z, z_shape))
    kl = jnp.sum(elbo.normal_kl(mean, log_var, 0.0, 0.0), axis=2)  # Eq. 10-11
    return {"reconstruction": log_p, "kl": kl}

  def loss(vars, batch, keys):
    """-(log p(x | z_1 ... z_T) - sum over t of KL_t) in nats. Eq. 12; survey Eq. 26."""
    terms = bound(vars, batch, keys)
    reconstruction, kl = terms["reconstruction"].mean(), terms["kl"].sum(axis=1).mean()
    return kl - reconstruction, Aux({"reconstruction": -reconstruction, "kl": kl})

  def log_prob(vars, batch, keys, *, samples=0):
    """A lower bound on log P of the binarised images in nats, [B].

    samples: how many z_1 ... z_T an image an importance-sampled bound draws, closer to log P.
    """
    method.check_count("samples", samples, 0)
    if not samples:
      terms = bound(vars, batch, keys)
      return elbo.hierarchical_bound(terms["reconstruction"], terms["kl"])
    k_data, k_z = noise.split(keys)
    x = binary(batch, k_data)

    def log_weight(keys):
      log_p, z, mean, log_var = inferred(vars, x, noise.normal(keys, z_shape))
      ratio = likelihood.gaussian(z, 0.0, 0.0) - likelihood.gaussian(z, mean, log_var)
      return log_p + jnp.sum(ratio, axis=(1, 2))

    return elbo.importance_sampled(log_weight, k_z, samples=samples)

  def encode(vars, batch, keys):
    """z of all steps, one after another, each ~ q given those before it, [B, T * z_dim]."""
    k_data, k_z = noise.split(keys)
    _, z, _, _ = inferred(vars, binary(batch, k_data), noise.normal(k_z, z_shape))
    return z.reshape(len(z), -1)

  def decode(vars, latents, *, steps=False):
    """{"image": E[x | z], [B, H, W, C] in [-1, 1]}. latents: z of all steps, [B, T * z_dim].

    steps: also "canvases" [B, T, H, W, C] in [-1, 1], and "windows" and "read_windows"
    [B, T, 4] of `draw.window`, where each step wrote and where the encoder would look before it.
    """
    z = jnp.swapaxes(latents.reshape(-1, *z_shape), 0, 1)
    step = lambda carry, z: call(vars, carry, z, method="generate")
    _, *start = call(vars, len(latents), method="start")
    (_, canvas), each = jax.lax.scan(step, tuple(start), z)
    mean = likelihood.bernoulli_mean
    if not steps:
      return {"image": mean(canvas)}
    canvases, windows, read_windows = (jnp.swapaxes(x, 0, 1) for x in each)
    beside = {"canvases": mean(canvases), "windows": windows, "read_windows": read_windows}
    return {"image": mean(canvas), **beside}

  def sample(vars, keys, cond={}, *, steps=False):
    """{"image": [n, *image_shape]}, in [-1, 1]: E[x | z] at z_t ~ N(0, I), Eq. 13-16.

    cond: {}, no classes. steps: also what `decode` adds, [n, T, ...].
    """
    method.check_cond(cond, 0)
    return decode(vars, noise.normal(keys, (math.prod(z_shape),)), steps=steps)

  phases = {"draw": Phase(loss, ("draw",), optim.adam(**tx))}
  fns = {fn.__name__: fn for fn in (sample, log_prob, bound, encode, decode)}
  return Method(init, phases, ema=optim.averages("draw", ema), fns=fns)

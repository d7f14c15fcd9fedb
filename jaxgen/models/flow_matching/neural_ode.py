"""Neural ordinary differential equations: continuous normalizing flows. Chen et al., 2018.

arXiv:1806.07366.

Survey R01, Eq. 101-102.

An ODE from noise at t = 0 to data at t = 1, survey Eq. 102, trained by the likelihood that it gives
to the data: solved backward, with the trace of its Jacobian as the change of log p, exact or
estimated as in FFJORD, arXiv:1810.01367. Its Euler steps are the residual network of survey Eq.
101. Deviations: by default the gradient is that of the solver's own steps, which is faster for so
small a network, and training is shorter; each example has its own steps, so that its likelihood
does not depend on its batch; images, which are dequantized, and networks for them are FFJORD's.
"""

import functools
import math

import flax.linen as linen
import jax
import jax.numpy as jnp

from jaxgen import nn, noise, paths, samplers
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.objectives import change_of_variables, likelihood
from jaxgen.samplers import ode

PATH = paths.Linear()
GRADIENTS = {"adjoint": ode.adjoint, "direct": ode.direct}


def _exact(fn, x, e, ts, solve):
  return change_of_variables.ode_log_prob_exact(fn, x, ts, solve=solve)


def _hutchinson(fn, x, e, ts, solve):
  return change_of_variables.ode_log_prob(fn, x, None, ts, solve=solve, e=e)


TRACES = {"exact": _exact, "hutchinson": _hutchinson}


class Planar(linen.Module):
  """dz/dt = sum_n sigma_n(t) u_n tanh(w_n z + b_n), M hidden units. arXiv:1806.07366, Eq. 9-10.

  A network of t, of two layers of `hidden` units, says u, w, b and the gates sigma (Sec. 4.1).
  """

  M: int = 64
  hidden: int = 16

  @linen.compact
  def __call__(self, z, t):
    """dz/dt like z [B, ...]. t: [B], from noise at 0 to data at 1."""
    shape, z = z.shape, z.reshape(len(z), -1)
    B, D = z.shape
    h = t[:, None]
    for i in range(2):
      h = jnp.tanh(linen.Dense(self.hidden, name=f"hyper_{i}")(h))
    weights = lambda name, n: linen.Dense(self.M * n, name=name)(h).reshape(B, self.M, n)
    u, w, b, gate = weights("u", D), weights("w", D), weights("b", 1), weights("gate", 1)
    h = jnp.tanh(jnp.einsum("bmd,bd->bm", w, z) + b[..., 0])
    return jnp.einsum("bm,bmd->bd", jax.nn.sigmoid(gate[..., 0]) * h, u).reshape(shape)


def build(
  *,
  image_shape=(1, 1, 2),
  pixels=False,
  net="Planar",
  net_args={"M": 64, "hidden": 16},
  gradient="direct",
  trace="exact",
  rtol=1e-4,
  atol=1e-4,
  max_steps=1000,
  tx={"lr": 3e-3, "decay": "cosine", "steps": 1500},
  ema=0.0,
  sampler={"name": "adaptive", "steps": 1, "rtol": 1e-5, "atol": 1e-5},
):
  """The Method; the defaults are of points in the plane, with the paper's network.

  Args:
    image_shape: (H, W, C) of batches, in [-1, 1], and samples, which are not clipped; points in the
      plane are (1, 1, 2). pixels: whether batches are 8-bit images, to be dequantized.
    net, net_args: "Planar", the paper's, and its fields, or those of `nn.image_net`.
    gradient: "adjoint" or "direct", of `samplers.ode`; they differ by its tolerances.
    trace: "exact", or "hutchinson", an estimate from one draw an example.
    rtol, atol, max_steps: of the solver, for the likelihood and its gradient.
    tx, ema: of `optim.adam` and `optim.averages`.
    sampler: of `samplers.draw`: a name, steps and options.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check("pixels", pixels, isinstance(pixels, bool), "True or False")
  method.check("gradient", gradient, gradient in GRADIENTS, f"one of {', '.join(GRADIENTS)}")
  method.check("trace", trace, trace in TRACES, f"one of {', '.join(TRACES)}")
  method.check_positive("rtol", rtol)
  method.check_positive("atol", atol)
  method.check_count("max_steps", max_steps)
  samplers.check(PATH, sampler)
  init, velocity_fn = _network(net, image_shape, net_args)
  options = {"rtol": rtol, "atol": atol, "max_steps": max_steps}
  solve = functools.partial(GRADIENTS[gradient], **options)
  bin = math.log(likelihood.BIN) if pixels else 0.0

  def log_prob(vars, batch, keys):
    """log p(x) of points, or a lower bound on log P of 8-bit images, in nats [B].

    Exact up to the solver's tolerance, or with pixels and with trace="hutchinson" estimated with
    one draw an example, unbiased. An example that needs more than max_steps is NaN.
    """
    method.check_batch(batch, image_shape, 0)
    k_pixels, k_trace = noise.split(keys)
    x = likelihood.dequantize(k_pixels, batch["image"]) if pixels else batch["image"]
    ts = jnp.array([PATH.t_data, PATH.t_noise])

    def one(x, e):
      return TRACES[trace](velocity_fn(vars), x[None], e[None], ts, solve)[0]

    return jax.vmap(one)(x, noise.rademacher(k_trace, image_shape)) + x[0].size * bin

  def loss(vars, batch, keys):
    return -log_prob(vars, batch, keys).mean() / math.prod(image_shape), Aux()

  def field(vars, cond={}):
    """The Field of x_t [n, *image_shape]. cond: {}, as there are no classes."""
    method.check_cond(cond, 0)
    return paths.velocity_field(PATH, velocity_fn(vars))

  def sample(vars, keys, cond={}, **options):
    """{"image": [n, *image_shape]}. cond: {}; a `name` in options replaces `sampler`."""
    return {"image": samplers.draw(field(vars, cond), keys, image_shape, sampler, **options)}

  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx))},
    ema=optim.averages("net", ema),
    fns={"sample": sample, "field": field, "log_prob": log_prob},
  )


def _network(net, image_shape, net_args):
  """init(key) -> Vars, and velocity_fn(vars) -> a function of x [B, ...] and t [B] in [0, 1]."""
  if net != "Planar":
    init, apply = nn.image_net(net, image_shape, 0, **net_args)
    return init, lambda vars: lambda x, t: apply(vars, x, 1000.0 * t)
  planar = nn.module(Planar, "net_args", net_args)

  def init(key):
    return Vars({"net": planar.init(key, jnp.zeros((1, *image_shape)), jnp.zeros(1))["params"]})

  return init, lambda vars: lambda x, t: planar.apply({"params": vars.params["net"]}, x, t)

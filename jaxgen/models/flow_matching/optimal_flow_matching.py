"""Optimal Flow Matching: Learning Straight Trajectories in Just One Step. Kornilov et al., 2024.

arXiv:2403.13117.

Survey R07, Sec. 7.3.

Flow matching over velocities of straight lines that do not cross, those of gradients of convex
networks: whatever the pairs of starts and data are, one training finds the optimal transport map,
and one evaluation samples. Each training step finds the starts of its lines, a convex problem an
example. Deviations: weights of the network are positive by softplus, where the authors' code
(Jhomanik/Optimal-Flow-Matching) clips them or uses another network; it starts near the identity,
to which theirs is pretrained; gradients need no Hessian matrices, and no error is divided by t.
"""

import jax.numpy as jnp

from jaxgen import nn, noise, paths
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.nn import icnn
from jaxgen.objectives import optimal_flow_matching


def build(
  *,
  image_shape=(1, 1, 2),
  start="noise",
  net_args={"widths": (128, 128, 64), "rank": 1, "beta": 1e-4},
  tolerance=3e-3,
  max_steps=50,
  tx={"lr": 3e-2, "clip": 1.0},
  ema=0.99,
  accumulate=1,
):
  """The Method; the defaults are those of points in the plane, eight Gaussians.

  Args:
    image_shape: (H, W, C) of batches, in [-1, 1], and samples, which are not clipped.
    start: "noise", or "data": images that batches, and `sample` in its cond, have as `start`.
    net_args: of `icnn.ICNN`.
    tolerance, max_steps: of `optimal_flow_matching.inverse`, in training and in `field`.
    tx, ema: of `optim.adam` and `optim.averages`. accumulate: micro-batches an update.

  Raises:
    ValueError: a number or a name out of range; in use, a batch or cond that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check("start", start, start in ("noise", "data"), "noise or data")
  method.check_positive("tolerance", tolerance)
  method.check_count("max_steps", max_steps)
  net = nn.module(icnn.ICNN, "net_args", net_args)
  method.check("net_args.widths", net.widths, net.widths, "at least one")
  method.check_positive("net_args.beta", net.beta)
  starts = {"start": image_shape} if start == "data" else {}
  inner = {"tolerance": tolerance, "max_steps": max_steps}

  def init(key):
    return Vars({"net": net.init(key, jnp.zeros((1, *image_shape)))["params"]})

  def potential(vars):
    return lambda z: net.apply({"params": vars.params["net"]}, z)

  def begin(arrays, keys):
    """Where lines start, [B, *image_shape]."""
    method.check_given(arrays, starts)
    return arrays["start"] if starts else noise.normal(keys, image_shape)

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, 0)
    k_start, k_loss = noise.split(keys)
    x = batch["image"].astype(jnp.float32)
    error, residual = optimal_flow_matching.optimal_flow_matching(
      potential(vars), begin(batch, k_start), x, k_loss, **inner
    )
    return error.mean(), Aux({"residual": residual.mean()})

  def field(vars, cond={}):
    """Of velocities like x_t [n, ...]; of data to data nothing else of it means anything.

    cond: {}, as there are no classes, and a `start`, which it does not need.
    """
    method.check_cond(method.without(cond, starts), 0)
    psi = potential(vars)
    fn = lambda x_t, t: optimal_flow_matching.velocity(psi, x_t, t, **inner)[0]
    return paths.velocity_field(paths.Linear(), fn)

  def sample(vars, keys, cond={}):
    """{"image": [n, *image_shape]}: grad Psi, in one step. Sec. 3.1.

    cond: {}, or with data as starts {"start": [n, *image_shape]}.
    """
    method.check_cond(method.without(cond, starts), 0)
    return {"image": optimal_flow_matching.push(potential(vars), begin(cond, keys))}

  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx), accumulate=accumulate)},
    ema=optim.averages("net", ema),
    fns={"sample": sample, "field": field},
    given=tuple(starts),
  )

"""How a flow carries noise to data: how straight, how far, and how near to the data it ends.

Flow Straight and Fast. Liu et al., 2022. arXiv:2209.03003. Numbers are sums over the D numbers of
an example, in the unit of x squared; W2 is in the unit of x.
"""

import jax.numpy as jnp
import numpy as np
from scipy import optimize
from scipy.spatial import distance

from jaxgen import paths
from jaxgen.core import method
from jaxgen.metrics import frechet
from jaxgen.samplers import ode

LARGEST = 4000  # points that are matched: seconds, and 128 MB


def simulate(velocity_fn, x, ts, *, solve=ode.heun):
  """(x [B, ...] at ts[-1], straightness [B]) of the flow from x at ts[0].

  Straightness is int |(Z_1 - Z_0) - dZ/ds|^2 ds along each trajectory, S(Z) of the paper without
  its mean over examples, arXiv:2209.03003, Theorem 3.7. s runs from 0 to 1 as t does from ts[0] to
  ts[-1], at an even rate: 0 is a straight line at constant speed in the time of the velocity. On
  paths other than Linear a straight line has a speed of its own and is not 0. Over |Z_1 - Z_0|^2,
  of `transport_cost`, it has no unit. Where it is 0, rounding may leave it below.

  velocity_fn: (x [B, ...], t [B]) -> dx/dt. x: [B, ...]. ts: [S + 1], from noise to data, or either
  way. solve: a solver of samplers.ode; the velocity must be finite at both ends.
  """
  span, axes = ts[-1] - ts[0], tuple(range(1, x.ndim))
  c = velocity_fn(x, jnp.full(len(x), ts[0]))  # any constant would do; this one keeps the digits

  def augmented(state, t):
    v = velocity_fn(state[0], t)
    return v, jnp.sum((v - c) ** 2, axes) / span

  x1, second_moment = solve(augmented, (x, jnp.zeros(len(x), x.dtype)), ts)
  # int |v - mean|^2 = int |v - c|^2 - |mean - c|^2, and the mean velocity is (x1 - x) / span.
  return x1, span**2 * second_moment - jnp.sum((x1 - x - span * c) ** 2, axes)


def transport_cost(x0, x1):
  """|x1 - x0|^2, [B]: one of the convex costs that reflow does not raise, on average.

  arXiv:2209.03003, Theorem 3.5. x0, x1: [B, ...], the start and the end of a flow.
  """
  return jnp.sum((x1 - x0) ** 2, tuple(range(1, x0.ndim)))


def wasserstein(x, y):
  """The 2-Wasserstein distance between two sets of n points, a scalar: exact, on the host.

  sqrt of the mean squared distance under the best one-to-one match. Two sets that are drawn from
  one distribution are apart too: compare numbers of equal n. arXiv:2209.03003, Sec. 3.2.

  x, y: [n, D]. Raises ValueError for other shapes, for sets of different sizes, and for more than
  4,000 points.
  """
  x, y = frechet.check_features("x", x), frechet.check_features("y", y)
  if x.shape != y.shape:
    raise ValueError(f"x has shape {x.shape} and y {y.shape}: expected the same")
  method.check_count("the number of points", len(x), 1, LARGEST)
  cost = distance.cdist(x, y, "sqeuclidean")
  return float(np.sqrt(cost[optimize.linear_sum_assignment(cost)].mean()))


def probability_flow(field):
  """(Field, ts [2]) of the ODE of `field`, with a velocity that a solver can follow to its end.

  ts: its first and last time, from noise to data. The velocity of a Discrete path jumps at every
  integer and is infinite at 0: its field is moved to VP, by equal log_snr, from step T to step 1,
  or as much of this as VP has. arXiv:2011.13456, App. D.4, whose continuous DDPM is that VP.
  """
  path = field.path
  if not isinstance(path, paths.Discrete):
    return field, jnp.array([path.t_noise, path.t_data])
  smooth = paths.VP()
  ts = smooth.time(paths.log_snr(path, jnp.array([path.t_noise, 1.0])))
  return paths.moved(field, smooth), jnp.clip(ts, smooth.t_data, smooth.t_noise)

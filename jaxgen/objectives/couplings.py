"""Which start goes with which example: couplings of a batch. Tong et al., 2023. arXiv:2302.00482.

Pooladian et al., 2023, arXiv:2304.14772, call it multisample flow matching. A coupling takes starts
x0 [B, ...] and data x1 [B, ...] and gives x0 in a new order, so that x1 stays with its labels. It
is one of the *global* batch: every device solves the same problem and keeps its own rows. No
gradient passes through the choice.
"""

import jax
import jax.numpy as jnp
import optax

from jaxgen import noise
from jaxgen.core import axis, method


def independent(x0, x1, keys):
  """(x0, x1), like x0 both, as they are given: Sec. 3.2.2. x0, x1: [B, ...]. keys: [B], unused."""
  del keys
  return x0, x1


def shuffled(x0, x1, keys):
  """(x0, x1), like x0 both, with x0 in random order: breaks the pairs of a data set of pairs.

  arXiv:2302.00482, Sec. 3.2.2. x0, x1: [B, ...]. keys: [B].
  """
  everyone = axis.gather(x0)
  order = jax.random.permutation(noise.shared(keys), len(everyone))
  return jnp.take(everyone, _own(order, len(x0)), axis=0), x1


def optimal(x0, x1, keys):
  """(x0, x1), like x0 both, with x0 in the order of least cost: `optimal_plan`, a permutation.

  arXiv:2302.00482, Eq. 17; BatchOT of arXiv:2304.14772. x0, x1: [B, ...]. keys: [B],
  unused. Raises ValueError as `squared_cost` does.
  """
  del keys
  everyone, cost = _global(x0, x1)
  return jnp.take(everyone, _own(_assignment(cost), len(x0)), axis=0), x1


def entropic(x0, x1, keys, *, reg, iterations=2000, tolerance=1e-2):
  """(x0, x1), like x0 both, with a start for each x1 drawn from `sinkhorn_plan` given that x1.

  With reg = 2 sigma^2 it is the static Schroedinger bridge, arXiv:2302.00482, Sec. 3.2.4, and
  BatchEOT of arXiv:2304.14772. Each x1 is used once and a start any number of times, where the
  authors' code draws B pairs of the whole plan with replacement: the same law of a pair, with less
  variance. Where the plan does not converge, starts are NaN.

  Args:
    x0, x1: [B, ...]. keys: [B].
    reg, iterations, tolerance: scalars, of `sinkhorn_plan`.

  Raises:
    ValueError: as `sinkhorn_plan` does, but for what it could only know after compiling.
  """
  _check_sinkhorn(reg, iterations, tolerance)
  everyone, cost = _global(x0, x1)
  logits, error = _sinkhorn(cost, reg, iterations, tolerance)
  columns = _own(logits.T, len(x0))
  chosen = jnp.take(everyone, jax.vmap(jax.random.categorical)(keys, columns), axis=0)
  return jnp.where(error <= tolerance, chosen, jnp.nan), x1


def optimal_plan(x0, x1):
  """[n, n], of sum 1: the plan of least mean squared distance, 1 / n where i goes with j.

  arXiv:2302.00482, Eq. 17; exact, by the Hungarian algorithm, in O(n^3). x0, x1: [n, ...]. Raises
  ValueError as `squared_cost` does, and for differing n.
  """
  cost = _square(squared_cost(x0, x1))
  return jax.nn.one_hot(_assignment(cost), len(cost), axis=0) / len(cost)


def sinkhorn_plan(x0, x1, reg, iterations=2000, tolerance=1e-2):
  """[n, n], of sum 1: the plan of least mean squared distance plus reg KL(plan || independent).

  arXiv:2302.00482, Sec. 3.2.4, by Sinkhorn's iterations on log-potentials. KL is in nats; a small
  reg gives `optimal_plan`, a large one couples independently. Columns sum to 1 / n to rounding,
  rows up to `marginal_error`, at most `tolerance`; a plan that misses it is an error, or NaN where
  JAX traces.

  Args:
    x0, x1: [n, ...]. reg: a scalar, in the units of `squared_cost`.
    iterations: a scalar, the most that are made. tolerance: a scalar.

  Raises:
    ValueError: a number out of range, shapes that do not fit, too few iterations.
  """
  _check_sinkhorn(reg, iterations, tolerance)
  logits, error = _sinkhorn(_square(squared_cost(x0, x1)), reg, iterations, tolerance)
  known = method.concrete(error)
  if known is not None and not known <= tolerance:
    raise ValueError(
      f"iterations={iterations}: the rows of the plan are off by {known:.2g}, expected"
      f" tolerance={tolerance} or less: more iterations, or a reg above {reg}"
    )
  plan = jax.nn.softmax(logits, axis=0) / len(logits)
  return jnp.where(error <= tolerance, plan, jnp.nan)


def marginal_error(plan):
  """A scalar, 0 to 2: by how much the row sums of a plan [n, n] miss 1 / n, in total."""
  return jnp.abs(plan.sum(1) - 1.0 / len(plan)).sum()


def squared_cost(x0, x1):
  """[n, m] float32: |x0_i - x1_j|^2, the cost of arXiv:2302.00482, Sec. 3.2.3.

  Of differences, so that close points keep their digits. x0: [n, ...]. x1: [m, ...]. Raises
  ValueError where an example of x0 is not shaped as one of x1.
  """
  if x0.shape[1:] != x1.shape[1:]:
    raise ValueError(f"x0 has examples of shape {x0.shape[1:]}: expected {x1.shape[1:]}, as x1")
  x0, x1 = (x.reshape(len(x), -1).astype(jnp.float32) for x in (x0, x1))
  return jnp.sum((x0[:, None] - x1[None]) ** 2, axis=-1)  # one fused loop: nothing of [n, m, D]


def _square(cost):
  n, m = cost.shape
  if n != m:
    raise ValueError(f"x0 has {n} rows: expected {m}, as x1")
  return cost


def _global(x0, x1):
  """(x0 [B, ...], cost [B, B]) of the global batch."""
  everyone = axis.gather(x0)
  return everyone, _square(jax.lax.stop_gradient(squared_cost(everyone, axis.gather(x1))))


def _own(x, n):
  """This device's n rows of x [B, ...]."""
  return jax.lax.dynamic_slice_in_dim(x, axis.first_row(n), n)


def _assignment(cost):
  """int32 [n]: the row that goes with each column."""
  rows, columns = optax.assignment.hungarian_algorithm(cost)
  return jnp.zeros_like(rows).at[columns].set(rows)


def _check_sinkhorn(reg, iterations, tolerance):
  method.check_positive("reg", reg)
  method.check_count("iterations", iterations)
  method.check_positive("tolerance", tolerance)


def _sinkhorn(cost, reg, iterations, tolerance):
  """(log plan [n, n] but for a constant a column, marginal error).

  With potentials f, g [n] the plan is exp((f_i + g_j - cost_ij) / reg) / n^2. A sweep sets g and
  then f so that columns and then rows sum to 1 / n; how far f moves says what they summed to.
  """
  cost, n = cost / reg, len(cost)

  def sweep(carry):
    i, f, _ = carry
    g = jnp.log(n) - jax.nn.logsumexp(f[:, None] - cost, axis=0)
    new = jnp.log(n) - jax.nn.logsumexp(g[None] - cost, axis=1)
    return i + 1, new, jnp.mean(jnp.abs(jnp.expm1(f - new)))

  unfinished = lambda carry: (carry[0] < iterations) & ~(carry[2] <= tolerance)
  _, f, error = jax.lax.while_loop(unfinished, sweep, (0, jnp.zeros(n), jnp.float32(jnp.inf)))
  return f[:, None] - cost, error

"""Ancestral sampling. Ho et al., 2020. arXiv:2006.11239."""

import jax
import jax.numpy as jnp

from jaxgen import noise, paths
from jaxgen.core import method


def ancestral(field, x, keys, ts, *, v=1.0, guide=None, z=None):
  """Draws from p(x_s | x_t) along `ts`. arXiv:2006.11239, Alg. 2; survey Box 8.

  Args:
    field: a paths.Field; `guidance.clipped(field)` clips its x as the paper's code does.
    x: [B, ...] at ts[0]. keys: [B]. ts: [S + 1], from noise to data, any sub-sequence of the chain.
    v: log variance between log beta-tilde_t (0) and log beta_t (1), the paper's two choices, where
      the field does not predict it. arXiv:2102.09672, Eq. 15; survey Eq. 87, whose beta-bar_t is
      beta-tilde_t.
    guide: (x_t, t [B]) -> scale grad log p(y | x_t) [B, ...], by which the mean is shifted.
    z: [S, B, ...] in place of normal noise (tests).

  Raises:
    ValueError: a time that the path does not have, a v outside [0, 1].
  """
  method.check_unit("v", v)
  paths.check_times(field.path, ts)
  steps = len(ts) - 1
  q = paths.posterior(field.path, ts[:-1], ts[1:])
  before = q.small[-2:-1] if steps > 1 else q.large  # in place of a last beta-tilde of 0
  log_large, log_small = jnp.log(q.large), jnp.log(jnp.where(q.small > 0.0, q.small, before))

  def step(x, inputs):
    i, t, q, log_large, log_small, z = inputs
    rows = jnp.full(x.shape[:1], t)
    p = field.predict(x, rows)
    mean = q.x_weight * p.x + q.x_t_weight * x  # Eq. 7
    mix = v if p.v is None else p.v
    std = jnp.exp(0.5 * (mix * log_large + (1.0 - mix) * log_small))
    if guide is not None:
      mean = mean + std**2 * guide(x, rows)  # arXiv:2105.05233, Alg. 1; survey Eq. 90-91
    z = noise.normal(noise.fold_in(keys, i), x.shape[1:]) if z is None else z
    return mean + jnp.where(i < steps - 1, std, 0.0) * z, None  # the last step adds no noise

  return jax.lax.scan(step, x, (jnp.arange(steps), ts[:-1], q, log_large, log_small, z))[0]

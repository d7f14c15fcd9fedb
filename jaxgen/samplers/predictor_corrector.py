"""Predictor-corrector samplers. Song et al., 2021. arXiv:2011.13456, Alg. 1-5."""

import jax
import jax.numpy as jnp

from jaxgen import noise, paths
from jaxgen.core import axis, method
from jaxgen.samplers import langevin, sde


def step_size(score, z, snr):
  """2 (snr |z| / |score|)^2, of each example [B]. Alg. 4 and 5 without their alpha.

  score, z: [B, ...]. snr: a scalar, the paper's r. Infinite where the score is 0. A size that
  depends on x and z widens what the corrector keeps, its variance by about 4 / D of itself.
  """
  return 2.0 * (snr * _norm(z) / _norm(score)) ** 2


def batch_step_size(score, z, snr):
  """A scalar, as in the paper's code: both norms are averaged over the global batch.

  score, z: [B, ...]. snr: a scalar. A sample then depends on its batch: for its published numbers.
  """
  norm = lambda a: axis.mean(jnp.mean(_norm(a)))
  return 2.0 * (snr * norm(z) / norm(score)) ** 2


def _norm(a):
  return jnp.sqrt(jnp.sum(a**2, axis=tuple(range(1, a.ndim))))


def correct(field, x, t, keys, *, snr, alpha=1.0, repeats=1, step_size=step_size, z=None):
  """x [B, ...] after Langevin steps at one time: it keeps p_t. Alg. 4 (VE) and 5 (VP).

  Args:
    field: a paths.Field. x: [B, ...]. t: [B], of the path, t_noise to t_data. keys: [B].
    snr: a scalar, the signal-to-noise ratio r.
    alpha: [B] or a scalar, 1 for VE and 1 - beta_i for VP.
    repeats: number of steps, the paper's M. step_size: the function above, or another.
    z: [repeats, B, ...] in place of normal noise (tests).
  """

  def step(x, inputs):
    i, z = inputs
    z = noise.normal(noise.fold_in(keys, i), x.shape[1:]) if z is None else z
    score = field.score(x, t)
    return langevin.move(x, score, z, alpha * step_size(score, z, snr))[1], None

  return jax.lax.scan(step, x, (jnp.arange(repeats), z))[0]


def predictor_corrector(
  field,
  x,
  keys,
  ts,
  *,
  snr=0.16,
  repeats=1,
  predictor=sde.reverse_diffusion_step,
  step_size=step_size,
  z=None,
):
  """From ts[0] to ts[-1], corrected before every predictor step. Alg. 1-3.

  The order is that of the paper's code, so that the predictor is last; its last step adds no noise.

  Args:
    field: a paths.Field. x: [B, ...] at ts[0]. keys: [B]. ts: [S + 1], from noise to data.
    snr: signal-to-noise ratio r of the corrector. repeats: its steps at each time, the paper's M.
    predictor: a table of `sde`, (path, t, s) -> sde.Step. step_size: one of the functions above.
    z: [S, repeats + 1, B, ...] in place of normal noise (tests), the predictor's last.

  Raises:
    ValueError: a time that the path does not have, an option out of its range.
  """
  method.check_weight("snr", snr)
  method.check_count("repeats", repeats, 0)
  paths.check_times(field.path, ts)
  path, (t, s), steps = field.path, (ts[:-1], ts[1:]), len(ts) - 1
  alpha = (path.alpha(t) / path.alpha(s)) ** 2  # 1 - beta_i on DDPM's chain

  def body(x, inputs):
    i, t, move, alpha, z = inputs
    rows = jnp.full(x.shape[:1], t)
    to_correct, to_predict = noise.split(noise.fold_in(keys, i))
    known = (None, noise.normal(to_predict, x.shape[1:])) if z is None else (z[:-1], z[-1])
    options = dict(snr=snr, alpha=alpha, repeats=repeats, step_size=step_size, z=known[0])
    x = correct(field, x, rows, to_correct, **options)
    mean = move.x * x + move.score * field.score(x, rows)
    return mean + jnp.where(i < steps - 1, move.std, 0.0) * known[1], None

  return jax.lax.scan(body, x, (jnp.arange(steps), t, predictor(path, t, s), alpha, z))[0]

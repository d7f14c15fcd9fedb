"""Samplers of the reverse-time SDE. Song et al., 2021. arXiv:2011.13456.

A solver is a table of Gaussian steps, made before its loop: functions (path, t, s) -> `Step`, whose
times go from noise to data, s nearer to the data than t. `predictor_corrector` takes the same ones.

`flow_sde` and `flow_sde_heun` are those of interpolants, arXiv:2401.08740, whose noise may be any.
"""

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import noise, paths
from jaxgen.core import method


class Step(NamedTuple):
  """x_s = x x_t + score grad log p_t(x_t) + std z. Three arrays of the shape of the times."""

  x: jax.Array
  score: jax.Array
  std: jax.Array


def euler_maruyama_step(path, t, s):
  """The Step of dx = (f x - g^2 score) dt + g dw over s - t, elementwise. Eq. 6.

  Infinite where alpha is 0.
  """
  (f, g2), h = paths.sde(path, t), s - t
  return Step(1.0 + h * f, -h * g2, jnp.sqrt(-h * g2))


def reverse_diffusion_step(path, t, s):
  """The Step that undoes x_t = r x_s + G z, r = alpha_t / alpha_s, elementwise. Eq. 46.

  G^2 = sigma_t^2 - r^2 sigma_s^2 is sigma_t^2 - sigma_s^2 with alpha = 1 (VE), and beta_t on DDPM's
  chain (VP).
  """
  large = paths.posterior(path, t, s).large
  return Step(2.0 - path.alpha(t) / path.alpha(s), large, jnp.sqrt(large))


def ancestral_step(path, t, s, *, v=1.0):
  """The Step of ancestral sampling, elementwise. Eq. 4, App. F.

  v: log variance between the Posterior's small (0, the paper's with VE) and large (1, with VP).
  Infinite where alpha is 0.
  """
  q, r = paths.posterior(path, t, s), path.alpha(t) / path.alpha(s)
  return Step(1.0 / r, q.large / r, q.small ** (0.5 - 0.5 * v) * q.large ** (0.5 * v))


def probability_flow(step):
  """The Step without noise that keeps the marginals, elementwise. Eq. 13, App. D.

  step: what euler_maruyama_step or reverse_diffusion_step gives.
  """
  return step._replace(score=0.5 * step.score, std=jnp.zeros_like(step.std))


def euler_maruyama(field, x, keys, ts, *, z=None):
  """Solves the reverse SDE from ts[0] to ts[-1]. Eq. 6.

  Args:
    field: a paths.Field. x: [B, ...] at ts[0]. keys: [B].
    ts: [S + 1], from noise to data; the last step adds no noise.
    z: [S, B, ...] in place of normal noise (tests).

  Raises:
    ValueError: a time that the path does not have.
  """
  return _solve(euler_maruyama_step, field, x, keys, ts, z)


def reverse_diffusion(field, x, keys, ts, *, z=None):
  """Undoes the forward process step by step, discretised as that is. Eq. 46; Alg. 2 and 3.

  Args:
    field: a paths.Field. x: [B, ...] at ts[0]. keys: [B].
    ts: [S + 1], from noise to data; the last step adds no noise: with alpha = 1 and down to
      sigma = 0 it is Tweedie's formula.
    z: [S, B, ...] in place of normal noise (tests).

  Raises:
    ValueError: a time that the path does not have.
  """
  return _solve(reverse_diffusion_step, field, x, keys, ts, z)


def _solve(table, field, x, keys, ts, z):
  paths.check_times(field.path, ts)
  steps = len(ts) - 1

  def body(x, inputs):
    i, t, step, z = inputs
    z = noise.normal(noise.fold_in(keys, i), x.shape[1:]) if z is None else z
    mean = step.x * x + step.score * field.score(x, jnp.full(x.shape[:1], t))
    return mean + jnp.where(i < steps - 1, step.std, 0.0) * z, None

  table = table(field.path, ts[:-1], ts[1:])
  return jax.lax.scan(body, x, (jnp.arange(steps), ts[:-1], table, z))[0]


# w / 2 of arXiv:2401.08740, Sec. 2.3, as in its code: functions (path, t, scale), elementwise. But
# for sbdm they are rates in a time that is 0 at the noise and 1 at the data, as SiT's is.
DIFFUSIONS = {
  "constant": lambda path, t, scale: scale * jnp.ones_like(t) / _span(path),
  "sbdm": lambda path, t, scale: 0.5 * scale * jnp.abs(paths.sde(path, t)[1]),
  "sigma": lambda path, t, scale: scale * path.sigma(t) / _span(path),
  "linear": lambda path, t, scale: scale * (1.0 - _done(path, t)) / _span(path),
  "decreasing": lambda path, t, scale: (
    0.25 * (scale * jnp.cos(math.pi * _done(path, t)) + 1.0) ** 2 / _span(path)
  ),
  "increasing-decreasing": lambda path, t, scale: (
    scale * jnp.sin(math.pi * _done(path, t)) ** 2 / _span(path)
  ),
}
LAST = ("mean", "tweedie", "euler")


def _span(path):
  return max(path.t_noise, path.t_data)


def _done(path, t):
  return t / _span(path) if path.t_data > path.t_noise else 1.0 - t / _span(path)


def flow_sde(
  field, x, keys, ts, *, diffusion="sigma", scale=1.0, last="mean", last_size=0.0, z=None
):
  """Solves dx = (v + w/2 score) dt + sqrt(w) dW by Euler and Maruyama's method.

  arXiv:2401.08740, Eq. 4, in the direction of the data: v = dx/dt is that of the probability flow,
  and whatever w is, the marginals are those of the path.

  Args:
    field: a paths.Field. x: [B, ...] at ts[0]. keys: [B]. ts: [S + 1], from noise to data.
    diffusion: w / 2 before it is scaled, of `DIFFUSIONS`, or such a function (path, t, scale).
    scale: how much noise: with 0, "constant" is Euler's method.
    last: the step to ts[-1], where the score may be infinite, has no noise: "mean" is the others
      without theirs, "tweedie" the x that is predicted, "euler" one with w = 0.
    last_size: how long that step is, in the path's time; the others share what is left. 0 leaves
      ts as they are. The code of SiT has 0.04 at 250 steps.
    z: [S, B, ...] in place of normal noise (tests).

  Raises:
    ValueError: a name or a number out of range, a diffusion that is infinite, a time that the path
      does not have.
  """
  return _flow(field, x, keys, ts, z, 1, diffusion, scale, last, last_size)


def flow_sde_heun(
  field, x, keys, ts, *, diffusion="sigma", scale=1.0, last="mean", last_size=0.0, z=None
):
  """`flow_sde` with the noise of a step at its start and then Heun's method, as SiT's code.

  x [B, ...] at ts[-1]; the last step is that of `flow_sde`, as are field, x, keys [B], ts [S + 1],
  from noise to data, diffusion, scale, last, last_size, z [S, B, ...] and errors (ValueError).
  """
  return _flow(field, x, keys, ts, z, 2, diffusion, scale, last, last_size)


def _flow(field, x, keys, ts, z, order, diffusion, scale, last, last_size):
  """A step is keep x + a p(t).x + b p(t).eps, and the same of p(s): a table of these weights."""
  method.check("last", last, last in LAST, f"one of {', '.join(LAST)}")
  method.check_weight("scale", scale)
  path = field.path
  with jax.ensure_compile_time_eval():  # known also while JAX traces
    ts = _with_last(ts, last_size)
  paths.check_times(path, ts)
  rate, steps = _diffusion(diffusion, path, ts, scale), len(ts) - 1
  (t, s), h = (ts[:-1], jnp.append(ts[1:-1], ts[-2])), jnp.diff(ts)
  is_last = jnp.arange(steps) == steps - 1
  std = jnp.where(is_last, 0.0, jnp.sqrt(2.0 * rate * jnp.abs(h)))
  share = jnp.where(is_last, 0.0, 0.5)  # of the second evaluation; the last step has none

  def drift(t, rate):
    """h (v + rate score), v = alpha' x + sigma' eps and score = -eps / sigma: its weights."""
    _, d_alpha, _, d_sigma = paths.coefficients(path, t)
    return h * d_alpha, h * d_sigma - jnp.abs(h) * rate / path.sigma(t)

  second = drift(s, jnp.append(rate[1:], rate[-1:]))
  first = drift(t, jnp.where(is_last, 0.0, rate) if last == "euler" else rate)
  keep = jnp.ones_like(t)
  if last == "tweedie":
    keep, (a, b) = 1.0 - is_last, first
    first = jnp.where(is_last, 1.0, a), jnp.where(is_last, 0.0, b)

  def move(x, t, weights):
    p = field.predict(x, jnp.full(x.shape[:1], t))
    return weights[0] * p.x + weights[1] * p.eps

  def step(x, inputs):
    i, t, s, std, keep, share, first, second, z = inputs
    z = noise.normal(noise.fold_in(keys, i), x.shape[1:]) if z is None else z
    if order == 1:
      return keep * x + move(x, t, first) + std * z, None
    x = x + std * z
    d = move(x, t, first)
    return keep * x + (1.0 - share) * d + share * move(x + d, s, second), None

  table = (jnp.arange(steps), t, s, std, keep, share, first, second, z)
  return jax.lax.scan(step, x, table)[0]


def _with_last(ts, size):
  """ts with a last step of this size, the others in proportion."""
  method.check_weight("last_size", size)
  if size == 0:
    return ts
  known = method.concrete(ts)
  fits = len(ts) > 2 and (known is None or size < abs(known[-1] - known[0]))
  method.check("last_size", size, fits, "0, or less than all of two or more steps")
  end = ts[-1] + jnp.sign(ts[0] - ts[-1]) * size
  return jnp.append(ts[0] + (ts[:-1] - ts[0]) * ((end - ts[0]) / (ts[-2] - ts[0])), ts[-1])


def _diffusion(name, path, ts, scale):
  """float32 [S], at all but the last of ts."""
  known = callable(name) or (isinstance(name, str) and name in DIFFUSIONS)
  method.check("diffusion", name, known, f"one of {', '.join(DIFFUSIONS)}")
  fn = name if callable(name) else DIFFUSIONS[name]
  if fn is not name and method.concrete(ts) is not None:
    with jax.ensure_compile_time_eval():  # known also while JAX traces
      finite = np.isfinite(np.asarray(fn(path, ts, scale))[:-1]).all()
    method.check("diffusion", name, finite, "another first time, or one that is finite there")
  return fn(path, ts[:-1], scale)


def bridge_sde(velocity_fn, score_fn, x, keys, ts, *, diffusion, z=None):
  """Solves dx = (b + D score) dt + sqrt(2 D) dW from one distribution to another.

  Whatever D is, the marginals are those of the interpolant. arXiv:2303.08797, Sec. 2.3. With
  `Bridge(sigma)` of data that an entropic plan has coupled, D = sigma^2 / 2 is the Schroedinger
  bridge, arXiv:2302.00482, Sec. 3.2. By Euler and Maruyama's method; the last step has no noise.

  Args:
    velocity_fn, score_fn: (x_t [B, ...], t [B]) -> [B, ...], the b and -eta / gamma of
      `objectives.interpolant`.
    x: [B, ...] at ts[0]. keys: [B].
    ts: [S + 1] from 0 to 1, from noise to data, or the other way; score_fn is finite at all but the
      last of them.
    diffusion: t -> D, elementwise.
    z: [S, B, ...] in place of normal noise (tests).
  """
  steps, h, rate = len(ts) - 1, jnp.diff(ts), diffusion(ts[:-1])
  std = jnp.where(jnp.arange(steps) < steps - 1, jnp.sqrt(2.0 * rate * jnp.abs(h)), 0.0)

  def step(x, inputs):
    i, t, h, rate, std, z = inputs
    rows = jnp.full(x.shape[:1], t)
    z = noise.normal(noise.fold_in(keys, i), x.shape[1:]) if z is None else z
    drift = h * velocity_fn(x, rows) + jnp.abs(h) * rate * score_fn(x, rows)
    return x + drift + std * z, None

  return jax.lax.scan(step, x, (jnp.arange(steps), ts[:-1], h, rate, std, z))[0]

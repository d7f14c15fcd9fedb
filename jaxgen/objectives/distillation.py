"""Few-step students: progressive distillation, arXiv:2202.00512, and consistency models.

The latter, arXiv:2303.01469, map every point of a trajectory of the probability-flow ODE to its
start: f(x_t, sigma) -> x, on `paths.EDM`. A bare equation number is one of the first paper.
"""

import math

import jax
import jax.numpy as jnp

from jaxgen import noise, paths


def truncated_snr(x_mse, eps_mse):
  """max(SNR, 1) x_mse, elementwise. x_mse, eps_mse: errors of the x and eps of one x_t. Eq. 10."""
  return jnp.maximum(x_mse, eps_mse)


def snr_plus_one(x_mse, eps_mse):
  """(SNR + 1) x_mse, the error of v; elementwise. x_mse, eps_mse: of `truncated_snr`. Eq. 11."""
  return x_mse + eps_mse


def v_prediction(v_fn, x, keys, *, path=paths.Cosine(), weighting=truncated_snr, t=None, eps=None):
  """Denoising in v = alpha eps - sigma x, per example [B]. arXiv:2202.00512, Alg. 1, Sec. 4.

  Args:
    v_fn: (x_t [B, ...], t [B]) -> v [B, ...].
    x: data [B, ...]. keys: [B]. path: with alpha^2 + sigma^2 = 1.
    weighting: (mean squared errors of x [B], of eps [B]) -> [B]: one of the two above.
    t, eps: [B], from t_data to t_noise, and [B, ...] in place of uniform times and normal noise.
  """
  x = x.astype(jnp.float32)
  k_t, k_eps = noise.split(keys)
  t = noise.uniform(k_t, (), *sorted((path.t_noise, path.t_data))) if t is None else t
  eps = noise.normal(k_eps, x.shape[1:]) if eps is None else eps
  p = paths.v_field(path, v_fn).predict(paths.interpolate(path, x, eps, t), t)
  return weighting(l2(p.x, x), l2(p.eps, eps))


def two_steps(teacher, x_t, t, middle, s):
  """What one DDIM step from t to s must predict as x to do two of the teacher's, like x_t.

  It is the teacher's two predictions in a mean, their weights the growth of alpha / sigma over each
  step: the target of arXiv:2202.00512, Alg. 2, without its difference of almost equal numbers.

  teacher: a paths.Field. x_t: [B, ...]. t, middle, s: [B], falling from t_noise to t_data.
  """
  path = teacher.path
  first = teacher.predict(x_t, t)
  t, m, s = (paths.expand(u, x_t) for u in (t, middle, s))
  x_m = path.alpha(m) * first.x + path.sigma(m) * first.eps  # Eq. 8
  x = teacher.predict(x_m, middle).x
  before, after = (
    jnp.expm1(0.5 * (paths.log_snr(path, u) - paths.log_snr(path, m))) for u in (t, s)
  )
  return x + before / (before - after) * (first.x - x)


def progressive(student, teacher, x, keys, *, steps, weighting=truncated_snr, i=None, eps=None):
  """One DDIM step of the student against two of the teacher, per example [B].

  arXiv:2202.00512, Alg. 2; survey Eq. 89: at t = i / steps the target is `two_steps`.

  Args:
    student, teacher: a paths.Field each, on one path with alpha^2 + sigma^2 = 1.
    x: data [B, ...]. keys: [B].
    steps: how many the student will take, a scalar. weighting: of `v_prediction`.
    i, eps: [B] in 1, ..., steps and [B, ...] in place of uniform steps and normal noise.
  """
  x = x.astype(jnp.float32)
  path = student.path
  k_i, k_eps = noise.split(keys)
  i = noise.randint(k_i, 1, steps + 1) if i is None else i
  eps = noise.normal(k_eps, x.shape[1:]) if eps is None else eps
  t, middle, s = (path.t_data + (path.t_noise - path.t_data) * (i - d) / steps for d in (0, 0.5, 1))
  x_t = paths.interpolate(path, x, eps, t)
  target = jax.lax.stop_gradient(two_steps(teacher, x_t, t, middle, s))
  at = paths.expand(t, x_t)
  p = student.predict(x_t, t)
  return weighting(l2(p.x, target), l2(p.eps, (x_t - path.alpha(at) * target) / path.sigma(at)))


def scalings(sigma, *, sigma_data=0.5, sigma_min=0.002):
  """(c_skip, c_out) with c_skip(sigma_min) = 1 and c_out(sigma_min) = 0, elementwise.

  arXiv:2303.01469, Eq. 5 and App. C. sigma_data: of the data. sigma_min = 0 gives the scalings of
  EDM, arXiv:2206.00364, Table 1.
  """
  c_skip = sigma_data**2 / ((sigma - sigma_min) ** 2 + sigma_data**2)
  return c_skip, sigma_data * (sigma - sigma_min) / jnp.sqrt(sigma**2 + sigma_data**2)


def consistency_fn(denoiser, *, sigma_data=0.5, sigma_min=0.002):
  """f(x_t, sigma) -> x [B, ...] of a denoiser, the identity at sigma_min. arXiv:2303.01469, Eq. 5.

  What EDM's preconditioning makes c_out F of D is D - c_skip x, and both c_out differ by the factor
  1 - sigma_min / sigma: a denoiser (x_t [B, ...], sigma [B]) -> x is enough, however it is made.
  sigma_data, sigma_min: of `scalings`.
  """

  def f(x_t, sigma):
    x = denoiser(x_t, sigma)
    sigma = paths.expand(sigma, x_t)
    c_skip, _ = scalings(sigma, sigma_data=sigma_data, sigma_min=sigma_min)
    edm_skip, _ = scalings(sigma, sigma_data=sigma_data, sigma_min=0.0)
    return c_skip * x_t + (1.0 - sigma_min / sigma) * (x - edm_skip * x_t)

  return f


def noise_level(n, scales, *, path=paths.EDM(), rho=7.0):
  """t_n of t_1 = sigma_min < ... < t_N = sigma_max, N = scales, elementwise.

  n from 1 to N; path: of sigma_min and sigma_max; rho: larger is denser at sigma_min.
  arXiv:2303.01469, Sec. 2; arXiv:2206.00364, Eq. 5, the other way round.
  """
  drop = 1.0 - (path.sigma_min / path.sigma_max) ** (1.0 / rho)
  return path.sigma_max * (1.0 - drop * (scales - n) / (scales - 1)) ** rho


def l2(a, b):
  """Mean squared difference per example, [B]. a, b: [B, ...]. arXiv:2303.01469, Sec. 3."""
  return jnp.mean((a - b) ** 2, axis=tuple(range(1, a.ndim)))


def l1(a, b):
  """Mean absolute difference per example, [B]. a, b: [B, ...]. arXiv:2303.01469, Sec. 3."""
  return jnp.mean(jnp.abs(a - b), axis=tuple(range(1, a.ndim)))


def consistency_distillation(
  f, f_target, teacher, x, keys, *, scales, path=paths.EDM(), rho=7.0, metric=l2, n=None, eps=None
):
  """f at t_(n+1) against the target network at t_n, one step of the teacher's ODE nearer, [B].

  arXiv:2303.01469, Eq. 6-7, Alg. 2, with Heun's step and weight 1.

  Args:
    f, f_target: (x_t [B, ...], sigma [B]) -> x [B, ...]; no gradient flows through the second.
    teacher: a paths.Field on `path`.
    x: data [B, ...]. keys: [B].
    scales: N, how many noise levels there are, a scalar. path, rho: of `noise_level`.
    metric: distance (a, b) -> [B]: `l2`, `l1` or another.
    n, eps: [B] in 1, ..., N - 1 and [B, ...] in place of uniform levels and normal noise.
  """

  def step(x, x_t, eps, t, s):
    d = teacher.velocity(x_t, t)
    h = paths.expand(s - t, x_t)
    return x_t + 0.5 * h * (d + teacher.velocity(x_t + h * d, s))

  return _consistency(f, f_target, step, x, keys, scales, path, rho, metric, n, eps)


def consistency_training(
  f, f_target, x, keys, *, scales, path=paths.EDM(), rho=7.0, metric=l2, n=None, eps=None
):
  """f at t_(n+1) against the target network at t_n, both points made from one x and eps, [B].

  arXiv:2303.01469, Eq. 10, Alg. 3, with weight 1: no teacher. f, f_target: (x_t [B, ...],
  sigma [B]) -> x [B, ...]. x: data [B, ...]. keys: [B]. scales, path, rho, metric, n [B],
  eps [B, ...]: of `consistency_distillation`.
  """

  def step(x, x_t, eps, t, s):
    return paths.interpolate(path, x, eps, s)

  return _consistency(f, f_target, step, x, keys, scales, path, rho, metric, n, eps)


def _consistency(f, f_target, step, x, keys, scales, path, rho, metric, n, eps):
  x = x.astype(jnp.float32)
  k_n, k_eps = noise.split(keys)
  n = noise.randint(k_n, 1, scales) if n is None else n
  eps = noise.normal(k_eps, x.shape[1:]) if eps is None else eps
  t, s = (noise_level(i, scales, path=path, rho=rho) for i in (n + 1, n))
  x_t = paths.interpolate(path, x, eps, t)
  target = f_target(step(x, x_t, eps, t, s), s)
  return metric(f(x_t, t), jax.lax.stop_gradient(target))


def progressive_scales(k, *, steps, s_0=2, s_1=150):
  """N(k), from s_0 at k = 0 to s_1 + 1 at k = steps, int32, elementwise.

  arXiv:2303.01469, App. C.
  """
  grown = k / steps * ((s_1 + 1) ** 2 - s_0**2) + s_0**2
  return jnp.maximum(jnp.ceil(jnp.sqrt(grown) - 1.0), 1.0).astype(jnp.int32) + 1


def target_decay(scales, *, mu_0=0.9, s_0=2, of_intervals=False):
  """mu = exp(s_0 log(mu_0) / N), N = scales, elementwise. arXiv:2303.01469, App. C.

  of_intervals: divide by N - 1, as openai/consistency_models does.
  """
  return jnp.exp(s_0 * math.log(mu_0) / (scales - of_intervals))

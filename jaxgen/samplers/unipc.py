"""UniPC, a predictor and a corrector from one family. Zhao et al., 2023. arXiv:2302.04867."""

import jax
import jax.numpy as jnp

from jaxgen.core import method
from jaxgen.samplers import dpm_solver, lms


def bh1(z):
  """B_1(h), elementwise: h itself, which is z = -h in data prediction."""
  return z


def bh2(z):
  """B_2(h), elementwise: e^h - 1, of z = -h in data prediction."""
  return jnp.expm1(z)


def unipc(field, x, keys, ts, *, order=2, final=1, B=bh2):
  """x [B, ...] at ts[-1], UniPC-p in data prediction: UniP-p, then UniC-p. Alg. 1 and 2.

  One evaluation a step: what the network says of the prediction corrects it, and starts the next
  step. The last prediction, which may be of sigma = 0, is not corrected.

  Args:
    field: a paths.Field. x: [B, ...] at ts[0]. keys: [B], unused.
    ts: [S + 1], from noise to data.
    order: p, 1 to 3. final: p of the last step, to which it falls by one a step.
    B: the paper's B(h), which counts where the weights are not determined: UniP-2 and UniC-1.

  Raises:
    ValueError: order or final is not 1, 2 or 3, there are fewer steps than that, or times do not
      run from noise to data on the path.
  """
  method.check_count("order", order, 1, 3)
  method.check_count("final", final, 1, 3)
  ts, alpha, sigma, lam = lms.levels(field.path, ts, order)
  alpha_s, sigma_s, z = alpha[1:], sigma[1:], -jnp.diff(lam)
  _, *m = dpm_solver.moments(z, 3)
  q, end, half = lms.nodes(lam, 2), jnp.ones_like(z), 0.5 * B(z)
  predict = [[], lms.weights([half], q[:1]), lms.weights(m[:2], q)]
  correct = [[half], lms.weights(m[:2], [end, q[0]]), lms.weights(m, [end, *q])]
  steps = lms.orders(len(z), order, final)
  predict = [-alpha_s * w for w in lms.pick(steps, predict[:order])]
  correct = [-alpha_s * w for w in lms.pick(steps, correct[:order])]
  # A correction is made one evaluation later, and takes back what the prediction had added.
  correct = [correct[0], *(c - p for c, p in zip(correct[1:], predict, strict=True))]
  correct = tuple(jnp.concatenate([jnp.zeros_like(c[:1]), c[:-1]]) for c in correct)
  predict = tuple(jnp.where(sigma_s == 0.0, 0.0, p) for p in predict)

  def step(carry, inputs):
    x, seen = carry
    t, sigma_t, alpha_s, sigma_s, predict, correct = inputs
    p = field.predict(x, jnp.full(x.shape[:1], t))
    eps = p.eps + lms.differences(correct, (p.x, *seen[1:]), seen[0]) / sigma_t
    x = alpha_s * p.x + sigma_s * eps + lms.differences(predict, seen[:-1], p.x)
    return (x, lms.push(seen, p.x)), None

  rows = ts[:-1], sigma[:-1], alpha_s, sigma_s, predict, correct
  return jax.lax.scan(step, (x, (jnp.zeros_like(x),) * order), rows)[0][0]

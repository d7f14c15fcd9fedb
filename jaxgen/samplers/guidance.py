"""Guidance: functions Field -> Field, which any sampler follows in any parameterisation.

Classifier-Free Diffusion Guidance. Ho and Salimans, 2022. arXiv:2207.12598.

Survey D10, Eq. 92.
"""

import math

import jax
import jax.numpy as jnp

from jaxgen import noise, paths
from jaxgen.core import method


def classifier_free(cond, uncond, w, *, interval=None):
  """The Field (1 + w) cond - w uncond; w, a scalar, is 0 for the conditional model.

  The weights sum to one, so it is the same in eps, x, v, velocity and score. arXiv:2207.12598,
  Eq. 6; survey Eq. 92.

  interval: (low, high), scalars: guidance where low < sigma / alpha <= high, and the conditional
  model elsewhere. arXiv:2404.07724. Raises ValueError unless 0 <= low < high.
  """
  _check_interval(interval)

  def predict(x_t, t):
    c, u = cond.predict(x_t, t), uncond.predict(x_t, t)
    return _mixed(c, u, _weight(cond.path, w, interval, x_t, t))

  return paths.Field(cond.path, predict)


def rescaled(cond, uncond, w, phi, *, interval=None):
  """`classifier_free` whose v has, for phi = 1, the std of the conditional v in each example.

  A large w makes images too bright. arXiv:2305.08891, Eq. 15-16, on v, which its network predicts.

  cond, uncond, w, interval: as there, scalars. phi: a scalar, how much of it, the paper's 0.7; with
  0 nothing changes. Raises ValueError as there, and for a phi outside [0, 1].
  """
  _check_interval(interval)
  method.check_unit("phi", phi)
  path = cond.path

  def predict(x_t, t):
    c, u = cond.predict(x_t, t), uncond.predict(x_t, t)
    guided = _mixed(c, u, _weight(path, w, interval, x_t, t))
    alpha, sigma = path.alpha(paths.expand(t, x_t)), path.sigma(paths.expand(t, x_t))
    v = alpha * guided.eps - sigma * guided.x
    std = lambda v: jnp.std(v, axis=tuple(range(1, v.ndim)), keepdims=True)
    v_rescaled = v * std(alpha * c.eps - sigma * c.x) / std(v)  # Eq. 15
    v = phi * v_rescaled + (1.0 - phi) * v  # Eq. 16
    p = paths.v_field(path, lambda *_: v).predict(x_t, t)
    return guided._replace(x=p.x, eps=p.eps)

  return paths.Field(path, predict)


def _mixed(c, u, w):
  mix = lambda a, b: (1.0 + w) * a - w * b
  return c._replace(x=mix(c.x, u.x), eps=mix(c.eps, u.eps))


def _weight(path, w, interval, x_t, t):
  if interval is None:
    return w
  t = paths.expand(t, x_t)
  alpha, sigma = path.alpha(t), path.sigma(t)
  low, high = interval
  return jnp.where((low * alpha < sigma) & (sigma <= high * alpha), w, 0.0)


def _check_interval(interval):
  if interval is not None:
    good = len(interval) == 2 and 0.0 <= interval[0] < interval[1]
    method.check("interval", interval, good, "(low, high) with 0 <= low < high")


def classifier(field, log_prob_fn, scale):
  """The Field whose eps is eps - scale sigma_t grad log p(y | x_t).

  arXiv:2105.05233, Eq. 14, Alg. 2; survey Eq. 90-91. Its x is infinite where alpha is 0.

  Args:
    field: a paths.Field.
    log_prob_fn: (x_t [B, ...], t [B]) -> log p(y | x_t) [B], in nats, of a classifier of noisy
      data. Its rows are summed, so the gradient of one does not depend on the batch.
    scale: a scalar; 0 leaves the field as it is.

  Raises:
    ValueError: a scale that is not finite, where it is known; a log_prob_fn that is not [B].
  """
  known = method.concrete(scale)
  method.check("scale", scale, known is None or math.isfinite(known), "a finite number")

  def predict(x_t, t):
    p, at = field.predict(x_t, t), paths.expand(t, x_t)
    alpha, sigma = field.path.alpha(at), field.path.sigma(at)
    shift = scale * sigma * gradient(log_prob_fn)(x_t, t)
    return p._replace(x=p.x + sigma / alpha * shift, eps=p.eps - shift)

  return paths.Field(field.path, predict)


def gradient(log_prob_fn):
  """grad log p(y | x_t) as a function (x_t [B, ...], t [B]) -> [B, ...]. arXiv:2105.05233, Alg. 1.

  log_prob_fn: of `classifier`, in nats. Raises ValueError where its result is not [B].
  """

  def total(x_t, t):
    log_prob = log_prob_fn(x_t, t)
    method.check("log_prob_fn", log_prob.shape, log_prob.shape == x_t.shape[:1], "a result [B]")
    return jnp.sum(log_prob)

  return jax.grad(total)


def label_log_prob(logits_fn, label):
  """log p(label | x_t), in nats, as a function (x_t [B, ...], t [B]) -> [B]. arXiv:2105.05233.

  logits_fn: (x_t, t) -> logits [B, K]. label: int [B] in 0, ..., K - 1. Raises ValueError for
  another label, where it is known, or another number of them.
  """
  good = getattr(label, "ndim", 0) == 1 and jnp.issubdtype(label.dtype, jnp.integer)
  method.check("label", label, good, "an int32 array [B]")

  def log_prob(x_t, t):
    logits = logits_fn(x_t, t)
    n, known = logits.shape[-1], method.concrete(label)
    method.check("label", label.shape, len(label) == len(logits), f"{len(logits)}, as of x_t")
    inside = known is None or ((known >= 0) & (known < n)).all()
    method.check("label", label, inside, f"0 to {n - 1}, as the classifier's classes")
    log_p = jax.nn.log_softmax(logits.astype(jnp.float32))
    return jnp.take_along_axis(log_p, label[:, None], axis=-1)[:, 0]

  return log_prob


def of_labels(of, cond, n_classes, w):
  """The Field of a class-conditional model, guided if w and `cond` ask for it; or of one without.

  of: label, int32 [B], or None for the null class -> a paths.Field. cond: {"label": int32 [B]} or
  {}. n_classes, w: scalars, 0 or the number of labels, and of `classifier_free`. Raises ValueError
  for a cond or w that does not fit. arXiv:2207.12598, Alg. 2.
  """
  method.check_cond(cond, n_classes, w)
  conditional = of(cond.get("label"))
  return classifier_free(conditional, of(None), w) if w and cond else conditional


def likelihood_cond(batch, image_shape, n_classes, label_dropout):
  """The cond of a likelihood: {}, the null class, where label_dropout trains it, else the labels.

  batch: image [B, *image_shape] in [-1, 1] and label int32 [B]. n_classes, label_dropout: scalars
  of a model. Raises ValueError for a batch that does not fit. arXiv:2207.12598, Alg. 1.
  """
  labelled = 0 if label_dropout else n_classes
  method.check_batch(batch, image_shape, labelled)
  return {"label": batch["label"]} if labelled else {}


def training_label(keys, batch, rate, n_classes):
  """`drop_labels` of a batch, int32 [B], or None without classes: n_classes = 0.

  keys: [B]. rate: a scalar. arXiv:2207.12598, Alg. 1.
  """
  return drop_labels(keys, batch["label"], rate, n_classes) if n_classes else None


def drop_labels(keys, label, rate, n_classes):
  """label [B] with n_classes, the null class, at this rate. arXiv:2207.12598, Alg. 1. keys: [B]."""
  return jnp.where(noise.bernoulli(keys, rate), n_classes, label)


def clipped(field, low=-1.0, high=1.0):
  """`field` with x [B, ...] clipped to low and high, the range of the data, and eps made to fit.

  As in DDPM's code, arXiv:2006.11239.
  """
  return _on_x(field, lambda x: jnp.clip(x, low, high))


def dynamic_threshold(field, percentile=0.995):
  """`field` with x [B, ...] clipped to [-s, s] and divided by s, and eps made to fit.

  s is that quantile of |x| in each example, and at least 1: x then lies in [-1, 1].
  arXiv:2205.11487, Sec. 2.3. Raises ValueError for a percentile outside (0, 1].
  """
  allowed = "above 0 and at most 1"
  method.check_number("percentile", percentile, lambda v: 0.0 < v <= 1.0, allowed)

  def threshold(x):
    axes = tuple(range(1, x.ndim))
    s = jnp.maximum(jnp.quantile(jnp.abs(x), percentile, axis=axes, keepdims=True), 1.0)
    return jnp.clip(x, -s, s) / s

  return _on_x(field, threshold)


def _on_x(field, change):
  def predict(x_t, t):
    p = field.predict(x_t, t)
    x, t = change(p.x), paths.expand(t, x_t)
    return p._replace(x=x, eps=(x_t - field.path.alpha(t) * x) / field.path.sigma(t))

  return paths.Field(field.path, predict)

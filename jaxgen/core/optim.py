"""The optimizer and the moving averages that configs ask for by number."""

import functools
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxgen.core import method

DECAYS = {
  "linear": optax.linear_schedule,
  "cosine": lambda lr, final, n: optax.cosine_decay_schedule(lr, n, final / lr),
}


def _of_tx(fn):
  """`fn`, with a ValueError for a keyword of `tx` that it does not take, or lacks."""

  @functools.wraps(fn)
  def checked(**tx):
    method.check_keywords("tx", tx, fn, fn.__name__)
    return fn(**tx)

  return checked


@_of_tx
def adam(
  *, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=0.0, skip=0.0, warmup=0, decay="",
  final=0.0, steps=0,
):  # fmt: skip
  """Adam, or AdamW, with clipping, skipped updates, warm-up and decay of the learning rate.

  Args:
    lr, b1, b2, eps: as in arXiv:1412.6980, Alg. 1.
    weight_decay: decoupled, arXiv:1711.05101, Alg. 2.
    clip: largest global norm of the gradients; 0 does not clip.
    skip: global norm of the gradients above which nothing is updated; 0 skips nothing.
    warmup: updates over which the rate rises linearly from 0 to lr.
    decay: "linear" or "cosine": how the rate falls to `final` by update `steps`; "" keeps it.
    steps: updates in all. Updates, not train steps: n_critic = 5 makes five a step.

  Raises:
    ValueError: a number out of range, a keyword or a decay that does not exist, or no lr.
  """
  return _chain(optax.adam, optax.adamw, **locals())


@_of_tx
def adamax(
  *, lr, b1=0.9, b2=0.999, eps=1e-8, weight_decay=0.0, clip=0.0, skip=0.0, warmup=0, decay="",
  final=0.0, steps=0,
):  # fmt: skip
  """Adamax, arXiv:1412.6980, Alg. 2, with the keywords of `adam`. Raises ValueError as it does."""
  return _chain(optax.adamax, optax.adamaxw, **locals())


def _chain(
  plain, decaying, *, lr, b1, b2, eps, weight_decay, clip, skip, warmup, decay, final, steps
):
  method.check_positive("tx.lr", lr)
  method.check_fraction("tx.b1", b1)
  method.check_fraction("tx.b2", b2)
  method.check_positive("tx.eps", eps)
  weights = {"weight_decay": weight_decay, "clip": clip, "skip": skip, "warmup": warmup}
  for name, value in {**weights, "final": final}.items():
    method.check_weight(f"tx.{name}", value)
  known = ("", *DECAYS)
  method.check("tx.decay", decay, decay in known, f"{', '.join(DECAYS)} or an empty string")
  if decay:
    more = lambda n: warmup < n < math.inf
    method.check_number("tx.steps", steps, more, f"more updates than tx.warmup={warmup}")
  rate = DECAYS[decay](lr, final, steps - warmup) if decay else optax.constant_schedule(lr)
  if warmup:
    rate = optax.join_schedules([optax.linear_schedule(0.0, lr, warmup), rate], [warmup])
  if weight_decay:
    tx = decaying(rate, b1, b2, eps, weight_decay=weight_decay)
  else:
    tx = plain(rate, b1, b2, eps)
  tx = optax.chain(optax.clip_by_global_norm(clip), tx) if clip else tx
  return skip_above(tx, skip) if skip else tx


class Skipping(NamedTuple):
  """Of `skip_above`: how many updates were skipped, int32, and what the optimizer keeps."""

  skipped: jax.Array
  inner: Any


def skip_above(tx, norm):
  """`tx`, but where the global norm of the gradients is above `norm`, or none, nothing changes.

  arXiv:2011.10650, Sec. 3; survey Sec. 2.6.4. The train step logs the share that was skipped.
  """

  def update(grads, state, params=None):
    good = optax.tree.norm(grads) <= norm
    updates, inner = tx.update(grads, state.inner, params)
    updates = jax.tree.map(lambda u: jnp.where(good, u, 0.0), updates)
    inner = jax.tree.map(lambda new, old: jnp.where(good, new, old), inner, state.inner)
    return updates, Skipping(state.skipped + ~good, inner)

  return optax.GradientTransformation(lambda p: Skipping(jnp.int32(0), tx.init(p)), update)


def skipped(opt):
  """How many updates were skipped, of an optimizer's state; None where none can be."""
  is_leaf = lambda x: isinstance(x, Skipping)
  counts = [x.skipped for x in jax.tree.leaves(opt, is_leaf=is_leaf) if is_leaf(x)]
  return sum(counts) if counts else None


def fixed(*, decay=0.9999):
  """The same decay at every step: mean <- decay mean + (1 - decay) params.

  Raises ValueError for a decay outside [0, 1).
  """
  method.check_fraction("ema.decay", decay)
  return lambda step: decay


def warmup(*, decay=0.9999, inv_gamma=1.0, power=2 / 3):
  """min(decay, 1 - (1 + step / inv_gamma)^-power): the average soon forgets its random start.

  Raises ValueError for a number out of range.
  """
  method.check_fraction("ema.decay", decay)
  method.check_positive("ema.inv_gamma", inv_gamma)
  method.check_positive("ema.power", power)
  return lambda step: jnp.minimum(decay, 1.0 - (1.0 + step / inv_gamma) ** -power)


def power_law(*, sigma_rel=0.1):
  """(1 - 1/t)^(gamma + 1) at update t: the average's width is sigma_rel of the run so far.

  arXiv:2312.02696, Sec. 3.1 and App. C. Raises ValueError for a width that no power law has.
  """
  fits = lambda s: 0.0 < s < 12**-0.5
  method.check_number("ema.sigma_rel", sigma_rel, fits, "between 0 and 12^-0.5 = 0.289")
  gamma = power_law_exponent(sigma_rel)
  return lambda step: (step / (step + 1.0)) ** (gamma + 1.0)


def power_law_exponent(sigma_rel):
  """gamma of sigma_rel^2 = (gamma + 1) / ((gamma + 2)^2 (gamma + 3)). arXiv:2312.02696, App. C."""
  a = sigma_rel**-2
  return np.roots([1.0, 7.0, 16.0 - a, 12.0 - a]).real.max()


PROFILES = {"fixed": fixed, "warmup": warmup, "power_law": power_law}


def averages(source, ema):
  """{"<source>_ema": Ema} as `Method.ema` wants it, empty where the config asks for none.

  Args:
    source: name of the network.
    ema: 0 for none, a fixed decay, or {"profile": "fixed", "warmup" or "power_law", **its numbers}.

  Raises:
    ValueError: a profile or a number of it that does not exist, or a number out of its range.
  """
  if not ema:
    return {}
  numbers = dict(ema) if hasattr(ema, "keys") else {"profile": "fixed", "decay": ema}
  profile = numbers.pop("profile", None)
  method.check("ema.profile", profile, profile in PROFILES, f"one of {', '.join(PROFILES)}")
  method.check_keywords("ema", numbers, PROFILES[profile], f"profile {profile!r}")
  return {f"{source}_ema": method.Ema(source, PROFILES[profile](**numbers))}

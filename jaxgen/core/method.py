"""The words every model is written in: Vars, Aux, Phase, Ema, Method."""

import difflib
import importlib
import inspect
import math
import numbers
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

Array = jax.Array
Batch = Mapping[str, Array]


class Vars(NamedTuple):
  """Everything networks need to run, by network name."""

  params: dict[str, Any]  # {"gen": ..., "critic": ..., "gen_ema": ...}
  extra: dict[str, Any] = {}  # other Flax collections, statistics; the same on every device


class Aux(NamedTuple):
  """What a loss returns beside its scalar."""

  metrics: Mapping[str, Array] = {}  # scalars to log: means over the rows this device has
  extra: Mapping[str, Any] = {}  # collections this loss has updated, already reduced with `axis`


# (vars, batch, keys [B], **hparams) -> (scalar, Aux)
Objective = Callable[..., tuple[Array, Aux]]


class Phase(NamedTuple):
  """One loss, the networks it trains, and how often."""

  loss: Objective
  owns: tuple[str, ...]
  tx: optax.GradientTransformation | str  # a str names the phase whose optimizer is shared
  repeats: int = 1  # updates per step, each on its own micro-batch (n_critic)
  accumulate: int = 1  # micro-batches whose gradients are averaged for one update
  every: int = 1  # run on steps divisible by this (lazy regularisation)
  hparams: Mapping[str, optax.Schedule] = {}  # keyword -> schedule, evaluated at state.step


class Ema(NamedTuple):
  """A moving average of network `source`; `decay` is a number or a function of the step."""

  source: str
  decay: float | Callable[[Array], Array]


# What a Method may offer; (vars, batch, keys [B]) -> ... where nothing else is said.
FNS = (
  "sample",  # (vars, keys [n], cond={}, **options) -> {"image": [n, ...]}
  "field",  # (vars, cond={}) -> paths.Field
  "log_prob",  # [B] in nats, or a bound on it
  "bound",  # {"reconstruction": E_q log p(x | z) [B], "kl": [B, L], of L groups}, in nats
  "posterior",  # mean and log variance of q(z | x), two of [B, D]
  "encode",  # latents
  "decode",  # (vars, latents) -> a batch
  "cache",  # (n) -> a tree of arrays, for n sequences
  "step",  # (vars, cache, token [n], position, cond) -> (logits [n, K], cache)
  "detect",  # (vars, batch) -> {"score": [B], ...}
)


class Method(NamedTuple):
  """A system: its networks, what trains them, and what they can do once trained."""

  init: Callable[[Array], Vars]  # key -> Vars; shapes come from build's keywords, never from data
  phases: Mapping[str, Phase] = {}  # empty: nothing to train
  ema: Mapping[str, Ema] = {}
  fns: Mapping[str, Callable] = {}  # of FNS
  calibrate: Callable[[Vars, Batch, Array], Vars] | None = None  # data-dependent initialisation
  serves: tuple[str, ...] = ()  # networks that `fns` need; empty: all
  given: tuple[str, ...] = ()  # what, beside a label, `sample` needs in cond: arrays as in batches
  coded: bool = False  # log_prob is of codes, so no bits for each value of an image follow


def build(model, args):
  """The Method of config `model` ("gan.wgan_gp", a file below jaxgen/models) with keywords `args`.

  Raises ValueError for a model or a keyword that does not exist, naming the nearest one.
  """
  try:
    module = importlib.import_module(f"jaxgen.models.{model}")
  except ModuleNotFoundError as e:
    if not f"jaxgen.models.{model}".startswith(e.name):
      raise  # something that the model imports
    module = None
  if not hasattr(module, "build"):
    raise ValueError(f"model={model!r} does not exist{_nearest(model, _models())}")
  check_keywords("args", args, module.build, model)
  return module.build(**args)


def check_keywords(where, given, fn, who, passed=(), needs=()):
  """Raises ValueError unless `given` are keywords that `fn` takes, and all that it needs.

  A keyword whose default is a table must be one.

  Args:
    where: what a config calls the table `given`. who: what to call `fn`.
    passed: parameters of `fn` that are not for the table to set.
    needs: keywords that must be given too, and are not of `fn`.
  """
  check(where, given, hasattr(given, "keys"), "a table of keywords")
  parameters = inspect.signature(fn).parameters.values()
  anything = any(p.kind == p.VAR_KEYWORD for p in parameters)
  own = [p for p in parameters if p.kind != p.VAR_KEYWORD and p.name not in passed]
  known = {p.name: p.default for p in own} | dict.fromkeys(needs, inspect.Parameter.empty)
  for name, value in given.items():
    if name in passed or not (name in known or anything):
      near = _nearest(name, known)
      raise ValueError(f"{where}.{name}={value!r}: {who} takes no such keyword{near}")
    if hasattr(known.get(name), "keys"):
      check(f"{where}.{name}", value, hasattr(value, "keys"), "a table of keywords")
  for name, default in known.items():
    if default is inspect.Parameter.empty and name not in given:
      raise ValueError(f"{where}.{name} is missing: {who} takes {', '.join(known)}")


def _models():
  root = importlib.import_module("jaxgen.models")
  found = pkgutil.walk_packages(root.__path__, "jaxgen.models.")
  return [m.name.removeprefix("jaxgen.models.") for m in found if not m.ispkg]


def _nearest(name, known):
  match = difflib.get_close_matches(name, known, 1, cutoff=0.0)
  return f"; did you mean {match[0]!r}?" if match else ""


def averaged(method, vars):
  """`vars` with every network that has a moving average replaced by it: what samplers use."""
  mean = {e.source: vars.params[name] for name, e in method.ema.items()}
  return vars._replace(params={**vars.params, **mean})


def inner(vars, name):
  """The Vars of a whole method kept under one name (a first stage, a teacher)."""
  return Vars(vars.params[name], vars.extra.get(name, {}))


def micro_batches(method):
  """K, the number of micro-batches that one step takes: a batch is [K, B, ...]."""
  return max((p.repeats * p.accumulate for p in method.phases.values()), default=1)


def trained(method):
  """Names of the networks that change; the rest are frozen."""
  return {net for p in method.phases.values() for net in p.owns} | set(method.ema)


def check(name, value, ok, allowed):
  """Raises ValueError that says what is allowed, unless `ok`."""
  if not ok:
    raise ValueError(f"{name}={value!r}: expected {allowed}")


def check_number(name, value, ok, allowed):
  """Raises ValueError unless `value` is a number for which ok(value)."""
  real = isinstance(value, numbers.Real) and not isinstance(value, bool)
  check(name, value, real and ok(value), allowed)


def check_count(name, value, least=1, most=math.inf):
  """Raises ValueError unless `value` is a whole number from `least` to `most`."""
  allowed = f"{least} or more" if most == math.inf else f"{least} to {most}"
  check(name, value, _is_whole(value) and least <= value <= most, f"a whole number, {allowed}")


def check_counts(name, values):
  """Raises ValueError unless `values` is a tuple or list of whole numbers, 1 or more."""
  good = isinstance(values, (tuple, list)) and all(_is_whole(v) and v >= 1 for v in values)
  check(name, values, good, "a tuple or list of whole numbers, 1 or more")


def _is_whole(value):
  return isinstance(value, int) and not isinstance(value, bool)


def check_weight(name, value):
  """Raises ValueError unless `value` can weigh a term of a loss."""
  check_number(name, value, lambda v: 0.0 <= v < math.inf, "a finite number, 0 or more")


def check_positive(name, value):
  """Raises ValueError unless `value` is a finite number above 0."""
  check_number(name, value, lambda v: 0.0 < v < math.inf, "a finite number above 0")


def check_fraction(name, value):
  """Raises ValueError unless `value` is a number in [0, 1)."""
  check_number(name, value, lambda v: 0.0 <= v < 1.0, "at least 0 and less than 1")


def check_unit(name, value):
  """Raises ValueError unless `value`, where it is known, is a number from 0 to 1."""
  known = concrete(value)
  if known is not None:
    check_number(name, known.item(), lambda v: 0.0 <= v <= 1.0, "at least 0 and at most 1")


def check_dtype(name, value):
  """Raises ValueError unless networks can compute in `value`."""
  check(name, value, value in ("float32", "bfloat16", "float16"), "float32, bfloat16 or float16")


def check_image_shape(image_shape):
  """(H, W, C) as a tuple. Raises ValueError unless it is three whole numbers, 1 or more."""
  check_counts("image_shape", image_shape)
  check("image_shape", image_shape, len(image_shape) == 3, "three whole numbers, (H, W, C)")
  return tuple(image_shape)


def check_conditioning(n_classes, label_dropout, guidance_weight):
  """Raises ValueError for the numbers of a class-conditional model where they are out of range."""
  check_count("n_classes", n_classes, 0)
  check_unit("label_dropout", label_dropout)
  check_number("guidance_weight", guidance_weight, math.isfinite, "a finite number")
  _check_guided("guidance_weight", guidance_weight, n_classes)


def concrete(x):
  """`x` as a numpy array, or None where its values are not known here: while JAX traces."""
  known = not isinstance(x, jax.core.Tracer) and getattr(x, "is_fully_addressable", True)
  return np.asarray(x) if known else None


def check_scale(name, values):
  """Raises ValueError for NaN, and for floats that look like pixels of 0 ... 255."""
  # Data lie in [-1, 1]; latents, and noise that somebody tries, do not, and stay far below 255.
  if values.size and not (abs(values) <= 100.0).all():
    low, high = values.min(), values.max()
    raise ValueError(f"{name} goes from {low} to {high}: expected float in [-1, 1]")


def check_batch(batch, image_shape, n_classes):
  """Raises ValueError where `image` or `label` is not what the model was built for.

  Values are checked where they are known, which they are not in a compiled step.
  """
  if "image" not in batch:
    raise ValueError(f"batch has {', '.join(sorted(batch))}: expected image")
  image = batch["image"]
  shape = tuple(image.shape[1:])
  if shape != image_shape:
    raise ValueError(f"batch has images of shape {shape}: expected image_shape={image_shape}")
  if not jnp.issubdtype(image.dtype, jnp.floating):
    raise ValueError(f"batch has images of {image.dtype}: expected float in [-1, 1]")
  values = concrete(image)
  if values is not None:
    check_scale("image", values)
  if n_classes and "label" not in batch:
    raise ValueError(f"n_classes={n_classes}: expected data with labels, these have none")
  if n_classes:
    _check_label(batch["label"], n_classes)


def check_given(arrays, shapes):
  """Raises ValueError unless a batch or cond has float arrays [B, ...] of these names and shapes.

  shapes: name -> shape of an example.
  """
  for name, shape in shapes.items():
    x = arrays.get(name)
    allowed = f"a float array [B, {', '.join(map(str, shape))}]"
    check(name, x if x is None else x.shape, x is not None and x.shape[1:] == shape, allowed)
    check(name, str(x.dtype), jnp.issubdtype(x.dtype, jnp.floating), allowed)


def without(cond, names):
  """`cond` but for what these names stand for."""
  return {name: value for name, value in cond.items() if name not in names}


def check_cond(cond, n_classes, w=0.0):
  """Raises ValueError for a `cond` that is neither {} nor, with classes, {"label": int [n]}.

  w: the weight of guidance, a finite number, 0 without classes.
  """
  check_number("w", w, math.isfinite, "a finite number")
  _check_guided("w", w, n_classes)
  if set(cond) - ({"label"} if n_classes else set()):
    allowed = "label, or nothing" if n_classes else "nothing"
    raise ValueError(f"cond has {', '.join(cond)}: expected {allowed}, as n_classes={n_classes}")
  if cond:
    _check_label(cond["label"], n_classes)


def _check_guided(name, w, n_classes):
  check(name, w, n_classes > 0 or w == 0, "0: without classes there is nothing to guide to")


def _check_label(label, n_classes):
  good = getattr(label, "ndim", 0) == 1 and jnp.issubdtype(label.dtype, jnp.integer)
  check("label", label, good, "an int32 array [B]")
  values = concrete(label)
  bad = [] if values is None else values[(values < 0) | (values >= n_classes)]
  if len(bad):
    raise ValueError(f"label={bad[0]}: expected 0 to {n_classes - 1}, as n_classes={n_classes}")

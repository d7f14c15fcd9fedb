"""The words every model is written in: Vars, Aux, Phase, Ema, Method."""

import difflib
import importlib
import inspect
import math
import pkgutil
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
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


class Method(NamedTuple):
  """A system: its networks, what trains them, and what they can do once trained."""

  init: Callable[[Array], Vars]  # key -> Vars; shapes come from build's keywords, never from data
  phases: Mapping[str, Phase] = {}  # empty: nothing to train
  ema: Mapping[str, Ema] = {}
  fns: Mapping[str, Callable] = {}  # sample, field, log_prob, encode, decode, cache, step, detect
  calibrate: Callable[[Vars, Batch, Array], Vars] | None = None  # data-dependent initialisation
  serves: tuple[str, ...] = ()  # networks that `fns` need; empty: all


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
  known = inspect.signature(module.build).parameters
  for name in args:
    if name not in known:
      raise ValueError(f"args.{name}: {model} takes no such keyword{_nearest(name, known)}")
  return module.build(**args)


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


def check_count(name, value, least=1):
  """Raises ValueError unless `value` is a whole number, `least` or more."""
  whole = isinstance(value, int) and not isinstance(value, bool)
  check(name, value, whole and value >= least, f"a whole number, {least} or more")


def check_weight(name, value):
  """Raises ValueError unless `value` can weigh a term of a loss."""
  check(name, value, 0.0 <= value < math.inf, "a finite number, 0 or more")


def check_dtype(name, value):
  """Raises ValueError unless networks can compute in `value`."""
  check(name, value, value in ("float32", "bfloat16", "float16"), "float32, bfloat16 or float16")


def check_conditioning(n_classes, label_dropout, guidance_weight):
  """Raises ValueError for the numbers of a class-conditional model where they are out of range."""
  check_count("n_classes", n_classes, 0)
  check("label_dropout", label_dropout, 0.0 <= label_dropout <= 1.0, "at least 0 and at most 1")
  finite = -math.inf < guidance_weight < math.inf
  check("guidance_weight", guidance_weight, finite, "a finite number")


def check_batch(batch, image_shape, n_classes):
  """Raises ValueError where `image` or `label` is not what the model was built for."""
  if "image" not in batch:
    raise ValueError(f"batch has {', '.join(sorted(batch))}: expected image")
  shape = tuple(batch["image"].shape[1:])
  if shape != image_shape:
    raise ValueError(f"batch has images of shape {shape}: expected image_shape={image_shape}")
  if n_classes and "label" not in batch:
    raise ValueError(f"n_classes={n_classes}: expected data with labels, these have none")

"""The one train loop: data, steps, metrics, pictures, evaluation, checkpoints."""

import faulthandler
import functools
import math
import signal
import sys
import threading
import time
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import checkpoint, inference, parallel, report, step
from jaxgen.core import config as config_lib
from jaxgen.core import method as method_lib
from jaxgen.data import pipeline, sources

GRID_COLUMNS = 8
_EVAL_ROWS = 100
_SHOWN = ("loss", "per_s", "wait_for_data")


def run(config, workdir, *, method=None, train_step=step.train_step, allow_fallback=False):
  """Trains `config` to its last step, from the newest checkpoint in `workdir` if there is one.

  A process that waits for its input for longer than config.data.timeout ends with status 1.

  Args:
    config: a ConfigDict as `jaxgen.core.config.FIELDS` describes.
    workdir: folder or bucket for config.json, metrics.jsonl, samples/ and checkpoints/.
    method: in place of the one that config.model builds.
    train_step: in place of `step.train_step`.
    allow_fallback: delete damaged checkpoints that are newer than the newest good one.

  Returns:
    The TrainState. On SIGTERM it returns early, with that state saved.

  Raises:
    ValueError: a config, data or workdir that does not fit, or that differs between hosts, or a
      damaged checkpoint, before anything is compiled.
    FloatingPointError: a loss or the state is not finite; such a state is never saved.
    Whatever a save has raised: the last checkpoint is then not on disk.
  """
  told = {"workdir": str(workdir), "allow_fallback": allow_fallback}
  config_lib.check_hosts({**config.to_dict(), **told})
  config_lib.check(config)
  method = method or method_lib.build(config.model, config.args)
  parallel.check_rows(config.data.batch_size)
  workdir = checkpoint.open_workdir(workdir)
  train, mode = config.train, config.train.parallel
  feed = evaluate = show = None
  if train.steps or method.calibrate:
    feed = _feed(config, method)
  if train.steps:
    evaluate, show = _evaluation(config, method), _pictures(config, method)
  workdir.mkdir(parents=True, exist_ok=True)
  checkpoint.clean(workdir)

  k_init, k_calibrate, k_step, k_sample, k_eval = root_keys(train.seed)
  note = config_lib.identity(config)
  with checkpoint.open_manager(workdir, note) as manager:
    config_lib.check_shared(workdir, manager.latest_step())
    if manager.all_steps():
      config_lib.check_resumed(config, workdir)
    first = checkpoint.newest(manager, note, allow_fallback=allow_fallback) or 0
    for damaged in (s for s in manager.all_steps() if s > first):
      manager.delete(damaged)
    config_lib.snapshot(config, workdir)
    init = parallel.compile_init(method, mode)
    resume = lambda: _resume(method, init(k_init), mode, manager, first, workdir)
    if manager.all_steps() and first >= train.steps:
      report.say(f"{workdir} is at step {first} of {train.steps}: nothing to train")
      return resume()
    given = {} if first else checkpoint.read_sources(config.init_from)
    if not train.steps:
      state = _prepare(config, method, init(k_init), given, feed, k_calibrate, workdir)
      _save(method, parallel.to_global(state, mode), manager)
      report.launched(workdir, 0)
      report.say(f"{workdir} has what it would start from: train.steps is 0")
      return state
    batches = feed(first, train.steps)
    batch = next(batches)
    step_fn = parallel.compile_step(method, mode, train_step)
    # Traced before anything compiles: a batch that does not fit the model is refused here. On
    # several hosts pmap wants arrays for that.
    like = jax.eval_shape(init, k_init)
    if mode == "pmap":
      like = init(jax.random.clone(k_init))
    checkpoint.started_from(method, like, given)
    bare = not first and "first_stage" in like.params.keys() - given.keys()
    method_lib.check("init_from", dict(config.init_from), not bare, "a run for first_stage too")
    lowered = step_fn.lower(like, batch, k_step)
    if show:
      trace_sample(config, method, like.vars)
    del like  # arrays under pmap
    if first:
      state = resume()
    else:
      state = _prepare(config, method, init(k_init), given, feed, k_calibrate, workdir)
    del given
    started = time.perf_counter()
    compiled = lowered.compile()
    report.overview(method, state, compiled, time.perf_counter() - started)
    if mode != "pmap":  # which takes arrays of one host, a program compiled ahead those of all
      step_fn = compiled
    writers = report.open_writers(workdir, first)
    report.launched(workdir, first)
    interval = _Interval(config.data.batch_size * method_lib.micro_batches(method))
    with _Sigterm(manager) as sigterm, report.progress(first, train.steps) as bar:
      for i in range(first + 1, train.steps + 1):
        state, metrics = step_fn(state, batch, k_step)
        interval.add(metrics)
        last, cut = i == train.steps, sigterm.seen(i)
        due = lambda every, i=i, last=last: bool(every) and (last or i % every == 0)
        if not (last or cut):
          batch = interval.wait_for(batches)
        bar.update()
        if cut or due(train.log_every) or due(train.checkpoint_every):
          means = interval.close(i)
          report.write(writers, i, means)
          bar.set_postfix({k: f"{v:.4g}" for k, v in means.items() if k.endswith(_SHOWN)})
        if cut or due(train.checkpoint_every):
          _save(method, parallel.to_global(state, mode), manager)
        if cut and not last:
          report.say(f"SIGTERM: stopped after step {i}, which is saved")
          break
        if evaluate and due(train.eval_every):
          numbers = evaluate(parallel.to_global(state, mode).vars, k_eval)
          report.write(writers, i, {f"eval/{k}": v for k, v in numbers.items()})
          interval.restart()
        if show and due(train.sample_every):
          images = show(parallel.to_global(state, mode).vars, k_sample)
          report.write_grid(writers, i, images, GRID_COLUMNS)
          interval.restart()
  return state


class Keys(NamedTuple):
  """One for each thing that a run draws."""

  init: jax.Array
  calibrate: jax.Array
  step: jax.Array
  sample: jax.Array
  evaluate: jax.Array


def root_keys(seed):
  """The Keys of a run with config.train.seed=seed, which launchers share: none overlaps another."""
  return Keys(*jax.random.split(jax.random.key(seed), len(Keys._fields)))


def _feed(config, method):
  """(first, end) -> this host's batches of the steps after `first`, on its devices."""
  data, n_classes = config.data, config.args.get("n_classes", 0)
  source = sources.open_source(data.source, "train", image_size=data.image_size or None)
  put = functools.partial(parallel.shard_batch, mode=config.train.parallel)

  def feed(first, end):
    batches = pipeline.batches(
      source,
      rows=data.batch_size,
      micro_batches=method_lib.micro_batches(method),
      seed=config.train.seed,
      start=first,
      steps=end,
      flip=data.flip,
      n_classes=n_classes or None,
      workers=data.workers,
    )
    return _watched(pipeline.prefetch(batches, put), data.timeout)

  return feed


def _watched(batches, seconds):
  """The same batches; the process ends, with the stacks of its threads, where one takes longer."""
  # Not JAX but the input may be stuck, with all hosts waiting for this one: no exception comes.
  while True:
    faulthandler.dump_traceback_later(seconds, exit=True, file=sys.__stderr__)
    try:
      batch = next(batches, None)
    finally:
      faulthandler.cancel_dump_traceback_later()
    if batch is None:
      return
    yield batch


def _evaluation(config, method):
  """(vars, key) -> name -> number, on the first test examples; None where nothing is offered."""
  if not config.train.eval_every or "log_prob" not in method.fns:
    return None
  data = config.data
  try:
    source = sources.open_source(data.source, "test", image_size=data.image_size or None)
  except (ValueError, FileNotFoundError) as e:
    raise type(e)(f"{e}; config.train.eval_every=0 does without") from e
  evaluate, limit = inference.evaluator(method, _EVAL_ROWS), config.train.eval_examples
  n_classes = config.args.get("n_classes", 0)
  return lambda vars, key: evaluate(vars, source, key, limit=limit, n_classes=n_classes)


def _pictures(config, method):
  """(vars, key) -> samples [n, H, W, C]: always of the same noise, one class a row; or None."""
  if not config.train.sample_every or "sample" not in method.fns:
    return None
  n, cond = grid_cond(config, method)
  draw = inference.sampler(method, n)
  return lambda vars, key: draw(vars, key, n, cond)["image"]


def trace_sample(config, method, vars, **options):
  """Raises now what a bad sampler would raise when it draws. options: keywords of `sample`."""
  cond = {k: v[:1] for k, v in grid_cond(config, method)[1].items()}
  mean = lambda vars: method_lib.averaged(method, vars)
  sample = lambda vars, keys: method.fns["sample"](mean(vars), keys, cond, **options)
  jax.eval_shape(sample, vars, jax.random.split(jax.random.key(0), 1))


def grid_cond(config, method, n=None):
  """(n, cond of n samples): by default those of a grid, which has one class a row, ten at most."""
  n_classes = config.args.get("n_classes", 0)
  rows = min(n_classes, 10) or GRID_COLUMNS
  conditions = inference.conditions(config, method, n or rows * GRID_COLUMNS)
  cond = conditions.cond(pipeline.load(conditions, np.arange(len(conditions))))
  if n_classes:
    cond["label"] = np.resize(np.arange(rows, dtype=np.int32).repeat(GRID_COLUMNS), len(conditions))
  return len(conditions), cond


def _prepare(config, method, state, given, feed, key, workdir):
  """What happens once, before the first step: networks of other runs, then calibration."""
  mode = config.train.parallel
  if given:
    vars = parallel.place(checkpoint.started_from(method, state, given).vars, state.vars)
    state = state.replace(params=vars.params, extra=vars.extra)
  _, frozen = checkpoint.split(method, parallel.to_global(state, mode))
  checkpoint.save_frozen(workdir, frozen, config.init_from)
  if method.calibrate:
    state = parallel.compile_calibrate(method, mode)(state, next(feed(0, 1)), key)
  return state


def _resume(method, state, mode, manager, at, workdir):
  kept, frozen = checkpoint.split(method, parallel.to_global(state, mode))
  kept = checkpoint.restore(manager, at, kept)
  frozen = checkpoint.restore_frozen(workdir, frozen)
  return parallel.from_global(kept.replace(params={**kept.params, **frozen}), mode)


def _save(method, state, manager):
  kept, _ = checkpoint.split(method, state)
  if not parallel.all_finite((kept.params, kept.extra, kept.opt)):
    raise FloatingPointError(f"the state after step {int(kept.step)} is not finite: not saved")
  checkpoint.save(manager, kept)


_add = jax.jit(functools.partial(jax.tree.map, jnp.add))


class _Interval:
  """Metrics and times since the last report; nothing leaves the devices before `close`."""

  def __init__(self, images):
    self._images = images  # that one step takes
    self._sums, self._steps = None, 0
    self.restart()

  def restart(self):
    """Time that passed until now is not counted: pictures, evaluation."""
    self._since, self._waited = time.perf_counter(), 0.0

  def add(self, metrics):
    self._sums = metrics if self._sums is None else _add(self._sums, metrics)
    self._steps += 1

  def wait_for(self, batches):
    since = time.perf_counter()
    batch = next(batches)
    self._waited += time.perf_counter() - since
    return batch

  def close(self, step):
    """Means of the metrics, steps/s, images/s, and the share of time spent waiting for data."""
    means = {k: float(s / n) for k, (s, n) in jax.device_get(self._sums).items() if n}
    bad = [k for k, v in means.items() if not math.isfinite(v)]
    if bad:
      raise FloatingPointError(f"by step {step} these are not finite: {', '.join(bad)}")
    seconds = time.perf_counter() - self._since
    means["steps_per_s"] = self._steps / seconds
    means["images_per_s"] = self._steps * self._images / seconds
    means["wait_for_data"] = self._waited / seconds
    self._sums, self._steps = None, 0
    self.restart()
    return means


class _Sigterm:
  """Whether the run was asked to stop; on several hosts all see it at the same step."""

  def __init__(self, manager):
    self._manager, self._seen = manager, False

  def __enter__(self):
    self._own = jax.process_count() == 1 and threading.current_thread() is threading.main_thread()
    if self._own:
      self._before = signal.signal(signal.SIGTERM, lambda *_: setattr(self, "_seen", True))
    return self

  def __exit__(self, *_):
    if self._own:
      signal.signal(signal.SIGTERM, self._before)

  def seen(self, step):
    return self._seen or (not self._own and self._manager.reached_preemption(step))

"""TrainState and the one train step that every method shares."""

import jax
import jax.numpy as jnp
import optax
from flax import struct

from jaxgen import noise
from jaxgen.core import axis, optim
from jaxgen.core.method import Method, Vars, check_count


@struct.dataclass
class TrainState:
  """All that training needs to go on: random keys come from the seed, the step and the row."""

  step: jax.Array  # int32, steps taken
  params: dict
  extra: dict
  opt: dict

  @property
  def vars(self):
    """What networks need to run."""
    return Vars(self.params, self.extra)


def init_state(method: Method, key) -> TrainState:
  """A fresh state; the averages start from their sources.

  Raises ValueError for a phase whose repeats, accumulate or every is below 1.
  """
  for name, p in method.phases.items():
    for field in ("repeats", "accumulate", "every"):
      check_count(f"{name}.{field}", getattr(p, field))
  params, extra = method.init(key)
  params = _start_averages(method, params)
  opt = {
    name: p.tx.init({k: params[k] for k in p.owns})
    for name, p in method.phases.items()
    if not isinstance(p.tx, str)
  }
  return TrainState(jnp.int32(0), params, extra, opt)


def calibrate(method: Method, state: TrainState, batch, key) -> TrainState:
  """Data-dependent initialisation on the first micro-batch of `batch` [K, B, ...]."""
  batch = jax.tree.map(lambda x: x[0], batch)
  params, extra = method.calibrate(state.vars, batch, _keys(key, batch))
  return state.replace(params=_start_averages(method, params), extra=extra)


def _start_averages(method, params):
  copies = {name: jax.tree.map(jnp.copy, params[e.source]) for name, e in method.ema.items()}
  return {**params, **copies}


def _keys(key, batch):
  n = len(jax.tree.leaves(batch)[0])
  return noise.rows(key, n, axis.first_row(n))


def _gradient(phase, state, batch, key):
  """Averages over devices of (gradients, metrics), and the extra that the loss has updated."""
  hparams = {k: jnp.asarray(schedule(state.step)) for k, schedule in phase.hparams.items()}

  def loss_fn(owned):
    vars = Vars({**state.params, **owned}, state.extra)
    return phase.loss(vars, batch, _keys(key, batch), **hparams)

  owned = {k: state.params[k] for k in phase.owns}
  (loss, aux), grads = jax.value_and_grad(loss_fn, has_aux=True)(owned)
  grads, metrics = axis.mean((grads, {"loss": loss, **aux.metrics}))
  _check_extra(aux.extra, state.extra)
  return grads, {**metrics, **hparams}, {**state.extra, **aux.extra}


def _check_extra(new, old):
  spec = lambda tree: jax.tree.map(lambda x: (jnp.shape(x), jnp.result_type(x)), tree)
  for name, value in new.items():
    if name not in old or spec(value) != spec(old[name]):
      expected = spec(old.get(name))
      raise ValueError(f"Aux.extra[{name!r}] is {spec(value)}: expected init's {expected}")


def _update(method, name, state, batch, key):
  """One optimizer update of phase `name`. batch: [accumulate, B, ...]."""
  phase = method.phases[name]
  shared = phase.tx if isinstance(phase.tx, str) else name

  def micro(state, xs):
    grads, metrics, extra = _gradient(phase, state, *xs)
    return state.replace(extra=extra), (grads, metrics)

  state, outputs = _scan(micro, state, (batch, jax.random.split(key, phase.accumulate)))
  grads, metrics = jax.tree.map(lambda x: x.mean(0), outputs)
  owned = {k: state.params[k] for k in phase.owns}
  old = state.opt[shared]
  updates, opt = method.phases[shared].tx.update(grads, old, owned)
  params = {**state.params, **optax.apply_updates(owned, updates)}
  state = state.replace(params=params, opt={**state.opt, shared: opt})
  metrics = {**metrics, "grad_norm": optax.tree.norm(grads)}
  counted = optim.skipped(opt)
  if counted is not None:
    metrics["skipped"] = jnp.float32(counted - optim.skipped(old))
  return state, metrics


def _scan(f, carry, xs):
  """lax.scan, or one call where there is one step: no loop in the compiled program."""
  if len(jax.tree.leaves(xs)[0]) > 1:
    # On CPUs, XLA runs the gradients of convolutions ten times slower inside a loop.
    return jax.lax.scan(f, carry, xs, unroll=jax.default_backend() == "cpu")
  carry, y = f(carry, jax.tree.map(lambda x: x[0], xs))
  return carry, jax.tree.map(lambda y: y[None], y)


def train_step(method: Method, state: TrainState, batch, key):
  """Runs every phase once, then updates the averages.

  Args:
    method, state: what to train. `state.step` and `key` say which noise is drawn.
    batch: arrays [K, B, ...]; a phase takes the first repeats * accumulate micro-batches.
    key: one key for the whole run.

  Returns:
    (state, metrics): name -> (sum, count), so that means over an interval are true means, and a
    phase that did not run reports nothing.

  Raises:
    ValueError: a loss returns extra of other names, shapes or dtypes than `init`.
  """
  key, metrics = jax.random.fold_in(key, state.step), {}
  for i, (name, phase) in enumerate(method.phases.items()):

    def run(state, phase=phase, name=name, i=i):
      def split(x):
        used = x[: phase.repeats * phase.accumulate]
        return used.reshape(phase.repeats, phase.accumulate, *x.shape[1:])

      keys = jax.random.split(jax.random.fold_in(key, i), phase.repeats)
      xs = (jax.tree.map(split, batch), keys)
      state, m = _scan(lambda s, xs: _update(method, name, s, *xs), state, xs)
      return state, {f"{name}/{k}": (v.sum(0), jnp.float32(phase.repeats)) for k, v in m.items()}

    if phase.every > 1:
      shapes = jax.eval_shape(run, state)[1]
      nothing = jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), shapes)
      skip = lambda state, nothing=nothing: (state, nothing)
      state, m = jax.lax.cond(state.step % phase.every == 0, run, skip, state)
    else:
      state, m = run(state)
    metrics |= m
  params = dict(state.params)
  for name, ema in method.ema.items():
    decay = ema.decay(state.step) if callable(ema.decay) else ema.decay
    params[name] = optax.incremental_update(params[ema.source], params[name], 1.0 - decay)
  return state.replace(step=state.step + 1, params=params), metrics

"""Samplers: one `lax.scan` each, from noise to data, on anything that is a `paths.Field`."""

import inspect
import math
from typing import NamedTuple

import jax
import jax.numpy as jnp

from jaxgen import noise, paths
from jaxgen.core import method
from jaxgen.samplers import (
  ancestral,
  ddim,
  dpm_solver,
  edm,
  grids,
  langevin,
  lms,
  ode,
  pndm,
  predictor_corrector,
  sde,
  straight,
  unipc,
)


def _on_velocity(solve):
  def solver(field, x, keys, ts, **options):
    return solve(field.velocity, x, ts, **options)

  solver.__wrapped__ = solve  # whose options a config may give
  return solver


def _spaced(path, n):
  paths.check_steps(path, n)
  return grids.spaced(path, (n,))


_SAMPLERS = {
  "adaptive": _on_velocity(ode.adaptive),
  "ancestral": ancestral.ancestral,
  "ddim": ddim.ddim,
  "dpm_solver": dpm_solver.singlestep,
  "dpm_solver_multistep": dpm_solver.multistep,
  "dpm_solver_pp": dpm_solver.multistep_pp,
  "dpm_solver_pp_ancestral": dpm_solver.ancestral_pp,
  "dpm_solver_pp_singlestep": dpm_solver.singlestep_pp,
  "edm": edm.heun,
  "euler": _on_velocity(ode.euler),
  "euler_maruyama": sde.euler_maruyama,
  "flow_sde": sde.flow_sde,
  "flow_sde_heun": sde.flow_sde_heun,
  "heun": _on_velocity(ode.heun),
  "langevin": langevin.annealed,
  "lms": lms.lms,
  "midpoint": _on_velocity(ode.midpoint),
  "pndm": pndm.pndm,
  "predictor_corrector": predictor_corrector.predictor_corrector,
  "reverse_diffusion": sde.reverse_diffusion,
  "rk4": _on_velocity(ode.rk4),
  "rk4_38": _on_velocity(ode.rk4_38),
  "straight": straight.straight,
  "unipc": unipc.unipc,
}
_GRIDS = {
  "exponential": grids.exponential,
  "karras": grids.karras,
  "log_snr": grids.log_snr,
  "quadratic": grids.quadratic,
  "shifted": grids.shifted,
  "spaced": _spaced,
  "strided": grids.strided,
  "uniform": grids.uniform,
}
NAMES = tuple(_SAMPLERS)
SOLVERS = tuple(name for name, fn in _SAMPLERS.items() if hasattr(fn, "__wrapped__"))  # of an ODE
# Parameters that are not for a config: arrays, and functions of a notebook.
_GIVEN = ("field", "velocity_fn", "x", "keys", "ts", "z", "guide")
_GIVEN += ("B", "sizes", "predictor", "step_size")
_NEEDS = ("name", "steps")


class _Ends(NamedTuple):
  """alpha, alpha', sigma, sigma' of a path at the first and the last time, four numbers each."""

  first: list[float]
  last: list[float]


# What a sampler divides by, or evaluates, at the ends: sampler -> (does it fit, what would).
_bounded = (
  lambda ends: all(map(math.isfinite, ends.last)) and (ends.last[2] > 0.0 or ends.last[1] != 0.0),
  "a velocity that is known at the last time",
)
_drifting = (lambda ends: ends.first[0] > 0.0, "alpha above 0 at the first time")
_visible = (lambda ends: ends.first[2] < 1e3 * ends.first[0], "sigma below 1000 alpha at first")
_unscaled = (
  lambda ends: ends.first[0] == ends.last[0] == 1.0 and ends.last[2] > 0.0,
  "alpha = 1, and sigma above 0 at the last time",
)
_FITS = {
  **dict.fromkeys(("adaptive", "heun", "rk4", "rk4_38"), _bounded),
  **dict.fromkeys(("euler_maruyama", "predictor_corrector", "reverse_diffusion"), _drifting),
  "langevin": _unscaled,
  "pndm": _visible,
}


def draw(field, keys, shape, sampler={}, *, start=None, guide=None, **options):
  """Samples [B, *shape] of `field`, from its noise end to its data end.

  keys: [B]. sampler, options: scalars, of `check`; options change those of `sampler`, or with a
  `name` replace it. start: [B, *shape], where to start in place of noise. guide: of `ancestral`,
  which alone takes one; x_t [B, *shape] and t [B] to a gradient. Raises ValueError for options that
  it refuses.
  """
  options = options if "name" in options else {**sampler, **options}
  path, (ts, own) = field.path, _plan(field.path, options)
  own |= {"guide": guide} if guide else {}
  k_x, k_z = noise.split(keys)
  x = initial(path, k_x, shape, ts[0]) if start is None else start
  return by_name(options["name"])(field, x, k_z, ts, **own)


def initial(path, keys, shape, t=None):
  """Where samplers start: normal noise [B, *shape] of the path's width at t, a scalar.

  keys: [B]. t: None for the noise end.
  """
  end = jnp.float32(path.t_noise)
  std = path.prior_std * path.sigma(end if t is None else t) / path.sigma(end)
  return std * noise.normal(keys, shape)


def check(path, options):
  """Raises ValueError unless `options` describe a sampler that can integrate `path`.

  options: scalars by name: `name`, `steps` and what is the sampler's own, such as eta; and `grid`,
  the times, "uniform" by default, or {"name": ..., and its numbers}.
  """
  ts, own = _plan(path, options)
  field = paths.Field(path, lambda x, t: paths.Prediction(x, x))
  solve = lambda x, keys: by_name(options["name"])(field, x, keys, ts, **own)
  keys = jax.eval_shape(lambda: jax.random.split(jax.random.key(0), 1))
  jax.eval_shape(solve, jax.ShapeDtypeStruct((1, 1), jnp.float32), keys)  # its own refusals


def _plan(path, options):
  """The times of a sampler, and its own options."""
  own = dict(options)
  name, grid = own.get("name"), own.pop("grid", "uniform")
  method.check_keywords("sampler", own, by_name(name), name, _GIVEN, _NEEDS)
  own, steps = {k: v for k, v in own.items() if k not in _NEEDS}, own["steps"]
  defaults = {p.name: p.default for p in inspect.signature(by_name(name)).parameters.values()}
  for option, value in own.items():
    if isinstance(defaults.get(option), str):  # a name, which the sampler checks
      method.check(f"sampler.{option}", value, isinstance(value, str), "a name")
    else:
      method.check_weight(f"sampler.{option}", value)
  with jax.ensure_compile_time_eval():  # known also while JAX traces
    ts = _times(path, steps, grid)
    if name in _FITS:
      ends = _Ends(*([float(c) for c in paths.coefficients(path, ts[i])] for i in (0, -1)))
      fits, allowed = _FITS[name]
      method.check("sampler", name, fits(ends), f"another on {type(path).__name__}, or {allowed}")
  return ts, own


def _times(path, steps, grid):
  given = dict(grid) if hasattr(grid, "keys") else {"name": grid}
  name = given.pop("name", None)
  known = isinstance(name, str) and name in _GRIDS
  method.check("sampler.grid", name, known, f"one of {', '.join(_GRIDS)}")
  method.check_keywords("sampler.grid", given, _GRIDS[name], name, ("path", "n"))
  return _GRIDS[name](path, steps, **given)


def by_name(name):
  """The sampler that a config names, as (field, x, keys [B], ts, **options) -> x.

  Raises ValueError for a name that does not exist.
  """
  known = isinstance(name, str) and name in _SAMPLERS
  method.check("sampler", name, known, f"one of {', '.join(_SAMPLERS)}")
  return _SAMPLERS[name]

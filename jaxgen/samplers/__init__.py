"""Samplers: one `lax.scan` each, from noise to data, on anything that is a `paths.Field`."""

from jaxgen import noise, paths
from jaxgen.core import method
from jaxgen.samplers import (
  ancestral,
  consistency,
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
  unipc,
)


def _on_velocity(solve):
  def solver(field, x, keys, ts, **options):
    return solve(field.velocity, x, ts, **options)

  solver.__wrapped__ = solve  # whose options a config may give
  return solver


_SAMPLERS = {
  "adaptive": _on_velocity(ode.adaptive),
  "ancestral": ancestral.ancestral,
  "consistency": consistency.consistency,
  "ddim": ddim.ddim,
  "dpm_solver": dpm_solver.singlestep,
  "dpm_solver_multistep": dpm_solver.multistep,
  "dpm_solver_pp": dpm_solver.multistep_pp,
  "dpm_solver_pp_ancestral": dpm_solver.ancestral_pp,
  "dpm_solver_pp_singlestep": dpm_solver.singlestep_pp,
  "edm": edm.heun,
  "euler": _on_velocity(ode.euler),
  "euler_maruyama": sde.euler_maruyama,
  "heun": _on_velocity(ode.heun),
  "langevin": langevin.annealed,
  "lms": lms.lms,
  "pndm": pndm.pndm,
  "predictor_corrector": predictor_corrector.predictor_corrector,
  "reverse_diffusion": sde.reverse_diffusion,
  "rk4": _on_velocity(ode.rk4),
  "unipc": unipc.unipc,
}
_GRIDS = {
  "exponential": grids.exponential,
  "karras": grids.karras,
  "log_snr": grids.log_snr,
  "quadratic": grids.quadratic,
  "strided": grids.strided,
  "uniform": grids.uniform,
}
NAMES = tuple(_SAMPLERS)
# Parameters that are not for a config: arrays, and functions of a notebook.
_GIVEN = ("field", "velocity_fn", "x", "keys", "ts", "z", "guide", "B", "predictor", "step_size")
_NEEDS = ("name", "steps")

# Velocities that are infinite at the data, reverse drifts that are infinite at the noise, and noise
# that is added to the data as it is: sampler -> (does it fit this path, what would).
_bounded = (lambda path: not isinstance(path, paths.Discrete), "whose velocity is finite at data")
_drifting = (lambda path: not isinstance(path, paths.Linear), "with alpha above 0 at the noise")
_unscaled = (lambda path: isinstance(path, (paths.EDM, paths.VE)), "with alpha = 1: EDM or VE")
_FITS = {
  **dict.fromkeys(("adaptive", "heun", "rk4"), _bounded),
  **dict.fromkeys(("euler_maruyama", "predictor_corrector", "reverse_diffusion"), _drifting),
  **dict.fromkeys(("consistency", "langevin"), _unscaled),
}


def draw(field, keys, shape, **options):
  """Samples [B, *shape] of `field`, from its noise end to its data end.

  keys: [B]. options: of `check`. Raises ValueError for options that it refuses.
  """
  ts = check(field.path, options)
  own = {k: v for k, v in options.items() if k not in (*_NEEDS, "grid")}
  k_x, k_z = noise.split(keys)
  x = field.path.prior_std * noise.normal(k_x, shape)
  return by_name(options["name"])(field, x, k_z, ts, **own)


def check(path, options):
  """The times [steps + 1] of a sampler that `options` describe, on `path`.

  options: scalars by name: `name`, `steps` and what is the sampler's own, such as eta; and `grid`,
  the times, "uniform" by default, or {"name": ..., and its numbers}. Raises ValueError where they
  do not exist, do not fit each other, or the sampler cannot integrate the path.
  """
  own = dict(options)
  name, grid = own.get("name"), own.pop("grid", "uniform")
  method.check_keywords("sampler", own, by_name(name), name, _GIVEN, _NEEDS)
  for option, value in own.items():
    if option not in _NEEDS:
      method.check_weight(f"sampler.{option}", value)
  fits, allowed = _FITS.get(name, (lambda path: True, ""))
  kind = type(path).__name__
  method.check("sampler", name, fits(path), f"another on {kind}, or a path {allowed}")
  return _times(path, own["steps"], grid)


def _times(path, steps, grid):
  given = dict(grid) if hasattr(grid, "keys") else {"name": grid}
  name = given.pop("name", None)
  method.check("sampler.grid", name, name in _GRIDS, f"one of {', '.join(_GRIDS)}")
  method.check_keywords("sampler.grid", given, _GRIDS[name], name, ("path", "n"))
  return _GRIDS[name](path, steps, **given)


def by_name(name):
  """The sampler that a config names, as (field, x, keys [B], ts, **options) -> x.

  Raises ValueError for a name that does not exist.
  """
  method.check("sampler", name, name in _SAMPLERS, f"one of {', '.join(_SAMPLERS)}")
  return _SAMPLERS[name]

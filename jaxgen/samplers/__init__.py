"""Samplers: one `lax.scan` each, from noise to data, on anything that is a `paths.Field`."""

from jaxgen import noise, paths
from jaxgen.core import method
from jaxgen.samplers import ancestral, ddim, ode

_GIVEN = ("field", "x", "keys", "ts", "z")  # parameters of samplers that are not options


def draw(field, keys, shape, **options):
  """Samples [B, *shape] of `field`, from its noise end to its data end.

  keys: [B]. options: of `check`. Raises ValueError for options that it refuses.
  """
  check(field.path, options)
  name, steps = options.pop("name"), options.pop("steps")
  k_x, k_z = noise.split(keys)
  x, ts = noise.normal(k_x, shape), paths.times(field.path, steps)
  return by_name(name)(field, x, k_z, ts, **options)


def check(path, options):
  """Raises ValueError unless `options` say how to sample on `path`.

  options: name of a sampler, steps of paths.times, and what is its own, such as eta: all scalars.
  """
  name = options.get("name")
  needs = ("name", "steps")
  method.check_keywords("sampler", options, by_name(name), name, _GIVEN, needs)
  paths.check_steps(path, options["steps"])
  fits = name != "heun" or not isinstance(path, paths.Discrete)
  method.check("sampler", name, fits, "another: at the data a Discrete path's velocity is infinite")
  for option, value in options.items():
    if option not in needs:
      method.check_weight(f"sampler.{option}", value)


def by_name(name):
  """The sampler that a config names, as (field, x, keys [B], ts, **options) -> x.

  Raises ValueError for a name that does not exist.
  """
  solver = lambda solve: lambda field, x, keys, ts: solve(field.velocity, x, ts)
  known = {
    "ancestral": ancestral.ancestral,
    "ddim": ddim.ddim,
    "euler": solver(ode.euler),
    "heun": solver(ode.heun),
  }
  method.check("sampler", name, name in known, f"one of {', '.join(known)}")
  return known[name]

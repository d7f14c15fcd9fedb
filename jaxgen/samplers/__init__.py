"""Samplers: one `lax.scan` each, from noise to data, on anything that is a `paths.Field`."""

from jaxgen import noise, paths
from jaxgen.samplers import ancestral, ddim, ode


def draw(field, keys, shape, *, name, steps, **options):
  """Samples [B, *shape] of `field`: sampler `name` from its noise end to its data end.

  keys: [B]. steps: of paths.times. options: of the sampler. Raises ValueError for a name or a
  number of steps that does not exist.
  """
  k_x, k_z = noise.split(keys)
  x, ts = noise.normal(k_x, shape), paths.times(field.path, steps)
  return by_name(name)(field, x, k_z, ts, **options)


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
  if name not in known:
    raise ValueError(f"sampler={name!r}: expected one of {', '.join(known)}")
  return known[name]

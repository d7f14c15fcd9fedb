"""Densities of training times on straight paths, and the shift of times with the resolution.

Scaling Rectified Flow Transformers for High-Resolution Image Synthesis. Esser et al., 2024.
arXiv:2403.03206.

Each takes uniform u to times, both [B]: draw u by `noise.uniform(keys)`. As everywhere here t goes
from noise to data, from 0 to 1; the paper's time, 1 at the noise, is 1 - t, so each formula is one
minus the paper's at the same u.
"""

import functools
import math

import jax
import jax.numpy as jnp

from jaxgen.core import method


def uniform(u):
  """u itself, elementwise, from noise to data: rectified flow's density. arXiv:2209.03003, Eq. 1.

  u: [B], uniform on [0, 1].
  """
  return u


def logit_normal(u, *, m=0.0, s=1.0):
  """Times whose logit is normal: those in the middle are frequent, the ends rare. Eq. 19.

  From noise to data, elementwise; 1 - t has the paper's location m and scale s, scalars: a positive
  m favours the noise. u: [B], uniform on [0, 1]. Raises ValueError for an m that is not finite and
  an s that is not above 0.
  """
  method.check_number("m", m, math.isfinite, "a finite number")
  method.check_positive("s", s)
  return jax.nn.sigmoid(-(m + s * jax.scipy.special.ndtri(u)))  # Eq. 19


def mode(u, *, s=1.29):
  """Times in the middle for a positive s, at the ends for a negative one, none excluded. Eq. 20.

  From noise to data, elementwise. u: [B], uniform on [0, 1]. s: a scalar; 0 is uniform. Raises
  ValueError for an s outside [-1, 2 / (pi - 2)], where the map is not monotone.
  """
  most = 2.0 / (math.pi - 2.0)
  method.check_number("s", s, lambda s: -1.0 <= s <= most, f"-1 to {most:.4f}")
  return u + s * (u - jnp.sin(0.5 * math.pi * u) ** 2)  # Eq. 20


def cosmap(u):
  """Times whose log(alpha^2 / sigma^2) is that of a cosine path at uniform times. Eq. 21.

  From noise to data, elementwise. u: [B], uniform on [0, 1].
  """
  # Two sines, of which neither is below 0 in float32 at an end.
  data, eps = (jnp.sin(0.5 * math.pi * v) for v in (1.0 - u, u))
  return data / (data + eps)  # Eq. 21


def u_shaped(u, *, a=4.0):
  """Times at both ends, with density proportional to cosh(a (t - 1/2)). arXiv:2405.20320, Sec. 4.1.

  As the authors' code (sangyun884/rfpp) draws them: t or 1 - t, as often, with density exp(a t) on
  [0, 1], of which 1e-5 is left out at both ends. The paper's exp(a t) + exp(-a t) is the same about
  the middle of [0, 1], and only there has the shape of a U. From noise to data or back,
  elementwise. u: [B], uniform on [0, 1]. a: a scalar. Raises ValueError for an a that is not above
  0.
  """
  method.check_positive("a", a)
  whole = jnp.arcsinh((2.0 * u - 1.0) * math.sinh(0.5 * a)) / a
  return 0.5 + (1.0 - 2e-5) * whole


def shift(t, *, alpha):
  """Times t [B] of one resolution at another, with alpha^2 times its pixels, elementwise. Eq. 23.

  What the noise leaves of an image is then equally uncertain; from noise to data. alpha: a scalar,
  the paper's root of m / n, which it sets to 3 at 1024^2; above 1 it moves times to the noise.
  Raises ValueError for an alpha that is not above 0.
  """
  method.check_positive("alpha", alpha)
  return t / (1.0 + (alpha - 1.0) * (1.0 - t))  # Eq. 23


_DENSITIES = {
  "cosmap": cosmap,
  "logit_normal": logit_normal,
  "mode": mode,
  "u_shaped": u_shaped,
  "uniform": uniform,
}


def by_name(name, options={}):
  """The density that a config names, as u -> t, both [B]; options: its keywords, scalars.

  Times are from noise to data. Raises ValueError for a name or an option that does not exist, and
  for a value out of range.
  """
  known = isinstance(name, str) and name in _DENSITIES
  method.check("times", name, known, f"one of {', '.join(_DENSITIES)}")
  method.check_keywords("times_args", options, _DENSITIES[name], name, ("u",))
  density = functools.partial(_DENSITIES[name], **options)
  jax.eval_shape(density, jax.ShapeDtypeStruct((1,), jnp.float32))  # its own refusals
  return density

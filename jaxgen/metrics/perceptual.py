"""Perceptual path length. arXiv:1812.04948, Sec. 4.1.

`t` is the place on a path, 0 at z0 and 1 at z1, and no time from noise to data.
"""

import jax.numpy as jnp
import numpy as np

from jaxgen import paths
from jaxgen.core import method


def lerp(z0, z1, t):
  """z0 + t (z1 - z0), [B, ...]: how W is interpolated. arXiv:1812.04948, Eq. 3.

  z0, z1: [B, ...]. t: [B].
  """
  return z0 + paths.expand(t, z0) * (z1 - z0)


def slerp(z0, z1, t):
  """The great circle from z0 to z1, both made unit vectors, [B, ..., D]. arXiv:1812.04948, Eq. 2.

  Equal directions stay what they are. z0, z1: [B, ..., D]. t: [B].
  """
  a, b = _unit(z0), _unit(z1)
  cos = jnp.sum(a * b, axis=-1, keepdims=True)
  side = b - cos * a
  sin = jnp.linalg.norm(side, axis=-1, keepdims=True)
  angle = paths.expand(t, z0) * jnp.arctan2(sin, cos)
  side = side / jnp.where(sin > 0.0, sin, 1.0)
  return _unit(a * jnp.cos(angle) + side * jnp.sin(angle))


def _unit(z):
  return z / jnp.linalg.norm(z, axis=-1, keepdims=True)


def perceptual_path_length(generate, distance, z0, z1, t, *, interpolate=slerp, eps=1e-4):
  """d(G(z(t)), G(z(t + eps))) / eps^2, per path [B]. arXiv:1812.04948, Eq. 2-3.

  With `slerp` it is the length in Z; in W it is that with `lerp`, the mapped latents as z0 and z1,
  and the rest of the generator as `generate`. t of 0 measures at the ends of paths alone.

  Args:
    generate: z [B, ...] -> images [B, H, W, C].
    distance: (images, images) -> [B], such as LPIPS, of second order in small differences.
    z0, z1: [B, ...]. t: [B].
    interpolate: `slerp` or `lerp`.
    eps: the step, in units of t. In float32 one of 1e-4 has three digits; over many paths the
      errors average out.

  Raises ValueError for other shapes and for an eps that is not positive.
  """
  method.check_positive("eps", eps)
  method.check("z1.shape", z1.shape, z1.shape == z0.shape, f"that of z0, {z0.shape}")
  method.check("t.shape", t.shape, t.shape == z0.shape[:1], f"{z0.shape[:1]}, one for each of z0")
  x0, x1 = (generate(interpolate(z0, z1, at)) for at in (t, t + eps))
  return distance(x0, x1) / eps**2


def ppl_mean(lengths):
  """The mean of what lies between the 1st and 99th percentile, both included, a scalar.

  Percentiles are lengths: the one below at the lower end, above at the upper, as in the authors'
  code. lengths: [n]. Raises ValueError for another shape and where some are not finite.
  """
  lengths = np.asarray(lengths, np.float64)
  method.check("lengths.shape", lengths.shape, lengths.ndim == 1 and lengths.size, "[n], n not 0")
  method.check("lengths", "not finite", np.isfinite(lengths).all(), "finite numbers")
  low = np.percentile(lengths, 1, method="lower")
  high = np.percentile(lengths, 99, method="higher")
  return float(lengths[(lengths >= low) & (lengths <= high)].mean())

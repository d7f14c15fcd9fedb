"""Times and classes as vectors, as in DDPM, arXiv:2006.11239, App. B.

`Conditioning` is the head that UNet and ResidualMLP share. Times are in steps, 0 to 1000.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np


def timestep_embedding(t, dim, *, max_period=10_000, endpoint=True, cos_first=False):
  """Sinusoids at geometrically spaced frequencies, t [B] -> [B, dim]. arXiv:1706.03762, Sec. 3.5.

  The frequencies fall from 1 to 1 / max_period. endpoint: the last of them is 1 / max_period
  itself, as in DDPM's code; False stops one step before it, as in guided-diffusion and DiT, which
  also set cos_first. Odd dims end in a zero. The result is float32.
  """
  half = dim // 2
  exponent = np.arange(half) / max(half - endpoint, 1)
  angles = t.astype(jnp.float32)[:, None] * np.float32(max_period**-exponent)[None, :]
  waves = [jnp.cos(angles), jnp.sin(angles)] if cos_first else [jnp.sin(angles), jnp.cos(angles)]
  return jnp.pad(jnp.concatenate(waves, axis=-1), ((0, 0), (0, dim % 2)))


def check_label(label, n_classes):
  """Raises ValueError for a label [B] where n_classes is 0, and for None where it is not."""
  if (label is not None) != (n_classes > 0):
    allowed = "int32 [B]" if n_classes else "None"
    given = None if label is None else label.shape
    raise ValueError(f"label={given}: expected {allowed}, as n_classes={n_classes}")


def one_hot(label, n_classes):
  """label int32 [B] -> [B, n_classes]: zeros for the null class, n_classes, NaN for no class."""
  known = (label >= 0) & (label <= n_classes)
  return jnp.where(known[:, None], jax.nn.one_hot(label, n_classes), jnp.nan)


def augmentation(augment, n, size):
  """What a network is told of augmentations: augment [n, size] itself, or zeros for None.

  Raises ValueError for an augment of another shape. n, size: scalars.
  """
  if augment is None:
    return jnp.zeros((n, size))
  if augment.shape != (n, size):
    raise ValueError(f"augment={augment.shape}: expected None or {(n, size)}")
  return augment


class Conditioning(nn.Module):
  """What a network is told about (t [B], label [B] or None): [B, width].

  Two layers on `timestep_embedding(t, dim)`, arXiv:2006.11239, App. B; with n_classes > 0 plus an
  embedding of the label. Labels are int32, 0 to n_classes - 1; one more, n_classes, is the null
  class of classifier-free guidance, arXiv:2207.12598: whoever trains it replaces labels by it.
  Raises ValueError for a label without classes, and for classes without one.
  """

  dim: int
  width: int
  n_classes: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, t, label=None):
    check_label(label, self.n_classes)
    dense = lambda name: nn.Dense(
      self.width, kernel_init=nn.initializers.xavier_uniform(), dtype=self.dtype, name=name
    )
    c = dense("time_0")(timestep_embedding(t, self.dim))
    c = dense("time_1")(nn.swish(c))
    if self.n_classes:
      c += nn.Embed(
        self.n_classes + 1,
        self.width,
        embedding_init=nn.initializers.normal(1.0),
        dtype=self.dtype,
        name="label",
      )(jnp.uint32(label))  # NaN for -1 too, which would be the null class
    return c

"""A residual MLP with adaptive layer norm, adaLN-Zero of DiT, arXiv:2212.09748, Sec. 3.2.

For small flat data, where a UNet would be wasted: called like `unet.UNet`.
"""

import math

import flax.linen as nn
import jax.numpy as jnp

from jaxgen.nn import embeddings


class ResidualMLP(nn.Module):
  """A function of (x_t, t) with the shape of x_t, conditional on classes if n_classes > 0.

  out_channels: in place of the last number of that shape; 0 keeps it.

  Labels are 0 to n_classes, the last being the null class of classifier-free guidance. At
  initialisation every block is the identity and the output 0.
  """

  width: int = 256
  depth: int = 4
  out_channels: int = 0
  n_classes: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x, t, label=None, draw=None):
    """x [B, ..., C], t [B] in steps, label int32 [B] -> [B, ..., out_channels] float32.

    draw: unused, as there is no dropout.
    """
    del draw
    dense = lambda n, name, **kwargs: nn.Dense(n, dtype=self.dtype, name=name, **kwargs)
    zero = nn.initializers.zeros
    norm = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)

    c = nn.swish(
      embeddings.Conditioning(self.width, self.width, self.n_classes, self.dtype, name="cond")(
        t, label
      )
    )
    h = dense(self.width, "in")(x.reshape(len(x), -1))  # [B, width]
    for i in range(self.depth):
      modulation = dense(3 * self.width, f"block_{i}_modulation", kernel_init=zero)(c)
      shift, scale, gate = jnp.split(modulation, 3, axis=-1)
      r = norm(h) * (1 + scale) + shift
      r = dense(self.width, f"block_{i}_out")(nn.swish(dense(2 * self.width, f"block_{i}_in")(r)))
      h += gate * r
    shape = (*x.shape[1:-1], self.out_channels or x.shape[-1])
    y = nn.Dense(math.prod(shape), kernel_init=zero, name="out")(norm(h))  # float32
    return y.reshape(len(x), *shape)

"""Input-convex networks: potentials whose gradients are maps. arXiv:1609.07152.

Weights on hidden units are softplus of the parameters, arXiv:2012.05942, Sec. 3: the network is
convex whatever the parameters are, also their moving average and those of another optimizer, which
a projection after each update would not give. In float32 throughout: its gradients are solved for.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp


class ICNN(nn.Module):
  """A convex function of x, with convex quadratics of x at every layer: DenseICNN.

  arXiv:1909.13082, App. B.2, with a quadratic of learned weight beside, which at initialisation is
  nearly all of the gradient: the map starts near the identity, and nothing is pretrained.

  widths: of the hidden layers. rank: of each quadratic. beta: the least curvature, in every
  direction at every x.
  """

  widths: tuple[int, ...] = (128, 128, 64)
  rank: int = 1
  beta: float = 1e-4

  @nn.compact
  def __call__(self, x):
    """x [B, ...] -> float32 [B]."""
    x = x.reshape(len(x), -1)
    h = self._quadratic(x, self.widths[0], "quadratic_0")
    for i, width in enumerate(self.widths[1:], 1):
      h = self._positive(h, width, f"hidden_{i}") + self._quadratic(x, width, f"quadratic_{i}")
      h = jax.nn.celu(h)
    scale = self.param("scale", nn.initializers.constant(math.log(math.e - 1.0)), ())
    curvature = self.beta + jax.nn.softplus(scale)  # 1 at the start
    return self._positive(h, 1, "out")[:, 0] + 0.5 * curvature * jnp.sum(x**2, axis=-1)

  def _positive(self, h, width, name):
    """Means of convex functions [B, C], weighted by softplus: [B, width]."""
    kernel = self.param(name, nn.initializers.normal(1.0), (h.shape[-1], width))
    return h @ (jax.nn.softplus(kernel) / len(kernel))

  def _quadratic(self, x, width, name):
    """sum_r (a_r . x)^2 + b . x + c, [B, width]."""
    init = nn.initializers.normal(0.1 / math.sqrt(self.rank))
    a = nn.Dense(self.rank * width, use_bias=False, kernel_init=init, name=f"{name}_square")(x)
    linear = nn.Dense(width, bias_init=nn.initializers.normal(1.0), name=name)(x)
    return jnp.sum(a.reshape(len(x), self.rank, width) ** 2, axis=1) + linear

"""Models whose exact answers are known."""

import dataclasses

import jax.numpy as jnp

from jaxgen import paths


@dataclasses.dataclass(frozen=True)
class GaussianData:
  """Data N(mean, std^2): noise predictor, density and flow map in closed form, on every path."""

  mean: float = 0.7
  std: float = 0.5

  def field(self, path):
    def predict(x_t, t):
      a, s = paths.expand(path.alpha(t), x_t), paths.expand(path.sigma(t), x_t)
      error = (x_t - a * self.mean) / (a**2 * self.std**2 + s**2)
      return paths.Prediction(self.mean + a * self.std**2 * error, s * error)

    return paths.Field(path, predict)

  def at(self, path, t, xi):
    """The probability-flow trajectory through quantile xi of N(0, 1)."""
    a, s = path.alpha(t), path.sigma(t)
    return a * self.mean + jnp.sqrt(a**2 * self.std**2 + s**2) * xi

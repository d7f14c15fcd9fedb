"""How well images fit their captions. arXiv:2104.08718."""

import jax.numpy as jnp

from jaxgen.core import method


def clip_score(image_features, text_features, *, w=2.5):
  """w max(cos, 0) of the features of an image and its caption, per pair [B].

  arXiv:2104.08718, Sec. 3. It gives the caption the prefix "A photo depicts". NaN for a row of 0.

  Args:
    image_features, text_features: of one CLIP, of any length, [B, D].
    w: 2.5 as in the paper; w=100 is the CLIP score of others, without a prefix.

  Raises ValueError for other shapes and for a w that is not positive.
  """
  method.check_positive("w", w)
  shape = image_features.shape
  method.check("image_features.shape", shape, len(shape) == 2 and 0 not in shape, "[B, D]")
  same = text_features.shape == shape
  method.check("text_features.shape", text_features.shape, same, f"that of image_features, {shape}")
  cos = jnp.sum(_unit(image_features) * _unit(text_features), axis=1)
  return w * jnp.maximum(cos, 0.0)


def _unit(x):
  x = x.astype(jnp.float32)
  return x / jnp.linalg.norm(x, axis=1, keepdims=True)

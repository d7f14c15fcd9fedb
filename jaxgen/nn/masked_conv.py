"""Convolutions that see only earlier pixels, and the gated PixelCNN that is made of them.

A bare equation number is one of Conditional Image Generation with PixelCNN Decoders, van den Oord
et al., 2016, arXiv:1606.05328.

Pixels come in raster order, and the colours of a pixel one after another. Space needs no masks: an
image is padded above and to the left and shifted, and what is not yet known is cropped. A mask is
left for the colours of one pixel. A layer takes its image padded, so the same layer runs over a
whole image, over one row of which the rows above are kept, and over one pixel of which those to the
left are kept: the last two are `GatedPixelCNN.step`.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import method


def check_sizes(width, depth, kernel, first_kernel, colours=1):
  """Raises ValueError for sizes of which no `GatedPixelCNN` can be made.

  width, depth, kernel, first_kernel, colours: scalars, its fields.
  """
  method.check_count("width", width, colours)  # every colour has a feature
  method.check_count("depth", depth)
  for name, value in (("kernel", kernel), ("first_kernel", first_kernel)):
    method.check_count(name, value, 3)
    method.check(name, value, value % 2 == 1, "an odd number")


def colour_mask(inputs, outputs, colours, *, strict=False, halves=1):
  """Which inputs an output may see in its own pixel, bool [D, F].

  Features are split into groups in order: the one of a colour sees those up to its own, or below
  it where strict. arXiv:1601.06759, Sec. 3.3. inputs, outputs, colours: scalars, D, F and how many
  groups. halves: parts of the outputs that are each split so, as the two halves of a gate are.
  """
  group = lambda n: np.arange(n) * colours // n
  i, o = group(inputs)[:, None], np.tile(group(outputs // halves), halves)
  return i < o if strict else i <= o


def gate(x):
  """tanh(a) sigmoid(b) of the halves a, b of x [..., 2 D] -> [..., D]. Eq. 2; survey Eq. 68."""
  a, b = jnp.split(x, 2, axis=-1)
  return jnp.tanh(a) * nn.sigmoid(b)


class PixelDense(nn.Module):
  """A 1 x 1 convolution in which a colour sees itself and those before it."""

  features: int
  colours: int = 1

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, D] -> [B, H, W, F]."""
    mask = colour_mask(x.shape[-1], self.features, self.colours)
    return nn.Conv(self.features, (1, 1), mask=mask[None, None])(x)


class LeftConv(nn.Module):
  """A convolution of the pixels to the left and of those colours of its own that it may see.

  features: those of a gate, two halves. reach: pixels to the left. strict: not its own colour.
  """

  features: int
  reach: int
  colours: int = 1
  strict: bool = False

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W + reach, D], padded to the left -> [B, H, W, F]."""
    if self.strict and self.colours == 1:
      return nn.Conv(self.features, (1, self.reach), padding="VALID")(x[:, :, :-1])
    mask = np.ones((1, self.reach + 1, x.shape[-1], self.features), bool)
    mask[0, -1] = colour_mask(
      x.shape[-1], self.features, self.colours, strict=self.strict, halves=2
    )
    return nn.Conv(self.features, (1, self.reach + 1), padding="VALID", mask=mask)(x)


class GatedLayer(nn.Module):
  """A vertical stack, of the rows above, and a horizontal one, of the pixels to the left. Fig. 2.

  width: features of either stack. reach: pixels that it sees to either side and above. first: the
  layer that sees the image, and so neither the row nor the colour that it is to predict.
  """

  width: int
  reach: int
  colours: int = 1
  first: bool = False

  def setup(self):
    """Makes the convolutions of both stacks."""
    rows, columns = self.reach + (not self.first), 2 * self.reach + 1
    self.above = nn.Conv(2 * self.width, (rows, columns), padding="VALID")
    self.link = nn.Dense(2 * self.width)
    self.by_vector = nn.Dense(4 * self.width, use_bias=False)
    self.by_grid = nn.Dense(4 * self.width, use_bias=False)
    self.left = LeftConv(2 * self.width, self.reach, self.colours, self.first)
    self.out = PixelDense(self.width, self.colours)

  def vertical(self, x, vector=None, grid=None):
    """The vertical stack, and what it and the conditions give the horizontal one.

    Args:
      x: [B, H + reach, W + 2 reach, D], padded above and at both sides.
      vector: [B, E], or None, for every place. grid: [B, H, W, E], or None, for each its own.

    Returns:
      ([B, H, W, width], [B, H, W, 2 width]).
    """
    v = self.above(x[:, :-1] if self.first else x)
    given = self.link(v)
    conditions = []
    if vector is not None:
      conditions.append(self.by_vector(vector)[:, None, None])  # Eq. 4; survey Eq. 70
    if grid is not None:
      conditions.append(self.by_grid(grid))  # Eq. 5
    for condition in conditions:
      to_v, to_h = jnp.split(condition, 2, axis=-1)
      v, given = v + to_v, given + to_h
    return gate(v), given

  def horizontal(self, x, given):
    """The horizontal stack, [B, H, W, width].

    x: [B, H, W + reach, D], padded to the left. given: [B, H, W, 2 width].
    """
    h = self.out(gate(self.left(x) + given))
    return h if self.first else h + x[:, :, self.reach :]


class GatedPixelCNN(nn.Module):
  """Logits of every token of an image, each of the tokens before it. Eq. 1, 3; survey Eq. 69.

  levels: how many values a token has. colours: tokens of a pixel, each given those before it.
  width: features of either stack. depth: layers. kernel, first_kernel: what they see, odd, 3 or
  more. embedding: length of what a token becomes; 0 takes its number, scaled to [-1, 1].
  """

  levels: int
  colours: int = 1
  width: int = 128
  depth: int = 15
  kernel: int = 5
  first_kernel: int = 7
  embedding: int = 0

  def setup(self):
    """Makes the layers and the head."""
    self.layers = [
      GatedLayer(self.width, reach, self.colours, first=i == 0)
      for i, reach in enumerate(self._reaches())
    ]
    if self.embedding:
      self.embed = nn.Embed(self.levels, self.embedding)
    self.hidden = PixelDense(self.width, self.colours)
    self.logits = PixelDense(self.colours * self.levels, self.colours)

  def __call__(self, tokens, vector=None, grid=None):
    """Logits [B, H, W, C, K] of C colours and K levels.

    tokens: int32 [B, H, W, C]. vector: [B, E] or None; grid: [B, H, W, E] or None: conditions.
    """
    v = h = self._features(tokens).reshape(*tokens.shape[:3], -1)
    for layer in self.layers:
      r = layer.reach
      v, given = layer.vertical(jnp.pad(v, ((0, 0), (r, 0), (r, r), (0, 0))), vector, grid)
      h = layer.horizontal(jnp.pad(h, ((0, 0), (0, 0), (r, 0), (0, 0))), given)
    return self._predict(h)

  def cache(self, n, columns):
    """What `step` keeps of n images of so many columns: a tree of arrays [n, ...], all zero."""
    first, *others = self._reaches()
    zeros = lambda *shape: jnp.zeros((n, *shape))
    return {
      "image": zeros(first + 1, columns + 2 * first, self.colours * (self.embedding or 1)),
      "above": [zeros(reach, columns + 2 * reach, self.width) for reach in others],
      "left": [zeros(1, columns + reach, self.width) for reach in others],
      "given": [zeros(1, columns, 2 * self.width) for _ in range(self.depth)],
    }

  def step(self, cache, token, position, vector=None, grid=None):
    """(logits [n, K] of the token at `position`, cache), for `samplers.autoregressive`.

    The vertical stack runs once a row, before its first token; the horizontal one at every token.

    Args:
      cache: a tree of arrays [n, ...], of `cache`.
      token: int32 [n], the one before, which nobody reads at position 0.
      position: scalar, 0 to H W C - 1. vector: [n, E] or None; grid: [n, H, W, E] or None.
    """
    columns = cache["given"][0].shape[2]
    pixel, colour = divmod(position, self.colours)
    row, column = divmod(pixel, columns)
    cache = cache | {"image": self._write(cache["image"], token, position, columns)}

    def start_row(net, cache):
      here = None if grid is None else jax.lax.dynamic_slice_in_dim(grid, row, 1, axis=1)
      return net._start_row(cache, vector, here)

    starts = (column == 0) & (colour == 0)
    cache = nn.cond(starts, start_row, lambda net, cache: cache, self, cache)
    strip = cache["image"][:, -1:]
    left = []
    for i, layer in enumerate(self.layers):
      x = jax.lax.dynamic_slice_in_dim(strip, column, layer.reach + 1, axis=2)
      given = jax.lax.dynamic_slice_in_dim(cache["given"][i], column, 1, axis=2)
      h = layer.horizontal(x, given)
      if i < self.depth - 1:
        at = column + self.layers[i + 1].reach
        strip = jax.lax.dynamic_update_slice_in_dim(cache["left"][i], h, at, axis=2)
        left.append(strip)
    logits = jax.lax.dynamic_index_in_dim(self._predict(h)[:, 0, 0], colour, axis=1, keepdims=False)
    return logits, cache | {"left": left}

  def _reaches(self):
    return [self.first_kernel // 2] + [self.kernel // 2] * (self.depth - 1)

  def _features(self, tokens):
    if self.embedding:
      return self.embed(tokens)
    return 2.0 * tokens[..., None] / (self.levels - 1) - 1.0

  def _predict(self, h):
    logits = self.logits(nn.relu(self.hidden(nn.relu(h))))
    return logits.reshape(*h.shape[:3], self.colours, self.levels)

  def _write(self, image, token, position, columns):
    """The last row of `image` with the token before `position`."""
    x = self._features(token)[:, None, None] * (position > 0)
    pixel, colour = divmod(jnp.maximum(position - 1, 0), self.colours)
    at = (0, self.layers[0].reach, self.layers[0].reach + pixel % columns, colour * x.shape[-1])
    return jax.lax.dynamic_update_slice(image, x, at)

  def _start_row(self, cache, vector, grid):
    """The vertical stack of a row: `image` and `above` move up by one."""
    x = jnp.pad(cache["image"][:, 1:], ((0, 0), (0, 1), (0, 0), (0, 0)))
    new = {"image": x, "left": cache["left"], "above": [], "given": []}
    for i, layer in enumerate(self.layers):
      v, given = layer.vertical(x, vector, grid)
      new["given"].append(given)
      if i < self.depth - 1:
        reach = self.layers[i + 1].reach
        v = jnp.pad(v, ((0, 0), (0, 0), (reach, reach), (0, 0)))
        x = jnp.concatenate([cache["above"][i], v], axis=1)
        new["above"].append(x[:, 1:])
    return new

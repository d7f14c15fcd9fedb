"""The diffusion transformer, DiT. Peebles and Xie, 2022. arXiv:2212.09748, Sec. 3.

Layers, order and initialisation of the authors' code (facebookresearch/DiT, models.py). Parameters
are float32; activations have the modules' dtype, statistics and the last layer are float32. Times
are in steps, 0 to 1000.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import method
from jaxgen.nn import embeddings

# Table 1; followed by the patch size in a network's name, "DiT-XL/2".
SIZES = {
  "S": dict(width=384, depth=12, heads=6),
  "B": dict(width=768, depth=12, heads=12),
  "L": dict(width=1024, depth=24, heads=16),
  "XL": dict(width=1152, depth=28, heads=16),
}
FREQUENCIES = 256  # sines and cosines of a time

uniform = nn.initializers.xavier_uniform()
normal = nn.initializers.normal(0.02)
zeros = nn.initializers.zeros


def positions(dim, height, width):
  """The frozen table of the height * width places of a grid, row by row: float32 [N, dim].

  Half of dim is for the column, half for the row; of each, half are sines and half cosines.
  Sec. 3.2, as in the authors' code. Raises ValueError for a dim that is not 4, 8, 12, ...
  """
  return sinusoids(dim, *np.indices((height, width)).reshape(2, -1, 1))


def sinusoids(dim, rows, columns):
  """float32 [N, dim] of places rows, columns [N, 1], as `positions` has them.

  Raises ValueError for a dim, a scalar, that is not 4, 8, 12, ...
  """
  method.check("dim", dim, dim > 0 and dim % 4 == 0, "a multiple of 4")
  frequencies = 10_000.0 ** (-np.arange(dim // 4) / (dim // 4))
  waves = [f(i * frequencies) for i in (columns, rows) for f in (np.sin, np.cos)]
  return np.concatenate(waves, axis=-1).astype(np.float32)


def patchify(x, size):
  """Images x [B, H, W, C] -> patches [B, N, K], row by row. Sec. 3.2.

  size: a scalar, side of a patch, which has K = size * size * C values.
  """
  B, H, W, C = x.shape
  x = x.reshape(B, H // size, size, W // size, size, C)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(B, -1, size * size * C)


def unpatchify(x, size, height, width):
  """Undoes `patchify`: x [B, N, K] -> images [B, height, width, C]. size: as there, a scalar."""
  x = x.reshape(len(x), height // size, width // size, size, size, -1)
  return x.transpose(0, 1, 3, 2, 4, 5).reshape(len(x), height, width, -1)


def modulate(x, shift, scale):
  """Normalised x [B, N, D], scaled and shifted by shift, scale [B, 1, D]: like x. Sec. 3.2."""
  return x * (1 + scale) + shift


class Block(nn.Module):
  """adaLN-Zero: self-attention and an MLP, the identity at initialisation. Sec. 3.2, Fig. 3."""

  heads: int
  mlp_ratio: float
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, x, c):
    """x [B, N, D], c [B, D] -> like x."""
    B, N, D = x.shape
    dense = lambda features, name, init=uniform: nn.Dense(
      features, kernel_init=init, dtype=self.dtype, name=name
    )
    norm = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)

    modulation = dense(6 * D, "modulation", zeros)(c)[:, None]
    shift_1, scale_1, gate_1, shift_2, scale_2, gate_2 = jnp.split(modulation, 6, axis=-1)
    h = dense(3 * D, "qkv")(modulate(norm(x), shift_1, scale_1))
    q, k, v = (h.reshape(B, N, 3, self.heads, D // self.heads)[:, :, i] for i in range(3))
    h = jax.nn.dot_product_attention(q, k, v).reshape(B, N, D)
    x = x + gate_1 * dense(D, "proj")(h)
    h = dense(round(D * self.mlp_ratio), "fc_0")(modulate(norm(x), shift_2, scale_2))
    return x + gate_2 * dense(D, "fc_1")(nn.gelu(h, approximate=True))


class DiT(nn.Module):
  """A function of (x_t, t) on images or latents, conditional on classes if n_classes > 0.

  patch_size: side of a patch. width, depth, heads: of `SIZES`. mlp_ratio: hidden width / width.
  out_channels: 2C where C of them are eps and C the learned variance. n_classes: 0 is
  unconditional; otherwise labels are 0 to n_classes, the last being the null class of
  classifier-free guidance. scan: compile one block for all, and compute activations again in the
  backward pass: less memory and compilation, about a tenth slower; for its layout of parameters see
  `stack`. The output is 0 at initialisation.
  """

  patch_size: int = 2
  width: int = 1152
  depth: int = 28
  heads: int = 16
  mlp_ratio: float = 4.0
  out_channels: int = 8
  n_classes: int = 0
  dtype: jnp.dtype = jnp.float32
  scan: bool = False

  def check(self, height, width):
    """Raises ValueError for fields that do not fit each other, or images of height x width."""
    for name, value in (("height", height), ("width", width)):
      fits = f"a multiple of patch_size={self.patch_size}"
      method.check(name, value, value % self.patch_size == 0, fits)
    fits = f"a divisor of width={self.width}, a multiple of 4"
    ok = self.heads > 0 and self.width % self.heads == self.width % 4 == 0
    method.check("heads", self.heads, ok, fits)
    method.check_positive("mlp_ratio", self.mlp_ratio)

  @nn.compact
  def __call__(self, x, t, label=None, draw=None):
    """x [B, H, W, C], t [B] in steps, label int32 [B] -> [B, H, W, out_channels] float32.

    draw is not used: there is no dropout. Raises ValueError as `check` does, and for a label
    without classes or classes without one.
    """
    del draw
    p, D, (H, W) = self.patch_size, self.width, x.shape[1:3]
    self.check(H, W)
    embeddings.check_label(label, self.n_classes)
    dense = lambda features, name, init, dtype=self.dtype: nn.Dense(
      features, kernel_init=init, dtype=dtype, name=name
    )

    waves = embeddings.timestep_embedding(t, FREQUENCIES, endpoint=False, cos_first=True)
    c = dense(D, "time_1", normal)(nn.swish(dense(D, "time_0", normal)(waves)))
    if self.n_classes:
      table = nn.Embed(self.n_classes + 1, D, self.dtype, embedding_init=normal, name="label")
      c += table(jnp.uint32(label))  # NaN for -1 too, which would be the null class
    c = nn.swish(c)

    h = dense(D, "patch", uniform)(patchify(x, p))
    h += jnp.asarray(positions(D, H // p, W // p), h.dtype)[None]
    args = (self.heads, self.mlp_ratio, self.dtype)
    if self.scan:
      blocks = nn.scan(
        lambda block, h, c: (block(h, c), None),
        variable_axes={"params": 0},
        split_rngs={"params": True},
        in_axes=nn.broadcast,
        length=self.depth,
      )
      h, _ = blocks(nn.remat(Block, prevent_cse=False)(*args, name="blocks"), h, c)
    else:
      for i in range(self.depth):
        h = Block(*args, name=f"block_{i}")(h, c)

    modulation = dense(2 * D, "out_modulation", zeros, jnp.float32)(c)[:, None]
    norm = nn.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.float32)
    h = modulate(norm(h), *jnp.split(modulation, 2, axis=-1))
    return unpatchify(dense(p * p * self.out_channels, "out", zeros, jnp.float32)(h), p, H, W)


def stack(params):
  """params of DiT(scan=False) -> of DiT(scan=True), where those of blocks are one tree, [L, ...].

  params: a dict of arrays, block by block. L is the depth.
  """
  depth = sum(name.startswith("block_") for name in params)
  blocks = [params[f"block_{i}"] for i in range(depth)]
  rest = {name: value for name, value in params.items() if not name.startswith("block_")}
  return {**rest, "blocks": jax.tree.map(lambda *leaves: jnp.stack(leaves), *blocks)}


def unstack(params):
  """Undoes `stack`: params of DiT(scan=True), [L, ...] -> of DiT(scan=False)."""
  depth = len(jax.tree.leaves(params["blocks"])[0])
  blocks = {f"block_{i}": jax.tree.map(lambda x, i=i: x[i], params["blocks"]) for i in range(depth)}
  return {name: value for name, value in params.items() if name != "blocks"} | blocks

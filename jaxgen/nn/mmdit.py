"""The multimodal diffusion transformer, MM-DiT. Esser et al., 2024. arXiv:2403.03206, Sec. 4.

Layers and order of the authors' code for sampling (Stability-AI/sd3-ref, mmdit.py), which has no
initialisation: ours is DiT's, arXiv:2212.09748. Parameters are float32; activations have the
modules' dtype, statistics and the last layer are float32. Times are in steps, 0 to 1000.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import method
from jaxgen.nn import dit, embeddings

HEAD = 64  # width of a head of attention
NORMS = {"": None, "rms": nn.RMSNorm, "ln": nn.LayerNorm}  # of queries and keys


def positions(dim, height, width, *, max_size=192, base_size=64):
  """The frozen table of the middle height * width places of a grid of max_size^2: float32 [N, dim].

  Places are base_size / max_size apart; each has the sinusoids of `dit.positions`. max_size,
  base_size: scalars, sides of the largest grid and of the usual one. Raises ValueError for a grid
  that is larger and for a dim that is not 4, 8, 12, ...
  """
  for name, value in (("height", height), ("width", width)):
    method.check_count(f"patches of {name}", value, 1, max_size)
  sides = np.array([height, width]).reshape(2, 1, 1)
  corner = (max_size - sides) // 2
  places = np.indices((height, width)).reshape(2, -1, 1) + corner
  return dit.sinusoids(dim, *(places * (base_size / max_size)))


class Block(nn.Module):
  """Two streams, text and image, each with weights of its own, that attend to both. Sec. 4, Fig. 2.

  Both are as in `dit.Block`. qk_norm: of `NORMS`, of each head's queries and keys, Sec. 5.3.2. In
  the last block nothing reads the text any more: it only has keys and values.
  """

  qk_norm: str
  last: bool
  dtype: jnp.dtype

  @nn.compact
  def __call__(self, context, x, c):
    """context [B, L, D], x [B, N, D], c [B, D] -> like context (None of the last), like x."""
    B, L, D = context.shape
    dense = lambda features, name, init=dit.uniform: nn.Dense(
      features, kernel_init=init, dtype=self.dtype, name=name
    )
    norm = nn.LayerNorm(use_bias=False, use_scale=False, dtype=self.dtype)

    def before(stream, h, n):
      modulation = dense(n * D, f"{stream}_modulation", dit.zeros)(c)[:, None]
      shift, scale, *rest = jnp.split(modulation, n, axis=-1)
      h = dense(3 * D, f"{stream}_qkv")(dit.modulate(norm(h), shift, scale))
      qkv = [h.reshape(B, -1, 3, D // HEAD, HEAD)[:, :, i] for i in range(3)]
      if self.qk_norm:
        of = lambda i: NORMS[self.qk_norm](dtype=self.dtype, name=f"{stream}_norm_{'qk'[i]}")
        qkv[:2] = [of(i)(qkv[i]) for i in (0, 1)]
      return qkv, rest

    def after(stream, h, attended, gate_1, shift, scale, gate_2):
      h = h + gate_1 * dense(D, f"{stream}_proj")(attended)
      hidden = dense(4 * D, f"{stream}_fc_0")(dit.modulate(norm(h), shift, scale))
      return h + gate_2 * dense(D, f"{stream}_fc_1")(nn.gelu(hidden, approximate=True))

    of_context, context_rest = before("context", context, 2 if self.last else 6)
    of_x, x_rest = before("x", x, 6)
    joint = [jnp.concatenate(pair, axis=1) for pair in zip(of_context, of_x, strict=True)]
    attended = jax.nn.dot_product_attention(*joint).reshape(B, -1, D)
    x = after("x", x, attended[:, L:], *x_rest)
    return None if self.last else after("context", context, attended[:, :L], *context_rest), x


class MMDiT(nn.Module):
  """A function of (x_t, t) on images or latents, conditional on a text, as tokens and as a whole.

  patch_size: side of a patch. depth: number of blocks and of heads; the width is 64 depth. qk_norm:
  "", "rms" or "ln", of queries and keys. pos_embed_max_size, pos_embed_base_size: of `positions`,
  in patches. The table is a constant; a checkpoint whose table is another brings it along, as
  `positions` [max_size, max_size, D] in the collection "buffers". The output is 0 at
  initialisation. In the authors' code its velocity is noise minus data, its time 1000 at the noise.
  """

  patch_size: int = 2
  depth: int = 24
  out_channels: int = 16
  qk_norm: str = ""
  pos_embed_max_size: int = 192
  pos_embed_base_size: int = 64
  dtype: jnp.dtype = jnp.float32

  def check(self, height, width):
    """Raises ValueError for fields that do not fit, or images of height x width."""
    for name, value in (("height", height), ("width", width)):
      most = self.patch_size * self.pos_embed_max_size
      fits = f"a multiple of patch_size={self.patch_size}, at most {most}"
      method.check(name, value, value % self.patch_size == 0 and value <= most, fits)
    method.check_count("depth", self.depth)
    known = isinstance(self.qk_norm, str) and self.qk_norm in NORMS
    method.check("qk_norm", self.qk_norm, known, f"one of {', '.join(map(repr, NORMS))}")

  @nn.compact
  def __call__(self, x, t, context, pooled):
    """x [B, H, W, C], t [B] in steps, context [B, L, K], pooled [B, P] -> [B, H, W, out_channels].

    float32. Raises ValueError as `check` does, and for texts of other shapes.
    """
    p, D, (B, H, W, _) = self.patch_size, HEAD * self.depth, x.shape
    self.check(H, W)
    for name, value, ndim in (("context", context, 3), ("pooled", pooled, 2)):
      good = value.ndim == ndim and len(value) == B
      method.check(name, value.shape, good, f"an array of {ndim} axes, the first {B}")
    dense = lambda features, name, init, dtype=self.dtype: nn.Dense(
      features, kernel_init=init, dtype=dtype, name=name
    )
    two = lambda h, name: dense(D, f"{name}_1", dit.normal)(
      nn.swish(dense(D, f"{name}_0", dit.normal)(h))
    )

    waves = embeddings.timestep_embedding(t, dit.FREQUENCIES, endpoint=False, cos_first=True)
    c = nn.swish(two(waves, "time") + two(pooled, "pooled"))
    context = dense(D, "context", dit.uniform)(context)
    h = dense(D, "patch", dit.uniform)(dit.patchify(x, p))
    h += jnp.asarray(self._positions(H // p, W // p, D), h.dtype)[None]
    for i in range(self.depth):
      block = Block(self.qk_norm, i == self.depth - 1, self.dtype, name=f"block_{i}")
      context, h = block(context, h, c)

    modulation = dense(2 * D, "out_modulation", dit.zeros, jnp.float32)(c)[:, None]
    norm = nn.LayerNorm(use_bias=False, use_scale=False, dtype=jnp.float32)
    h = dit.modulate(norm(h), *jnp.split(modulation, 2, axis=-1))
    out = dense(p * p * self.out_channels, "out", dit.zeros, jnp.float32)(h)
    return dit.unpatchify(out, p, H, W)

  def _positions(self, height, width, dim):
    size = self.pos_embed_max_size
    if not self.has_variable("buffers", "positions"):
      return positions(dim, height, width, max_size=size, base_size=self.pos_embed_base_size)
    top, left = (size - height) // 2, (size - width) // 2
    table = self.get_variable("buffers", "positions")
    return table[top : top + height, left : left + width].reshape(-1, dim)

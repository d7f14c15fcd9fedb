"""CLIP, arXiv:2103.00020: an image tower, a text tower and the cosine between what they say.

Layers, order and initialisation of the authors' code (openai/CLIP, clip/model.py), and what the
larger networks of OpenCLIP, arXiv:2212.07143, have otherwise: heads of another width, another
width of the MLP, GELU. Biases start at 0, and the image tower as the text tower does.
Weights: `jaxgen.convert.clip`. Tokens: `jaxgen.data.text`.
"""

import functools

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from jaxgen.core import method
from jaxgen.nn import inception

normal = nn.initializers.normal

# arXiv:1606.08415, Sec. 2: the second is its approximation by a sigmoid, which OpenAI's have.
ACTIVATIONS = {
  "gelu": functools.partial(jax.nn.gelu, approximate=False),
  "quick_gelu": lambda x: x * jax.nn.sigmoid(1.702 * x),
}

# Of red, green and blue in [0, 1], in the authors' code.
MEAN = np.array([0.48145466, 0.4578275, 0.40821073], np.float32)
STD = np.array([0.26862954, 0.26130258, 0.27577711], np.float32)


def bicubic(n, full, size):
  """Pillow's resize of n rows to `full`, bicubic, the middle `size` of them kept: weights [S, n].

  Keys' kernel with a = -1/2, doi:10.1109/TASSP.1981.1163711, widened by the step where it shrinks,
  its sum over the rows that exist made 1. In float32.
  """
  step = n / full
  first = round((full - size) / 2)  # to even, as torchvision's CenterCrop
  at = (np.arange(first, first + size) + 0.5) * step - 0.5
  d = abs(at[:, None] - np.arange(n)[None]) / max(step, 1.0)
  near = (1.5 * d - 2.5) * d**2 + 1
  far = ((2.5 - 0.5 * d) * d - 4) * d + 2
  weights = np.where(d < 1, near, np.where(d < 2, far, 0))
  return (weights / weights.sum(axis=1, keepdims=True)).astype(np.float32)


def preprocess(x, size=224):
  """What `encode_image` takes of pixels, float32 [B, S, S, 3]: the authors' transformation.

  x: [B, H, W, 3] in 0 to 255, uint8 or float32. size: S, the network's image_resolution.

  The shorter side is resized to `size`, the middle of the longer one kept, and the colours
  standardised. As in Pillow each side's result is rounded to 8 bits, so gradients are 0: who wants
  them standardises by MEAN and STD. Raises ValueError for another shape or dtype, and for a size
  that is no whole number.
  """
  method.check_count("size", size)
  x = inception.pixels(x, 4)
  H, W = x.shape[1:3]
  rows, columns = (bicubic(n, int(size * n / min(H, W)), size) for n in (H, W))
  eight_bits = lambda x: jnp.clip(jnp.floor(x + 0.5), 0, 255)  # a half goes up, as in Pillow
  x = eight_bits(jnp.einsum("qw,bhwc->bhqc", columns, x, precision="highest"))
  x = eight_bits(jnp.einsum("ph,bhqc->bpqc", rows, x, precision="highest"))
  return (x / 255 - MEAN[None, None, None]) / STD[None, None, None]


def layer_norm(x, name):
  """LayerNorm over channels, like x [B, ..., D]; name: of the layer."""
  return nn.LayerNorm(epsilon=1e-5, use_fast_variance=False, name=name)(x)


class Block(nn.Module):
  """Residual attention and MLP, each on what is normalised before it, x [B, T, D] -> like x.

  arXiv:2103.00020, Sec. 2.4. std: of the weights at the end of either branch.
  """

  heads: int
  mlp_width: int
  activation: str
  causal: bool
  std: float

  @nn.compact
  def __call__(self, x):
    B, T, D = x.shape
    dense = lambda width, std, name: nn.Dense(width, kernel_init=normal(std), name=name)
    h = dense(3 * D, D**-0.5, "in_proj")(layer_norm(x, "ln_1"))
    q, k, v = jnp.moveaxis(h.reshape(B, T, 3, self.heads, D // self.heads), 2, 0)
    h = jax.nn.dot_product_attention(q, k, v, is_causal=self.causal)
    x = x + dense(D, self.std, "out_proj")(h.reshape(B, T, D))
    h = dense(self.mlp_width, (2 * D) ** -0.5, "c_fc")(layer_norm(x, "ln_2"))
    return x + dense(D, self.std, "c_proj")(ACTIVATIONS[self.activation](h))


class Transformer(nn.Module):
  """A stack of `Block`, x [B, T, D] -> like x. causal: no token sees those after it.

  Raises ValueError for no layers, heads that do not divide D, and an activation that is not there.
  """

  layers: int
  heads: int
  mlp_ratio: float
  activation: str
  causal: bool

  @nn.compact
  def __call__(self, x):
    D = x.shape[-1]
    heads, activation = self.heads, self.activation
    method.check_count("layers", self.layers)
    method.check("heads", heads, heads > 0 and D % heads == 0, f"a divisor of the width, {D}")
    method.check("activation", activation, activation in ACTIVATIONS, " or ".join(ACTIVATIONS))
    mlp_width, std = round(self.mlp_ratio * D), (2 * D * self.layers) ** -0.5
    for i in range(self.layers):
      x = Block(heads, mlp_width, activation, self.causal, std, name=f"block_{i}")(x)
    return x


class TextTransformer(nn.Module):
  """The text tower without its projection: what Stable Diffusion is conditioned on.

  tokens int [B, context_length] -> [B, context_length, width]. arXiv:2103.00020, Sec. 2.4.
  Raises ValueError for tokens of another shape or dtype; a token of vocab_size or more gives NaN.
  """

  context_length: int = 77
  vocab_size: int = 49408
  width: int = 512
  heads: int = 8
  layers: int = 12
  activation: str = "quick_gelu"

  @nn.compact
  def __call__(self, tokens):
    wanted = tokens.ndim == 2 and tokens.shape[1] == self.context_length
    method.check("tokens.shape", tokens.shape, wanted, f"[B, {self.context_length}]")
    integers = jnp.issubdtype(tokens.dtype, jnp.integer)
    method.check("tokens.dtype", str(tokens.dtype), integers, "integers")
    embed = nn.Embed(
      self.vocab_size, self.width, embedding_init=normal(0.02), name="token_embedding"
    )
    shape = (self.context_length, self.width)
    x = embed(tokens) + self.param("positional_embedding", normal(0.01), shape)[None]
    x = Transformer(self.layers, self.heads, 4.0, self.activation, True, name="transformer")(x)
    return layer_norm(x, "ln_final")


class VisionTransformer(nn.Module):
  """The image tower, x [B, R, R, 3] -> [B, embed_dim]. arXiv:2010.11929, Eq. 1-4.

  With arXiv:2103.00020's normalisation before the first block (Sec. 2.4) and its projection.
  Raises ValueError where patches do not fill the image.
  """

  embed_dim: int
  patch_size: int
  width: int
  layers: int
  heads: int
  mlp_ratio: float
  activation: str

  @nn.compact
  def __call__(self, x):
    B, R, P, D = len(x), x.shape[1], self.patch_size, self.width
    method.check("vision_patch_size", P, R % P == 0, f"a divisor of image_resolution, {R}")
    x = nn.Conv(D, (P, P), (P, P), "VALID", use_bias=False, name="conv1")(x)
    token = self.param("class_embedding", normal(D**-0.5), (D,))
    token = jnp.broadcast_to(token[None, None], (B, 1, D))
    x = jnp.concatenate([token, x.reshape(B, -1, D)], axis=1)
    x += self.param("positional_embedding", normal(D**-0.5), x.shape[1:])[None]
    x = Transformer(
      self.layers, self.heads, self.mlp_ratio, self.activation, False, name="transformer"
    )(layer_norm(x, "ln_pre"))
    proj = self.param("proj", normal(D**-0.5), (D, self.embed_dim))
    return layer_norm(x[:, 0], "ln_post") @ proj


def conv(x, channels, kernel, name, strides=1):
  """A kernel by kernel convolution and its batch norm, x [B, H, W, C] -> [B, H', W', channels].

  H' = ceil(H / strides), with as many zeros on every side, as torch pads. No bias; the norm is by
  stored statistics. name: "conv1", which makes the norm's "bn1".
  """
  pad, norm = kernel // 2, name.replace("conv", "bn")
  x = nn.Conv(channels, (kernel, kernel), strides, pad, use_bias=False, name=name)(x)
  return nn.BatchNorm(use_running_average=True, epsilon=1e-5, name=norm)(x)


def halve(x):
  """Mean of 2x2, x [B, H, W, C] -> [B, H // 2, W // 2, C]."""
  return nn.avg_pool(x, (2, 2), (2, 2))


class Bottleneck(nn.Module):
  """Residual block, x [B, H, W, C] -> [B, H / strides, W / strides, 4 channels].

  Where strides is 2 means of 2x2 come before a convolution, which has stride 1.
  arXiv:2103.00020, Sec. 2.4.
  """

  channels: int
  strides: int

  @nn.compact
  def __call__(self, x):
    pool = halve if self.strides == 2 else lambda x: x
    h = nn.relu(conv(x, self.channels, 1, "conv1"))
    h = pool(nn.relu(conv(h, self.channels, 3, "conv2")))
    h = conv(h, 4 * self.channels, 1, "conv3")
    if self.strides == 2 or x.shape[-1] != h.shape[-1]:
      x = conv(pool(x), 4 * self.channels, 1, "downsample_conv")
    return nn.relu(x + h)


class AttentionPool(nn.Module):
  """What the mean of a map finds in it, x [B, H, W, C] -> [B, embed_dim].

  arXiv:2103.00020, Sec. 2.4: attention whose only query is the mean over the map.
  """

  embed_dim: int
  heads: int

  @nn.compact
  def __call__(self, x):
    B, _, _, C = x.shape
    x = x.reshape(B, -1, C)
    x = jnp.concatenate([x.mean(axis=1, keepdims=True), x], axis=1)
    x += self.param("positional_embedding", normal(C**-0.5), x.shape[1:])[None]
    dense = lambda width, name: nn.Dense(width, kernel_init=normal(C**-0.5), name=name)
    split = lambda x: x.reshape(*x.shape[:2], self.heads, -1)
    q = split(dense(C, "q_proj")(x[:, :1]))
    k, v = (split(dense(C, name)(x)) for name in ("k_proj", "v_proj"))
    h = jax.nn.dot_product_attention(q, k, v)
    return dense(self.embed_dim, "c_proj")(h.reshape(B, C))


class ModifiedResNet(nn.Module):
  """The image tower of RN50 and its like, x [B, R, R, 3] -> [B, embed_dim].

  arXiv:2103.00020, Sec. 2.4: three convolutions at the start, means before strides, attention at
  the end. Batch norm by stored statistics. Raises ValueError for an R that 32 does not divide.
  """

  embed_dim: int
  layers: tuple[int, ...]
  width: int

  @nn.compact
  def __call__(self, x):
    R = x.shape[1]
    method.check("image_resolution", R, R % 32 == 0, "a multiple of 32")
    x = nn.relu(conv(x, self.width // 2, 3, "conv1", strides=2))
    x = nn.relu(conv(x, self.width // 2, 3, "conv2"))
    x = halve(nn.relu(conv(x, self.width, 3, "conv3")))
    for i, n in enumerate(self.layers):
      for j in range(n):
        strides = 2 if i > 0 and j == 0 else 1
        x = Bottleneck(self.width * 2**i, strides, name=f"layer{i + 1}_{j}")(x)
    return AttentionPool(self.embed_dim, x.shape[-1] // 64, name="attnpool")(x)


class CLIP(nn.Module):
  """Both towers; fields as in the authors' code, by default those of ViT-B/32.

  vision_layers: a number, or of a ModifiedResNet one for each of its four stages; such a tower has
  no use for the other fields that start with vision_, but for vision_width.
  vision_head_width, vision_mlp_ratio, activation: 80, 4.0 and "gelu" in OpenCLIP's ViT-H-14; 104,
  4.9231 and "gelu" in its ViT-bigG-14. arXiv:2212.07143.

  All is computed in float32 on every device: a score is not to depend on where it was measured.
  """

  embed_dim: int = 512
  image_resolution: int = 224
  vision_layers: int | tuple[int, ...] = 12
  vision_width: int = 768
  vision_patch_size: int = 32
  context_length: int = 77
  vocab_size: int = 49408
  transformer_width: int = 512
  transformer_heads: int = 8
  transformer_layers: int = 12
  vision_head_width: int = 64
  vision_mlp_ratio: float = 4.0
  activation: str = "quick_gelu"

  def setup(self):
    """Makes `visual` and `text`. Raises ValueError for a head width that is no divisor."""
    if isinstance(self.vision_layers, int):
      D, W = self.vision_width, self.vision_head_width
      method.check("vision_head_width", W, W > 0 and D % W == 0, f"a divisor of vision_width, {D}")
      self.visual = VisionTransformer(
        self.embed_dim,
        self.vision_patch_size,
        D,
        self.vision_layers,
        D // W,
        self.vision_mlp_ratio,
        self.activation,
      )
    else:
      self.visual = ModifiedResNet(self.embed_dim, self.vision_layers, self.vision_width)
    self.text = TextTransformer(
      self.context_length,
      self.vocab_size,
      self.transformer_width,
      self.transformer_heads,
      self.transformer_layers,
      self.activation,
    )
    shape = (self.transformer_width, self.embed_dim)
    self.text_projection = self.param("text_projection", normal(shape[0] ** -0.5), shape)
    self.logit_scale = self.param("logit_scale", nn.initializers.constant(-np.log(0.07)), ())

  def encode_image(self, x):
    """Features [B, embed_dim], not normalised, of x [B, R, R, 3] from `preprocess`.

    R is image_resolution. Raises ValueError for another shape or dtype.
    """
    R = self.image_resolution
    wanted = x.ndim == 4 and x.shape[1:] == (R, R, 3)
    method.check("x.shape", x.shape, wanted, f"[B, {R}, {R}, 3]")
    method.check("x.dtype", str(x.dtype), x.dtype == jnp.float32, "float32, from clip.preprocess")
    with jax.default_matmul_precision("highest"):
      return self.visual(x)

  def encode_text(self, tokens):
    """{"features": [B, embed_dim], not normalised, "hidden": [B, context_length, D]} of texts.

    tokens: int [B, context_length], from `jaxgen.data.text.clip_tokenizer`. hidden: after the last
    normalisation. The features are those of its end token, which has the highest number.
    Raises ValueError for another shape or dtype.
    """
    with jax.default_matmul_precision("highest"):
      hidden = self.text(tokens)
      end = jnp.argmax(tokens, axis=1)[:, None, None]
      features = jnp.take_along_axis(hidden, end, axis=1)[:, 0] @ self.text_projection
    return {"features": features, "hidden": hidden}

  def __call__(self, x, tokens):
    """Logits per image [B, N] and per text [N, B]. arXiv:2103.00020, Fig. 3.

    x: [B, R, R, 3], see `encode_image`. tokens: [N, context_length], see `encode_text`.
    Raises ValueError for other shapes or dtypes.
    """
    unit = lambda h: h / jnp.linalg.norm(h, axis=-1, keepdims=True)
    image = unit(self.encode_image(x))
    text = unit(self.encode_text(tokens)["features"])
    logits = jnp.exp(self.logit_scale) * jnp.matmul(image, text.T, precision="highest")
    return logits, logits.T

"""Gated PixelCNN as the prior over the codes of a first stage.

Conditional Image Generation with PixelCNN Decoders. van den Oord et al., 2016. arXiv:1606.05328.
Beside survey V11: the prior over its codes, survey Eq. 27, and its second stage, survey Box 2.

The first stage, a whole trained model that `experiments/two_stage.py` fills in, turns images into a
grid of codes and back, and is kept frozen under the name "first_stage". The networks of the prior
are those of Fig. 2: gated layers of two stacks with a residual beside the horizontal one; a class
shifts every gate, Eq. 4.

Deviations: Adam takes the place of RMSProp; codes enter as learned vectors.
"""

import jax
import jax.numpy as jnp
import optax

from jaxgen import noise
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.nn import masked_conv
from jaxgen.samplers import autoregressive


def build(
  *,
  image_shape=(128, 128, 3),
  first_stage={
    "model": "vae.vq_vae",
    "args": {
      "image_shape": (128, 128, 3),
      "n_codes": 512,
      "width": 256,
      "res_width": 256,
      "update": "gradient",
    },
  },
  n_classes=1000,
  width=128,
  depth=15,
  kernel=5,
  first_kernel=7,
  tx={"lr": 3e-4},
  ema=0.0,
):
  """The Method; the defaults are for the codes of ImageNet, 32 x 32 of 512.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1].
    first_stage: {"model", "args"} of a config whose `encode` gives tokens; n_codes among the args.
    n_classes: 0, or the number of labels.
    width, depth, kernel, first_kernel: of `masked_conv.GatedPixelCNN`.
    tx, ema: of `optim.adam` and `optim.averages`.

  Raises:
    ValueError: a number out of range, or a first stage that is none or of another image_shape;
      in use, a batch, a cond or tokens that do not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_count("n_classes", n_classes, 0)
  masked_conv.check_sizes(width, depth, kernel, first_kernel)
  fits = set(first_stage) == {"model", "args"} and "n_codes" in first_stage["args"]
  method.check("first_stage", dict(first_stage), fits, "model and args, n_codes among the args")
  first = method.build(first_stage["model"], first_stage["args"])
  grid = _grid(first, image_shape)
  net = masked_conv.GatedPixelCNN(
    first_stage["args"]["n_codes"],
    width=width,
    depth=depth,
    kernel=kernel,
    first_kernel=first_kernel,
    embedding=width,
  )

  def init(key):
    k_first, k_net = jax.random.split(key)
    frozen = first.init(k_first)
    tokens = jnp.zeros((1, *grid, 1), jnp.int32)
    params = net.init(k_net, tokens, vector({"label": jnp.zeros(1, jnp.int32)}))["params"]
    return Vars({"first_stage": frozen.params, "net": params}, {"first_stage": frozen.extra})

  def vector(cond):
    return jax.nn.one_hot(cond["label"], n_classes) if n_classes else None  # Sec. 2.3

  def apply(vars, *args, **options):
    return net.apply({"params": vars.params["net"]}, *args, **options)

  def encode(vars, batch, keys):
    """The first stage's tokens, int32 [B, h, w]."""
    method.check_batch(batch, image_shape, n_classes)
    return first.fns["encode"](method.inner(vars, "first_stage"), batch, keys)

  def decode(vars, latents):
    """{"image": the first stage's, [B, H, W, C], in [-1, 1]}; survey Eq. 28.

    latents: tokens int32 [B, h, w].
    """
    return first.fns["decode"](method.inner(vars, "first_stage"), latents)

  def log_prob(vars, batch, keys):
    """log p(c), in nats, of the codes of an image, not of its pixels, [B]; survey Eq. 27."""
    tokens = encode(vars, batch, keys)[..., None]
    logits = apply(vars, tokens, vector(batch))
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, tokens)
    return -jnp.sum(nats, axis=(1, 2, 3))

  def loss(vars, batch, keys):
    """-log p(c) of a code, in nats: survey Box 2, stage 2."""
    return -log_prob(vars, batch, keys).mean() / (grid[0] * grid[1]), Aux()

  def cache(n):
    """What `step` starts from, for n images: a tree of arrays [n, ...]."""
    return net.cache(n, grid[1])

  def step(vars, cache, token, position, cond={}):
    """Logits [n, K] of the code at `position`, a scalar, and the cache, a tree of [n, ...].

    token: int32 [n], the code before. cond: {"label": int32 [n]}, or {} without classes.
    """
    return apply(vars, cache, token, position, vector(cond), method="step")

  def sample(vars, keys, cond={}, *, temperature=1.0):
    """{"image": [n, *image_shape], in [-1, 1]}: codes one after another, survey Eq. 27, decoded.

    cond: {"label": int32 [n]}; by default labels are drawn. temperature: of the codes.
    """
    method.check_cond(cond, n_classes)
    k_codes, k_label = noise.split(keys)
    if n_classes and not cond:
      cond = {"label": noise.randint(k_label, 0, n_classes)}
    advance = lambda cache, token, position: step(vars, cache, token, position, cond)
    start, n_tokens = cache(len(keys)), grid[0] * grid[1]
    tokens = autoregressive.sample(advance, start, k_codes, n_tokens, temperature=temperature)
    return decode(vars, tokens.reshape(-1, *grid))

  fns = (sample, log_prob, encode, decode, cache, step)
  return Method(
    init,
    {"prior": Phase(loss, ("net",), optim.adam(**tx))},
    ema=optim.averages("net", ema),
    fns={fn.__name__: fn for fn in fns},
    coded=True,
  )


def _grid(first, image_shape):
  """(h, w) of the tokens of an image."""

  def encode():
    batch = {"image": jnp.zeros((1, *image_shape))}
    k_init, k_encode = jax.random.split(jax.random.key(0))
    return first.fns["encode"](first.init(k_init), batch, noise.rows(k_encode, 1))

  return jax.eval_shape(encode).shape[1:]

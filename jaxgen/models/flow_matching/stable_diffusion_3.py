"""Stable Diffusion 3: Scaling Rectified Flow Transformers for High-Resolution Image Synthesis.

Esser et al., 2024. arXiv:2403.03206.

Survey R03, Sec. 7.2.

Rectified flow on the latents of an autoencoder, with training times that are frequent in the middle
and moved to the noise at high resolution, and a transformer of two streams, text and image. Texts
come encoded, as arrays. Deviations: with n_classes there is no text, but a trained table of what an
encoder would say of each class; pixels may take the place of latents. Latents as the authors' code
has them, (z - 0.0609) 1.5305, are a matter of the data.
"""

import math

import jax
import jax.numpy as jnp
import numpy as np

from jaxgen import nn, noise, paths, samplers
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.nn import embeddings, mmdit
from jaxgen.objectives import change_of_variables, velocity
from jaxgen.objectives import times as times_lib
from jaxgen.samplers import guidance

# What CLIP L/14, CLIP G/14 and T5 XXL write: first and last tokens and channels of the context, and
# channels of the embedding. App. B.
ENCODERS = (
  ((0, 77), (0, 768), (0, 768)),
  ((0, 77), (768, 2048), (768, 2048)),
  ((77, 154), (0, 4096), (0, 0)),
)


def drop_text(keys, context, embedding, rate, encoders):
  """(context [B, L, K], embedding [B, P]) with zeros for what an encoder wrote, each at this rate.

  So a text is whole, in part or, at the cube of the rate, not there: arXiv:2403.03206, Sec. 5.3.3.
  keys: [B]. rate: a scalar. encoders: three parts, of tokens of L, of channels of K and of P, each
  (first, last) scalars, as in ENCODERS; () is one that wrote everything.
  """
  L, K, P = *context.shape[1:], *embedding.shape[1:]
  encoders = encoders or (((0, L), (0, K), (0, P)),)
  of_context = np.full((L, K), len(encoders))  # by whom each number is; zeros are by nobody
  of_embedding = np.full(P, len(encoders))
  for i, (tokens, channels, whole) in enumerate(encoders):
    of_context[slice(*tokens), slice(*channels)] = i
    of_embedding[slice(*whole)] = i
  dropped = jnp.pad(noise.bernoulli(keys, rate, (len(encoders),)), ((0, 0), (0, 1)))
  drop = lambda x, of: jnp.where(dropped[:, of], 0.0, x)
  return drop(context, of_context), drop(embedding, of_embedding)


def build(
  *,
  image_shape=(128, 128, 16),
  context_shape=(154, 4096),
  embedding_size=2048,
  encoders=ENCODERS,
  text_dropout=0.464,
  n_classes=0,
  net_args={"depth": 24, "patch_size": 2},
  times="logit_normal",
  times_args={},
  shift=3.0,
  tx={"lr": 1e-4, "warmup": 1000},
  ema=0.9999,
  accumulate=1,
  sampler={"name": "euler", "steps": 50, "grid": {"name": "shifted", "shift": 3.0}},
  guidance_weight=4.0,
  pixels=False,
  ode_steps=100,
):
  """The Method; the defaults are the paper's model of 2 billion parameters at 1024x1024.

  Args:
    image_shape: (H, W, C) of batches and samples: latents, or pixels in [-1, 1].
    context_shape, embedding_size: (L, K) and P of a text: `context` [B, L, K], its tokens, and
      `embedding` [B, P], the whole of it, in batches and in cond.
    encoders: who wrote which part of them, see `drop_text`.
    text_dropout: how often training drops what one of the encoders wrote.
    n_classes: 0, or the number of labels, which then take the place of texts.
    net_args: fields of `nn.mmdit.MMDiT`.
    times, times_args: density of training times, of `objectives.times.by_name`, and its options.
    shift: of `objectives.times.shift`, alpha of training times; 1 shifts none.
    tx, ema: of `optim.adam` and `optim.averages`. accumulate: micro-batches an update.
    sampler: of `samplers.draw`: a name, steps and options.
    guidance_weight: w; 0 does not guide. The paper's scale is 1 + w.
    pixels: whether images are pixels, of which alone, with labels, it offers a log_prob.
    ode_steps: of Heun's method in log_prob.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  (L, K), P = _check_text(context_shape, embedding_size, encoders)
  method.check_unit("text_dropout", text_dropout)
  method.check_count("n_classes", n_classes, 0)
  method.check_number("guidance_weight", guidance_weight, math.isfinite, "a finite number")
  method.check_positive("shift", shift)
  method.check("pixels", pixels, isinstance(pixels, bool), "True or False")
  method.check_count("ode_steps", ode_steps)
  density = times_lib.by_name(times, times_args)
  path = paths.Linear()
  samplers.check(path, sampler)
  net = nn.module(mmdit.MMDiT, "net_args", net_args, out_channels=image_shape[-1])
  net.check(*image_shape[:2])
  texts = {} if n_classes else {"context": (L, K), "embedding": (P,)}

  def init(key):
    k_net, k_text = jax.random.split(key)
    x, context, embedding = (jnp.zeros((1, *s)) for s in (image_shape, (L, K), (P,)))
    params = net.init(k_net, x, jnp.zeros(1), context, embedding)["params"]
    if n_classes:
      params["text"] = jax.random.normal(k_text, (n_classes, L * K + P))
    return Vars({"net": params})

  def text_of(vars, cond):
    """(context, embedding), those of labels from the table; None, no text, for {}."""
    if texts or not cond:
      return (cond["context"], cond["embedding"]) if cond else None
    text = embeddings.one_hot(cond["label"], n_classes) @ vars.params["net"]["text"]
    return text[:, : L * K].reshape(-1, L, K), text[:, L * K :]

  def velocity_fn(vars, text):
    def fn(x_t, t):
      n = len(x_t)
      context, embedding = text or (jnp.zeros((n, L, K)), jnp.zeros((n, P)))
      variables = {"params": vars.params["net"], **vars.extra.get("net", {})}
      # As in the authors' code time is 1000 at the noise, and velocities point there.
      return -net.apply(variables, x_t, 1000.0 * (1.0 - t), context, embedding)

    return fn

  def loss(vars, batch, keys):
    method.check_batch(batch, image_shape, n_classes)
    method.check_given(batch, texts)
    k_loss, k_text, k_t = noise.split(keys, 3)
    text = drop_text(k_text, *text_of(vars, batch), text_dropout, () if n_classes else encoders)
    t = times_lib.shift(density(noise.uniform(k_t)), alpha=shift)
    fn = velocity_fn(vars, text)
    return velocity.flow_matching(fn, batch["image"], k_loss, path=path, t=t).mean(), Aux()

  def field(vars, cond={}, *, w=guidance_weight):
    """cond: {"context": [n, L, K], "embedding": [n, P]}; with classes {"label": int32 [n]}, or {}.

    Guidance is away from no text, which is zeros.
    """
    method.check_number("w", w, math.isfinite, "a finite number")
    if texts:
      method.check_given(cond, texts)
    else:
      method.check_cond(cond, n_classes)
    of = lambda text: paths.velocity_field(path, velocity_fn(vars, text))
    conditional = of(text_of(vars, cond))
    return guidance.classifier_free(conditional, of(None), w) if w and cond else conditional

  def sample(vars, keys, cond={}, *, w=guidance_weight, **options):
    """{"image": [n, *image_shape]}: latents, or pixels about [-1, 1], which are not clipped.

    cond, w: of `field`; a `name` in options replaces `sampler`.
    """
    return {"image": samplers.draw(field(vars, cond, w=w), keys, image_shape, sampler, **options)}

  def log_prob(vars, batch, keys):
    """A lower bound on log P of 8-bit images, in nats [B].

    Of the null class, or given the labels where text_dropout is 0.
    """
    cond = guidance.likelihood_cond(batch, image_shape, n_classes, text_dropout)
    fn = velocity_fn(vars, text_of(vars, cond))
    return change_of_variables.flow_log_prob(fn, batch["image"], keys, path, ode_steps)

  bounded = {"log_prob": log_prob} if pixels and n_classes else {}
  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx), accumulate=accumulate)},
    ema=optim.averages("net", ema),
    fns={"sample": sample, "field": field, **bounded},
    given=tuple(texts),
  )


def _check_text(context_shape, embedding_size, encoders):
  method.check_counts("context_shape", context_shape)
  method.check("context_shape", context_shape, len(context_shape) == 2, "two whole numbers, (L, K)")
  method.check_count("embedding_size", embedding_size)
  sizes = (*context_shape, embedding_size)
  inside = lambda part, size: 0 <= part[0] <= part[1] <= size
  for i, encoder in enumerate(encoders):
    good = np.shape(encoder) == (3, 2) and all(map(inside, encoder, sizes))
    method.check(f"encoders[{i}]", encoder, good, "three parts of context_shape and embedding_size")
  return tuple(context_shape), embedding_size

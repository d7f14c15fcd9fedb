"""WGAN-GP: Improved Training of Wasserstein GANs. Gulrajani et al., 2017. arXiv:1704.00028.

Survey G06, Box 4.

A critic whose gradient is pulled to length one, five of its updates to one of the generator's, and
the residual networks of Sec. 5.3 and App. C (layers and initialisation of the authors' code,
igul222/improved_wgan_training). With classes: conditional batch norm in the generator and a
classifier beside the critic's score, as in the paper's supervised rows.

Deviations: samples are made with moving averages of the batch statistics, so that none depends on
the others of its batch; the authors' code uses those of the batch, and adds uniform noise to
the 8-bit images, which the paper does not mention.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxgen import nn as nets
from jaxgen import noise
from jaxgen.core import axis, method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.objectives import adversarial

he = nn.initializers.variance_scaling(2.0, "fan_avg", "uniform")
glorot = nn.initializers.xavier_uniform()


class BatchNorm(nn.Module):
  """Batch norm over the global batch, with a scale and a shift for each class where labels are."""

  train: bool
  dtype: jnp.dtype
  n_classes: int = 0

  @nn.compact
  def __call__(self, x, label=None):
    """x: [B, H, W, C]; label: int32 [B], where n_classes > 0."""
    affine = not self.n_classes
    x = nn.BatchNorm(
      not self.train,
      momentum=0.9,
      dtype=self.dtype,
      use_scale=affine,
      use_bias=affine,
      axis_name=axis.name(),
      name="norm",
    )(x)
    if affine:
      return x
    table = lambda init, name: nn.Embed(
      self.n_classes, x.shape[-1], dtype=self.dtype, embedding_init=init, name=name
    )(label)[:, None, None, :]
    ones, zeros = nn.initializers.ones, nn.initializers.zeros
    return table(ones, "scale") * x + table(zeros, "shift")


class Generator(nn.Module):
  """z -> images: residual blocks that double the resolution, with batch norm. App. C."""

  image_shape: tuple[int, int, int]
  channels: tuple[int, ...] = (128, 128, 128, 128)  # at the bottom, and after each block
  n_classes: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, z, label=None, *, train):
    """z: [B, D]; label: int32 [B] -> [B, H, W, C] in (-1, 1), float32. train: see `BatchNorm`."""
    height, width, out = self.image_shape
    scale = 2 ** (len(self.channels) - 1)
    bottom = (height // scale, width // scale, self.channels[0])
    norm = lambda x, name, n_classes=0: nn.relu(
      BatchNorm(train, self.dtype, n_classes, name=name)(x, label)
    )
    conv = lambda n, size, init, name: nn.Conv(
      n, (size, size), kernel_init=init, dtype=self.dtype, name=name
    )
    x = nn.Dense(math.prod(bottom), kernel_init=glorot, dtype=self.dtype, name="in")(z)
    x = x.reshape(-1, *bottom)
    for i, n in enumerate(self.channels[1:]):
      shortcut = double(conv(n, 1, glorot, f"block_{i}_shortcut")(x))
      x = double(norm(x, f"block_{i}_norm_0", self.n_classes))
      x = conv(n, 3, he, f"block_{i}_conv_0")(x)
      x = norm(x, f"block_{i}_norm_1", self.n_classes)
      x = shortcut + conv(n, 3, he, f"block_{i}_conv_1")(x)
    x = conv(out, 3, glorot, "out")(norm(x, "out_norm"))
    return jnp.tanh(x.astype(jnp.float32))


class Critic(nn.Module):
  """Images -> scores: residual blocks without normalisation, the first `downs` of which halve."""

  channels: tuple[int, ...] = (128, 128, 128, 128)  # after each block
  downs: int = 2
  n_classes: int = 0
  dtype: jnp.dtype = jnp.float32

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C] -> scores [B] and, with classes, their logits [B, n_classes]; float32."""
    conv = lambda n, size, init, name: nn.Conv(
      n, (size, size), kernel_init=init, dtype=self.dtype, name=name
    )
    for i, n in enumerate(self.channels):
      down, before = i < self.downs, x.shape[-1]
      pool = halve if down else lambda x: x
      # The first block sees pixels: no activation before it, and more channels at once.
      h = conv(before if i and down else n, 3, he, f"block_{i}_conv_0")(nn.relu(x) if i else x)
      h = pool(conv(n, 3, he, f"block_{i}_conv_1")(nn.relu(h)))
      if down or before != n:
        x = conv(n, 1, glorot, f"block_{i}_shortcut")(pool(x))
      x += h
    x = nn.relu(x).mean((1, 2)).astype(jnp.float32)
    score = nn.Dense(1, kernel_init=glorot, name="out")(x)[:, 0]
    if not self.n_classes:
      return score, None
    return score, nn.Dense(self.n_classes, kernel_init=glorot, name="classes")(x)


class MLPGenerator(nn.Module):
  """z -> points or small images, unbounded: the networks of the paper's toy data, Fig. 1."""

  image_shape: tuple[int, int, int]
  width: int = 512

  @nn.compact
  def __call__(self, z, label=None, *, train):
    """z: [B, D] -> [B, H, W, C]; no label is read, and train changes nothing: no batch norm."""
    del label, train
    x = _hidden(z, self.width)
    return nn.Dense(math.prod(self.image_shape), name="out")(x).reshape(-1, *self.image_shape)


class MLPCritic(nn.Module):
  """Points or small images -> scores, as `Critic` without classes."""

  width: int = 512

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C] -> scores [B], None."""
    return nn.Dense(1, name="out")(_hidden(x.reshape(len(x), -1), self.width))[:, 0], None


def _hidden(x, width):
  for i in range(3):
    x = nn.relu(nn.Dense(width, kernel_init=nn.initializers.he_uniform(), name=f"hidden_{i}")(x))
  return x


def double(x):
  """Each pixel twice along both sides: x [B, H, W, C] -> [B, 2 H, 2 W, C]."""
  b, h, w, c = x.shape
  return jnp.broadcast_to(x[:, :, None, :, None], (b, h, 2, w, 2, c)).reshape(b, 2 * h, 2 * w, c)


def halve(x):
  """Means of 2x2 pixels: x [B, H, W, C] -> [B, H / 2, W / 2, C]."""
  return nn.avg_pool(x, (2, 2), (2, 2))


NETS = {"ResNet": (Generator, Critic), "MLP": (MLPGenerator, MLPCritic)}


def build(
  *,
  image_shape=(32, 32, 3),
  n_classes=0,
  net="ResNet",
  gen_args={"channels": (128, 128, 128, 128)},
  critic_args={"channels": (128, 128, 128, 128), "downs": 2},
  z_dim=128,
  gp_weight=10.0,
  n_critic=5,
  gen_rows=2,
  class_weights=(1.0, 0.1),
  tx={"lr": 2e-4, "b1": 0.0, "b2": 0.9, "decay": "linear", "steps": 100_000},
  ema=0.0,
):
  """The Method; the defaults are the paper's CIFAR-10 ResNet, unsupervised.

  Args:
    image_shape: (H, W, C) of batches, in [-1, 1], and samples, which an MLP does not bound.
    n_classes: 0, or the number of labels.
    net: "ResNet", or "MLP" for points; gen_args, critic_args: fields of its two networks.
    z_dim: length of z. gp_weight: lambda. n_critic: critic updates to one of the generator.
    gen_rows: samples for each row of the batch in the generator's update.
    class_weights: of the cross-entropy in the losses of critic and generator.
    tx, ema: of `optim.adam` and `optim.averages`. Its warmup and steps are those of the generator;
      the critic's are n_critic times as many. Batch statistics are those of the raw network.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  for name, count in (("z_dim", z_dim), ("n_critic", n_critic), ("gen_rows", gen_rows)):
    method.check_count(name, count)
  method.check_count("n_classes", n_classes, 0)
  method.check_weight("gp_weight", gp_weight)
  pair = isinstance(class_weights, (tuple, list)) and len(class_weights) == 2
  method.check("class_weights", class_weights, pair, "two, critic's and generator's")
  for weight in class_weights:
    method.check_weight("class_weights", weight)
  method.check("net", net, net in NETS, f"one of {', '.join(NETS)}")
  classes = {"n_classes": n_classes} if net == "ResNet" else {}
  method.check("n_classes", n_classes, net == "ResNet" or not n_classes, "0 for net='MLP'")
  gen = nets.module(NETS[net][0], "gen_args", gen_args, image_shape=image_shape, **classes)
  critic = nets.module(NETS[net][1], "critic_args", critic_args, **classes)
  if net == "ResNet":
    for name, module in (("gen_args", gen), ("critic_args", critic)):
      method.check(f"{name}.channels", module.channels, module.channels, "at least one number")
    fits = critic.downs in range(len(critic.channels) + 1)
    method.check(
      "critic_args.downs", critic.downs, fits, f"0 to {len(critic.channels)}, its blocks"
    )
    factor = 2 ** max(len(gen.channels) - 1, critic.downs)
    fits = all(side % factor == 0 for side in image_shape[:2])
    method.check("image_shape", image_shape, fits, f"height and width divisible by {factor}")

  def init(key):
    k_gen, k_critic = jax.random.split(key)
    label = jnp.zeros(1, jnp.int32)
    g = gen.init(k_gen, jnp.zeros((1, z_dim)), label, train=True)
    c = critic.init(k_critic, jnp.zeros((1, *image_shape)))
    params = {"gen": g.pop("params"), "critic": c["params"]}
    return Vars(params, {"gen": g} if g else {})

  def generate(vars, keys, label, *, train):
    """Samples [B, H, W, C], and the batch statistics after them."""
    z = noise.normal(keys, (z_dim,))
    variables = {"params": vars.params["gen"], **vars.extra.get("gen", {})}
    return gen.apply(variables, z, label, train=train, mutable=["batch_stats"])

  def critique(vars, x):
    return critic.apply({"params": vars.params["critic"]}, x)

  def cross_entropy(logits, label):
    return optax.softmax_cross_entropy_with_integer_labels(logits, label).mean()

  def critic_loss(vars, batch, keys):
    """The mean of L in survey Box 4; with classes, plus the weighted cross-entropy."""
    method.check_batch(batch, image_shape, n_classes)
    x, label = batch["image"].astype(jnp.float32), batch.get("label")
    k_z, k_gp = noise.split(keys)
    x_fake, _ = generate(vars, k_z, label, train=True)
    (real, logits), (fake, _) = critique(vars, x), critique(vars, x_fake)
    distance = -adversarial.wasserstein_critic(real, fake)
    penalty = adversarial.gradient_penalty(lambda x: critique(vars, x)[0], k_gp, x, x_fake).mean()
    loss, metrics = gp_weight * penalty - distance, {"wasserstein": distance, "penalty": penalty}
    if n_classes:
      metrics["accuracy"] = jnp.mean(logits.argmax(-1) == label)
      loss += class_weights[0] * cross_entropy(logits, label)
    return loss, Aux(metrics)

  def gen_loss(vars, batch, keys):
    """Alg. 1, line 12; of `batch` only the number of rows is used."""
    keys = noise.repeat(keys, gen_rows)
    k_z, k_label = noise.split(keys)
    label = noise.randint(k_label, 0, n_classes) if n_classes else None
    x_fake, stats = generate(vars, k_z, label, train=True)
    fake, logits = critique(vars, x_fake)
    loss = adversarial.wasserstein_generator(fake)
    if n_classes:
      loss += class_weights[1] * cross_entropy(logits, label)
    return loss, Aux(extra={"gen": stats} if stats else {})

  def sample(vars, keys, cond={}):
    """{"image": [n, *image_shape]}. cond: {"label": int32 [n]}; by default labels are drawn."""
    method.check_cond(cond, n_classes)
    k_z, k_label = noise.split(keys)
    label = cond.get("label", noise.randint(k_label, 0, n_classes) if n_classes else None)
    return {"image": generate(vars, k_z, label, train=False)[0]}

  critic_tx = {k: n_critic * v if k in ("warmup", "steps") else v for k, v in tx.items()}
  return Method(
    init,
    {
      "critic": Phase(critic_loss, ("critic",), optim.adam(**critic_tx), repeats=n_critic),
      "gen": Phase(gen_loss, ("gen",), optim.adam(**tx)),
    },
    ema=optim.averages("gen", ema),
    fns={"sample": sample},
    serves=("gen",),
  )

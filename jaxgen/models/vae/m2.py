"""M2: Semi-Supervised Learning with Deep Generative Models. Kingma, Rezende, Mohamed, Welling,
2014. arXiv:1406.5298.

Survey V08, Sec. 2.5.

A variational autoencoder of an image x with a class y and a style z. Encoder and decoder are given
y where it is known; where not, a classifier q(y | x) weighs all classes. A batch has equally many
rows of both kinds: `image`, whose label is not read, and `labelled` with its `label`. The objective
sums over N_u points without a label and N_l with one:

  sum_u U(x) + sum_l L(x, y) + alpha N mean_l -log q(y | x),  N = N_l + N_u  (Eq. 8-9)

Divided by N_u, the sums are means over rows: mean U + N_l / N_u mean L + alpha N / N_u mean -log q.

Networks have one hidden layer of softplus, Sec. 4, and are made as in the official code
(github.com/dpkingma/nips14-ssl): a weight matrix for each input of a layer, and a log variance that
starts at 0 and depends on y too.

Deviations: biases start at 0; the parameters have no prior; the images without a label may be those
with one.
"""

import functools
import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxgen import noise
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.objectives import elbo, likelihood

# The official code's start: classes that are alike, until labels tell them apart.
dense = functools.partial(nn.Dense, kernel_init=nn.initializers.normal(1e-3))


class Classifier(nn.Module):
  """The logits of q(y | x). Eq. 4."""

  width: int
  n_classes: int

  @nn.compact
  def __call__(self, x):
    """x: [B, D] -> [B, n_classes]."""
    h = nn.softplus(dense(self.width, name="hidden")(x))
    return dense(self.n_classes, name="logits")(h)


class Encoder(nn.Module):
  """The mean and the log variance of q(z | x, y). Eq. 4."""

  width: int
  z_dim: int

  @nn.compact
  def __call__(self, x, y):
    """x: [B, D], y: [N * B, Y], a class for every x, then the next for every x: two of [N * B, Z].

    What x adds to the hidden layer is computed once for all its classes.
    """
    h = dense(self.width, name="x")(x)
    h = jnp.tile(h, (len(y) // len(x), 1)) + dense(self.width, use_bias=False, name="y")(y)
    h = nn.softplus(h)
    log_var = nn.Dense(self.z_dim, kernel_init=nn.initializers.zeros, name="log_var")(h)
    return dense(self.z_dim, name="mean")(h), log_var


class Decoder(nn.Module):
  """The logits of p(x | y, z), independent coins. Eq. 2."""

  width: int
  dims: int

  @nn.compact
  def __call__(self, z, y):
    """z: [B, Z], y: [B, Y] -> [B, D]."""
    h = dense(self.width, name="z")(z) + dense(self.width, use_bias=False, name="y")(y)
    return dense(self.dims, name="logits")(nn.softplus(h))


def build(
  *,
  image_shape=(28, 28, 1),
  n_classes=10,
  n_labelled=100,
  n_unlabelled=49_900,
  alpha=0.1,
  z_dim=50,
  width=500,
  tx={"lr": 3e-4},
  ema=0.0,
):
  """The Method; the defaults are the paper's for MNIST with 100 labels.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1]; pixels are binarised when seen.
    n_classes: the number of labels, all as likely.
    n_labelled, n_unlabelled: N_l and N_u, how many such points the training data has.
    alpha: weight of the classifier's own loss, a share of N; the paper's 0.1 N is 0.1.
    z_dim: length of z. width: of the hidden layers.
    tx, ema: of `optim.adam` and `optim.averages`; all three networks are averaged.

  Raises:
    ValueError: a number out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_count("n_classes", n_classes, 2)
  method.check_count("n_labelled", n_labelled)
  method.check_count("n_unlabelled", n_unlabelled)
  method.check_weight("alpha", alpha)
  method.check_count("z_dim", z_dim)
  method.check_count("width", width)
  dims, log_prior = math.prod(image_shape), -math.log(n_classes)
  nets = {
    "classifier": Classifier(width, n_classes),
    "encoder": Encoder(width, z_dim),
    "decoder": Decoder(width, dims),
  }

  def init(key):
    x, y, z = jnp.zeros((1, dims)), jnp.zeros((1, n_classes)), jnp.zeros((1, z_dim))
    inputs = {"classifier": (x,), "encoder": (x, y), "decoder": (z, y)}
    keys = jax.random.split(key, len(nets))
    made = {k: nets[k].init(key, *inputs[k]) for k, key in zip(nets, keys, strict=True)}
    return Vars({name: v["params"] for name, v in made.items()})

  def apply(vars, name, *inputs):
    return nets[name].apply({"params": vars.params[name]}, *inputs)

  def flat(image):
    return image.astype(jnp.float32).reshape(len(image), dims)

  def log_q(vars, x):
    """log q(y | x) of every class, [B, Y], in nats."""
    return jax.nn.log_softmax(apply(vars, "classifier", x))

  def with_posterior(fn, vars, x, y, keys):
    """fn(z -> log p(x | y, z) [N * B], mean, log_var, keys); x [B, D], y and keys as `Encoder`."""
    mean, log_var = apply(vars, "encoder", x, y)
    x = jnp.tile(x, (len(y) // len(x), 1))
    log_likelihood = lambda z: likelihood.bernoulli(x, apply(vars, "decoder", z, y)).sum(1)
    return fn(log_likelihood, mean, log_var, keys)

  def of_classes(fn, vars, x, keys):
    """What `with_posterior` gives of each class in one batch of N * B rows, as arrays [B, Y]."""
    y = jnp.repeat(jnp.eye(n_classes), len(x), axis=0)
    found = with_posterior(fn, vars, x, y, noise.repeat(keys, n_classes))
    return jax.tree.map(lambda v: v.reshape(n_classes, len(x)).T, found)

  def labelled_bound(vars, x, label, keys):
    """-L(x, y) <= log p(x, y) in nats, [B]. Eq. 6."""
    y = jax.nn.one_hot(label, n_classes)
    reconstruction, kl = with_posterior(elbo.gaussian_bound, vars, x, y, keys)
    return reconstruction + log_prior - kl

  def unlabelled_bound(vars, x, keys):
    """-U(x) <= log p(x) in nats, [B]. Eq. 7."""
    reconstruction, kl = of_classes(elbo.gaussian_bound, vars, x, keys)
    return elbo.marginal_bound(reconstruction + log_prior - kl, log_q(vars, x))

  def loss(vars, batch, keys):
    """The objective over N_u, in nats of one image without a label. Eq. 9."""
    method.check_batch(batch, image_shape, n_classes)
    method.check_given(batch, {"labelled": image_shape})
    k_image, k_labelled, k_u, k_l = noise.split(keys, 4)
    x = likelihood.binarize(k_labelled, flat(batch["labelled"]))
    logits = apply(vars, "classifier", x)
    nll = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"]).mean()
    labelled = -labelled_bound(vars, x, batch["label"], k_l).mean()
    x = likelihood.binarize(k_image, flat(batch["image"]))
    unlabelled = -unlabelled_bound(vars, x, k_u).mean()
    weight = alpha * (n_labelled + n_unlabelled)
    total = unlabelled + (n_labelled * labelled + weight * nll) / n_unlabelled
    metrics = {"unlabelled": unlabelled, "labelled": labelled, "classification": nll}
    return total, Aux({**metrics, "accuracy": jnp.mean(logits.argmax(-1) == batch["label"])})

  def binarized(batch, keys):
    """x [B, D] in {0, 1}, and keys for what comes after."""
    method.check_batch(batch, image_shape, 0)
    k_data, keys = noise.split(keys)
    return likelihood.binarize(k_data, flat(batch["image"])), keys

  def bound(vars, batch, keys):
    """{"reconstruction": E_q(y | x) log p(x | y, z) [B], of one z a class, "kl": [B, 2]}, in nats.

    The two of kl are KL(q(y | x) || p(y)) and the mean over q(y | x) of KL(q(z | x, y) || p(z)).
    """
    x, keys = binarized(batch, keys)
    log_q_y = log_q(vars, x)
    mean = lambda of_y: jnp.sum(jnp.exp(log_q_y) * of_y, axis=1)
    reconstruction, kl = of_classes(elbo.gaussian_bound, vars, x, keys)
    kls = jnp.stack([mean(log_q_y - log_prior), mean(kl)], axis=1)
    return {"reconstruction": mean(reconstruction), "kl": kls}

  def log_prob(vars, batch, keys, *, samples=0):
    """A lower bound on log P(x) in nats, [B], of images binarised by `keys`, without their labels.

    samples: how many z a class a bound by importance sampling draws, closer to log P; its sum over
    the classes is exact, and it does not depend on the classifier. arXiv:1509.00519, Eq. 8.
    """
    x, keys = binarized(batch, keys)
    if not samples:
      return unlabelled_bound(vars, x, keys)
    of_q = lambda *q: elbo.importance_bound(elbo.log_weights(*q, samples=samples))
    return jax.nn.logsumexp(of_classes(of_q, vars, x, keys) + log_prior, axis=1)

  def detect(vars, batch):
    """{"score": [B], log-prob in nats of the likeliest class, "logits": [B, Y]} of q(y | x).

    The classifier sees the chances (x + 1) / 2 of the coins, not their draws.
    """
    method.check_batch(batch, image_shape, 0)
    logits = apply(vars, "classifier", 0.5 + 0.5 * flat(batch["image"]))
    return {"score": jax.nn.log_softmax(logits).max(-1), "logits": logits}

  def encode(vars, batch, keys):
    """Style z and a one-hot class y, [B, Z + Y], drawn from q(y | x) and q(z | x, y)."""
    x, keys = binarized(batch, keys)
    k_y, k_z = noise.split(keys)
    drawn = jnp.argmax(log_q(vars, x) + noise.gumbel(k_y, (n_classes,)), axis=1)
    y = jax.nn.one_hot(drawn, n_classes)
    z = elbo.reparameterize(k_z, *apply(vars, "encoder", x, y))
    return jnp.concatenate([z, y], axis=1)

  def decode(vars, latents):
    """{"image": E[x | y, z], [B, H, W, C]} in (-1, 1). latents: [B, Z + Y], as of `encode`.

    Another class beside the same style makes an analogy, Fig. 1.
    """
    logits = apply(vars, "decoder", latents[:, :z_dim], latents[:, z_dim:])
    return {"image": likelihood.bernoulli_mean(logits).reshape(-1, *image_shape)}

  def sample(vars, keys, cond={}):
    """{"image": [n, *image_shape]}: E[x | y, z] at z ~ N(0, I), in (-1, 1).

    cond: {"label": int32 [n]}, or {}, which draws the classes.
    """
    method.check_cond(cond, n_classes)
    k_y, k_z = noise.split(keys)
    y = jax.nn.one_hot(cond["label"] if cond else noise.randint(k_y, 0, n_classes), n_classes)
    return decode(vars, jnp.concatenate([noise.normal(k_z, (z_dim,)), y], axis=1))

  return Method(
    init,
    {"m2": Phase(loss, tuple(nets), optim.adam(**tx))},
    ema={k: v for name in nets for k, v in optim.averages(name, ema).items()},
    fns={
      "sample": sample, "log_prob": log_prob, "bound": bound, "encode": encode, "decode": decode,
      "detect": detect,
    },
  )  # fmt: skip

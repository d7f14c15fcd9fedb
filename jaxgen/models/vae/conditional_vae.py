"""Learning Structured Output Representation using Deep Conditional Generative Models.

Sohn, Lee, Yan, 2015.
https://proceedings.neurips.cc/paper/2015/hash/8d55a249e6baa5c06772297520da2051-Abstract.html
Survey V07, Eq. 22, Box 1.

CVAE: an image y given `start`, x, both in [-1, 1], on the bound of survey Eq. 22. A baseline
predicts y from x alone; its guess and x are what the prior p(z | x) and the generation network
p(y | x, z) see (the paper's recurrent connection).
Two kinds of data: images of which quadrants are missing, and pairs of images.

Deviations: the baseline is trained beside the rest, not before it, and gets no gradient from it;
sizes of layers are those of Pyro's example. x is seen as it is; y is binarised, anew each time it
is seen, which changes nothing in data that are binary already.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen import noise
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.models.vae import vae
from jaxgen.objectives import elbo


class MLP(nn.Module):
  """Two hidden layers of ReLU, then a linear map for each of `heads` results."""

  width: int
  out: int
  heads: int

  @nn.compact
  def __call__(self, *inputs):
    """inputs: arrays [B, D]. Returns one or a list of [B, out]."""
    h = jnp.concatenate(inputs, axis=-1)
    for _ in range(2):
      h = nn.relu(nn.Dense(self.width)(h))
    found = [nn.Dense(self.out)(h) for _ in range(self.heads)]
    return found[0] if self.heads == 1 else found


# x [B, D] -> which numbers of y are predicted, 1 or 0, [B, D].
TARGETS = {
  "missing": lambda x: jnp.float32(x == 0.0),  # no 8-bit pixel is 0 in [-1, 1]
  "all": jnp.ones_like,
}


def build(
  *,
  image_shape=(28, 28, 1),
  target="missing",
  decoder="bernoulli",
  z_dim=200,
  width=500,
  samples=1,
  alpha=1.0,
  tx={"lr": 1e-3},
  ema=0.0,
):
  """The Method, for MNIST of which quadrants are given; survey Eq. 22, Box 1.

  Args:
    image_shape: (H, W, C) of `image` and `start`, in [-1, 1].
    target: "missing" predicts `image` where `start` is 0; "all" predicts it all.
    decoder: "bernoulli" or "gaussian", of vae.DECODERS.
    z_dim: length of z. width: of the hidden layers.
    samples: L, how many z an image the loss averages over.
    alpha: weight of the CVAE's loss; the rest is that of the GSNN, whose z is the prior's.
    tx, ema: of `optim.adam` and `optim.averages`; all networks are averaged.

  Raises:
    ValueError: a number or a name out of range; in use, a batch or cond that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check("target", target, target in TARGETS, f"one of {', '.join(TARGETS)}")
  method.check("decoder", decoder, decoder in vae.DECODERS, f"one of {', '.join(vae.DECODERS)}")
  method.check_count("z_dim", z_dim)
  method.check_count("width", width)
  method.check_count("samples", samples)
  method.check_unit("alpha", alpha)
  dims, p = math.prod(image_shape), vae.DECODERS[decoder]
  given = {"start": image_shape}
  pixels, normal = MLP(width, dims, p.outputs), MLP(width, z_dim, 2)
  nets = {"baseline": pixels, "recognition": normal, "prior": normal, "generation": pixels}
  inputs = {
    "baseline": (dims,),  # x
    "recognition": (dims, dims),  # x, y
    "prior": (dims, dims),  # x, guess
    "generation": (dims, dims, z_dim),  # x, guess, z
  }

  def init(key):
    keys = dict(zip(nets, jax.random.split(key, len(nets)), strict=True))
    zeros = lambda name: (jnp.zeros((1, n)) for n in inputs[name])
    return Vars({k: net.init(keys[k], *zeros(k))["params"] for k, net in nets.items()})

  def run(vars, name, *inputs):
    return nets[name].apply({"params": vars.params[name]}, *inputs)

  def flat(x):
    return x.astype(jnp.float32).reshape(len(x), dims)

  def score(y, predicted, scored):
    return jnp.sum(scored * (p.log_prob(y, predicted) + p.unit), axis=1)

  def observe(batch, keys):
    """x, y as the decoder takes it where it is predicted, and where that is; three of [B, D]."""
    method.check_batch(batch, image_shape, 0)
    method.check_given(batch, given)
    x = flat(batch["start"])
    scored = TARGETS[target](x)
    return x, scored * p.data(keys, flat(batch["image"])), scored

  def context(vars, x):
    """x and what the baseline makes of it, two of [B, D]."""
    return x, p.mean(run(vars, "baseline", x))

  def conditional(vars, batch, keys):
    """z [B, z_dim] -> log p(y | x, z) [B], and (mean, log variance) of q and of the prior."""
    x, y, scored = observe(batch, keys)
    seen = context(vars, x)
    log_p = lambda z: score(y, run(vars, "generation", *seen, z), scored)
    return log_p, run(vars, "recognition", x, y), run(vars, "prior", *seen)

  def expected(log_p, normal, keys, n):
    """The mean of log p(y | x, z) over n draws z of a normal distribution, [B]."""
    mean, log_var = (jnp.repeat(x[:, None], n, axis=1) for x in normal)
    z = elbo.reparameterize(keys, mean, log_var)  # [B, n, z_dim]
    return jnp.mean(jax.vmap(log_p, in_axes=1)(z), axis=0)

  def terms(vars, batch, keys, n):
    """E_q log p(y | x, z) by n draws and KL(q || prior), [B], then log p(y | x, .) and prior."""
    k_data, k_z = noise.split(keys)
    log_p, q, prior = conditional(vars, batch, k_data)
    kl = jnp.sum(elbo.normal_kl(*q, *prior), axis=1)
    return expected(log_p, q, k_z, n), kl, log_p, prior

  def loss(vars, batch, keys):
    """alpha (KL(q || prior) - E_q log p(y | x, z)) - (1 - alpha) E_prior log p(y | x, z), in nats.

    The first is survey Eq. 22 and Box 1; the sum is the hybrid loss of the paper's Sec. 4.2.
    """
    k_q, k_prior = noise.split(keys)
    reconstruction, kl, log_p, prior = terms(vars, batch, k_q, samples)
    metrics = {"reconstruction": -reconstruction.mean(), "kl": kl.mean()}
    total = metrics["reconstruction"] + metrics["kl"]  # survey Eq. 22
    if alpha < 1.0:
      gsnn = -expected(log_p, prior, k_prior, samples).mean()
      total, metrics = alpha * total + (1.0 - alpha) * gsnn, {**metrics, "gsnn": gsnn}
    return total, Aux(metrics)

  def baseline_loss(vars, batch, keys):
    x, y, scored = observe(batch, keys)
    return -score(y, run(vars, "baseline", x), scored).mean(), Aux()

  def bound(vars, batch, keys):
    """{"reconstruction": log p(y | x, z) [B], "kl": of q and the prior, [B, 1]}, in nats."""
    reconstruction, kl, _, _ = terms(vars, batch, keys, 1)
    return {"reconstruction": reconstruction, "kl": kl[:, None]}

  def log_prob(vars, batch, keys, *, samples=0):
    """A lower bound on log P(y | x) of what is predicted, in nats, [B].

    samples: how many z an image an importance-sampled bound draws, which is closer.
    """
    if not samples:
      reconstruction, kl, _, _ = terms(vars, batch, keys, 1)
      return reconstruction - kl
    k_data, k_z = noise.split(keys)
    log_p, (mean_q, log_var_q), (mean, log_var) = conditional(vars, batch, k_data)
    std = jnp.exp(0.5 * log_var)
    # In u = (z - mean) / std the prior is N(0, I), as `log_weights` has it.
    of_u = lambda u: log_p(mean + std * u)
    q = (mean_q - mean) / std, log_var_q - log_var
    return elbo.importance_bound(elbo.log_weights(of_u, *q, k_z, samples=samples))

  def posterior(vars, batch, keys):
    """Mean and log variance of q(z | x, y), two of [B, z_dim]."""
    _, q, _ = conditional(vars, batch, keys)
    return tuple(q)

  def sample(vars, keys, cond={}, *, mean=False):
    """{"image": [n, *image_shape]}, in [-1, 1]: E[y | x, z], and x where y is not predicted.

    cond: {"start": x [n, *image_shape]}. mean: z is no draw of the prior but its mean, as in
    survey Box 1, whose argmax is the sign of these pixels.
    """
    method.check_given(cond, given)
    method.check_cond(method.without(cond, given), 0)
    x = flat(cond["start"])
    seen = context(vars, x)
    center, log_var = run(vars, "prior", *seen)
    z = center if mean else elbo.reparameterize(keys, center, log_var)  # survey Box 1
    y = p.mean(run(vars, "generation", *seen, z))
    return {"image": jnp.where(TARGETS[target](x) > 0.0, y, x).reshape(-1, *image_shape)}

  averages = {}
  for name in nets:
    averages |= optim.averages(name, ema)
  return Method(
    init,
    {
      "baseline": Phase(baseline_loss, ("baseline",), optim.adam(**tx)),
      "cvae": Phase(loss, ("recognition", "prior", "generation"), optim.adam(**tx)),
    },
    ema=averages,
    fns={"sample": sample, "log_prob": log_prob, "bound": bound, "posterior": posterior},
    given=tuple(given),
  )

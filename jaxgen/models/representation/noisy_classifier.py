"""The noisy classifier of ADM: Diffusion Models Beat GANs on Image Synthesis. Dhariwal and Nichol,
2021. arXiv:2105.05233, Sec. 4 and App. H.

p(y | x_t), trained by cross-entropy on images with as much noise as the diffusion model, which it
is to guide, sees: half of that model's UNet, and a pool of attention.
"""

import jax
import jax.numpy as jnp
import optax

from jaxgen import nn, noise, paths
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.models.diffusion import improved_ddpm
from jaxgen.nn import adm


def build(
  *,
  image_shape=(64, 64, 3),
  n_classes=1000,
  net_args={"channels": 128, "multipliers": (1, 2, 3, 4), "n_res_blocks": 4},
  schedule="cosine",
  T=1000,
  tx={"lr": 6e-4, "weight_decay": 0.2, "decay": "linear", "steps": 300_000},
  ema=0.0,
  accumulate=1,
):
  """The Method; the defaults are the paper's ImageNet 64x64 classifier.

  Args:
    image_shape: (H, W, C) of batches, in [-1, 1]. n_classes: the number of labels.
    net_args: fields of `nn.adm.Classifier`.
    schedule, T: of `improved_ddpm.chain`, those of the diffusion model.
    tx, ema: of `optim.adam` and `optim.averages`. accumulate: micro-batches an update.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check_count("n_classes", n_classes, 2)
  path = improved_ddpm.chain(schedule, T)
  net = nn.module(adm.Classifier, "net_args", net_args, out_channels=n_classes)

  def init(key):
    return Vars({"net": net.init(key, jnp.zeros((1, *image_shape)), jnp.zeros(1))["params"]})

  def logits(vars, x_t, t, draw=None):
    # The network counts time from 0, as the official one does.
    return net.apply({"params": vars.params["net"]}, x_t, t - 1.0, draw)

  def loss(vars, batch, keys):
    """Softmax cross-entropy in nats, and the accuracy, at all times t = 1, ..., T."""
    method.check_batch(batch, image_shape, n_classes)
    x, (k_t, k_eps, k_dropout) = batch["image"], noise.split(keys, 3)
    t = noise.randint(k_t, 1, T + 1).astype(jnp.float32)
    x_t = paths.interpolate(path, x, noise.normal(k_eps, x.shape[1:]), t)
    found = logits(vars, x_t, t, noise.stream(k_dropout))
    nats = optax.softmax_cross_entropy_with_integer_labels(found, batch["label"])
    return nats.mean(), Aux({"accuracy": jnp.mean(found.argmax(-1) == batch["label"])})

  def detect(vars, batch, *, t=1.0):
    """{"score": [B], log-prob in nats of the likeliest class, "logits": [B, K]}, of x_t.

    batch: its image is x_t. t: a scalar or [B] in 1, ..., T; 1 is for data without noise.
    """
    method.check_batch(batch, image_shape, 0)
    paths.check_times(path, t)
    known = method.concrete(t)
    method.check("t", t, known is None or (known >= 1.0).all(), "1 or more: 1 is without noise")
    x_t = batch["image"].astype(jnp.float32)
    found = logits(vars, x_t, jnp.broadcast_to(jnp.asarray(t, jnp.float32), x_t.shape[:1]))
    return {"score": jax.nn.log_softmax(found).max(-1), "logits": found}

  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx), accumulate=accumulate)},
    ema=optim.averages("net", ema),
    fns={"detect": detect},
  )

"""Annealed VAE: Understanding disentangling in beta-VAE. Burgess et al., 2018. arXiv:1804.03599.

Survey V05, Eq. 17.

The VAE of `beta_vae`, whose KL is held at a capacity C that grows in training: first the latents
carry what helps the reconstruction most, later also the rest. The mean KL of a batch is held, as
disentanglement_lib holds it: held by every image, at gamma = 1000, it left no room to learn.
"""

import optax

from jaxgen.core import axis, method
from jaxgen.core.method import Aux
from jaxgen.models.vae import beta_vae
from jaxgen.objectives import elbo


def build(
  *,
  image_shape=(64, 64, 1),
  decoder="bernoulli",
  z_dim=10,
  widths=(32, 32, 32, 32),
  dense=(256, 256),
  gamma=1000.0,
  capacity=25.0,
  capacity_steps=100_000,
  tx={"lr": 5e-4},
  ema=0.0,
):
  """The Method; the defaults are for dSprites, App. A.

  Args:
    image_shape, decoder, z_dim, widths, dense, tx, ema: of `beta_vae`; images are in [-1, 1].
    gamma: weight of |KL - C|.
    capacity: C at last, in nats. capacity_steps: over which it rises linearly from 0.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  method.check_weight("gamma", gamma)
  method.check_weight("capacity", capacity)
  method.check_count("capacity_steps", capacity_steps)
  made = beta_vae.build(
    image_shape=image_shape,
    decoder=decoder,
    z_dim=z_dim,
    widths=widths,
    dense=dense,
    tx=tx,
    ema=ema,
  )

  def loss(vars, batch, keys, *, capacity=capacity):
    """-(E_q log p(x | z) - gamma |KL - C|) in nats, Eq. 8; survey Eq. 17."""
    terms = made.fns["bound"](vars, batch, keys)
    reconstruction, kl = terms["reconstruction"].mean(), axis.mean(terms["kl"].sum(1).mean())
    value = elbo.capacity(reconstruction, kl, gamma=gamma, capacity=capacity)
    return value, Aux({"reconstruction": -reconstruction, "kl": kl})

  schedule = optax.linear_schedule(0.0, capacity, capacity_steps)
  phase = made.phases["vae"]._replace(loss=loss, hparams={"capacity": schedule})
  return made._replace(phases={"vae": phase})

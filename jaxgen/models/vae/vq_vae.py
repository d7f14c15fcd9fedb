"""VQ-VAE: Neural Discrete Representation Learning. van den Oord, Vinyals, Kavukcuoglu, 2017.

arXiv:1711.00937.

Survey V11, Eq. 27-28, Box 2: its first stage. The second, p(c) of Eq. 27, is gated_pixelcnn.py with
`first_stage`; experiments/two_stage.py trains both.

The networks, the numbers and the update of the codebook by moving averages are those of the
authors' example for CIFAR-10 in Sonnet; `update="gradient"` is the paper's own, Eq. 3. Codes are
taken for uniform while this stage trains: KL(q || p) = log K nats a code is constant (Sec. 3.2),
and without a prior there is neither `bound` nor `sample`.

Deviations: a code that the example would throw away in its first updates stays where it is
(`quantization.start`), and `revive` restarts dead codes, where a config asks for it. One code a
position; the paper's CIFAR-10 model has ten.
"""

from collections.abc import Callable
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.nn import conv_autoencoder
from jaxgen.objectives import quantization


class ResidualStack(nn.Module):
  """Blocks of ReLU, 3x3, ReLU, 1x1, and a last ReLU. Sec. 4.1."""

  width: int
  res_width: int
  n_blocks: int

  @nn.compact
  def __call__(self, h):
    """h: [B, H, W, width] -> the same."""
    for i in range(self.n_blocks):
      r = nn.Conv(self.res_width, (3, 3), name=f"res3x3_{i}")(nn.relu(h))
      h += nn.Conv(self.width, (1, 1), name=f"res1x1_{i}")(nn.relu(r))
    return nn.relu(h)


class Encoder(nn.Module):
  """z_e: 4x4 convolutions of stride 2, a 3x3 one, residual blocks, 1x1. Sec. 4.1."""

  width: int
  res_width: int
  n_res_blocks: int
  downsamples: int
  code_dim: int

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C] in [-1, 1] -> [B, h, w, code_dim]."""
    for i in range(self.downsamples):
      width = self.width if i == self.downsamples - 1 else self.width // 2
      x = nn.relu(nn.Conv(width, (4, 4), 2, name=f"down_{i}")(x))
    x = nn.relu(nn.Conv(self.width, (3, 3), name="conv")(x))
    x = ResidualStack(self.width, self.res_width, self.n_res_blocks, name="stack")(x)
    return nn.Conv(self.code_dim, (1, 1), name="to_codes")(x)


class Decoder(nn.Module):
  """The mean of p(x | z_q), the encoder mirrored. Sec. 4.1."""

  width: int
  res_width: int
  n_res_blocks: int
  downsamples: int
  channels: int

  @nn.compact
  def __call__(self, z):
    """z: [B, h, w, code_dim] -> [B, H, W, channels], of pixels in [-1, 1]."""
    x = nn.Conv(self.width, (3, 3), name="conv")(z)
    x = ResidualStack(self.width, self.res_width, self.n_res_blocks, name="stack")(x)
    for i in range(self.downsamples - 1):
      x = nn.relu(conv_autoencoder.Upsample(self.width // 2, name=f"up_{i}")(x))
    return conv_autoencoder.Upsample(self.channels, name="out")(x)


# Codes [K, D] with a variance of 1 / D.
_uniform = nn.initializers.variance_scaling(1.0, "fan_in", "uniform", in_axis=1, out_axis=0)


class Update(NamedTuple):
  """How the codebook is learnt, and where it is."""

  start: Callable  # codes [K, D] -> (params, extra)
  codes: Callable  # vars -> [K, D]
  # (vars, z, z_q, index, keys, beta, decay=, revive=) -> (loss [B], metrics, extra)
  learn: Callable


def _average(vars, z, z_q, index, keys, beta, decay, revive):
  new = quantization.ema_update(vars.extra["codebook"], z, index, decay=decay)
  new, revived = quantization.revive(new, z, keys, threshold=revive)
  loss = beta * quantization.commitment(z, z_q)  # survey Box 2, stage 1, step 5
  return loss, {"revived": revived}, {"codebook": jax.lax.stop_gradient(new)}


def _descend(vars, z, z_q, index, keys, beta, **_):
  return quantization.gradient_loss(z, z_q, beta=beta), {}, {}  # Eq. 3


UPDATES = {
  "ema": Update(
    lambda codes: ({}, {"codebook": quantization.start(codes)}),
    lambda vars: vars.extra["codebook"]["codebook"],
    _average,
  ),
  "gradient": Update(
    lambda codes: ({"codebook": {"codes": codes}}, {}),
    lambda vars: vars.params["codebook"]["codes"],
    _descend,
  ),
}


def build(
  *,
  image_shape=(32, 32, 3),
  n_codes=512,
  code_dim=64,
  width=128,
  res_width=32,
  n_res_blocks=2,
  downsamples=2,
  update="ema",
  beta=0.25,
  decay=0.99,
  revive=0.0,
  data_variance=0.253,
  tx={"lr": 3e-4},
  ema=0.0,
):
  """The Method; the defaults are the authors' example for CIFAR-10.

  Args:
    image_shape: (H, W, C) of batches, in [-1, 1].
    n_codes, code_dim: K and D of the codebook.
    width, res_width, n_res_blocks: of both networks; width // 2 at the finer resolutions.
    downsamples: how many times the sides are halved on the way to the codes.
    update: of the codebook: "ema", moving averages, or "gradient".
    beta: of the commitment. decay: of the moving averages.
    revive: mean count below which a code restarts at an encoder output; 0 is never. Both of "ema".
    data_variance: of pixels in [-1, 1]; the unit of the reconstruction in the loss.
    tx, ema: of `optim.adam` and `optim.averages`; all networks are averaged.

  Raises:
    ValueError: a number or a name out of range; in use, a batch or tokens that do not fit.
  """
  H, W, C = image_shape = method.check_image_shape(image_shape)
  method.check_count("n_codes", n_codes)
  method.check_count("code_dim", code_dim)
  method.check_count("res_width", res_width)
  method.check_count("downsamples", downsamples)
  method.check_count("width", width, 2)
  method.check_count("n_res_blocks", n_res_blocks, 0)
  scale = 2**downsamples
  fits = H % scale == 0 and W % scale == 0
  method.check("image_shape", image_shape, fits, f"height and width that are multiples of {scale}")
  method.check("update", update, update in UPDATES, f"one of {', '.join(UPDATES)}")
  method.check_weight("beta", beta)
  method.check_fraction("decay", decay)
  method.check_weight("revive", revive)
  method.check("revive", revive, update == "ema" or not revive, "0, as update='gradient'")
  method.check_positive("data_variance", data_variance)
  book, grid = UPDATES[update], (H // scale, W // scale)
  numbers = (width, res_width, n_res_blocks, downsamples)
  encoder_net, decoder_net = Encoder(*numbers, code_dim), Decoder(*numbers, C)

  def init(key):
    k_encoder, k_decoder, k_codes = jax.random.split(key, 3)
    encoder = encoder_net.init(k_encoder, jnp.zeros((1, *image_shape)))
    decoder = decoder_net.init(k_decoder, jnp.zeros((1, *grid, code_dim)))
    params, extra = book.start(_uniform(k_codes, (n_codes, code_dim)))
    return Vars({"encoder": encoder["params"], "decoder": decoder["params"], **params}, extra)

  def encoded(vars, batch):
    """z_e [B, h, w, D], and the index of its nearest codes [B, h, w]."""
    method.check_batch(batch, image_shape, 0)
    x = batch["image"].astype(jnp.float32)
    z = encoder_net.apply({"params": vars.params["encoder"]}, x)  # survey Box 2, stage 1, step 1
    return z, quantization.nearest(z, book.codes(vars))  # Eq. 1

  def decoded(vars, z_q):
    return decoder_net.apply({"params": vars.params["decoder"]}, z_q)

  def loss(vars, batch, keys):
    """|x - x_hat|^2 / data_variance + beta |z_e - sg(z_q)|^2, means, or the loss of Eq. 3."""
    z, index = encoded(vars, batch)
    z_q = book.codes(vars)[index]  # Eq. 2
    x_hat = decoded(vars, quantization.straight_through(z, z_q))
    error = jnp.mean((batch["image"] - x_hat) ** 2)
    pull, metrics, extra = book.learn(vars, z, z_q, index, keys, beta, decay=decay, revive=revive)
    p = quantization.frequencies(index, n_codes)
    metrics |= {
      "reconstruction": error,
      "commitment": quantization.commitment(z, z_q).mean(),
      "perplexity": quantization.perplexity(p),
      "usage": quantization.usage(p),
    }
    return error / data_variance + pull.mean(), Aux(metrics, extra)

  def encode(vars, batch, keys):
    """Tokens: int32 [B, h, w]."""
    del keys  # nothing is drawn
    return encoded(vars, batch)[1]

  def decode(vars, tokens):
    """{"image": the decoder's mean, cut to [-1, 1], [B, H, W, C]}; survey Eq. 28.

    tokens: int32 [B, h, w].
    """
    _check_tokens(tokens, grid, n_codes)
    return {"image": jnp.clip(decoded(vars, book.codes(vars)[tokens]), -1.0, 1.0)}

  nets = ("encoder", "decoder", *(["codebook"] if update == "gradient" else []))
  averages = {k: v for net in nets for k, v in optim.averages(net, ema).items()}
  return Method(
    init,
    {"vq_vae": Phase(loss, nets, optim.adam(**tx))},
    ema=averages,
    fns={"encode": encode, "decode": decode},
  )


def _check_tokens(tokens, grid, n_codes):
  whole = jnp.issubdtype(tokens.dtype, jnp.integer) and tokens.shape[1:] == grid
  found = f"{tokens.dtype}{list(tokens.shape)}"
  method.check("tokens", found, whole, f"int32 [B, {', '.join(map(str, grid))}]")
  known = method.concrete(tokens)
  bad = [] if known is None else known[(known < 0) | (known >= n_codes)]
  if len(bad):
    raise ValueError(f"tokens={bad[0]}: expected 0 to n_codes - 1 = {n_codes - 1}")

"""DRAW: A Recurrent Neural Network For Image Generation. Gregor et al., 2015. arXiv:1502.04623.

Survey V10, Eq. 26.

An encoder and a decoder, two LSTMs, which draw an image in T steps: the encoder reads where it
errs, the decoder adds to a canvas. With attention each sees a grid of Gaussian filters, whose
place, stride, width and strength the decoder chooses. Images lie in [-1, 1]; their pixels are
binarised anew each time they are seen, which changes nothing in data that are binary already.

Deviations: the filters are normalised over the pixels there are, however far off the image their
grid lies (the constant of released codes that keeps Z from 0 is not needed). The paper names Adam
and no learning rate; clipping is that of public reimplementations. LSTMs have no peepholes.
"""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from PIL import Image, ImageDraw

from jaxgen import noise
from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars
from jaxgen.objectives import elbo, likelihood


def filterbank(center, delta, variance, n, size):
  """n Gaussian filters over pixels 1, ..., size, `delta` apart around `center`: [B, n, size].

  Each sums to one. center, delta, variance: [B]. Eq. 19-20 and 25-26.
  """
  i, a = jnp.arange(1.0, n + 1.0), jnp.arange(1.0, size + 1.0)
  mean = center[:, None] + (i - n / 2 - 0.5)[None] * delta[:, None]  # Eq. 19-20
  square = (a[None, None] - mean[:, :, None]) ** 2 / variance[:, None, None]
  return jax.nn.softmax(-0.5 * square)  # Eq. 25-26; Z is over a


def window(numbers, n, height, width):
  """The grid of n x n filters that five numbers [B, 5] stand for, Eq. 21-24.

  height, width: of the image.

  Returns:
    F_y [B, n, H], F_x [B, n, W], gamma [B], and the window [B, 4] in pixels: centre x, centre y
    (1 is the first pixel), side, and standard deviation of the filters.
  """
  g_x, g_y, log_variance, log_delta, log_gamma = numbers.T  # Eq. 21
  g_x = (width + 1) / 2 * (g_x + 1.0)  # Eq. 22
  g_y = (height + 1) / 2 * (g_y + 1.0)  # Eq. 23
  delta = (max(width, height) - 1) / (n - 1) * jnp.exp(log_delta)  # Eq. 24
  variance = jnp.exp(log_variance)
  box = jnp.stack([g_x, g_y, (n - 1) * delta, jnp.sqrt(variance)], axis=-1)
  bank = lambda g, size: filterbank(g, delta, variance, n, size)
  return bank(g_y, height), bank(g_x, width), jnp.exp(log_gamma), box


def read_patch(x, f_y, f_x, gamma):
  """gamma F_y x F_x^T, [B, n, n, C]. Eq. 27.

  x: [B, H, W, C]. f_y: [B, n, H]. f_x: [B, n, W]. gamma: [B].
  """
  return gamma[:, None, None, None] * jnp.einsum("bnh,bhwc,bmw->bnmc", f_y, x, f_x)


def write_patch(patch, f_y, f_x, gamma):
  """F_y^T patch F_x / gamma, [B, H, W, C]. Eq. 29.

  patch: [B, n, n, C]. f_y: [B, n, H]. f_x: [B, n, W]. gamma: [B].
  """
  return jnp.einsum("bnh,bnmc,bmw->bhwc", f_y, patch, f_x) / gamma[:, None, None, None]


class Selective(nn.Module):
  """Reads and writes through grids of filters. Sec. 3.2."""

  image_shape: tuple[int, int, int]
  read_size: int
  write_size: int

  def setup(self):
    """Its layers."""
    n, channels = self.write_size, self.image_shape[2]
    self.read_window, self.write_window = nn.Dense(5), nn.Dense(5)
    self.patch = nn.DenseGeneral((n, n, channels))

  def read_box(self, h):
    """The window that the encoder looks through, [B, 4]. h: the decoder's, [B, D]."""
    return window(self.read_window(h), self.read_size, *self.image_shape[:2])[3]

  def read(self, x, error, h):
    """Patches of x and error [B, H, W, C], one vector an example, [B, D]. h: [B, D]. Eq. 27."""
    *filters, _ = window(self.read_window(h), self.read_size, *self.image_shape[:2])
    patches = [read_patch(image, *filters).reshape(len(h), -1) for image in (x, error)]
    return jnp.concatenate(patches, axis=1)

  def write(self, h):
    """What is added to the canvas [B, H, W, C], and its window [B, 4]. h: [B, D]. Eq. 28-29."""
    *filters, box = window(self.write_window(h), self.write_size, *self.image_shape[:2])
    return write_patch(self.patch(h), *filters), box


class Whole(nn.Module):
  """Reads and writes whole images, without attention. Sec. 3.1."""

  image_shape: tuple[int, int, int]
  read_size: int
  write_size: int

  def setup(self):
    """Its layer."""
    self.patch = nn.DenseGeneral(self.image_shape)

  def read_box(self, h):
    """All of the image as a window, [B, 4]. h: [B, D]."""
    height, width, _ = self.image_shape
    box = jnp.array([(width + 1) / 2, (height + 1) / 2, max(height, width) - 1, 1.0])
    return jnp.broadcast_to(box[None], (len(h), 4))

  def read(self, x, error, h):
    """x and error [B, H, W, C] as one vector an example, [B, D]. h: [B, D]. Eq. 17."""
    return jnp.concatenate([x.reshape(len(h), -1), error.reshape(len(h), -1)], axis=1)

  def write(self, h):
    """What is added to the canvas [B, H, W, C], and its window [B, 4]. h: [B, D]. Eq. 18."""
    return self.patch(h), self.read_box(h)


ATTENTION = {"selective": Selective, "none": Whole}


class Glimpse(nn.Module):
  """One step of either direction, as `jax.lax.scan` takes it."""

  image_shape: tuple[int, int, int]
  attention: str
  read_size: int
  write_size: int
  hidden: int
  z_dim: int

  def setup(self):
    """Its layers, and what they begin with."""
    self.attend = ATTENTION[self.attention](self.image_shape, self.read_size, self.write_size)
    self.encoder, self.decoder = (
      nn.OptimizedLSTMCell(self.hidden),
      nn.OptimizedLSTMCell(self.hidden),
    )
    self.mean, self.log_std = nn.Dense(self.z_dim), nn.Dense(self.z_dim)
    start = lambda name, shape: self.param(name, nn.initializers.zeros, shape)
    self.canvas_start = start("canvas_start", self.image_shape)
    self.encoder_start = start("encoder_start", (2, self.hidden))
    self.decoder_start = start("decoder_start", (2, self.hidden))

  def start(self, n):
    """What n rows begin with, learned: the encoder's state, the decoder's, the canvas [n, ...]."""
    rows = lambda x: jnp.broadcast_to(x[None], (n, *x.shape))
    state = lambda pair: (rows(pair[0]), rows(pair[1]))
    return state(self.encoder_start), state(self.decoder_start), rows(self.canvas_start)

  def generate(self, carry, z):
    """z [B, D] drawn on the canvas; beside it the windows [B, 4] of this step. Eq. 14-15.

    carry: (decoder's state, two of [B, D], canvas [B, H, W, C]). Returns (carry, (canvas, window
    of what was written, window that the encoder would read through before it)).
    """
    decoder, canvas = carry
    read_box = self.attend.read_box(decoder[1])
    decoder, h = self.decoder(decoder, z)  # Eq. 7
    addition, box = self.attend.write(h)
    canvas = canvas + addition  # Eq. 8
    return (decoder, canvas), (canvas, box, read_box)

  def infer(self, carry, eps, x):
    """z, and mean and log variance of its q, three of [B, D]; then as `generate`.

    carry: (encoder's state, decoder's, canvas), of [B, D] and [B, H, W, C]. eps: [B, D].
    x: [B, H, W, C] in {0, 1}. Returns (carry, (z, mean, log_var)).
    """
    encoder, decoder, canvas = carry
    h = decoder[1]
    error = x - nn.sigmoid(canvas)  # Eq. 3
    r = self.attend.read(x, error, h)  # Eq. 4
    encoder, h_encoder = self.encoder(encoder, jnp.concatenate([r, h], axis=1))  # Eq. 5
    mean, log_std = self.mean(h_encoder), self.log_std(h_encoder)  # Eq. 1-2
    z = mean + jnp.exp(log_std) * eps  # Eq. 6
    (decoder, canvas), _ = self.generate((decoder, canvas), z)
    return (encoder, decoder, canvas), (z, mean, 2.0 * log_std)


def strip(canvases, windows, steps, *, scale=4):
  """Rows of canvases with their windows in red, uint8 [n * H * scale, steps * W * scale, 3].

  As in Fig. 1 and survey Fig. 7; the border is as wide as the filters, whose centres the square
  joins.

  Args:
    canvases: [n, T, H, W, C] in [-1, 1]. windows: [n, T, 4], of `build`'s `sample`.
    steps: a scalar, how many of the T, evenly spaced, the last among them.
    scale: pixels a side of a pixel.

  Raises:
    ValueError: more steps than there are, or a scale below 1.
  """
  n, total, height, width, channels = np.shape(canvases)
  method.check_count("steps", steps, 1, total)
  method.check_count("scale", scale)
  picture = Image.new("RGB", (steps * width * scale, n * height * scale))
  for row in range(n):
    for column, t in enumerate(np.linspace(0, total - 1, steps + 1).round().astype(int)[1:]):
      pixels = np.uint8(np.rint(127.5 * (np.asarray(canvases[row, t]) + 1.0)))
      pixels = np.broadcast_to(pixels, (height, width, 3))
      panel = Image.fromarray(pixels).resize((width * scale, height * scale), Image.NEAREST)
      x, y, side, std = (float(v) * scale for v in windows[row, t])
      x, y, reach = x - scale / 2, y - scale / 2, side / 2  # pixel 1 is half a pixel from the edge
      square, border = [x - reach, y - reach, x + reach, y + reach], max(1, round(std))
      ImageDraw.Draw(panel).rectangle(square, outline=(255, 0, 0), width=border)
      picture.paste(panel, (column * width * scale, row * height * scale))
  return np.asarray(picture)


def build(
  *,
  image_shape=(28, 28, 1),
  attention="selective",
  glimpses=64,
  read_size=2,
  write_size=5,
  hidden=256,
  z_dim=100,
  tx={"lr": 1e-3, "clip": 5.0},
  ema=0.0,
):
  """The Method; the defaults are the paper's MNIST model, Table 3.

  Args:
    image_shape: (H, W, C) of batches and samples, in [-1, 1].
    attention: "selective" or "none": what the two LSTMs see.
    glimpses: T. read_size, write_size: filters along a side of the grids; not used without one.
    hidden: numbers of an LSTM's state. z_dim: length of the z of one step.
    tx, ema: of `optim.adam` and `optim.averages`.

  Raises:
    ValueError: a number or a name out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  method.check("attention", attention, attention in ATTENTION, f"one of {', '.join(ATTENTION)}")
  method.check_count("glimpses", glimpses)
  method.check_count("read_size", read_size, 2)
  method.check_count("write_size", write_size, 2)
  method.check_count("hidden", hidden)
  method.check_count("z_dim", z_dim)
  net = Glimpse(image_shape, attention, read_size, write_size, hidden, z_dim)
  z_shape = (glimpses, z_dim)

  def call(vars, *args, method):
    return net.apply({"params": vars.params["draw"]}, *args, method=method)

  def init(key):
    def both(net):
      return net.infer(net.start(1), jnp.zeros((1, z_dim)), jnp.zeros((1, *image_shape)))

    return Vars({"draw": nn.init(both, net)(key)["params"]})

  def binary(batch, keys):
    method.check_batch(batch, image_shape, 0)
    return likelihood.binarize(keys, batch["image"].astype(jnp.float32))

  def inferred(vars, x, eps):
    """log p(x | z) [B] in nats, and z, means and log variances of the steps, of [B, T, D]."""
    step = lambda carry, eps: call(vars, carry, eps, x, method="infer")
    start = call(vars, len(x), method="start")
    (_, _, canvas), found = jax.lax.scan(step, start, jnp.swapaxes(eps, 0, 1))
    log_p = jnp.sum(likelihood.bernoulli(x, canvas), axis=(1, 2, 3))  # Eq. 9
    return log_p, *(jnp.swapaxes(x, 0, 1) for x in found)

  def bound(vars, batch, keys):
    """{"reconstruction": log p(x | z) [B], "kl": of each step, [B, T]}, in nats."""
    k_data, k_z = noise.split(keys)
    log_p, _, mean, log_var = inferred(vars, binary(batch, k_data), noise.normal(k_z, z_shape))
    kl = jnp.sum(elbo.normal_kl(mean, log_var, 0.0, 0.0), axis=2)  # Eq. 10-11
    return {"reconstruction": log_p, "kl": kl}

  def loss(vars, batch, keys):
    """-(log p(x | z_1 ... z_T) - sum over t of KL_t) in nats. Eq. 12; survey Eq. 26."""
    terms = bound(vars, batch, keys)
    reconstruction, kl = terms["reconstruction"].mean(), terms["kl"].sum(axis=1).mean()
    return kl - reconstruction, Aux({"reconstruction": -reconstruction, "kl": kl})

  def log_prob(vars, batch, keys, *, samples=0):
    """A lower bound on log P of the binarised images in nats, [B].

    samples: how many z_1 ... z_T an image an importance-sampled bound draws, closer to log P.
    """
    if not samples:
      terms = bound(vars, batch, keys)
      return terms["reconstruction"] - terms["kl"].sum(axis=1)
    method.check_count("samples", samples)
    k_data, k_z = noise.split(keys)
    x = binary(batch, k_data)

    def log_weight(i):
      eps = noise.normal(noise.fold_in(k_z, i), z_shape)
      log_p, z, mean, log_var = inferred(vars, x, eps)
      ratio = likelihood.gaussian(z, 0.0, 0.0) - likelihood.gaussian(z, mean, log_var)
      return log_p + jnp.sum(ratio, axis=(1, 2))

    return elbo.importance_bound(jax.lax.map(log_weight, jnp.arange(samples)))

  def encode(vars, batch, keys):
    """z of all steps, one after another, each ~ q given those before it, [B, T * z_dim]."""
    k_data, k_z = noise.split(keys)
    _, z, _, _ = inferred(vars, binary(batch, k_data), noise.normal(k_z, z_shape))
    return z.reshape(len(z), -1)

  def decode(vars, latents, *, strip=False):
    """{"image": E[x | z], [B, H, W, C] in [-1, 1]}. latents: z of all steps, [B, T * z_dim].

    strip: also "canvases" [B, T, H, W, C] in [-1, 1], and "windows" and "read_windows"
    [B, T, 4] of `window`, where each step wrote and where the encoder would look before it.
    """
    z = jnp.swapaxes(latents.reshape(-1, *z_shape), 0, 1)
    step = lambda carry, z: call(vars, carry, z, method="generate")
    _, *start = call(vars, len(latents), method="start")
    (_, canvas), steps = jax.lax.scan(step, tuple(start), z)
    mean = lambda canvas: 2.0 * nn.sigmoid(canvas) - 1.0
    if not strip:
      return {"image": mean(canvas)}
    canvases, windows, read_windows = (jnp.swapaxes(x, 0, 1) for x in steps)
    beside = {"canvases": mean(canvases), "windows": windows, "read_windows": read_windows}
    return {"image": mean(canvas), **beside}

  def sample(vars, keys, cond={}, *, strip=False):
    """{"image": [n, *image_shape]}, in [-1, 1]: E[x | z] at z_t ~ N(0, I), Eq. 13-16.

    cond: {}, no classes. strip: also what `decode` adds, [n, T, ...].
    """
    method.check_cond(cond, 0)
    return decode(vars, noise.normal(keys, (math.prod(z_shape),)), strip=strip)

  return Method(
    init,
    {"draw": Phase(loss, ("draw",), optim.adam(**tx))},
    ema=optim.averages("draw", ema),
    fns={
      "sample": sample, "log_prob": log_prob, "bound": bound, "encode": encode, "decode": decode,
    },
  )  # fmt: skip

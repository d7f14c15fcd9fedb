"""The two LSTMs of DRAW, and what they read and write. Gregor et al., 2015. arXiv:1502.04623."""

import flax.linen as nn
import jax
import jax.numpy as jnp


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

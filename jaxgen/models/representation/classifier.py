"""A small classifier: Gradient-Based Learning Applied to Document Recognition. LeCun, Bottou,
Bengio, Haffner, 1998. doi:10.1109/5.726791.

An extractor of features for measures on images of digits and their like, of which a network of
ImageNet sees nothing: Frechet distances of `pool`, and of the classes of samples their histogram
and their Inception Score. Its numbers compare with those of the same weights only.

In the spirit of LeNet-5 (Sec. II-B): convolutions that halve the image twice, a hidden layer of 84
units as its F6, ten classes. Deviations: 3x3 kernels, strides in place of subsampling, ReLU, group
normalisation, softmax cross-entropy in place of radial basis functions, Adam.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from jaxgen.core import method, optim
from jaxgen.core.method import Aux, Method, Phase, Vars


class Net(nn.Module):
  """Four 3x3 convolutions, of which the second and the fourth have stride 2, and two layers."""

  width: int
  features: int
  n_classes: int

  @nn.compact
  def __call__(self, x):
    """x: [B, H, W, C] in [-1, 1] -> (pool [B, features], logits [B, n_classes])."""
    for i, (channels, stride) in enumerate(((1, 1), (2, 2), (2, 1), (4, 2))):
      conv = nn.Conv(channels * self.width, (3, 3), stride, use_bias=False, name=f"conv_{i}")
      x = nn.relu(nn.GroupNorm(None, group_size=self.width, name=f"norm_{i}")(conv(x)))
    pool = nn.relu(nn.Dense(self.features, name="hidden")(x.mean((1, 2))))
    return pool, nn.Dense(self.n_classes, name="logits")(pool)


def build(
  *,
  image_shape=(28, 28, 1),
  n_classes=10,
  width=16,
  features=84,
  tx={"lr": 2e-3, "weight_decay": 1e-2, "decay": "cosine", "steps": 5000},
  ema=0.0,
):
  """The Method; it has no samples and no density.

  Args:
    image_shape: (H, W, C) of batches, in [-1, 1]; H and W multiples of 4.
    n_classes: the number of labels.
    width: channels of the first convolution, four times as many of the last.
    features: length of `pool`.
    tx, ema: of `optim.adam` and `optim.averages`.

  Raises:
    ValueError: a number out of range; in use, a batch that does not fit.
  """
  image_shape = method.check_image_shape(image_shape)
  fits = all(side % 4 == 0 for side in image_shape[:2])
  method.check("image_shape", image_shape, fits, "height and width divisible by 4")
  method.check_count("n_classes", n_classes, 2)
  method.check_count("width", width)
  method.check_count("features", features)
  net = Net(width, features, n_classes)

  def init(key):
    return Vars({"net": net.init(key, jnp.zeros((1, *image_shape)))["params"]})

  def outputs(vars, batch):
    return net.apply({"params": vars.params["net"]}, batch["image"].astype(jnp.float32))

  def loss(vars, batch, keys):
    """Softmax cross-entropy in nats, and the accuracy."""
    method.check_batch(batch, image_shape, n_classes)
    _, logits = outputs(vars, batch)
    nats = optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])
    return nats.mean(), Aux({"accuracy": jnp.mean(logits.argmax(-1) == batch["label"])})

  def detect(vars, batch):
    """{"score": [B], log-prob in nats of the likeliest class, "logits": [B, K], "pool": [B, D]}."""
    method.check_batch(batch, image_shape, 0)
    pool, logits = outputs(vars, batch)
    return {"score": jax.nn.log_softmax(logits).max(-1), "logits": logits, "pool": pool}

  return Method(
    init,
    {"net": Phase(loss, ("net",), optim.adam(**tx))},
    ema=optim.averages("net", ema),
    fns={"detect": detect},
  )

"""Networks and layers that two papers share."""

import jax.numpy as jnp

from jaxgen.core import method
from jaxgen.nn import mlp, unet

_FROM_0 = {"depth", "downs"}  # the other whole numbers that networks take start at 1
_IMAGE_NETS = {"UNet": unet.UNet, "ResidualMLP": mlp.ResidualMLP}


def module(cls, where, args, **fixed):
  """cls(**args, **fixed), with the lists of `args`, as JSON has them, made tuples.

  Raises ValueError, which says `where` the keyword stands, for one that the module does not have
  and for a value that no network can have: a width of 0, a rate of 1, a dtype that is none.
  """
  method.check_keywords(where, args, cls, cls.__name__, {"parent", "name", *fixed})
  for name, value in args.items():
    _check_field(where, name, value, cls.__dataclass_fields__[name].type)
  return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in args.items()}, **fixed)


def _check_field(where, name, value, kind):
  if kind is int:
    method.check_count(f"{where}.{name}", value, least=0 if name in _FROM_0 else 1)
  elif kind == tuple[int, ...]:
    method.check_counts(f"{where}.{name}", value)
  elif kind is jnp.dtype:
    method.check_dtype(f"{where}.{name}", value)
  elif name == "dropout":
    method.check_fraction(f"{where}.{name}", value)


def image_net(name, image_shape, n_classes, /, **args):
  """The network of images and times that a config names.

  Args:
    name: "UNet" or "ResidualMLP". args: its fields, as JSON has them.
    image_shape: (H, W, C). n_classes: 0, or the number of labels.

  Returns:
    init(key) -> params, and apply(params, x [B, H, W, C], t [B], label=None, draw=None) -> like x.
    Without a label a network with classes is given the null class; `draw` is for its dropout.

  Raises:
    ValueError: a name or a field that does not exist, or a value out of range.
  """
  method.check("net", name, name in _IMAGE_NETS, f"one of {', '.join(_IMAGE_NETS)}")
  out = {"out_channels": image_shape[-1]} if name == "UNet" else {}
  net = module(_IMAGE_NETS[name], "net_args", args, n_classes=n_classes, **out)

  def apply(params, x, t, label=None, draw=None):
    if n_classes and label is None:
      label = jnp.full(len(x), n_classes)
    return net.apply({"params": params}, x, t, label, draw)

  def init(key):
    label = jnp.zeros(1, jnp.int32) if n_classes else None
    return net.init(key, jnp.zeros((1, *image_shape)), jnp.zeros(1), label)["params"]

  return init, apply

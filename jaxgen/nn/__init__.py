"""Networks and layers that two papers share."""

import jax.numpy as jnp

from jaxgen.core import method
from jaxgen.nn import mlp, unet

_IMAGE_NETS = {"UNet": unet.UNet, "ResidualMLP": mlp.ResidualMLP}


def module(cls, where, args, **fixed):
  """cls(**args, **fixed), with the lists of `args`, as JSON has them, made tuples.

  Raises ValueError, which says `where` the keyword stands, for one that the module does not have
  and for a `dtype` to compute in that is none.
  """
  fields = cls.__dataclass_fields__.keys() - {"parent", "name"} - fixed.keys()
  if unknown := set(args) - fields:
    raise ValueError(f"{where}.{min(unknown)}: {cls.__name__} has {', '.join(sorted(fields))}")
  if "dtype" in args:
    method.check_dtype(f"{where}.dtype", args["dtype"])
  return cls(**{k: tuple(v) if isinstance(v, list) else v for k, v in args.items()}, **fixed)


def image_net(name, image_shape, n_classes, **args):
  """The network of images and times that a config names.

  Args:
    name: "UNet" or "ResidualMLP". args: its fields, as JSON has them.
    image_shape: (H, W, C). n_classes: 0, or the number of labels.

  Returns:
    init(key) -> params, and apply(params, x [B, H, W, C], t [B], label=None, draw=None) -> like x.
    Without a label a network with classes is given the null class; `draw` is for its dropout.

  Raises:
    ValueError: a name or a field that does not exist.
  """
  if name not in _IMAGE_NETS:
    raise ValueError(f"net={name!r}: expected one of {', '.join(_IMAGE_NETS)}")
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

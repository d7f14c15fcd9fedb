"""Networks and layers that two papers share."""

import jax.numpy as jnp

from jaxgen.core import method
from jaxgen.core.method import Vars
from jaxgen.nn import adm, dit, mlp, ncsnpp, unet

# The other whole numbers that networks take start at 1.
_FROM_0 = {"augment", "depth", "downs", "head_channels", "n_classes"}
_IMAGE_NETS = {
  "ADM": adm.ADM,
  "DiT": dit.DiT,
  "NCSNpp": ncsnpp.NCSNpp,
  "ResidualMLP": mlp.ResidualMLP,
  "UNet": unet.UNet,
}


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
  elif kind == tuple[float, ...]:
    method.check(f"{where}.{name}", value, isinstance(value, (tuple, list)), "a tuple or list")
    for i, number in enumerate(value):
      method.check_positive(f"{where}.{name}[{i}]", number)
  elif kind is bool:
    method.check(f"{where}.{name}", value, isinstance(value, bool), "True or False")
  elif kind is jnp.dtype:
    method.check_dtype(f"{where}.{name}", value)
  elif name == "dropout":
    method.check_fraction(f"{where}.{name}", value)


def image_net(name, image_shape, n_classes, out_channels=None, /, **args):
  """The network of images and times that a config names.

  Args:
    name: of a class of this folder: "UNet", "ADM", "NCSNpp", "DiT" or "ResidualMLP".
    args: its fields, as JSON has them.
    image_shape: (H, W, C). n_classes: 0, or the number of labels.
    out_channels: a scalar, C by default; 2C for eps and the v of a learned variance.

  Returns:
    init(key) -> Vars with the network "net", and apply(vars, x [B, H, W, C], t [B], label=None,
    draw=None, **inputs) -> [B, H, W, out_channels]. Without a label a network with classes is given
    the null class; `draw` is for its dropout, `inputs` are what only this network takes.

  Raises:
    ValueError: a name or a field that does not exist, or a value out of range.
  """
  method.check("net", name, name in _IMAGE_NETS, f"one of {', '.join(_IMAGE_NETS)}")
  fixed = {"n_classes": n_classes, "out_channels": out_channels or image_shape[-1]}
  net = module(_IMAGE_NETS[name], "net_args", args, **fixed)

  def apply(vars, x, t, label=None, draw=None, **inputs):
    if n_classes and label is None:
      label = jnp.full(len(x), n_classes)
    variables = {"params": vars.params["net"], **vars.extra.get("net", {})}
    return net.apply(variables, x, t, label, draw, **inputs)

  def init(key):
    label = jnp.zeros(1, jnp.int32) if n_classes else None
    variables = net.init(key, jnp.zeros((1, *image_shape)), jnp.zeros(1), label)
    params = variables.pop("params")
    return Vars({"net": params}, {"net": variables} if variables else {})

  return init, apply

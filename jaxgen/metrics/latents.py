"""Measures of a method's latents: reconstruction, KL a group, active units, MIG, codes in use.

Active units are of arXiv:1509.00519, the mutual information gap is of arXiv:1802.04942.
"""

from collections.abc import Callable
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np

from jaxgen.core import inference
from jaxgen.core import method as method_lib
from jaxgen.metrics import disentanglement


class Measure(NamedTuple):
  """Of latents: each(fns, vars, batch, keys) -> [B, ...], of(those of all [N, ...]) -> numbers.

  labels: what they are called. needs: functions of a Method. of also says how, beyond `labels`.
  """

  labels: tuple[str, ...]
  needs: tuple[str, ...]
  each: Callable
  of: Callable


def _error(fns, vars, batch, keys):
  """Mean squared error of reconstructions, [B]; survey Eq. 2."""
  x = fns["decode"](vars, fns["encode"](vars, batch, keys))["image"]
  return jnp.mean((x - batch["image"]) ** 2, axis=(1, 2, 3))


def _kl_of_groups(kl):
  """The sum over the groups of their means. kl: [N, L], in nats."""
  groups = kl.mean(axis=0, dtype=np.float64)
  return (groups.sum(),), "by group " + ", ".join(f"{v:.3g}" for v in groups)


def _of_factors(fns, vars, batch, keys):
  return fns["posterior"](vars, batch, keys)[0], batch["factors"].astype(jnp.float32)


def _gap(found):
  mean, factors = found
  gap = disentanglement.mutual_information_gap(mean, factors.astype(np.int32))
  return (gap["MIG"],), "means of q(z | x) in 20 bins"


def _active(mean):
  return (disentanglement.active_units(mean),), f"of {mean.shape[1]}, variance of means above 0.01"


def _tokens(fns, vars, batch, keys):
  tokens = fns["encode"](vars, batch, keys)
  whole = jnp.issubdtype(tokens.dtype, jnp.integer)
  method_lib.check("measures", "codebook", whole, "others: this model's latents are no codes")
  return tokens.astype(jnp.float32)


def _codes(tokens):
  """How many codes are used, and exp of the entropy of their shares. tokens: [N, ...]."""
  count = np.unique(tokens, return_counts=True)[1]
  share = count / count.sum()
  return (len(count), np.exp(-np.sum(share * np.log(share)))), "of codes over all positions"


MEASURES = {
  "mse": Measure(
    ("MSE",), ("encode", "decode"), _error, lambda x: ((x.mean(dtype=np.float64),), "in [-1, 1]")
  ),
  "kl": Measure(("KL, nats",), ("bound",), lambda fns, *of: fns["bound"](*of)["kl"], _kl_of_groups),
  "active_units": Measure(
    ("active units",), ("posterior",), lambda fns, *of: fns["posterior"](*of)[0], _active
  ),
  "mig": Measure(("MIG",), ("posterior",), _of_factors, _gap),
  "codebook": Measure(
    ("codes used", "perplexity"),
    ("encode",),
    _tokens,
    _codes,
  ),
}


def measure(name, method, vars, source, key, *, limit, n_classes, batch_size):
  """({label: number}, how) of the first `limit` examples of a source.

  name: of MEASURES. vars: whole on every device. Raises ValueError where the method or the data
  lacks what the measure needs.
  """
  m = MEASURES[name]
  for fn in m.needs:
    method_lib.check("measures", name, fn in method.fns, f"others: this model has no {fn}")
  if name == "mig":
    method_lib.check("source", [*source[0]], "factors" in source[0], "one with factors, for mig")

  def each(vars, batch, keys):
    return m.each(method.fns, method_lib.averaged(method, vars), batch, keys)

  run = inference.by_example(each, batch_size)
  numbers, how = m.of(run(vars, source, key, limit, n_classes))
  return dict(zip(m.labels, map(float, numbers), strict=True)), how

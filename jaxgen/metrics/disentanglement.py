"""What each latent knows of each factor of variation, and how many latents know of anything."""

import numpy as np

from jaxgen.core import method
from jaxgen.metrics import frechet


def mutual_information_gap(mean, factors, *, bins=20):
  """How far the latent that knows most of a factor is ahead of the next one, 0 to 1.

  MIG, the mean over factors v_k of (I(z_1; v_k) - I(z_2; v_k)) / H(v_k) with z_1 and z_2 the two
  latents of most information; arXiv:1802.04942, Eq. 6. I is of histograms of the latents' means, as
  in disentanglement_lib, arXiv:1811.12359, App. C; many bins and few examples make it too large.

  Args:
    mean: of q(z | x), [N, D]. factors: int [N, F], what x was made of.
    bins: of each latent, of equal width from its least to its largest mean.

  Returns:
    {"MIG": a scalar, "information": I(z_j; v_k) in nats, [D, F]}.

  Raises ValueError for arrays of other shapes, means that are not finite, fewer than two latents,
  factors that are not integers or never vary, and fewer than two bins.
  """
  method.check_count("bins", bins, 2)
  mean, factors = frechet.check_features("mean", mean), np.asarray(factors)
  method.check("mean.shape", mean.shape, mean.shape[1] >= 2, "at least two latents")
  fits = factors.ndim == 2 and len(factors) == len(mean) and factors.shape[1] >= 1
  method.check("factors.shape", factors.shape, fits, f"[{len(mean)}, F]")
  whole = np.issubdtype(factors.dtype, np.integer)
  method.check("factors.dtype", str(factors.dtype), whole, "integers")
  latents = [np.digitize(z, np.histogram_bin_edges(z, bins)[1:-1]) for z in mean.T]
  classes = [np.unique(v, return_inverse=True)[1] for v in factors.T]
  entropy = np.array([_information(v, v) for v in classes])
  constant = [k for k, v in enumerate(classes) if v.max() == 0]
  method.check("factors that never vary", constant, not constant, "none")
  information = np.array([[_information(z, v) for v in classes] for z in latents])
  second, first = np.sort(information, axis=0)[-2:]
  return {"MIG": float(np.mean((first - second) / entropy)), "information": information}


def active_units(mean, *, threshold=1e-2):
  """How many latents have a posterior mean that varies over the data by more than `threshold`.

  Var_x(E[z | x]) > threshold, a whole number, 0 to D: a scalar. arXiv:1509.00519, Sec. 5.4.
  mean: of q(z | x), [N, D]. threshold: a variance.
  Raises ValueError for arrays of another shape or not finite, and a negative threshold.
  """
  method.check_weight("threshold", threshold)
  mean = frechet.check_features("mean", mean)
  return int((mean.var(axis=0) > threshold).sum())


def _information(a, b):
  """I(a; b) in nats of two arrays of classes 0, 1, ..., [N]."""
  joint = np.zeros((a.max() + 1, b.max() + 1))
  np.add.at(joint, (a, b), 1.0 / len(a))
  apart = np.outer(joint.sum(1), joint.sum(0))
  seen = joint > 0
  return np.sum(joint[seen] * np.log(joint[seen] / apart[seen]))

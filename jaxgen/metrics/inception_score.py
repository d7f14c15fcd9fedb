"""Inception score, in float64 on the host. arXiv:1606.03498."""

import numpy as np
from scipy import special

from jaxgen.core import method
from jaxgen.metrics import frechet


def inception_score(logits, *, splits=10):
  """exp of the mean KL(p(y | x) || p(y)), in nats: (mean, standard deviation) over splits, scalars.

  Args:
    logits: [n, K], of samples in random order: a split is a run of neighbours.
    splits: parts of n // splits rows or one more, each with its own p(y).

  Raises ValueError for fewer samples than splits.
  """
  method.check_count("splits", splits)
  log_p = special.log_softmax(frechet.check_features("logits", logits), axis=1)
  n = len(log_p)
  if n < splits:
    raise ValueError(f"splits={splits}: expected no more than the n={n} samples")
  scores = []
  for i in range(splits):
    part = log_p[i * n // splits : (i + 1) * n // splits]
    log_q = special.logsumexp(part, axis=0) - np.log(len(part))
    kl = np.sum(np.exp(part) * (part - log_q), axis=1)  # arXiv:1606.03498, Sec. 4
    scores.append(np.exp(kl.mean()))
  return float(np.mean(scores)), float(np.std(scores))

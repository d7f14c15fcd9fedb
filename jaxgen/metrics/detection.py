"""How well scores tell two classes apart, by scikit-learn. doi:10.1016/j.patrec.2005.10.010.

`scores` [n] are higher for class 1; `labels` [n] are 0 and 1, of both some. All functions raise
ValueError for other arrays and for scores that are not finite.
"""

import numpy as np
from sklearn import metrics

from jaxgen.core import method


def roc(scores, labels):
  """{"fpr", "tpr", "thresholds"}: the ROC curve, from (0, 0) to (1, 1), arrays [K].

  A score counts as class 1 from its threshold on: every score is one, and infinity is the first.
  Raises ValueError.
  """
  scores, labels = _check(scores, labels)
  fpr, tpr, thresholds = metrics.roc_curve(labels, scores, drop_intermediate=False)
  return {"fpr": fpr, "tpr": tpr, "thresholds": thresholds}


def auc(scores, labels):
  """Area under the ROC curve, a scalar: how often class 1 scores higher; ties count half.

  Raises ValueError.
  """
  scores, labels = _check(scores, labels)
  return float(metrics.roc_auc_score(labels, scores))


def average_precision(scores, labels):
  """Precision, averaged over the steps of recall and not interpolated, a scalar.

  Raises ValueError.
  """
  scores, labels = _check(scores, labels)
  return float(metrics.average_precision_score(labels, scores))


def tpr_at_fpr(scores, labels, fpr):
  """The largest true-positive rate whose false-positive rate is no more than fpr, a scalar.

  fpr: a scalar in [0, 1). Raises ValueError.
  """
  method.check_fraction("fpr", fpr)
  curve = roc(scores, labels)
  return float(curve["tpr"][curve["fpr"] <= fpr].max())


def _check(scores, labels):
  scores, labels = np.asarray(scores), np.asarray(labels)
  good = scores.ndim == 1 and scores.dtype.kind in "iuf"
  method.check("scores", f"{scores.dtype} {scores.shape}", good, "numbers [n]")
  method.check("scores", "not finite", np.isfinite(scores).all(), "finite numbers")
  method.check("labels.shape", labels.shape, labels.shape == scores.shape, f"{scores.shape}")
  values = np.unique(labels).tolist()
  method.check("values of labels", values, values == [0, 1], "both 0 and 1")
  return scores, labels

"""What a confusion matrix says: precision, recall, F1, the worst confusions.

The conventions are those of scikit-learn with `zero_division=0`: a ratio of
nothing to nothing is 0, and averages are over all classes, also those that
never occur.
"""

import dataclasses

import numpy as np

AVERAGES = ('macro', 'micro', 'weighted')
MEASURES = ('precision', 'recall', 'f1')


@dataclasses.dataclass(frozen=True)
class ClassMeasures:
  """Measures of every class, arrays [classes]: counts int64, ratios float64.

  Attributes:
    true_positives: examples of the class that were found.
    false_positives: examples of others that were taken for it.
    false_negatives: examples of the class that were taken for others.
    true_negatives: all other examples.
    precision: share of what was taken for the class that is of it.
    recall: share of the class that was found.
    f1: harmonic mean of both.
    support: examples of the class.
  """

  true_positives: np.ndarray
  false_positives: np.ndarray
  false_negatives: np.ndarray
  true_negatives: np.ndarray
  precision: np.ndarray
  recall: np.ndarray
  f1: np.ndarray
  support: np.ndarray


def class_measures(confusion: np.ndarray) -> ClassMeasures:
  """The measures of every class.

  Args:
    confusion: counts of (true class, predicted class), int [classes, classes].
  """
  confusion = np.asarray(confusion, np.int64)
  found = np.diag(confusion)
  support, predicted = confusion.sum(1), confusion.sum(0)
  return ClassMeasures(
    true_positives=found,
    false_positives=predicted - found,
    false_negatives=support - found,
    true_negatives=confusion.sum() - support - predicted + found,
    precision=_ratio(found, predicted),
    recall=_ratio(found, support),
    f1=_ratio(2 * found, support + predicted),
    support=support,
  )


def averages(confusion: np.ndarray) -> dict[str, float]:
  """{macro_precision, macro_recall, macro_f1, micro_..., weighted_...}.

  `macro` is the mean over the classes, `weighted` that by their numbers of
  examples, `micro` of all examples together, where each of the three measures
  is the accuracy.
  """
  measures = class_measures(confusion)
  weights = measures.support / max(1, measures.support.sum())
  accuracy = float(_ratio(measures.true_positives.sum(), confusion.sum()))
  values = {}
  for name in MEASURES:
    of_class = getattr(measures, name)
    values[f'macro_{name}'] = float(of_class.mean())
    values[f'micro_{name}'] = accuracy
    values[f'weighted_{name}'] = float((of_class * weights).sum())
  return values


def most_confused(
  confusion: np.ndarray, count: int
) -> list[tuple[int, int, int]]:
  """(true class, predicted class, examples) of the most frequent mistakes.

  At most `count`, the most frequent first; equal ones in the classes' order.
  """
  wrong = np.array(confusion, np.int64)
  np.fill_diagonal(wrong, 0)
  order = np.argsort(-wrong, axis=None, kind='stable')[:count]
  pairs = zip(*np.unravel_index(order, wrong.shape), strict=True)
  return [(int(t), int(p), int(wrong[t, p])) for t, p in pairs if wrong[t, p]]


def row_shares(confusion: np.ndarray) -> np.ndarray:
  """Each row over its sum, float64; rows without examples are 0."""
  confusion = np.asarray(confusion)
  return _ratio(confusion, confusion.sum(1, keepdims=True))


def _ratio(part, whole):
  """part / whole, 0 where both are; float64."""
  part, whole = np.asarray(part, float), np.asarray(whole, float)
  return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

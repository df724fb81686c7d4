"""Metrics: sums on the device, ratios and measures of classes on the host.

Measures of classes follow scikit-learn with `zero_division=0`, averaged over
all classes, also those that never occur.
"""

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import optax
import scipy.sparse

AVERAGES = ('macro', 'micro', 'weighted')
MEASURES = ('precision', 'recall', 'f1')


def example_sums(
  logits: jax.Array, labels: jax.Array, mask: jax.Array | None = None
) -> dict[str, jax.Array]:
  """Returns sums over the examples of one device's batch that the mask has.

  Logits are float32 [batch, num_classes], labels int32 [batch], the mask bool
  [batch]. Returns {loss, top1, top5: float32 [], count: int32 []}: the
  cross-entropy in nats and the numbers of examples whose label is among the one
  and the five largest logits. Equal ones rank by class number, as argmax does.
  """
  mask = jnp.ones(labels.shape, bool) if mask is None else mask
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  rank = label_ranks(logits, labels)
  return {
    'loss': jnp.sum(losses, where=mask),
    'top1': jnp.sum(rank < 1, where=mask, dtype=jnp.float32),
    'top5': jnp.sum(rank < 5, where=mask, dtype=jnp.float32),
    'count': jnp.sum(mask, dtype=jnp.int32),
  }


def label_ranks(scores, labels, xp=jnp):
  """Returns how many classes rank before the label of each example, int [n].

  Of equal scores, float [n, classes], the first ranks higher; `xp` is numpy.
  """
  own = xp.take_along_axis(scores, labels[:, None], axis=1)
  earlier = xp.arange(scores.shape[1])[None, :] < labels[:, None]
  ranks = xp.sum((scores > own) | ((scores == own) & earlier), axis=1)
  # Nothing exceeds a NaN, which must not make it one of the best guesses.
  return xp.where(xp.isnan(own[:, 0]), max(5, scores.shape[1]), ranks)


def best_classes(
  logits: jax.Array, labels: jax.Array, count: int
) -> dict[str, jax.Array]:
  """Returns the best `count` classes and the loss of each example.

  They are {classes: int32 [batch, count], best first (all, if there are fewer),
  probabilities: float32 [batch, count], loss: float32 [batch], in nats}.
  """
  # Ranked by the logits: small probabilities may all be 0.
  _, classes = lax.top_k(logits, min(count, logits.shape[1]))
  probabilities = jnp.take_along_axis(jax.nn.softmax(logits), classes, axis=1)
  losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
  return {'classes': classes, 'probabilities': probabilities, 'loss': losses}


def add_sums(total: dict[str, float], sums: dict) -> dict[str, float]:
  """Returns total + sums, in float64 on the host; `total` may be empty."""
  return {
    name: total.get(name, 0.0) + float(value) for name, value in sums.items()
  }


def ratios(sums: dict[str, float], prefix: str) -> dict[str, float]:
  """Returns {prefix/loss, prefix/top1, prefix/top5}; the count is positive.

  Also objective and unreadable, a number of images, where the sums have them.
  """
  values = {
    f'{prefix}/{name}': sums[name] / sums['count']
    for name in ('loss', 'top1', 'top5', 'objective')
    if name in sums
  }
  if 'unreadable' in sums:
    values[f'{prefix}/unreadable'] = int(sums['unreadable'])
  return values


def confusion_matrix(labels, predicted, num_classes: int):
  """Counts pairs (true class, predicted class), both int [n]: int64, csr."""
  return scipy.sparse.csr_array(
    (np.ones(len(labels), np.int64), (labels, predicted)),
    shape=(num_classes, num_classes),
  )


def class_measures(confusion) -> dict[str, np.ndarray]:
  """Returns the measures of every class of a confusion matrix, [classes].

  They are true_positives, false_positives, false_negatives, true_negatives
  (int64), precision, recall, f1 (float64) and support, the examples of a class.
  """
  found = confusion.diagonal()
  support, predicted = confusion.sum(axis=1), confusion.sum(axis=0)
  return {
    'true_positives': found,
    'false_positives': predicted - found,
    'false_negatives': support - found,
    'true_negatives': support.sum() - support - predicted + found,
    'precision': _ratio(found, predicted),
    'recall': _ratio(found, support),
    'f1': _ratio(2 * found, support + predicted),
    'support': support,
  }


def averaged_measures(confusion, prefix: str) -> dict[str, float]:
  """Returns {prefix/macro_precision, prefix/macro_recall, ...}.

  `macro` is the mean over the classes, `weighted` that by their numbers of
  examples, `micro` of all examples together, where each measure is top-1.
  """
  measures = class_measures(confusion)
  support = measures['support']
  weights = support / max(1, support.sum())
  top1 = float(_ratio(measures['true_positives'].sum(), confusion.sum()))
  values = {}
  for name in MEASURES:
    values[f'{prefix}/macro_{name}'] = float(measures[name].mean())
    values[f'{prefix}/micro_{name}'] = top1
    weighted = measures[name] * weights
    values[f'{prefix}/weighted_{name}'] = float(weighted.sum())
  return values


def most_confused(confusion, count: int) -> list[tuple[int, int, int]]:
  """Returns the `count` most frequent mistakes: (true, predicted, examples).

  The most frequent come first; equal ones in the classes' order.
  """
  pairs = scipy.sparse.coo_array(confusion)
  order = np.lexsort((pairs.col, pairs.row, -pairs.data))
  rows = np.stack([pairs.row, pairs.col, pairs.data], 1)[order]
  wrong = rows[(rows[:, 0] != rows[:, 1]) & (rows[:, 2] > 0)]
  return [tuple(row) for row in wrong[:count].tolist()]


def _ratio(part, whole):
  part, whole = np.asarray(part, float), np.asarray(whole, float)
  return np.divide(part, whole, out=np.zeros_like(part), where=whole > 0)

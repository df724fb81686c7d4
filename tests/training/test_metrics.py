import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import confusion_matrix, precision_recall_fscore_support

from alexnet_jax.training import metrics


def sums(logits, labels):
  values = jax.jit(metrics.example_sums)(
    jnp.asarray(logits, jnp.float32), jnp.asarray(labels, jnp.int32)
  )
  return {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize(
  ('logits', 'labels', 'top1', 'top5'),
  [
    (np.zeros((7, 7)), range(7), 1, 5),  # equal ones rank by class
    (np.full((7, 7), np.nan), range(7), 0, 0),  # never right
    (np.eye(3), [2, 1, 0], 1, 3),  # fewer than five classes
  ],
)
def test_ranks(logits, labels, top1, top5):
  values = sums(logits, labels)
  assert (values['top1'], values['top5']) == (top1, top5)


def test_sums_add_up_in_float64():
  total = {}
  for _ in range(3):
    total = metrics.add_sums(total, {'loss': np.float32(1e8), 'count': 1})
    total = metrics.add_sums(total, {'loss': np.float32(1.0), 'count': 1})
  assert total == {'loss': 3e8 + 3, 'count': 6}


def test_the_matrix_and_its_measures_equal_scikit_learns():
  """Some classes never occur, some are never predicted."""
  rng, classes = np.random.default_rng(0), 30
  labels, predicted = rng.integers(0, classes, (2, 3000))
  labels[labels % 5 == 1] = 0
  predicted[predicted == classes // 2] = 0
  predicted[::2] = labels[::2]
  names = np.arange(classes)
  confusion = metrics.confusion_matrix(labels, predicted, classes)
  np.testing.assert_array_equal(
    confusion.toarray(), confusion_matrix(labels, predicted, labels=names)
  )
  ours = metrics.class_measures(confusion)
  averages = metrics.averaged_measures(confusion, 'eval')
  for average in (None, *metrics.AVERAGES):
    *values, support = precision_recall_fscore_support(
      labels, predicted, labels=names, average=average, zero_division=0
    )
    for measure, value in zip(metrics.MEASURES, values, strict=True):
      found = ours[measure]
      if average:
        found = averages[f'eval/{average}_{measure}']
      assert found == pytest.approx(value)
    if average is None:
      np.testing.assert_array_equal(ours['support'], support)


def test_counts_by_hand():
  ours = metrics.class_measures(np.array([[5, 1, 0], [2, 3, 0], [0, 4, 0]]))
  np.testing.assert_array_equal(ours['true_positives'], [5, 3, 0])
  np.testing.assert_array_equal(ours['false_positives'], [2, 5, 0])
  np.testing.assert_array_equal(ours['false_negatives'], [1, 2, 4])
  np.testing.assert_array_equal(ours['true_negatives'], [7, 5, 11])


def test_most_confused_pairs():
  confusion = np.array([[9, 1, 0], [4, 9, 4], [0, 0, 9]])
  pairs = metrics.most_confused(confusion, 9)
  assert pairs == [(1, 0, 4), (1, 2, 4), (0, 1, 1)]
  assert metrics.most_confused(confusion, 1) == [(1, 0, 4)]
  assert metrics.most_confused(np.eye(3), 5) == []


def test_a_sure_network_ranks_all_classes():
  """All probabilities but the first are 0 in float32."""
  logits = np.array([[200.0, 50, 10, 60, 40, 30]], np.float32)
  best = metrics.best_classes(jnp.asarray(logits), jnp.asarray([0]), 9)
  assert best['classes'].tolist() == [[0, 3, 1, 4, 5, 2]]
  assert best['probabilities'].tolist() == [[1, 0, 0, 0, 0, 0]]

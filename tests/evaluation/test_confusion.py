import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import classification_report
from sklearn.metrics import confusion_matrix
from sklearn.metrics import precision_recall_fscore_support

from alexnet_jax.evaluation import confusion as confusion_lib
from alexnet_jax.evaluation import metrics


def predictions(classes, examples=3000, seed=0):
  """Logits and labels; some classes never occur, some are never predicted."""
  rng = np.random.default_rng(seed)
  labels = rng.integers(0, classes, examples)
  labels[labels % 5 == 1] = 0  # a fifth of the classes never occurs
  logits = rng.normal(size=(examples, classes)).astype(np.float32)
  logits[np.arange(examples), labels] += 2
  logits[:, classes // 2] = -50  # never predicted
  return logits, labels


def on_device(logits, labels, mask=None):
  mask = np.ones(len(labels), bool) if mask is None else mask
  return np.asarray(
    metrics.confusion_matrix(
      jnp.asarray(logits), jnp.asarray(labels), jnp.asarray(mask)
    )
  )


@pytest.mark.parametrize('classes', [2, 10, 1000])
def test_the_matrix_equals_scikit_learns(classes):
  logits, labels = predictions(classes)
  expected = confusion_matrix(
    labels, logits.argmax(1), labels=np.arange(classes)
  )
  np.testing.assert_array_equal(on_device(logits, labels), expected)


def test_masked_examples_are_not_in_the_matrix():
  logits, labels = predictions(6)
  mask = np.arange(len(labels)) % 3 != 0
  np.testing.assert_array_equal(
    on_device(logits, labels, mask), on_device(logits[mask], labels[mask])
  )


@pytest.mark.parametrize('classes', [2, 10, 1000])
def test_measures_equal_scikit_learns_report(classes):
  logits, labels = predictions(classes)
  confusion = on_device(logits, labels)
  report = classification_report(
    labels,
    logits.argmax(1),
    labels=np.arange(classes),
    output_dict=True,
    zero_division=0,
  )
  ours = confusion_lib.class_measures(confusion)
  for number in range(classes):
    row = report[str(number)]
    assert ours.precision[number] == pytest.approx(row['precision'])
    assert ours.recall[number] == pytest.approx(row['recall'])
    assert ours.f1[number] == pytest.approx(row['f1-score'])
    assert ours.support[number] == row['support']
  averages = confusion_lib.averages(confusion)
  for average in confusion_lib.AVERAGES:
    values = precision_recall_fscore_support(
      labels,
      logits.argmax(1),
      labels=np.arange(classes),
      average=average,
      zero_division=0,
    )
    for measure, value in zip(confusion_lib.MEASURES, values[:3], strict=True):
      assert averages[f'{average}_{measure}'] == pytest.approx(value)
  assert averages['micro_f1'] == pytest.approx(report['accuracy'])


def test_counts_by_hand():
  ours = confusion_lib.class_measures([[5, 1, 0], [2, 3, 0], [0, 4, 0]])
  np.testing.assert_array_equal(ours.true_positives, [5, 3, 0])
  np.testing.assert_array_equal(ours.false_positives, [2, 5, 0])
  np.testing.assert_array_equal(ours.false_negatives, [1, 2, 4])
  np.testing.assert_array_equal(ours.true_negatives, [7, 5, 11])
  np.testing.assert_array_equal(ours.precision, [5 / 7, 3 / 8, 0])


def test_most_confused_pairs():
  confusion = np.array([[9, 1, 0], [4, 9, 4], [0, 0, 9]])
  pairs = confusion_lib.most_confused(confusion, 9)
  assert pairs == [(1, 0, 4), (1, 2, 4), (0, 1, 1)]
  assert confusion_lib.most_confused(confusion, 1) == [(1, 0, 4)]
  assert confusion_lib.most_confused(np.eye(3), 5) == []


def test_best_classes_are_sorted_with_their_probabilities():
  logits = np.array([[0.0, 3.0, 1.0], [5.0, 0.0, 0.0]], np.float32)
  best = metrics.best_classes(jnp.asarray(logits), jnp.asarray([2, 0]), 5)
  shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
  np.testing.assert_array_equal(best['classes'], [[1, 2, 0], [0, 1, 2]])
  np.testing.assert_allclose(
    best['probabilities'], -np.sort(-shares, axis=1), rtol=1e-6
  )
  np.testing.assert_allclose(
    best['loss'],
    [-np.log(shares[0, 2]), -np.log(shares[1, 0])],
    rtol=1e-5,
    atol=1e-6,
  )


def test_a_sure_network_ranks_all_classes():
  """All probabilities but the first are 0 in float32, or the same."""
  sure = np.array([[200.0, 50, 10, 60, 40, 30]], np.float32)
  best = metrics.best_classes(jnp.asarray(sure), jnp.asarray([0]), 5)
  assert best['classes'].tolist() == [[0, 3, 1, 4, 5]]
  near = np.array([[0.1, np.nextafter(np.float32(0.1), 1), 0]], np.float32)
  best = metrics.best_classes(jnp.asarray(near), jnp.asarray([0]), 1)
  assert best['classes'].tolist() == [[1]]
  matrix = metrics.confusion_matrix(
    jnp.asarray(near), jnp.asarray([0]), jnp.asarray([True])
  )
  assert matrix[0, 1] == 1

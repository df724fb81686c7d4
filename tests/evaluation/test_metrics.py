import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.metrics import log_loss
from sklearn.metrics import top_k_accuracy_score

from alexnet_jax.evaluation import metrics


def sums(logits, labels, mask=None):
  values = metrics.example_sums(
    jnp.asarray(logits, jnp.float32),
    jnp.asarray(labels, jnp.int32),
    None if mask is None else jnp.asarray(mask),
  )
  return {name: float(value) for name, value in values.items()}


@pytest.mark.parametrize('classes', [6, 10, 1000])
def test_equals_scikit_learn(classes):
  rng = np.random.default_rng(0)
  logits = rng.normal(size=(200, classes)).astype(np.float32)
  labels = rng.integers(0, classes, 200)
  labels[:100] = logits[:100].argsort(1)[:, -3]  # the third best guess
  actual = metrics.ratios(metrics.add_sums({}, sums(logits, labels)), 'eval')
  names = np.arange(classes)
  probabilities = np.exp(logits.astype(np.float64))
  probabilities /= probabilities.sum(1, keepdims=True)
  for k in (1, 5):
    assert actual[f'eval/top{k}'] == pytest.approx(
      top_k_accuracy_score(labels, logits, k=k, labels=names)
    )
  assert actual['eval/loss'] == pytest.approx(
    log_loss(labels, probabilities, labels=names), rel=1e-5
  )


def test_masked_examples_do_not_count():
  logits = np.eye(6)[[0, 1, 2]] * 9
  assert sums(logits, [0, 1, 0], [True, False, True]) == pytest.approx(
    {
      'loss': 2 * np.log(np.exp(9) + 5) - 9 - 0,
      'top1': 1,
      'top5': 2,
      'count': 2,
    },
    rel=1e-4,
  )


def test_equal_logits_rank_by_class():
  logits = np.zeros((7, 7))
  values = sums(logits, range(7))
  assert (values['top1'], values['top5']) == (1, 5)


@pytest.mark.parametrize('classes', [3, 6])
def test_nan_is_never_right(classes):
  values = sums(np.full((2, classes), np.nan), [0, classes - 1])
  assert (values['top1'], values['top5']) == (0, 0)


def test_fewer_than_five_classes():
  assert sums(np.eye(3), [2, 1, 0])['top5'] == 3


def test_sums_add_up_in_float64():
  total = {}
  for _ in range(3):
    total = metrics.add_sums(total, {'loss': np.float32(1e8), 'count': 1})
    total = metrics.add_sums(total, {'loss': np.float32(1.0), 'count': 1})
  assert total == {'loss': 3e8 + 3, 'count': 6}

import hashlib

import numpy as np
import pytest

from alexnet_jax.data import sources
from alexnet_jax.data import splits
from alexnet_jax.errors import UserError


def test_held_out_ranks_by_hash():
  """The same ranking by hand: this split must never change."""
  keys = [f'k{i}' for i in range(10)]
  labels = np.array([0, 1] * 5)
  mask = splits.held_out(keys, labels, 0.4, 7)
  for label in (0, 1):
    members = [i for i in range(10) if labels[i] == label]
    members.sort(key=lambda i: hashlib.sha256(f'7:k{i}'.encode()).hexdigest())
    assert [bool(mask[i]) for i in members] == [True] * 2 + [False] * 3


def test_never_all_of_a_class_is_held_out():
  """Nor none; the one of a class with a single example is named."""
  labels = np.array([0] * 2 + [1] * 9)
  keys = [str(i) for i in range(11)]
  for fraction, counts in ((0.99, [1, 8]), (0.01, [1, 1]), (0, [0, 0])):
    mask = splits.held_out(keys, labels, fraction, 0)
    assert np.bincount(labels[mask], minlength=2).tolist() == counts
  with pytest.raises(
    UserError, match=r"class 'emu' has a single example \(0\)"
  ):
    splits.held_out(keys[:1], labels[:1], 0.2, 0, ['emu'])


def test_digits_are_mnist():
  train, validation = (sources.digits_source(s) for s in sources.SPLITS)
  assert np.bincount(train.labels).tolist() == [400] * 10
  assert np.bincount(validation.labels).tolist() == [100] * 10
  image, label = train.read(0)
  assert image.shape == (28, 28, 3)
  assert label == 0
  # Ink is bright on black, and no digit is in both splits.
  assert image[0].max() == 0
  assert image.max() > 200
  ours = {i.tobytes() for i in train.images}
  shared = sum(i.tobytes() in ours for i in validation.images)
  assert shared == 0


def test_synthetic_classes_differ_and_splits_too():
  train = sources.synthetic_source('train', 40, 4)
  validation = sources.synthetic_source('validation', 40, 4)
  assert train.num_examples == 40
  assert validation.num_examples == 10
  assert (train.images[0] != validation.images[0]).any()
  bands = train.images[train.labels == 2].mean((0, 2, 3))
  assert bands[32:48].min() > bands[:32].max()
  assert train.fingerprint != validation.fingerprint

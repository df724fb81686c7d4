"""Cross-validation: every example of a pool is held out in exactly one fold.

The pool are the training examples, where the set has a validation split of its
own, or else all examples. A fold depends on their labels in their order, on the
number of folds and on the seed alone.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses

import numpy as np

from alexnet_jax.data import tfds_labels
from alexnet_jax.data.splits import digest
from alexnet_jax.errors import UserError

_MOST_SEED = 2**32 - 1  # of numpy's older random generator


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """Some examples of a source, as a source; see `sources`.

  What only some kinds of sources have (`file_name`, `in_memory`, `square_size`,
  `addresses`) a part has if its source does.

  Attributes:
    source: the whole.
    indices: of the examples in the source, int64 [n].
    labels: int32 [n].
    part: what messages call it.
  """

  source: object
  indices: np.ndarray
  labels: np.ndarray
  part: str

  @property
  def name(self) -> str:
    return f'{self.source.name} ({self.part})'

  @property
  def num_examples(self) -> int:
    return len(self.indices)

  @property
  def class_names(self) -> Sequence[str]:
    return self.source.class_names

  @property
  def fingerprint(self) -> str:
    return digest(self.source.fingerprint.encode(), self.indices.tobytes())

  def read(self, index: int) -> tuple:
    return self.source.read(int(self.indices[index]))

  def describe(self, index: int) -> str:
    """The name that the example has in the whole, in whatever fold it is."""
    return self.source.describe(int(self.indices[index]))

  @property
  def file_name(self) -> Callable[[int], str]:
    whole = self.source.file_name
    return lambda index: whole(int(self.indices[index]))

  @property
  def in_memory(self) -> bool:
    return self.source.in_memory

  @property
  def square_size(self) -> int:
    return self.source.square_size

  @property
  def addresses(self) -> Callable[[np.ndarray], np.ndarray]:
    whole = self.source.addresses
    return lambda indices: whole(self.indices[indices])


def fold_of(pool, split: str, *, folds: int, fold: int, seed: int) -> Part:
  """One side of a fold: examples in the pool's order.

  Args:
    pool: a source.
    split: `validation` is the fold, `train` all the others.
    folds: their number.
    fold: which one, from 0.
    seed: of the split.

  Raises:
    UserError: if there are no examples, a class has fewer of them than there
      are folds, or the seed is unfit.
  """
  if not pool.num_examples:
    raise UserError(f'{pool.name} has no examples')
  labels = getattr(pool, 'labels', None)
  if labels is None:
    labels = tfds_labels.read_labels(pool)
  _check_classes(pool, labels, folds)
  chosen = fold_numbers(labels, folds, seed) == fold
  part = f'fold {fold} of {folds}'
  if split == 'train':
    chosen, part = ~chosen, f'without {part}'
  return Part(pool, np.flatnonzero(chosen), labels[chosen], part)


def _check_classes(pool, labels, folds):
  names = pool.class_names
  for label, count in zip(*np.unique(labels, return_counts=True), strict=True):
    if not 0 <= label < len(names):
      raise UserError(
        f'{pool.name} has {count} examples with the label {label}, which is'
        f' none of its {len(names)} classes'
      )
    if count < folds:
      raise UserError(
        f'{pool.name}: class {names[label]!r} has {count} examples, fewer than'
        f' config.data.folds = {folds}: give fewer folds, add examples, or take'
        ' the class away'
      )


def fold_numbers(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
  """The fold of each example by scikit-learn's StratifiedKFold, int64 [n].

  Args:
    labels: int [n]; of each class there are as many as folds, or more.
    folds: their number, at least 2.
    seed: of the shuffling.

  Raises:
    UserError: if the seed is unfit.
  """
  if not 0 <= seed <= _MOST_SEED:
    raise UserError(
      f'config.data.split_seed is {seed}; with folds it must lie between 0 and'
      f' {_MOST_SEED}'
    )
  from sklearn.model_selection import StratifiedKFold  # slow

  stratified = StratifiedKFold(folds, shuffle=True, random_state=seed)
  numbers = np.empty(len(labels), np.int64)
  for number, (_, held_out) in enumerate(stratified.split(labels, labels)):
    numbers[held_out] = number
  return numbers

"""Held-out parts and folds of a data set, and hashes of what it holds.

In a cross-validation every example of a pool is held out in exactly one fold.
The pool are the training examples, where the set has a validation split of its
own, or else all examples. A fold depends on their labels in their order, on the
number of folds and on the seed alone.
"""

from collections.abc import Callable
from collections.abc import Sequence
import dataclasses
import hashlib

import numpy as np

from alexnet_jax.errors import UserError

_MOST_SEED = 2**32 - 1  # of numpy's older random generator


def held_out(
  keys: Sequence[str], labels: np.ndarray, fraction: float, seed: int
) -> np.ndarray:
  """Returns the validation examples of a stratified split, bool [n].

  Within each class the examples are ranked by a hash of (seed, key), and the
  first `fraction` of them (rounded, at least one, never all) are held out. The
  split is a function of its arguments alone, on any platform; an added example
  moves at most one other. A fraction of 0 holds nothing out.

  Raises:
    UserError: if a class has a single example.
  """
  mask = np.zeros(len(keys), bool)
  if not fraction:
    return mask
  ranks = [_rank(seed, key) for key in keys]
  for label in np.unique(labels):
    members = np.flatnonzero(labels == label)
    if len(members) < 2:
      raise UserError(
        f'class {label} has a single example ({keys[members[0]]}), which cannot'
        ' be both trained on and held out; add examples or remove the class'
      )
    count = min(max(1, round(fraction * len(members))), len(members) - 1)
    ordered = sorted(members, key=lambda i: ranks[i])
    mask[ordered[:count]] = True
  return mask


def _rank(seed, key):
  # A file's name may hold bytes that are no UTF-8.
  text = f'{seed}:{key}'.encode(errors='surrogateescape')
  return hashlib.sha256(text).digest()


def digest(*parts: bytes) -> str:
  """Returns 16 hexadecimal digits of the SHA-256 of some byte strings."""
  sha = hashlib.sha256()
  for part in parts:
    sha.update(len(part).to_bytes(8, 'little'))
    sha.update(part)
  return sha.hexdigest()[:16]


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
  """Some examples of a source, as a source of their own; see `sources.Source`.

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
    """Returns the name that the example has in the whole, in any fold."""
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
  """Returns one side of a fold: examples in the pool's order.

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
  known = hasattr(pool, 'labels')
  labels = pool.labels if known else pool.read_labels()
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
        f' config.data.folds = {folds}: use fewer folds, add examples, or'
        ' remove the class'
      )


def fold_numbers(labels: np.ndarray, folds: int, seed: int) -> np.ndarray:
  """Returns the fold of each example by StratifiedKFold, int64 [n].

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

"""Splits of a data set: as files are named, held-out parts, and folds.

In a cross-validation every example of a pool is held out in exactly one fold.
The pool are the training examples, where the set has a validation split of its
own, or else all examples. A fold depends on their labels in their order, on the
number of folds and on the seed alone.
"""

import collections
from collections.abc import Sequence
import dataclasses
import functools
import hashlib
import logging
import operator
import pathlib
import re
import threading
import unicodedata

import numpy as np

from alexnet_jax.errors import UserError

_SPLIT_OF_WORD = {
  **dict.fromkeys(('train', 'training'), 'train'),
  **dict.fromkeys(('val', 'valid', 'validation', 'dev'), 'validation'),
  **dict.fromkeys(('test', 'testing', 'eval', 'evaluation'), 'test'),
}
# What a label of -1 mostly is.
UNLABELED = (
  ': -1 marks a test split without labels; remove its files, and a part of'
  ' training is held out'
)
_MOST_SEED = 2**32 - 1  # of numpy's older random generator
_MOST_UNNAMED_CLASSES = 1_000_000
_warnings: set[str] = set()
_warnings_lock = threading.Lock()


def split_words(name: str) -> collections.Counter[str]:
  """Counts the words for train, validation and test in a name."""
  words = re.findall('[A-Z]+(?![a-z])|[A-Z]?[a-z]+', name)  # of valData two
  splits = (_SPLIT_OF_WORD.get(word.lower()) for word in words)
  return collections.Counter(filter(None, splits))


def split_of_name(name: str) -> str:
  """Returns the split that a whole name stands for: `Train`, `test1`, or ''."""
  return _SPLIT_OF_WORD.get(re.sub('[^a-z]', '', name.lower()), '')


def sort_into_splits(
  root: pathlib.Path, names: Sequence[str], split: str = 'train'
) -> dict[str, list[str]]:
  """Sorts the data files of a set into splits, by their names.

  A file belongs to the split whose word (train, val, test and their like) is in
  its name, or else in that of a folder around it, the nearest first.
  Words that all names have say nothing. If no file is named so, all are for
  training. `test` serves as validation if there is no other.

  Args:
    root: the folder, for messages.
    names: paths of the files below it.
    split: that is opened; for `all` there need be no training files.

  Returns:
    {'train': paths, 'validation': paths}; the second may be empty.

  Raises:
    UserError: if no file is for training, or those lie in several folders,
      which are data sets of their own.
  """
  words = [
    next(filter(None, map(split_words, reversed(name.split('/')))), {})
    for name in names
  ]
  shared = functools.reduce(operator.and_, map(collections.Counter, words))
  rest = [collections.Counter(found) - shared for found in words]
  if all(len(found) == 1 for found in rest):  # speed-test-train-0.tar
    words = rest
  found = {'train': [], 'validation': [], 'test': [], '': [], 'several': []}
  for name, own in zip(names, words, strict=True):
    found['several' if len(own) > 1 else ''.join(own)].append(name)
  train = found['train']
  validation = found['validation'] or found['test']
  unclear = found['several'] + found['']
  if not (train or validation or found['several']):
    train, unclear = unclear, []
  if split == 'all' and not train:
    train, validation = validation, []
  if not train:
    raise UserError(
      f"{root} has no files for training, with 'train' and no other split in"
      f' the name; the first that it has: {names[0]}'
    )
  folders = sorted({name.rpartition('/')[0] or '.' for name in train})
  if len(folders) > 1:
    raise UserError(
      f'{root} has training files in {len(folders)} folders'
      f' ({", ".join(folders[:5])}), which may be data sets of their own; give'
      f' one of them: --config.data.path={root / folders[-1]}'
    )
  if unclear:
    warn_once(
      f'{root}: {len(unclear)} files are left out whose names do not tell one'
      f' split, the first: {unclear[0]}'
    )
  if validation and validation == found['test']:
    warn_once(f'{root}: the test split serves as validation')
  return {'train': train, 'validation': validation}


def normal(name: str) -> str:
  """Returns a class's name in one of the spellings that Unicode has for it."""
  return unicodedata.normalize('NFC', name)


def check_labels(
  name: object, labels: np.ndarray, names: Sequence[str] | None
) -> tuple[str, ...]:
  """Returns the class names of training labels.

  Args:
    name: what messages call the data set.
    labels: of the training examples, int, from 0.
    names: of the classes; None: their numbers.

  Raises:
    UserError: if there is one class only, or a label without a name.
  """
  classes = np.unique(labels)
  if len(classes) < 2:
    raise UserError(
      f'{name} has training examples of {len(classes)} class(es)'
      f' ({classes.tolist()}); two are needed at least'
    )
  largest = int(classes[-1])
  if names is None and largest < _MOST_UNNAMED_CLASSES:
    names = [str(number) for number in range(largest + 1)]
  if names is None or largest >= len(names):
    known = 'too large to count classes by'
    if names is not None:
      known = f'but names of {len(names)} classes only'
    raise UserError(f'{name} has the label {largest}, {known}; count from 0')
  if empty := sorted(set(range(len(names))) - set(classes.tolist())):
    warn_once(
      f'{name}: {len(empty)} of {len(names)} classes have no training example,'
      f' the first: {names[empty[0]]} (number {empty[0]})'
    )
  return tuple(names)


def check_validation_labels(
  name: object, train_labels: np.ndarray, labels: np.ndarray
) -> None:
  """Raises UserError for no validation labels, or some that training lacks."""
  if not len(labels):
    raise UserError(
      f'{name}: the files for validation have no examples; remove them, and a'
      ' part of training is held out'
    )
  unknown = np.setdiff1d(labels, train_labels)
  if len(unknown):
    raise UserError(
      f'{name} has {len(unknown)} labels in validation that training lacks,'
      f' the first: {unknown[0]}'
    )


def held_out(
  keys: Sequence[str],
  labels: np.ndarray,
  fraction: float,
  seed: int,
  class_names: Sequence[str] = (),
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
  if not fraction or not len(keys):
    return mask
  ranks = [_rank(seed, key) for key in keys]
  order = np.argsort(labels, kind='stable')
  for members in np.split(order, np.flatnonzero(np.diff(labels[order])) + 1):
    if len(members) < 2:
      label = labels[members[0]]
      name = repr(class_names[label]) if len(class_names) else label
      raise UserError(
        f'class {name} has a single example ({keys[members[0]]}), which cannot'
        ' be both trained on and held out; add examples or remove the class'
      )
    count = min(max(1, round(fraction * len(members))), len(members) - 1)
    ordered = sorted(members, key=lambda i: ranks[i])
    mask[ordered[:count]] = True
  return mask


def warn_of_own_split(root: pathlib.Path, fraction: float, seed: int) -> None:
  """Warns that nothing is held out of data that has its own validation."""
  if fraction and (fraction, seed) != (0.2, 0):  # those of the config
    warn_once(
      f'{root} has its own validation split: config.data.val_fraction ='
      f' {fraction} and config.data.split_seed = {seed} have no effect'
    )


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


def warn_once(message: str) -> None:
  """Logs a warning, unless this process has done so already."""
  with _warnings_lock:  # several threads may come with the same one
    is_new = message not in _warnings
    _warnings.add(message)
  if is_new:
    logging.warning('%s', message)


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

  def __getattr__(self, name):
    if name in ('in_memory', 'square_size'):
      return getattr(self.source, name)
    if name in ('file_name', 'addresses'):
      whole = getattr(self.source, name)
      return lambda index: whole(self.indices[index])
    raise AttributeError(name)


def fold_of(pool, split: str, *, folds: int, fold: int, seed: int) -> Part:
  """Returns one side of a fold of StratifiedKFold, in the pool's order.

  Args:
    pool: a source.
    split: `validation` is the fold, `train` all the others.
    folds: their number, at least 2.
    fold: which one, from 0.
    seed: of the shuffling.

  Raises:
    UserError: if there are no examples, a class has fewer of them than there
      are folds, a label is no class, or the seed is unfit.
  """
  if not 0 <= seed <= _MOST_SEED:
    raise UserError(
      f'config.data.split_seed is {seed}; with folds it must lie between 0 and'
      f' {_MOST_SEED}'
    )
  if not pool.num_examples:
    raise UserError(f'{pool.name} has no examples')
  labels = pool.labels if hasattr(pool, 'labels') else pool.read_labels()
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
  from sklearn.model_selection import StratifiedKFold  # slow

  stratified = StratifiedKFold(folds, shuffle=True, random_state=seed)
  train, held = list(stratified.split(labels, labels))[fold]
  part = f'fold {fold} of {folds}'
  if split == 'train':
    return Part(pool, train, labels[train], f'without {part}')
  return Part(pool, held, labels[held], part)

"""Sources of examples, and how they are divided: splits, held-out parts, folds.

A fold depends on the labels of the training split in their order, on the number
of folds and on the seed alone.
"""

import collections
from collections.abc import Callable, Iterable, Sequence
import concurrent.futures
import dataclasses
import functools
import hashlib
import logging
import operator
import os
import pathlib
import re
from typing import NamedTuple
import unicodedata

import numpy as np

from alexnet_jax.errors import listed, UserError

_SPLIT_OF_WORD = {
  **dict.fromkeys(('train', 'training'), 'train'),
  **dict.fromkeys(('val', 'valid', 'validation', 'dev'), 'validation'),
  **dict.fromkeys(('test', 'testing', 'eval', 'evaluation'), 'test'),
}
_MOST_UNNAMED_CLASSES = 1_000_000
_THREADS = 16


class Source:
  """One split of a data set, which several threads read at once.

  Some sources have more: `labels`, int32 [n], if they are known without reading
  the examples, or `read_labels()`; `keys()`, names that `hold_out` ranks;
  `per_example`, the fields with an item for each example, for `take`;
  `file_name(index)`; `in_memory`: True if `read` gives pixels held in memory;
  `square_size`, `channels`, `addresses(indices)`, `rgb_mean`,
  `rgb_covariance`: see `raw`.
  """

  name: str  # what messages call it
  class_names: Sequence[str]  # in the order of the labels
  # A short hash of what tells the examples apart: pixels in memory, names and
  # sizes of files, the description of a TFDS set.
  fingerprint: str

  @property
  def num_examples(self) -> int:
    return len(self.labels)

  def read(self, index: int) -> tuple[bytes | np.ndarray, int]:
    """Returns (encoded bytes or uint8 [height, width, 3], label)."""
    raise NotImplementedError

  def describe(self, index: int) -> str:
    """Returns the name of one example in messages."""
    return f'{self.name} example {index}'

  def take(self, indices: np.ndarray) -> 'Source':
    """Returns a source of some examples."""
    parts = {name: getattr(self, name)[indices] for name in self.per_example}
    return dataclasses.replace(self, **parts)


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
) -> tuple[list[str], list[str]]:
  """Sorts the data files of a set into (train, validation) by their names.

  A file belongs to the split whose word is in its name, or else in that of a
  folder around it, the nearest first; words that all names have say nothing. If
  no file is named so, all are for training. `test` serves as validation if
  there is no other. To open `all` there need be no files for training.
  Raises UserError if there are none, or they lie in several folders.
  """
  none = collections.Counter()
  words = [
    next(filter(None, map(split_words, reversed(name.split('/')))), none)
    for name in names
  ]
  shared = functools.reduce(operator.and_, words)
  rest = [found - shared for found in words]
  if all(len(found) == 1 for found in rest):  # speed-test-train-0.tar
    words = rest
  found = collections.defaultdict(list)
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
      f"{root} has no files for training, named 'train'; the first: {names[0]}"
    )
  folders = sorted({name.rpartition('/')[0] or '.' for name in train})
  if len(folders) > 1:
    raise UserError(
      f'{root} has training files in {len(folders)} folders'
      f' ({listed(folders)}); give one: --config.data.path={root}/...'
    )
  if unclear:
    warn_once(
      f'{root}: {len(unclear)} files of no split are left out: {unclear[0]} ...'
    )
  if validation and validation == found['test']:
    warn_once(f'{root}: the test split serves as validation')
  return train, validation


def normal(name: str) -> str:
  """Returns a class's name in one of the spellings that Unicode has for it."""
  return unicodedata.normalize('NFC', name)


def check_labels(
  root: pathlib.Path,
  labels: np.ndarray,
  names: Sequence[str] | None,
  training: Source | None = None,
) -> tuple[str, ...]:
  """Returns the names of the classes, once the labels are found to fit.

  Args:
    root: what messages call the data set.
    labels: int, from 0.
    names: of the classes; None: their numbers.
    training: its source, if the labels are those of validation.

  Raises UserError if training has one class or a label without a name,
  validation no label or one that training lacks.
  """
  classes = np.unique(labels)
  if training is not None:
    if not len(classes):
      raise UserError(f'{root}: the files for validation have no examples')
    if len(unknown := np.setdiff1d(classes, training.labels)):
      name = dict(enumerate(training.class_names)).get(unknown[0], unknown[0])
      first = f'that training lacks, the first: {name}'
      raise UserError(f'{root} has {len(unknown)} labels in validation {first}')
    return training.class_names
  if len(classes) < 2:
    found = f'{len(classes)} class(es) ({classes.tolist()})'
    raise UserError(f'{root} has training examples of {found}; it needs two')
  largest = int(classes[-1])
  if names is None:
    names = range(min(largest + 1, _MOST_UNNAMED_CLASSES))
  if largest >= len(names):
    known = f'but {len(names)} classes at most; count from 0'
    raise UserError(f'{root} has the label {largest}, {known}')
  if len(empty := np.setdiff1d(range(len(names)), classes)):
    warn_once(
      f'{root}: {len(empty)} of {len(names)} classes have no training example,'
      f' the first: {names[empty[0]]} (number {empty[0]})'
    )
  return tuple(map(str, names))


class Side(NamedTuple):
  """Which side of a set is opened, and how one without splits is divided."""

  split: str  # see `sources.make_source`
  fraction: float = 0.2  # of each class, for validation; 0: nothing
  seed: int = 0


def hold_out(source: Source, side: Side) -> Source:
  """Returns one side of a stratified split of a source.

  Within each class the examples are ranked by a hash of (seed, key), and the
  first `fraction` of them (rounded, at least one, never all) are held out for
  `validation`: an added example moves at most one other. Raises UserError if a
  class has a single example.
  """
  keys, labels, held = source.keys(), source.labels, []
  order = np.argsort(labels, kind='stable')
  edges = np.flatnonzero(np.diff(labels[order])) + 1
  classes = np.split(order, edges) if side.fraction else ()
  if single := [members[0] for members in classes if len(members) == 1]:
    names = (f'{source.class_names[labels[i]]!r} ({keys[i]})' for i in single)
    raise UserError(
      f'{source.name}: classes with a single example: {listed(names)}; add'
      ' another to hold out, or remove the class'
    )
  for members in classes:
    count = min(max(1, round(side.fraction * len(members))), len(members) - 1)
    held += sorted(members, key=lambda i: _rank(side.seed, keys[i]))[:count]
  is_held = np.isin(np.arange(len(labels)), held)
  is_wanted = is_held == (side.split == 'validation')
  return source.take(np.flatnonzero(is_wanted))


def _rank(seed, key):
  # A file's name may hold bytes that are no UTF-8.
  text = f'{seed}:{key}'.encode(errors='surrogateescape')
  return hashlib.sha256(text).digest()


def open_side(
  root: pathlib.Path,
  side: Side,
  training: Callable[[], Source],
  validation: Callable[[], Source] | None,
) -> Source:
  """Opens one side of a set; without its own validation it is held out."""
  if validation is None:
    return hold_out(training(), side)
  if side.fraction and side[1:] != (0.2, 0):  # those of the config
    warn_once(
      f'{root} has its own validation split: config.data.val_fraction ='
      f' {side.fraction} and split_seed = {side.seed} have no effect'
    )
  return training() if side.split == 'train' else validation()


def digest(*parts: bytes) -> str:
  """Returns 16 hexadecimal digits of the SHA-256 of some byte strings."""
  sha = hashlib.sha256()
  for part in parts:
    sha.update(len(part).to_bytes(8, 'little'))
    sha.update(part)
  return sha.hexdigest()[:16]


def no_label(place: str, label: object) -> UserError:
  """Returns the error that a label is no number of a class."""
  label = str(label)[:80]
  advice = '; remove the files of a test split without labels'
  return UserError(
    f'{place} has the label {label!r}, which is no whole number from 0'
    f'{advice * (label == "-1")}'
  )


def changed(path: str | os.PathLike) -> UserError:
  """Returns the error that a file of a set is no more what it was."""
  return UserError(
    f'{path} has changed since the run started: start again once the data stays'
    ' as it is'
  )


def in_threads(function: Callable, items: Iterable) -> list:
  """Returns the results for some items; threads wait for the disk at once."""
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    return list(pool.map(function, items))


@functools.cache
def warn_once(message: str) -> None:
  """Logs a warning, unless this process has done so already."""
  logging.warning('%s', message)


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Part(Source):
  """Some examples of a source, with what its kind of source has."""

  name: str
  source: Source  # the whole
  indices: np.ndarray  # in the whole, int64 [n]
  labels: np.ndarray  # int32 [n]

  @property
  def fingerprint(self) -> str:
    return digest(self.source.fingerprint.encode(), self.indices.tobytes())

  def read(self, index: int) -> tuple:
    return self.source.read(int(self.indices[index]))

  def describe(self, index: int) -> str:
    return self.source.describe(int(self.indices[index]))

  def __getattr__(self, name):
    if name in ('class_names', 'in_memory', 'square_size', 'channels'):
      return getattr(self.source, name)
    if name in ('file_name', 'addresses'):
      whole = getattr(self.source, name)
      return lambda index: whole(self.indices[index])
    raise AttributeError(name)


def read_labels(source: Source) -> np.ndarray:
  """Returns all labels, int32 [n]; raises UserError if one is no class."""
  known, classes = hasattr(source, 'labels'), len(source.class_names)
  labels = source.labels if known else source.read_labels()
  if len(wrong := labels[(labels < 0) | (labels >= classes)]):
    raise UserError(
      f'{source.name} has {sum(wrong == wrong[0])} examples with the label'
      f' {wrong[0]}, which is no class'
    )
  return labels


def fold_of(pool: Source, split: str, folds: int, fold: int, seed: int) -> Part:
  """Returns one side of a fold of StratifiedKFold, in the pool's order.

  `validation` is the fold with the number `fold`, `train` all the others.
  Raises UserError if a class has too few examples, or a label is no class.
  """
  labels, names = read_labels(pool), pool.class_names
  counted = zip(*np.unique(labels, return_counts=True), strict=True)
  if few := [f'{names[label]!r} ({n})' for label, n in counted if n < folds]:
    raise UserError(
      f'{pool.name}: classes with fewer than config.data.folds = {folds}'
      f' examples: {listed(few)}'
    )
  from sklearn.model_selection import StratifiedKFold  # slow

  stratified = StratifiedKFold(folds, shuffle=True, random_state=seed)
  train, held = list(stratified.split(labels, labels))[fold]
  part, indices = f'fold {fold} of {folds}', held
  if split == 'train':
    part, indices = f'without {part}', train
  return Part(f'{pool.name} ({part})', pool, indices, labels[indices])

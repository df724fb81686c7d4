"""Files of sharded data sets: their splits, class names, and reading them."""

from collections.abc import Sequence
import logging
import os
import pathlib
import re
import resource
import threading

import numpy as np

from alexnet_jax.data.folder import list_files
from alexnet_jax.errors import UserError

_SPLIT_OF_WORD = {
  'train': 'train',
  'training': 'train',
  'val': 'validation',
  'valid': 'validation',
  'validation': 'validation',
  'test': 'test',
  'testing': 'test',
}
_CLASS_FILES = ('classes.txt', 'classnames.txt')
_MOST_UNNAMED_CLASSES = 1_000_000
_OPEN_FILES = '/proc/self/fd' if os.path.isdir('/proc/self/fd') else ''
_warnings: set[str] = set()
_warnings_lock = threading.Lock()


def split_files(
  root: pathlib.Path, endings: tuple[str, ...], split: str = 'train'
) -> dict[str, list[str]]:
  """Sorts the data files below `root` into splits, by their names.

  A file belongs to the split whose word (train, val, valid, validation, test)
  is in its name, or else in that of a folder around it, the nearest first. If
  no file is named so, all are for training. `test` serves as validation if
  there is no other. Hidden files are left out.

  Args:
    root: the folder.
    endings: what the files' names end in.
    split: that is opened; for `all` there need be no training files.

  Returns:
    {'train': paths relative to root, 'validation': paths}, sorted; the second
    may be empty.

  Raises:
    UserError: if the folder or the training files are missing, or if those lie
      in several folders, which are data sets of their own.
  """
  found = {'train': [], 'validation': [], 'test': [], '': []}
  for path in _files_below(root, endings):
    found[_split_of(path)].append(path.as_posix())
  if not any(found.values()):
    raise UserError(f'{root} has no file whose name ends in {endings[0]}')
  if found['train'] and found['']:
    warn_once(
      f'{root}: {len(found[""])} files are left out whose names tell no split,'
      f' the first: {found[""][0]}'
    )
  train = found['train']
  validation = found['validation'] or found['test']
  if not (train or validation):
    train = found['']
  if split == 'all' and not train:
    train, validation = validation, []
  if not train:
    raise UserError(
      f"{root} has no files for training, with 'train' in the name; the first"
      f' that it has: {validation[0]}'
    )
  _check_one_folder(root, train)
  if validation and validation == found['test']:
    warn_once(f'{root}: the test split serves as validation')
  return {'train': train, 'validation': validation}


def _files_below(root, endings):
  """Returns paths relative to `root`, sorted."""
  if not root.is_dir():
    raise UserError(
      f'no folder at {str(root)!r}; give --config.data.path=DIR with the files'
      f' of the data set (*{endings[0]})'
    )
  return [
    pathlib.Path(path).relative_to(root)
    for path in list_files(root)
    if path.endswith(endings) and os.path.isfile(path)
  ]


def _split_of(path):
  """Returns `train`, `validation`, `test` or '', of a relative path."""
  for part in reversed(path.parts):
    words = set(re.findall('[a-z]+', part.lower())) & set(_SPLIT_OF_WORD)
    splits = {_SPLIT_OF_WORD[word] for word in words}
    if len(splits) == 1:  # the file may be for both: train-val-0.tar
      return splits.pop()
  return ''


def _check_one_folder(root, paths):
  folders = sorted({os.path.dirname(path) or os.curdir for path in paths})
  if len(folders) > 1:
    raise UserError(
      f'{root} has training files in {len(folders)} folders'
      f' ({", ".join(folders[:5])}), which may be data sets of their own; give'
      f' one of them: --config.data.path={root / folders[-1]}'
    )


def read_class_names(root: pathlib.Path) -> list[str] | None:
  """Returns the lines of classes.txt or classnames.txt; None without either.

  Raises:
    UserError: if it is no UTF-8 text or has an empty line.
  """
  path = next((root / n for n in _CLASS_FILES if (root / n).is_file()), None)
  if path is None:
    return None
  try:
    lines = path.read_text('utf-8-sig').rstrip().splitlines()
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is no UTF-8 text: {error}') from error
  names = [line.strip() for line in lines]
  if '' in names:
    raise UserError(
      f'{path} has an empty line {names.index("") + 1}; it takes one class name'
      ' a line, the first that of label 0'
    )
  return names


def named_classes(
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
  if names is None:
    if classes[-1] >= _MOST_UNNAMED_CLASSES:
      raise UserError(
        f'{name} has the label {classes[-1]}, too large to count classes by;'
        ' number them from 0'
      )
    names = [str(number) for number in range(classes[-1] + 1)]
  if classes[-1] >= len(names):
    raise UserError(
      f'{name} has the label {classes[-1]}, but names of {len(names)} classes'
      ' only, which are numbered from 0'
    )
  if empty := sorted(set(range(len(names))) - set(classes.tolist())):
    warn_once(
      f'{name}: {len(empty)} of {len(names)} classes have no training example,'
      f' the first: {names[empty[0]]} (number {empty[0]})'
    )
  return tuple(names)


def check_validation_labels(
  name: object, train_labels: np.ndarray, labels: np.ndarray
) -> None:
  """Raises UserError if validation has labels that training lacks."""
  unknown = np.setdiff1d(labels, train_labels)
  if len(unknown):
    raise UserError(
      f'{name} has {len(unknown)} labels in validation that training lacks,'
      f' the first: {unknown[0]}'
    )


def allow_open_files(count: int) -> None:
  """Lets this process keep that many more files open, as far as it may.

  Raises:
    UserError: if the system does not allow as many.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  unlimited = resource.RLIM_INFINITY
  # Another split, checkpoints, event files, libraries.
  needed = len(os.listdir(_OPEN_FILES)) + count if _OPEN_FILES else 0
  needed = max(needed, count) + 200
  if soft == unlimited or needed <= soft:
    return
  if hard != unlimited and needed > hard:
    raise UserError(
      f'the data set has {count} files to keep open, and this process may have'
      f' {hard} in all; raise that limit (`ulimit -Hn`) or prepare the set'
      ' again with a larger --shard_examples'
    )
  resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def warn_once(message: str) -> None:
  """Logs a warning, unless this process has done so already."""
  with _warnings_lock:  # several threads may come with the same one
    is_new = message not in _warnings
    _warnings.add(message)
  if is_new:
    logging.warning('%s', message)

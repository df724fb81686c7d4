"""Image data sets of the Hugging Face hub: parquet with encoded images."""

from collections.abc import Sequence
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import threading
from typing import Any

import numpy as np

from alexnet_jax.data import splits
from alexnet_jax.data.folder import find_data_files
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError

IMAGE_COLUMNS = ('image', 'img')
LABEL_COLUMNS = ('label', 'labels', 'fine_label')
_BYTES = ('binary', 'large_binary', 'binary_view')  # types of Arrow
_TEXT = ('string', 'large_string', 'string_view')
_CACHE_BYTES = 1 << 28  # of decoded row groups
_THREADS = 8  # that open files
_NO_BYTES = (
  'has no bytes of an image, at most a path or an address; embed the images'
  ' (the library datasets: dataset.cast_column("image", Image()) and save)'
)
_SLOW = (
  '{0}: reading parquet in random order is slow, as every image has a whole row'
  ' group decoded; for a fast copy: python -m alexnet_jax.data.prepare raw'
  ' --source parquet --path {0} --out DIR'
)


@dataclasses.dataclass(frozen=True, eq=False)
class _File:
  path: pathlib.Path
  name: str  # the path below the root
  size: int
  metadata: Any  # of pyarrow
  image: str  # path of the column of bytes
  labels: np.ndarray  # int32 [n], or strings as objects
  class_names: Sequence[str] | None


class ParquetSource:
  """Rows of parquet files, whose images are decoded by whole row groups.

  `rows` int64 [n] are counted through all `files`; `labels` are int32 [n].
  Memory: the groups used last stay, up to 256 MB of them or a single larger
  one; in addition each thread has the group that it is reading from.
  """

  def __init__(self, name: str, files, rows, labels, class_names):
    self.name, self.labels, self.class_names = name, labels, class_names
    self._files, self._rows = files, rows
    self._groups = [
      (file, group)
      for file in files
      for group in range(file.metadata.num_row_groups)
    ]
    groups = [f.metadata.row_group(g) for f, g in self._groups]
    self._starts = np.cumsum([0, *(g.num_rows for g in groups)])[:-1]
    largest = max((g.total_byte_size for g in groups), default=0)
    kept = max(1, _CACHE_BYTES // max(1, largest))
    self._cached = functools.lru_cache(kept)(self._decode)
    self._decoded = set()
    # Of threads that want the same group, one decodes it.
    self._locks = [threading.Lock() for _ in range(64)]

  @property
  def num_examples(self) -> int:
    return len(self._rows)

  @property
  def fingerprint(self) -> str:
    files = json.dumps([[file.name, file.size] for file in self._files])
    arrays = self._rows.tobytes(), self.labels.tobytes()
    return splits.digest(files.encode(), *arrays)

  def read(self, index: int) -> tuple[bytes, int]:
    number, row = self._locate(index)
    with self._locks[number % len(self._locks)]:
      images = self._cached(number)
    content = images[row].as_py()
    if content is None:
      raise UserError(f'{self.describe(index)} {_NO_BYTES}')
    return content, int(self.labels[index])

  def describe(self, index: int) -> str:
    number, row = self._locate(index)
    file, group = self._groups[number]
    return f'{file.path} row group {group}, row {row}'

  def _locate(self, index):
    """Returns (index in `_groups`, row in that group) of an example."""
    row = int(self._rows[index])
    # Of groups that start alike all but the last are empty.
    number = int(np.searchsorted(self._starts, row, 'right')) - 1
    return number, row - int(self._starts[number])

  def _decode(self, number):
    """Returns the images of a row group, a ChunkedArray of bytes."""
    pa, pq = _import_pyarrow()
    file, group = self._groups[number]
    if number in self._decoded:
      splits.warn_once(_SLOW.format(file.path.parent))
    self._decoded.add(number)
    try:
      if os.path.getsize(file.path) != file.size:
        raise UserError(
          f'{file.path} has changed; start again once the data stays as it is'
        )
      # Opened by each thread for itself: readers are not made to be shared.
      with pq.ParquetFile(file.path, metadata=file.metadata) as reader:
        table = reader.read_row_group(group, [file.image], use_threads=False)
    except (pa.ArrowException, OSError) as error:
      raise UserError(
        f'cannot read row group {group} of {file.path}: {error}'
      ) from error
    return table.flatten().column(0)  # of the struct its only field, if it is


def parquet_source(
  path: str, split: str, val_fraction: float = 0.2, split_seed: int = 0
) -> ParquetSource:
  """Opens a split of parquet files, as the Hugging Face hub has them.

  The images are a column of bytes, or of structs with `bytes`; the labels are
  numbers, named by the metadata of the hub's library, or strings, which are the
  names. `sort_into_splits` tells the splits apart; without one for validation,
  `held_out` splits the training rows.

  Raises:
    UserError: if pyarrow is missing, files are missing or damaged, or the
      columns are unfit.
  """
  root = pathlib.Path(path).expanduser()
  found = find_data_files(root, ('.parquet',))
  names = splits.sort_into_splits(root, found, split)
  files = _open(root, names['train'])
  labels = train = np.concatenate([file.labels for file in files])
  class_names = files[0].class_names
  if train.dtype == object:
    class_names = sorted(set(train))
    labels = train = _numbered(root, train, class_names)
  class_names = splits.check_labels(root, train, class_names)
  rows = np.arange(len(train))
  if names['validation']:
    splits.warn_of_own_split(root, val_fraction, split_seed)
  if names['validation'] and split != 'train':
    files = _open(root, names['validation'], alike=files)
    labels = np.concatenate([file.labels for file in files])
    if labels.dtype == object:
      labels = _numbered(root, labels, class_names)
    splits.check_validation_labels(root, train, labels)
    rows = np.arange(len(labels))
  elif not names['validation']:
    keys = [
      f'{file.name} row {row}'
      for file in files
      for row in range(len(file.labels))
    ]
    mask = splits.held_out(keys, train, val_fraction, split_seed, class_names)
    rows = np.flatnonzero(mask == (split == 'validation'))
  return ParquetSource(
    f'{root} {split}', files, rows, labels[rows], class_names
  )


def _open(root, names, alike=()):
  """Opens files, whose labels must be of one kind, also with those `alike`."""
  with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
    files = list(pool.map(_open_file, [root] * len(names), names))
  first, *others = [*alike, *files]
  for other in others:
    if other.labels.dtype != first.labels.dtype:
      raise UserError(
        f'{first.path} and {other.path} differ in the kind of labels:'
        f' {first.labels.dtype} and {other.labels.dtype} (object: text)'
      )
    ours, theirs = list(first.class_names or ()), list(other.class_names or ())
    if ours != theirs:
      pairs = itertools.zip_longest(ours, theirs)
      differing = [
        f'{i}: {a!r} and {b!r}' for i, (a, b) in enumerate(pairs) if a != b
      ]
      raise UserError(
        f'{first.path} and {other.path} differ in the names of'
        f' {len(differing)} classes: {", ".join(differing[:5])}'
      )
  return files


def _import_pyarrow():
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    raise UserError(
      f'reading parquet needs pyarrow: {how_to_install("parquet")}'
    ) from error
  return pyarrow, pyarrow.parquet


def _open_file(root, name):
  """Reads the metadata and the labels of a file, and checks its columns."""
  pa, pq = _import_pyarrow()
  path = root / name
  try:
    size = path.stat().st_size
    with pq.ParquetFile(path) as reader:
      schema, metadata = reader.schema_arrow, reader.metadata
      image = _image_column(pa, path, schema)
      label = _column(path, schema, LABEL_COLUMNS)
      column = reader.read([label]).column(0)
      labels = _plain_labels(pa, path, label, column)
  except (pa.ArrowException, OSError) as error:
    raise UserError(
      f'{path} is truncated, damaged or no parquet file ({error})'
    ) from error
  return _File(
    path, name, size, metadata, image, labels, _hub_names(schema, label)
  )


def _column(path, schema, choices):
  column = next((name for name in choices if name in schema.names), None)
  if column is None or schema.names.count(column) > 1:
    raise UserError(
      f'{path} has the columns {schema.names}; one must be named'
      f' {" or ".join(choices)}'
    )
  return column


def _image_column(pa, path, schema):
  """Returns the path of the column of bytes: `image` or `image.bytes`."""
  column = _column(path, schema, IMAGE_COLUMNS)
  kind = schema.field(column).type
  if pa.types.is_struct(kind) and kind.get_field_index('bytes') >= 0:
    kind, column = kind.field('bytes').type, f'{column}.bytes'
  plain = kind.value_type if pa.types.is_dictionary(kind) else kind
  if str(plain) not in _BYTES:
    raise UserError(f'{path}: column {column} is {kind}; it {_NO_BYTES}')
  return column


def _plain_labels(pa, path, name, column):
  """Returns a column as int32 [n], or strings as objects."""
  if column.null_count:
    raise UserError(f'{path}: {column.null_count} rows have no {name}')
  if pa.types.is_dictionary(column.type):
    column = column.cast(column.type.value_type)
  if str(column.type) in _TEXT:
    return column.cast('string').to_numpy()
  if not pa.types.is_integer(column.type):
    raise UserError(
      f'{path}: column {name} is {column.type}, neither whole numbers nor text'
    )
  labels = column.to_numpy()
  wrong = labels[(labels < 0) | (labels > np.iinfo(np.int32).max)]
  if len(wrong):
    raise UserError(
      f'{path} has the {name} {wrong[0]}; labels are whole numbers from 0'
      f'{splits.UNLABELED if wrong[0] == -1 else ""}'
    )
  return labels.astype(np.int32)


def _numbered(root, labels, class_names):
  """Returns labels that are class names as int32 [n]."""
  numbers = {splits.normal(name): i for i, name in enumerate(class_names)}
  if len(numbers) < len(class_names):
    raise UserError(
      f'{root} has a class in two spellings of Unicode; its classes are'
      f' {list(class_names)!a}'
    )
  found, indices = np.unique(labels, return_inverse=True)
  plain = [splits.normal(label) for label in found]
  if unknown := [label for label in plain if label not in numbers]:
    raise UserError(f'{root} has labels that training lacks: {unknown}')
  return np.array([numbers[label] for label in plain], np.int32)[indices]


def _hub_names(schema, label):
  """Returns class names from the metadata of the hub's library, or None."""
  try:
    hub = json.loads((schema.metadata or {})[b'huggingface'])
    names = hub['info']['features'][label]['names']
  except (KeyError, TypeError, ValueError, RecursionError):
    return None
  return [str(name) for name in names] if isinstance(names, list) else None

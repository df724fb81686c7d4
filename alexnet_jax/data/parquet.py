"""Image data sets of the Hugging Face hub: parquet with encoded images."""

from collections.abc import Sequence
import dataclasses
import functools
import itertools
import json
import os
import pathlib
import threading
from typing import Any

import numpy as np

from alexnet_jax.data import folder, splits
from alexnet_jax.errors import how_to_install, listed, UserError

IMAGE_COLUMNS = ('image', 'img')
LABEL_COLUMNS = ('label', 'labels', 'fine_label')
_BYTES = ('binary', 'large_binary', 'binary_view')  # types of Arrow
_TEXT = ('string', 'large_string', 'string_view')
_CACHE_BYTES = 1 << 28  # of decoded row groups
_NO_BYTES = (
  'has no bytes of an image, at most a path or an address; embed the images'
  ' (datasets: dataset.cast_column("image", Image()) and save)'
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


@dataclasses.dataclass(eq=False, repr=False)
class ParquetSource(splits.Source):
  """Rows of parquet files, whose images are decoded by whole row groups.

  `rows` int64 [n] are counted through all `files`; `labels` are int32 [n].
  Memory: the groups used last, up to 256 MB of them or a single larger one; in
  addition each thread has the group that it is reading from.
  """

  name: str
  files: Sequence[_File]
  rows: np.ndarray
  labels: np.ndarray
  class_names: Sequence[str]
  per_example = ('rows', 'labels')

  def __post_init__(self):
    self._groups = [
      (file, number)
      for file in self.files
      for number in range(file.metadata.num_row_groups)
    ]
    groups = [f.metadata.row_group(number) for f, number in self._groups]
    self._starts = np.cumsum([0, *(g.num_rows for g in groups)])[:-1]
    largest = max((g.total_byte_size for g in groups), default=0)
    kept = max(1, _CACHE_BYTES // max(1, largest))
    self._cached = functools.lru_cache(kept)(self._decode)
    # Of threads that want the same group, one decodes it.
    self._locks = [threading.Lock() for _ in range(64)]

  @property
  def fingerprint(self) -> str:
    files = json.dumps([[file.name, file.size] for file in self.files])
    arrays = self.rows.tobytes(), self.labels.tobytes()
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

  def keys(self) -> list[str]:
    return [
      f'{f.name} row {i}' for f in self.files for i in range(len(f.labels))
    ]

  def _locate(self, index):
    """Returns (index in `_groups`, row in that group) of an example."""
    row = int(self.rows[index])
    # Of groups that start alike all but the last are empty.
    number = int(np.searchsorted(self._starts, row, 'right')) - 1
    return number, row - int(self._starts[number])

  def _decode(self, number):
    """Returns the images of a row group, a ChunkedArray of bytes."""
    pa = _import_pyarrow()
    file, group = self._groups[number]
    try:
      if os.path.getsize(file.path) != file.size:
        raise splits.changed(file.path)
      # Opened by each thread for itself: readers are not made to be shared.
      with pa.parquet.ParquetFile(file.path, metadata=file.metadata) as reader:
        table = reader.read_row_group(group, [file.image], use_threads=False)
    except (pa.ArrowException, OSError) as error:
      place = f'row group {group} of {file.path}'
      raise UserError(f'cannot read {place}: {error}') from error
    return table.flatten().column(0)  # of the struct its only field, if it is


def parquet_source(path: str, side: splits.Side) -> ParquetSource:
  """Opens a split of parquet files, as the Hugging Face hub has them.

  The images are a column of bytes, or of structs with `bytes`; the labels are
  numbers, named by the metadata of the hub's library, or strings, which are the
  names. See `folder.open_shards` for the splits. Raises UserError if pyarrow is
  missing, files are missing or damaged, or the columns are unfit.
  """

  def open_files(root, names, training):
    files = splits.in_threads(lambda name: _open_file(root, name), names)
    first = (training.files if training else files)[0]
    for file in files:
      _check_alike(first, file)
    labels = np.concatenate([file.labels for file in files])
    classes = training.class_names if training else first.class_names
    if labels.dtype == object:
      classes = classes if training else sorted(set(labels))
      labels = _numbered(root, labels, classes)
    classes = splits.check_labels(root, labels, classes, training)
    rows = np.arange(len(labels))
    return ParquetSource(f'{root} {side.split}', files, rows, labels, classes)

  return folder.open_shards(path, '.parquet', side, open_files)


def _check_alike(first, other):
  """Refuses files that differ in the kind of labels or the names of classes."""
  kinds = first.labels.dtype, other.labels.dtype  # object: text
  pairs = itertools.zip_longest(
    first.class_names or (), other.class_names or ()
  )
  if different := [f'{a!r} and {b!r}' for a, b in (kinds, *pairs) if a != b]:
    raise UserError(
      f'{first.path} and {other.path} differ in the kind of labels or names of'
      f' classes: {listed(different)}'
    )


def _import_pyarrow():
  try:
    import pyarrow
    import pyarrow.parquet
  except ImportError as error:
    advice = how_to_install('parquet')
    raise UserError(f'reading parquet needs pyarrow: {advice}') from error
  return pyarrow


def _open_file(root, name):
  pa = _import_pyarrow()
  path = root / name
  try:
    size = path.stat().st_size
    with pa.parquet.ParquetFile(path) as reader:
      schema, metadata = reader.schema_arrow, reader.metadata
      image = _image_column(pa, path, schema)
      label = _column(path, schema, LABEL_COLUMNS)
      column = reader.read([label]).column(0)
      labels = _plain_labels(pa, path, label, column)
  except (pa.ArrowException, OSError) as error:
    raise UserError(
      f'{path} is truncated, damaged or no parquet file ({error})'
    ) from error
  class_names = _hub_names(schema, label)
  return _File(path, name, size, metadata, image, labels, class_names)


def _column(path, schema, choices):
  column = next((name for name in choices if name in schema.names), None)
  if column is None or schema.names.count(column) > 1:
    needed = f'one must be named {" or ".join(choices)}'
    raise UserError(f'{path} has the columns {schema.names}; {needed}')
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
  if len(wrong := labels[(labels < 0) | (labels > np.iinfo(np.int32).max)]):
    raise splits.no_label(path, wrong[0])
  return labels.astype(np.int32)


def _numbered(root, labels, class_names):
  numbers = {splits.normal(name): i for i, name in enumerate(class_names)}
  if len(numbers) < len(class_names):
    problem = f'in two spellings of Unicode: {list(class_names)!a}'
    raise UserError(f'{root} has a class {problem}')
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

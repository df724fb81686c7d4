"""Data sets that TFDS has prepared as array_record, read without TensorFlow."""

import bisect
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import os
import pathlib
import re
import threading

from google.protobuf.message import DecodeError

from alexnet_jax.data.shard_files import allow_open_files
from alexnet_jax.data.splits import digest
from alexnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
  """A split of a prepared TFDS image classification set (array_record).

  Reads ArrayRecord itself and takes image and label out of the record with
  protobuf's parser: TFDS's own reading builds every feature in Python, which
  costs more than decoding a small photograph.
  """

  name: str
  records: 'RecordFiles'
  class_names: Sequence[str]
  fingerprint: str

  @property
  def num_examples(self) -> int:
    return len(self.records)

  def read(self, index: int) -> tuple[bytes, int]:
    features = self._features(index)
    try:
      image = features['image'].bytes_list.value[0]
      label = features['label'].int64_list.value[0]
    except IndexError as error:
      raise UserError(
        f'{self.name} record {index} has no encoded image or no label; prepare'
        ' the set again'
      ) from error
    return image, label

  def file_name(self, index: int) -> str:
    """The name that the set gives the image; '' if it gives none."""
    names = self._features(index)['file_name'].bytes_list.value
    return names[0].decode(errors='replace') if names else ''

  def describe(self, index: int) -> str:
    return f'{self.name} record {index} {self.file_name(index)}'.rstrip()

  def _features(self, index):
    record = self.records.read(index)
    try:
      return example_class().FromString(record).features.feature
    except DecodeError as error:
      raise UserError(
        f'{self.name} record {index} is damaged ({error}); prepare the set'
        ' again'
      ) from error


@functools.cache
def example_class():
  """The protobuf message tf.train.Example, without TensorFlow."""
  from tensorflow_datasets.proto import tf_example_generated_pb2  # slow

  return tf_example_generated_pb2.Example


class RecordFiles:
  """The records of several ArrayRecord files, or parts of them, in a row.

  A file is opened when it is first read from. `read` may be called from
  several threads at once.
  """

  def __init__(self, parts: Sequence[tuple[str, int, int]]):
    """`parts` are (path, first record, number of records)."""
    self._parts = parts
    self._ends = list(itertools.accumulate(count for _, _, count in parts))
    self._readers = [None] * len(parts)
    self._lock = threading.Lock()

  def __len__(self) -> int:
    return self._ends[-1] if self._ends else 0

  @property
  def folder(self) -> pathlib.Path:
    """Where the first of the files lies."""
    return pathlib.Path(self._parts[0][0]).parent

  def read(self, index: int) -> bytes:
    """Record `index`.

    Raises:
      UserError: if the file is damaged or gone.
    """
    number = bisect.bisect_right(self._ends, index)
    path, first, count = self._parts[number]
    position = index - self._ends[number] + count + first
    try:
      reader = self._readers[number] or self._open(number)
      return reader.read([position])[0]
    except (RuntimeError, IndexError, ValueError) as error:
      message = f'cannot read record {position} of {path}: {error}'
      raise UserError(message) from error

  def _open(self, number):
    from array_record.python import array_record_module

    with self._lock:
      if self._readers[number] is None:
        self._readers[number] = array_record_module.ArrayRecordReader(
          self._parts[number][0],
          # For random access; a buffer is kept for every open file.
          'readahead_buffer_size:0,max_parallelism:0',
          file_reader_buffer_size=1 << 15,
        )
      return self._readers[number]


def tfds_source(name: str, split: str, data_dir: str = '') -> TfdsSource:
  """A split of a TFDS set prepared as array_record; image bytes stay encoded.

  Raises:
    UserError: if the set is not prepared there, or lacks the split or the
      features `image` and `label`.
  """
  import tensorflow_datasets as tfds  # slow to import, and only needed here

  folder = tfds_folder(name, data_dir)
  builder = tfds.builder_from_directory(folder)
  if {'image', 'label'} - set(builder.info.features):
    raise UserError(
      f'{name} has the features {sorted(builder.info.features)}; training needs'
      " 'image' and 'label'"
    )
  if builder.info.file_format.value != 'array_record':
    raise UserError(
      f'{folder} is not array_record, which training reads; prepare it into'
      f' another folder: {_prepare_command(name, "OTHER_DIR")}'
    )
  try:
    info = builder.info.splits[split]
    parts = [(p.filename, p.skip, p.take) for p in info.file_instructions]
  except (KeyError, ValueError, AssertionError) as error:  # of name or slice
    raise UserError(
      f'{name} in {folder} cannot give the split {split!r} ({error}); its'
      f' splits are {sorted(builder.info.splits)}'
    ) from error
  for path, _, _ in parts:
    if not pathlib.Path(path).is_file():
      raise UserError(f'{path} is missing; prepare {name} again')
  allow_open_files(len(parts))
  description = (folder / 'dataset_info.json').read_bytes()
  return TfdsSource(
    f'{name} {split}',
    RecordFiles([(str(p), skip, take) for p, skip, take in parts]),
    tuple(builder.info.features['label'].names),
    digest(description, split.encode()),
  )


def tfds_folder(name: str, data_dir: str = '') -> pathlib.Path:
  """The folder of the newest prepared version of a TFDS set.

  `name` may be NAME/CONFIG; without a config the set must have none, or one.

  Raises:
    UserError: if there is none, or several configs.
  """
  root = pathlib.Path(
    data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  ).expanduser()
  found = [
    path.parent
    for path in root.glob(f'{name}/**/dataset_info.json')
    # Not incomplete.ABC_1.0.0, which a build leaves that was killed.
    if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name)
  ]
  if len(configs := {folder.parent for folder in found}) > 1:
    raise UserError(
      f'TFDS set {name!r} in {root} has several configs'
      f' ({", ".join(sorted(c.name for c in configs))}): add /CONFIG to'
      ' config.data.tfds_name'
    )
  if not found:
    tars = (
      ' ImageNet needs ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar,'
      ' from image-net.org, in a folder of your choice; then'
      if name == 'imagenet2012'
      else ' To prepare it:'
    )
    raise UserError(
      f'no TFDS set {name!r} in {root}.{_nearby(root, name)}{tars}'
      f' `{_prepare_command(name, root)}`. If it lies elsewhere, give its'
      ' data_dir as the path'
    )
  return max(found, key=lambda f: [int(n) for n in f.name.split('.')])


def _nearby(root, name):
  """What is there instead of a set."""
  if any(root.glob(f'{name}/*/.unfinished')):
    return ' It is unfinished: the same prepare command goes on.'
  infos = [*root.glob('*/*/dataset_info.json')]
  names = sorted({path.parent.parent.name for path in infos})
  return f' It has {", ".join(names)}: name it (tfds_name).' if names else ''


def _prepare_command(name, root):
  return (
    f'python -m alexnet_jax.data.prepare tfds --name {name}'
    f' --manual_dir DIR --data_dir {root}'
  )

"""Data sets that TFDS has prepared as array_record, read without TensorFlow."""

import collections
from collections.abc import Sequence
import concurrent.futures
import dataclasses
import functools
import os
import pathlib
import re

from array_record.python import array_record_data_source
from google.protobuf.message import DecodeError
import numpy as np

from alexnet_jax.data.shard_files import allow_open_files
from alexnet_jax.data.shard_files import warn_once
from alexnet_jax.data.splits import digest
from alexnet_jax.errors import UserError

INFO = 'dataset_info.json'  # makes a folder a set, for TFDS and for us
_THREADS = 16  # they wait for the disk more than they compute
_CHUNK = 256  # records
_LARGE = 10_000  # records; reading their labels is announced
_labels_read: dict[tuple[pathlib.Path, str], np.ndarray] = {}


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
  """A split of a prepared TFDS image classification set (array_record).

  Takes image and label out of the record with protobuf's parser: TFDS's own
  reading builds every feature in Python, which costs more than decoding a small
  photograph.

  Attributes:
    name: of the set and the split.
    folder: of the set.
    records: gives the bytes of a record; from several threads at once.
    class_names: in the order of the labels.
    fingerprint: of the set's description and the split.
  """

  name: str
  folder: pathlib.Path
  records: array_record_data_source.ArrayRecordDataSource
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
    """Returns the name that the set gives the image; '' if it gives none."""
    names = self._features(index)['file_name'].bytes_list.value
    return names[0].decode(errors='replace') if names else ''

  def describe(self, index: int) -> str:
    return f'{self.name} record {index} {self.file_name(index)}'.rstrip()

  def _features(self, index):
    try:
      record = self.records[index]
      return example_class().FromString(record).features.feature
    except DecodeError as error:
      raise UserError(
        f'{self.name} record {index} is damaged ({error}); prepare the set'
        ' again'
      ) from error
    except (RuntimeError, IndexError, ValueError) as error:
      raise UserError(
        f'cannot read {self.name} record {index} in {self.folder}: {error}'
      ) from error

  def read_labels(self) -> np.ndarray:
    """Returns the label of every record, int32 [n], in order.

    Labels lie inside the records, so all of them are read, once in a process.

    Raises:
      UserError: if a record is damaged or has no label.
    """
    key = self.folder, self.fingerprint
    if key not in _labels_read:
      count = self.num_examples
      if count >= _LARGE:
        warn_once(
          f'{self.name}: reading {count:,} records for their labels, which lie'
          ' inside them'
        )
      labels = np.empty(count, np.int32)

      def read(start):
        for index in range(start, min(start + _CHUNK, count)):
          labels[index] = self.read(index)[1]

      with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        list(pool.map(read, range(0, count, _CHUNK)))
      _labels_read[key] = labels
    return _labels_read[key]


@functools.cache
def example_class():
  """Returns the protobuf message tf.train.Example, without TensorFlow."""
  from tensorflow_datasets.proto import tf_example_generated_pb2  # slow

  return tf_example_generated_pb2.Example


def tfds_source(name: str, split: str, data_dir: str = '') -> TfdsSource:
  """Opens a split of a TFDS set prepared as array_record.

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
    parts = builder.info.splits[split].file_instructions
  except (KeyError, ValueError, AssertionError) as error:  # of name or slice
    raise UserError(
      f'{name} in {folder} cannot give the split {split!r} ({error}); its'
      f' splits are {sorted(builder.info.splits)}'
    ) from error
  if not parts:
    raise UserError(f'the split {split!r} of {name} in {folder} is empty')
  for part in parts:
    if not pathlib.Path(part.filename).is_file():
      raise UserError(f'{part.filename} is missing; prepare {name} again')
  allow_open_files(len(parts))
  description = (folder / INFO).read_bytes()
  return TfdsSource(
    f'{name} {split}',
    folder,
    array_record_data_source.ArrayRecordDataSource(parts),
    tuple(builder.info.features['label'].names),
    digest(description, split.encode()),
  )


def find_sets(root: pathlib.Path) -> list[pathlib.Path]:
  """Returns the newest version's folder of every TFDS set in or below `root`.

  `root` may be a data_dir, or any folder from NAME down to VERSION.
  """
  versions = collections.defaultdict(list)
  # From VERSION/ up to the folder of NAME/CONFIG/VERSION.
  for depth in range(4):
    for path in root.glob('*/' * depth + INFO):
      # Not incomplete.ABC_1.0.0, which a build leaves that was killed.
      if re.fullmatch(r'\d+\.\d+\.\d+', path.parent.name):
        versions[path.parent.parent].append(path.parent)
  return [
    max(folders, key=lambda f: [int(n) for n in f.name.split('.')])
    for _, folders in sorted(versions.items())
  ]


def tfds_folder(name: str, data_dir: str = '') -> pathlib.Path:
  """Returns the folder of the newest prepared version of a TFDS set.

  `name` may be NAME/CONFIG; without a config the set must have none, or one.

  Raises:
    UserError: if there is none, or several configs.
  """
  root = pathlib.Path(
    data_dir or os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  ).expanduser()
  found = find_sets(root / name)
  if len(found) > 1:
    raise UserError(
      f'TFDS set {name!r} in {root} has several configs'
      f' ({", ".join(f.parent.name for f in found)}): add /CONFIG to'
      ' config.data.tfds_name'
    )
  if found:
    return found[0]
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


def _nearby(root, name):
  """Returns a hint about what is there instead of a set."""
  if any(root.glob(f'{name}/*/.unfinished')):
    return ' It is unfinished: the same prepare command goes on.'
  infos = [*root.glob(f'*/*/{INFO}')]
  names = sorted({path.parent.parent.name for path in infos})
  return f' It has {", ".join(names)}: name it (tfds_name).' if names else ''


def _prepare_command(name, root):
  return (
    f'python -m alexnet_jax.data.prepare tfds --name {name}'
    f' --manual_dir DIR --data_dir {root}'
  )

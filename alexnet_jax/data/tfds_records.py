"""Data sets that TFDS has prepared as array_record, read without TensorFlow.

TFDS itself would import whatever module a set's description names, so the two
JSON files are read here, as data.
"""

import collections
from collections.abc import Sequence
import dataclasses
import functools
import itertools
import os
import pathlib
import re
import shlex
from typing import Any

from array_record.python import array_record_data_source, array_record_module
from google.protobuf.message import DecodeError
import numpy as np

from alexnet_jax import files
from alexnet_jax.data import splits
from alexnet_jax.errors import UserError

INFO = 'dataset_info.json'  # makes a folder a set, for TFDS and for us
_KINDS = {  # of the features that are read: classes of TFDS
  'image': 'tensorflow_datasets.core.features.image_feature.Image',
  'label': 'tensorflow_datasets.core.features.class_label_feature.ClassLabel',
}
_INFO = {'name': str, 'splits': [{'name': str}]}  # of INFO
_FEATURES = {'featuresDict': {'features': {str: {'pythonClassName': str}}}}
_IMAGENET = (
  ' ImageNet needs ILSVRC2012_img_train.tar and ILSVRC2012_img_val.tar, from'
  ' image-net.org, in a folder DIR. To train from these:'
  ' --config.data.source=imagenet --config.data.path=DIR.'
)
_MOST_CLASSES = 1_000_000
_CHUNK = 256  # records
_labels: dict[tuple[pathlib.Path, str], np.ndarray] = {}  # of sets read so far


@dataclasses.dataclass(frozen=True)
class Description:
  """The description of a TFDS set of images with labels."""

  folder: pathlib.Path
  name: str  # without config and version
  class_names: list[str]  # in the order of the labels
  infos: dict[str, Any]  # TFDS's SplitDict

  @property
  def num_examples(self) -> dict[str, int]:
    """Returns the number of examples of each split."""
    return {name: info.num_examples for name, info in self.infos.items()}


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class TfdsSource(splits.Source):
  """A split of a prepared TFDS image classification set (array_record)."""

  name: str
  folder: pathlib.Path
  parts: Sequence  # FileInstruction of TFDS: what is read of which file
  records: array_record_data_source.ArrayRecordDataSource
  class_names: Sequence[str]
  fingerprint: str

  @property
  def num_examples(self) -> int:
    return len(self.records)

  def read(self, index: int) -> tuple[bytes, int]:
    features = self._features(index)
    image = features['image'].bytes_list.value
    label = features['label'].int64_list.value
    if not (image and label):
      raise UserError(
        f'{self.name} record {index} has no image or no label; prepare it again'
      )
    return image[0], label[0]

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
    except (DecodeError, RuntimeError, IndexError, ValueError) as error:
      raise UserError(
        f'{self.name} record {index} in {self.folder} is damaged ({error})'
      ) from error

  def read_labels(self) -> np.ndarray:
    """Returns the label of every record, int32 [n]; reads all, once."""
    key, count = (self.folder, self.fingerprint), self.num_examples
    if key not in _labels:
      chunks = np.array_split(np.arange(count), count // _CHUNK + 1)
      labels = splits.in_threads(
        lambda chunk: [self.read(int(index))[1] for index in chunk], chunks
      )
      _labels[key] = np.array(list(itertools.chain(*labels)), np.int32)
    return _labels[key]


@functools.cache
def example_class():
  """Returns the protobuf message tf.train.Example, without TensorFlow."""
  from tensorflow_datasets.proto import tf_example_generated_pb2  # slow

  return tf_example_generated_pb2.Example


def tfds_source(name: str, split: str, data_dir: str = '') -> TfdsSource:
  """Opens a split of a TFDS set prepared as array_record.

  `name` is NAME or NAME/CONFIG; `split` NAME, NAME[FROM:TO] in examples, `%` or
  `shard`, several of them joined by +, or `all`, with TFDS's meaning. Raises
  UserError if the set is not there, or lacks the split, an image or a label.
  """
  from tensorflow_datasets.core.splits import ReadInstruction  # slow

  described = read_description(tfds_folder(name, data_dir))
  folder, infos = described.folder, described.infos
  try:
    slices = ReadInstruction.from_spec(split).to_absolute(infos)
  except (ValueError, NotImplementedError) as error:
    raise UserError(
      f'{folder} cannot give {split!r} of {sorted(infos)} ({error})'
    ) from error
  # Of one that ends before it begins TFDS would read something.
  backwards = any(
    None not in (s.from_, s.to) and s.from_ > s.to for s in slices
  )
  parts = [] if backwards else infos[split].file_instructions
  if not parts:
    raise UserError(f'the split {split!r} of {name} in {folder} is empty')
  paths = {part.filename for part in parts}
  files.keep_open(paths)
  whole = (f for info in infos.values() for f in info.file_instructions)
  splits.in_threads(_check_records, (f for f in whole if f.filename in paths))
  return TfdsSource(
    f'{name} {split}',
    folder,
    parts,
    array_record_data_source.ArrayRecordDataSource(parts),
    tuple(described.class_names),
    splits.digest((folder / INFO).read_bytes(), split.encode()),
  )


def _check_records(file):
  """Refuses a file that has other records than the description says."""
  problem = 'is missing'
  if os.path.isfile(file.filename):
    try:
      reader = array_record_module.ArrayRecordReader(file.filename)
      count = reader.num_records()
      reader.close()
      problem = f'has {count:,} records, not {file.take:,}'
      if count == file.take:
        return
    except (RuntimeError, ValueError) as error:
      problem = f'is damaged ({error})'
  raise UserError(f'{file.filename} {problem}; prepare the set again')


def check_disjoint(training: splits.Source, held_out: splits.Source) -> None:
  """Raises UserError if two splits of a TFDS set share examples."""
  ranges = collections.defaultdict(list)
  for part in getattr(training, 'parts', ()):
    ranges[part.filename].append((part.skip, part.skip + part.take))
  for part in getattr(held_out, 'parts', ()):
    for first, last in ranges[part.filename]:
      if max(first, part.skip) < min(last, part.skip + part.take):
        raise UserError(
          f'the splits {training.name!r} and {held_out.name!r} share examples;'
          " keep them apart, as 'train[:80%]' and 'train[80%:]' are"
        )


def read_description(folder: pathlib.Path) -> Description:
  """Reads what TFDS, or `prepare resize`, wrote beside the records.

  Raises UserError if it is damaged, of another format, or of a set whose
  `image` and `label` are no images and classes.
  """
  info = files.read_json(folder / INFO, _INFO)
  features = files.read_json(folder / 'features.json', _FEATURES)
  if (found := info.get('fileFormat', 'tfrecord')) != 'array_record':
    advice = 'prepare the set again, into another folder'
    raise UserError(f'{folder} is {found}, not array_record; {advice}')
  features = features['featuresDict']['features']
  kinds = {key: found['pythonClassName'] for key, found in features.items()}
  if _KINDS.items() - kinds.items():
    raise UserError(
      f'{folder} has the features {kinds}; training needs an image'
      f' ({_KINDS["image"]}) and a label ({_KINDS["label"]})'
    )
  try:
    dtype = features['image'].get('image', {}).get('dtype', 'uint8')
    count = _whole(features['label']['classLabel']['numClasses'])
    infos = _split_infos(folder, info)
    if count > _MOST_CLASSES:
      raise ValueError(f'{count} classes')
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f'the description in {folder} is damaged ({error!r}); prepare it again'
    ) from error
  if dtype not in ('uint8', 'uint16'):
    raise UserError(f'{folder} has images of {dtype}, not of 8 or 16 bits')
  names = _read_names(folder / 'label.labels.txt', count)
  return Description(folder, info['name'], names, infos)


def _split_infos(folder, info):
  """Returns TFDS's SplitDict, from the content of dataset_info.json."""
  from tensorflow_datasets.core import naming  # slow
  from tensorflow_datasets.core.splits import SplitDict, SplitInfo

  found, seen = [], {'all'}  # which TFDS reads as the sum of the others
  if os.sep in info['name']:
    raise ValueError(f'it is called {info["name"]}')
  files_named = naming.ShardedFileTemplate(
    folder, dataset_name=info['name'], filetype_suffix='array_record'
  )
  for split in info['splits']:
    if not re.fullmatch(r'[\w.-]+', split['name']) or split['name'] in seen:
      raise ValueError(f'a split is called {split["name"]!r}, or two are')
    seen.add(split['name'])
    template = split.get('filepathTemplate')
    if template not in (None, '', files_named.template):
      raise ValueError(f'files are named {template}')
    lengths = list(map(_whole, split.get('shardLengths', [])))
    found.append(SplitInfo(split['name'], lengths, 0, files_named))
  return SplitDict(found)


def _whole(value):
  """Returns a count of the description, which has them as text."""
  if not re.fullmatch('[0-9]{1,12}', str(value)):
    raise ValueError(f'{value!r} is no count')
  return int(value)


def _read_names(path, count):
  if not path.exists():
    return [str(number) for number in range(count)]
  try:
    names = path.read_text('utf-8').removesuffix('\n').split('\n')
  except UnicodeDecodeError as error:
    raise UserError(f'{path} is no UTF-8 text: {error}') from error
  names = [name.strip() for name in names]
  if len(names) != count:
    names = list(filter(None, names))  # as TFDS reads them
  if len(names) != count:
    found = f'names {len(names)} classes, but the set has {count}'
    raise UserError(f'{path} {found}; prepare it again')
  return names


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
        version = [int(number) for number in path.parent.name.split('.')]
        versions[path.parent.parent].append((version, path.parent))
  return [max(versions[folder])[1] for folder in sorted(versions)]


def data_root(data_dir: str = '') -> pathlib.Path:
  """Returns the folder of TFDS's sets; without a `data_dir` its own choice."""
  own = os.environ.get('TFDS_DATA_DIR', '~/tensorflow_datasets')
  return pathlib.Path(data_dir or own).expanduser()


def tfds_folder(name: str, data_dir: str = '') -> pathlib.Path:
  """Returns the folder of the newest prepared version of a TFDS set.

  `name` may be NAME/CONFIG; without a config the set must have none, or one.
  Raises UserError if there is none, or several configs.
  """
  root = data_root(data_dir)
  found = find_sets(root / name)
  if len(found) == 1:
    return found[0]
  if found:
    configs = ', '.join(folder.parent.name for folder in found)
    raise UserError(
      f'TFDS set {name!r} in {root} has several configs; name one: {configs}'
    )
  command = (
    f'python -m alexnet_jax.data.prepare tfds --name {name} --manual_dir DIR'
    f' --data_dir {shlex.quote(str(root))}'
  )
  begun = any(root.glob(f'{name}/*/.unfinished'))
  problem = ' It is unfinished: the same command goes on.' if begun else ''
  raise UserError(
    f'no TFDS set {name!r} in {root}.{problem}'
    f'{_IMAGENET * (name == "imagenet2012")} To prepare it: `{command}`. If it'
    f' lies elsewhere, give the folder around {name}: --config.data.path=DIR'
    ' (of `prepare`: --path DIR)'
  )

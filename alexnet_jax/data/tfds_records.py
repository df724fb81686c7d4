"""Data sets that TFDS has prepared as array_record, read without TensorFlow.

TFDS itself would import whatever module a set's description names, so the two
JSON files are read here, as data.
"""

import collections
from collections.abc import Sequence
import concurrent.futures
import dataclasses
import functools
import itertools
import os
import pathlib
import re

from array_record.python import array_record_data_source
from google.protobuf.message import DecodeError
import numpy as np

from alexnet_jax import files
from alexnet_jax.data.splits import digest
from alexnet_jax.data.splits import warn_once
from alexnet_jax.errors import UserError

INFO = 'dataset_info.json'  # makes a folder a set, for TFDS and for us
_TEMPLATE = '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}'
_KINDS = {  # of the features that are read: classes of TFDS
  'image': 'tensorflow_datasets.core.features.image_feature.Image',
  'label': 'tensorflow_datasets.core.features.class_label_feature.ClassLabel',
}
_NUMBER = r'-?\d{1,12}(\.\d{1,12})?'
_TERM = re.compile(
  rf'(?P<name>[\w-]+)(\[((?P<first>{_NUMBER})(?P<unit>%|shard)?)?:'
  rf'((?P<last>{_NUMBER})(?P<last_unit>%|shard)?)?\])?'
)
_INFO = {'name': str, 'splits': [{'name': str}]}  # of INFO
_FEATURES = {'featuresDict': {'features': {str: {'pythonClassName': str}}}}
_THREADS = 16  # they wait for the disk more than they compute
_CHUNK = 256  # records
_LARGE = 10_000  # records; reading their labels is announced
_labels_read: dict[tuple[pathlib.Path, str], np.ndarray] = {}


@dataclasses.dataclass(frozen=True)
class Records:
  """Some records of a file, named as ArrayRecord's reader wants them."""

  filename: str
  skip: int
  take: int
  examples_in_shard: int


@dataclasses.dataclass(frozen=True)
class Description:
  """What a TFDS set of images with labels says of itself.

  Attributes:
    folder: of the set.
    name: of the set, without config and version.
    class_names: in the order of the labels.
    splits: the files of each split, whole.
  """

  folder: pathlib.Path
  name: str
  class_names: list[str]
  splits: dict[str, list[Records]]

  def num_examples(self, split: str) -> int:
    return sum(file.take for file in self.splits[split])


@dataclasses.dataclass(frozen=True, eq=False)
class TfdsSource:
  """A split of a prepared TFDS image classification set (array_record).

  Attributes:
    name: of the set and the split.
    folder: of the set.
    parts: the records, in order.
    records: gives the bytes of a record; from several threads at once.
    class_names: in the order of the labels.
    fingerprint: of the set's description and the split.
  """

  name: str
  folder: pathlib.Path
  parts: Sequence[Records]
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
    except (DecodeError, RuntimeError, IndexError, ValueError) as error:
      raise UserError(
        f'{self.name} record {index} in {self.folder} cannot be read or is'
        f' damaged ({error}); prepare the set again'
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

      def read(start):
        indices = range(start, min(start + _CHUNK, count))
        return [self.read(index)[1] for index in indices]

      with concurrent.futures.ThreadPoolExecutor(_THREADS) as pool:
        read_labels = pool.map(read, range(0, count, _CHUNK))
        labels = itertools.chain.from_iterable(read_labels)
        _labels_read[key] = np.fromiter(labels, np.int32, count)
    return _labels_read[key]


@functools.cache
def example_class():
  """Returns the protobuf message tf.train.Example, without TensorFlow."""
  from tensorflow_datasets.proto import tf_example_generated_pb2  # slow

  return tf_example_generated_pb2.Example


def tfds_source(name: str, split: str, data_dir: str = '') -> TfdsSource:
  """Opens a split of a TFDS set prepared as array_record.

  Args:
    name: of the set, NAME or NAME/CONFIG.
    split: NAME, NAME[FROM:TO] in examples, `%` or `shard`, several of them
      joined by +, or `all`, with the meaning that TFDS gives them.
    data_dir: of TFDS.

  Raises:
    UserError: if the set is not prepared there, or lacks the split or the
      features `image` and `label`.
  """
  described = read_description(tfds_folder(name, data_dir))
  folder = described.folder
  if split == 'all':
    parts = [file for whole in described.splits.values() for file in whole]
  else:
    terms = re.split(r'\s*\+\s*', split)
    parts = [part for term in terms for part in _slice(described, term)]
  if not parts:
    raise UserError(f'the split {split!r} of {name} in {folder} is empty')
  for part in parts:
    if not pathlib.Path(part.filename).is_file():
      raise UserError(f'{part.filename} is missing; prepare {name} again')
  files.keep_open(part.filename for part in parts)
  return TfdsSource(
    f'{name} {split}',
    folder,
    parts,
    array_record_data_source.ArrayRecordDataSource(parts),
    tuple(described.class_names),
    digest((folder / INFO).read_bytes(), split.encode()),
  )


def _slice(described, term):
  """Returns the records of one split or a slice of it."""
  match = _TERM.fullmatch(term)
  broken = '.' in term and '%' not in term  # a part of an example
  if not match or match['name'] not in described.splits or broken:
    raise UserError(
      f'{described.folder} cannot give the split {term!r}: it takes a name, or'
      ' NAME[FROM:TO] in examples or %; its splits are'
      f' {sorted(described.splits)}'
    )
  whole = described.splits[match['name']]
  lengths = [file.take for file in whole]
  total, unit = sum(lengths), match['unit'] or match['last_unit']

  def position(value):
    if unit == 'shard':
      return sum(lengths[: int(value)])
    if unit == '%':  # rounded as TFDS does
      value = round(float(value) * total / 100)
    if not -total <= int(value) <= total:
      raise UserError(
        f'{described.folder}: {term!r} is beyond the {total} examples there'
      )
    return int(value) + (total if int(value) < 0 else 0)

  first = position(match['first']) if match['first'] else 0
  last = position(match['last']) if match['last'] else total
  parts, start = [], 0
  for file in whole:
    skip = max(first - start, 0)
    take = min(last - start, file.take) - skip
    if take > 0:
      parts.append(dataclasses.replace(file, skip=skip, take=take))
    start += file.take
  return parts


def check_disjoint(training, held_out) -> None:
  """Refuses splits of a TFDS set that share examples; others never do.

  Raises:
    UserError: naming both.
  """
  ranges = collections.defaultdict(list)
  for part in getattr(training, 'parts', ()):
    ranges[part.filename].append((part.skip, part.skip + part.take))
  for part in getattr(held_out, 'parts', ()):
    for first, last in ranges[part.filename]:
      if max(first, part.skip) < min(last, part.skip + part.take):
        raise UserError(
          f'the splits {training.name!r} and {held_out.name!r} share examples:'
          ' what is trained on would be measured; keep them apart, as'
          " 'train[:80%]' and 'train[80%:]' are"
        )


def read_description(folder: pathlib.Path) -> Description:
  """Reads what TFDS, or `prepare resize`, wrote beside the records.

  Raises:
    UserError: if it is damaged, of another format, or of a set whose `image`
      and `label` are no images and classes.
  """
  try:
    info = files.read_json(folder / INFO, _INFO)
    features = files.read_json(folder / 'features.json', _FEATURES)
  except FileNotFoundError as error:
    raise UserError(
      f'{error.filename} is missing; prepare the set again'
    ) from error
  if (found := info.get('fileFormat', 'tfrecord')) != 'array_record':
    raise UserError(
      f'{folder} is {found}; training reads array_record: prepare the set'
      ' again, into another folder'
    )
  features = features['featuresDict']['features']
  kinds = {key: found['pythonClassName'] for key, found in features.items()}
  if _KINDS.items() - kinds.items():
    raise UserError(
      f'{folder} has the features {kinds}; training needs an image'
      f' ({_KINDS["image"]}) and a label ({_KINDS["label"]})'
    )
  try:
    dtype = features['image'].get('image', {}).get('dtype', 'uint8')
    count = int(features['label']['classLabel']['numClasses'])
    splits = {
      split['name']: _find_files(folder, info['name'], split)
      for split in info['splits']
    }
  except (AttributeError, KeyError, TypeError, ValueError) as error:
    raise UserError(
      f'the description in {folder} is damaged ({error!r}); prepare the set'
      ' again'
    ) from error
  if dtype not in ('uint8', 'uint16'):
    raise UserError(
      f'{folder} has images of {dtype}; training reads those of 8 or 16 bits'
    )
  names = _read_names(folder / 'label.labels.txt', count)
  return Description(folder, info['name'], names, splits)


def _find_files(folder, name, split):
  """Returns the whole files of a split, from its entry in dataset_info.json."""
  if (named := split.get('filepathTemplate') or _TEMPLATE) != _TEMPLATE:
    raise ValueError(f'files are named {named}, not {_TEMPLATE}')
  lengths = [int(length) for length in split.get('shardLengths', [])]
  found = []
  for number, length in enumerate(lengths):
    file = f'{name}-{split["name"]}.array_record-{number:05d}'
    file += f'-of-{len(lengths):05d}'
    if not 0 <= length < 1 << 40 or os.path.basename(file) != file:
      raise ValueError(f'{file} with {length} records')
    found.append(Records(str(folder / file), 0, length, length))
  return found


def _read_names(path, count):
  """Returns the names of classes; without a file they are numbers."""
  try:
    names = path.read_text('utf-8').removesuffix('\n').split('\n')
  except FileNotFoundError:
    return [str(number) for number in range(count)]
  except (OSError, UnicodeDecodeError) as error:
    raise UserError(f'cannot read {path}: {error}') from error
  names = [name.strip() for name in names]
  if len(names) != count:
    names = list(filter(None, names))  # as TFDS reads them
  if len(names) != count:
    raise UserError(
      f'{path} names {len(names)} classes, but the set has {count}; prepare it'
      ' again'
    )
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
    f'no TFDS set {name!r} in {root}.{_nearby(root, name)}{tars} `python -m'
    f' alexnet_jax.data.prepare tfds --name {name} --manual_dir DIR --data_dir'
    f' {root}`. If it lies elsewhere, give its data_dir as the path'
  )


def _nearby(root, name):
  """Returns a hint about what is there instead of a set."""
  if any(root.glob(f'{name}/*/.unfinished')):
    return ' It is unfinished: the same prepare command goes on.'
  infos = [*root.glob(f'*/*/{INFO}')]
  names = sorted({path.parent.parent.name for path in infos})
  return f' It has {", ".join(names)}: name it (tfds_name).' if names else ''

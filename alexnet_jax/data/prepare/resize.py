"""The command `prepare resize`: JPEGs whose short side is 256, as a TFDS set.

The result is what TFDS itself would read, written without it.
"""

from collections.abc import Sequence
import logging
import pathlib
import re

from array_record.python import array_record_module
import numpy as np
import simplejpeg

from alexnet_jax import files
from alexnet_jax.data import decoding, images, tfds_records
from alexnet_jax.errors import UnreadableImageError, UserError

_MADE = 'alexnet_jax.json'  # in the set: the settings, and what was skipped
_VERSION = '1.0.0'
_LONGEST_SIDE = 65_500  # pixels, of libjpeg
_QUALITY = 90  # of the JPEGs
_SAMPLE = 128  # images that the estimate of the room encodes, at most
# One record a chunk for random access; JPEGs do not compress further.
_WRITER_OPTIONS = 'group_size:1,uncompressed'


def _name_and_version(arguments):
  """Returns both of the new set; a TFDS source keeps its own, for recipes."""
  if arguments.name:
    if not re.fullmatch(r'[a-z][a-z0-9_]*', arguments.name):
      raise UserError(
        f'--name is {arguments.name!r}; it takes a letter, then a-z, 0-9 and _'
      )
    return arguments.name, _VERSION
  if arguments.source == 'tfds':
    folder = tfds_records.tfds_folder(arguments.tfds_name, arguments.path)
    return arguments.tfds_name, folder.name
  name = re.sub(r'[^a-z0-9]+', '_', pathlib.Path(arguments.path).name.lower())
  name = name.strip('_') or arguments.source
  return name if name[0].isalpha() else f'images_{name}', _VERSION


def _check_class_names(names):
  """Refuses names that a file with a name a line does not give back."""
  for name in names:
    is_unicode = name.encode(errors='replace').decode() == name
    if name != name.strip() or set(name) & {*'\r\n'} or not is_unicode:
      raise UserError(
        f'the class name {name!r} is no line of UTF-8; use `prepare raw`'
      )
  if len({*names, ''}) <= len(names):
    logging.warning('class names are empty or given twice, which TFDS refuses')


class ResizedSet:
  """A TFDS set of smaller JPEGs, with the methods of `raw.RawSet`.

  Images that are no larger and are upright color JPEGs are taken over byte for
  byte. Its result: {out, name, folder, size, classes, splits: {name:
  examples}, skipped: how many}.
  """

  description, settings_file = tfds_records.INFO, _MADE

  def __init__(self, arguments, loaders):
    self._name, version = _name_and_version(arguments)
    self._out = pathlib.Path(arguments.out)
    # DIR/NAME/VERSION, or DIR/NAME/CONFIG/VERSION
    self.folder = self._out / self._name / version
    self._loaders = loaders
    self._class_names = list(loaders['train'].source.class_names)
    _check_class_names(self._class_names)
    self._size = arguments.size
    self.settings = {
      'size': arguments.size,
      'shard_examples': arguments.shard_examples,
      'sources': {k: v.source.fingerprint for k, v in loaders.items()},
    }

  def estimate(self, missing) -> int:
    """Returns how many bytes some shards will take, from a sample."""
    pairs = [(s.loader, index) for s in missing for index in s.indices]
    chosen = pairs[:: -(-len(pairs) // _SAMPLE) or 1]
    records = [self.convert(*pair) for pair in chosen]
    sizes = [len(record) for record in records if record]
    # A record has about a hundred bytes of framing, a file ends with its 64 kB
    # block, and a sample errs.
    size = (np.mean(sizes or [0]) + 100) * 1.1
    return int(len(pairs) * size + len(missing) * 65_536)

  def file_name(self, shard) -> str:
    number = shard.key.removeprefix(f'{shard.split}-')
    name = self._name.partition('/')[0]
    return f'{name}-{shard.split}.array_record-{number}'

  def convert(self, loader, index) -> bytes | None:
    """Returns a serialized tf.train.Example; None if the image is skipped."""
    try:
      content, label = loader.source.read(index)
    except UnreadableImageError as error:
      return loader.report(index, error)
    if (example := loader.decoded(index, content, label)) is None:
      return None
    try:
      encoded = self._encode(example[0], content)
    except UnreadableImageError as error:
      return loader.report(index, error)
    file_name = getattr(loader.source, 'file_name', loader.source.describe)
    message = tfds_records.example_class()()
    features = message.features.feature
    features['image'].bytes_list.value.append(encoded)
    features['label'].int64_list.value.append(label)
    features['file_name'].bytes_list.value.append(
      file_name(index).encode(errors='surrogateescape')
    )
    return message.SerializeToString(deterministic=True)

  def _encode(self, pixels, content):
    """Returns a JPEG, 4:2:0, of an image that was decoded from `content`."""
    small = min(pixels.shape[:2]) <= self._size
    if small and isinstance(content, bytes) and decoding.is_plain_jpeg(content):
      return content
    if not small:
      pixels = images.resize_short_side(pixels, self._size)
    if max(pixels.shape[:2]) > _LONGEST_SIDE:
      raise UnreadableImageError(
        f'{pixels.shape[1]} x {pixels.shape[0]} pixels are too long for a JPEG'
      )
    return simplejpeg.encode_jpeg(
      np.ascontiguousarray(pixels), _QUALITY, 'RGB', '420', fastdct=False
    )

  def write(self, path, examples) -> dict:
    writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    sizes = []
    try:
      for record in examples:
        writer.write(record)
        sizes.append(len(record))
    finally:
      writer.close()
    return {'num_examples': len(sizes), 'num_bytes': sum(sizes)}

  def describe(self, notes) -> None:
    skipped = [k for own in notes.values() for n in own for k in n['skipped']]
    made = {'settings': self.settings, 'skipped': skipped}
    files.write_json(self.folder / _MADE, made)
    name = self._name.partition('/')[0]
    write_description(self.folder, name, self._class_names, notes)

  def result(self) -> tuple[dict, dict]:
    described = tfds_records.read_description(self.folder)
    splits = {split: described.num_examples[split] for split in self._loaders}
    total = sum(loader.source.num_examples for loader in self._loaders.values())
    result = {
      'out': str(self._out),
      'name': self._name,
      'folder': str(self.folder),
      'size': self._size,
      'classes': len(self._class_names),
      'splits': splits,
      'skipped': total - sum(splits.values()),
    }
    keys = {'source': 'tfds', 'path': self._out, 'tfds_name': self._name}
    return result, keys


def write_description(
  folder: pathlib.Path,
  name: str,
  class_names: Sequence[str],
  splits: dict[str, list[dict]],
) -> None:
  """Writes what makes a folder of shards a TFDS set, as TFDS does.

  `folder` is named by the version; each shard of a split has {num_examples,
  num_bytes}.
  """
  image = {
    'dtype': 'uint8',
    'encodingFormat': 'jpeg',
    'shape': {'dimensions': ['-1', '-1', '3']},
  }
  label = {'numClasses': str(len(class_names))}
  features = {
    'file_name': _feature('text_feature.Text', text={}),
    'image': _feature('image_feature.Image', image=image),
    'label': _feature('class_label_feature.ClassLabel', classLabel=label),
  }
  features = _feature(
    'features_dict.FeaturesDict', featuresDict={'features': features}
  )
  info = {
    'description': 'Images resized by alexnet_jax.data.prepare resize.',
    'fileFormat': 'array_record',
    'name': name,
    'splits': [
      {
        'filepathTemplate': '{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}',
        'name': split,
        'numBytes': str(sum(part['num_bytes'] for part in parts)),
        'shardLengths': [str(part['num_examples']) for part in parts],
      }
      for split, parts in splits.items()
    ],
    'version': folder.name,
  }
  names = ''.join(f'{name}\n' for name in class_names)
  with files.replaced_file(folder / 'label.labels.txt') as temporary:
    temporary.write_text(names, 'utf-8')
  files.write_json(folder / 'features.json', features)
  files.write_json(folder / tfds_records.INFO, info)  # makes it a set


def _feature(kind, **content):
  package = 'tensorflow_datasets.core.features'
  return {'pythonClassName': f'{package}.{kind}', **content}

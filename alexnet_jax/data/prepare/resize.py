"""The command `prepare resize`: JPEGs whose short side is 256, as a TFDS set.

The result is what TFDS itself would read (array_record, dataset_info.json,
features.json), written without TensorFlow, with the splits and the order of the
source.
"""

import pathlib
import re
import shutil

from array_record.python import array_record_module
import numpy as np
import simplejpeg

from alexnet_jax import files
from alexnet_jax.data import decoding
from alexnet_jax.data import images
from alexnet_jax.data import tfds_records
from alexnet_jax.data.prepare import shards
from alexnet_jax.errors import UnreadableImageError
from alexnet_jax.errors import UserError

_MADE = 'alexnet_jax.json'  # in the set: the settings, and what was skipped
_VERSION = '1.0.0'
_LONGEST_SIDE = 65_500  # pixels, of libjpeg
_SAMPLE = 64  # images of each split that the estimate of the room encodes
# One record a chunk for random access; JPEGs do not compress further.
_WRITER_OPTIONS = 'group_size:1,uncompressed'


def prepare_resized(arguments) -> dict:
  """Writes both splits of a source as smaller JPEGs; see `shards.prepare`.

  Images that are no larger and are upright color JPEGs already are taken over
  byte for byte; smaller ones are not enlarged.

  Returns:
    {out, name, folder, size, quality, classes, splits: {name: examples},
    skipped: how many}.
  """
  return shards.prepare(arguments, _ResizedSet)


def _name_and_version(arguments):
  """Returns both of the new set; a TFDS source keeps its own.

  So recipes find the smaller set as well.
  """
  if arguments.name:
    if not re.fullmatch(r'[a-z][a-z0-9_]*', arguments.name):
      raise UserError(
        f'--name is {arguments.name!r}; it takes a-z, 0-9 and _, and starts'
        ' with a letter'
      )
    return arguments.name, _VERSION
  if arguments.source == 'tfds':
    folder = tfds_records.tfds_folder(arguments.tfds_name, arguments.path)
    return arguments.tfds_name, folder.name
  name = re.sub(r'[^a-z0-9]+', '_', pathlib.Path(arguments.path).name.lower())
  name = name.strip('_') or arguments.source
  return name if name[0].isalpha() else f'images_{name}', _VERSION


class _ResizedSet:
  """A TFDS set of smaller JPEGs, as `shards.Target` describes it."""

  description, settings_file = tfds_records.INFO, _MADE
  what = 'a resized set'

  def __init__(self, arguments, loaders):
    self._name, version = _name_and_version(arguments)
    self._out = pathlib.Path(arguments.out).expanduser()
    # DIR/NAME/VERSION, or DIR/NAME/CONFIG/VERSION
    self.folder = self._out / self._name / version
    self._loaders = loaders
    self._size, self._quality = arguments.size, arguments.quality
    self.settings = {
      'size': arguments.size,
      'quality': arguments.quality,
      'shard_examples': arguments.shard_examples,
      'sources': {k: v.source.fingerprint for k, v in loaders.items()},
    }

  @property
  def _class_names(self):
    return list(self._loaders['train'].source.class_names)

  @property
  def _file_prefix(self):
    return self._name.partition('/')[0]

  def estimate(self, loader, missing) -> int:
    """Returns the bytes of shards of a split, from a sample."""
    indices = [index for shard in missing for index in shard.indices]
    if not indices:
      return 0
    chosen = np.linspace(0, len(indices) - 1, min(_SAMPLE, len(indices)))
    records = [self.convert(loader, indices[int(i)]) for i in chosen]
    sizes = [len(record) for record in records if record]
    # A record has about a hundred bytes of framing, a file ends with its 64 kB
    # block, and a sample errs.
    size = (np.mean(sizes or [0]) + 100) * 1.1
    return int(len(indices) * size + len(missing) * 65_536)

  def file_name(self, shard) -> str:
    """Returns what TFDS calls a shard's file."""
    number = shard.key.removeprefix(f'{shard.split}-')
    return f'{self._file_prefix}-{shard.split}.array_record-{number}'

  def convert(self, loader, index) -> bytes | None:
    """Returns a serialized tf.train.Example; None if the image is skipped."""
    content, label = loader.source.read(index)
    example = loader.decoded(index, content, label)
    if example is None:
      return None
    pixels, encoded = example[0], content
    if not (
      isinstance(content, bytes)
      and min(pixels.shape[:2]) <= self._size
      and decoding.is_plain_jpeg(content)
    ):
      try:
        encoded = encode(pixels, self._size, self._quality)
      except UnreadableImageError as error:
        loader.report(index, error)
        return None
    file_name = getattr(loader.source, 'file_name', loader.source.describe)
    message = tfds_records.example_class()()
    features = message.features.feature
    features['image'].bytes_list.value.append(encoded)
    features['label'].int64_list.value.append(label)
    features['file_name'].bytes_list.value.append(
      file_name(index).encode(errors='surrogateescape')
    )
    return message.SerializeToString(deterministic=True)

  def write(self, path, examples) -> dict:
    """Writes an ArrayRecord file."""
    writer = array_record_module.ArrayRecordWriter(str(path), _WRITER_OPTIONS)
    count = size = 0
    try:
      for record in examples:
        writer.write(record)
        count, size = count + 1, size + len(record)
    finally:
      writer.close()
    return {'num_examples': count, 'num_bytes': size}

  def describe(self, notes, drafts) -> None:
    """Writes features.json and, at last, dataset_info.json."""
    import tensorflow_datasets as tfds  # slow to import, and only needed here

    skipped = [
      k for own in notes.values() for note in own for k in note['skipped']
    ]
    made = {'settings': self.settings, 'skipped': skipped}
    shards.write_json(self.folder / _MADE, made, indent=1)
    infos = [
      tfds.core.SplitInfo(
        name=split,
        shard_lengths=[note['num_examples'] for note in own],
        num_bytes=sum(note['num_bytes'] for note in own),
        filename_template=tfds.core.ShardedFileTemplate(
          data_dir=self.folder,
          dataset_name=self._file_prefix,
          split=split,
          filetype_suffix='array_record',
        ),
      )
      for split, own in notes.items()
    ]
    features = {
      'file_name': tfds.features.Text(),
      'image': tfds.features.Image(encoding_format='jpeg'),
      'label': tfds.features.ClassLabel(names=self._class_names),
    }
    # TFDS writes where the shards are; drafts beside links to them can be put
    # in their place when they are whole.
    drafts = drafts / 'description'
    shutil.rmtree(drafts, ignore_errors=True)
    drafts.mkdir()
    for path in self.folder.glob('*.array_record-*'):
      (drafts / path.name).symlink_to(path.absolute())
    tfds.folder_dataset.write_metadata(
      data_dir=drafts,
      features=tfds.features.FeaturesDict(features),
      split_infos=infos,
      version=self.folder.name,
      check_data=False,
      description='Images resized by alexnet_jax.data.prepare resize.',
    )
    written = [path for path in drafts.iterdir() if not path.is_symlink()]
    for path in sorted(written, key=lambda p: p.name == self.description):
      with files.replaced_file(self.folder / path.name) as temporary:
        shutil.copyfile(path, temporary)

  def result(self) -> tuple[dict, dict]:
    splits = {
      split: tfds_records.tfds_source(
        self._name, split, str(self._out)
      ).num_examples
      for split in self._loaders
    }
    total = sum(loader.source.num_examples for loader in self._loaders.values())
    result = {
      'out': str(self._out),
      'name': self._name,
      'folder': str(self.folder),
      'size': self._size,
      'quality': self._quality,
      'classes': len(self._class_names),
      'splits': splits,
      'skipped': total - sum(splits.values()),
    }
    keys = {'source': 'tfds', 'path': self._out, 'tfds_name': self._name}
    return result, keys


def encode(pixels: np.ndarray, size: int, quality: int) -> bytes:
  """Returns a JPEG, 4:2:0, whose short side is at most `size` pixels.

  Args:
    pixels: uint8 [height, width, 3].
    size: of the short side; smaller images keep theirs.
    quality: 1 to 100, of libjpeg.

  Raises:
    UnreadableImageError: if it has a longer side than a JPEG can have.
  """
  if min(pixels.shape[:2]) > size:
    pixels = images.resize_short_side(pixels, size)
  if max(pixels.shape[:2]) > _LONGEST_SIDE:
    raise UnreadableImageError(
      f'{pixels.shape[1]} x {pixels.shape[0]} pixels are too long for a JPEG'
    )
  return simplejpeg.encode_jpeg(
    np.ascontiguousarray(pixels), quality, 'RGB', '420', fastdct=False
  )

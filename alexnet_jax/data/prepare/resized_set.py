"""prepare resize: JPEGs whose short side is 256, as a TFDS set.

The result is what TFDS itself would read (array_record, dataset_info.json,
features.json), written without TensorFlow, with the splits and the order of the
source.
"""

import pathlib
import re
import sys

import numpy as np
import simplejpeg

from alexnet_jax.data import decoding
from alexnet_jax.data import images
from alexnet_jax.data import tfds_records
from alexnet_jax.data.prepare import inputs
from alexnet_jax.data.prepare import shards
from alexnet_jax.data.prepare import tfds_writer
from alexnet_jax.data.prepare import writing
from alexnet_jax.errors import UnreadableImageError
from alexnet_jax.errors import UserError

_MADE = 'alexnet_jax.json'  # in the set: the settings, and what was skipped
_VERSION = '1.0.0'
_LONGEST_SIDE = 65_500  # pixels, of libjpeg
_SAMPLE = 64  # images of each split that the estimate of the room encodes


def prepare_resized(arguments) -> dict:
  """Writes both splits of a source as smaller JPEGs.

  Images that are no larger and are upright color JPEGs already are taken over
  byte for byte; smaller ones are not enlarged.

  Args:
    arguments: of the command line, see `add_arguments`.

  Returns:
    {out, name, folder, size, quality, classes, splits: {name: examples},
    skipped: how many}.

  Raises:
    UserError: if the source is unfit, `out` in use or the disk too small.
  """
  loaders = inputs.open_loaders(arguments, arguments.size)
  name, version = _name_and_version(arguments)
  folder = pathlib.Path(arguments.out).expanduser() / name / version
  settings = _settings(arguments, loaders)
  with shards.locked(folder, tfds_writer.INFO):
    if (folder / tfds_writer.INFO).exists():
      _check_prepared(folder, settings)
    else:
      _write(folder, settings, loaders, arguments, name.split('/')[0], version)
    return _result(arguments, name, folder, loaders)


def _write(folder, settings, loaders, arguments, name, version):
  """Writes the set, or what is missing of it."""
  plan = shards.plan(loaders, arguments.shard_examples)
  size, quality = arguments.size, arguments.quality
  with shards.output(folder, settings, plan) as out:
    missing = [shard for shard in plan if out.note(shard) is None]
    needed = sum(
      _estimate(loader, [s for s in missing if s.split == split], size, quality)
      for split, loader in loaders.items()
    )
    shards.check_room(folder, needed, 'the resized set')
    notes = writing.write_shards(
      out,
      plan,
      loaders,
      file_name=lambda shard: tfds_writer.file_name(name, shard),
      convert=lambda loader, index: _record(loader, index, size, quality),
      write=tfds_writer.write_shard,
    )
    skipped = [name for note in notes for name in note['skipped']]
    made = {'settings': settings, 'skipped': skipped}
    shards.write_json(folder / _MADE, made, indent=1)
    tfds_writer.describe(
      out,
      name,
      version,
      loaders['train'].source.class_names,
      shards.by_split(plan, notes),
    )
    out.finish()


def _settings(arguments, loaders):
  return {
    'size': arguments.size,
    'quality': arguments.quality,
    'shard_examples': arguments.shard_examples,
    'sources': {k: v.source.fingerprint for k, v in loaders.items()},
  }


def _name_and_version(arguments):
  """A TFDS source keeps both: recipes find the smaller set as well."""
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


def _check_prepared(folder, settings):
  try:
    made = shards.read_json(folder / _MADE)['settings']
  except (OSError, ValueError, KeyError):
    made = {}
  if made != settings:
    raise UserError(
      f'{folder} holds a set made with other settings or from other data'
      f' ({shards.differences(made, settings)}); choose another --out'
    )
  shards.forget_notes(folder)  # if the last command ended right before that
  print(f'{folder} is prepared already', file=sys.stderr)


def _record(loader, index, size, quality):
  """A serialized tf.train.Example; None if the image is skipped."""
  content, label = loader.source.read(index)
  example = loader.decoded(index, content, label)
  if example is None:
    return None
  if _fits(content, example[0], size):
    encoded = content
  else:
    try:
      encoded = encode(example[0], size, quality)
    except UnreadableImageError as error:
      loader.report(index, error)
      return None
  file_name = getattr(loader.source, 'file_name', loader.source.describe)
  return tfds_writer.serialize(encoded, label, file_name(index))


def _fits(encoded, pixels, size):
  """Whether a file can stay as it is: a plain JPEG, no larger than asked."""
  return (
    isinstance(encoded, bytes)
    and min(pixels.shape[:2]) <= size
    and decoding.is_plain_jpeg(encoded)
  )


def encode(pixels: np.ndarray, size: int, quality: int) -> bytes:
  """A JPEG, 4:2:0, whose short side is at most `size` pixels.

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


def _estimate(loader, missing, size, quality):
  """Bytes that the missing shards of a split will take, from a sample."""
  count = sum(shard.stop - shard.start for shard in missing)
  if not count:
    return 0
  chosen = np.linspace(
    missing[0].start, missing[-1].stop - 1, min(_SAMPLE, count)
  ).astype(int)
  sizes = [
    len(record)
    for index in chosen
    if (record := _record(loader, int(index), size, quality))
  ]
  # A record has about a hundred bytes of framing, a file ends with its 64 kB
  # block, and a sample errs.
  return int(
    count * (np.mean(sizes or [0]) + 100) * 1.1 + len(missing) * 65_536
  )


def _result(arguments, name, folder, loaders):
  out = pathlib.Path(arguments.out).expanduser()
  splits, skipped = {}, {}
  for split, loader in loaders.items():
    source = tfds_records.tfds_source(name, split, str(out))
    splits[split] = source.num_examples
    skipped[split] = loader.source.num_examples - source.num_examples
  classes = len(loaders['train'].source.class_names)
  command = inputs.train_command(
    classes, arguments.size, source='tfds', path=out, tfds_name=name
  )
  print(command, file=sys.stderr)
  return {
    'out': str(out),
    'name': name,
    'folder': str(folder),
    'size': arguments.size,
    'quality': arguments.quality,
    'classes': classes,
    'splits': splits,
    'skipped': sum(skipped.values()),
  }


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  parser = commands.add_parser(
    'resize',
    help='make smaller JPEGs of a data set',
    description='Writes all images as JPEGs whose short side is 256 pixels:'
    ' a TFDS set in array_record, with the splits and the order of the source.',
  )
  inputs.add_arguments(parser)
  parser.add_argument(
    '--size', type=inputs.positive, default=256, help='in pixels (default: 256)'
  )
  parser.add_argument(
    '--quality',
    type=int,
    choices=range(1, 101),
    metavar='1-100',
    default=90,
    help='of the JPEGs (default: 90)',
  )
  parser.add_argument(
    '--name',
    default='',
    help='of the new set (default: that of the TFDS set, or of the folder)',
  )
  parser.add_argument(
    '--shard_examples',
    type=inputs.positive,
    default=5_000,
    help='images in a file (default: 5,000)',
  )
  parser.set_defaults(work=prepare_resized)

"""The commands that prepare data sets: python -m alexnet_jax.data.prepare."""

import argparse
import sys

from alexnet_jax import cli, config, errors, validation
from alexnet_jax.data import imagenet, sources
from alexnet_jax.data.prepare import check, raw, resize, shards, tfds

_QUALITY = config.Key(
  90, config.Rule('must lie in 1 to 100', lambda value: 1 <= value <= 100)
)
# Flags of `resize` and `raw` that are keys of config.data.
_OF_DATA = {
  'path': "the folder of images, shards or tars, or TFDS's data_dir",
  'tfds_name': 'the TFDS set',
  'tfds_train_split': 'of TFDS, what is trained on',
  'tfds_eval_split': 'of TFDS, what is measured',
  'val_fraction': 'held out where the data has no split of its own',
  'split_seed': 'decides what is held out',
  'unreadable': 'stop or skip, at an image that cannot be decoded',
}


def _add(parser, flag, key, text, **options):
  """Adds a flag that takes what a key of the config takes."""

  def number(text):
    value = type(key.default)(text)
    if not key.allowed.holds(value):
      raise argparse.ArgumentTypeError(f'{text} {key.allowed.text}')
    return value

  if isinstance(key.default, (int, float)):
    options['type'] = number
  elif isinstance(key.allowed, tuple):
    options['choices'] = key.allowed
  options = {'default': key.default, **options}
  text += f' (default: {key.default!r})'
  parser.add_argument(f'--{flag}', help=text, **options)


def _add_num_threads(parser):
  _add(
    parser, 'num_threads', config.KEYS['data.num_threads'], '0: one per core'
  )


def _add_tfds(parser):
  tars = f'{imagenet.TRAIN_TAR} and {imagenet.VALIDATION_TAR}'
  name = 'imagenet2012, or any NAME or NAME/CONFIG'
  parser.add_argument('--name', required=True, help=name)
  for flag, text in (
    ('manual_dir', f'of what TFDS cannot download: for imagenet2012 {tars}'),
    (
      'data_dir',
      'of its sets (default: TFDS_DATA_DIR or ~/tensorflow_datasets)',
    ),
  ):
    parser.add_argument(
      f'--{flag}',
      default='',
      type=cli.path,
      metavar='DIR',
      help=f'folder {text}',
    )


def _add_shards(parser):
  kinds = [kind for kind in sources.KINDS if kind != 'synthetic']
  parser.add_argument(
    '--source', required=True, choices=kinds, help='what PATH is'
  )
  parser.add_argument('--out', required=True, type=cli.path, metavar='DIR')
  for flag, text in _OF_DATA.items():
    options = {'type': cli.path} if flag == 'path' else {}
    _add(
      parser, flag, config.KEYS[f'data.{flag}'], text, default=None, **options
    )
  size = config.KEYS['data.resize_size']
  _add(parser, 'size', size, 'in pixels')
  text = 'images in a file; of raw images 5,000 are about 1 GB'
  _add(parser, 'shard_examples', config.Key(5_000, size.allowed), text)
  _add_num_threads(parser)


def _add_raw(parser):
  _add_shards(parser)
  kinds, text = config.KEYS['data.channels'].allowed, '1: gray (default: 3)'
  parser.add_argument(
    '--channels', type=int, choices=kinds, default=3, help=text
  )


def _add_resize(parser):
  _add_shards(parser)
  _add(parser, 'quality', _QUALITY, 'of the JPEGs')
  name = 'of the new set (default: that of the TFDS set, or of the folder)'
  parser.add_argument('--name', default='', help=name)


def _add_check(parser):
  path = 'a folder of images, tar or parquet shards, a raw set, a data_dir of'
  path += " TFDS or the folder of ImageNet's tars"
  parser.add_argument('path', type=cli.path, metavar='PATH', help=path)
  name = 'of the TFDS set, NAME or NAME/CONFIG, where PATH has several'
  parser.add_argument('--name', default='', help=name)
  _add_num_threads(parser)


def _write(arguments, target):
  """Calls `shards.prepare`, once no flag of _OF_DATA is without effect."""
  flags = vars(arguments)
  given = [flag for flag in _OF_DATA if flags[flag] is not None]
  for flag in _OF_DATA.keys() - given:
    flags[flag] = config.KEYS[f'data.{flag}'].default
  flat = {f'data.{flag}': value for flag, value in flags.items()}
  validation.check_effects(
    {**flat, 'data.folds': 0}, [f'data.{flag}' for flag in given]
  )
  return shards.prepare(arguments, target)


# Work, flags and description of each command.
_COMMANDS = {
  'tfds': (
    lambda a: tfds.prepare_tfds(a.name, a.manual_dir, a.data_dir),
    _add_tfds,
    'Builds a TFDS image classification set as array_record. It needs'
    f' TensorFlow: {errors.how_to_install("tfds")}. ImageNet needs as much room'
    ' again as its two tars.',
  ),
  'resize': (
    lambda a: _write(a, resize.ResizedSet),
    _add_resize,
    'Makes JPEGs whose short side is 256 pixels of all images: a TFDS set in'
    ' array_record, with the splits and the order of the source.',
  ),
  'raw': (
    lambda a: _write(a, raw.RawSet),
    _add_raw,
    'Decodes all images once, into center squares of uint8 pixels, which'
    ' training memory-maps. ImageNet at 256 pixels takes 262 GB.',
  ),
  'check': (
    lambda a: check.check(a.path, a.name, a.num_threads),
    _add_check,
    'Examines every image of a data set: damaged or odd files, duplicates,'
    ' missing files, wrong counts, checksums. Ends with exit code 2 if training'
    ' would stop at it; all else is a warning. Changes nothing.',
  ),
}


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.data.prepare', description='Prepares data sets.'
  )
  commands = parser.add_subparsers(
    required=True, metavar='COMMAND', dest='command'
  )
  for name, (_, add_flags, text) in _COMMANDS.items():
    summary = text.partition('. ')[0]
    command = commands.add_parser(name, help=summary, description=text)
    add_flags(command)
    cli.add_json(command)
  arguments = parser.parse_args(argv)
  work = _COMMANDS[arguments.command][0]
  return cli.run(
    lambda: work(arguments),
    json_output=arguments.json,
    uses_jax=False,
    # `check` counts errors.
    exit_code=lambda result: (
      errors.EXIT_USER if result.get('errors') else errors.EXIT_DONE
    ),
  )


if __name__ == '__main__':
  sys.exit(main())

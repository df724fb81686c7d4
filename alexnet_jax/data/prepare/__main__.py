"""The commands that prepare data sets: python -m alexnet_jax.data.prepare."""

import argparse
import sys

from alexnet_jax import cli, config, errors, validation
from alexnet_jax.data import imagenet, sources
from alexnet_jax.data.prepare import check, raw, resize, shards, tfds

# Kinds of data sets that have a path.
_KINDS = [kind for kind in sources.KINDS if kind not in ('digits', 'synthetic')]
# Flags of `resize` and `raw` that are keys of config.data.
_OF_DATA = ('path', 'tfds_name', 'tfds_train_split', 'tfds_eval_split')
_OF_DATA += ('val_fraction', 'split_seed', 'unreadable')


def _add(parser, name, text, flag='', **options):
  """Adds a flag that takes what a key of config.data takes."""
  key = config.KEYS[f'data.{name}']

  def number(given):
    value = type(key.default)(given)
    if not key.allowed.holds(value):
      raise argparse.ArgumentTypeError(f'{given} {key.allowed.text}')
    return value

  is_number = isinstance(key.default, int | float)
  options = {'default': key.default, **options}
  if isinstance(key.allowed, tuple):
    options |= {'choices': key.allowed, 'type': type(key.default)}
  elif is_number:
    options |= {'type': number, 'metavar': 'N'}
  text += f' (default: {key.default!r})'
  parser.add_argument(f'--{flag or name}', help=text, **options)


def _add_tfds(parser):
  tars = f'{imagenet.TRAIN_TAR} and {imagenet.VALIDATION_TAR}'
  name = 'imagenet2012, or any NAME or NAME/CONFIG'
  manual = f'folder of what TFDS cannot download: for imagenet2012 {tars}'
  data = 'folder of its sets (default: TFDS_DATA_DIR or ~/tensorflow_datasets)'
  folder = {'default': '', 'type': cli.path, 'metavar': 'DIR'}
  parser.add_argument('--name', required=True, help=name)
  parser.add_argument('--manual_dir', help=manual, **folder)
  parser.add_argument('--data_dir', help=data, **folder)


def _add_shards(parser):
  add = parser.add_argument
  kinds = ['digits', *_KINDS]
  add('--source', required=True, choices=kinds, help='what PATH is')
  add('--out', required=True, type=cli.path, metavar='DIR')
  text = "the folder of images, shards or tars, or TFDS's data_dir"
  add('--path', type=cli.path, help=text)
  add('--tfds_name', help='the TFDS set')
  for name, text in (
    ('tfds_train_split', 'of TFDS, what is trained on'),
    ('tfds_eval_split', 'of TFDS, what is measured'),
    ('val_fraction', 'held out where the data has no split of its own'),
    ('split_seed', 'decides what is held out'),
    ('unreadable', 'at an image that cannot be decoded'),
  ):
    _add(parser, name, text, default=None)  # see `_write`
  _add(parser, 'resize_size', 'in pixels', 'size')
  text = 'images in a file (default: 5000); of raw images these are about 1 GB'
  add(
    '--shard_examples', default=5_000, type=cli.positive, metavar='N', help=text
  )
  _add(parser, 'num_threads', '0: one per core')


def _add_raw(parser):
  _add_shards(parser)
  _add(parser, 'channels', '1: gray')


def _add_resize(parser):
  _add_shards(parser)
  name = 'of the new set (default: that of the TFDS set, or of the folder)'
  parser.add_argument('--name', default='', help=name)


def _add_check(parser):
  path = 'a folder of images, tar or parquet shards, a raw set, a data_dir of'
  path += " TFDS or the folder of ImageNet's tars"
  parser.add_argument('path', type=cli.path, metavar='PATH', help=path)
  text = 'what PATH is (default: what most of its files are)'
  parser.add_argument('--source', default='', choices=_KINDS, help=text)
  _add(parser, 'num_threads', '0: one per core')


def _write(arguments, target):
  """Calls `shards.prepare`, once no flag of _OF_DATA is without effect."""
  flags = vars(arguments)
  given = [flag for flag in _OF_DATA if flags[flag] is not None]
  for flag in set(_OF_DATA) - set(given):
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
    lambda a: check.check(a.path, a.source, a.num_threads),
    _add_check,
    'Examines every image of a data set: damaged files, duplicates, missing'
    ' files, wrong counts, checksums. Ends with exit code 2 if training would'
    ' stop at it; all else is a warning or a note. Changes nothing.',
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

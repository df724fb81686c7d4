"""The commands that prepare data sets: python -m alexnet_jax.data.prepare."""

import argparse
import sys

from alexnet_jax import cli
from alexnet_jax import errors
from alexnet_jax.data import sources
from alexnet_jax.data.prepare import check
from alexnet_jax.data.prepare import raw
from alexnet_jax.data.prepare import resize
from alexnet_jax.data.prepare import shards
from alexnet_jax.data.prepare import tfds


def _number(convert, fits, problem):
  """Returns argparse's converter of a number in a range."""

  def parse(text):
    try:
      value = convert(text)
    except ValueError as error:
      raise argparse.ArgumentTypeError(f'{text!r} is no number') from error
    if not fits(value):
      raise argparse.ArgumentTypeError(f'{text} {problem}')
    return value

  return parse


_POSITIVE = _number(int, lambda n: n > 0, 'is not positive')
_NOT_NEGATIVE = _number(int, lambda n: n >= 0, 'is negative')
_FRACTION = _number(float, lambda n: 0 < n < 1, 'does not lie between 0 and 1')
_QUALITY = _number(int, lambda n: 1 <= n <= 100, 'does not lie in 1 to 100')


_DIVIDED = ('digits', 'folder', 'tar', 'parquet')
# Flags of `resize` and `raw` that only some sources read: which, the default,
# argparse's options and the help.
_OF_SOURCES = {
  'path': (
    ('folder', 'tfds', 'tar', 'parquet', 'raw'),
    '',
    {'type': cli.path},
    'the folder of images or shards, or the data_dir of TFDS',
  ),
  'tfds_name': (('tfds',), 'imagenet2012', {}, 'the set'),
  'tfds_train_split': (('tfds',), 'train', {}, 'what is trained on'),
  'tfds_eval_split': (('tfds',), 'validation', {}, 'what is measured'),
  'val_fraction': (
    _DIVIDED,
    0.2,
    {'type': _FRACTION},
    'held out where the data has no split',
  ),
  'split_seed': (_DIVIDED, 0, {'type': int}, 'decides what is held out'),
  'unreadable': (
    ('folder', 'tfds', 'tar', 'parquet'),
    'stop',
    {'choices': ('stop', 'skip')},
    'at an image that cannot be decoded',
  ),
}


def _fill_in(arguments):
  """Sets the defaults of _OF_SOURCES, and `given`, the flags that were given.

  Raises:
    UserError: for a flag without effect.
  """
  given = {f for f in _OF_SOURCES if getattr(arguments, f) is not None}
  arguments.given = given
  for flag, (kinds, default, *_) in _OF_SOURCES.items():
    if flag not in given:
      setattr(arguments, flag, default)
    elif arguments.source not in kinds:
      raise errors.UserError(
        f'--{flag} {getattr(arguments, flag)} has no effect with --source'
        f' {arguments.source}; leave it out'
      )
  return arguments


def _add_tfds(parser):
  parser.add_argument(
    '--name', required=True, help='imagenet2012, or any NAME or NAME/CONFIG'
  )
  parser.add_argument(
    '--manual_dir',
    default='',
    type=cli.path,
    metavar='DIR',
    help='folder of what TFDS cannot download: for imagenet2012'
    f' {tfds.TRAIN_TAR} and {tfds.VALIDATION_TAR}',
  )
  parser.add_argument(
    '--data_dir',
    default='',
    type=cli.path,
    metavar='DIR',
    help='where TFDS keeps its sets (default: TFDS_DATA_DIR or'
    ' ~/tensorflow_datasets)',
  )


def _add_raw(parser):
  parser.add_argument(
    '--source',
    required=True,
    choices=[kind for kind in sources.KINDS if kind != 'synthetic'],
    help='what PATH is',
  )
  parser.add_argument('--out', required=True, type=cli.path, metavar='DIR')
  for flag, (kinds, default, options, text) in _OF_SOURCES.items():
    text += f' (default: {default!r}; for {", ".join(kinds)})'
    parser.add_argument(f'--{flag}', help=text, **options)
  parser.add_argument(
    '--size', type=_POSITIVE, default=256, help='in pixels (default: 256)'
  )
  parser.add_argument(
    '--shard_examples',
    type=_POSITIVE,
    default=5_000,
    help='images in a file (default: 5,000; of raw images about 1 GB)',
  )
  _add_num_threads(parser)


def _add_resize(parser):
  _add_raw(parser)
  parser.add_argument(
    '--quality',
    type=_QUALITY,
    metavar='1-100',
    default=90,
    help='of the JPEGs (default: 90)',
  )
  parser.add_argument(
    '--name',
    default='',
    help='of the new set (default: that of the TFDS set, or of the folder)',
  )


def _add_check(parser):
  parser.add_argument(
    'path',
    type=cli.path,
    metavar='PATH',
    help='a folder of images, tar or parquet shards, a raw set, a data_dir of'
    " TFDS or the folder of ImageNet's tars",
  )
  parser.add_argument(
    '--name',
    default='',
    help='of the TFDS set, NAME or NAME/CONFIG, where PATH has several',
  )
  _add_num_threads(parser)


def _add_num_threads(parser):
  parser.add_argument(
    '--num_threads',
    type=_NOT_NEGATIVE,
    default=0,
    help='0: one per core (default)',
  )


# Work, flags, help and description of each command.
_COMMANDS = {
  'tfds': (
    lambda a: tfds.prepare_tfds(a.name, a.manual_dir, a.data_dir),
    _add_tfds,
    'build a TFDS image classification set (needs TensorFlow)',
    'Builds a TFDS image classification set as array_record. Needs TensorFlow:'
    f' {errors.how_to_install("tfds")}. ImageNet needs as much room again as'
    ' its two tars.',
  ),
  'resize': (
    lambda a: shards.prepare(_fill_in(a), resize.ResizedSet),
    _add_resize,
    'make smaller JPEGs of a data set',
    'Writes all images as JPEGs whose short side is 256 pixels: a TFDS set in'
    ' array_record, with the splits and the order of the source.',
  ),
  'raw': (
    lambda a: shards.prepare(_fill_in(a), raw.RawSet),
    _add_raw,
    'decode a data set once, into squares of uint8 pixels',
    'Writes the center squares of all images as uint8 arrays, which training'
    ' memory-maps. ImageNet at 256 pixels takes 262 GB.',
  ),
  'check': (
    lambda a: check.check(a.path, a.name, a.num_threads),
    _add_check,
    'look for what is wrong with a data set',
    'Examines every image of a data set: damaged or odd files, duplicates,'
    ' missing files, wrong counts, checksums. Ends with exit code 2 if training'
    ' would stop or be wrong. Changes nothing.',
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
  for name, (_, add_flags, summary, description) in _COMMANDS.items():
    command = commands.add_parser(name, help=summary, description=description)
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

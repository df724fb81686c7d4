"""Flags, sources, threads and progress that the commands share."""

import argparse
import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import concurrent.futures
import contextlib
import pathlib
import shlex
import sys

from alexnet_jax import cli
from alexnet_jax.data import sources
from alexnet_jax.data.loader import Loader
from alexnet_jax.errors import UserError

_IMAGENET_CLASSES = 1_000
_LINE_SECONDS = 10.0  # between two lines where there is no terminal


def add_arguments(
  parser: argparse.ArgumentParser, shard_examples_help: str
) -> None:
  """Adds the flags that name a source, its splits and how to write it."""
  parser.add_argument(
    '--source',
    required=True,
    choices=[kind for kind in sources.KINDS if kind != 'synthetic'],
    help='what PATH is',
  )
  parser.add_argument(
    '--path',
    default='',
    metavar='PATH',
    help='the folder of images or shards, or the data_dir of TFDS',
  )
  parser.add_argument('--out', required=True, metavar='DIR')
  parser.add_argument('--tfds_name', default='imagenet2012')
  parser.add_argument('--tfds_train_split', default='train')
  parser.add_argument('--tfds_eval_split', default='validation')
  parser.add_argument(
    '--val_fraction',
    type=_fraction,
    default=0.2,
    help='held out where the data has no split (default: 0.2)',
  )
  parser.add_argument('--split_seed', type=int, default=0)
  parser.add_argument(
    '--unreadable',
    choices=('stop', 'skip'),
    default='stop',
    help='at an image that cannot be decoded (default: stop)',
  )
  add_num_threads(parser)
  parser.add_argument(
    '--size', type=_positive, default=256, help='in pixels (default: 256)'
  )
  parser.add_argument(
    '--shard_examples',
    type=_positive,
    default=5_000,
    help=shard_examples_help,
  )


def add_num_threads(parser: argparse.ArgumentParser) -> None:
  """Adds --num_threads."""
  parser.add_argument(
    '--num_threads',
    type=_not_negative,
    default=0,
    help='0: one per core (default)',
  )


def _fraction(text):
  value = float(text)
  if not 0 < value < 1:
    raise argparse.ArgumentTypeError(f'{text} does not lie between 0 and 1')
  return value


def _positive(text):
  value = int(text)
  if value < 1:
    raise argparse.ArgumentTypeError(f'{text} is not positive')
  return value


def _not_negative(text):
  value = int(text)
  if value < 0:
    raise argparse.ArgumentTypeError(f'{text} is negative')
  return value


def _check_path(arguments):
  if arguments.source == 'digits' and arguments.path:
    raise UserError('--source digits comes with the package; leave --path out')
  if arguments.source in ('digits', 'tfds'):
    return
  if not arguments.path:
    raise UserError(f'--source {arguments.source} needs --path')
  source = pathlib.Path(arguments.path).expanduser().resolve()
  out = pathlib.Path(arguments.out).expanduser().resolve()
  if source in (out, *out.parents):
    raise UserError(
      f'--out {out} lies in the source {source}, which would then hold both;'
      ' choose a folder outside'
    )


def run_in_order(
  jobs: Iterable[Callable[[], object]],
  pool: concurrent.futures.Executor,
  num_threads: int,
) -> Iterator[object]:
  """Runs jobs in the threads of a pool; yields their results in order.

  Jobs are taken few at a time: they, or their results, may hold images. Those
  that wait are canceled if the iterator is closed.
  """
  pending = collections.deque()
  try:
    for job in jobs:
      pending.append(pool.submit(job))
      # Few enough to keep memory flat, enough to keep every thread busy.
      if len(pending) >= 4 * num_threads:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    for future in pending:
      future.cancel()


@contextlib.contextmanager
def progress(total: int, what: str) -> Iterator[Callable[[int], None]]:
  """Shows a bar of `total` images; gives the function that adds done ones."""
  console, done = cli.Console(), 0
  console.start(total, 0, 'image', what, _LINE_SECONDS)

  def add(count):
    nonlocal done
    done += count
    console.advance(done)

  try:
    yield add
  finally:
    console.stop()


def train_command(classes: int, size: int, **keys) -> str:
  """Returns the command that trains on a prepared set.

  Args:
    classes: how many the set has.
    size: short side of its images, in pixels.
    keys: of config.data.
  """
  recipe = 'imagenet' if classes == _IMAGENET_CLASSES else 'folder'
  keys |= {'resize_size': size, 'crop_size': max(1, size * 7 // 8)}
  overrides = (
    shlex.quote(f'--config.data.{key}={value}') for key, value in keys.items()
  )
  return (
    'to train on it:\n  python -m alexnet_jax.main --config'
    f' configs/{recipe}.py {" ".join(overrides)}'
  )


def open_loaders(arguments, size: int) -> dict[str, Loader]:
  """Returns a loader for `train` and one for `validation`.

  Raises:
    UserError: if the source is missing or unfit.
  """
  _check_path(arguments)
  loaders = {}
  for split in sources.SPLITS:
    tfds_splits = {
      'train': arguments.tfds_train_split,
      'validation': arguments.tfds_eval_split,
    }
    source = sources.make_source(
      arguments.source,
      split,
      path=arguments.path,
      tfds_name=arguments.tfds_name,
      tfds_split=tfds_splits[split],
      val_fraction=arguments.val_fraction,
      split_seed=arguments.split_seed,
    )
    loaders[split] = Loader(
      source,
      size,
      unreadable=arguments.unreadable,
      num_threads=arguments.num_threads,
      skip_hint='--unreadable skip; or repair it',
    )
    print(f'{source.name}: {source.num_examples:,} images', file=sys.stderr)
  return loaders

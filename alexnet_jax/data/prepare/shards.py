"""Writes a data set shard by shard, so that a killed command goes on.

A shard counts if there is a note of it and its file has the size in the note;
each is written as a whole or not at all. When all count, the set's own
description is written, and the notes go.
"""

import collections
from collections.abc import Callable, Iterable, Iterator
import concurrent.futures
import contextlib
import functools
import importlib.metadata
import pathlib
import shutil
import signal
import sys
from typing import NamedTuple

from alexnet_jax import cli, files
from alexnet_jax.data import sources
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.prepare.tfds import print_command
from alexnet_jax.data.tfds_records import check_disjoint
from alexnet_jax.errors import Interrupted, UserError

NOTES = '.unfinished'  # the folder of the notes
_LINE_SECONDS = 10.0  # between two lines of progress without a terminal
_IMAGENET_CLASSES = 1_000
# A set is not begun with one version of what decides its pixels and ended with
# another.
_DECODERS = ('simplejpeg', 'pillow', 'numba')


class Shard(NamedTuple):
  """Examples of a split in one file."""

  split: str
  key: str  # train-00000-of-00003, as in the names of the files
  loader: Loader
  indices: range  # of the examples


def prepare(arguments, make_target) -> dict:
  """Writes both splits of a source as a set, or what is missing of it.

  A finished set is left as it is. Prints the command that trains on it.

  Args:
    arguments: of the command line, see `__main__`.
    make_target: makes the set to write from the arguments and a loader of each
      split: the class `raw.RawSet` or `resize.ResizedSet`.

  Returns:
    What the set's `result` gives.

  Raises UserError if the source is unfit, a split has no readable image, the
  folder is in use or holds something else, or the disk is full; Interrupted for
  SIGTERM or Ctrl-C. What is finished stays, as always.
  """
  loaders = _open_loaders(arguments)
  target = make_target(arguments, loaders)
  with _locked(target):
    if (target.folder / target.description).exists():
      path = target.folder / target.settings_file
      written = _read_json(path).get('settings') if path.is_file() else {}
      _check_settings(target, 'holds a set made', written, target.settings)
      print(f'{target.folder} is prepared already', file=sys.stderr)
    else:
      _write_set(target, loaders, arguments.shard_examples)
    # Also if the last command ended right before that.
    shutil.rmtree(target.folder / NOTES, ignore_errors=True)
  result, keys = target.result()
  # A finished set may have lost files since.
  options = {k: str(keys[k]) for k in ('path', 'tfds_name') if k in keys}
  for split in sources.SPLITS:
    sources.make_source(keys['source'], split, tfds_split=split, **options)
  recipe = 'imagenet' if result['classes'] == _IMAGENET_CLASSES else 'folder'
  size = arguments.size
  keys |= {'resize_size': size, 'crop_size': max(1, size * 7 // 8)}
  print_command(recipe, {f'data.{k}': v for k, v in keys.items()})
  return result


def _open_loaders(arguments):
  if arguments.source not in ('digits', 'tfds'):
    _check_path(arguments)
  keys = 'path', 'tfds_name', 'val_fraction', 'split_seed'
  options = {key: getattr(arguments, key) for key in keys}
  tfds_splits = arguments.tfds_train_split, arguments.tfds_eval_split
  loaders = {}
  for split, tfds_split in zip(sources.SPLITS, tfds_splits, strict=True):
    source = sources.make_source(
      arguments.source, split, tfds_split=tfds_split, **options
    )
    loaders[split] = Loader(
      source,
      arguments.size,
      channels=getattr(arguments, 'channels', 3),  # only `raw` has other ones
      unreadable=arguments.unreadable,
      num_threads=arguments.num_threads,
    )
    print(f'{source.name}: {source.num_examples:,} images', file=sys.stderr)
  train = loaders['train'].source
  check_disjoint(train, source)
  if len(train.class_names) < 2:
    raise UserError(
      f'{train.name} has one class, {train.class_names[0]!r}; training needs'
      ' two at least'
    )
  return loaders


def _check_path(arguments):
  if not arguments.path:
    raise UserError(f'--source {arguments.source} needs --path')
  source = pathlib.Path(arguments.path).resolve()
  if not source.is_dir():
    raise UserError(f'--path: {arguments.path} is no folder')
  out = pathlib.Path(arguments.out).resolve()
  if source in (out, *out.parents):
    raise UserError(
      f'--out {out} lies in the source {source}; choose a folder outside'
    )


@contextlib.contextmanager
def _locked(target):
  """Makes a folder, keeps others from preparing it, and ends at signals."""
  folder = target.folder
  folder.mkdir(parents=True, exist_ok=True)
  found = {path.name for path in folder.iterdir()} - {files.LOCK_FILE}
  if found and not found & {target.description, NOTES}:
    raise UserError(
      f'{folder} is not empty, nor work of this command; choose another --out'
    )

  def interrupt(number, _):
    raise Interrupted(signal.Signals(number).name)

  busy = f'another process is preparing {folder}; wait for it or end it'
  with files.lock(folder, busy):
    files.refuse_links_in(folder)
    numbers = signal.SIGTERM, signal.SIGINT
    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
      yield
    finally:
      for number, handler in before.items():
        signal.signal(number, handler)


def _check_settings(target, state, before, after):
  before = before if isinstance(before, dict) else {}  # of a damaged file
  if changes := files.differences(before, after):
    listed = (f'{k}: {old!r} -> {new!r}' for k, (old, new) in changes.items())
    raise UserError(
      f'{target.folder} {state} with other settings or from other data'
      f' ({", ".join(listed)}); give those or choose another --out'
    )


def _write_set(target, loaders, per_shard):
  planned, notes = [], {}  # notes by the keys of finished shards
  for split, loader in loaders.items():
    indices = range(loader.source.num_examples)
    starts = indices[::per_shard]
    for i, start in enumerate(starts):
      key = f'{split}-{i:05d}-of-{len(starts):05d}'
      part = indices[start : start + per_shard]
      planned.append(Shard(split, key, loader, part))
  try:
    _write_shards(target, planned, notes)
    of_splits = {
      split: [notes[s.key] for s in planned if s.split == split]
      for split in loaders
    }
    for split, own in of_splits.items():
      if not any(note['num_examples'] for note in own):
        name = loaders[split].source.name
        raise UserError(f'no image of {name} can be decoded')
    target.describe(of_splits)
  except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
    if not (reason := files.no_room(error)):
      raise
    raise UserError(
      f'{target.folder}: {reason}; {len(notes)} of {len(planned)} shards'
      ' are finished and stay: make room and start the same command again'
    ) from error


def _write_shards(target, planned, notes):
  folder = target.folder
  for left in folder.glob('*.tmp'):
    left.unlink()
  for shard in planned:
    with contextlib.suppress(FileNotFoundError):
      note = _read_json(folder / NOTES / f'{shard.key}.json')
      path = folder / target.file_name(shard)
      if note and path.stat().st_size == note.get('bytes'):
        notes[shard.key] = note
  missing = [shard for shard in planned if shard.key not in notes]
  print(files.check_room(folder, target.estimate(missing)), file=sys.stderr)
  plan = folder / NOTES / 'plan.json'
  plan.parent.mkdir(exist_ok=True)
  versions = {name: importlib.metadata.version(name) for name in _DECODERS}
  settings = target.settings | versions
  if plan.exists():
    _check_settings(target, 'was begun', _read_json(plan), settings)
  else:
    files.write_json(plan, settings)
  if notes:
    done = f'{len(notes)} of {len(planned)} shards are there already'
    print(done, file=sys.stderr)
  total = sum(len(shard.indices) for shard in missing)
  with progress(total, f'writing {folder}') as add_done:
    for shard in missing:
      note = _write_shard(target, shard, add_done)
      files.write_json(folder / NOTES / f'{shard.key}.json', note)
      notes[shard.key] = note


def _write_shard(target, shard, add_done):
  loader, skipped = shard.loader, []
  jobs = (
    functools.partial(target.convert, loader, index) for index in shard.indices
  )
  results = run_in_order(jobs, loader.num_threads)

  def kept():
    for index, example in zip(shard.indices, results, strict=True):
      if example is None:
        skipped.append(loader.source.describe(index))
      else:
        yield example
      add_done(1)

  path = target.folder / target.file_name(shard)
  with contextlib.closing(results), files.replaced_file(path) as temporary:
    note = target.write(temporary, kept())
    size = temporary.stat().st_size
  return {**note, 'skipped': skipped, 'file': path.name, 'bytes': size}


def run_in_order(
  jobs: Iterable[Callable[[], object]], num_threads: int
) -> Iterator[object]:
  """Runs jobs in threads; yields their results in order.

  Jobs are taken few at a time, as they or their results may hold images; those
  that wait are canceled if the iterator is closed.
  """
  pending = collections.deque()
  pool = concurrent.futures.ThreadPoolExecutor(num_threads)
  try:
    for job in jobs:
      pending.append(pool.submit(job))
      # Few enough to keep memory flat, enough to keep every thread busy.
      if len(pending) >= 4 * num_threads:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    pool.shutdown(cancel_futures=True)


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


def _read_json(path):
  try:
    return files.read_json(path, {})
  except UserError:  # it is damaged
    return {}

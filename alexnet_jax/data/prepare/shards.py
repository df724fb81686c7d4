"""Writes a data set shard by shard, so that a killed command goes on.

A shard is written under another name, synced and renamed; then a note of what
it holds is written the same way. A shard counts if its note is there. When all
count, the caller writes the set's own description, and the notes go.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import concurrent.futures
import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
import signal
import sys

from alexnet_jax import locks
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.prepare.progress import Progress
from alexnet_jax.errors import Interrupted
from alexnet_jax.errors import UserError

_NOTES = '.unfinished'  # the folder of the notes
_PLAN = 'plan.json'
_TEMPORARY = '.tmp'
_CHUNK = 8  # examples that a thread takes at a time


@dataclasses.dataclass(frozen=True)
class Shard:
  """Examples `start` to `stop` - 1 of a split, in one file."""

  split: str
  number: int
  count: int  # of shards of the split
  start: int
  stop: int

  @property
  def key(self) -> str:
    """train-00000-of-00003, as in the names of the files."""
    return f'{self.split}-{self.number:05d}-of-{self.count:05d}'


def plan(loaders: dict[str, Loader], per_shard: int) -> list[Shard]:
  """The shards of all splits, in order."""
  planned = []
  for split, loader in loaders.items():
    total = loader.source.num_examples
    starts = range(0, total, per_shard)
    planned += [
      Shard(split, i, len(starts), start, min(start + per_shard, total))
      for i, start in enumerate(starts)
    ]
  return planned


def by_split(planned: list[Shard], notes: list[dict]) -> dict[str, list[dict]]:
  """The notes of each split's shards, in order."""
  found = {}
  for shard, note in zip(planned, notes, strict=True):
    found.setdefault(shard.split, []).append(note)
  return found


@contextlib.contextmanager
def output(folder: pathlib.Path, settings: dict) -> Iterator['Output']:
  """Opens a folder for writing, new or as an ended command left it.

  Raises:
    UserError: if another process writes there, or the folder was begun with
      other settings, or holds something else.
    Interrupted: for SIGTERM or Ctrl-C; what is finished stays.
  """
  notes = folder / _NOTES
  if folder.is_dir() and any(folder.iterdir()) and not notes.is_dir():
    raise UserError(
      f'{folder} is not empty and not the unfinished work of this command; it'
      ' is left as it is: choose another --out'
    )
  notes.mkdir(parents=True, exist_ok=True)
  busy = f'another process is preparing {folder}; wait for it or end it'
  with locks.lock(notes, busy), _signals_interrupt():
    _check_plan(notes / _PLAN, settings)
    for left in folder.glob(f'*{_TEMPORARY}'):
      left.unlink()
    yield Output(folder)


@contextlib.contextmanager
def _signals_interrupt():
  def interrupt(number, _):
    raise Interrupted(signal.Signals(number).name)

  numbers = signal.SIGTERM, signal.SIGINT
  before = [signal.signal(number, interrupt) for number in numbers]
  try:
    yield
  finally:
    for number, handler in zip(numbers, before, strict=True):
      signal.signal(number, handler)


def _check_plan(path, settings):
  if not path.exists():
    write_json(path, settings)
    return
  begun = read_json(path)
  if differing := sorted(
    key
    for key in begun.keys() | settings.keys()
    if begun.get(key) != settings.get(key)
  ):
    changes = ', '.join(
      f'{key}: {begun.get(key)!r} -> {settings.get(key)!r}' for key in differing
    )
    raise UserError(
      f'{path.parent.parent} was begun with other settings ({changes}); give'
      ' those, choose another --out, or delete the folder'
    )


class Output:
  """A folder that is being written. Made by `output`."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.notes = folder / _NOTES

  def note(self, shard: Shard) -> dict | None:
    """What a finished shard holds; None if it is not finished."""
    path = self._note(shard)
    return read_json(path) if path.exists() else None

  def add(
    self, shard: Shard, name: str, write: Callable[[pathlib.Path], dict]
  ) -> None:
    """Writes a shard: `write(path)` returns what the note is to say."""
    temporary = self.folder / f'{name}{_TEMPORARY}'
    try:
      note = {**write(temporary), 'file': name}
      _sync(temporary)
      temporary.replace(self.folder / name)
      write_json(self._note(shard), note)
    finally:
      temporary.unlink(missing_ok=True)

  def finish(self) -> None:
    """Forgets the notes; the set is described elsewhere by now."""
    forget_notes(self.folder)

  def _note(self, shard):
    return self.notes / f'{shard.key}.json'


def forget_notes(folder: pathlib.Path) -> None:
  """Takes away what only an unfinished set needs."""
  shutil.rmtree(folder / _NOTES, ignore_errors=True)


def read_json(path: pathlib.Path) -> dict:
  """Reads what `write_json` wrote."""
  return json.loads(path.read_text())


def write_json(path: pathlib.Path, content: dict, indent: int = 0) -> None:
  """Writes a JSON file that is there as a whole or not at all."""
  temporary = path.with_name(path.name + _TEMPORARY)
  temporary.write_text(json.dumps(content, indent=indent or None))
  _sync(temporary)
  temporary.replace(path)


def write_shards(
  out: Output,
  shards: list[Shard],
  loaders: dict[str, Loader],
  file_name: Callable[[Shard], str],
  convert: Callable[[Loader, int], object],
  write: Callable[[pathlib.Path, Iterable], dict],
) -> list[dict]:
  """Writes what is missing; returns the notes of all shards.

  Args:
    out: the folder.
    shards: of all splits.
    loaders: one for each split.
    file_name: of a shard.
    convert: (loader, index) -> what `write` gets of an example, or None if it
      is skipped; called in threads.
    write: (path, converted examples in order) -> note; called in this thread.

  Raises:
    UserError: if the disk is full; what is finished stays.
  """
  missing = [shard for shard in shards if out.note(shard) is None]
  done = len(shards) - len(missing)
  if done:
    print(f'{done} of {len(shards)} shards are there already', file=sys.stderr)
  total = sum(shard.stop - shard.start for shard in missing)
  workers = max(loader.num_threads for loader in loaders.values())
  with (
    concurrent.futures.ThreadPoolExecutor(workers) as pool,
    Progress(total, f'writing {out.folder}') as progress,
  ):
    for shard in missing:
      examples = _converted(pool, workers, shard, loaders, convert, progress)
      with _full_disk_explained(out, shards), contextlib.closing(examples):
        out.add(
          shard,
          file_name(shard),
          lambda path, examples=examples: _note(write, path, examples),
        )
  return [out.note(shard) for shard in shards]


def _note(write, path, examples):
  """Calls `write` and adds the names of the examples that were skipped."""
  skipped = []

  def kept():
    for example, name in examples:
      if example is None:
        skipped.append(name)
      else:
        yield example

  return {**write(path, kept()), 'skipped': skipped}


def _converted(pool, workers, shard, loaders, convert, progress):
  """(converted example or None, its name if None), in order."""
  loader = loaders[shard.split]

  def work(start):
    results = []
    for index in range(start, min(start + _CHUNK, shard.stop)):
      example = convert(loader, index)
      name = loader.source.describe(index) if example is None else ''
      results.append((example, name))
    return results

  # Few enough to keep memory flat, enough to keep every thread busy.
  ahead = 4 * workers
  pending = collections.deque()
  try:
    for start in range(shard.start, shard.stop, _CHUNK):
      pending.append(pool.submit(work, start))
      if len(pending) >= ahead:
        results = pending.popleft().result()
        yield from results
        progress.advance(len(results))
    while pending:
      results = pending.popleft().result()
      yield from results
      progress.advance(len(results))
  finally:
    for future in pending:
      future.cancel()


@contextlib.contextmanager
def _full_disk_explained(out, shards):
  try:
    yield
  except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
    full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT)
    if not full and 'No space left' not in str(error):
      raise
    finished = sum(out.note(shard) is not None for shard in shards)
    raise UserError(
      f'no space left in {out.folder}; {finished} of {len(shards)} shards are'
      ' finished and stay: make room and start the same command again'
    ) from error


def check_room(folder: pathlib.Path, needed: int, what: str) -> None:
  """Says how much room is needed and there.

  Raises:
    UserError: if it is not enough.
  """
  free = shutil.disk_usage(folder).free
  text = (
    f'{what} needs about {_size(needed)}; {folder} has {_size(free)} of room'
  )
  if free < needed:
    raise UserError(f'{text}; make room or choose another --out')
  print(text, file=sys.stderr)


def _size(count):
  for unit in ('B', 'kB', 'MB', 'GB'):
    if count < 1000:
      return f'{count:.3g} {unit}'
    count /= 1000
  return f'{count:.3g} TB'


def _sync(path):
  with path.open('rb') as file:
    os.fsync(file.fileno())

"""Writes a data set shard by shard, so that a killed command goes on.

A shard is written as a whole or not at all; then a note of what it holds is
written the same way. A shard counts if there is a note and the file has the
size that the note says. When all count, the set's own description is written,
and the notes go.
"""

import collections
from collections.abc import Callable
from collections.abc import Iterable
import concurrent.futures
import contextlib
import dataclasses
import errno
import functools
import importlib.metadata
import json
import pathlib
import shutil
import signal
import sys
from typing import Protocol

from alexnet_jax import files
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.prepare import inputs
from alexnet_jax.errors import Interrupted
from alexnet_jax.errors import UserError

_NOTES = '.unfinished'  # the folder of the notes
_PLAN = 'plan.json'
_CHUNK = 8  # examples that a thread takes at a time
# A set is not begun with one version of what decides its pixels and ended with
# another.
_DECODERS = ('simplejpeg', 'pillow', 'numba')


@dataclasses.dataclass(frozen=True)
class Shard:
  """Examples `start` to `stop` - 1 of a split, in one file."""

  split: str
  number: int
  count: int  # of shards of the split
  start: int
  stop: int

  def __len__(self) -> int:
    return self.stop - self.start

  @property
  def key(self) -> str:
    """train-00000-of-00003, as in the names of the files."""
    return f'{self.split}-{self.number:05d}-of-{self.count:05d}'


class Target(Protocol):
  """A data set that `write_set` writes.

  Attributes:
    folder: of the set.
    description: name of the file that makes the folder a finished set.
    what: what messages call the set.
    settings: all that its bytes depend on, as JSON.
  """

  folder: pathlib.Path
  description: str
  what: str
  settings: dict

  def written_settings(self) -> dict:
    """Returns the settings of the finished set in the folder."""

  def estimate(self, loader: Loader, missing: list[Shard]) -> int:
    """Returns how many bytes some shards of a split will take."""

  def file_name(self, shard: Shard) -> str:
    """Returns the name of a shard's file."""

  def convert(self, loader: Loader, index: int) -> object:
    """Returns an example for `write`, in any thread; None if it is skipped."""

  def write(self, path: pathlib.Path, examples: Iterable) -> dict:
    """Writes converted examples; returns a note, with `num_examples`."""

  def describe(self, notes: dict[str, list[dict]], drafts: pathlib.Path):
    """Writes the description, from the notes of each split's shards.

    `drafts` is a folder for files on the way there.
    """


def write_set(
  target: Target, loaders: dict[str, Loader], per_shard: int
) -> None:
  """Writes a set, or what is missing of it; leaves a finished one as it is.

  There is a loader for each split; `per_shard` examples go into a file.

  Raises:
    UserError: if the folder is in use, was made or begun with other settings,
      or holds something else; if the disk is full (what is finished stays) or a
      split has no example that can be decoded.
    Interrupted: for SIGTERM or Ctrl-C.
  """
  folder = target.folder
  with _locked(folder, target.description):
    if (folder / target.description).exists():
      if changes := _differences(target.written_settings(), target.settings):
        raise UserError(
          f'{folder} holds {target.what} made with other settings or from other'
          f' data ({changes}); choose another --out'
        )
      print(f'{folder} is prepared already', file=sys.stderr)
    else:
      out = _Output(folder, _plan(loaders, per_shard))
      with _full_disk_explained(out):
        out.begin(target.settings)
        _check_room(target, loaders, out)
        notes = _write_shards(target, loaders, out)
        target.describe(notes, out.notes)
    # Also if the last command ended right before that.
    shutil.rmtree(folder / _NOTES, ignore_errors=True)


def _plan(loaders, per_shard):
  """Returns the shards of all splits, in order."""
  planned = []
  for split, loader in loaders.items():
    total = loader.source.num_examples
    starts = range(0, total, per_shard)
    planned += [
      Shard(split, i, len(starts), start, min(start + per_shard, total))
      for i, start in enumerate(starts)
    ]
  return planned


@contextlib.contextmanager
def _locked(folder, description):
  """Makes a folder and keeps other processes from preparing it."""
  folder.mkdir(parents=True, exist_ok=True)
  found = {path.name for path in folder.iterdir()} - {files.LOCK_FILE}
  if found and not found & {description, _NOTES}:
    raise UserError(
      f'{folder} is not empty and not the unfinished work of this command; it'
      ' is left as it is: choose another --out'
    )
  busy = f'another process is preparing {folder}; wait for it or end it'
  with files.lock(folder, busy), _signals_interrupt():
    yield


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


@contextlib.contextmanager
def _full_disk_explained(out):
  try:
    yield
  except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
    full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT)
    if not full and 'No space left' not in str(error):
      raise
    finished = len(out.planned) - len(out.missing())
    raise UserError(
      f'no space left in {out.folder}; {finished} of {len(out.planned)} shards'
      ' are finished and stay: make room and start the same command again'
    ) from error


class _Output:
  """A folder that is being written, new or as an ended command left it."""

  def __init__(self, folder: pathlib.Path, planned: list[Shard]):
    self.folder, self.planned = folder, planned
    self.notes = folder / _NOTES

  def begin(self, settings: dict) -> None:
    """Writes down the settings, or compares them with those before."""
    self.notes.mkdir(exist_ok=True)
    versions = {name: importlib.metadata.version(name) for name in _DECODERS}
    settings, path = settings | versions, self.notes / _PLAN
    if not path.exists():
      write_json(path, settings)
    elif changes := _differences(read_json(path), settings):
      raise UserError(
        f'{self.folder} was begun with other settings ({changes}); give those,'
        ' choose another --out, or delete the folder'
      )
    for left in self.folder.glob('*.tmp'):
      left.unlink()

  def note(self, shard: Shard) -> dict | None:
    """Returns what a finished shard holds; None if it is not finished."""
    try:
      note = read_json(self.notes / f'{shard.key}.json')
      whole = (self.folder / note['file']).stat().st_size == note['bytes']
    except FileNotFoundError:
      return None
    return note if whole else None

  def missing(self) -> list[Shard]:
    """Returns the shards that are not finished."""
    return [shard for shard in self.planned if self.note(shard) is None]

  def add(
    self, shard: Shard, name: str, write: Callable[[pathlib.Path], dict]
  ) -> None:
    """Writes a shard: `write(path)` returns what the note is to say."""
    with files.replaced_file(self.folder / name) as temporary:
      note = write(temporary)
      size = temporary.stat().st_size
    path = self.notes / f'{shard.key}.json'
    write_json(path, {**note, 'file': name, 'bytes': size})


def _differences(before, after):
  """Returns `key: before -> after` of what differs, for messages."""
  return ', '.join(
    f'{key}: {old!r} -> {new!r}'
    for key, (old, new) in files.differences(before, after).items()
  )


def _check_room(target, loaders, out):
  """Says how much room is needed and there; raises if it is not enough."""
  missing = out.missing()
  needed = sum(
    target.estimate(loader, [s for s in missing if s.split == split])
    for split, loader in loaders.items()
  )
  free = shutil.disk_usage(out.folder).free
  text = (
    f'{target.what} needs about {_size(needed)}; {out.folder} has'
    f' {_size(free)} of room'
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


def _write_shards(target, loaders, out):
  """Writes what is missing; returns the notes of each split's shards."""
  missing = out.missing()
  if done := len(out.planned) - len(missing):
    print(
      f'{done} of {len(out.planned)} shards are there already', file=sys.stderr
    )
  workers = max(loader.num_threads for loader in loaders.values())
  with (
    concurrent.futures.ThreadPoolExecutor(workers) as pool,
    inputs.progress(
      sum(map(len, missing)), f'writing {out.folder}'
    ) as add_done,
  ):
    for shard in missing:
      results = inputs.run_in_order(
        _jobs(target, loaders[shard.split], shard), pool, workers
      )
      with contextlib.closing(results):
        out.add(
          shard,
          target.file_name(shard),
          lambda path, results=results: _write(target, path, results, add_done),
        )
  notes = collections.defaultdict(list)
  for shard in out.planned:
    notes[shard.split].append(out.note(shard))
  for split, own in notes.items():
    if not sum(note['num_examples'] for note in own):
      raise UserError(
        f'no image of {loaders[split].source.name} can be decoded'
      )
  return dict(notes)


def _jobs(target, loader, shard):
  """Yields functions that return [(converted example or None, its name)]."""

  def convert(start):
    indices = range(start, min(start + _CHUNK, shard.stop))
    examples = [target.convert(loader, index) for index in indices]
    return [
      (example, loader.source.describe(index) if example is None else '')
      for index, example in zip(indices, examples, strict=True)
    ]

  for start in range(shard.start, shard.stop, _CHUNK):
    yield functools.partial(convert, start)


def _write(target, path, results, add_done):
  """Writes a shard and adds the names of skipped examples to its note."""
  skipped = []

  def kept():
    for examples in results:
      for example, name in examples:
        if example is None:
          skipped.append(name)
        else:
          yield example
      add_done(len(examples))

  return {**target.write(path, kept()), 'skipped': skipped}


def read_json(path: pathlib.Path) -> dict:
  """Reads what `write_json` wrote."""
  return json.loads(path.read_text())


def write_json(path: pathlib.Path, content: dict, indent: int = 0) -> None:
  """Writes a JSON file that is there as a whole or not at all."""
  with files.replaced_file(path) as temporary:
    temporary.write_text(json.dumps(content, indent=indent or None))

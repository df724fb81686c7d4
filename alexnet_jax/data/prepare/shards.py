"""A data set that is written shard by shard, so that a killed command goes on.

A shard is written under another name, synced and renamed; then a note of what
it holds is written the same way. A shard counts if there is a note and the file
has the size that the note says. When all count, the caller writes the set's own
description, and the notes go.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import dataclasses
import errno
import importlib.metadata
import json
import os
import pathlib
import shutil
import signal
import sys

from alexnet_jax import files
from alexnet_jax.data.loader import Loader
from alexnet_jax.errors import Interrupted
from alexnet_jax.errors import UserError

_NOTES = '.unfinished'  # the folder of the notes
_PLAN = 'plan.json'
_TEMPORARY = '.tmp'
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
def locked(folder: pathlib.Path, description: str) -> Iterator[None]:
  """Makes a folder and keeps other processes from preparing it.

  Args:
    folder: of the set.
    description: name of the file that makes a folder a finished set.

  Raises:
    UserError: if another process prepares it, or it holds something else.
    Interrupted: for SIGTERM or Ctrl-C.
  """
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
def output(
  folder: pathlib.Path, settings: dict, planned: list[Shard]
) -> Iterator['Output']:
  """Opens a locked folder, new or as an ended command left it.

  Raises:
    UserError: if the folder was begun with other settings, or if the disk is
      full; what is finished stays.
  """
  out = Output(folder)
  with _full_disk_explained(out, planned):
    out.notes.mkdir(exist_ok=True)
    versions = {name: importlib.metadata.version(name) for name in _DECODERS}
    _check_plan(out.notes / _PLAN, settings | versions)
    for left in folder.glob(f'*{_TEMPORARY}'):
      left.unlink()
    yield out


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
  if changes := differences(read_json(path), settings):
    raise UserError(
      f'{path.parent.parent} was begun with other settings ({changes}); give'
      ' those, choose another --out, or delete the folder'
    )


def differences(before: dict, after: dict) -> str:
  """`key: before -> after` of what differs, for messages."""
  return ', '.join(
    f'{key}: {before.get(key)!r} -> {after.get(key)!r}'
    for key in sorted(before.keys() | after.keys())
    if before.get(key) != after.get(key)
  )


@contextlib.contextmanager
def _full_disk_explained(out, planned):
  try:
    yield
  except (OSError, RuntimeError) as error:  # ArrayRecord raises the latter
    full = getattr(error, 'errno', None) in (errno.ENOSPC, errno.EDQUOT)
    if not full and 'No space left' not in str(error):
      raise
    finished = sum(out.note(shard) is not None for shard in planned)
    raise UserError(
      f'no space left in {out.folder}; {finished} of {len(planned)} shards are'
      ' finished and stay: make room and start the same command again'
    ) from error


class Output:
  """A folder that is being written. Made by `output`."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.notes = folder / _NOTES

  def note(self, shard: Shard) -> dict | None:
    """What a finished shard holds; None if it is not finished."""
    try:
      note = read_json(self._note(shard))
      whole = (self.folder / note['file']).stat().st_size == note['bytes']
    except FileNotFoundError:
      return None
    return note if whole else None

  def add(
    self, shard: Shard, name: str, write: Callable[[pathlib.Path], dict]
  ) -> None:
    """Writes a shard: `write(path)` returns what the note is to say."""
    temporary = self.folder / f'{name}{_TEMPORARY}'
    try:
      note = write(temporary)
      size = temporary.stat().st_size
      put_in_place(temporary, self.folder / name)
      write_json(self._note(shard), {**note, 'file': name, 'bytes': size})
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


def read_json(path: pathlib.Path) -> dict:
  """Reads what `write_json` wrote."""
  return json.loads(path.read_text())


def write_json(path: pathlib.Path, content: dict, indent: int = 0) -> None:
  """Writes a JSON file that is there as a whole or not at all."""
  temporary = path.with_name(path.name + _TEMPORARY)
  temporary.write_text(json.dumps(content, indent=indent or None))
  put_in_place(temporary, path)


def put_in_place(temporary: pathlib.Path, path: pathlib.Path) -> None:
  """Renames a finished file, so that a power cut leaves it or none."""
  _sync(temporary)
  temporary.replace(path)
  _sync(path.parent)


def _sync(path):
  file = os.open(path, os.O_RDONLY)
  try:
    os.fsync(file)
  finally:
    os.close(file)

"""Paths, whole-file writes, reads, folder locks, differences of two dicts."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import csv
import errno
import fcntl
import json
import logging
import os
import pathlib
import resource
import shutil
import tempfile
from typing import BinaryIO

from alexnet_jax.errors import UserError

LOCK_FILE = '.lock'
_OPEN_FILES = '/proc/self/fd' if os.path.isdir('/proc/self/fd') else ''
# Errors of the machine, or of a file system behind a network. Libraries and
# threads give no number, only the text.
_TRANSIENT_ERRORS = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES}
_TRANSIENT_ERRORS |= {errno.EPERM, errno.EAGAIN, errno.EINTR, errno.ESTALE}
_TRANSIENT_ERRORS |= {errno.ETIMEDOUT, errno.ENOTCONN}
_TRANSIENT_TEXTS = [*map(os.strerror, _TRANSIENT_ERRORS), 'RESOURCE_EXHAUSTED']
_TRANSIENT_TEXTS += ['DEADLINE_EXCEEDED', "can't start new thread"]
_NO_ROOM = {
  number: os.strerror(number)
  for number in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
}
_kept_open: set[str] = set()


def cache_folder() -> pathlib.Path:
  """Returns the user's folder of what can be made anew.

  Raises RuntimeError if there is neither a home nor XDG_CACHE_HOME.
  """
  cache = os.environ.get('XDG_CACHE_HOME') or pathlib.Path.home() / '.cache'
  return pathlib.Path(cache) / 'alexnet_jax'


def local_path(text: str) -> str:
  """Returns a path that a user gave, with ~ as the home.

  Raises UserError if it is an address, such as gs://bucket/run.
  """
  if '://' in text:
    raise UserError(
      f'{text} is no path of this machine; mount it, and give its path'
    )
  return os.path.expanduser(text)


def absolute_path(text: str) -> str:
  """Returns `local_path` from the root on; '' stays."""
  return str(pathlib.Path(local_path(text)).absolute()) if text else ''


def refuse_unusable(folder: str | os.PathLike) -> None:
  """Raises UserError if no file can be made in a folder, or for it."""
  there = _nearest(folder)
  try:
    tempfile.TemporaryFile(dir=there).close()
  except OSError as error:
    raise UserError(
      f'{folder} cannot be used: {there}: {error.strerror}; name another folder'
    ) from error


def _nearest(path):
  """Returns a path, or the nearest folder around it that there is."""
  path = pathlib.Path(path).absolute()
  return next(p for p in (path, *path.parents) if os.path.lexists(p))


def check_room(folder: str | os.PathLike, needed: int) -> str:
  """Returns for people the room needed and left; UserError if too little."""
  free = shutil.disk_usage(_nearest(folder)).free
  text = (
    f'{folder} needs about {needed / 1e6:,.1f} MB, and its disk has'
    f' {free / 1e6:,.1f} MB of room'
  )
  if free < needed:
    raise UserError(f'{text}; make room or name another folder')
  return text


def check_new_file(flag: str, path: str) -> None:
  """Raises UserError if a file that a flag names could not be written."""
  folder = os.path.dirname(path) or '.'
  if not os.path.isdir(folder):
    raise UserError(f'{flag}: there is no folder {folder}')
  if os.path.isdir(path):
    raise UserError(f'{flag}: {path} is a folder; name a file')
  if os.path.isfile(path) or not os.path.exists(path):  # not /dev/stdout
    refuse_unusable(folder)


def check_new_folder(folder: str | os.PathLike) -> None:
  """Raises UserError unless a folder is empty, or can be made."""
  path = pathlib.Path(folder)
  if path.exists() and (not path.is_dir() or any(path.iterdir())):
    raise UserError(
      f'{folder} is there already, and no empty folder; name a new one, for'
      ' nothing in it is replaced'
    )
  refuse_unusable(path)


@contextlib.contextmanager
def new_folder(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives a temporary folder, which becomes `path` as a whole or not at all."""
  path = pathlib.Path(path).absolute()
  path.parent.mkdir(parents=True, exist_ok=True)
  outer = pathlib.Path(tempfile.mkdtemp('.tmp', f'{path.name}.', path.parent))
  try:
    folder = outer / path.name
    folder.mkdir()
    yield folder
    sync_folder(folder)
    folder.rename(path)
    _sync(path.parent)
  finally:
    shutil.rmtree(outer, ignore_errors=True)


def refuse_special_file(path: str | os.PathLike) -> None:
  """Raises UserError if a path leads to a pipe, a device or a folder.

  A pipe would be waited for, a device such as /dev/zero has no end.
  """
  if os.path.exists(path) and not os.path.isfile(path):
    raise UserError(f'{path} is no plain file; name another, or a copy of it')


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives the path of a temporary file, which takes the place of `path`.

  Neither a full disk nor a power cut leaves half a file there. Where the block
  raises, what was there stays. A link is replaced, not followed. Pipes and the
  like are given themselves, and so is what lies in /dev: /dev/stdout is a link,
  perhaps to a plain file.
  """
  path = pathlib.Path(path)
  is_device = str(path.parent) in ('/dev', '/dev/fd') and path.exists()
  if is_device or not (
    path.is_symlink() or path.is_file() or not path.exists()
  ):
    yield path
    return
  # Named like the file, for whoever finds it after a kill, and beside it: no
  # system moves a file from one disk to another in a moment.
  handle, name = tempfile.mkstemp('.tmp', f'{path.name}.', path.parent)
  os.close(handle)
  temporary = pathlib.Path(name)
  try:
    yield temporary
    os.umask(mask := os.umask(0))
    os.chmod(temporary, 0o666 & ~mask)  # mkstemp and others give 0o600
    _sync(temporary)  # or the name could reach the disk before the content
    temporary.replace(path)
    _sync(path.parent)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def sync_folder(folder: pathlib.Path) -> None:
  """Waits until a folder, all that is in it, and its name are on the disk."""
  for parent, _, names in os.walk(folder, topdown=False):
    for name in names:
      _sync(os.path.join(parent, name))
    _sync(parent)
  _sync(folder.parent)


def _sync(path):
  """Waits until a file, or the names in a folder, are on the disk."""
  with _opened(path) as handle:
    os.fsync(handle)


@contextlib.contextmanager
def _opened(path):
  """Opens a file or folder as a number, to be read."""
  handle = os.open(path, os.O_RDONLY)
  try:
    yield handle
  finally:
    os.close(handle)


def write_json(path: pathlib.Path, value: dict) -> None:
  """Writes an object that is there as a whole or not at all."""
  with replaced_file(path) as temporary:
    temporary.write_text(json.dumps(value, indent=1), 'utf-8')


def write_csv(
  path: str | os.PathLike,
  rows: Iterable[Sequence],
  errors: str = 'backslashreplace',
) -> None:
  """Writes a table as CSV; `errors` is for names that are no UTF-8."""
  with (
    replaced_file(path) as temporary,
    temporary.open('w', newline='', encoding='utf-8', errors=errors) as file,
  ):
    csv.writer(file).writerows(rows)


def lock(folder: pathlib.Path, busy: str) -> BinaryIO:
  """Locks a folder until the returned file is closed, or the process ends.

  On a file system without locks it warns, and locks nothing. Raises UserError
  with the message `busy` if another process holds the lock.
  """
  path = folder / LOCK_FILE
  # Not emptied, whatever it is; O_NOFOLLOW: a link may have come just now.
  flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
  refuse_link(path)
  file = os.fdopen(os.open(path, flags, 0o666), 'rb')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.close()
    raise UserError(busy) from error
  except OSError as error:
    logging.getLogger(__name__).warning(
      f'{folder} cannot be locked ({error.strerror}): nobody will notice if a'
      ' second command writes there'
    )
  return file


def refuse_link(path: pathlib.Path) -> None:
  """Raises UserError if the path is a link: it could lead anywhere."""
  if path.is_symlink():
    raise UserError(
      f'{path} is a link, to {path.readlink()}; links inside such a folder are'
      ' not followed: put there what it leads to, or remove it'
    )


def refuse_links_in(folder: pathlib.Path) -> None:
  """Raises UserError if an entry of a folder is a link."""
  for path in folder.iterdir():
    refuse_link(path)


def refuse_links(folder: pathlib.Path, names: Iterable[str]) -> None:
  """Raises UserError if an entry of a folder is a link, or has one below it."""
  for name in names:
    refuse_link(folder / name)
    for parent, folders, others in os.walk(folder / name):
      for below in (*folders, *others):
        refuse_link(pathlib.Path(parent, below))


def is_transient(error: BaseException) -> bool:
  """Returns True if an error is of the machine or network, not of a file."""
  return (
    isinstance(error, MemoryError)
    or getattr(error, 'errno', None) in _TRANSIENT_ERRORS
    or any(text in str(error) for text in _TRANSIENT_TEXTS)
  )


def no_room(error: BaseException) -> str:
  """Returns why nothing more can be written: a full disk, a limit; or ''."""
  # Libraries give no number, only the text.
  number, text = getattr(error, 'errno', None), str(error)
  return next((t for n, t in _NO_ROOM.items() if n == number or t in text), '')


def differences(before: Mapping, after: Mapping) -> dict[str, tuple]:
  """Returns {key: (before, after)} of keys that differ, None where it lacks."""
  return {
    key: (before.get(key), after.get(key))
    for key in sorted(before.keys() | after.keys())
    if before.get(key) != after.get(key)
  }


def read_file(path: str, size: int) -> bytes:
  """Reads a file that should have `size` bytes, one more if it is longer."""
  with _opened(path) as file:
    return read_range(file, size, 0, size + 1)


def read_range(file: int, size: int, offset: int, most: int = 0) -> bytes:
  """Reads `size` bytes from `offset` on, fewer at the end, of an open file.

  It makes as few system calls as possible: each hands over the GIL. Of a file
  that goes on it may read up to `most` bytes.
  """
  content = more = os.pread(file, max(size, most), offset)
  while more and len(content) < size:  # at the end, or a slow file system
    more = os.pread(file, size - len(content), offset + len(content))
    content += more
  return content


def keep_open(paths: Iterable[str | os.PathLike]) -> None:
  """Lets this process keep these files open beside all that were asked for.

  Raises UserError if the system does not allow as many.
  """
  soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
  unlimited = resource.RLIM_INFINITY
  others = len(os.listdir(_OPEN_FILES)) if _OPEN_FILES else 0
  _kept_open.update(map(os.path.abspath, paths))
  # Checkpoints, event files, libraries; what is kept may be open already.
  needed = len(_kept_open) + others + 200
  if soft == unlimited or needed <= soft:
    return
  if hard != unlimited and needed > hard:
    raise UserError(
      f'the data has {len(_kept_open)} files to keep open, and this process may'
      f' have {hard} in all; raise that limit (`ulimit -Hn`) or prepare the set'
      ' again with a larger --shard_examples'
    )
  resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))


def read_json(path: pathlib.Path, shape: object) -> dict:
  """Reads a JSON file of a known shape.

  A shape is a type or tuple of types; a list [shape of every item]; or a dict
  {key: shape} of the keys that must be there, {str: shape} of any keys. Raises
  UserError if it is no JSON or of another shape, FileNotFoundError for no file.
  """
  refuse_special_file(path)
  try:
    value = json.loads(path.read_bytes())
  except FileNotFoundError:
    raise
  except (OSError, ValueError, RecursionError) as error:
    raise UserError(f'cannot read {path}: {error}') from error
  if wrong := misfit(value, shape, 'it'):
    raise UserError(f'{path} is damaged or of another kind: {wrong}')
  return value


def misfit(value: object, shape: object, where: str) -> str:
  """Returns what is wrong first with a value out of JSON; '' for nothing.

  The value is called `where`; for `shape` see `read_json`.
  """
  kind = type(shape) if isinstance(shape, dict | list) else shape
  is_bool = isinstance(value, bool)  # an int to Python
  if not isinstance(value, kind) or is_bool != (kind is bool):
    return f'{where} is {value!r:.80}'
  parts = []
  if isinstance(shape, list):
    parts = [(f'{where}[{i}]', part, shape[0]) for i, part in enumerate(value)]
  elif isinstance(shape, dict):
    if missing := [k for k in shape if k is not str and k not in value]:
      return f'{where} has no {missing[0]!r}'
    parts = [
      (f'{where}.{key}', value[key], inner)
      for wanted, inner in shape.items()
      for key in (value if wanted is str else [wanted])
    ]
  found = (misfit(part, inner, name) for name, part, inner in parts)
  return next(filter(None, found), '')

"""Whole-file writes, folder locks, and the differences of two dicts."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import csv
import fcntl
import logging
import os
import pathlib
import tempfile
from typing import BinaryIO

from alexnet_jax.errors import UserError

LOCK_FILE = '.lock'


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives the path of a temporary file, which takes the place of `path`.

  Neither a full disk nor a kill or a power cut leaves half a file there, and
  two writers never write into one temporary file. Where the block raises, what
  was there before stays, and the temporary file is removed.

  Args:
    path: of the file. A link is replaced by the file, not followed. Anything
      that is no plain file, such as /dev/stdout, is given back itself.

  Yields:
    The path to write to, beside the file: the system cannot move a whole file
    from one disk to another in a moment.
  """
  path = pathlib.Path(path)
  if path.exists() and not path.is_file():
    yield path
    return
  # Named like the file, for whoever finds it after a kill.
  handle, name = tempfile.mkstemp('.tmp', f'{path.name}.', path.parent)
  os.close(handle)
  temporary = pathlib.Path(name)
  try:
    os.chmod(temporary, 0o666 & ~_umask())  # mkstemp gives 0o600
    yield temporary
    _sync(temporary)  # or the name could reach the disk before the content
    temporary.replace(path)
    _sync(path.parent)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


def _umask():
  mask = os.umask(0)
  os.umask(mask)
  return mask


def _sync(path):
  """Waits until a file, or the names in a folder, are on the disk."""
  handle = os.open(path, os.O_RDONLY)
  try:
    os.fsync(handle)
  finally:
    os.close(handle)


def write_csv(
  path: str | os.PathLike,
  rows: Iterable[Sequence],
  *,
  errors: str = 'backslashreplace',
) -> None:
  """Writes a table as CSV; see `replaced_file`.

  Args:
    path: of the file.
    rows: of the table, the first with the names of the columns.
    errors: see `open`. Names of files in another encoding have characters that
      UTF-8 has not.
  """
  with (
    replaced_file(path) as temporary,
    temporary.open('w', newline='', encoding='utf-8', errors=errors) as file,
  ):
    csv.writer(file).writerows(rows)


def lock(folder: pathlib.Path, busy: str) -> BinaryIO:
  """Locks a folder until the returned file is closed, or the process ends.

  On a file system without locks it warns, and locks nothing.

  Args:
    folder: exists; gets a file `.lock`.
    busy: the message if another process holds the lock.

  Raises:
    UserError: with that message.
  """
  path = folder / LOCK_FILE
  while True:
    refuse_link(path)
    # Not emptied, whatever it is; O_NOFOLLOW: a link may have come just now.
    flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_NONBLOCK
    file = os.fdopen(os.open(path, flags, 0o666), 'rb')
    try:
      fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
      file.close()
      raise UserError(busy) from error
    except OSError as error:
      logging.getLogger(__name__).warning(
        '%s cannot be locked (%s): nobody will notice if a second command'
        ' writes there',
        folder,
        error.strerror,
      )
      return file
    with contextlib.suppress(FileNotFoundError):
      if os.path.samestat(os.fstat(file.fileno()), path.stat()):
        return file
    file.close()  # who had it has removed it: the next one is another file


@contextlib.contextmanager
def in_use(folder: pathlib.Path) -> Iterator[None]:
  """Tells `is_in_use` that a folder is read, where file systems have locks."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    with contextlib.suppress(OSError):
      fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    yield
  finally:
    os.close(handle)


def is_in_use(folder: pathlib.Path) -> bool:
  """Returns True while `in_use` has the folder in any process."""
  handle = os.open(folder, os.O_RDONLY)
  try:
    fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError:
    return True
  except OSError:
    return False
  finally:
    os.close(handle)
  return False


def refuse_link(path: pathlib.Path) -> None:
  """Raises UserError if the path is a link: it could lead anywhere."""
  if path.is_symlink():
    raise UserError(
      f'{path} is a link, to {path.readlink()}; links inside such a folder are'
      ' not followed: put there what it leads to, or remove it'
    )


def refuse_links(folder: pathlib.Path, names: Iterable[str]) -> None:
  """Raises UserError if an entry of a folder is a link, or has one below it."""
  for name in names:
    refuse_link(folder / name)
    for parent, folders, others in os.walk(folder / name):
      for below in (*folders, *others):
        refuse_link(pathlib.Path(parent, below))


def differences(before: Mapping, after: Mapping) -> dict[str, tuple]:
  """Returns {key: (before, after)} of the keys whose values differ, sorted.

  A key that one of them lacks has None there.
  """
  return {
    key: (before.get(key), after.get(key))
    for key in sorted(before.keys() | after.keys())
    if before.get(key) != after.get(key)
  }

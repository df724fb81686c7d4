"""Whole-file writes, folder locks, and the differences of two dicts."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import csv
import fcntl
import os
import pathlib
import tempfile

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
  """
  path = pathlib.Path(path)
  if path.exists() and not path.is_file():
    yield path
    return
  # Named like the file, for whoever finds it after a kill, and beside it: no
  # system moves a file from one disk to another in a moment.
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
    errors: see `open`. Names of files in another encoding have characters that
      UTF-8 has not.
  """
  with (
    replaced_file(path) as temporary,
    temporary.open('w', newline='', encoding='utf-8', errors=errors) as file,
  ):
    csv.writer(file).writerows(rows)


def lock(folder: pathlib.Path, busy: str):
  """Locks a folder until the returned file is closed, or the process ends.

  Raises:
    UserError: with the message `busy`, if another process holds the lock.
  """
  file = (folder / LOCK_FILE).open('w')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.close()
    raise UserError(busy) from error
  return file


def differences(before: Mapping, after: Mapping) -> dict[str, tuple]:
  """Returns {key: (before, after)} of the keys whose values differ, sorted.

  A key that one of them lacks has None there.
  """
  return {
    key: (before.get(key), after.get(key))
    for key in sorted(before.keys() | after.keys())
    if before.get(key) != after.get(key)
  }

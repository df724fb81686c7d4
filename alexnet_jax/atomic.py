"""Files that are there as a whole or not at all."""

from collections.abc import Iterable
from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import csv
import os
import pathlib


@contextlib.contextmanager
def replaced_file(path: str | os.PathLike) -> Iterator[pathlib.Path]:
  """Gives the path of a temporary file, which takes the place of `path`.

  Neither a full disk nor a kill or a power cut leaves half a file there. Where
  the block raises, what was there before stays, and the temporary file goes.

  Args:
    path: of the file; a link stays a link to it. What is no plain file, as
      /dev/stdout, is given back itself.

  Yields:
    The path to write to, beside the file: the system cannot move a whole file
    from one disk to another in a moment.
  """
  if os.path.exists(path) and not os.path.isfile(path):
    yield pathlib.Path(path)
    return
  target = pathlib.Path(os.path.realpath(path))
  temporary = target.with_name(f'{target.name}.tmp')
  try:
    yield temporary
    with temporary.open('rb') as file:
      os.fsync(file.fileno())  # or the name could reach the disk before it
    temporary.replace(target)
  except BaseException:
    temporary.unlink(missing_ok=True)
    raise


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

"""Keeps two processes from writing into one folder."""

import fcntl
import pathlib

from alexnet_jax.errors import UserError

LOCK_FILE = '.lock'


def lock(folder: pathlib.Path, busy: str):
  """Locks a folder until the returned file is closed, or the process ends.

  Args:
    folder: exists; gets a file `.lock`.
    busy: the message if another process holds the lock.

  Raises:
    UserError: with that message.
  """
  file = (folder / LOCK_FILE).open('w')
  try:
    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
  except BlockingIOError as error:
    file.close()
    raise UserError(busy) from error
  return file

"""Folders of checkpoints: removed, set aside, taken back."""

import errno
import pathlib
import shutil
import time

from alexnet_jax.errors import UserError


def remove(folder: pathlib.Path) -> None:
  """Removes a folder that threads of a save that failed may still write to.

  Raises:
    UserError: if something still writes there after ten seconds.
  """
  for _ in range(100):
    try:
      return shutil.rmtree(folder)
    except FileNotFoundError:
      return None
    except OSError as error:
      if error.errno != errno.ENOTEMPTY:
        raise
      time.sleep(0.1)
  raise UserError(f'{folder} cannot be removed: something writes to it')


def set_aside(folder: pathlib.Path, place: pathlib.Path) -> pathlib.Path:
  """Moves a checkpoint into another folder; where it lies now."""
  target = place / folder.name
  place.mkdir(exist_ok=True)
  while target.exists():
    target = target.with_name(target.name + '_')
  return folder.rename(target)


def settle(checkpoints: pathlib.Path, replaced: pathlib.Path) -> None:
  """Removes what was set aside to be replaced, or takes it back.

  Args:
    checkpoints: where all are; nothing may be writing there, so that what is
      there is complete.
    replaced: where those lie that are written anew.
  """
  if not replaced.is_dir():
    return
  for old in replaced.iterdir():
    if (checkpoints / old.name).exists():
      remove(old)
    else:
      old.rename(checkpoints / old.name)
  replaced.rmdir()

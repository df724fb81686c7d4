"""Orbax manager of checkpoints, checks of their contents, their folders.

`checkpoint` decides when they apply.
"""

from collections.abc import Mapping
import ctypes
import errno
import importlib.metadata
import os
import pathlib
import platform
import shutil
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint import options as orbax_options
from orbax.checkpoint.checkpoint_managers import preservation_policy

from alexnet_jax import files
from alexnet_jax.errors import NonFiniteLossError
from alexnet_jax.errors import UserError
from alexnet_jax.training.state import leaf_names

_PACKAGES = ('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain')
_PACKAGES += ('numpy', 'simplejpeg', 'pillow', 'numba')  # they decide pixels
# Errors of the machine, or of a file system behind a network. TensorStore and
# threads give no number, only the text.
_TRANSIENT_ERRORS = {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES}
_TRANSIENT_ERRORS |= {errno.EPERM, errno.EAGAIN, errno.EINTR, errno.ESTALE}
_TRANSIENT_ERRORS |= {errno.ETIMEDOUT, errno.ENOTCONN}
_TRANSIENT_TEXTS = [os.strerror(number) for number in _TRANSIENT_ERRORS]
_TRANSIENT_TEXTS += ['RESOURCE_EXHAUSTED', 'DEADLINE_EXCEEDED']
_TRANSIENT_TEXTS += ["can't start new thread"]
_malloc_trim = getattr(ctypes.CDLL(None), 'malloc_trim', None)  # of glibc


class DamagedCheckpointError(Exception):
  """A checkpoint that exists but cannot be used."""


class KeepSteps:
  """Orbax preservation policy: the newest `count`, and chosen steps."""

  def __init__(self, count: int):
    self.count = count
    self.steps = set()

  def should_preserve(self, checkpoints, *, context):
    """Returns a bool for each checkpoint; called by Orbax."""
    newest = preservation_policy.LatestN(self.count).should_preserve(
      checkpoints, context=context
    )
    return [
      new or info.step in self.steps
      for new, info in zip(newest, checkpoints, strict=True)
    ]


def make_manager(
  folder: pathlib.Path, policy: KeepSteps, read_only: bool
) -> ocp.CheckpointManager:
  """Returns the Orbax manager of the checkpoints in a folder."""
  asynchronous = orbax_options.AsyncOptions(
    post_finalization_callback=_trim_memory
  )
  return ocp.CheckpointManager(
    folder,
    item_handlers={
      'state': ocp.StandardCheckpointHandler(),
      'run': ocp.JsonCheckpointHandler(),
    },
    options=ocp.CheckpointManagerOptions(
      preservation_policy=policy,
      create=False,
      read_only=read_only,
      enable_async_checkpointing=not read_only,
      async_options=None if read_only else asynchronous,
      # Of several processes one opens checkpoints, and waits for no other.
      multiprocessing_options=orbax_options.MultiprocessingOptions(
        primary_host=jax.process_index(),
        active_processes={jax.process_index()},
        barrier_sync_key_prefix='checkpoints',
      ),
    ),
  )


def _trim_memory() -> None:
  """Returns freed memory to the system where the C library keeps it.

  glibc keeps what the threads of a save freed: of a state of 0.5 GB 0.1 to
  0.3 GB with every save. Orbax calls it when all is written, before it gives
  the checkpoint its name: it must raise nothing.
  """
  if _malloc_trim is not None:
    _malloc_trim(0)


def as_damage(part: str, error: Exception) -> Exception:
  """Classifies a read error: corrupt checkpoint, or transient failure.

  Setting a good checkpoint aside because memory is short would lose it.

  Args:
    part: the part of the checkpoint that was read.
    error: what reading raised.

  Returns:
    DamagedCheckpointError, or a transient `error` itself.
  """
  transient = isinstance(error, MemoryError) or any(
    text in str(error) for text in _TRANSIENT_TEXTS
  )
  if transient or getattr(error, 'errno', None) in _TRANSIENT_ERRORS:
    return error
  return DamagedCheckpointError(f'{part}: {error}')


def refuse_non_finite(host: Mapping) -> None:
  """Raises if a parameter is infinite or not a number.

  Args:
    host: `state.saved_tree` of numpy arrays.

  Raises:
    NonFiniteLossError: if a parameter is infinite or not a number.
  """
  for name, leaf in leaf_names(host['params']).items():
    if not np.isfinite(leaf).all():
      raise NonFiniteLossError(
        f'step {int(host["step"])} is not saved: {name} is not finite. With a'
        ' new --workdir try a lower config.optimizer.learning_rate or a warm-up'
      )


def refuse_misfit(
  saved: Mapping, template: Mapping, path: pathlib.Path
) -> None:
  """Compares names, dtypes and shapes of a checkpoint with a network's.

  Args:
    saved: the checkpoint's tree; leaves have a dtype and a shape.
    template: the network's tree.
    path: the checkpoint's folder, for the message.

  Raises:
    UserError: if they differ; it names every leaf that does.
  """
  found, wanted = (
    {
      name: f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'
      for name, leaf in leaf_names(tree).items()
    }
    for tree in (saved, template)
  )
  lines = [
    f'  {name}: the checkpoint has {theirs or "nothing"}, this network'
    f' {ours or "nothing"}'
    for name, (theirs, ours) in files.differences(found, wanted).items()
  ]
  if lines:
    raise UserError(
      f'{path} is of another network:\n'
      + '\n'.join(lines)
      + '\nUse its config or another --workdir'
    )


def versions() -> dict[str, str]:
  """Returns the versions of Python and of packages that decide numbers."""
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {'python': platform.python_version(), **found}


def remove_folder(folder: pathlib.Path) -> None:
  """Removes a folder that threads of a failed save may still write to.

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


def set_aside(folder: pathlib.Path, parent: pathlib.Path) -> pathlib.Path:
  """Moves a checkpoint into the folder `parent`; returns its new path."""
  target = parent / folder.name
  parent.mkdir(exist_ok=True)
  while target.exists():
    target = target.with_name(target.name + '_')
  return folder.rename(target)


def recover_replaced(checkpoints: pathlib.Path, replaced: pathlib.Path) -> None:
  """Removes replaced checkpoints, or takes back what was not replaced.

  Args:
    checkpoints: folder of all checkpoints; nothing may be writing there, so
      that each one in it is complete.
    replaced: folder of those that are being written anew.
  """
  if not replaced.is_dir():
    return
  for old in replaced.iterdir():
    if (checkpoints / old.name).exists():
      remove_folder(old)
    else:
      old.rename(checkpoints / old.name)
  replaced.rmdir()

"""What may go into a checkpoint, and what one must have to be used."""

from collections.abc import Mapping
import errno
import importlib.metadata
import os
import pathlib
import platform

import numpy as np

from alexnet_jax.errors import NonFiniteLossError
from alexnet_jax.errors import UserError
from alexnet_jax.training.state import leaf_names

_PACKAGES = (
  *('jax', 'jaxlib', 'flax', 'optax', 'orbax-checkpoint', 'grain'),
  *('numpy', 'simplejpeg', 'pillow', 'numba'),  # they decide the pixels
)
# Of the machine, or of a file system behind a network. TensorStore and threads
# have no number, only the text.
_PASSING_ERRORS = {
  *(errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EACCES, errno.EPERM),
  *(errno.EAGAIN, errno.EINTR, errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN),
}
_PASSING_TEXTS = (
  *('RESOURCE_EXHAUSTED', "can't start new thread", 'DEADLINE_EXCEEDED'),
  *(os.strerror(number) for number in sorted(_PASSING_ERRORS)),
)


class DamagedCheckpointError(Exception):
  """A checkpoint that exists and cannot be used."""


def damage(part: str, error: Exception) -> Exception:
  """The error as damage, unless it says more of this machine than of the file.

  Setting a good checkpoint aside because memory is short would lose it.

  Args:
    part: of the checkpoint, that was read.
    error: that reading raised.

  Returns:
    DamagedCheckpointError, or `error` as it is.
  """
  passing = isinstance(error, MemoryError) or any(
    text in str(error) for text in _PASSING_TEXTS
  )
  if passing or getattr(error, 'errno', None) in _PASSING_ERRORS:
    return error
  return DamagedCheckpointError(f'{part}: {error}')


def refuse_non_finite(host: Mapping) -> None:
  """Raises rather than save a state that cannot be trained any more.

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
    saved: the checkpoint's tree, of whatever has a dtype and a shape.
    template: the network's.
    path: of the checkpoint.

  Raises:
    UserError: if they differ; it names every leaf that does.
  """
  found = {name: _form(leaf) for name, leaf in leaf_names(saved).items()}
  wanted = {name: _form(leaf) for name, leaf in leaf_names(template).items()}
  lines = [
    f'  {name}: the checkpoint has {found.get(name, "nothing")}, this network'
    f' {wanted.get(name, "nothing")}'
    for name in sorted(found.keys() | wanted.keys())
    if found.get(name) != wanted.get(name)
  ]
  if lines:
    raise UserError(
      f'{path} is of another network:\n'
      + '\n'.join(lines)
      + '\nUse its config or another --workdir'
    )


def _form(leaf):
  return f'{np.dtype(leaf.dtype).name}{list(leaf.shape)}'


def versions() -> dict[str, str]:
  """Versions of Python and of the packages that decide about numbers."""
  found = {name: importlib.metadata.version(name) for name in _PACKAGES}
  return {'python': platform.python_version(), **found}

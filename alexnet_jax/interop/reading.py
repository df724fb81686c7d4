"""What the readers of all frameworks' files share."""

from collections.abc import Sequence
import contextlib
import logging

import numpy as np

from alexnet_jax.errors import UserError

HDF5_START = b'\x89HDF\r\n\x1a\n'
_FLOATS = ('float32', 'float16', 'bfloat16', 'float64')


@contextlib.contextmanager
def naming(path):
  """Puts the file's name before what a UserError says."""
  try:
    yield
  except UserError as error:
    raise UserError(f'{path}: {error}') from None


def as_float32(array: np.ndarray, name: str) -> np.ndarray:
  """The numbers as float32.

  Args:
    array: float32, float16, bfloat16 or float64 (which is rounded).
    name: for messages.

  Raises:
    UserError: if the dtype is another, or a number is not finite in float32.
  """
  if array.dtype.name not in _FLOATS:
    raise UserError(
      f'{name}: expected float32, float16, bfloat16 or float64, found'
      f' {array.dtype.name}'
    )
  with np.errstate(over='ignore'):
    numbers = np.asarray(array, np.float32)
  if not np.isfinite(numbers).all():
    count = numbers.size - int(np.isfinite(numbers).sum())
    raise UserError(
      f'{name}: expected finite numbers, found {count:,} that are not, of'
      f' {numbers.size:,}'
    )
  return numbers


def pixel_levels(
  mean: Sequence[float],
  std: Sequence[float],
  usual_mean: Sequence[float],
  usual_std: Sequence[float],
) -> tuple[tuple[float, ...], tuple[float, ...]]:
  """The mean and deviation of pixels that are given, or else the usual ones.

  A file that does not say how images were prepared gives wrong answers, not an
  error, where that is guessed wrongly: so whatever is guessed is said.

  Args:
    mean, std: red, green and blue of 255; (): not given.
    usual_mean, usual_std: those taken then.
  """
  guessed = [
    f'--{name} {",".join(f"{level:g}" for level in usual)}'
    for name, given, usual in (
      ('mean', mean, usual_mean),
      ('std', std, usual_std),
    )
    if not given
  ]
  if guessed:
    logging.getLogger(__name__).warning(
      'the file does not say how pixels were prepared; taken are %s: give'
      ' --mean and --std if the network was trained with others',
      ' and '.join(guessed),
    )
  return tuple(mean or usual_mean), tuple(std or usual_std)

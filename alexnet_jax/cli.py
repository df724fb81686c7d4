"""The contract of all commands: exit codes, messages, the JSON line."""

import argparse
from collections.abc import Callable
import errno
import json
import logging
import sys

from alexnet_jax import errors
from alexnet_jax import runtime

_LOG_FORMAT = '%(levelname)s %(message)s'
_prefix = ''


def run(
  function: Callable[[], dict | None],
  *,
  json_output: bool,
  uses_jax: bool = True,
  exit_code: Callable[[dict], int] | None = None,
) -> int:
  """Calls a command's work and turns its outcome into an exit code.

  Args:
    function: returns the command's result, a JSON object; None: another process
      of the same run has it.
    json_output: True to print the result as the last line of standard output;
      everything for people goes to standard error.
    uses_jax: True if the command computes; see `runtime.configure`.
    exit_code: maps the result of a command that was done but may have bad news
      to the exit code. By default 0.

  Returns:
    0 done; 2 the user can mend it; 75 interrupted and saved, or another process
    of the run is lost: the same command goes on; 1 a run that failed. Other
    exceptions pass (and exit with 1).
  """
  logging.basicConfig(
    stream=sys.stderr, level=logging.WARNING, format=_LOG_FORMAT
  )
  # Orbax warns of the meaning of our options, and logs the traceback of a save
  # that failed; `checkpoint` reports the reason.
  logging.getLogger('absl').setLevel(logging.CRITICAL)
  if sys.unraisablehook is sys.__unraisablehook__:
    sys.unraisablehook = _unraisable
  if uses_jax:
    runtime.configure()
  try:
    result = function()
  except BaseException as error:
    if (known := outcome(error)) is None:
      raise
    code, message = known
    print(f'{_prefix}{message}', file=sys.stderr)
    return code
  if json_output and result is not None:
    print(json.dumps(result, sort_keys=True), flush=True)
  return exit_code(result) if exit_code else errors.EXIT_DONE


def _unraisable(unraisable):
  """Leaves out what threads of TensorStore say after a save that failed."""
  if str(unraisable.exc_value) != 'Event loop is closed':
    sys.__unraisablehook__(unraisable)


def outcome(error: BaseException) -> tuple[int, str] | None:
  """Returns exit code and message for an exception; None if it is a bug."""
  if isinstance(error, errors.UserError):
    return errors.EXIT_USER, f'error: {error}'
  if isinstance(error, errors.NonFiniteLossError):
    return errors.EXIT_FAILURE, f'error: {error}'
  if isinstance(error, errors.Interrupted):
    message = f'interrupted by {error}; the same command goes on from here'
    return errors.EXIT_INTERRUPTED, message
  if isinstance(error, errors.ProcessLost):
    return errors.EXIT_INTERRUPTED, (
      f'another process of the run is lost ({error}); the same command goes on'
      ' from the newest checkpoint'
    )
  if isinstance(error, KeyboardInterrupt):
    return errors.EXIT_FAILURE, 'error: interrupted'
  if isinstance(error, OSError) and (error.filename or _is_full(error)):
    hint = (
      '; complete checkpoints stay valid: make room and start the same command'
      ' again'
      if _is_full(error)
      else ''
    )
    place = error.filename or 'while writing'
    return errors.EXIT_USER, f'error: {place}: {error.strerror}{hint}'
  return None


def _is_full(error):
  return error.errno in (errno.ENOSPC, errno.EDQUOT)


def set_prefix(prefix: str) -> None:
  """Sets the text that all messages of this process begin with."""
  global _prefix
  _prefix = prefix
  for handler in logging.getLogger().handlers:
    handler.setFormatter(logging.Formatter(prefix + _LOG_FORMAT))


def add_recipe(parser: argparse.ArgumentParser) -> None:
  """Adds --config to the arguments of a command that trains."""
  parser.add_argument(
    '--config',
    default='configs/quickstart.py',
    metavar='FILE',
    help='the recipe (default: %(default)s)',
  )


def add_run(parser: argparse.ArgumentParser) -> None:
  """Adds --workdir and --checkpoint, of a run that was trained."""
  parser.add_argument(
    '--workdir', required=True, metavar='DIR', help='folder of the run'
  )
  parser.add_argument(
    '--checkpoint',
    default='final',
    help='final (what the run ended with, default), newest, best or a step',
  )


def add_data_path(parser: argparse.ArgumentParser) -> None:
  """Adds --data_path, of a run whose data is read again."""
  parser.add_argument(
    '--data_path',
    default='',
    metavar='DIR',
    help='where the data lies now (default: where it lay in training)',
  )


def add_split(parser: argparse.ArgumentParser) -> None:
  """Adds --split, of the data that is measured."""
  parser.add_argument(
    '--split',
    default='validation',
    help='validation (default) or train; for TFDS also its own split names',
  )


def add_crops(parser: argparse.ArgumentParser) -> None:
  """Adds --crops: 1 or 10."""
  parser.add_argument(
    '--crops',
    type=_crops,
    default=1,
    metavar='{center,10}',
    help='center (default), or 10: corners and center, each mirrored, too;'
    ' their probabilities are averaged',
  )


def _crops(text):
  if text in ('center', 'center', '1'):
    return 1
  if text == '10':
    return 10
  raise argparse.ArgumentTypeError(f'{text!r} is not center or 10')


def add_json(parser: argparse.ArgumentParser) -> None:
  """Adds --json; see `run`."""
  parser.add_argument(
    '--json',
    action='store_true',
    help='end standard output with one JSON object',
  )

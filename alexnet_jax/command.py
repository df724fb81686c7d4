"""The contract of all commands: exit codes, messages, the JSON line."""

import argparse
from collections.abc import Callable
import errno
import json
import logging
import sys

from alexnet_jax import errors

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


def run(
  function: Callable[[], dict],
  *,
  json_output: bool,
  exit_code: Callable[[dict], int] | None = None,
) -> int:
  """Calls a command's work and turns its outcome into an exit code.

  Args:
    function: returns the command's result, a JSON object.
    json_output: whether the result is printed, as the last line of standard
      output; everything for people goes to standard error.
    exit_code: of a command that was done but may have bad news: what to return
      for its result. By default 0.

  Returns:
    0 done; 2 the user can mend it; 75 interrupted and saved, the same command
    goes on; 1 a run that failed. Other exceptions pass (and exit with 1).
  """
  logging.basicConfig(
    stream=sys.stderr, level=logging.WARNING, format='%(levelname)s %(message)s'
  )
  # Orbax warns of what our options mean.
  logging.getLogger('absl').setLevel(logging.ERROR)
  try:
    result = function()
  except errors.UserError as error:
    return _fail(errors.EXIT_USER, error)
  except errors.NonFiniteLossError as error:
    return _fail(errors.EXIT_FAILURE, error)
  except errors.Interrupted as error:
    print(
      f'interrupted by {error}; the same command goes on from here',
      file=sys.stderr,
    )
    return errors.EXIT_INTERRUPTED
  except KeyboardInterrupt:
    return _fail(errors.EXIT_FAILURE, 'interrupted')
  except OSError as error:
    if error.filename is None and error.errno not in _NO_SPACE:
      raise
    hint = (
      '; complete checkpoints stay valid: make room and start the same command'
      ' again'
      if error.errno in _NO_SPACE
      else ''
    )
    place = error.filename or 'while writing'
    return _fail(errors.EXIT_USER, f'{place}: {error.strerror}{hint}')
  if json_output:
    print(json.dumps(result, sort_keys=True), flush=True)
  return exit_code(result) if exit_code else errors.EXIT_DONE


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


def add_json(parser: argparse.ArgumentParser) -> None:
  """Adds --json; see `run`."""
  parser.add_argument(
    '--json',
    action='store_true',
    help='end standard output with one JSON object',
  )


def _fail(code, message):
  print(f'error: {message}', file=sys.stderr)
  return code

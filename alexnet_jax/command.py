"""The contract of all commands: exit codes, messages, the JSON line."""

from collections.abc import Callable
import errno
import json
import logging
import sys

from alexnet_jax import errors


def run(function: Callable[[], dict], *, json_output: bool) -> int:
  """Calls a command's work and turns its outcome into an exit code.

  Args:
    function: returns the command's result, a JSON object.
    json_output: whether the result is printed, as the last line of standard
      output; everything for people goes to standard error.

  Returns:
    0 done; 2 the user can mend it; 75 interrupted and saved, the same command
    goes on; 1 a run that failed. Other exceptions pass (and exit with 1).
  """
  logging.basicConfig(
    stream=sys.stderr, level=logging.WARNING, format='%(levelname)s %(message)s'
  )
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
  except OSError as error:
    if error.errno != errno.ENOSPC:
      raise
    return _fail(
      errors.EXIT_USER,
      f'no space left on the device ({error.filename or "while writing"});'
      ' complete checkpoints stay valid: make room and start the same command'
      ' again',
    )
  if json_output:
    print(json.dumps(result, sort_keys=True), flush=True)
  return errors.EXIT_DONE


def _fail(code, message):
  print(f'error: {message}', file=sys.stderr)
  return code

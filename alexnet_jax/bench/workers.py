"""Processes that run the candidates of a benchmark, one request at a time.

Every library has a process of its own: it meets no threads, memory or flags of
another one, and if it crashes the others go on. Between requests a process does
nothing, so that only one candidate computes at a time.

A process binds itself to its cores, imports a module, makes its `Handler` and
calls a method of it for every request. Requests and answers are pickles on
standard input and output.
"""

from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import importlib
import multiprocessing
import os
import pickle
import subprocess
import sys
import tempfile
import traceback
from typing import Any

from alexnet_jax.errors import UserError

_START = 'from alexnet_jax.bench import workers; workers.main()'


class WorkerError(Exception):
  """A candidate failed; the message says how, in a line or a few."""


class UnsupportedError(WorkerError):
  """A candidate is not installed, or lacks what a request asks for."""


class Worker:
  """A process with a handler, for use in a `with` statement."""

  def __init__(
    self,
    module: str,
    *arguments: str,
    cores: Sequence[int] = (),
    environment: Mapping[str, str] | None = None,
  ):
    """Starts the process, and does not wait for what it imports.

    Args:
      module: the module that has the `Handler`.
      *arguments: what the handler is made of.
      cores: the cores that the process runs on; none: all.
      environment: its environment; None: that of this process.
    """
    self._log = tempfile.TemporaryFile('w+')  # noqa: SIM115  __exit__ ends it
    names = (','.join(map(str, cores)), module, *arguments)
    self._process = subprocess.Popen(
      [sys.executable, '-c', _START, *names],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._log,
      env=environment,
    )

  def __enter__(self) -> 'Worker':
    return self

  def __exit__(self, *exception) -> None:
    with contextlib.suppress(BrokenPipeError):
      self._process.stdin.close()
    self._process.stdout.close()
    try:
      self._process.wait(10)
    except subprocess.TimeoutExpired:
      self._process.kill()
      self._process.wait()
    self._log.close()

  def ask(self, method: str, **arguments) -> Any:
    """Calls a method of the handler and returns its result.

    Raises:
      UnsupportedError: if it raised ImportError or NotImplementedError.
      UserError: if it raised one.
      WorkerError: if it failed otherwise, or the process ended.
    """
    # If it has died, what it left in its log tells more than this does.
    with contextlib.suppress(BrokenPipeError):
      pickle.dump((method, arguments), self._process.stdin)
      self._process.stdin.flush()
    try:
      result, error, trace = pickle.load(self._process.stdout)
    except (EOFError, pickle.UnpicklingError):
      code = self._process.wait()
      self._log.seek(0)
      last = self._log.read()[-2000:].strip()
      raise WorkerError(f'its process ended with {code}: {last}') from None
    if trace:
      print(trace, file=sys.stderr)
    if error:
      raise error
    return result


def _answer(call):
  """Returns (result, error to be raised or None, traceback of a bug)."""
  try:
    return call(), None, ''
  except UserError as error:
    return None, UserError(str(error)), ''
  except (ImportError, NotImplementedError) as error:
    return None, UnsupportedError(str(error)), ''
  except Exception as error:
    message = f'{type(error).__name__}: {error}'.strip()
    return None, WorkerError(message), traceback.format_exc()


def main() -> None:
  """Answers requests until standard input ends.

  The arguments are cores (numbers with commas; '' for all), module and what its
  `Handler` is made of.
  """
  cores, module, *arguments = sys.argv[1:]
  if cores:  # before libraries count them
    os.sched_setaffinity(0, map(int, cores.split(',')))
  answers = os.fdopen(os.dup(1), 'wb')
  os.dup2(2, 1)  # what libraries print must not get between the answers
  handler = None

  def call():
    nonlocal handler
    if handler is None:
      handler = importlib.import_module(module).Handler(*arguments)
    return getattr(handler, method)(**keywords)

  with contextlib.suppress(EOFError):
    while True:
      method, keywords = pickle.load(sys.stdin.buffer)
      pickle.dump(_answer(call), answers)
      answers.flush()
  for process in multiprocessing.active_children():
    process.terminate()
  os._exit(0)  # threads of libraries may never end

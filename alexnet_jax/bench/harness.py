"""Arguments, processes, machine and medians of all benchmarks.

Every library has a process of its own: it meets no threads, memory or flags of
another one, and if it crashes the others go on. Between requests a process does
nothing, so that only one candidate computes at a time.
"""

import argparse
from collections.abc import Iterable
from collections.abc import Mapping
from collections.abc import Sequence
import contextlib
import importlib
import importlib.metadata
import multiprocessing
import os
import pathlib
import platform
import re
import shlex
import statistics
import sys
import tempfile
import traceback
from typing import Any

from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import page

_PACKAGES = """
  alexnet_jax flax grain jax jaxlib jax-cuda12-plugin keras numba numpy
  opencv-python-headless optax simplejpeg spdl tensorflow torch"""


def positive(text: str) -> int:
  """Reads a number above 0, as argparse's `type`."""
  if (number := int(text)) < 1:
    raise argparse.ArgumentTypeError(f'{text} is not positive')
  return number


def names(text: str) -> tuple[str, ...]:
  """Reads names with commas in between, as argparse's `type`."""
  return tuple(name for name in text.split(',') if name)


def check_names(flag: str, given: Iterable[str], known: Iterable[str]) -> None:
  """Raises UserError if one of the names is unknown."""
  if wrong := [name for name in given if name not in known]:
    raise UserError(f'{flag}: {wrong[0]!r} is not one of {", ".join(known)}')


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
    environment: Mapping[str, str],
    cores: Sequence[int] = (),
  ):
    """Starts the process, and does not wait for what it imports.

    Args:
      module: the module that has the `Handler`.
      *arguments: what the handler is made of.
      environment: what changes in that of this process.
      cores: the cores that the process runs on; none: all.
    """
    context = multiprocessing.get_context('spawn')
    self._log = tempfile.NamedTemporaryFile('r', errors='replace')  # noqa: SIM115
    self._pipe, theirs = context.Pipe()
    given = theirs, self._log.name, environment, cores, module, arguments
    self._process = context.Process(target=_serve, args=given)
    self._process.start()
    theirs.close()

  def __enter__(self) -> 'Worker':
    return self

  def __exit__(self, *exception) -> None:
    self._pipe.close()
    self._process.join(10)
    self._process.kill()
    self._process.join()
    self._log.close()

  def ask(self, method: str, **arguments) -> Any:
    """Calls a method of the handler and returns its result.

    Raises:
      UnsupportedError: if it raised ImportError or NotImplementedError.
      UserError: if it raised one.
      WorkerError: if it failed otherwise, or the process ended.
    """
    try:
      self._pipe.send((method, arguments))
      result, error, trace = self._pipe.recv()
    except (EOFError, OSError):
      self._process.join()
      self._log.seek(0)
      last = self._log.read()[-2000:].strip()
      code = self._process.exitcode
      raise WorkerError(f'its process ended with {code}: {last}') from None
    if trace:
      tell(trace)
    if error:
      raise error
    return result


def _serve(pipe, log, environment, cores, module, arguments):
  """Answers requests until the pipe is closed."""
  with open(log, 'a') as file:
    for stream in (1, 2):  # libraries print
      os.dup2(file.fileno(), stream)
  os.environ.update(environment)
  if cores:  # before libraries count them
    os.sched_setaffinity(0, cores)
  handler = None

  def call():
    nonlocal handler
    if handler is None:
      handler = importlib.import_module(module).Handler(*arguments)
    return getattr(handler, method)(**keywords)

  with contextlib.suppress(EOFError):
    while True:
      method, keywords = pipe.recv()
      pipe.send(_answer(call))
  for process in multiprocessing.active_children():
    process.terminate()
  os._exit(0)  # threads of libraries may never end


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


def spread(values: Sequence[float]) -> dict[str, float]:
  """Returns {median, min, max} of the rounds."""
  median = statistics.median(values)
  return {'median': median, 'min': min(values), 'max': max(values)}


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
  """Returns the median over the rounds of value / other in the same round."""
  return statistics.median(a / b for a, b in zip(values, others, strict=True))


def header() -> dict:
  """Returns what every result begins with, and tells it to people.

  Returns:
    {command, machine: {cpu, cores: that this process may use, system},
    versions: {python and what is installed of what the benchmarks run}}.
  """
  from alexnet_jax.data.loader import num_cores

  cpu, cores = platform.processor() or platform.machine(), num_cores()
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists() and (
    named := re.search(r'model name\s*:\s*(.*)', info.read_text())
  ):
    cpu = named[1]
  versions = {'python': platform.python_version()}
  for package in _PACKAGES.split():
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[package] = importlib.metadata.version(package)
  command = shlex.join(['python', '-m', 'alexnet_jax.bench', *sys.argv[1:]])
  found = ', '.join(f'{k} {v}' for k, v in versions.items())
  tell(f'{command}\n{cpu}, {cores} cores; {found}')
  machine = {'cpu': cpu, 'cores': cores, 'system': platform.platform()}
  return {'command': command, 'machine': machine, 'versions': versions}


def tell(text: str) -> None:
  """Prints text for people, on standard error."""
  print(text, file=sys.stderr)


def tell_table(title: str, columns: Sequence[str], rows: Sequence) -> None:
  """Prints rows of text and numbers."""
  page.show_table(page.Table(title, columns, rows))

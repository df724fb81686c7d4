"""Arguments, processes, machine and medians of all benchmarks."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
import contextlib
import importlib
import importlib.metadata
import multiprocessing
import os
import pathlib
import platform
import random
import re
import shlex
import statistics
import sys
import tempfile
import traceback
from typing import Any

from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import page

OURS = 'ours'  # the names of our candidates begin with it
_PACKAGES = """
  alexnet_jax flax grain jax jaxlib jax-cuda12-plugin keras numba numpy
  opencv-python-headless optax simplejpeg spdl tensorflow torch"""


def names(text: str) -> tuple[str, ...]:
  """Reads names with commas in between, as argparse's `type`."""
  return tuple(name for name in text.split(',') if name)


def check_names(flag: str, given: Iterable[str], known: Iterable[str]) -> None:
  """Raises UserError if one of the names is unknown."""
  if wrong := [name for name in given if name not in known]:
    raise UserError(f'{flag}: {wrong[0]!r} is not one of {", ".join(known)}')


class WorkerError(Exception):
  """A candidate failed; the message says how, in a line or a few."""


class Worker:
  """A process with the handler of a candidate, for a `with` statement.

  It meets no threads, memory or flags of another; if it crashes the others go
  on. The module has a class `Handler`, made of the candidate's name.
  """

  def __init__(
    self,
    module: str,
    candidate: str,
    environment: Mapping[str, str],
  ):
    """Starts the process, and does not wait for it."""
    context = multiprocessing.get_context('spawn')
    self._log = tempfile.NamedTemporaryFile('r', errors='replace')  # noqa: SIM115
    self._pipe, theirs = context.Pipe()
    given = theirs, self._log.name, environment, (module, candidate)
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
    """Calls a method of the handler; raises WorkerError if that fails."""
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
      show(trace)
    if error:
      raise error
    return result


def _serve(pipe, log, environment, names):
  """Answers requests until the pipe is closed."""
  with open(log, 'a') as file:
    for stream in (1, 2):  # libraries print
      os.dup2(file.fileno(), stream)
  os.environ.update(environment)
  module, candidate = names
  handler = None
  with contextlib.suppress(EOFError):
    while True:
      method, arguments = pipe.recv()
      result, error, trace = None, None, ''
      try:
        handler = handler or importlib.import_module(module).Handler(candidate)
        result = getattr(handler, method)(**arguments)
      except UserError as raised:
        error = UserError(str(raised))
      except ImportError as raised:
        error = WorkerError(str(raised))
      except Exception as raised:
        error = WorkerError(f'{type(raised).__name__}: {raised}'.strip())
        trace = traceback.format_exc()
      pipe.send((result, error, trace))
  for process in multiprocessing.active_children():
    process.terminate()
  os._exit(0)  # threads of libraries may never end


@contextlib.contextmanager
def noted(candidate: str, case: str, failed: list[dict]) -> Iterator[None]:
  """Notes in `failed` if a peer fails within the block; ours must not."""
  try:
    yield
  except WorkerError as error:
    name = f'{candidate}, {case}' if case else candidate
    if candidate.startswith(OURS):
      raise WorkerError(f'{name}: {error}') from error
    show(f'not measured: {name}: {error}')
    failed.append({'candidate': candidate, 'case': case, 'reason': str(error)})


def measure(entries: Sequence, rounds: int, failed: list[dict]) -> list[dict]:
  """Measures candidates in every round, in another order each time.

  Args:
    entries: (candidate, case, worker, arguments of its `measure`, which returns
      images per second). The first one of a case is ours.
    rounds: how many.
    failed: takes those that fail, see `noted`; the others have a row.

  Returns rows {candidate, case, images_per_second: of each round, median, min,
  max, ours_by_it: median ratio within a round}.
  """
  speeds = [[] for _ in entries]
  for number in range(rounds):
    show(f'round {number + 1} of {rounds}')
    order = random.Random(number).sample(range(len(entries)), len(entries))
    # A machine that drifts must not do so between two that are compared.
    for index in sorted(order, key=lambda index: entries[index][1]):
      candidate, case, worker, arguments = entries[index]
      if len(speeds[index]) == number:  # it has not failed yet
        with noted(candidate, case, failed):
          speeds[index].append(worker.ask('measure', **arguments))
  rows, ours = [], {}
  for (candidate, case, *_), own in zip(entries, speeds, strict=True):
    if len(own) == rounds:
      ratio = median_ratio(ours.setdefault(case, own), own)
      row = {'candidate': candidate, 'case': case, 'images_per_second': own}
      rows.append({**row, **spread(own), 'ours_by_it': ratio})
  return rows


def spread(values: Sequence[float]) -> dict[str, float]:
  """Returns {median, min, max} of the rounds."""
  median = statistics.median(values)
  return {'median': median, 'min': min(values), 'max': max(values)}


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
  """Returns the median over the rounds of value / other in the same round."""
  return statistics.median(a / b for a, b in zip(values, others, strict=True))


def header() -> dict:
  """Returns {command, machine, versions}, and shows them."""
  from alexnet_jax.data.loader import num_cores  # slow to import

  cpu, info = platform.machine(), pathlib.Path('/proc/cpuinfo')
  if info.exists():
    named = re.search(r'model name\s*:\s*(.*)', info.read_text())
    cpu = named[1] if named else cpu
  versions = {'python': platform.python_version()}
  for package in _PACKAGES.split():
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[package] = importlib.metadata.version(package)
  command = shlex.join(['python', '-m', 'alexnet_jax.bench', *sys.argv[1:]])
  found = ', '.join(f'{k} {v}' for k, v in versions.items())
  show(f'{command}\n{cpu}, {num_cores()} cores; {found}')
  machine = {'cpu': cpu, 'cores': num_cores(), 'system': platform.platform()}
  return {'command': command, 'machine': machine, 'versions': versions}


def resident_memory() -> int:
  """Returns this process' resident bytes (proc(5)); 0 where they are hidden."""
  status = pathlib.Path('/proc/self/status')
  if not status.exists():
    return 0
  return 1024 * int(re.search(r'\nVmRSS:\s+(\d+)', status.read_text())[1])


def show(text: str) -> None:
  """Prints text for people, on standard error."""
  print(text, file=sys.stderr)


def show_table(title: str, rows: Sequence[Mapping], columns: str) -> None:
  """Prints the entries of rows that are named in `columns`."""
  names = columns.split()
  cells = [['-' if row[n] is None else row[n] for n in names] for row in rows]
  page.show_table(page.Table(title, names, cells))

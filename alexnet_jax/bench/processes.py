"""The processes that measure, seen from the one that asks them in turn."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import json
import os
import subprocess
import sys
import tempfile

from alexnet_jax.bench.layouts import Task


class Worker:
  """A process for the contenders of one library; see `worker`.

  Attributes:
    contenders: their names; none if the library is not installed.
    missing: why the library could not be imported; '' if it could.
  """

  def __init__(self, library: str):
    """Starts it and waits until its library is imported."""
    self._library = library
    self._log = tempfile.TemporaryFile('w+')  # noqa: SIM115  close() ends it
    self._process = subprocess.Popen(
      [sys.executable, '-m', 'alexnet_jax.bench.worker', library],
      stdin=subprocess.PIPE,
      stdout=subprocess.PIPE,
      stderr=self._log,
      text=True,
    )
    answer = self._receive()
    self.contenders = answer.get('contenders', [])
    self.missing = answer.get('missing', '')

  def check(self, contender: str, task: Task) -> str:
    """Tries a contender; returns why it does not apply to a layout, or ''.

    Raises:
      RuntimeError: if its batches are not what they have to be.
    """
    return self._ask(contender, task, 0).get('skipped', '')

  def measure(self, contender: str, task: Task, num_batches: int) -> float:
    """Images per second."""
    return self._ask(contender, task, num_batches)['images_per_second']

  def close(self) -> None:
    """Ends the process."""
    end(self._process)
    self._log.close()

  def _ask(self, contender, task, num_batches):
    request = {
      'contender': contender,
      'task': task.to_json(),
      'batches': num_batches,
    }
    # If it has died, what it left in its log tells more than this does.
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps(request), file=self._process.stdin, flush=True)
    answer = self._receive()
    if 'error' in answer:
      raise RuntimeError(
        f'{contender} on {task.layout.name} failed:\n{answer["error"]}'
      )
    return answer

  def _receive(self):
    line = self._process.stdout.readline()
    if not line:
      code = self._process.wait()
      self._log.seek(0)
      raise RuntimeError(
        f'the process of {self._library} ended with {code}:\n'
        f'{self._log.read()[-2000:]}'
      )
    return json.loads(line)


def end(process: subprocess.Popen) -> None:
  """Ends a process that reads requests and writes answers."""
  with contextlib.suppress(BrokenPipeError):
    process.stdin.close()
  process.stdout.close()
  try:
    process.wait(10)
  except subprocess.TimeoutExpired:
    process.kill()
    process.wait()


@contextlib.contextmanager
def bound_to(cores: Sequence[int] | set[int]) -> Iterator[None]:
  """Processes that are started within the block run on these cores only."""
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)

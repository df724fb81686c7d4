"""Trains with several processes on this machine, each on cores of its own."""

from collections.abc import Sequence
import contextlib
import json
import os
import pathlib
import socket
import subprocess
import sys
import time

from alexnet_jax import errors
from alexnet_jax.bench import processes
from alexnet_jax.bench import timed_run
from alexnet_jax.errors import UserError

TRAINING = (sys.executable, '-m', 'alexnet_jax.main')
_GRACE = 10.0  # seconds in which the others end when one failed


def shares_of_cores(count: int) -> list[set[int]]:
  """The cores that this process may use, divided evenly among `count` others.

  Raises:
    UserError: if there are fewer, or the system cannot bind processes to them.
  """
  if not hasattr(os, 'sched_setaffinity'):
    raise UserError('this system cannot bind processes to cores; Linux can')
  cores = sorted(os.sched_getaffinity(0))
  each = len(cores) // count
  if not each:
    raise UserError(
      f'--processes: {count} processes need as many cores, but this one may use'
      f' {len(cores)}'
    )
  return [set(cores[i * each :][:each]) for i in range(count)]


def settings(steps: int, global_batch_size: int) -> dict:
  """{config key: value} of a run; one evaluation and one save, at its end."""
  # The first step compiles and is not timed.
  return {'global_batch_size': global_batch_size, **timed_run.keys(steps + 1)}


class Training:
  """Measures the speed of one run, of any number of processes."""

  def __init__(
    self,
    arguments: Sequence[str],
    steps: int,
    batch_size: int,
    cores: Sequence[set[int]],
    folder: str,
  ):
    """Remembers what all runs have in common.

    Args:
      arguments: recipe and overrides.
      steps: timed in a run.
      batch_size: images of each process in a step.
      cores: those of each process.
      folder: an empty one, for what is left behind.
    """
    self._arguments = (*arguments, '--json')
    self._steps = steps
    self._batch_size = batch_size
    self._cores = cores
    self._folder = pathlib.Path(folder)

  def __call__(self, count: int) -> float:
    """Images per second of `count` processes; raises as `train` does."""
    own = settings(self._steps, count * self._batch_size)
    with timed_run.workdir(self._folder) as workdir:
      result = train(
        (
          *(*self._arguments, f'--workdir={workdir}'),
          *(f'--config.{key}={value}' for key, value in own.items()),
        ),
        self._cores[:count],
        workdir,
      )
    return result['images_per_second']


def train(
  arguments: Sequence[str],
  cores: Sequence[set[int]],
  folder: pathlib.Path,
  command: Sequence[str] = TRAINING,
) -> dict:
  """Trains to the end with a process, of one CPU device, per set of cores.

  Args:
    arguments: of the training.
    cores: those of each process.
    folder: for what the processes print.
    command: that trains.

  Returns:
    The JSON object of process 0.

  Raises:
    UserError: if a process ended because of something the user can mend.
    RuntimeError: if a process failed otherwise.
  """
  address = f'127.0.0.1:{_free_port()}'
  place = ('--coordinator', address, '--process_count', str(len(cores)))
  with contextlib.ExitStack() as stack:
    started = []
    for index, own in enumerate(cores):
      process = _start(
        (*command, *arguments, *place, '--process_index', str(index)),
        *(own, folder / f'{index}.out', folder / f'{index}.err'),
      )
      stack.callback(_end, process)
      started.append(process)
    failed = _wait(started)
  if failed is not None:
    raise _failure(failed, started[failed].returncode, folder)
  lines = (folder / '0.out').read_text().splitlines()
  return json.loads(next(line for line in reversed(lines) if line[:1] == '{'))


def _start(command, cores, out_file, err_file):
  environment = {
    **os.environ,
    'JAX_PLATFORMS': 'cpu',
    'JAX_NUM_CPU_DEVICES': '1',  # wins over XLA_FLAGS
  }
  with (
    out_file.open('w') as out,
    err_file.open('w') as err,
    processes.bound_to(cores),
  ):
    return subprocess.Popen(
      command, stdin=subprocess.DEVNULL, stdout=out, stderr=err, env=environment
    )


def _wait(processes):
  """Waits for all; the index of the one that failed first, or None."""
  failed, deadline = None, float('inf')
  while time.monotonic() < deadline:
    codes = [process.poll() for process in processes]
    if failed is None and any(codes):
      failed = next(index for index, code in enumerate(codes) if code)
      # The others may wait for that one for minutes.
      deadline = time.monotonic() + _GRACE
    if None not in codes:
      break
    time.sleep(0.2)
  return failed


def _end(process):
  process.kill()  # does nothing if it has ended
  process.wait()


def _failure(index, code, folder):
  text = (folder / f'{index}.err').read_text()[-2000:]
  if code == errors.EXIT_USER:
    return UserError(text.strip().partition('error: ')[2] or text)
  return RuntimeError(f'process {index} ended with {code}:\n{text}')


def _free_port():
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]

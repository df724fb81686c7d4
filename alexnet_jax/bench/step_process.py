"""The process of one contender of `bench step`, seen from the one that asks."""

from collections.abc import Sequence
import contextlib
import json
import os
import subprocess
import sys
import tempfile

from alexnet_jax import runtime
from alexnet_jax.bench import processes
from alexnet_jax.errors import UserError

OURS = 'ours'  # what the names of our contenders begin with


class ContenderError(Exception):
  """A contender failed; the message says how, in a line or a few."""


def cores_of(threads: int) -> list[int]:
  """The first cores that this process may use, one for each thread.

  Args:
    threads: how many; 0: all.

  Raises:
    UserError: if there are fewer.
  """
  if not hasattr(os, 'sched_setaffinity'):
    raise UserError('this system cannot bind processes to cores; Linux can')
  cores = sorted(os.sched_getaffinity(0))
  if threads > len(cores):
    raise UserError(
      f'--threads is {threads}, but this process may use {len(cores)} cores;'
      f' give {len(cores)} or fewer'
    )
  return cores[: threads or len(cores)]


class Process:
  """A process that runs one contender; see `step_worker`."""

  def __init__(self, contender: str, cores: Sequence[int]):
    """Starts it on these cores; it imports its library when it is asked."""
    self._contender = contender
    self._log = tempfile.TemporaryFile('w+')  # noqa: SIM115  close() ends it
    with processes.bound_to(cores):
      self._process = subprocess.Popen(
        [sys.executable, '-m', 'alexnet_jax.bench.step_worker', contender],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=self._log,
        text=True,
        env=_environment(contender, len(cores)),
      )

  def ask(self, **request) -> dict:
    """Waits for the answer to a request.

    Raises:
      ContenderError: if it failed, or the process ended.
      UserError: if the user can mend it.
    """
    # If it has died, what it left in its log tells more than this does.
    with contextlib.suppress(BrokenPipeError):
      print(json.dumps(request), file=self._process.stdin, flush=True)
    line = self._process.stdout.readline()
    if not line:
      code = self._process.wait()
      raise ContenderError(f'its process ended with {code}: {self._said()}')
    answer = json.loads(line)
    if 'user_error' in answer:
      raise UserError(answer['user_error'])
    if 'error' in answer:
      if 'traceback' in answer:
        print(answer['traceback'], file=sys.stderr)
      raise ContenderError(answer['error'])
    return answer

  def close(self) -> None:
    """Ends the process."""
    processes.end(self._process)
    self._log.close()

  def _said(self):
    self._log.seek(0)
    return self._log.read()[-2000:].strip()


def _environment(contender, threads):
  """Of a contender's process."""
  environment = {
    **os.environ,
    'OMP_NUM_THREADS': str(threads),
    'KERAS_BACKEND': 'tensorflow',
    'TF_CPP_MIN_LOG_LEVEL': '3',
    # Several processes share a GPU, one of which computes at a time.
    'XLA_PYTHON_CLIENT_PREALLOCATE': 'false',
    'TF_FORCE_GPU_ALLOW_GROWTH': 'true',
    # Compiling is measured, too.
    'JAX_ENABLE_COMPILATION_CACHE': 'false',
    'TORCHINDUCTOR_FORCE_DISABLE_CACHES': '1',
  }
  if contender.startswith(OURS):
    environment |= runtime.xla_flags(os.environ)  # both as in training
  else:  # TensorFlow's XLA ends the process at flags of another one
    environment.pop('XLA_FLAGS', None)
  return environment

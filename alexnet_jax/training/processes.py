"""The processes of a run: they start together, agree, and end together.

Whatever crosses between processes here goes through the key-value store of
JAX's coordination service, in process 0; arrays go through the devices
(`parallel`). How a run of several processes ends:

- A process that fails says so in the store and leaves; a thread in every other
  process waits for that, prints it and leaves with the same exit code.
- A process that is killed, or cut off, sends no more heartbeats. After the
  heartbeat timeout JAX tells the others and ends them with abort(), from a
  thread of its own; if it is process 0 that is gone, at once. A handler turns
  that into a message and the exit code of a run that can go on.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import ctypes
import json
import os
import signal
import sys
import threading
import time
import traceback

import jax

from alexnet_jax import command
from alexnet_jax import errors
from alexnet_jax.training.launched import Launched

_PREFIX = 'alexnet_jax'
_ENDED = f'{_PREFIX}/ended'  # the key that says how the run ended
_SLICE = 1000  # ms; a wait in pieces lets Python handle signals in between
_GOODBYE = 10_000  # ms that a process waits for the others before it leaves
_LOST = ('Gloo', 'NCCL', 'UNAVAILABLE', 'ABORTED', 'CANCELLED')


class Processes:
  """One of the processes of a run, and what it can say to the others.

  Every process must call the same methods in the same order.

  Attributes:
    index: number of this process.
    count: number of processes.
  """

  def __init__(self, index: int = 0, count: int = 1):
    self.index = index
    self.count = count
    self._calls = 0

  @property
  def is_first(self) -> bool:
    """Whether this is process 0, which writes files and talks to the user."""
    return self.index == 0

  @property
  def is_alone(self) -> bool:
    return self.count == 1

  def gather(self, value, check: Callable[[], None]) -> list | None:
    """In process 0 the JSON values of all, by index; elsewhere None.

    Args:
      value: of this process.
      check: called every second of waiting; may raise.
    """
    if self.is_alone:
      return [value]
    name = self._next_name()
    _store().key_value_set(f'{name}/{self.index}', json.dumps(value))
    if not self.is_first:
      return None
    return [
      json.loads(_wait_for(f'{name}/{index}', check))
      for index in range(self.count)
    ]

  def tell(self, value, check: Callable[[], None]):
    """The JSON value that process 0 gave, in all; see `gather`."""
    if self.is_alone:
      return value
    name = self._next_name()
    if self.is_first:
      _store().key_value_set(name, json.dumps(value))
      return value
    return json.loads(_wait_for(name, check))

  def meet(self, check: Callable[[], None]) -> None:
    """Waits until all processes are here; see `gather`."""
    self.gather(None, check)
    self.tell(None, check)

  def _next_name(self):
    self._calls += 1
    return f'{_PREFIX}/{self._calls}'


ALONE = Processes()


class _Member:
  """This process' membership in a run of several, from `joined`."""

  def __init__(self, launched: Launched, start_timeout: int):
    self.launched = launched
    # Why this process is about to leave, until that is printed.
    self._code = None
    self._message = ''
    self._started = False
    self._start_timeout = start_timeout
    self._watcher = threading.Thread(target=self._watch, daemon=True)

  def start(self, heartbeat_timeout: int) -> None:
    _handle_abort(self._on_abort)
    # It would take SIGTERM away from the handler of `guards.StopSignal`.
    jax.config.update('jax_enable_preemption_service', False)
    jax.distributed.initialize(
      **self.launched.options,
      initialization_timeout=self._start_timeout,
      heartbeat_timeout_seconds=heartbeat_timeout,
    )
    self._started = True
    self._watcher.start()

  def finish(self) -> None:
    """Leaves a run that is done, after all others came here, too."""
    _try(lambda: _store().key_value_set(_ENDED, json.dumps({})))
    self._watcher.join()
    jax.distributed.shutdown()

  def say_why(self, error: BaseException) -> None:
    """Tells the others, unless another one was first."""
    self._code, self._message = command.outcome(error) or (
      errors.EXIT_FAILURE,
      f'{type(error).__name__}: {error}',
    )
    ended = {'process': self.launched.index, 'code': self._code}
    ended['message'] = self._message
    _try(lambda: _store().key_value_set(_ENDED, json.dumps(ended)))

  def leave(self, code: int) -> None:
    """Ends this process, once the others know that they must end, too."""
    self._code, self._message = code, ''
    sys.stdout.flush()
    sys.stderr.flush()
    if self._started:
      _try(lambda: _store().wait_at_barrier(f'{_PREFIX}/goodbye', _GOODBYE))
      if self.launched.index == 0:
        time.sleep(1.0)  # the others first: they are connected to this one
    # At once: JAX would wait for processes that are gone.
    os._exit(code)

  def wait_for_reason(self, seconds: float) -> None:
    """Leaves, if another process says within that time why it failed."""
    self._watcher.join(seconds)

  def _watch(self):
    """Leaves when another process says that it failed."""
    while True:
      try:
        ended = _store().blocking_key_value_get(_ENDED, 60_000)
      except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
          return  # process 0 is gone: JAX is about to end this process
        continue
      ended = json.loads(ended)
      if ended and self._code is None:
        self._print(f'process {ended["process"]} ended: {ended["message"]}')
        self.leave(ended['code'])
      return

  def _on_abort(self):
    """What JAX ends a process with, in whatever thread."""
    if self._code is None and self._started:
      self._code = errors.EXIT_INTERRUPTED
      self._message = (
        'another process of the run is lost (the lines above may say which);'
        ' the same command goes on from the newest checkpoint'
      )
    elif self._code is None:
      self._code = errors.EXIT_USER
      looked_at = ', '.join(
        f'{name} = {value}' for name, value in self.launched.variables.items()
      )
      self._message = (
        f'error: the {self.launched.count} processes of the run did not find'
        f' each other within {self._start_timeout} s, as {self.launched.by}'
        f' said ({looked_at}); start all of them, or give --process_count 1 for'
        ' a process of its own'
      )
    if self._message:
      self._print(self._message)
    os._exit(self._code)

  def _print(self, text):
    # Not print: the main thread may hold the lock of the stream.
    os.write(2, f'process {self.launched.index}: {text}\n'.encode())


_member: _Member | None = None  # jax.distributed is one for a process, too


@contextlib.contextmanager
def joined(
  launched: Launched | None,
  *,
  start_timeout: int,
  heartbeat_timeout: int,
  check: Callable[[], None],
) -> Iterator[Processes]:
  """Starts jax.distributed, and shuts it down when all are done.

  After an exception in the block, the command must call `leave` once it has
  printed what it has to say.

  Args:
    launched: see `launched.find`; None: the only process.
    start_timeout: seconds to wait for the others.
    heartbeat_timeout: seconds of silence after which a process counts as lost.
    check: called while a process that is done waits for others; may raise.
  """
  global _member
  if launched is None:
    yield ALONE
    return
  if launched.index:
    command.set_prefix(f'process {launched.index}: ')
  _member = _Member(launched, start_timeout)
  _member.start(heartbeat_timeout)
  processes = Processes(launched.index, launched.count)
  try:
    yield processes
    processes.meet(check)
  except jax.errors.JaxRuntimeError as error:
    if any(word in str(error) for word in _LOST):
      _member.wait_for_reason(5.0)
      error = errors.ProcessLost(str(error).splitlines()[0])
    _member.say_why(error)
    raise error from None
  except BaseException as error:
    _member.say_why(error)
    raise
  _member.finish()
  _member = None


def leave(code: int) -> None:
  """Ends this process if it is one of several and could not finish."""
  if _member is not None:
    if sys.exc_info()[0] is not None:
      traceback.print_exc()
    _member.leave(code)


def _store():
  """The client of the coordination service; JAX has no public name for it."""
  from jax._src import distributed

  return distributed.global_state.client


def _wait_for(key, check):
  while True:
    check()
    try:
      return _store().blocking_key_value_get(key, _SLICE)
    except jax.errors.JaxRuntimeError as error:
      if 'DEADLINE_EXCEEDED' not in str(error):
        raise


def _try(function):
  """Calls it; the store may be gone, or another one have been first."""
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    function()


_ABORT_HANDLER = ctypes.CFUNCTYPE(None, ctypes.c_int)


def _handle_abort(function: Callable[[], None]) -> None:
  """Has a function called when the process aborts, in any thread.

  Handlers of the module signal run in the main thread only, which never comes
  to it here.
  """
  global _abort_handler  # the C library keeps no reference
  _abort_handler = _ABORT_HANDLER(lambda number: function())
  libc = ctypes.CDLL(None)
  libc.signal.argtypes = [ctypes.c_int, _ABORT_HANDLER]
  libc.signal(signal.SIGABRT, _abort_handler)

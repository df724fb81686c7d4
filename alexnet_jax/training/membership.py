"""A process' membership in a run of several: how it begins, and how it ends.

A process that fails says so in the store of JAX's coordination service, which
is in process 0, and leaves; a thread in every other process waits for that,
prints it and leaves with the same exit code.

A process that is killed, or cut off, sends no more heartbeats. After the
heartbeat timeout JAX tells the others and ends them with abort(), from a thread
of its own; if it is process 0 that is gone, at once. A handler turns that into
a message and the exit code of a run that can go on.
"""

from collections.abc import Callable
import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
import threading
import time

import jax

from alexnet_jax import cli
from alexnet_jax import errors
from alexnet_jax.training.launched import Launched

PREFIX = 'alexnet_jax'  # of all keys in the store
_ENDED = f'{PREFIX}/ended'  # the key that says how the run ended
_GOODBYE = 10_000  # ms that a process waits for the others before it leaves
_OWN_END = 3.0  # seconds that it has to say itself why it ends


class Member:
  """This process' membership in a run of several, from its start on."""

  def __init__(self, launched: Launched, start_timeout: int):
    self.launched = launched
    self._start_timeout = start_timeout
    self._started = False
    self._ending = threading.Event()  # the main thread is
    # What to leave with, and what is to be printed before.
    self._code = None
    self._message = ''
    self._watcher = threading.Thread(target=self._watch, daemon=True)

  def start(self, heartbeat_timeout: int, check: Callable[[], None]) -> None:
    """Waits for the others. In a thread: signals interrupt no call of JAX."""
    if address := self.launched.options.get('coordinator_address'):
      self._check_port(address)
    _handle_abort(self._on_abort)
    # It would take SIGTERM away from the handler of `guards.StopSignal`.
    jax.config.update('jax_enable_preemption_service', False)
    failures = []

    def initialize():
      try:
        jax.distributed.initialize(
          **self.launched.options,
          initialization_timeout=self._start_timeout,
          heartbeat_timeout_seconds=heartbeat_timeout,
        )
      except Exception as error:
        failures.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    while thread.is_alive():
      check()
      thread.join(0.2)
    if failures:
      raise errors.UserError(
        f'the processes of the run cannot meet: {failures[0]}'
        f' ({self._looked_at()})'
      ) from failures[0]
    self._started = True
    self._watcher.start()

  def _check_port(self, address):
    """Raises UserError if process 0 cannot listen; JAX may crash at that."""
    if self.launched.index:
      return
    host, port = address.rsplit(':', 1)
    local = 'coordinator_bind_address' in self.launched.options
    try:
      socket.create_server((host if local else '', int(port))).close()
    except (OSError, OverflowError) as error:
      raise errors.UserError(
        f'process 0 cannot listen on {address}: {error}; give a --coordinator'
        ' with another port'
      ) from error

  def finish(self) -> None:
    """Leaves a run that is done, after all others came here, too."""
    _try(lambda: store().key_value_set(_ENDED, json.dumps({})))
    self._watcher.join()
    jax.distributed.shutdown()

  def say_why(self, error: BaseException) -> None:
    """Tells the others, unless another one was first."""
    self._code, self._message = cli.outcome(error) or (
      errors.EXIT_FAILURE,
      f'{type(error).__name__}: {error}',
    )
    self._ending.set()
    if self._started:
      ended = {'process': self.launched.index, 'code': self._code}
      ended['message'] = self._message
      _try(lambda: store().key_value_set(_ENDED, json.dumps(ended)))

  def leave(self, code: int) -> None:
    """Ends this process, once the others know that they must end, too."""
    self._code, self._message = code, ''
    try:
      sys.stdout.flush()
      sys.stderr.flush()
      if self._started:
        _try(lambda: store().wait_at_barrier(f'{PREFIX}/bye', _GOODBYE))
        if self.launched.index == 0:
          time.sleep(1.0)  # the others first: they are connected to this one
    finally:
      # At once: JAX would wait for processes that are gone.
      os._exit(code)

  def wait_for_reason(self, seconds: float) -> None:
    """Leaves, if another process says within that time why it failed."""
    self._watcher.join(seconds)

  def _watch(self):
    """Leaves when another process says that it failed."""
    while True:
      try:
        ended = store().blocking_key_value_get(_ENDED, 60_000)
      except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
          return  # process 0 is gone: JAX is about to end this process
        continue
      break
    ended = json.loads(ended)
    # Where all fail for one reason, each says so itself.
    if ended and not self._ending.wait(_OWN_END):
      self._print(f'process {ended["process"]} ended: {ended["message"]}')
      self.leave(ended['code'])

  def _on_abort(self):
    """What JAX ends a process with, in a thread of its own."""
    try:
      if self._code is None:
        self._code, self._message = self._abort_reason()
      if self._message:
        self._print(self._message)
    finally:
      os._exit(self._code or errors.EXIT_FAILURE)

  def _abort_reason(self):
    if threading.current_thread() is threading.main_thread():
      return errors.EXIT_FAILURE, 'error: aborted; the lines above say why'
    if self._started:
      return errors.EXIT_INTERRUPTED, (
        'JAX ended this process: most likely another process of the run is lost'
        ' (the lines above may say which); the same command goes on from the'
        ' newest checkpoint'
      )
    return errors.EXIT_USER, (
      f'error: the {self.launched.count} processes of the run did not find'
      f' each other within {self._start_timeout} s, or JAX refused this one'
      f' (the lines above may say why). Looked at, in {self.launched.by}:'
      f' {self._looked_at()}. Start each of them once, with the same'
      ' coordinator and count; a process of its own takes --process_count 1'
    )

  def _looked_at(self):
    return ', '.join(
      f'{name} = {value}' for name, value in self.launched.variables.items()
    )

  def _print(self, text):
    # Not print: the main thread may hold the lock of the stream.
    with contextlib.suppress(OSError):
      os.write(2, f'process {self.launched.index}: {text}\n'.encode())


def store():
  """The client of the coordination service; JAX has no public name for it."""
  from jax._src import distributed

  return distributed.global_state.client


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

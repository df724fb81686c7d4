"""The processes of a run: they start together, agree, and end together.

Messages between the processes go through the key-value store of
JAX's coordination service, in process 0; arrays go through the devices, see
`parallel`.

A process that fails says so in that store and exits; a thread in every other
process waits for that, prints it and exits with the same code. A process that
is killed, or cut off, sends no more heartbeats: after the heartbeat timeout,
or at once where process 0 is gone, JAX aborts the others (exit code 134),
unless a collective of the devices breaks first (exit code 75). After either
code the same command goes on from the newest checkpoint.
"""

from collections.abc import Callable
from collections.abc import Iterator
import contextlib
import json
import os
import socket
import sys
import threading
import time
import traceback

import jax

from alexnet_jax import cli
from alexnet_jax import errors
from alexnet_jax.training.cluster import Cluster

_PREFIX = 'alexnet_jax'  # of all keys in the store
_ENDED = f'{_PREFIX}/ended'  # the key that says how the run ended
_WAIT_SLICE = 1000  # ms; between two of them Python handles signals
_EXIT_WAIT = 10_000  # ms that a process waits for the others before it exits
_OWN_REPORT = 3.0  # seconds that a process has to report its own failure
_LOST = ('Gloo', 'NCCL', 'UNAVAILABLE', 'ABORTED', 'CANCELLED')


class ProcessGroup:
  """One of the processes of a run, and its messages to the others.

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
    """True in process 0, which writes files and talks to the user."""
    return self.index == 0

  @property
  def is_alone(self) -> bool:
    """True if there is no other process."""
    return self.count == 1

  def gather(self, value, check: Callable[[], None]) -> list | None:
    """Returns the JSON values of all processes in process 0; elsewhere None.

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

  def broadcast(self, value, check: Callable[[], None]):
    """Returns process 0's JSON value in all processes; see `gather`."""
    if self.is_alone:
      return value
    name = self._next_name()
    if self.is_first:
      _store().key_value_set(name, json.dumps(value))
      return value
    return json.loads(_wait_for(name, check))

  def barrier(self, check: Callable[[], None]) -> None:
    """Waits until all processes are here; see `gather`."""
    self.gather(None, check)
    self.broadcast(None, check)

  def _next_name(self):
    self._calls += 1
    return f'{_PREFIX}/{self._calls}'


ALONE = ProcessGroup()
# jax.distributed is one for the whole process, and so is this.
_current = ALONE
_member: '_Member | None' = None


def current() -> ProcessGroup:
  """Returns the group that this process joined; ALONE outside of `joined`."""
  return _current


@contextlib.contextmanager
def joined(
  cluster: Cluster | None,
  *,
  start_timeout: int,
  heartbeat_timeout: int,
  check: Callable[[], None],
) -> Iterator[ProcessGroup]:
  """Starts jax.distributed, and shuts it down when all processes are done.

  After an exception in the block, the command must call `exit_process` once it
  has printed its message.

  Args:
    cluster: see `cluster.detect`; None: the only process.
    start_timeout: seconds to wait for the others.
    heartbeat_timeout: seconds of silence after which a process counts as lost.
    check: called while this process waits for the others to start, or to be
      done; may raise.

  Raises:
    UserError: if the processes do not find each other; `check` and the block
      may raise more.
    ProcessLost: if JAX reports a lost process in the block.
  """
  global _current, _member
  if cluster is None:
    yield ALONE
    return
  if cluster.index:
    cli.set_prefix(f'process {cluster.index}: ')
  _member = _Member(cluster)
  try:
    _member.start(start_timeout, heartbeat_timeout, check)
    _current = ProcessGroup(cluster.index, cluster.count)
    yield _current
    _current.barrier(check)
  except jax.errors.JaxRuntimeError as error:
    if any(word in str(error) for word in _LOST):
      _member.wait_for_reason(5.0)
      error = errors.ProcessLost(str(error).splitlines()[0])
    _member.report_failure(error)
    raise error from None
  except BaseException as error:
    _member.report_failure(error)
    raise
  _member.finish()
  _current, _member = ALONE, None


def exit_process(code: int) -> None:
  """Ends this process if it is one of several and could not finish."""
  if _member is not None:
    if sys.exc_info()[0] is not None:
      traceback.print_exc()
    _member.exit(code)


class _Member:
  """This process' part in a run of several, from its start to its end."""

  def __init__(self, cluster: Cluster):
    self._cluster = cluster
    self._started = False
    self._failing = threading.Event()  # the main thread has an error to report
    self._watcher = threading.Thread(target=self._watch, daemon=True)

  def start(self, timeout, heartbeat_timeout, check) -> None:
    """Waits for the others. In a thread: signals interrupt no call of JAX."""
    if address := self._cluster.options.get('coordinator_address'):
      self._check_port(address)
    # It would take SIGTERM away from the handler of `guards.StopSignal`.
    jax.config.update('jax_enable_preemption_service', False)
    failures = []

    def initialize():
      try:
        jax.distributed.initialize(
          **self._cluster.options,
          # At its own timeout JAX aborts the process.
          initialization_timeout=timeout + 60,
          heartbeat_timeout_seconds=heartbeat_timeout,
        )
      except Exception as error:
        failures.append(error)

    thread = threading.Thread(target=initialize, daemon=True)
    thread.start()
    deadline = time.monotonic() + timeout
    while thread.is_alive():
      check()
      thread.join(0.2)
      if thread.is_alive() and time.monotonic() > deadline:
        raise errors.UserError(
          f'the {self._cluster.count} processes of the run did not find each'
          f' other within {timeout} s. Looked at, in {self._cluster.source}:'
          f' {self._variables()}. Start each of them once, with the same'
          ' coordinator and count; a single process takes --process_count 1'
        )
    if failures:
      raise errors.UserError(
        f'the processes of the run cannot connect: {failures[0]}'
        f' ({self._variables()})'
      ) from failures[0]
    self._started = True
    self._watcher.start()

  def _variables(self):
    return ', '.join(
      f'{name} = {value}' for name, value in self._cluster.variables.items()
    )

  def _check_port(self, address):
    """Raises UserError if process 0 cannot listen; JAX may crash at that."""
    if self._cluster.index:
      return
    host, port = address.rsplit(':', 1)
    local = 'coordinator_bind_address' in self._cluster.options
    try:
      socket.create_server((host if local else '', int(port))).close()
    except (OSError, OverflowError) as error:
      raise errors.UserError(
        f'process 0 cannot listen on {address}: {error}; give a --coordinator'
        ' with another port'
      ) from error

  def finish(self) -> None:
    """Ends the membership in a run that is done, after all came here."""
    _try(lambda: _store().key_value_set(_ENDED, json.dumps({})))
    self._watcher.join()
    jax.distributed.shutdown()

  def report_failure(self, error: BaseException) -> None:
    """Tells the others why this process fails, unless another one did."""
    self._failing.set()
    if not self._started:
      return
    code, message = cli.outcome(error) or (
      errors.EXIT_FAILURE,
      f'{type(error).__name__}: {error}',
    )
    ended = {'process': self._cluster.index, 'code': code, 'message': message}
    _try(lambda: _store().key_value_set(_ENDED, json.dumps(ended)))

  def exit(self, code: int) -> None:
    """Exits, once the others know that they must end."""
    try:
      sys.stdout.flush()
      sys.stderr.flush()
      if self._started:
        _try(lambda: _store().wait_at_barrier(f'{_PREFIX}/exit', _EXIT_WAIT))
        if self._cluster.index == 0:
          time.sleep(1.0)  # the others first: they are connected to this one
    finally:
      # At once: JAX would wait for processes that are gone.
      os._exit(code)

  def wait_for_reason(self, seconds: float) -> None:
    """Exits if another process reports within that time why it failed."""
    self._watcher.join(seconds)

  def _watch(self):
    """Exits when another process reports that it failed."""
    while True:
      try:
        ended = json.loads(_store().blocking_key_value_get(_ENDED, 60_000))
        break
      except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
          return  # process 0 is gone: JAX aborts this process
    # Where all fail for one reason, each reports it itself.
    if ended and not self._failing.wait(_OWN_REPORT):
      self._print(f'process {ended["process"]} ended: {ended["message"]}')
      self.exit(ended['code'])

  def _print(self, text):
    # Not print: the main thread may hold the lock of the stream.
    with contextlib.suppress(OSError):
      os.write(2, f'process {self._cluster.index}: {text}\n'.encode())


def _store():
  """Returns the coordination service's client; JAX keeps it private."""
  from jax._src import distributed

  return distributed.global_state.client


def _wait_for(key, check):
  while True:
    check()
    try:
      return _store().blocking_key_value_get(key, _WAIT_SLICE)
    except jax.errors.JaxRuntimeError as error:
      if 'DEADLINE_EXCEEDED' not in str(error):
        raise


def _try(function):
  """Calls it; the store may be gone, or another process was first."""
  with contextlib.suppress(jax.errors.JaxRuntimeError):
    function()

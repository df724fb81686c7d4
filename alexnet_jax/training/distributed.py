"""The processes of a run: they are detected, start, agree and end together.

Messages go through the key-value store of JAX's coordination service, in
process 0. A process that fails says so there and exits; a thread in every other
one waits for that, prints it and exits with the same code, process 0 once its
save is complete. If one is killed or cut off, JAX aborts the others (exit code
134), unless a collective of the devices breaks first (75).
"""

from collections.abc import Callable, Iterator, Mapping
import contextlib
import dataclasses
import json
import os
import socket
import sys
import threading
import time
import traceback

import jax

from alexnet_jax import cli, errors
from alexnet_jax.errors import UserError

_ADDRESS, _COUNT = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES'
_INDEX, _KUBERNETES_INDEX = 'JAX_PROCESS_ID', 'JOB_COMPLETION_INDEX'
_SLURM = ('SLURM_NTASKS', 'SLURM_PROCID', 'SLURM_STEP_NODELIST')
_SLURM += ('SLURM_LOCALID',)
_MPI_COUNT, _MPI_URI = 'OMPI_COMM_WORLD_SIZE', 'OMPI_MCA_orte_hnp_uri'
# Launchers that give the number of processes, but not where process 0 is.
_OTHER_COUNTS = ('PMI_SIZE', 'PMIX_SIZE', 'WORLD_SIZE', _MPI_COUNT)
_FLAGS = '--coordinator HOST:PORT --process_index I --process_count N'

_PREFIX = 'alexnet_jax'  # of all keys in the store
_ENDED = f'{_PREFIX}/ended'  # the key that says how the run ended
_SAVED = f'{_PREFIX}/saved'  # the key of process 0 when it is ready to exit
_WAIT_SLICE = 1000  # ms; between two of them Python handles signals
_EXIT_WAIT = 10_000  # ms that a process waits for the others before it exits
_SAVE_WAIT = 60.0  # seconds that a save may take then
_OWN_REPORT = 3.0  # seconds that a process has to report its own failure
_NO_PROXY = 'no_grpc_proxy'  # a variable that gRPC reads
_unless_gone = contextlib.suppress(jax.errors.JaxRuntimeError)  # of the store
_LOST = ('Gloo', 'NCCL', 'UNAVAILABLE', 'ABORTED', 'CANCELLED')


@dataclasses.dataclass(frozen=True)
class Cluster:
  """Several processes, and which of them this one is."""

  source: str  # where it was found, for people
  index: int
  count: int
  options: dict  # of jax.distributed.initialize
  variables: dict  # flags or variables that were read


def detect(
  environ: Mapping[str, str],
  *,
  coordinator: str | None = None,
  process_index: int | None = None,
  process_count: int | None = None,
) -> Cluster | None:
  """Returns the cluster of this process; None if it is the only one.

  It looks at the flags of the command (a `process_count` of 1 ends it), at
  JAX_COORDINATOR_ADDRESS, JAX_NUM_PROCESSES and JAX_PROCESS_ID (or
  JOB_COMPLETION_INDEX, of Kubernetes), at srun of SLURM, and at mpirun of Open
  MPI. Raises UserError naming those that it read, where some are missing.
  """
  flags = {
    '--coordinator': coordinator,
    '--process_index': process_index,
    '--process_count': process_count,
  }
  if process_count == 1:
    return None
  if any(value is not None for value in flags.values()):
    return _explicit('flags', flags)
  if {_ADDRESS, _COUNT, _INDEX} & environ.keys():
    index = _INDEX if _INDEX in environ else _KUBERNETES_INDEX
    source = 'environment' if index == _INDEX else 'Kubernetes Indexed Job'
    numbers = {name: _number(environ, name) for name in (index, _COUNT)}
    return _explicit(source, {_ADDRESS: environ.get(_ADDRESS), **numbers})
  # Inside an allocation of several tasks any process sees the count, but only
  # srun gives it a step.
  if _number(environ, _SLURM[0], 1) > 1 and 'SLURM_JOB_ID' in environ:
    if not environ.keys() >= {*_SLURM}:
      raise _incomplete(environ, _SLURM, 'start it with srun')
    # With several tasks on a node JAX gives each the device of its number
    # there, unless SLURM gave each its own already.
    tasks = environ.get('SLURM_STEP_TASKS_PER_NODE', '1').split(',')
    several = any(task.partition('(')[0] != '1' for task in tasks)
    return _detected('SLURM', 'slurm', environ, _SLURM, several)
  if _number(environ, _MPI_COUNT, 1) > 1 and _MPI_URI in environ:
    read = (_MPI_COUNT, 'OMPI_COMM_WORLD_RANK', _MPI_URI)
    several = _number(environ, 'OMPI_COMM_WORLD_LOCAL_SIZE', 1) > 1
    return _detected('Open MPI', 'ompi', environ, read, several)
  for name in _OTHER_COUNTS:
    if _number(environ, name, 1) > 1:
      raise _incomplete(environ, (name, _ADDRESS, _COUNT, _INDEX))
  if _KUBERNETES_INDEX in environ:
    raise _incomplete(environ, (_KUBERNETES_INDEX, _ADDRESS, _COUNT))
  return None


def _explicit(source, named):
  """Returns the cluster of {name: value} of address, index and count."""
  coordinator, index, count = named.values()
  if None in named.values():
    raise _incomplete(named, named)
  host, _, port = coordinator.rpartition(':')
  if not (host and port.isdigit()):
    raise UserError(f'the coordinator is {coordinator!r}, not HOST:PORT')
  if not 0 <= index < count:
    raise UserError(
      f'the number of the process is {index}; it must be from 0 to'
      f' {count - 1}, as there are {count}'
    )
  if count == 1:
    return None
  options = {
    'coordinator_address': coordinator,
    'process_id': index,
    'num_processes': count,
    'local_device_ids': [],  # all
    'cluster_detection_method': 'deactivate',
  }
  if host in ('127.0.0.1', 'localhost'):
    # Or it would listen to the whole network.
    options['coordinator_bind_address'] = coordinator
  return Cluster(source, index, count, options, named)


def _detected(source, method, environ, read, several_on_host):
  """Returns the cluster of a launcher; `read` begins with count and index."""
  options = {'cluster_detection_method': method}
  visible = environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
  own = {'SLURM_GPUS_PER_TASK', 'SLURM_NTASKS_PER_GPU'} & environ.keys()
  if not several_on_host or own or (len(visible) == 1 and visible[0]):
    options['local_device_ids'] = []  # all that it sees
  count, index = (_number(environ, name) for name in read[:2])
  variables = {name: environ[name] for name in read}
  return Cluster(source, index, count, options, variables)


def _incomplete(values, names, hint=f'give {_FLAGS}'):
  read = [
    f'{name} is not set' if (v := values.get(name)) is None else f'{name} = {v}'
    for name in names
  ]
  return UserError(
    'several processes are expected, but this one cannot find the others:'
    f' {", ".join(read)}; {hint}, or --process_count 1 for a single process'
  )


def _number(environ, name, default=None):
  value = environ.get(name)
  if value is None:
    return default
  if not value.isdigit():
    raise UserError(f'{name} is {value!r}, not a number')
  return int(value)


class ProcessGroup:
  """One of the processes of a run, and its messages to the others.

  All must call the same methods in the same order. `check` is called every
  second of waiting, unless that is `patient`; it may raise. Process 0 calls
  `before_exit`, with the seconds it may take, if another process failed.
  """

  def __init__(
    self,
    index: int = 0,
    count: int = 1,
    check: Callable[[], None] = lambda: None,
  ):
    self.index = index
    self.count = count
    self.is_first = index == 0  # it writes files and talks to the user
    self.is_alone = count == 1
    self.before_exit: Callable[[float], None] = lambda seconds: None
    self._check = check
    self._calls = 0
    self._failing = threading.Event()  # the main thread has an error to report
    self.watcher = threading.Thread(target=self._watch, daemon=True)

  def gather(self, value, patient: bool = False) -> list | None:
    """Returns the JSON values of all processes in process 0; elsewhere None."""
    if self.is_alone:
      return [value]
    name = self._next_name()
    _store().key_value_set(f'{name}/{self.index}', json.dumps(value))
    if not self.is_first:
      return None
    names = [f'{name}/{index}' for index in range(self.count)]
    return [self._wait_for(name, patient) for name in names]

  def broadcast(self, value, patient: bool = False):
    """Returns process 0's JSON value in all processes."""
    if self.is_alone:
      return value
    name = self._next_name()
    if self.is_first:
      _store().key_value_set(name, json.dumps(value))
      return value
    return self._wait_for(name, patient)

  def barrier(self, patient: bool = False) -> None:
    """Waits until all processes are here."""
    self.gather(None, patient)
    self.broadcast(None, patient)

  def _next_name(self):
    self._calls += 1
    return f'{_PREFIX}/{self._calls}'

  def _wait_for(self, key, patient):
    while True:
      if not patient:
        self._check()
      try:
        return json.loads(_store().blocking_key_value_get(key, _WAIT_SLICE))
      except jax.errors.JaxRuntimeError as error:
        if 'DEADLINE_EXCEEDED' not in str(error):
          raise

  def report_failure(self, error: BaseException) -> BaseException:
    """Tells the others why this process fails; returns a plainer error."""
    if isinstance(error, jax.errors.JaxRuntimeError):
      if any(word in str(error) for word in _LOST):
        self.watcher.join(5.0)  # it exits if another says why it failed
        error = errors.ProcessLost(str(error).splitlines()[0])
    elif isinstance(error, RuntimeError) and 'gloo/transport' in str(error):
      error = UserError(
        f'the other processes cannot find this machine, {socket.gethostname()}:'
        ' its name has no address; add it to /etc/hosts or to the DNS'
      )
    self._failing.set()
    if self.watcher.ident:
      unknown = (errors.EXIT_FAILURE, f'{type(error).__name__}: {error}')
      code, message = cli.exit_code_and_message(error) or unknown
      ended = {'process': self.index, 'code': code, 'message': message}
      with _unless_gone:
        _store().key_value_set(_ENDED, json.dumps(ended))
    return error

  def exit(self, code: int) -> None:
    """Exits, once the others know that they must end."""
    try:
      if self.watcher.ident:  # they have met
        with _unless_gone:
          if self.is_first:
            self.before_exit(_SAVE_WAIT)
            _store().key_value_set(_SAVED, 'true')
          else:  # JAX would end process 0 if it missed one
            wait = int(1000 * _SAVE_WAIT) + _EXIT_WAIT
            _store().blocking_key_value_get(_SAVED, wait)
          _store().wait_at_barrier(f'{_PREFIX}/exit', _EXIT_WAIT)
        if self.is_first:
          time.sleep(1.0)  # the others first: they are connected to this one
    finally:
      # At once: JAX would wait for processes that are gone.
      os._exit(code)

  def _watch(self):
    """Exits when another process reports that it failed."""
    try:
      ended = self._wait_for(_ENDED, patient=True)
    except jax.errors.JaxRuntimeError:
      return  # process 0 is gone: JAX aborts this process
    # Where all fail for one reason, each reports it itself.
    if ended and not self._failing.wait(_OWN_REPORT):
      # Not print: the main thread may hold the lock of the stream.
      with contextlib.suppress(OSError):
        reason = f'process {ended["process"]} ended: {ended["message"]}'
        os.write(2, f'process {self.index}: {reason}\n'.encode())
      self.exit(ended['code'])


ALONE = ProcessGroup()
# jax.distributed is one for the whole process, and so is this.
_current = ALONE


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
  has printed its message. Timeouts, until all are there and of silence, are in
  seconds. Raises UserError if the processes do not find each other, and
  ProcessLost if JAX reports a lost one in the block.
  """
  global _current
  if cluster is None:
    yield ALONE
    return
  if cluster.index:
    cli.set_prefix(f'process {cluster.index}: ')
  _current = ProcessGroup(cluster.index, cluster.count, check)
  try:
    _connect(cluster, start_timeout, heartbeat_timeout, check)
    _current.watcher.start()
    yield _current
    _current.barrier(patient=True)  # the run is done: a signal is too late
  except BaseException as error:
    raise _current.report_failure(error)  # noqa: B904
  with _unless_gone:  # or another process was first
    _store().key_value_set(_ENDED, json.dumps({}))
  _current.watcher.join()
  jax.distributed.shutdown()
  _current = ALONE


def exit_process(code: int) -> None:
  """Ends this process if it is one of several and could not finish."""
  if _current is not ALONE:
    if sys.exc_info()[0] is not None:
      with contextlib.suppress(OSError):  # nobody may read it
        traceback.print_exc()
    _current.exit(code)


def _connect(cluster, timeout, heartbeat_timeout, check):
  """Waits for the others. In a thread: signals interrupt no call of JAX."""
  is_local = 'coordinator_bind_address' in cluster.options
  _check_port(cluster, is_local)
  # Its warning of proxies comes long before the timeout; see `_proxies`.
  jax.config.update('jax_check_proxy_envs', False)
  if is_local:  # gRPC would ask a proxy for this machine's own address
    given = os.environ.get(_NO_PROXY, os.environ.get('no_proxy'))
    hosts = filter(None, (given, '127.0.0.1', 'localhost'))
    os.environ[_NO_PROXY] = ','.join(hosts)
  # It would take SIGTERM away from the handler of `guards.StopSignal`.
  jax.config.update('jax_enable_preemption_service', False)
  read = ', '.join(f'{k} = {v}' for k, v in cluster.variables.items())
  failures = []

  def initialize():
    try:
      jax.distributed.initialize(
        **cluster.options,
        initialization_timeout=timeout + 60,  # there JAX aborts the process
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
      raise UserError(
        f'the {cluster.count} processes of the run did not find each other'
        f' within {timeout} s. Looked at, in {cluster.source}: {read}'
        f'{"" if is_local else _proxies()}. Start each of them once, with the'
        ' same coordinator and count; --process_count 1 is for a single one'
      )
  if failures:
    raise UserError(
      f'the processes of the run cannot connect: {failures[0]} ({read})'
    ) from failures[0]
  if is_local:
    _connect_by_loopback()


def _check_port(cluster, is_local):
  """Raises UserError if process 0 cannot listen; JAX may crash at that."""
  address = cluster.options.get('coordinator_address')
  if cluster.index or not address:
    return
  host, port = address.rsplit(':', 1)
  try:
    socket.create_server((host if is_local else '', int(port))).close()
  except (OSError, OverflowError) as error:
    raise UserError(
      f'process 0 cannot listen on {address}: {error}; give a --coordinator'
      ' with another port'
    ) from error


def _connect_by_loopback():
  """Lets Gloo listen to this machine alone, whatever address its name has."""
  from jax._src import xla_bridge
  from jax._src.lib import _jax

  if jax.config.jax_cpu_collectives_implementation != 'gloo':
    return

  def make_client():
    collectives = _jax.make_gloo_tcp_collectives(
      distributed_client=_store(), hostname='127.0.0.1'
    )
    return xla_bridge.make_cpu_client(collectives)

  xla_bridge.register_backend_factory(
    'cpu', make_client, priority=0, fail_quietly=False
  )


def _proxies():
  """Names the proxies that gRPC asks for an address, which may be why."""
  names = ('grpc_proxy', 'https_proxy', 'http_proxy')
  found = ', '.join(f'{n} = {os.environ[n]}' for n in names if n in os.environ)
  return found and f'; {found} ({_NO_PROXY}=HOST leaves a host out)'


def _store():
  """Returns the coordination service's client; JAX keeps it private."""
  from jax._src import distributed

  return distributed.global_state.client

"""Detects the processes of a run: flags, JAX_*, SLURM, Open MPI, Kubernetes.

In this order: the flags of the command; JAX_COORDINATOR_ADDRESS,
JAX_NUM_PROCESSES and JAX_PROCESS_ID (or JOB_COMPLETION_INDEX, which an Indexed
Job of Kubernetes sets); srun of SLURM; mpirun of Open MPI. The variables of
SLURM and Open MPI are read by jax.distributed itself.
"""

from collections.abc import Mapping
import dataclasses

from alexnet_jax.errors import UserError

COORDINATOR, COUNT = 'JAX_COORDINATOR_ADDRESS', 'JAX_NUM_PROCESSES'
INDEX, KUBERNETES_INDEX = 'JAX_PROCESS_ID', 'JOB_COMPLETION_INDEX'
SLURM_COUNT, SLURM_STEP = 'SLURM_NTASKS', 'SLURM_STEP_NODELIST'
MPI_COUNT, MPI_URI = 'OMPI_COMM_WORLD_SIZE', 'OMPI_MCA_orte_hnp_uri'
# Launchers that give the number of processes, but not where process 0 is.
OTHER_COUNTS = ('PMI_SIZE', 'PMIX_SIZE', 'WORLD_SIZE', MPI_COUNT)
_FLAGS = '--coordinator HOST:PORT --process_index I --process_count N'


@dataclasses.dataclass(frozen=True)
class Cluster:
  """The cluster that this process is one of several processes of.

  Attributes:
    source: where it was found, for people.
    index: number of this process.
    count: number of processes.
    options: arguments of jax.distributed.initialize.
    variables: flags or variables that were read, {name: value}.
  """

  source: str
  index: int
  count: int
  options: dict
  variables: dict[str, str]


def detect(
  environ: Mapping[str, str],
  *,
  coordinator: str | None = None,
  process_index: int | None = None,
  process_count: int | None = None,
) -> Cluster | None:
  """Returns the cluster of this process; None if it is the only one.

  Args:
    environ: the environment.
    coordinator: HOST:PORT where process 0 listens, from the command's flags.
    process_index: from the flags.
    process_count: from the flags; 1 skips all detection.

  Raises:
    UserError: if several processes were expected, but flags or variables that
      are needed to find them are missing; it names those that were read.
  """
  flags = {
    '--coordinator': coordinator,
    '--process_index': process_index,
    '--process_count': process_count,
  }
  if process_count == 1:
    return None
  if any(value is not None for value in flags.values()):
    return _explicit('flags', flags, *flags.values())
  if COORDINATOR in environ or COUNT in environ or INDEX in environ:
    return _from_variables(environ)
  # Inside an allocation of several tasks any process sees the count, but only
  # srun gives it a step.
  if _number(environ, SLURM_COUNT, 1) > 1 and 'SLURM_JOB_ID' in environ:
    return _from_slurm(environ)
  if _number(environ, MPI_COUNT, 1) > 1 and MPI_URI in environ:
    return _from_mpi(environ)
  for name in OTHER_COUNTS:
    if _number(environ, name, 1) > 1:
      raise _incomplete(environ, (name, COORDINATOR, COUNT, INDEX), name)
  if KUBERNETES_INDEX in environ:
    looked_at = (KUBERNETES_INDEX, COORDINATOR, COUNT)
    raise _incomplete(environ, looked_at, KUBERNETES_INDEX)
  return None


def _explicit(source, named, coordinator, index, count):
  if coordinator is None or index is None or count is None:
    given = ', '.join(f'{k} = {v}' for k, v in named.items() if v is not None)
    absent = ', '.join(k for k, v in named.items() if v is None)
    raise UserError(
      f'{given} means several processes, but {absent} is missing; give all'
      f' three ({_FLAGS}), or --process_count 1 for a single process'
    )
  host, colon, port = coordinator.rpartition(':')
  if not (host and colon and port.isdigit()):
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
  variables = {name: str(value) for name, value in named.items()}
  return Cluster(source, index, count, options, variables)


def _from_variables(environ):
  index = INDEX if INDEX in environ else KUBERNETES_INDEX
  source = 'environment' if INDEX in environ else 'Kubernetes Indexed Job'
  named = {name: environ.get(name) for name in (COORDINATOR, index, COUNT)}
  return _explicit(
    source,
    named,
    named[COORDINATOR],
    _number(environ, index, None),
    _number(environ, COUNT, None),
  )


def _from_slurm(environ):
  looked_at = (SLURM_COUNT, 'SLURM_PROCID', 'SLURM_LOCALID', SLURM_STEP)
  if any(name not in environ for name in looked_at):
    raise _incomplete(environ, looked_at, SLURM_COUNT, 'start it with srun')
  # With several tasks on a node JAX gives each the device of its number there,
  # unless SLURM gave each its own already.
  tasks = environ.get('SLURM_STEP_TASKS_PER_NODE', '1').split(',')
  several = any(task.partition('(')[0] != '1' for task in tasks)
  return _detected('slurm', environ, looked_at, 'SLURM_PROCID', several)


def _from_mpi(environ):
  looked_at = (MPI_COUNT, 'OMPI_COMM_WORLD_RANK', MPI_URI)
  several = _number(environ, 'OMPI_COMM_WORLD_LOCAL_SIZE', 1) > 1
  return _detected('ompi', environ, looked_at, 'OMPI_COMM_WORLD_RANK', several)


def _detected(method, environ, looked_at, index, several_on_host):
  options = {'cluster_detection_method': method}
  visible = environ.get('CUDA_VISIBLE_DEVICES', '').split(',')
  own = 'SLURM_GPUS_PER_TASK' in environ or 'SLURM_NTASKS_PER_GPU' in environ
  if not several_on_host or own or (len(visible) == 1 and visible[0]):
    options['local_device_ids'] = []  # all that it sees
  return Cluster(
    {'slurm': 'SLURM', 'ompi': 'Open MPI'}[method],
    _number(environ, index, None),
    _number(environ, looked_at[0], None),
    options,
    {name: environ[name] for name in looked_at},
  )


def _incomplete(environ, looked_at, expecting, hint=''):
  values = ', '.join(
    f'{name} = {environ[name]}' if name in environ else f'{name} is not set'
    for name in looked_at
  )
  return UserError(
    f'{expecting} is {environ[expecting]}, but this process cannot find the'
    f' others ({values}); {hint or "give " + _FLAGS}, or --process_count 1 for'
    ' a single process'
  )


def _number(environ, name, default):
  value = environ.get(name)
  if value is None:
    return default
  if not value.isdigit():
    raise UserError(f'{name} is {value!r}, not a number')
  return int(value)

"""What the processes of a run must have in common."""

from collections.abc import Callable
import socket

import jax
import ml_collections

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError
from alexnet_jax.training.checkpoint_contents import versions
from alexnet_jax.training.console import Console
from alexnet_jax.training.processes import Processes

# Where the data lies, and how fast it is read, is each process's own affair.
_OWN_KEYS = ('data.path', 'data.num_threads', 'data.prefetch')
_MOST_ROWS = 32  # of the table


def check_processes(
  processes: Processes,
  config: ml_collections.ConfigDict,
  console: Console,
  check: Callable[[], None],
) -> None:
  """Compares what the processes are, and shows them in one table.

  Args:
    processes: of the run.
    config: that this process was given.
    console: of process 0.
    check: called while this process waits for others; may raise.

  Raises:
    UserError: in process 0, which ends the others: if the processes have
      different numbers or kinds of devices, configs or versions, or fewer
      processes came than expected.
  """
  if processes.is_alone:
    return
  devices = jax.local_devices()
  flat = config_lib.flatten(config_lib.from_dict(config.to_dict()))
  own = {
    'host': socket.gethostname(),
    'number of processes': str(processes.count),
    'devices': f'{len(devices)} x {devices[0].device_kind}',
    'processes': jax.process_count(),
    'versions': versions(),
    'config': {
      key: repr(value) for key, value in flat.items() if key not in _OWN_KEYS
    },
  }
  everybody = processes.gather(own, check)
  if everybody is None:
    return
  for index, other in enumerate(everybody):
    _refuse_other(index, other, own)
  if own['processes'] != processes.count:
    raise UserError(
      f'{processes.count} processes were started, but JAX sees'
      f' {own["processes"]}: are all of them on the same kind of device?'
    )
  rows = {
    f'process {index}': f'{other["host"]}: {other["devices"]}'
    for index, other in enumerate(everybody[:_MOST_ROWS])
  }
  if more := processes.count - len(rows):
    rows['...'] = f'{more} more'
  title = f'{processes.count} processes, {jax.device_count()} devices'
  console.table(title, rows)


def check_data(
  processes: Processes, record: dict, check: Callable[[], None]
) -> None:
  """Compares the data that the processes found.

  Args:
    processes: of the run.
    record: `build.data_record` of this process.
    check: see `check_processes`.

  Raises:
    UserError: in process 0, naming what differs.
  """
  everybody = processes.gather(record, check) or []
  for index, other in enumerate(everybody):
    if changes := _changes(everybody[0], other):
      raise UserError(
        f'process {index} has other data than process 0:\n  '
        + '\n  '.join(changes)
        + '\nGive all processes the same data'
      )


def _refuse_other(index, other, own):
  for name in ('number of processes', 'devices', 'config', 'versions'):
    if other[name] == own[name]:
      continue
    changes = (
      _changes(own[name], other[name])
      if isinstance(own[name], dict)
      else [f'{own[name]} -> {other[name]}']
    )
    raise UserError(
      f'process {index}, on {other["host"]}, differs from process 0 in {name}:'
      '\n  '
      + '\n  '.join(changes)
      + '\nStart all processes with the same command, in the same environment'
    )


def _changes(before, after):
  return [
    f'{key}: {before.get(key)} -> {after.get(key)}'
    for key in sorted(before.keys() | after.keys())
    if before.get(key) != after.get(key)
  ]

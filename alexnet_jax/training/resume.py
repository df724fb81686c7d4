"""Decides if a run may start or go on: its processes, config, data, devices.

A run goes on exactly as if it had not been interrupted, or it is refused with
the reason; so is one whose processes differ. `checkpoint` decides which of its
checkpoints counts.
"""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import pathlib
import socket

import jax
from jax.sharding import Mesh

from alexnet_jax import cli
from alexnet_jax import config as config_lib
from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from alexnet_jax.training import schedule
from alexnet_jax.training import writers
from alexnet_jax.training.distributed import ProcessGroup
from alexnet_jax.training.progress import SavedRun
from alexnet_jax.training.progress import versions

# Where the data lies, and how fast it is read, may differ between processes.
_OWN_KEYS = ('data.path', 'data.num_threads', 'data.prefetch', 'init.workdir')
_MOST_ROWS = 32  # of the table of processes


def check_processes(
  processes: ProcessGroup,
  config,
  console: cli.Console,
  check: Callable[[], None],
) -> None:
  """Compares the processes of a run, and shows them in one table.

  Raises:
    UserError: in process 0, which ends the others: if they differ in devices,
      config or versions, or fewer came than expected.
  """
  if processes.is_alone:
    return
  devices = jax.local_devices()
  flat = config_lib.flatten(config_lib.from_dict(config.to_dict()))
  own = {
    'processes': processes.count,
    'devices': f'{len(devices)} x {devices[0].device_kind}',
    **{f'config.{k}': repr(flat[k]) for k in flat if k not in _OWN_KEYS},
    **versions(),
  }
  everybody = processes.gather([socket.gethostname(), own], check)
  if everybody is None:
    return
  for index, (host, other) in enumerate(everybody):
    if changes := _changes(own, other, show=str):
      raise UserError(
        f'process {index}, on {host}, differs from process 0:{changes}\nStart'
        ' all processes with the same command, in the same environment'
      )
  if jax.process_count() != processes.count:
    raise UserError(
      f'{processes.count} processes were started, but JAX sees'
      f' {jax.process_count()}: are all of them on the same kind of device?'
    )
  rows = {
    f'process {index}': f'{host}: {other["devices"]}'
    for index, (host, other) in enumerate(everybody[:_MOST_ROWS])
  }
  if more := processes.count - len(rows):
    rows['...'] = f'{more} more'
  title = f'{processes.count} processes, {jax.device_count()} devices'
  console.table(title, rows)


def _changes(before, now, show=repr):
  """Returns a line `key: before -> now` of each value that differs."""
  return ''.join(
    f'\n  {key}: {show(old)} -> {show(new)}'
    for key, (old, new) in files.differences(before, now).items()
  )


def check_config(config, workdir: pathlib.Path, stored) -> None:
  """Raises UserError naming the keys with which it would train otherwise."""
  if changes := config_lib.training_changes(stored, config):
    length = any(change.startswith('config.num_') for change in changes)
    raise UserError(
      f'{workdir} was trained with another config:\n  '
      + '\n  '.join(changes)
      + '\nTake these values, or another --workdir, or delete this one'
      + ' (the length of a run shapes its cosine schedule)' * length
    )


def check_history(
  workdir: pathlib.Path, config, num_examples: int, has_folder: bool
) -> None:
  """Refuses to begin anew over the history of a run that had checkpoints.

  A run makes the folder of its checkpoints before its first row, and completes
  a save before the next one begins: beyond the second one it had a checkpoint.

  Args:
    config: counts if the run's folder has none.
    num_examples: of the training split.
    has_folder: whether a folder for checkpoints was there.
  """
  rows = writers.read_rows(workdir)
  last = max((row['step'] for row in rows), default=0)
  with contextlib.suppress(UserError):
    config = config_lib.read_config(workdir)
  durations = schedule.resolve_durations(config, num_examples)
  intervals = durations.eval_every, durations.save_every
  saves = sum(
    any(schedule.due(step, every) for every in intervals)
    for step in range(1, last)
  )
  if rows and (not has_folder or saves >= 2):
    raise UserError(
      f'{workdir} has the history of a run up to step {last}, but no'
      ' checkpoint: put its checkpoints/ back, or mount its disk; to begin anew'
      ' take another --workdir, or delete this one'
    )


def check_data_record(
  workdir: pathlib.Path, before: Mapping, now: Mapping
) -> None:
  """Raises UserError naming what differs in the data that the run had.

  Args:
    before: `build.data_record` when the run began.
    now: the same of the data as it is.
  """
  if changes := _changes({key: before.get(key) for key in now}, now):
    raise UserError(
      f'the data of {workdir} has changed since its checkpoint:{changes}'
      '\nPut the data back, or take another --workdir'
    )


def check_same_data(
  processes: ProcessGroup, record: Mapping, check: Callable[[], None]
) -> None:
  """Raises UserError in process 0 if the processes found different data."""
  everybody = processes.gather(record, check) or []
  for index, other in enumerate(everybody):
    if changes := _changes(everybody[0], other):
      raise UserError(
        f'process {index} has other data than process 0:{changes}'
        '\nGive all processes the same data'
      )


def check_microbatches(config, mesh: Mesh, saved: SavedRun | None) -> None:
  """Refuses other statistics of batch norms than the run had.

  They are those of a microbatch, whose size also depends on the number of
  devices. The UserError names the value that gives as many as before.
  """
  number = build.num_microbatches(config, mesh)
  has_batch_norm = config.model.norm == 'batch' or config.model.norm_hidden
  before = saved.num_microbatches if saved else number
  if before == number or not has_batch_norm:
    return
  device_batch_size = config.global_batch_size // mesh.size
  hint = (
    f'give --config.microbatch_size={device_batch_size // before}'
    if device_batch_size % before == 0
    else f'{before} microbatches are not possible on {mesh.size} devices: take'
    ' another number of devices'
  )
  raise UserError(
    f'the run computed its batches in {before} microbatches; with {mesh.size}'
    f' devices and config.microbatch_size = {config.microbatch_size} they'
    f' are {number}, which changes the statistics of its batch norms: {hint}'
  )


def describe(
  saved: SavedRun, config, step: int, mesh: Mesh, processes: ProcessGroup
) -> list[str]:
  """Returns lines: where a run goes on, and what is different now."""
  lines = [f'goes on from checkpoint {step}']
  stored, given = map(config_lib.flatten, (saved.config, config))
  lines += [
    f'config.{key}: {old!r} -> {new!r}'
    for key, (old, new) in files.differences(stored, given).items()
  ]
  machine = {'devices': saved.devices, 'processes': saved.processes}
  now = {**versions(), 'devices': mesh.size, 'processes': processes.count}
  changes = files.differences({**saved.versions, **machine}, now)
  if changes:
    text = ', '.join(f'{k} {old} -> {new}' for k, (old, new) in changes.items())
    lines.append(
      f'with {text}: the batches are the same, but sums may round differently'
      ' from here on'
    )
  return lines

"""Sets a run up: its parts, and if it may begin, or go on where it ended.

A run goes on exactly as if it had not been interrupted, or it is refused with
the reason; so is one whose processes differ. `checkpoint` decides which of its
checkpoints counts.
"""

from collections.abc import Callable
from collections.abc import Mapping
import contextlib
import dataclasses
import pathlib
import socket

import jax
from jax.sharding import Mesh
import ml_collections
import numpy as np

from alexnet_jax import cli
from alexnet_jax import config as config_lib
from alexnet_jax import files
from alexnet_jax import validation
from alexnet_jax.data import loader as loader_lib
from alexnet_jax.data import pixel_statistics
from alexnet_jax.errors import Interrupted
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from alexnet_jax.training import distributed
from alexnet_jax.training import guards
from alexnet_jax.training import parallel
from alexnet_jax.training import schedule
from alexnet_jax.training import state as state_lib
from alexnet_jax.training import transfer
from alexnet_jax.training.accounting import Clock
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.distributed import ProcessGroup
from alexnet_jax.training.loggers import check_installed
from alexnet_jax.training.loggers import Logger
from alexnet_jax.training.progress import Progress
from alexnet_jax.training.progress import SavedRun
from alexnet_jax.training.progress import SaveTimer
from alexnet_jax.training.progress import TrainLog
from alexnet_jax.training.progress import versions
from alexnet_jax.training.writers import MetricWriter
from alexnet_jax.training.writers import NoWriter
from alexnet_jax.training.writers import read_rows

# Where the data lies, and how fast it is read, may differ between processes.
_OWN_KEYS = ('data.path', 'data.num_threads', 'data.prefetch', 'init.workdir')
_MOST_ROWS = 32  # of the table of processes


@dataclasses.dataclass
class RunContext:
  """The parts of a run that stay the same while it trains."""

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  stop: guards.StopSignal
  console: cli.Console
  processes: ProcessGroup
  mesh: Mesh
  train_loader: loader_lib.Loader
  eval_loader: loader_lib.Loader
  class_names: list[str]
  shapes: state_lib.TrainState  # see `build.state_shapes`
  durations: schedule.Durations
  steps: build.Steps
  frozen_steps: build.Steps  # until `durations.unfreeze_step`
  lighting: np.ndarray | None  # see `pixel_statistics.Statistics`
  data_record: Mapping

  # Of several processes none may stop by itself. A signal goes to the devices
  # with the next batch, and comes back to all processes with the sums of that
  # step: so all stop after the same one, and no step waits for another message.
  # JAX' `reached_preemption_sync_point` would take SIGTERM away from Python:
  # waits before the first step and evaluations would not end. A save whose time
  # has come is agreed upon in the same way: process 0 asks for it.

  def to_devices(self, batch: dict, **flags: bool) -> dict:
    """Starts the transfer of a batch, and of this process' flags."""
    if not self.processes.is_alone:
      flags['stop'] = self.stop.received is not None
      shape = batch['label'].shape
      batch = batch | {name: np.full(shape, on) for name, on in flags.items()}
    return parallel.batch_to_devices(batch, self.mesh, self.config.parallel)

  def check_stop(self, stop_asked: bool = False) -> None:
    """Raises Interrupted if a signal came; `stop_asked`: to any process."""
    if self.processes.is_alone:
      self.stop.check()
    elif stop_asked:
      raise Interrupted(self.stop.received or 'a signal to another process')

  def is_frozen(self, step: int) -> bool:
    """Returns True if some parameters are frozen in update `step + 1`."""
    until = self.durations.unfreeze_step
    return bool(self.config.init.freeze) and (not until or step < until)

  def steps_at(self, step: int) -> build.Steps:
    """Returns the step functions for update `step + 1`."""
    return self.frozen_steps if self.is_frozen(step) else self.steps


@dataclasses.dataclass
class LoopState:
  """The parts of a run that change while it trains."""

  state: state_lib.TrainState
  progress: Progress
  step: int
  batches: parallel.DeviceBatches
  log: TrainLog
  writer: MetricWriter | NoWriter  # of process 0, and of the others
  checkpoints: Checkpoints
  clock: Clock
  timer: SaveTimer
  learning_rate: float | None = None  # of the state; None: not known yet
  phase: int = 0  # entries of config.schedule.lr_multipliers that have begun


def prepare(
  config,
  workdir: pathlib.Path,
  stop: guards.StopSignal,
  console: cli.Console,
  saved: SavedRun | None = None,
  mean_limit: int | None = None,
) -> RunContext:
  """Opens the data, and builds everything that needs no state.

  Args:
    workdir: the run's folder, for the statistics of the pixels.
    stop: ends the computation of the statistics.
    mean_limit: number of examples for the statistics, for trials; None: all.

  Raises UserError if config, data, network and `saved` do not fit together.
  """
  check_installed(config.loggers)
  processes, mesh = distributed.current(), parallel.make_mesh()
  loaders = [build.make_loader(config, s) for s in ('train', 'validation')]
  training, held_out = (loader.source for loader in loaders)
  build.check_examples(config, training, held_out)
  weighted = build.with_class_weights(config, training)
  record = build.data_record(config, training, held_out)
  check_same_data(processes, record, stop.check)
  if saved is not None:
    check_data_record(workdir, saved.data, record)
  class_names = list(training.class_names)
  if saved is None and processes.is_first:
    transfer.check_init(config, class_names)
  shapes, frozen = build.state_shapes(config, len(class_names)), frozenset()
  if config.init.freeze:
    frozen = transfer.frozen_names(shapes, config.init.freeze)
  pixels = pixel_statistics.no_statistics(build.pixel_options(config))
  if processes.is_first:
    total = mean_limit or training.num_examples
    console.start(total, 0, 'image', 'mean of the pixels')

    def advance(done):
      stop.check()
      console.advance(done)

    try:
      pixels = build.find_pixel_statistics(
        config, loaders[0], workdir, advance, mean_limit
      )
    finally:
      console.stop()
  processes.barrier(stop.check)  # it may have taken minutes
  mean, lighting = parallel.broadcast_arrays((pixels.mean, pixels.lighting))
  steps = build.make_steps(weighted, mesh, mean)
  return RunContext(
    config=config,
    workdir=workdir,
    stop=stop,
    console=console,
    processes=processes,
    mesh=mesh,
    train_loader=loaders[0],
    eval_loader=loaders[1],
    class_names=class_names,
    shapes=shapes,
    durations=schedule.resolve_durations(config, training.num_examples),
    steps=steps,
    frozen_steps=build.make_steps(weighted, mesh, mean, frozen=frozen)
    if frozen
    else steps,
    lighting=lighting,
    data_record=record,
  )


def initial_state(run: RunContext) -> tuple[state_lib.TrainState, Progress]:
  """Returns state (on the devices) and progress of a run that begins."""
  config, processes = run.config, run.processes
  if processes.is_first:
    state = transfer.first_state(config, run.class_names, run.console)
  else:
    state = jax.tree.map(
      lambda leaf: np.zeros(leaf.shape, leaf.dtype), run.shapes
    )
  processes.barrier(run.stop.check)
  tree = jax.device_get(state_lib.saved_tree(state))
  state = state.replace(**parallel.broadcast_arrays(tree))
  progress = Progress(schedule.PlateauState(build.learning_rate(config)))
  return parallel.replicate(state, run.mesh), progress


def start_loop(
  run: RunContext, checkpoints: Checkpoints, clock: Clock, on_step=None
) -> LoopState:
  """Restores the newest checkpoint that counts, or begins at step 0.

  Raises UserError if the checkpoints do not fit, or none of them counts.
  """
  config, workdir, source = run.config, run.workdir, run.train_loader.source
  template = run.shapes
  restored = checkpoints.restore_newest(state_lib.saved_tree(template))
  if restored is None:
    if run.processes.is_first:
      has_folder = checkpoints.has_folder
      check_history(workdir, config, source.num_examples, has_folder)
    state, progress = initial_state(run)
    position = {'next_index': 0}
  else:
    tree, saved = restored
    state = template.replace(**parallel.replicate(tree, run.mesh))
    position, progress = saved.iterator, saved.progress
    for line in describe(
      saved, config, int(state.step), run.mesh, run.processes
    ):
      run.console.line(line)
  step, num_steps = int(state.step), run.durations.num_steps
  if step > num_steps:
    raise UserError(
      f'{workdir} is at step {step} already, beyond the {num_steps} steps'
      ' that config.num_epochs or config.num_steps asks for'
    )
  iterator = build.make_train_iter(
    config, run.train_loader, num_steps, run.mesh, run.lighting
  )
  iterator.set_state(position)
  log, writer = TrainLog(progress, step, on_step), NoWriter()
  timer = SaveTimer(config.save_every_minutes)

  def to_devices(batch):
    asks = run.processes.is_first and timer.asks()
    log.save_asked |= asks and run.processes.is_alone
    flags = {'save': asks} if config.save_every_minutes else {}
    return run.to_devices(batch, **flags)

  batches = parallel.DeviceBatches(iterator, to_devices, clock.waiting)
  if run.processes.is_first:
    names = filter(None, config.loggers.split(','))
    told = [Logger(name, config, workdir, step) for name in names]
    steps = {'step': step, 'evaluated_step': progress.evaluated_step}
    writer = MetricWriter(workdir, **steps, loggers=told)
  num_classes = len(run.class_names)
  clock.mfu_per_image = build.mfu_per_image(config, num_classes, run.mesh)
  clock.first_step = step
  return LoopState(
    state, progress, step, batches, log, writer, checkpoints, clock, timer
  )


def check_processes(
  processes: ProcessGroup,
  config,
  console: cli.Console,
  check: Callable[[], None],
) -> None:
  """Compares the processes of a run, and shows them in one table.

  Raises UserError in process 0, which ends the others, if they differ in
  devices, config or versions, or fewer came than expected.
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
      + ' (the length of a run shapes its schedule)' * length
    )


def check_history(
  workdir: pathlib.Path, config, num_examples: int, has_folder: bool
) -> None:
  """Refuses to begin anew over the history of a run that had checkpoints.

  A run makes the folder of its checkpoints before its first row, and completes
  a save before the next one begins: beyond the second one it had a checkpoint.
  The config counts if the run's folder has none; `has_folder` says whether a
  folder for checkpoints was there.
  """
  rows = read_rows(workdir)
  last = max((row['step'] for row in rows), default=0)
  with contextlib.suppress(UserError):
    config = validation.read_config(workdir)
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
  """Raises UserError naming what differs in two of `build.data_record`."""
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

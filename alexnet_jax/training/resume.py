"""Sets a run up: its parts, and if it may begin, or go on where it ended.

A run goes on exactly as if it had not been interrupted, or it is refused with
the reason; so is one whose processes differ.
"""

import dataclasses
import pathlib
import socket

import jax
from jax.sharding import Mesh
import numpy as np

from alexnet_jax import cli, config as config_lib, files
from alexnet_jax.data import pixel_statistics
from alexnet_jax.errors import Interrupted, UserError
from alexnet_jax.training import (
  build,
  distributed,
  guards,
  parallel,
  progress as progress_lib,
  schedule,
  state as state_lib,
  transfer,
  writers,
)
from alexnet_jax.training.accounting import Clock
from alexnet_jax.training.checkpoint import Checkpoints, FOLDER
from alexnet_jax.training.progress import DataRecord, Progress, SavedRun

# Where the data lies, and how fast it is read, may differ between processes.
_OWN_KEYS = ('data.path', 'data.num_threads', 'data.prefetch', 'init.workdir')
_TRIAL_EXAMPLES = 256  # of the mean of a trial


class RunContext:
  """The parts of a run that stay the same while it trains."""

  def __init__(
    self,
    config,
    workdir: pathlib.Path,
    stop: guards.StopSignal,
    console: cli.Console,
    saved: SavedRun | None = None,
    is_trial: bool = False,
  ):
    """Opens the data, and builds everything that needs no state.

    The statistics of the pixels are kept in `workdir`; those of a trial are of
    few examples. Raises UserError if config, data, network and `saved` do not
    fit together.
    """
    self.config, self.workdir, self.is_trial = config, workdir, is_trial
    self.stop, self.console = stop, console
    writers.check_installed(config.loggers)
    self.processes, self.mesh = distributed.current(), parallel.make_mesh()
    self.train_loader = build.make_loader(config, 'train')
    self.eval_loader = build.make_loader(config, 'validation')
    training, held_out = self.train_loader.source, self.eval_loader.source
    build.check_examples(config, training, held_out)
    weighted = build.with_class_weights(config, training)
    self.data_record = build.data_record(config, training, held_out)
    hint = 'Give all processes the same data'
    own = dataclasses.asdict(self.data_record)
    _gather_equal(self.processes, own, hint)
    if saved is not None:
      check_data_record(workdir, saved.data, self.data_record)
    self.class_names = list(training.class_names)
    if saved is None and self.processes.is_first:
      transfer.check_init(config, self.class_names)
    self.shapes = build.state_shapes(config, len(self.class_names))
    frozen = transfer.frozen_names(self.shapes, config.init.freeze)
    self.durations = schedule.resolve_durations(config, training.num_examples)
    pixels = self._find_pixel_statistics()
    self.processes.barrier()  # it may have taken minutes
    pixels = parallel.broadcast_arrays((pixels.mean, pixels.lighting))
    mean, self.lighting = pixels  # see `pixel_statistics.Statistics`
    self.steps = build.make_steps(weighted, self.mesh, mean, frozen=frozen)

  def _find_pixel_statistics(self):
    config, loader = self.config, self.train_loader
    if not self.processes.is_first:
      return pixel_statistics.no_statistics(build.pixel_options(config))
    limit = _TRIAL_EXAMPLES if self.is_trial else None
    total = limit or loader.source.num_examples
    self.console.start(total, 0, 'image', 'mean of the pixels')

    def advance(done):
      self.stop.check()
      self.console.advance(done)

    try:
      return build.find_pixel_statistics(
        config, loader, self.workdir, advance, limit
      )
    finally:
      self.console.stop()

  # Of several processes none may stop by itself. A signal goes to the devices
  # with the next batch, and comes back to all with the sums of that step: so
  # all stop after the same one, and no step waits for another message. JAX'
  # `reached_preemption_sync_point` would take SIGTERM away from Python. A save
  # whose time has come is agreed upon in the same way: process 0 asks for it.

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


def initial_state(run: RunContext) -> tuple[state_lib.TrainState, Progress]:
  """Returns state (on the devices) and progress of a run that begins."""
  if run.processes.is_first:
    state = transfer.first_state(run.config, run.class_names, run.console)
  else:
    state = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), run.shapes)
  run.processes.barrier()
  tree = jax.device_get(state_lib.saved_tree(state))
  state = state.replace(**parallel.broadcast_arrays(tree))
  progress = Progress(schedule.PlateauState(run.config.optimizer.learning_rate))
  return parallel.replicate(state, run.mesh), progress


class LoopState:
  """The parts of a run that change while it trains."""

  def __init__(
    self, run: RunContext, checkpoints: Checkpoints, clock: Clock, on_step=None
  ):
    """Restores the newest checkpoint that counts, or begins at step 0.

    Raises UserError if the checkpoints do not fit, or none of them counts.
    """
    config, workdir, is_first = run.config, run.workdir, run.processes.is_first
    self.checkpoints, self.clock = checkpoints, clock
    restored = checkpoints.restore_newest(state_lib.saved_tree(run.shapes))
    if restored is None:
      if is_first:
        check_history(workdir)
        checkpoints.folder.mkdir(exist_ok=True)  # see `check_history`
      self.state, self.progress = initial_state(run)
      position = {'next_index': 0}
    else:
      tree, saved = restored
      self.state = run.shapes.replace(**parallel.replicate(tree, run.mesh))
      position, self.progress = saved.iterator, saved.progress
      machine = {'devices': run.mesh.size, 'processes': run.processes.count}
      step = int(self.state.step)
      for line in describe(saved, config, step, machine):
        run.console.line(line)
    self.step, num_steps = int(self.state.step), run.durations.num_steps
    if self.step > num_steps:
      raise UserError(
        f'{workdir} is at step {self.step} already, beyond the {num_steps}'
        ' steps that config.num_epochs or config.num_steps asks for'
      )
    iterator = build.make_train_iter(
      config, run.train_loader, num_steps, run.mesh, run.lighting
    )
    iterator.set_state(position)
    minutes = config.save_every_minutes
    self.log = progress_lib.TrainLog(self.progress, self.step, on_step, minutes)

    def to_devices(batch):
      asks = is_first and self.log.is_save_due()
      self.log.save_asked |= asks and run.processes.is_alone
      return run.to_devices(batch, **({'save': asks} if minutes else {}))

    self.batches = parallel.DeviceBatches(iterator, to_devices, clock.waiting)
    self.writer = writers.NoWriter()
    if is_first:
      names = filter(None, config.loggers.split(','))
      self.writer = writers.MetricWriter(
        workdir,
        step=self.step,
        evaluated_step=self.progress.evaluated_step,
        loggers=[writers.Logger(n, config, workdir, self.step) for n in names],
      )
    num_classes = len(run.class_names)
    clock.mfu_per_image = build.mfu_per_image(config, num_classes, run.mesh)
    clock.first_step = self.step
    self.learning_rate = None  # of the state; None: not known yet
    self.phase = 0  # entries of config.schedule.lr_multipliers that have begun


def check_processes(config, console: cli.Console) -> None:
  """Compares the processes of a run, and shows how many they are.

  Raises UserError in process 0, which ends the others, if they differ in
  devices, config or versions, or fewer came than expected.
  """
  processes = distributed.current()
  if processes.is_alone:
    return
  devices = jax.local_devices()
  flat = config_lib.flatten(config)
  own = {
    'processes': processes.count,
    'devices': f'{len(devices)} x {devices[0].device_kind}',
    **{f'config.{k}': flat[k] for k in flat if k not in _OWN_KEYS},
    **progress_lib.versions(),
  }
  hint = 'Start all processes with the same command, in the same environment'
  _gather_equal(processes, own, hint)
  if jax.process_count() != processes.count:
    raise UserError(
      f'{processes.count} processes were started, but JAX sees'
      f' {jax.process_count()}: are all of them on the same kind of device?'
    )
  console.line(f'{processes.count} processes, {jax.device_count()} devices')


def _gather_equal(processes, own, hint):
  """Raises UserError in process 0 unless all have equal dicts."""
  everybody = processes.gather([socket.gethostname(), own]) or []
  for index, (host, other) in enumerate(everybody):
    if changes := _changes(everybody[0][1], other):
      raise UserError(
        f'process {index}, on {host}, differs from process 0:{changes}\n{hint}'
      )


def _changes(before, now):
  """Returns a line `key: before -> now` of each value that differs."""
  return ''.join(
    f'\n  {key}: {old!r} -> {new!r}'
    for key, (old, new) in files.differences(before, now).items()
  )


def check_config(config, workdir: pathlib.Path, stored) -> None:
  """Raises UserError naming the keys with which it would train otherwise."""
  if changes := config_lib.training_changes(stored, config):
    length = any(change.startswith('config.num_') for change in changes)
    raise UserError(
      f'{workdir} was trained with another config:\n  '
      + '\n  '.join(changes)
      + '\nGive the values before the arrows, or another --workdir, or delete'
      + ' that folder'
      + ' (the length of a run shapes its schedule)' * length
    )


def check_history(workdir: pathlib.Path) -> None:
  """Refuses to begin anew over the history of a run that had checkpoints.

  A run makes their folder before its first row, and saves after an evaluation,
  once the save before is complete.
  """
  rows = writers.read_rows(workdir)
  last = max((row['step'] for row in rows), default=0)
  saves = sum('eval/loss' in row and row['step'] < last for row in rows)
  if rows and (saves >= 2 or not (workdir / FOLDER).is_dir()):
    raise UserError(
      f'{workdir} has the history of a run up to step {last}, but no'
      ' checkpoint: put its checkpoints/ back, or mount its disk; to begin anew'
      ' take another --workdir, or delete this one'
    )


def check_data_record(
  workdir: pathlib.Path, before: DataRecord, now: DataRecord
) -> None:
  """Raises UserError naming what differs in two of `build.data_record`."""
  if changes := _changes(*map(dataclasses.asdict, (before, now))):
    raise UserError(
      f'the data of {workdir} has changed since its checkpoint:{changes}'
      '\nPut the data back, or take another --workdir'
    )


def check_microbatches(config, mesh: Mesh, saved: SavedRun | None) -> None:
  """Refuses other statistics of batch norms than the run had.

  They are those of a microbatch, whose size also depends on the number of
  devices.
  """
  number = build.num_microbatches(config, mesh)
  before = saved.num_microbatches if saved else number
  if before == number or config.model.norm != 'batch':
    return
  raise UserError(
    f'the run computed its batches in {before} microbatches; with {mesh.size}'
    f' devices and config.microbatch_size = {config.microbatch_size} they'
    f' are {number}, which changes the statistics of its batch norms: take'
    f' another number of devices, or a microbatch_size that gives {before}'
  )


def describe(saved: SavedRun, config, step: int, machine: dict) -> list[str]:
  """Returns lines: where a run goes on, and what is different now.

  `machine` has the numbers of devices and processes.
  """
  stored, given = map(config_lib.flatten, (saved.config, config))
  changes = files.differences(stored, given).items()
  lines = [f'config.{key}: {old!r} -> {new!r}' for key, (old, new) in changes]
  before = {**saved.versions, **{key: getattr(saved, key) for key in machine}}
  now = {**progress_lib.versions(), **machine}
  if changes := files.differences(before, now).items():
    text = ', '.join(f'{key} {old} -> {new}' for key, (old, new) in changes)
    lines.append(
      f'with {text}: the batches are the same, but sums may round differently'
      ' from here on'
    )
  return [f'goes on from checkpoint {step}', *lines]

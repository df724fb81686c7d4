"""A run before its first step: data, devices, state, what is on disk."""

import dataclasses
import pathlib

import jax
import ml_collections

from alexnet_jax import assemble
from alexnet_jax import config as config_lib
from alexnet_jax.data import loader
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import saved_run
from alexnet_jax.training import guards
from alexnet_jax.training import parallel
from alexnet_jax.training import schedule
from alexnet_jax.training import state as state_lib
from alexnet_jax.training import transfer
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.checkpoint import versions
from alexnet_jax.training.console import Console
from alexnet_jax.training.console import Speed
from alexnet_jax.training.progress import Progress
from alexnet_jax.training.progress import TrainLog
from alexnet_jax.training.writers import MetricWriter


@dataclasses.dataclass
class Run:
  """The parts of a run that stay the same while it trains."""

  config: ml_collections.ConfigDict
  workdir: pathlib.Path
  stop: guards.StopSignal
  console: Console
  mesh: jax.sharding.Mesh
  train_loader: loader.Loader
  eval_loader: loader.Loader
  num_classes: int
  durations: assemble.Durations
  steps: assemble.Steps
  frozen_steps: assemble.Steps  # until `durations.unfreeze_step`
  data_record: dict

  def to_devices(self, batch: dict) -> dict:
    return parallel.batch_to_devices(batch, self.mesh, self.config.parallel)

  def is_frozen(self, step: int) -> bool:
    """Whether some parameters wait while update `step + 1` is made."""
    until = self.durations.unfreeze_step
    return bool(self.config.init.freeze) and (not until or step < until)

  def steps_at(self, step: int) -> assemble.Steps:
    """The step functions for update `step + 1`."""
    return self.frozen_steps if self.is_frozen(step) else self.steps

  def replicate(self, tree):
    return parallel.replicate(tree, self.mesh)


@dataclasses.dataclass
class Live:
  """What changes while a run trains."""

  state: state_lib.TrainState
  progress: Progress
  step: int
  batches: parallel.DeviceBatches
  log: TrainLog
  writer: MetricWriter
  checkpoints: Checkpoints
  speed: Speed
  rate: float | None = None  # that the state holds; None: not known yet


def prepare(
  config, path, mesh, stop, console, saved=None, mean_limit=None
) -> Run:
  """Opens the data, and builds everything that needs no state.

  Args:
    config: of the run.
    path: the run's folder, for the mean of the pixels.
    mesh: the devices.
    stop: ends the computation of the mean.
    console: shows its progress.
    saved: the JSON object of the newest checkpoint, if there is one.
    mean_limit: number of examples that the mean is taken of, for trials; None:
      all.

  Raises:
    UserError: if the data is unfit for the config, or not that of `saved`.
  """
  loaders = [assemble.make_loader(config, s) for s in ('train', 'validation')]
  training, held_out = (loader.source for loader in loaders)
  num_examples, num_classes = training.num_examples, len(training.class_names)
  assemble.make_model(config, num_classes)  # refuses a wrong number of classes
  if num_classes < 2:
    raise UserError(f'{training.name} has one class; two are needed at least')
  if not held_out.num_examples:
    raise UserError(f'{held_out.name} has no examples')
  if num_examples < config.global_batch_size:
    raise UserError(
      f'config.global_batch_size is {config.global_batch_size}, but there are'
      f' {num_examples} training examples'
    )
  record = assemble.data_record(config, training, held_out)
  if saved is not None:
    _check_data(path, saved['data'], record)
  console.start(mean_limit or num_examples, 0, 'image', 'mean of the pixels')

  def advance(done):
    stop.check()
    console.advance(done)

  try:
    mean = assemble.pixel_mean(config, loaders[0], path, advance, mean_limit)
  finally:
    console.stop()
  steps, frozen = assemble.make_steps(config, mesh, mean), frozenset()
  if config.init.freeze:
    model = assemble.make_model(config, num_classes)
    state = jax.eval_shape(lambda: assemble.make_state(config, model))
    frozen = transfer.frozen_names(state, config.init.freeze)
  return Run(
    config=config,
    workdir=path,
    stop=stop,
    console=console,
    mesh=mesh,
    train_loader=loaders[0],
    eval_loader=loaders[1],
    num_classes=num_classes,
    durations=assemble.durations(config, num_examples),
    steps=steps,
    frozen_steps=(
      assemble.make_steps(config, mesh, mean, frozen=frozen)
      if frozen
      else steps
    ),
    data_record=record,
  )


def check_config(config, path: pathlib.Path, saved: dict | None) -> None:
  """Refuses a config that trains otherwise than the run's checkpoints did.

  Args:
    config: that the command was given.
    path: the run's folder.
    saved: the JSON object of its newest checkpoint, if there is one.

  Raises:
    UserError: naming the keys that differ.
  """
  if saved is None:
    return
  stored = config_lib.from_dict(saved['config'])
  if changes := config_lib.training_changes(stored, config):
    raise UserError(
      f'{path} was trained with another config:\n  '
      + '\n  '.join(changes)
      + '\nTake these values, or another --workdir'
      + (
        ' (the length of a run shapes its cosine schedule)'
        if config.schedule.name == 'cosine'
        else ''
      )
    )


def write_config(config, path: pathlib.Path) -> None:
  """Writes config.json into the run's folder, for people to read."""
  temporary = path / f'{config_lib.CONFIG_FILE}.tmp'
  temporary.write_text(config_lib.to_json(config))
  temporary.replace(path / config_lib.CONFIG_FILE)


def create(run: Run) -> tuple[state_lib.TrainState, Progress]:
  """The state and progress of a run that begins."""
  model = assemble.make_model(run.config, run.num_classes)
  state = run.replicate(assemble.make_state(run.config, model))
  init = run.config.init
  if init.workdir:
    _, _, other = saved_run.restore(init.workdir, init.checkpoint, run.mesh)
    state = transfer.start_from(state, other, init.skip, init.workdir)
    run.console.line(
      f'starts with the weights of {init.workdir}, step {int(other.step)}'
    )
  rate = run.config.optimizer.learning_rate
  return state, Progress(schedule.PlateauState(rate))


def restore_or_create(run: Run, checkpoints: Checkpoints) -> Live:
  """The newest checkpoint that counts, or step 0.

  Raises:
    UserError: if the checkpoints do not fit, or none of them counts.
  """
  model = assemble.make_model(run.config, run.num_classes)
  state = jax.eval_shape(lambda: assemble.make_state(run.config, model))
  restored = checkpoints.restore_newest(
    parallel.replicated_template(state_lib.saved_tree(state), run.mesh)
  )
  if restored is None:
    state, progress = create(run)
    position = {'next_index': 0}
  else:
    tree, saved = restored
    state, position = state.replace(**tree), saved['iterator']
    progress = Progress.from_json(saved['progress'])
    _show_restored(run, saved, int(state.step))
  step, num_steps = int(state.step), run.durations.num_steps
  if step > num_steps:
    raise UserError(
      f'{run.workdir} is at step {step} already, beyond the {num_steps} steps'
      ' that config.num_epochs or config.num_steps asks for'
    )
  iterator = assemble.make_train_iter(run.config, run.train_loader, num_steps)
  iterator.set_state(position)
  batches = parallel.DeviceBatches(iterator, run.to_devices)
  log = TrainLog(progress, step)
  log.saved_step = step if restored else None
  writer = MetricWriter(
    run.workdir, step=step, evaluated_step=progress.evaluated_step
  )
  speed = Speed(run.config.global_batch_size, batches)
  return Live(state, progress, step, batches, log, writer, checkpoints, speed)


def _show_restored(run, saved, step):
  """Says where the run goes on, and what may round otherwise than before."""
  run.console.line(f'goes on from checkpoint {step}')
  here = {**versions(), 'devices': run.mesh.size}
  before = {**saved['versions'], 'devices': saved['devices']}
  if changes := [
    f'{name} {before.get(name)} -> {value}'
    for name, value in here.items()
    if before.get(name) != value
  ]:
    run.console.line(
      f'with {", ".join(changes)}: the run is right, but not bit for bit the'
      ' one it would have been'
    )


def _check_data(path, before, now):
  """Refuses to go on with other batches than the run had."""
  changes = [
    f'{key}: {before.get(key)!r} -> {value!r}'
    for key, value in now.items()
    if before.get(key) != value
  ]
  if changes:
    raise UserError(
      f'the data of {path} has changed since its checkpoint:\n  '
      + '\n  '.join(changes)
      + '\nPut the data back, or take another --workdir'
    )

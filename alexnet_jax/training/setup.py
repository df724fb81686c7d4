"""A run before its first step: data, devices, state, what is on disk."""

import dataclasses
import pathlib

import jax

from alexnet_jax import assemble
from alexnet_jax import config as config_lib
from alexnet_jax.data import pipeline
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation.saved_run import state_template
from alexnet_jax.training import guards
from alexnet_jax.training import parallel
from alexnet_jax.training import schedule
from alexnet_jax.training import state as state_lib
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.console import Console
from alexnet_jax.training.console import Speed
from alexnet_jax.training.progress import Progress
from alexnet_jax.training.progress import TrainLog
from alexnet_jax.training.writers import MetricWriter


@dataclasses.dataclass
class Run:
  """The parts of a run that stay the same while it trains."""

  config: object
  workdir: pathlib.Path
  stop: guards.StopSignal
  console: Console
  mesh: jax.sharding.Mesh
  train_loader: pipeline.Loader
  eval_loader: pipeline.Loader
  num_classes: int
  durations: assemble.Durations
  steps: assemble.Steps
  data_record: dict

  def to_devices(self, batch: dict) -> dict:
    return parallel.batch_to_devices(batch, self.mesh, self.config.parallel)

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


def prepare(config, path, mesh, stop, console, mean_limit=None) -> Run:
  """Opens the data, and builds everything that needs no state."""
  loaders = [assemble.make_loader(config, s) for s in ('train', 'validation')]
  num_examples = loaders[0].source.num_examples
  num_classes = len(loaders[0].source.class_names)
  assemble.make_model(config, num_classes)  # refuses a wrong number of classes
  if num_examples < config.global_batch_size:
    raise UserError(
      f'config.global_batch_size is {config.global_batch_size}, but there are'
      f' {num_examples} training examples'
    )
  record = assemble.data_record(config, loaders[0].source)
  console.start(mean_limit or num_examples, 0, 'image', 'mean of the pixels')

  def advance(done):
    stop.check()
    console.advance(done)

  try:
    mean = assemble.pixel_mean(config, loaders[0], path, advance, mean_limit)
  finally:
    console.stop()
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
    steps=assemble.make_steps(config, mesh, mean),
    data_record=record,
  )


def check_config(config, path: pathlib.Path, steps: list[int]) -> None:
  """Writes the config into the run's folder.

  Args:
    config: that the command was given.
    path: the run's folder.
    steps: of its checkpoints.

  Raises:
    UserError: if there are checkpoints that another config has trained.
  """
  file = path / config_lib.CONFIG_FILE
  if steps and file.exists():
    stored = config_lib.from_json(file.read_text())
    if changes := config_lib.training_changes(stored, config):
      raise UserError(
        f'{path} was trained with another config:\n  '
        + '\n  '.join(changes)
        + '\nTake these values, or another --workdir'
      )
  temporary = file.with_suffix('.tmp')
  temporary.write_text(config_lib.to_json(config))
  temporary.replace(file)


def create(run: Run) -> tuple[state_lib.TrainState, Progress]:
  """The state and progress of a run that begins."""
  model = assemble.make_model(run.config, run.num_classes)
  state = run.replicate(assemble.make_state(run.config, model))
  rate = run.config.optimizer.learning_rate
  return state, Progress(schedule.PlateauState(rate))


def restore_or_create(run: Run, checkpoints: Checkpoints) -> Live:
  """The newest checkpoint, or step 0."""
  state, progress = create(run)
  position = {'next_index': 0}
  restored = checkpoints.restore_newest(state_template(state, run.mesh))
  if restored is not None:
    tree, saved = restored
    state = state.replace(**tree)
    position = saved['iterator']
    _check_data(run, saved['data'], position, int(state.step))
    progress = Progress.from_json(saved['progress'])
    run.console.line(f'goes on from checkpoint {int(state.step)}')
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


def _check_data(run, saved_record, position, step):
  """Refuses to go on with other batches than the run had."""
  changes = [
    f'{key}: {saved_record.get(key)!r} -> {value!r}'
    for key, value in run.data_record.items()
    if saved_record.get(key) != value
  ]
  if position['next_index'] != step:
    changes.append(f'position: {position["next_index"]} at step {step}')
  if changes:
    raise UserError(
      f'the data of {run.workdir} has changed since its checkpoint:\n  '
      + '\n  '.join(changes)
      + '\nPut the data back, or take another --workdir'
    )

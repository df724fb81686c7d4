"""train_and_evaluate: build, restore, loop."""

import contextlib
import dataclasses
import logging
import pathlib
import time

import jax
import numpy as np

from alexnet_jax import assemble
from alexnet_jax import config as config_lib
from alexnet_jax.data import pipeline
from alexnet_jax.errors import Interrupted
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation.histograms import histograms
from alexnet_jax.evaluation.measure import evaluate
from alexnet_jax.evaluation.saved_run import final_step
from alexnet_jax.evaluation.saved_run import state_template
from alexnet_jax.training import guards
from alexnet_jax.training import parallel
from alexnet_jax.training import schedule
from alexnet_jax.training import state as state_lib
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.console import Console
from alexnet_jax.training.console import duration
from alexnet_jax.training.console import Speed
from alexnet_jax.training.progress import Progress
from alexnet_jax.training.progress import TrainLog
from alexnet_jax.training.writers import METRICS_FILE
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


def train_and_evaluate(
  config, workdir: str, stop: guards.StopSignal, console: Console
) -> dict:
  """Trains from the newest checkpoint of `workdir`, or from the beginning.

  Args:
    config: validated, see `config.load_config`.
    workdir: the run's folder; made if it is missing.
    stop: asks the run to save and end.
    console: shows what happens.

  Returns:
    The last evaluation's metrics, step, parameters, state_digest and
    images_per_second of the training alone.

  Raises:
    UserError: if config, data or checkpoints do not fit.
    Interrupted: after the state was saved, if `stop` received a signal.
    NonFiniteLossError: if the loss is lost.
  """
  path = pathlib.Path(workdir)
  mesh = parallel.make_mesh()
  parallel.check_batch_size(config.global_batch_size, mesh.size)
  path.mkdir(parents=True, exist_ok=True)
  with contextlib.ExitStack() as stack:
    checkpoints = Checkpoints(path, keep=config.checkpoint.keep)
    stack.callback(checkpoints.close)
    _check_config(config, path, checkpoints.steps())
    run = prepare(config, path, mesh, stop, console)
    live = _restore_or_create(run, checkpoints)
    stack.callback(live.writer.close)
    _show_start(run, live)
    _loop(run, live)
    checkpoints.wait()
    _restore_best(run, live)
    return _finish(run, live)


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


def _check_config(config, path, steps):
  """Refuses a config that trains otherwise than the run's checkpoints did."""
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


def _restore_or_create(run: Run, checkpoints: Checkpoints) -> Live:
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


def _loop(run: Run, live: Live) -> None:
  """Trains to the end, or to a signal."""
  config, durations, progress = run.config, run.durations, live.progress
  key = assemble.dropout_key(config)
  flat_step = -(-config.guards.flat_loss_steps // config.log_every_steps)
  flat_step *= config.log_every_steps  # the log point that checks
  run.console.start(durations.num_steps, live.step, 'step', 'training')
  try:
    if _evaluation_due(run, live):  # the run ended before it was done
      _evaluate(run, live)
    while live.step < durations.num_steps and not progress.stopping.stopped:
      run.stop.check()
      _apply_rate(run, live)
      batch = live.batches.take()
      if _histograms_due(run, live):
        _write_histograms(run, live, batch, key)
      # Whatever crosses to the devices here without being asked to would make
      # them wait in every step.
      with jax.transfer_guard_host_to_device('disallow'):
        live.state, sums = run.steps.train(live.state, batch, key)
      live.step += 1
      live.batches.fetch()  # while the devices work
      live.log.add(live.step, sums)
      live.speed.count(live.log)
      run.console.advance(live.step)
      if live.step % config.log_every_steps == 0:
        _log(run, live, check_flat=live.step == flat_step)
      if _evaluation_due(run, live):
        _evaluate(run, live)
        _save(run, live)
      elif schedule.due(live.step, durations.save_every):
        _save(run, live)
  except Interrupted:
    _save(run, live)
    live.checkpoints.wait()
    run.console.line(f'saved step {live.step} in {live.checkpoints.folder}')
    raise
  finally:
    live.speed.pause()
    run.console.stop()


def _apply_rate(run, live):
  """Gives the state the rate of its next update; a transfer only on change."""
  config = run.config
  rate = schedule.rate_at(
    live.step,
    name=config.schedule.name,
    learning_rate=live.progress.plateau.learning_rate,
    num_steps=run.durations.num_steps,
    factor=config.schedule.factor,
    drop_steps=run.durations.drop_steps,
    warmup_steps=run.durations.warmup_steps,
    min_learning_rate=config.schedule.min_learning_rate,
  )
  if rate != live.rate:
    live.rate = rate
    live.state = state_lib.with_learning_rate(
      live.state, run.replicate(np.float32(rate))
    )


def _log(run, live, check_flat):
  """One row of the history."""
  means = live.log.take()
  speed = live.speed.interval()
  live.writer.scalars(live.step, {**means, 'learning_rate': live.rate, **speed})
  text = f'loss {means["train/loss"]:.4f}, rate {live.rate:.2g}'
  left = ''
  if speed:
    text += (
      f', {speed["images_per_second"]:.0f} images/s,'
      f' {speed["data_wait_fraction"]:.1%} waiting for data'
    )
    images = (
      run.durations.num_steps - live.step
    ) * run.config.global_batch_size
    left = f', {duration(images / speed["images_per_second"])} left'
  run.console.values(text, f'step {live.step}/{run.durations.num_steps}', left)
  if check_flat:
    warning = guards.flat_loss_warning(
      means['train/loss'], run.num_classes, live.step
    )
    if warning:
      logging.getLogger(__name__).warning(warning)


def _evaluation_due(run, live):
  durations = run.durations
  return live.progress.evaluated_step < live.step and (
    schedule.due(live.step, durations.eval_every)
    or live.step == durations.num_steps
  )


def _evaluate(run, live):
  """Evaluates, and tells the schedule, early stopping and the user."""
  live.speed.pause()
  live.log.flush()
  start = time.perf_counter()
  values = _measure(run, live.state)
  old_rate = live.progress.plateau.learning_rate
  _update_progress(run, live.progress, values, live.step)
  live.writer.scalars(live.step, values)
  seconds = time.perf_counter() - start
  run.console.line(
    f'step {live.step}, epoch {live.step / run.durations.steps_per_epoch:.2f}:'
    f' validation loss {values["eval/loss"]:.4f},'
    f' top-1 {values["eval/top1"]:.4f}, top-5 {values["eval/top5"]:.4f}'
    f' ({duration(seconds)})'
  )
  if live.progress.plateau.learning_rate != old_rate:
    run.console.line(
      f'learning rate {old_rate:.3g} ->'
      f' {live.progress.plateau.learning_rate:.3g}: a plateau of'
      f' {run.config.schedule.monitor}'
    )
  live.speed.resume()


def _measure(run, state):
  """Metrics of a state on the validation split."""
  return evaluate(
    run.steps.evaluate,
    state,
    assemble.make_eval_iter(run.config, run.eval_loader),
    run.to_devices,
    lambda batches_done: run.stop.check(),
  )


def _update_progress(run, progress, values, step):
  config = run.config
  progress.evaluations += 1
  progress.evaluated_step = step
  progress.last_evaluation = values
  best = schedule.EarlyStopping(mode=config.checkpoint.mode)
  progress.best = best.update(
    progress.best, values[config.checkpoint.monitor], step
  )
  if config.schedule.name == 'plateau':
    plateau = schedule.ReduceOnPlateau(
      mode=config.schedule.mode,
      factor=config.schedule.factor,
      patience=config.schedule.patience,
      threshold=config.schedule.threshold,
      cooldown=config.schedule.cooldown,
      min_learning_rate=config.schedule.min_learning_rate,
    )
    progress.plateau = plateau.update(
      progress.plateau, values[config.schedule.monitor]
    )
  stopping = config.early_stopping
  if stopping.enabled:
    progress.stopping = schedule.EarlyStopping(
      mode=stopping.mode,
      patience=stopping.patience,
      threshold=stopping.threshold,
    ).update(progress.stopping, values[stopping.monitor], step)


def _histograms_due(run, live):
  """Whether the next update leads to an evaluation that has histograms."""
  every = run.config.histogram_every_evals
  due = schedule.due(live.step + 1, run.durations.eval_every)
  return every and due and (live.progress.evaluations + 1) % every == 0


def _write_histograms(run, live, batch, key):
  """Histograms of the parameters and of the gradients about to be applied."""
  live.speed.pause()
  grads = run.steps.grad(live.state, batch, key)
  for group, tree in (('params', live.state.params), ('grads', grads)):
    for name, (counts, edges) in histograms(tree).items():
      live.writer.histogram(live.step, f'{group}/{name}', counts, edges)
  live.speed.resume()


def _save(run, live):
  """Starts to save the state; waits only for what it copies."""
  live.speed.pause()
  live.log.flush()  # raises before a lost state could be saved
  live.writer.sync()
  progress = live.progress
  live.checkpoints.save(
    state_lib.saved_tree(live.state),
    {
      'progress': progress.to_json(),
      'data': run.data_record,
      'iterator': live.batches.iterator_state,
      'config': run.config.to_dict(),
    },
    keep_steps={progress.best.best_step, progress.stopping.best_step},
  )
  live.log.saved_step = live.step
  live.speed.resume()


def _restore_best(run, live):
  """Ends with the best state if early stopping is asked to."""
  step = final_step(live.progress.to_json(), run.config, live.step)
  if step != live.step:
    tree, _ = live.checkpoints.restore(
      step, state_template(live.state, run.mesh)
    )
    live.state = live.state.replace(**tree)
    live.progress.last_evaluation = _measure(run, live.state)
    run.console.line(f'the best state, of step {step}, is restored')


def _show_start(run, live):
  config, durations = run.config, run.durations
  devices = run.mesh.devices.flatten()
  training, held_out = run.train_loader.source, run.eval_loader.source
  run.console.table(
    f'{run.workdir}',
    {
      'devices': f'{len(devices)} x {devices[0].device_kind}'
      f' ({devices[0].platform}), {config.parallel}',
      'data set': f'{training.name}; {run.num_classes} classes',
      'examples': f'{training.num_examples:,} for training,'
      f' {held_out.num_examples:,} for validation',
      'steps': f'{durations.num_steps:,}'
      f' ({durations.num_steps / durations.steps_per_epoch:.1f} epochs of'
      f' {durations.steps_per_epoch:.1f} steps), from step {live.step:,}',
      'batch size': f'{config.global_batch_size} in all,'
      f' {config.global_batch_size // len(devices)} per device',
      'crops': f'{config.data.crop_size} of {config.data.resize_size} pixels',
      'parameters': f'{state_lib.num_parameters(live.state):,}',
    },
  )


def _finish(run, live):
  """Says where everything lies; returns the command's result."""
  progress, line = live.progress, run.console.line
  best = progress.best
  for loader in (run.train_loader, run.eval_loader):
    if loader.unreadable:
      line(
        f'{len(loader.unreadable)} images of {loader.source.name} could not be'
        ' decoded and were skipped; their names are in the warnings above'
      )
  stopped = ' (stopped early)' if progress.stopping.stopped else ''
  line(
    f'done at step {live.step}{stopped}: validation top-1'
    f' {progress.last_evaluation["eval/top1"]:.4f}; best'
    f' {run.config.checkpoint.monitor} {best.best:.4f} at step {best.best_step}'
  )
  line(
    f'training {duration(live.speed.seconds)}, without compilation,'
    ' evaluation and saving'
  )
  line(f'checkpoints: {live.checkpoints.folder}')
  line(
    f'history: {run.workdir / METRICS_FILE};'
    f' tensorboard --logdir {run.workdir / "events"}'
  )
  line(
    f'next: python -m alexnet_jax.evaluation.evaluate --workdir {run.workdir}'
  )
  return {
    **progress.last_evaluation,
    'step': int(live.state.step),
    'parameters': state_lib.num_parameters(live.state),
    'state_digest': state_lib.state_digest(state_lib.saved_tree(live.state)),
    'images_per_second': live.speed.total(),
  }

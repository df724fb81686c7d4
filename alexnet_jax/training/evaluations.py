"""The evaluations of a run, and what follows from them."""

from collections.abc import Callable
import time

from alexnet_jax.training import build
from alexnet_jax.training import guards
from alexnet_jax.training import measure
from alexnet_jax.training import schedule
from alexnet_jax.training.console import duration
from alexnet_jax.training.progress import Best
from alexnet_jax.training.run import Live
from alexnet_jax.training.run import Run
from alexnet_jax.training.state import TrainState


def due(run: Run, live: Live) -> bool:
  """Whether this step ends an interval or the run, and was not evaluated."""
  durations = run.durations
  return live.progress.evaluated_step < live.step and (
    schedule.due(live.step, durations.eval_every)
    or live.step == durations.num_steps
  )


def evaluate(
  run: Run, live: Live, on_evaluation: Callable[[int, dict], None]
) -> None:
  """Evaluates, and tells the schedule, early stopping and the user.

  Args:
    run: what stays.
    live: its `progress` gets the metrics; schedule and early stopping see them.
    on_evaluation: called with step and metrics.

  Raises:
    NonFiniteLossError: if the loss is lost.
    Interrupted: if a signal came.
  """
  live.log.flush()  # before the clock stops: the step under way is counted
  live.speed.pause()
  start = time.perf_counter()
  measured = measure_state(run, live.state)
  values = measured.values
  guards.check_finite(
    values['eval/loss'], live.step, live.step, live.log.saved_step
  )
  old_rate = live.progress.plateau.learning_rate
  _update_progress(run, live.progress, values, live.step)
  live.writer.scalars(live.step, values)
  live.writer.classes(
    live.step, measured.confusion, run.train_loader.source.class_names
  )
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
  on_evaluation(live.step, values)
  live.speed.resume()


def measure_state(run: Run, state: TrainState) -> measure.Measured:
  """A state on the validation split."""
  return measure.evaluate(
    run.steps.evaluate,
    state,
    build.make_eval_iter(run.config, run.eval_loader, run.mesh),
    run.to_devices,
    lambda batches_done: run.check_stop(),
    stop=lambda: run.check_stop(agreed=True),
  )


def _update_progress(run, progress, values, step):
  config = run.config
  progress.evaluated_step = step
  progress.last_evaluation = values
  value = values[config.checkpoint.monitor]
  if schedule.is_improvement(
    value, progress.best.value, config.checkpoint.mode, 0.0
  ):
    progress.best = Best(value, step)
  if not schedule.due(step, run.durations.eval_every):
    return  # the end of a run, which a longer one would not have evaluated
  progress.evaluations += 1
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

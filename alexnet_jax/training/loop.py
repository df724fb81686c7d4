"""Trains a run: set up, loop, end; or tries each part of that once."""

from collections.abc import Callable
import contextlib
import dataclasses
import itertools
import pathlib
import tempfile
import time

import jax
import numpy as np

from alexnet_jax import cli, config as config_lib, errors, files
from alexnet_jax.training import (
  accounting,
  build,
  checkpoint,
  distributed,
  guards,
  measure,
  optimizer,
  parallel,
  reporting,
  resume,
  schedule,
  state as state_lib,
)
from alexnet_jax.training.progress import SavedRun


@dataclasses.dataclass(frozen=True)
class Hooks:
  """Wishes of a caller beside the result of a run; see also `run.train`.

  What `on_step` and `on_evaluation` raise ends the run.
  """

  on_step: Callable[[int, dict], None] | None = None
  on_evaluation: Callable[[int, dict], None] | None = None
  profile: bool = False  # whether process 0 traces some steps
  age: float = 0.0  # seconds before the call that count as starting up
  is_trial: bool = False  # see `dry_run`


def train_and_evaluate(
  config,
  workdir: str,
  stop: guards.StopSignal,
  console: cli.Console,
  hooks: Hooks = Hooks(),
) -> dict | None:
  """Trains from the newest checkpoint of `workdir`, or from the beginning.

  The config is validated, see `validation.load_config`; `stop` asks the run to
  save and end. Returns the last evaluation's metrics, step, parameters,
  state_digest, images_per_second of the training alone and seconds, see
  `accounting.Account`; None in all processes but the first.

  Raises UserError if config, data or checkpoints do not fit, Interrupted after
  the state was saved, and NonFiniteLossError.
  """
  clock = accounting.Clock(config.global_batch_size, hooks.age)
  path, is_first = pathlib.Path(workdir), distributed.current().is_first
  mesh = parallel.make_mesh()
  parallel.check_batch_size(config.global_batch_size, mesh.size)
  with contextlib.ExitStack() as stack:
    recording = contextlib.ExitStack()
    if is_first:
      stack.enter_context(_claimed(path))
      stack.enter_context(recording)
      recording.enter_context(accounting.recorded(path, clock))
    checkpoints = checkpoint.Checkpoints(path, keep=config.checkpoint.keep)
    stack.enter_context(checkpoints)
    saved = checkpoints.newest_run()
    if saved is not None:
      resume.check_config(config, path, saved.config)
      if (other := saved.config.init.workdir) != config.init.workdir:
        console.line(f'goes on with the weights of {other}')
        config.init.workdir = other  # wherever that is now
    resume.check_microbatches(config, mesh, saved)
    run = resume.RunContext(
      config, path, stop, console, saved, is_trial=hooks.is_trial
    )
    loop = resume.LoopState(run, checkpoints, clock, hooks.on_step)
    stack.callback(loop.writer.close)
    if is_first:
      config_lib.write_config(config, path)
    reporting.show_start(run, loop)
    folder = path / 'profile' if hooks.profile and is_first else None
    profile = reporting.Profile(folder, loop, console)
    _train(run, loop, hooks.on_evaluation, profile)
    checkpoints.wait()
    _log_last(run, loop)
    _restore_best(run, loop)
    if not is_first:
      return None
    speed = loop.clock.speed(whole=True)
    summary = state_lib.summarize(loop.state)
    recording.close()
    seconds = accounting.account(path).seconds
    if not run.is_trial:
      reporting.show_end(run, loop, seconds)
    return {
      **loop.progress.last_evaluation,
      **summary,
      'images_per_second': speed.get('images_per_second', 0.0),
      'seconds': seconds,
    }


@contextlib.contextmanager
def _claimed(path):
  """Makes and locks the run's folder."""
  path.mkdir(parents=True, exist_ok=True)
  busy = (
    f'another run is training in {path}; wait for it, end it, or take another'
    ' --workdir'
  )
  with files.lock(path, busy):
    checkpoint.refuse_links(path)
    yield


def _train(run, loop, on_evaluation, profile):
  """Trains to the end, or to a signal."""
  try:
    run.console.start(run.durations.num_steps, loop.step, 'step', 'training')
    _loop(run, loop, on_evaluation, profile)
  except (errors.Interrupted, errors.UserError, OSError) as error:
    together = isinstance(error, errors.Interrupted)
    if not run.is_trial and (run.processes.is_alone or together):
      _save_at_the_end(run, loop, error)
    raise  # of several only this process knows: the others are a step ahead
  finally:
    loop.clock.switch('save')  # the last one is waited for
    run.console.stop()
    profile.finish()


def _save_at_the_end(run, loop, error):
  """Saves before an error ends the run."""
  try:
    _save(run, loop)
    loop.checkpoints.wait()
    run.console.line(f'saved step {loop.step} in {loop.checkpoints.folder}')
  except (errors.UserError, OSError):
    # Why the run ended matters more than another error of the disk.
    if isinstance(error, errors.Interrupted):
      raise


def _loop(run, loop, on_evaluation, profile):
  """Makes steps, evaluations and saves."""
  config, durations = run.config, run.durations
  key = parallel.replicate(build.dropout_key(config), run.mesh)
  if not loop.step and (config.init.workdir or durations.kept_steps):
    _save(run, loop)  # the other run may train on meanwhile
  if _evaluation_due(run, loop):  # the run ended before it was done
    _evaluate(run, loop, on_evaluation)
    _save(run, loop, replace=True)
  loop.clock.switch('compile')
  while loop.step < durations.num_steps and not loop.progress.stopping.stopped:
    run.check_stop(loop.log.stop_asked)
    _apply_learning_rate(run, loop)
    batch = loop.batches.take()
    # Whatever crosses to the devices here without being asked to would make
    # them wait in every step.
    with jax.transfer_guard_host_to_device('disallow'):
      loop.state, sums = run.steps.train(loop.state, batch, key)
    loop.step += 1
    profile.after(loop.step, sums)
    loop.batches.fetch()  # while the devices work
    loop.log.add(loop.step, sums)
    loop.clock.count_step(loop.log)
    run.console.advance(loop.step)
    if loop.step % config.log_every_steps == 0:
      _log(run, loop)
    if _evaluation_due(run, loop):
      _evaluate(run, loop, on_evaluation)
      _save(run, loop)
    elif (
      schedule.due(loop.step, durations.save_every)
      or loop.step in durations.kept_steps
      or loop.log.save_asked
    ):
      _save(run, loop)


def _apply_learning_rate(run, loop):
  """Sets the learning rate of the next update; a transfer only on change."""
  options, durations = run.config.schedule, run.durations
  base = loop.progress.plateau.learning_rate
  lr = schedule.learning_rate_at(options, durations, loop.step, base)
  phase = sum(loop.step >= step for step in durations.lr_multiplier_steps)
  if (lr, phase) != (loop.learning_rate, loop.phase):
    loop.learning_rate, loop.phase = lr, phase
    values = {'learning_rate': np.float32(lr)}
    if options.lr_multipliers:
      values['phase'] = np.float32(phase)
    values = parallel.replicate(values, run.mesh)
    loop.state = state_lib.with_learning_rate(loop.state, **values)


def _log(run, loop):
  """Writes and shows one row of the history."""
  config, step, num_steps = run.config, loop.step, run.durations.num_steps
  means, losses = loop.log.take()
  speed = loop.clock.speed()
  rates, lr_text = _learning_rates(run, loop, loop.learning_rate, loop.phase)
  loop.writer.scalars(step, {**means, **rates, **speed})
  loop.writer.step_losses(step, losses)
  text, left = f'loss {means["train/loss"]:.4f}, {lr_text}', ''
  if speed:
    images_per_second = speed['images_per_second']
    text += f', {images_per_second:.0f} images/s,'
    text += f' {speed["data_wait_fraction"]:.1%} waiting for data'
    text += f', MFU {speed["mfu"]:.1%}' if 'mfu' in speed else ''
    images = (num_steps - step) * config.global_batch_size
    left = f', {reporting.duration(images / images_per_second)} left'
  run.console.values(text, f'step {step}/{num_steps}', left)
  _check_flat_loss(run, step, means['train/loss'], len(losses))


def _log_last(run, loop):
  """Writes and shows the steps after the last log point, if there are any."""
  if not loop.progress.step_losses:
    return
  means, losses = loop.log.take()
  # Those of the last update, which a run that was done before has, too.
  values = {
    name: float(f'{float(value):.6g}')
    for name, value in loop.state.opt_state.hyperparams.items()
  }
  rates, lr_text = _learning_rates(
    run, loop, values['learning_rate'], int(values.get('phase', 0))
  )
  loop.writer.last_row(loop.step, means | rates, losses)
  text = f'loss {means["train/loss"]:.4f}, {lr_text}'
  run.console.line(f'step {loop.step}/{run.durations.num_steps}: {text}')
  _check_flat_loss(run, loop.step, means['train/loss'], len(losses))


def _check_flat_loss(run, step, loss, count):
  """Warns of a flat loss once, in a short run at its end.

  The loss is the mean of `count` steps, up to this one.
  """
  first = min(run.config.guards.flat_loss_steps, run.durations.num_steps)
  is_due = step - count < first <= step and not run.is_trial
  if is_due and run.processes.is_first:
    guards.warn_of_flat_loss(loss, len(run.class_names), step)


def _learning_rates(run, loop, lr, phase):
  """Returns the learning rates as values of a history row, and as text."""
  names = state_lib.leaf_names(loop.state.params)
  multipliers = run.config.schedule.lr_multipliers
  groups = optimizer.group_rates(names, multipliers, phase, lr)
  row = {'learning_rate': lr, **(groups if len(groups) > 1 else {})}
  ends = sorted({min(groups.values()), max(groups.values())})
  return row, 'lr ' + ' to '.join(f'{value:.2g}' for value in ends)


def _evaluation_due(run, loop):
  """Returns True if this step ends an interval or the run, unevaluated."""
  return loop.progress.evaluated_step < loop.step and (
    schedule.due(loop.step, run.durations.eval_every)
    or loop.step == run.durations.num_steps
  )


def _evaluate(run, loop, on_evaluation):
  """Evaluates, and tells the schedule, early stopping and the user."""
  loop.log.flush()  # before the clock stops: the step under way is counted
  with loop.clock.inside('evaluate'):
    start, step, progress = time.perf_counter(), loop.step, loop.progress
    values, plateau = _measure(run, loop.state), progress.plateau
    guards.check_finite(values['eval/loss'], step, step)
    due = schedule.due(step, run.durations.eval_every)
    warming = 0 < step <= run.durations.warmup_steps
    progress.add_evaluation(run.config, values, step, due, warming)
    loop.writer.scalars(step, values)
    run.console.line(
      f'step {step}, epoch {step / run.durations.steps_per_epoch:.2f}:'
      f' validation loss{" of one batch" * run.is_trial}'
      f' {values["eval/loss"]:.4f},'
      f' top-1 {values["eval/top1"]:.4f}, top-5 {values["eval/top5"]:.4f}'
      f' ({reporting.duration(time.perf_counter() - start)})'
    )
    done = step >= run.durations.num_steps or progress.stopping.stopped
    old, new = plateau.learning_rate, progress.plateau.learning_rate
    if old != new and not done:
      monitor = run.config.schedule.monitor
      text = f'{old:.3g} -> {new:.3g}: a plateau of {monitor}'
      run.console.line(f'learning rate {text}')
    if on_evaluation:
      on_evaluation(step, values)


def _measure(run, state):
  """Returns the measures of a state on the validation split."""
  batches = build.make_eval_iter(run.config, run.eval_loader, run.mesh)
  try:
    return measure.evaluate(
      run.steps.evaluate,
      state,
      itertools.islice(batches, 1 if run.is_trial else None),
      run.to_devices,
      progress=lambda batches_done: run.check_stop(),
    ).values
  except errors.Interrupted:
    run.check_stop(stop_asked=True)  # names the signal that came here
    raise


def _save(run, loop, replace=False):
  """Starts to save the state; waits only for its copy to the host."""
  loop.log.flush()  # raises before a NaN state could be saved
  with loop.clock.inside('save'):
    loop.log.restart_timer()
    loop.writer.sync()
    progress = loop.progress
    saved = SavedRun(
      config=run.config,
      data=run.data_record,
      progress=progress,
      iterator=loop.batches.iterator_state,
      devices=run.mesh.size,
      processes=run.processes.count,
      num_microbatches=build.num_microbatches(run.config, run.mesh),
    )
    tree = state_lib.saved_tree(loop.state)
    kept = {progress.best.step, progress.stopping.best_step}
    kept |= run.durations.kept_steps
    loop.checkpoints.save(tree, saved, keep_steps=kept, replace=replace)


def _restore_best(run, loop):
  """Restores the best state at the end if early stopping is asked to."""
  step = loop.progress.final_step(run.config, loop.step)
  if step == loop.step:
    return
  loop.clock.switch('evaluate')
  try:
    template = state_lib.saved_tree(loop.state)
    tree, _ = loop.checkpoints.restore(step, template)
  except checkpoint.DamagedCheckpointError as error:
    raise errors.UserError(
      f'the best checkpoint, {loop.checkpoints.folder / str(step)}, is'
      f' damaged ({error}); the run is complete, and its newest checkpoint is'
      f' {loop.step}'
    ) from error
  loop.state = loop.state.replace(**parallel.replicate(tree, run.mesh))
  loop.progress.last_evaluation = _measure(run, loop.state)
  run.console.line(f'the best state, of step {step}, is restored')


def dry_run(
  config, stop: guards.StopSignal, console: cli.Console
) -> dict | None:
  """Trains for one step in a temporary folder, of which nothing is kept.

  The pixel mean is that of a few hundred examples; one batch is evaluated.
  Returns {step, parameters, state_digest, seconds}, see `train_and_evaluate`,
  or None in all processes but the first. Raises UserError as training does.
  """
  config = config.copy_and_resolve_references()
  config.num_epochs, config.num_steps, config.loggers = 0.0, 1, ''
  with tempfile.TemporaryDirectory() as folder:
    hooks = Hooks(is_trial=True)
    result = train_and_evaluate(config, folder, stop, console, hooks)
  if result is None:
    return None
  for name, seconds, _ in accounting.table(result['seconds']):
    console.line(f'{name}: {seconds:.1f} s')
  console.line('the dry run went through; nothing was kept')
  names = ('step', 'parameters', 'state_digest', 'seconds')
  return {name: result[name] for name in names}

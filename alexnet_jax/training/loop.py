"""train_and_evaluate: set up, loop, end."""

from collections.abc import Callable
import contextlib
import logging
import pathlib

import jax
import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax import files
from alexnet_jax.errors import Interrupted
from alexnet_jax.errors import UnreadableImageError
from alexnet_jax.errors import UserError
from alexnet_jax.training import announce
from alexnet_jax.training import build
from alexnet_jax.training import evaluations
from alexnet_jax.training import guards
from alexnet_jax.training import metrics
from alexnet_jax.training import parallel
from alexnet_jax.training import refusals
from alexnet_jax.training import schedule
from alexnet_jax.training import setup
from alexnet_jax.training import state as state_lib
from alexnet_jax.training.checkpoint_contents import DamagedCheckpointError
from alexnet_jax.training.console import Console
from alexnet_jax.training.console import duration
from alexnet_jax.training.processes import ALONE
from alexnet_jax.training.processes import Processes
from alexnet_jax.training.profiling import FOLDER
from alexnet_jax.training.profiling import Profile
from alexnet_jax.training.run import Live
from alexnet_jax.training.run import Run
from alexnet_jax.training.shared_checkpoints import SharedCheckpoints


def train_and_evaluate(
  config,
  workdir: str,
  stop: guards.StopSignal,
  console: Console,
  on_evaluation: Callable[[int, dict], None] = lambda step, values: None,
  processes: Processes = ALONE,
  profile: bool = False,
) -> dict | None:
  """Trains from the newest checkpoint of `workdir`, or from the beginning.

  Args:
    config: validated, see `validation.load_config`.
    workdir: the run's folder; made if it is missing.
    stop: asks the run to save and end.
    console: shows what happens.
    on_evaluation: called with the step and the metrics of each evaluation,
      before it is saved; what it raises ends the run.
    processes: of the run. Only the first one touches the folder.
    profile: whether the first one traces some steps, see `profiling`.

  Returns:
    The last evaluation's metrics, step, parameters, state_digest and
    images_per_second of the training alone; None in all processes but the
    first.

  Raises:
    UserError: if config, data or checkpoints do not fit.
    Interrupted: after the state was saved, if `stop` received a signal.
    NonFiniteLossError: if the loss is lost.
  """
  path = pathlib.Path(workdir)
  mesh = parallel.make_mesh()
  parallel.check_batch_size(config.global_batch_size, mesh.size)
  with contextlib.ExitStack() as stack:
    if processes.is_first:
      stack.enter_context(_own_folder(path))
    checkpoints = SharedCheckpoints(
      path,
      keep=config.checkpoint.keep,
      processes=processes,
      check=stop.check,
    )
    stack.callback(checkpoints.close)
    saved = checkpoints.newest_run()
    refusals.check_config(config, path, saved)
    refusals.check_pieces(config, mesh, saved)
    run = setup.prepare(
      config, path, mesh, stop, console, saved, processes=processes
    )
    live = setup.restore_or_create(run, checkpoints)
    stack.callback(live.writer.close)
    if processes.is_first:
      config_lib.write_config(config, path)
    announce.show_start(run, live)
    traced = path / FOLDER if profile and processes.is_first else None
    _loop(run, live, on_evaluation, Profile(traced, live.step))
    checkpoints.wait()
    live.writer.step_losses(live.step, live.progress.step_losses, last=True)
    _restore_best(run, live)
    announce.show_end(run, live)
    return _result(live) if processes.is_first else None


def _own_folder(path):
  """The run's folder, locked."""
  path.mkdir(parents=True, exist_ok=True)
  busy = (
    f'another run is training in {path}; wait for it, end it, or take another'
    ' --workdir'
  )
  return files.lock(path, busy)


def _loop(run: Run, live: Live, on_evaluation, profile: Profile) -> None:
  """Trains to the end, or to a signal."""
  config, durations, progress = run.config, run.durations, live.progress
  key = run.replicate(build.dropout_key(config))
  flat_step = -(-config.guards.flat_loss_steps // config.log_every_steps)
  flat_step *= config.log_every_steps  # the log point that checks
  run.console.start(durations.num_steps, live.step, 'step', 'training')
  try:
    if config.init.workdir and live.log.saved_step is None:
      _save(run, live)  # the other run may train on meanwhile
    if evaluations.due(run, live):  # the run ended before it was done
      evaluations.evaluate(run, live, on_evaluation)
      _save(run, live, replace=True)
    while live.step < durations.num_steps and not progress.stopping.stopped:
      run.check_stop(live.log.stop_asked)
      if run.is_frozen(live.step - 1) and not run.is_frozen(live.step):
        _unfreeze(run, live)
      _apply_rate(run, live)
      announce.show_end_of_colors(run, live)
      batch = live.batches.take()
      if _histograms_due(run, live):
        _write_histograms(run, live, batch, key)
      if profile.begins(live.step):
        live.speed.without(profile.start)
      # Whatever crosses to the devices here without being asked to would make
      # them wait in every step.
      with jax.transfer_guard_host_to_device('disallow'):
        train = run.steps_at(live.step).train
        live.state, sums = train(live.state, batch, key)
      live.step += 1
      if profile.ends(live.step):
        jax.block_until_ready(sums)
        run.console.line(live.speed.without(profile.stop))
      live.batches.fetch()  # while the devices work
      live.log.add(live.step, sums)
      live.speed.count(live.log)
      run.console.advance(live.step)
      if live.step % config.log_every_steps == 0:
        _log(run, live, check_flat=live.step == flat_step)
      if evaluations.due(run, live):
        evaluations.evaluate(run, live, on_evaluation)
        _save(run, live)
      elif schedule.due(live.step, durations.save_every):
        _save(run, live)
  except (Interrupted, UnreadableImageError) as error:
    if not (run.processes.is_alone or isinstance(error, Interrupted)):
      raise  # only this process knows: the others are a step ahead
    _save(run, live)
    live.checkpoints.wait()
    run.console.line(f'saved step {live.step} in {live.checkpoints.folder}')
    raise
  finally:
    live.speed.pause()
    run.console.stop()
    profile.finish(run.console)


def _unfreeze(run, live):
  """Lets all parameters train, with an optimizer that starts anew.

  What Adam or RMSprop remember of parameters that waited is 0, which would make
  their first steps many times the learning rate.
  """
  run.console.line(f'step {live.step}: all parameters train from here on')
  opt_state = jax.jit(live.state.tx.init)(live.state.params)
  live.state = live.state.replace(opt_state=run.replicate(opt_state))
  live.rate = None  # the new state holds the first rate
  live.speed.next_compiles()


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
  phase = sum(live.step >= step for step in run.durations.lr_multiplier_steps)
  if (rate, phase) != (live.rate, live.phase):
    live.rate, live.phase = rate, phase
    values = [np.float32(rate), np.float32(phase)]
    values = run.replicate(values[: 1 + bool(config.schedule.lr_multipliers)])
    live.state = state_lib.with_learning_rate(live.state, *values)
    announce.show_phase(run, live)


def _log(run, live, check_flat):
  """One row of the history."""
  means, losses = live.log.take()
  speed = live.speed.interval()
  live.writer.scalars(live.step, {**means, 'learning_rate': live.rate, **speed})
  live.writer.step_losses(live.step, losses)
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
    if warning and run.processes.is_first:
      logging.getLogger(__name__).warning(warning)


def _histograms_due(run, live):
  """Whether the next update leads to an evaluation that has histograms."""
  every = run.config.histogram_every_evals
  due = schedule.due(live.step + 1, run.durations.eval_every)
  return every and due and (live.progress.evaluations + 1) % every == 0


def _write_histograms(run, live, batch, key):
  """Histograms of the parameters and of the gradients about to be applied."""
  live.log.flush()
  live.speed.pause()
  grads = run.steps_at(live.step).grad(live.state, batch, key)
  for group, tree in (('params', live.state.params), ('grads', grads)):
    for name, (counts, edges) in metrics.histograms(tree).items():
      live.writer.histogram(live.step, f'{group}/{name}', counts, edges)
  live.speed.resume()


def _save(run, live, replace=False):
  """Starts to save the state; waits only for what it copies."""
  live.log.flush()  # raises before a lost state could be saved
  live.speed.pause()
  live.writer.sync()
  progress = live.progress
  live.checkpoints.save(
    state_lib.saved_tree(live.state),
    {
      'progress': progress.to_json(),
      'data': run.data_record,
      'iterator': live.batches.iterator_state,
      'config': run.config.to_dict(),
      'devices': run.mesh.size,
      'processes': run.processes.count,
      'pieces': build.num_pieces(run.config, run.mesh),
    },
    keep_steps={progress.best.step, progress.stopping.best_step},
    replace=replace,
  )
  live.log.saved_step = live.step
  live.speed.resume()


def _restore_best(run, live):
  """Ends with the best state if early stopping is asked to."""
  step = live.progress.final_step(run.config, live.step)
  if step != live.step:
    template = state_lib.saved_tree(live.state)
    try:
      tree, _ = live.checkpoints.restore(step, template)
    except DamagedCheckpointError as error:
      raise UserError(
        f'the best checkpoint, {live.checkpoints.folder / str(step)}, is'
        f' damaged ({error}); the run is complete, and its newest checkpoint is'
        f' {live.step}'
      ) from error
    live.state = live.state.replace(**run.replicate(tree))
    live.progress.last_evaluation = evaluations.measure_state(
      run, live.state
    ).values
    run.console.line(f'the best state, of step {step}, is restored')


def _result(live):
  """The command's result."""
  return {
    **live.progress.last_evaluation,
    'step': int(live.state.step),
    'parameters': state_lib.num_parameters(live.state),
    'state_digest': state_lib.state_digest(state_lib.saved_tree(live.state)),
    'images_per_second': live.speed.total(),
  }

"""The trials of a sweep: each is a run of its own that can be resumed."""

import pathlib

import jax

from alexnet_jax import files
from alexnet_jax import validation
from alexnet_jax.errors import NonFiniteLossError
from alexnet_jax.errors import UnreadableImageError
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import search_space
from alexnet_jax.evaluation import sweep_study
from alexnet_jax.training import build
from alexnet_jax.training import checkpoint
from alexnet_jax.training import loop
from alexnet_jax.training import parallel
from alexnet_jax.training import writers


class Sweep:
  """Trains the trials of a study, one after the other."""

  def __init__(self, config, space, workdir, monitor, study, stop, console):
    """Nothing happens yet.

    Args:
      config: of which the trials change what is in `space`.
      space: see `search_space.parse`.
      workdir: gets a folder for every trial.
      monitor: what a trial is judged by.
      study: see `sweep_study.open_study`.
      stop: a `guards.StopSignal`.
      console: a `cli.Console`.
    """
    self._config = config
    self._space = space
    self._workdir = workdir
    self._monitor = monitor
    self._study = study
    self._stop = stop
    self._console = console

  def run(self, count: int, seed: int) -> None:
    """Goes on until the study has `count` trials and none is under way.

    Raises:
      UserError: for what no other values of the parameters would mend.
      Interrupted: after the state was saved, if a signal came.
    """
    import optuna  # not at the top: it may be missing

    running = (optuna.trial.TrialState.RUNNING,)
    while True:
      self._stop.check()
      under_way = self._study.get_trials(deepcopy=False, states=running)
      if under_way:
        self._train(under_way[0])
        jax.clear_caches()  # or the programs of all trials would pile up
      elif len(self._study.get_trials(deepcopy=False)) < count:
        sweep_study.next_trial(self._study, self._space, seed)
      else:
        return

  def _train(self, frozen):
    """Trains a trial from where it is to its end, and tells the study."""
    import optuna

    states = optuna.trial.TrialState
    trial = optuna.trial.Trial(self._study, frozen._trial_id)
    values = search_space.values(self._space, frozen.params)
    place = self._workdir / trial_folder(trial.number)
    self._console.line(
      f'trial {trial.number}: '
      + ', '.join(f'{key} {show(value)}' for key, value in values.items())
    )
    config = self._config.copy_and_resolve_references()
    config.update_from_flattened_dict(values)
    watch = Watch(trial, place, self._monitor)
    try:
      check(config)
      result = loop.train_and_evaluate(
        config, str(place), self._stop, self._console, watch.evaluated
      )
    except NonFiniteLossError as error:
      self._fail(trial, error)
    except UnreadableImageError:
      raise
    except UserError as error:
      if not self._is_own(place):
        raise
      self._fail(trial, error)
    except optuna.TrialPruned:
      trial.set_user_attr('step', watch.step)
      self._study.tell(trial, state=states.PRUNED)
      self._console.line(
        f'trial {trial.number} ends here: worse than the median'
      )
    else:
      for key in ('step', 'parameters', 'state_digest'):
        trial.set_user_attr(key, result[key])
      self._study.tell(trial, result[self._monitor])
      self._console.line(
        f'trial {trial.number}: {self._monitor} {result[self._monitor]:.4f}'
      )

  def _is_own(self, place):
    """Whether the values of a trial that failed are to blame.

    They are where no other trial would meet it: the trial has not begun, no
    other process trains it, and what all trials share is there and unchanged.
    """
    if checkpoint.has_checkpoint(place):
      return False
    try:
      if place.is_dir():
        files.lock(place, 'busy').close()
      data = shared_data(self._config, self._space)
    except UserError:
      return False
    return data == sweep_study.made_with(self._study)['data']

  def _fail(self, trial, reason):
    import optuna

    trial.set_user_attr('reason', str(reason))
    self._study.tell(trial, state=optuna.trial.TrialState.FAIL)
    self._console.line(f'trial {trial.number} failed: {reason}')


class Watch:
  """Tells the study of a run's evaluations.

  They are counted, because trials may differ in the number of steps between
  two of them.
  """

  def __init__(self, trial, place: pathlib.Path, monitor: str):
    self.step = 0  # of the last evaluation
    self._trial = trial
    self._monitor = monitor
    self._steps = {
      row['step'] for row in writers.read_rows(place) if monitor in row
    }
    trials = trial.study.get_trials(deepcopy=False)
    self._reported = dict(trials[trial.number].intermediate_values)

  def evaluated(self, step: int, values: dict) -> None:
    """Reports an evaluation; see `loop.train_and_evaluate`.

    Raises:
      optuna.TrialPruned: if the pruner ends the trial.
    """
    import optuna

    self.step = step
    self._steps.add(step)
    number = sum(other <= step for other in self._steps)
    if number not in self._reported:
      self._trial.report(values[self._monitor], number)
    elif number < max(self._reported):
      return  # made again after a kill, and judged before
    if self._trial.should_prune():
      raise optuna.TrialPruned


def check(config) -> None:
  """Refuses a config that cannot be trained, as far as its values tell.

  Raises:
    UserError: naming what is wrong.
  """
  validation.validate(config)
  parallel.check_batch_size(config.global_batch_size, jax.device_count())
  training, held_out = _sources(config)
  build.check_examples(config, training, held_out)
  model = build.make_model(config, len(training.class_names))
  jax.eval_shape(lambda: build.make_state(config, model))


def shared_data(config, space: dict) -> dict[str, str]:
  """Opens what all trials share: the data, and the run they start from.

  Args:
    config: of which the trials change what is in `space`.
    space: see `search_space.parse`.

  Returns:
    {fingerprint, eval_fingerprint} of the data.

  Raises:
    UserError: if something is not there.
  """
  init = config.init
  if init.workdir and not {'init.workdir', 'init.checkpoint'} & space.keys():
    checkpoint.open_run(init.workdir, init.checkpoint)
  training, held_out = _sources(config)
  return {
    'fingerprint': training.fingerprint,
    'eval_fingerprint': held_out.fingerprint,
  }


def _sources(config):
  """Of the training and of the validation split."""
  return [
    build.make_loader(config, split).source for split in ('train', 'validation')
  ]


def trial_folder(number: int) -> str:
  return f'trial_{number:04d}'


def show(value) -> str:
  """A value for people: of floats four digits."""
  return f'{value:.4g}' if isinstance(value, float) else str(value)

"""The study of a sweep: its search space, its file and its trials.

A study is an SQLite file of optuna. A trial enters it with all its parameters
at once, and they depend on the trials before it, the seed and the trial's
number alone: whatever moment a sweep is killed at, it goes on as if it had not
been. A trial is a run of its own, which resumes as any other run.
"""

import ast
from collections.abc import Sequence
import dataclasses
import json
import math
import pathlib
import re
import sqlite3
import warnings

import jax
import ml_collections
import numpy as np

from alexnet_jax import cli
from alexnet_jax import config as config_lib
from alexnet_jax import errors
from alexnet_jax import files
from alexnet_jax import validation
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from alexnet_jax.training import checkpoint
from alexnet_jax.training import guards
from alexnet_jax.training import loop
from alexnet_jax.training import parallel
from alexnet_jax.training import writers

# At the top nothing imports optuna, which may be missing.
STUDY_FILE = 'study.db'
_SPECS = 'LOW..HIGH, LOW..HIGH:log, LOW..HIGH:step=STEP or A|B|C'
_RANGE = re.compile(r'(.+?)\.\.(.+?)(?::(?:(log)|step=(.+)))?')
# The median of the finished trials means little before there are some, and the
# first evaluation of a run says little about its end.
_PRUNER_STARTUP_TRIALS, _PRUNER_FIRST_EVALUATION = 5, 2
_MADE_WITH, _NAME = 'made_with', 'sweep'  # in the file


def import_optuna():
  """Imports optuna and makes it quiet.

  Raises:
    UserError: if it is not installed.
  """
  try:
    import optuna
  except ImportError as error:
    raise UserError(
      f'a sweep needs optuna: {errors.how_to_install("sweep")}'
    ) from error
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  return optuna


def parse_space(texts: Sequence[str], config) -> dict:
  """Parses the search space into {key: optuna distribution}, sorted by key.

  Args:
    texts: `KEY=SPEC`, where SPEC is a range or choices, see `_SPECS`; keys as
      in the config, with or without `config.`.
    config: whose values tell the types of the keys.

  Raises:
    UserError: if a key is unknown or given twice, or a spec cannot be
      understood or does not fit its key.
  """
  flat, space = config_lib.flatten(config), {}
  for text in texts:
    key, equals, spec = text.partition('=')
    key = key.strip().removeprefix('config.')
    if not equals:
      raise UserError(f'--param {text}: it takes KEY=SPEC; SPEC is {_SPECS}')
    if key not in flat:
      raise UserError(validation.unknown_key_message(key))
    if key in space:
      raise UserError(f'--param {key} is given twice')
    try:
      if '|' in spec:
        space[key] = _choices(key, spec, flat[key])
      else:
        space[key] = _range(spec.strip(), flat[key])
    except ValueError as error:
      raise UserError(f'--param {key}={spec} {error}') from error
  if not space:
    raise UserError('a sweep needs --param KEY=SPEC at least once')
  return dict(sorted(space.items()))


def _range(text, like):
  """Parses a range for a key whose value in the config is `like`."""
  from optuna import distributions

  if not (match := _RANGE.fullmatch(text)):
    raise ValueError(f'is none of {_SPECS}')
  if isinstance(like, bool) or not isinstance(like, int | float):
    raise ValueError(
      f'is a range of numbers, but the key is {like!r}; give A|B|C'
    )
  low, high, log, step = (
    part and (part if part == 'log' else _typed(part, like))
    for part in match.groups()
  )
  if isinstance(like, int):
    return distributions.IntDistribution(low, high, bool(log), step or 1)
  return distributions.FloatDistribution(low, high, bool(log), step)


def _choices(key, text, like):
  """Parses choices for a key whose value in the config is `like`."""
  from optuna import distributions

  chosen = []
  for choice in map(str.strip, text.split('|')):
    value = _typed(choice, like)
    if value in chosen:
      raise ValueError(f'has {choice!r} twice')
    allowed = config_lib.KEYS[key].allowed
    if isinstance(allowed, tuple) and value not in allowed:
      raise ValueError(f'has {choice!r}, which is not one of {allowed}')
    chosen.append(value)
  # The file holds no tuples; `values_of` reads them again.
  return distributions.CategoricalDistribution(
    [repr(value) if isinstance(value, tuple) else value for value in chosen]
  )


def _typed(text, like):
  """Reads a text as a value of the type of `like`; numbers are finite."""
  if isinstance(like, str):
    return text.strip('\'"')
  try:
    value = float(text) if isinstance(like, float) else ast.literal_eval(text)
    finite = not isinstance(value, float) or math.isfinite(value)
    if finite and type(value) is type(like):
      return value
  except (ValueError, SyntaxError):
    pass
  kind = type(like).__name__
  raise ValueError(f'has {text!r}, but the key is {like!r}, a finite {kind}')


def values_of(params: dict, config) -> dict:
  """Returns {key: value for the config} of the parameters of a trial."""
  flat = config_lib.flatten(config)
  return {
    key: ast.literal_eval(value) if isinstance(flat[key], tuple) else value
    for key, value in params.items()
  }


def description(config, space: dict, data: dict, settings: dict) -> dict:
  """Describes what a study is made with and has to be continued with; JSON.

  Args:
    config: the recipe; the trials change the keys of `space`.
    space: see `parse_space`.
    data: see `shared_data`.
    settings: {flag: value} of --monitor, --mode, --pruner and --seed.
  """
  settings = {
    **settings,
    **{f'--param {key}': str(each) for key, each in space.items()},
    **{f'{key} of the data': value for key, value in data.items()},
  }
  return {
    'settings': settings,
    'swept': list(space),
    'config': config.to_dict(),
  }


def open_study(folder: pathlib.Path, made_with: dict):
  """Opens `folder/study.db`, or makes it; see `description`.

  Raises:
    UserError: if optuna is missing, the file is damaged, or the study was made
      with something else.
  """
  optuna = import_optuna()
  import sqlalchemy  # comes with it

  settings, path = made_with['settings'], folder / STUDY_FILE
  pruner = optuna.pruners.NopPruner()
  if settings['--pruner'] == 'median':
    pruner = optuna.pruners.MedianPruner(
      n_startup_trials=_PRUNER_STARTUP_TRIALS,
      n_warmup_steps=_PRUNER_FIRST_EVALUATION,
    )
  try:
    storage = optuna.storages.RDBStorage(
      'sqlite:///study.db',
      engine_kwargs={
        # As part of an address the path may not have ?, # and the like.
        'creator': lambda: sqlite3.connect(path, check_same_thread=False),
        # No connection stays open: nobody closes a study.
        'poolclass': sqlalchemy.pool.NullPool,
      },
    )
    study = optuna.create_study(
      study_name=_NAME,
      storage=storage,
      pruner=pruner,
      direction='minimize' if settings['--mode'] == 'min' else 'maximize',
      load_if_exists=True,
    )
    if _MADE_WITH not in study.user_attrs:
      # As JSON now, so that a study reads the same when it is opened again.
      study.set_user_attr(_MADE_WITH, json.loads(json.dumps(made_with)))
  except (
    RuntimeError,  # a file of another version of optuna
    optuna.exceptions.OptunaError,
    sqlalchemy.exc.SQLAlchemyError,
  ) as error:
    raise UserError(
      f'{path} is damaged or no study of a sweep ({error}); take another'
      ' --workdir'
    ) from error
  if changes := _changes(study.user_attrs[_MADE_WITH], made_with):
    raise UserError(
      f'{path} was made with something else:\n  '
      + '\n  '.join(changes)
      + '\nTake these values, or another --workdir'
    )
  return study


def _changes(stored, made_with):
  """Lists what differs between two descriptions: `what: stored -> new`."""
  before, now = stored['settings'], made_with['settings']
  changes = [
    f'{key}: {before.get(key, "none")} -> {now.get(key, "none")}'
    for key in dict.fromkeys([*now, *before])
    if before.get(key) != now.get(key)
  ]
  old, new = (config_lib.from_dict(d['config']) for d in (stored, made_with))
  flat = config_lib.flatten(new)
  # Of the keys of the space the trials have values of their own.
  swept = {*stored['swept'], *made_with['swept']}
  old.update_from_flattened_dict({key: flat[key] for key in swept})
  changes += config_lib.training_changes(old, new)
  changes += [
    f'config.{key}: {old[key]!r} -> {new[key]!r}'
    for key in ('num_epochs', 'num_steps')  # trials of equal length compare
    if old[key] != new[key]
  ]
  return list(dict.fromkeys(changes))


def next_trial(study, space: dict, seed: int) -> None:
  """Adds the next trial to the study, as running, with all its parameters.

  They depend on the trials before it, on the seed and on the trial's number: an
  interrupted sweep tries what an unbroken one does.
  """
  optuna = import_optuna()
  trials = study.get_trials(deepcopy=False)
  number = np.random.SeedSequence((seed, len(trials))).generate_state(1)[0]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
    sampler = optuna.samplers.TPESampler(seed=int(number), multivariate=True)
  copy = optuna.create_study(direction=study.direction, sampler=sampler)
  copy.add_trials(trials)
  trial = copy.ask(space)
  study.add_trial(
    optuna.trial.create_trial(
      state=optuna.trial.TrialState.RUNNING,
      params=trial.params,
      distributions=trial.distributions,
    )
  )


@dataclasses.dataclass(frozen=True)
class Trials:
  """The trials of a study, trained one after the other.

  Attributes:
    config: the recipe; the trials change the keys of `space`.
    space: see `parse_space`.
    data: see `shared_data`.
    workdir: gets a folder for every trial.
    monitor: what a trial is judged by.
    study: see `open_study`.
    stop: asks for the end of the sweep.
    console: shows how far it is.
  """

  config: ml_collections.ConfigDict
  space: dict
  data: dict[str, str]
  workdir: pathlib.Path
  monitor: str
  study: object
  stop: guards.StopSignal
  console: cli.Console

  def run(self, count: int, seed: int) -> None:
    """Goes on until the study has `count` trials and none is under way.

    Raises:
      UserError: for what no other values of the parameters would mend.
      Interrupted: after the state was saved, if a signal came.
    """
    import optuna

    running = (optuna.trial.TrialState.RUNNING,)
    while True:
      self.stop.check()
      under_way = self.study.get_trials(deepcopy=False, states=running)
      if under_way:
        self._train(under_way[0])
        jax.clear_caches()  # or the programs of all trials would pile up
      elif len(self.study.get_trials(deepcopy=False)) < count:
        next_trial(self.study, self.space, seed)
      else:
        return

  def folder(self, number: int) -> pathlib.Path:
    return self.workdir / f'trial_{number:04d}'

  def _train(self, frozen):
    """Trains a trial from where it is to its end, and tells the study."""
    import optuna

    trial = optuna.trial.Trial(self.study, frozen._trial_id)
    name, folder = f'trial {trial.number}', self.folder(trial.number)
    values = values_of(frozen.params, self.config)
    text = ', '.join(f'{key} {shown(value)}' for key, value in values.items())
    self.console.line(f'{name}: {text}')
    config = self.config.copy_and_resolve_references()
    config.update_from_flattened_dict(values)
    watch = Watch(trial, folder, self.monitor)
    try:
      check(config)
      result = loop.train_and_evaluate(
        config, str(folder), self.stop, self.console, watch.evaluated
      )
    except errors.NonFiniteLossError as error:
      self._fail(trial, error)
    except errors.UnreadableImageError:
      raise
    except UserError as error:
      if not self._is_own(folder):
        raise
      self._fail(trial, error)
    except optuna.TrialPruned:
      trial.set_user_attr('step', watch.step)
      self.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
      self.console.line(f'{name} ends here: worse than the median')
    else:
      for key in ('step', 'parameters', 'state_digest'):
        trial.set_user_attr(key, result[key])
      self.study.tell(trial, result[self.monitor])
      self.console.line(f'{name}: {self.monitor} {result[self.monitor]:.4f}')

  def _is_own(self, folder):
    """Returns whether the values of a trial that failed are to blame.

    They are where no other trial would meet the error: the trial has not begun,
    no other process trains it, and what all trials share is there and
    unchanged.
    """
    if checkpoint.has_checkpoint(folder):
      return False
    try:
      if folder.is_dir():
        files.lock(folder, 'busy').close()
      return shared_data(self.config, self.space) == self.data
    except UserError:
      return False

  def _fail(self, trial, reason):
    import optuna

    trial.set_user_attr('reason', str(reason))
    self.study.tell(trial, state=optuna.trial.TrialState.FAIL)
    self.console.line(f'trial {trial.number} failed: {reason}')


class Watch:
  """Reports the evaluations of a trial to the study.

  They are counted, because trials may differ in the number of steps between
  two of them.
  """

  def __init__(self, trial, folder: pathlib.Path, monitor: str):
    self.step = 0  # of the last evaluation
    self._trial = trial
    self._monitor = monitor
    rows = writers.read_rows(folder)
    self._steps = {row['step'] for row in rows if monitor in row}
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
    config: the recipe; the trials change the keys of `space`.
    space: see `parse_space`.

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
  """Opens the training and the validation split."""
  splits = ('train', 'validation')
  return [build.make_loader(config, split).source for split in splits]


def shown(value) -> str:
  """Formats a value for people: floats in four digits."""
  return f'{value:.4g}' if isinstance(value, float) else str(value)

"""The study of a sweep: its search space, its file and its trials.

A study is an SQLite file of optuna. A trial enters it with all its parameters
at once, and they depend on the trials before it, the seed and the trial's
number alone: whatever moment a sweep is killed at, it goes on as if it had not
been. A trial is a run of its own, which resumes as any other run.
"""

import ast
from collections.abc import Sequence
import dataclasses
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
from alexnet_jax.training import writers

# At the top nothing imports optuna, which may be missing.
STUDY_FILE = 'study.db'
_SPECS = 'LOW..HIGH, LOW..HIGH:log, LOW..HIGH:step=STEP or A|B|C'
_RANGE = re.compile(r'(.+?)\.\.(.+?)(?::(?:(log)|step=(.+)))?')
# The median of the finished trials means little before there are some, and the
# first evaluation of a run says little about its end.
_PRUNER_STARTUP_TRIALS, _PRUNER_FIRST_EVALUATION = 5, 2
_NAME, _MADE_WITH = 'sweep', 'made_with'  # in the file


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
    parse = _choices if '|' in spec else _range
    try:
      space[key] = parse(spec.strip(), flat[key], config_lib.KEYS[key].allowed)
    except ValueError as error:
      raise UserError(f'--param {key}={spec} {error}') from error
  for key in space:  # unless it counts in some trials
    if not any(other in config_lib.KEYS[key].when for other in space):
      validation.check_effects(flat | {key: 'swept'}, [key])
  if not space:
    raise UserError('a sweep needs --param KEY=SPEC at least once')
  return dict(sorted(space.items()))


def _range(text, like, _):
  """Parses a range for a key whose value in the config is `like`."""
  from optuna import distributions

  if not (match := _RANGE.fullmatch(text)):
    raise ValueError(f'is none of {_SPECS}')
  if isinstance(like, bool) or not isinstance(like, int | float):
    raise ValueError(f'is a range, but the key is {like!r}; give A|B|C')
  low, high, log, step = match.groups()
  low, high = _typed(low, like), _typed(high, like)
  step = step and _typed(step, like)
  if isinstance(like, int):
    return distributions.IntDistribution(low, high, bool(log), step or 1)
  return distributions.FloatDistribution(low, high, bool(log), step)


def _choices(text, like, allowed):
  """Parses choices for a key whose value in the config is `like`."""
  from optuna import distributions

  values = [_typed(choice.strip(), like) for choice in text.split('|')]
  for number, value in enumerate(values):
    if value in values[:number]:
      raise ValueError(f'has {value!r} twice')
    if isinstance(allowed, tuple) and value not in allowed:
      raise ValueError(f'has {value!r}, which is not one of {allowed}')
  # The file holds no tuples; `values_of` reads them again.
  return distributions.CategoricalDistribution(
    [repr(value) if isinstance(value, tuple) else value for value in values]
  )


def _typed(text, like):
  """Reads a text as a value of the type of `like`; numbers are finite."""
  if isinstance(like, str):
    return text.strip('\'"')
  try:
    value = float(text) if isinstance(like, float) else ast.literal_eval(text)
  except (ValueError, SyntaxError):
    value = None
  if type(value) is type(like) and not (
    isinstance(value, float) and not math.isfinite(value)
  ):
    return value
  kind = type(like).__name__
  raise ValueError(f'has {text!r}, but the key is {like!r}, a finite {kind}')


def values_of(params: dict, config) -> dict:
  """Returns {key: value for the config} of the parameters of a trial."""
  flat = config_lib.flatten(config)
  return {
    key: ast.literal_eval(value) if isinstance(flat[key], tuple) else value
    for key, value in params.items()
  }


def open_study(folder: pathlib.Path, made_with: dict[str, str]):
  """Opens `folder/study.db`, or makes it.

  Args:
    folder: exists.
    made_with: {flag, key or other name: value}; what a study is made with and
      has to be continued with. Has `--mode` and `--pruner`.

  Raises:
    UserError: if optuna is missing, the file is damaged, or the study was made
      with something else.
  """
  optuna = import_optuna()
  import sqlalchemy  # comes with it

  path, pruner = folder / STUDY_FILE, optuna.pruners.NopPruner()
  if made_with['--pruner'] == 'median':
    pruner = optuna.pruners.MedianPruner(
      _PRUNER_STARTUP_TRIALS, _PRUNER_FIRST_EVALUATION
    )
  engine = {
    # As part of an address the path may not have ?, # and the like.
    'creator': lambda: sqlite3.connect(path, check_same_thread=False),
    'poolclass': sqlalchemy.pool.NullPool,  # nobody closes a study
  }
  try:
    study = optuna.create_study(
      study_name=_NAME,
      storage=optuna.storages.RDBStorage('sqlite://', engine_kwargs=engine),
      pruner=pruner,
      direction='minimize' if made_with['--mode'] == 'min' else 'maximize',
      load_if_exists=True,
    )
    if _MADE_WITH not in study.user_attrs:
      study.set_user_attr(_MADE_WITH, made_with)
  except (
    RuntimeError,  # a file of another version of optuna
    optuna.exceptions.OptunaError,
    sqlalchemy.exc.SQLAlchemyError,
  ) as error:
    raise UserError(
      f'{path} is damaged or no study of a sweep ({error}); take another'
      ' --workdir'
    ) from error
  changes = files.differences(study.user_attrs[_MADE_WITH], made_with)
  if changes:
    lines = [f'{key}: {old} -> {new}' for key, (old, new) in changes.items()]
    raise UserError(
      '\n  '.join([f'{path} was made with something else:', *lines])
      + '\nTake these values, or another --workdir'
    )
  return study


def description(config, space: dict, data: dict) -> dict[str, str]:
  """Describes the trials for `open_study`.

  Args:
    config: the recipe; the trials change the keys of `space`.
    space: see `parse_space`.
    data: see `shared_data`.
  """
  free = {key for key, each in config_lib.KEYS.items() if each.free}
  free -= {'num_epochs', 'num_steps'}  # trials of equal length compare
  free |= {'data.unreadable'} | space.keys()
  return {
    **{f'--param {key}': str(each) for key, each in space.items()},
    **{f'{key} of the data': value for key, value in data.items()},
    **{
      f'config.{key}': repr(value)
      for key, value in config_lib.flatten(config).items()
      if key not in free
    },
  }


def shared_data(config, space: dict) -> dict[str, str]:
  """Opens what all trials share: the data, and the run they start from.

  Returns:
    {fingerprint, eval_fingerprint} of the data.

  Raises:
    UserError: if something is not there.
  """
  init = config.init
  if init.workdir and not {'init.workdir', 'init.checkpoint'} & space.keys():
    checkpoint.open_run(init.workdir, init.checkpoint)
  training, held_out = (
    build.make_loader(config, split).source for split in ('train', 'validation')
  )
  return {
    'fingerprint': training.fingerprint,
    'eval_fingerprint': held_out.fingerprint,
  }


def add_trial(study, space: dict, seed: int) -> None:
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
class Sweep:
  """A study, and what its trials are trained with.

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

  def folder(self, number: int) -> pathlib.Path:
    return self.workdir / f'trial_{number:04d}'


def run_trials(sweep: Sweep, count: int, seed: int) -> None:
  """Trains until the study has `count` trials and none is under way.

  Raises:
    UserError: for what no other values of the parameters would mend.
    Interrupted: after the state was saved, if a signal came.
  """
  import optuna

  while True:
    sweep.stop.check()
    trials = sweep.study.get_trials(deepcopy=False)
    for trial in trials:
      if trial.state == optuna.trial.TrialState.RUNNING:
        _train(sweep, trial)
        jax.clear_caches()  # or the programs of all trials would pile up
    if len(trials) >= count:
      return
    add_trial(sweep.study, sweep.space, seed)


def _train(sweep, frozen):
  """Trains a trial from where it is to its end, and tells the study."""
  import optuna

  trial = optuna.trial.Trial(sweep.study, frozen._trial_id)
  name, folder = f'trial {trial.number}', sweep.folder(trial.number)
  values = values_of(frozen.params, sweep.config)
  text = ', '.join(f'{key} {shown(value)}' for key, value in values.items())
  sweep.console.line(f'{name}: {text}')
  config = sweep.config.copy_and_resolve_references()
  config.update_from_flattened_dict(values)
  try:
    validation.validate(config)
    result = loop.train_and_evaluate(
      config,
      str(folder),
      sweep.stop,
      sweep.console,
      _reporter(trial, frozen.intermediate_values, folder, sweep.monitor),
    )
  except optuna.TrialPruned:
    sweep.study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    sweep.console.line(f'{name} ends here: worse than the median')
  except (UserError, errors.NonFiniteLossError) as error:
    if not _is_its_own(error, sweep, folder):
      raise
    trial.set_user_attr('reason', str(error))
    sweep.study.tell(trial, state=optuna.trial.TrialState.FAIL)
    sweep.console.line(f'{name} failed: {error}')
  else:
    for key in ('step', 'parameters', 'state_digest'):
      trial.set_user_attr(key, result[key])
    sweep.study.tell(trial, result[sweep.monitor])
    sweep.console.line(f'{name}: {sweep.monitor} {result[sweep.monitor]:.4f}')


def _reporter(trial, reported, folder, monitor):
  """Returns the function that reports the evaluations of a trial to the study.

  They are counted, because trials may differ in the number of steps between
  two of them.
  """
  import optuna

  def evaluated(step, values):
    rows = writers.read_rows(folder)
    earlier = {r['step'] for r in rows if monitor in r and r['step'] < step}
    number = len(earlier) + 1
    if number not in reported:
      trial.report(values[monitor], number)
    elif number < max(reported):
      return  # made again after a kill, and judged before
    if trial.should_prune():
      trial.set_user_attr('step', step)
      raise optuna.TrialPruned

  return evaluated


def _is_its_own(error, sweep, folder):
  """Returns True if the values of a trial are to blame for its error.

  They are where no other trial would meet it: the loss is lost, or the trial
  has not begun, no other process trains it, and what all trials share is there
  and unchanged.
  """
  if isinstance(error, errors.NonFiniteLossError):
    return True
  unreadable = isinstance(error, errors.UnreadableImageError)
  if unreadable or checkpoint.has_checkpoint(folder):
    return False
  try:
    if folder.is_dir():
      files.lock(folder, 'busy').close()
    return shared_data(sweep.config, sweep.space) == sweep.data
  except UserError:
    return False


def shown(value) -> str:
  """Formats a value for people: floats in four digits."""
  return f'{value:.4g}' if isinstance(value, float) else str(value)

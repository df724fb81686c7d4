"""The study of a sweep: an SQLite file that says what was tried and is next.

A trial enters the file with all its parameters at once, so that whatever
moment a sweep is killed at, its trial is either not there or complete.
"""

import json
import os
import pathlib
import sqlite3
import warnings

import numpy as np

from alexnet_jax import config as config_lib
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import search_space

STUDY_FILE = 'study.db'
# The median of the finished trials means little before there are some, and the
# first evaluation of a run says little of its end.
_PRUNER_STARTUP_TRIALS, _PRUNER_FIRST_EVALUATION = 5, 2
_MADE_WITH = 'made_with'
_NAME = 'sweep'


def import_optuna():
  """The package, quiet.

  Raises:
    UserError: if it is missing.
  """
  try:
    import optuna
  except ImportError as error:
    raise UserError(
      f'a sweep needs optuna: {how_to_install("sweep")}'
    ) from error
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  return optuna


def description(
  config,
  space: dict,
  *,
  data: dict[str, str],
  monitor: str,
  mode: str,
  pruner: str,
  seed: int,
) -> dict:
  """What a study is made with and has to be continued with, as JSON.

  Args:
    config: of which the trials change what is in `space`.
    space: see `search_space.parse`.
    data: see `sweep_trials.shared_data`.
    monitor: what a trial is judged by.
    mode: `min` or `max`.
    pruner: `median` or `none`.
    seed: of the search.
  """
  return {
    'data': data,
    'monitor': monitor,
    'mode': mode,
    'pruner': pruner,
    'seed': seed,
    'space': {key: str(spec) for key, spec in space.items()},
    'config': config.to_dict(),
  }


def open_study(folder: pathlib.Path, made_with: dict):
  """Opens `folder/study.db`, or makes it; see `description`.

  Raises:
    UserError: if optuna is missing, the file is damaged, or the study was made
      with something else.
  """
  optuna = import_optuna()
  import sqlalchemy.exc  # comes with it

  path = folder / STUDY_FILE
  pruner = optuna.pruners.NopPruner()
  if made_with['pruner'] == 'median':
    pruner = optuna.pruners.MedianPruner(
      n_startup_trials=_PRUNER_STARTUP_TRIALS,
      n_warmup_steps=_PRUNER_FIRST_EVALUATION,
    )
  if not path.exists():
    _make_study(optuna, path, made_with)
  try:
    study = optuna.load_study(
      study_name=_NAME, storage=_storage(optuna, path), pruner=pruner
    )
    stored = study.user_attrs[_MADE_WITH]
  except (
    KeyError,
    RuntimeError,  # a file of another version of optuna
    optuna.exceptions.OptunaError,
    sqlalchemy.exc.SQLAlchemyError,
  ) as error:
    raise UserError(
      f'{path} is damaged or no study of a sweep ({error}); take another'
      ' --workdir'
    ) from error
  if changes := _changes(stored, made_with):
    raise UserError(
      f'{path} was made with something else:\n  '
      + '\n  '.join(changes)
      + '\nTake these values, or another --workdir'
    )
  return study


def made_with(study) -> dict:
  """What the study was made with; see `description`."""
  return study.user_attrs[_MADE_WITH]


def _make_study(optuna, path, made_with):
  """A study without trials; the file is there when it is whole."""
  partial = path.with_name(f'.{path.name}.partial')
  partial.unlink(missing_ok=True)
  storage = _storage(optuna, partial)
  study = optuna.create_study(
    study_name=_NAME,
    storage=storage,
    direction='minimize' if made_with['mode'] == 'min' else 'maximize',
  )
  # As JSON now, so that a study reads the same when it is opened again.
  study.set_user_attr(_MADE_WITH, json.loads(json.dumps(made_with)))
  storage.remove_session()
  storage.engine.dispose()
  os.replace(partial, path)


def _storage(optuna, path):
  import sqlalchemy.pool

  # A connection of our own: as part of an address the path may not have ?, #
  # and the like.
  return optuna.storages.RDBStorage(
    'sqlite:///study.db',
    engine_kwargs={
      'creator': lambda: sqlite3.connect(path, check_same_thread=False),
      # None stays open: a study is closed by nobody.
      'poolclass': sqlalchemy.pool.NullPool,
    },
  )


def _changes(stored, made_with):
  """Lines `what: stored -> new`."""
  changes = [
    f'--{key}: {stored[key]!r} -> {made_with[key]!r}'
    for key in ('monitor', 'mode', 'pruner', 'seed')
    if stored[key] != made_with[key]
  ]
  before, now = stored['space'], made_with['space']
  changes += [
    f'--param {key}: {before.get(key, "none")} -> {now.get(key, "none")}'
    for key in sorted({*before, *now})
    if before.get(key) != now.get(key)
  ]
  old, new = (config_lib.from_dict(d['config']) for d in (stored, made_with))
  changes += [
    f'{key} of the data: {value} -> {made_with["data"][key]}'
    for key, value in stored['data'].items()
    if value != made_with['data'][key]
  ]
  swept = {*before, *now}  # the trials have values of their own
  flat = config_lib.flatten(new)
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

  They are a function of the trials before it, of the seed and of the trial's
  number: an interrupted sweep tries what an unbroken one does.
  """
  optuna = import_optuna()
  trials = study.get_trials(deepcopy=False)
  number = np.random.SeedSequence((seed, len(trials))).generate_state(1)[0]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
    sampler = optuna.samplers.TPESampler(seed=int(number), multivariate=True)
  copy = optuna.create_study(direction=study.direction, sampler=sampler)
  copy.add_trials(trials)
  trial = copy.ask()
  # Version 4 warns of every entry that only some trials have.
  optuna.logging.set_verbosity(optuna.logging.ERROR)
  search_space.suggest(space, trial)
  optuna.logging.set_verbosity(optuna.logging.WARNING)
  study.add_trial(
    optuna.trial.create_trial(
      state=optuna.trial.TrialState.RUNNING,
      params=trial.params,
      distributions=trial.distributions,
    )
  )

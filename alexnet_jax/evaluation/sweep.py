"""Searches for good values of config keys.

python -m alexnet_jax.evaluation.sweep --config FILE --workdir DIR --trials 20 \
  --param optimizer.learning_rate=1e-4..1e-1:log

Whatever moment a sweep is killed at, it goes on as if it had not been: a trial
enters its SQLite file with all its parameters at once, and resumes as any other
run. optuna, which is optional, and jax are imported where they are used.
"""

from collections.abc import Iterable
import os
import pathlib
import re
import shlex
import sqlite3
import sys
import warnings

from alexnet_jax import cli, config as config_lib, errors, files, validation
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import page

_EPILOG = """\
A SPEC is LOW..HIGH, LOW..HIGH:log, LOW..HIGH:step=STEP or A|B|C:
  --param 'optimizer.learning_rate=1e-4..1e-1:log' --param 'seed=1..3'
  --param 'global_batch_size=64..256:step=64'
  --param 'optimizer.name=sgd|optax.adam'
Every trial is a run of its own in DIR/trial_0000, DIR/trial_0001 and so on, and
keeps its checkpoints (8 to 16 bytes a parameter). Its value is that of the
monitor in the state that the run ends with. Killed at any moment and started
again, the same command goes on; more --trials continue a sweep that is done.
Any other key of the config can be changed: --config.num_epochs=5.0."""

_SPECS = 'LOW..HIGH, LOW..HIGH:log, LOW..HIGH:step=STEP or A|B|C'
_RANGE = re.compile(r'(.+?)\.\.(.+?)(?::(?:(log)|step=(.+)))?')
# Finished trials and evaluations: of few the median means little,
# and the first evaluation of a run says little about its end.
_PRUNING_STARTS = (5, 2)
_MADE_WITH = 'made_with'  # in the file
_BEST = 10  # trials in the table
_STATES = {'COMPLETE': 'done', 'PRUNED': 'pruned', 'FAIL': 'failed'}
_RESULTS = ('step', 'parameters', 'state_digest')  # of a run, kept of a trial


def main(argv=None) -> int:
  """Runs the command; returns its exit code: 1 if no trial came to its end."""
  text = 'Searches for good values of config keys.'
  parser = cli.make_parser('evaluation.sweep', text, _EPILOG, False)
  add = parser.add_argument
  cli.add_recipe(parser)
  text = "the sweep's folder"
  add('--workdir', required=True, type=cli.path, metavar='DIR', help=text)
  text = 'number of trials in all (default: %(default)s)'
  add('--trials', type=int, default=20, metavar='N', help=text)
  text = 'a key of the config and the values to try; once for every key'
  add('--param', action='append', default=[], metavar='KEY=SPEC', help=text)
  text = 'what a trial is judged by (default: %(default)s): %(choices)s'
  named = {'choices': config_lib.MONITORS, 'metavar': 'MEASURE'}
  add('--monitor', default='eval/top1', help=text, **named)
  text = (
    'median (default) ends a trial whose best value so far is worse than the'
    ' median of what the trials before it had at the same evaluation; none ends'
    ' none'
  )
  add('--pruner', choices=('median', 'none'), default='median', help=text)
  add('--seed', type=int, default=0, help='of the search (default: 0)')
  cli.add_json(parser)
  arguments, overrides = parser.parse_known_args(argv)
  # From here on a signal is remembered; jax is imported after that.
  from alexnet_jax.training import guards

  stop = guards.StopSignal()
  stop.install()

  return cli.run(
    lambda: sweep(arguments, overrides, stop),
    json_output=arguments.json,
    exit_code=lambda result: 0 if result['best'] else errors.EXIT_FAILURE,
  )


def sweep(arguments, overrides: list[str], stop) -> dict:
  """Runs or continues a sweep until it has all its trials, and shows the best.

  For `arguments` and `overrides` of the config see `main`; `stop` ends it.
  Raises UserError for what no other values of the parameters would mend.

  Returns:
    {trials: [{trial, state, value, values, reason, ...}], best: one of them or
    None, command: that trains it}.
  """
  try:
    import optuna
  except ImportError:
    advice = errors.how_to_install('sweep')
    raise UserError(f'a sweep needs optuna: {advice}') from None
  import jax

  from alexnet_jax.training import checkpoint

  optuna.logging.set_verbosity(optuna.logging.WARNING)
  config = validation.load_config([f'--config={arguments.config}', *overrides])
  config.report = False
  space = parse_space(arguments.param, config)
  for name, least in (('trials', 1), ('seed', 0)):
    if (value := getattr(arguments, name)) < least:
      raise UserError(f'--{name} is {value}; it must be at least {least}')
  data = _shared_data(config, space)  # what is wrong with it shows now
  names = ('monitor', 'pruner', 'seed')
  flags = {f'--{name}': getattr(arguments, name) for name in names}
  workdir = pathlib.Path(arguments.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  busy = f'another sweep is under way in {workdir}; wait for it, or end it'
  with files.lock(workdir, busy):
    files.refuse_links_in(workdir)
    study = open_study(workdir, config, space, flags | data)

    def unchanged(folder):
      try:
        if folder.is_dir():
          files.lock(folder, 'busy').close()
          checkpoint.refuse_links(folder)
        return _shared_data(config, space) == data
      except UserError:
        return False

    while True:
      stop.check()
      trials = study.get_trials(deepcopy=False)
      for trial in trials:
        if not trial.state.is_finished():
          _train(study, trial, config, arguments, stop, unchanged)
          jax.clear_caches()  # or the programs of all trials would pile up
      if len(trials) >= arguments.trials:
        return _report(study, arguments, overrides)
      add_trial(study, space, arguments.seed)


def parse_space(texts: Iterable[str], config) -> dict:
  """Parses `KEY=SPEC`s into {key: optuna distribution}, sorted by key.

  Keys may begin with `config.`; `config` is the recipe. Raises UserError if a
  key is unknown, given twice or without effect, or a spec does not fit its key.
  """
  space = {}
  for text in texts:
    key, _, spec = text.partition('=')
    key = key.strip().removeprefix('config.')
    if key not in config_lib.KEYS:
      raise UserError(validation.unknown_key_message(key))
    if key in space:
      raise UserError(f'--param {key} is given twice')
    try:
      space[key] = _distribution(key, spec.strip())
    except ValueError as error:
      raise UserError(f'--param {text}: {error}') from error
  if not space:
    raise UserError('a sweep needs --param KEY=SPEC at least once')
  flat = config_lib.flatten(config)
  for key in space:  # unless it counts in some trials
    if not any(other in config_lib.KEYS[key].when for other in space):
      validation.check_effects(flat | {key: 'swept'}, [key])
  return dict(sorted(space.items()))


def _distribution(key, spec):
  """Parses A|B|C, which stay texts, or a range of numbers."""
  from optuna import distributions

  default, allowed = config_lib.KEYS[key].default, config_lib.KEYS[key].allowed
  if '|' in spec:
    choices = [choice.strip() for choice in spec.split('|')]
    values = [validation.parse_value(key, choice) for choice in choices]
    for number, value in enumerate(values):
      if value in values[:number]:
        raise ValueError(f'it has {value!r} twice')
      if isinstance(allowed, tuple) and not config_lib.fits(value, allowed):
        raise ValueError(f'{value!r} is not one of {allowed}')
    return distributions.CategoricalDistribution(choices)
  if not (match := _RANGE.fullmatch(spec)):
    raise ValueError(f'it takes KEY=SPEC, where SPEC is {_SPECS}')
  if not config_lib.is_number(default):
    raise ValueError(f'the key is {default!r}, no number; give A|B|C')
  low, high, log, step = match.groups()
  numbers = [validation.parse_value(key, n) for n in (low, high, step or '1')]
  if not all(map(config_lib.is_number, numbers)):
    raise ValueError('it takes finite numbers')
  low, high, size = numbers
  if step and size > high - low:
    raise ValueError(f'the step is {size}; it takes at most {high - low}')
  if isinstance(default, int):
    return distributions.IntDistribution(low, high, bool(log), size)
  size = size if step else None
  return distributions.FloatDistribution(low, high, bool(log), size)


def values_of(params: dict) -> dict:
  """Returns {key: value for the config} of the parameters of a trial."""
  return {
    key: validation.parse_value(key, value) if isinstance(value, str) else value
    for key, value in sorted(params.items())
  }


def open_study(
  folder: pathlib.Path, config, space: dict, fixed: dict[str, str | int]
):
  """Opens `folder/study.db`, or makes it; the folder exists.

  Args:
    config: the recipe; the trials change the keys of `space`.
    space: see `parse_space`.
    fixed: {flag or text: value}; what else a study has to be continued with.

  Returns the optuna.Study. Raises UserError if the file is damaged, or was made
  with something else.
  """
  import optuna
  import sqlalchemy

  # Trials of equal length compare.
  free = config_lib.free_keys(lengths=False)
  free |= {'data.unreadable'} | space.keys()
  flat = config_lib.flatten(config).items()
  made_with = {
    **fixed,
    **{f'--param {key}': str(each) for key, each in space.items()},
    **{f'config.{key}': repr(v) for key, v in flat if key not in free},
  }
  path, pruner = folder / 'study.db', optuna.pruners.NopPruner()
  if fixed['--pruner'] == 'median':
    pruner = optuna.pruners.MedianPruner(*_PRUNING_STARTS)
  engine = {
    # As part of an address the path may not have ?, # and the like.
    'creator': lambda: sqlite3.connect(path, check_same_thread=False),
    'poolclass': sqlalchemy.pool.NullPool,  # nobody closes a study
  }
  try:
    study = optuna.create_study(
      study_name='sweep',
      storage=optuna.storages.RDBStorage('sqlite://', engine_kwargs=engine),
      pruner=pruner,
      direction=config_lib.mode_of(fixed['--monitor']) + 'imize',
      load_if_exists=True,
    )
    if _MADE_WITH not in study.user_attrs:
      study.set_user_attr(_MADE_WITH, made_with)
  except Exception as error:  # of optuna, of its version, of SQLAlchemy
    raise UserError(
      f'{path} is damaged or no study of a sweep ({error}); take another'
      ' --workdir'
    ) from error
  changes = files.differences(study.user_attrs[_MADE_WITH], made_with)
  if changes:
    lines = [f'{key}: {old} -> {new}' for key, (old, new) in changes.items()]
    raise UserError(
      '\n  '.join([f'{path} was made with something else:', *lines])
      + '\nGive the values before the arrows, or another --workdir'
    )
  return study


def _shared_data(config, space):
  """Opens what all trials share: the run they start from, and the data."""
  from alexnet_jax.training import build, checkpoint

  init = config.init
  if init.workdir and not {'init.workdir', 'init.checkpoint'} & space.keys():
    checkpoint.open_run(init.workdir, init.checkpoint)
  sources = {
    split: build.make_loader(config, split).source
    for split in ('train', 'validation')
  }
  return {
    f'fingerprint of the {split} data': source.fingerprint
    for split, source in sources.items()
  }


def add_trial(study, space: dict, seed: int) -> None:
  """Adds the next trial to the study, as running, with all its parameters.

  They depend on the trials before it, the seed and the trial's number alone.
  """
  import numpy as np
  import optuna

  trials = study.get_trials(deepcopy=False)
  number = np.random.SeedSequence((seed, len(trials))).generate_state(1)[0]
  with warnings.catch_warnings():
    warnings.simplefilter('ignore', optuna.exceptions.ExperimentalWarning)
    sampler = optuna.samplers.TPESampler(seed=int(number), multivariate=True)
  copy = optuna.create_study(direction=study.direction, sampler=sampler)
  copy.add_trials(trials)
  copy.ask(space)
  study.add_trial(copy.trials[-1])


def _train(study, frozen, config, arguments, stop, unchanged):
  """Trains a trial from where it is to its end, and tells the study.

  `unchanged` tells of its folder whether no other process trains it, and what
  all trials share is there, as it was.
  """
  import optuna

  from alexnet_jax.training import checkpoint, loop, writers

  trial = optuna.trial.Trial(study, frozen._trial_id)
  name, monitor = f'trial {trial.number}', arguments.monitor
  folder, console = _folder(arguments, trial.number), cli.Console()
  values = values_of(frozen.params)
  text = ', '.join(f'{key} {_shown(value)}' for key, value in values.items())
  console.line(f'{name}: {text}')
  config = config.copy_and_resolve_references()
  config.update_from_flattened_dict(values)

  def evaluated(step, values):
    rows, reported = writers.read_rows(folder), frozen.intermediate_values
    # They are counted, because trials may differ in the steps between two.
    earlier = {r['step'] for r in rows if monitor in r and r['step'] < step}
    number = len(earlier) + 1
    if number not in reported:
      trial.report(values[monitor], number)
    elif number < max(reported):
      return  # made again after a kill, and judged before
    if trial.should_prune():
      trial.set_user_attr('step', step)
      raise optuna.TrialPruned

  try:
    validation.validate(config)
    result = loop.train_and_evaluate(
      config, str(folder), stop, console, loop.Hooks(on_evaluation=evaluated)
    )
  except optuna.TrialPruned:
    study.tell(trial, state=optuna.trial.TrialState.PRUNED)
    console.line(f'{name} ends here: worse than the median')
  except (UserError, errors.NonFiniteLossError) as error:
    # Its values are to blame where no other trial would meet the error.
    lost = isinstance(error, errors.NonFiniteLossError)
    unreadable = isinstance(error, errors.UnreadableImageError)
    begun = unreadable or checkpoint.has_checkpoint(folder)
    if not lost and (begun or not unchanged(folder)):
      raise
    trial.set_user_attr('reason', str(error))
    study.tell(trial, state=optuna.trial.TrialState.FAIL)
    console.line(f'{name} failed: {error}')
  else:
    for key in _RESULTS:
      trial.set_user_attr(key, result[key])
    study.tell(trial, result[monitor])
    console.line(f'{name}: {monitor} {result[monitor]:.4f}')


def _folder(arguments, number):
  return pathlib.Path(arguments.workdir, f'trial_{number:04d}')


def _report(study, arguments, overrides):
  rows = [
    {
      'trial': trial.number,
      'state': _STATES[trial.state.name],
      'value': trial.value if trial.state.name == 'COMPLETE' else None,
      'values': values_of(trial.params),
      'evaluations': [v for _, v in sorted(trial.intermediate_values.items())],
      'workdir': str(_folder(arguments, trial.number)),
      **{key: trial.user_attrs.get(key) for key in (*_RESULTS, 'reason')},
    }
    for trial in study.get_trials(deepcopy=False)
  ]
  sign = 1 if config_lib.mode_of(arguments.monitor) == 'min' else -1
  done = [row for row in rows if row['state'] == 'done']
  done.sort(key=lambda row: sign * row['value'])  # of equal ones the first
  states = [row['state'] for row in rows]
  counts = ', '.join(f'{states.count(s)} {s}' for s in _STATES.values())
  names = [key.replace('.', '.\n') for key in rows[0]['values']]
  cells = []
  for row in done[:_BEST]:
    values = f'{row["value"]:.4f}', *map(_shown, row['values'].values())
    cells.append((str(row['trial']), *values, row['parameters'], row['step']))
  columns = ('trial', 'value', *names, 'parameters', 'steps')
  page.show_table(page.Table(f'{counts}; {arguments.monitor}', columns, cells))
  result = {'trials': rows, 'best': None, 'command': None}
  if not done:
    lines = [f'trial {r["trial"]} {r["state"]}: {r["reason"]}' for r in rows]
    lines = [*lines[:3], 'no trial came to its end']
    print('\n'.join(lines), file=sys.stderr)
    return result
  words = ['--config', arguments.config, *overrides]
  words += [f'--config.{key}={v}' for key, v in done[0]['values'].items()]
  words += ['--workdir', os.path.join(arguments.workdir, 'best')]
  command = f'python -m alexnet_jax.main {shlex.join(words)}'
  print(
    f'to train trial {done[0]["trial"]}, the best, again:\n  {command}',
    file=sys.stderr,
  )
  return result | {'best': done[0], 'command': command}


def _shown(value):
  return f'{value:.4g}' if isinstance(value, float) else str(value)


if __name__ == '__main__':
  sys.exit(main())

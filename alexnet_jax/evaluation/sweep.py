"""Searches for good values of config keys.

python -m alexnet_jax.evaluation.sweep --config FILE --workdir DIR --trials 20 \
  --param optimizer.learning_rate=1e-4..1e-1:log
"""

import argparse
import pathlib
import shlex
import sys

from alexnet_jax import cli
from alexnet_jax import config as config_lib

REPORT_FOLDER = 'report'
PRUNERS = ('median', 'none')
_BEST = 10  # trials in the table
_STATES = {'COMPLETE': 'done', 'PRUNED': 'pruned', 'FAIL': 'failed'}
_EPILOG = """\
A SPEC is LOW..HIGH, LOW..HIGH:log, LOW..HIGH:step=STEP or A|B|C:
  --param 'optimizer.learning_rate=1e-4..1e-1:log'
  --param 'optimizer.name=sgd|adam|rmsprop'
  --param 'global_batch_size=64..256:step=64'
  --param 'model.hidden=(256,)|(256,256)'
Every trial is a run of its own in DIR/trial_0000, DIR/trial_0001 and so on; its
value is that of the monitor in the state that the run ends with (the last, or
the best where config.early_stopping restores it). What was tried stands in
DIR/study.db. Killed at any moment and started again, the same command goes on
with the trial that was under way; more --trials continue a sweep that is done.
The same command makes the same trials. Any other key of the config can be
changed: --config.num_epochs=5.0.

Every trial keeps its checkpoints, config.checkpoint.keep of them and the best.
A checkpoint has 8 bytes a parameter (the parameters and the momentum; 12 with
adam and rmsprop), and 4 more with config.ema_decay."""


def _parse(argv):
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.evaluation.sweep',
    description='Searches for good values of config keys.',
    epilog=_EPILOG,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  cli.add_recipe(parser)
  text = "the sweep's folder"
  add('--workdir', required=True, type=cli.path, metavar='DIR', help=text)
  text = 'number of trials in all (default: %(default)s)'
  add('--trials', type=int, default=20, metavar='N', help=text)
  text = 'a key of the config and the values to try; once for every key'
  add('--param', action='append', default=[], metavar='KEY=SPEC', help=text)
  text = 'what a trial is judged by (default: %(default)s)'
  add('--monitor', default='eval/top1', help=text)
  text = 'whether less or more is better (default: min of a loss, else max)'
  add('--mode', choices=('min', 'max'), help=text)
  text = (
    'median (default) ends a trial whose best value so far is worse than the'
    ' median of what the trials before it had at the same evaluation; none ends'
    ' none'
  )
  add('--pruner', choices=PRUNERS, default='median', help=text)
  add('--seed', type=int, default=0, help='of the search (default: 0)')
  cli.add_json(parser)
  return parser.parse_known_args(argv)


def main(argv=None) -> int:
  """Runs the command; returns its exit code: 1 if no trial came to its end."""
  arguments, overrides = _parse(argv)
  # From here on a signal is remembered; jax is imported after that.
  from alexnet_jax.training import guards

  stop = guards.StopSignal()
  stop.install()
  from alexnet_jax import errors

  return cli.run(
    lambda: _work(arguments, overrides, stop),
    json_output=arguments.json,
    exit_code=lambda result: (
      errors.EXIT_DONE if result['best'] else errors.EXIT_FAILURE
    ),
  )


def _work(arguments, overrides, stop):
  """Runs or continues the sweep; returns the command's result."""
  from alexnet_jax import files
  from alexnet_jax import validation
  from alexnet_jax.evaluation import study as study_lib

  study_lib.import_optuna()
  config = validation.load_config([f'--config={arguments.config}', *overrides])
  config.report = False
  space = study_lib.parse_space(arguments.param, config)
  _check(arguments)
  data = study_lib.shared_data(config, space)  # what is wrong with it shows now
  made_with = study_lib.description(config, space, data) | {
    '--monitor': arguments.monitor,
    '--mode': arguments.mode or config_lib.mode_of(arguments.monitor),
    '--pruner': arguments.pruner,
    '--seed': arguments.seed,
  }
  workdir = pathlib.Path(arguments.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  busy = f'another sweep is under way in {workdir}; wait for it, or end it'
  with files.lock(workdir, busy):
    files.refuse_links_in(workdir)
    study = study_lib.open_study(workdir, made_with)
    sweep = study_lib.Sweep(
      config=config,
      space=space,
      data=data,
      workdir=workdir,
      monitor=arguments.monitor,
      study=study,
      stop=stop,
      console=cli.Console(),
    )
    study_lib.run_trials(sweep, arguments.trials, arguments.seed)
    return report(sweep, ['--config', arguments.config, *overrides])


def _check(arguments):
  from alexnet_jax.errors import UserError

  if arguments.monitor not in config_lib.MONITORS:
    raise UserError(
      f'--monitor is {arguments.monitor!r}, not one of {config_lib.MONITORS}'
    )
  for name, least in (('trials', 1), ('seed', 0)):
    if (value := getattr(arguments, name)) < least:
      raise UserError(f'--{name} is {value}; it must be at least {least}')


def report(sweep, retrain: list[str]) -> dict:
  """Prints the table and the command, and draws `workdir/report/`.

  Args:
    sweep: a `study.Sweep` whose trials are all finished.
    retrain: the recipe and the overrides of the sweep, as arguments.

  Returns:
    {trials: [{trial, state, value, values, reason, ...}], best: one of them or
    None, command: that trains it, pictures: paths}.
  """
  rows = [
    _describe(trial, sweep) for trial in sweep.study.get_trials(deepcopy=False)
  ]
  sign = 1 if sweep.study.direction.name == 'MINIMIZE' else -1
  done = [row for row in rows if row['state'] == 'done']
  ranked = sorted(done, key=lambda row: sign * row['value'])  # equal: the first
  _show(ranked[:_BEST], rows, sweep)
  command, pictures = None, {}
  if done:
    pictures = _draw(sweep)
    values = ranked[0]['values'].items()
    words = [*retrain, *(f'--config.{key}={value}' for key, value in values)]
    words += ['--workdir', str(sweep.workdir / 'best')]
    command = f'python -m alexnet_jax.main {shlex.join(words)}'
    text = (
      f'pictures: {sweep.workdir / REPORT_FOLDER}\n'
      f'to train trial {ranked[0]["trial"]}, the best, again:\n  {command}'
    )
  else:
    reasons = [f'trial {r["trial"]} {r["state"]}: {r["reason"]}' for r in rows]
    text = '\n'.join([*reasons[:3], 'no trial came to its end'])
  print(text, file=sys.stderr)
  return {
    'trials': rows,
    'best': ranked[0] if ranked else None,
    'command': command,
    'pictures': pictures,
  }


def _describe(trial, sweep):
  """Returns a finished optuna trial as JSON."""
  from alexnet_jax.evaluation import study as study_lib

  attributes = ('step', 'parameters', 'state_digest', 'reason')
  state = _STATES[trial.state.name]
  return {
    'trial': trial.number,
    'state': state,
    'value': trial.value if state == 'done' else None,
    'values': study_lib.values_of(trial.params, sweep.config),
    'evaluations': [v for _, v in sorted(trial.intermediate_values.items())],
    'workdir': str(sweep.folder(trial.number)),
    **{name: trial.user_attrs.get(name) for name in attributes},
  }


def _show(best, rows, sweep):
  """Prints the best trials, and how many ended in which way."""
  from alexnet_jax.evaluation import page
  from alexnet_jax.evaluation.study import shown

  states = [row['state'] for row in rows]
  counts = ', '.join(f'{states.count(s)} {s}' for s in _STATES.values())
  names = [key.replace('.', '.\n') for key in sweep.space]
  columns = ('trial', 'value', *names, 'parameters', 'steps')
  cells = [
    (
      str(row['trial']),
      f'{row["value"]:.4f}',
      *(shown(row['values'][key]) for key in sweep.space),
      row['parameters'],
      row['step'],
    )
    for row in best
  ]
  page.show_table(page.Table(f'{counts}; {sweep.monitor}', columns, cells))


def _draw(sweep):
  """Draws the history of the trials and a panel for every parameter.

  Returns:
    {'history': path, 'parameters': path} of the pictures in `report/`.
  """
  import warnings

  import matplotlib

  matplotlib.use('agg')  # optuna draws with pyplot, which may open windows
  from matplotlib import pyplot
  import numpy as np
  from optuna.visualization import matplotlib as visualization

  from alexnet_jax.evaluation import figures

  folder, paths = sweep.workdir / REPORT_FOLDER, {}
  folder.mkdir(exist_ok=True)
  drawings = {
    'history': visualization.plot_optimization_history,
    'parameters': visualization.plot_slice,
  }
  for name, draw in drawings.items():
    with warnings.catch_warnings():
      # It is experimental, it says, and a single value has no width.
      warnings.simplefilter('ignore')
      axes = np.ravel(draw(sweep.study, target_name=sweep.monitor))
    figure = axes[0].figure
    figures.save(figure, folder / f'{name}.png')
    pyplot.close(figure)
    paths[name] = str(folder / f'{name}.png')
  return paths


if __name__ == '__main__':
  sys.exit(main())

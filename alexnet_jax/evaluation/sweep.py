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
  add('--workdir', required=True, metavar='DIR', help="the sweep's folder")
  add(
    '--trials',
    type=int,
    default=20,
    metavar='N',
    help='number of trials in all (default: %(default)s)',
  )
  add(
    '--param',
    action='append',
    default=[],
    metavar='KEY=SPEC',
    help='a key of the config and the values to try; once for every key',
  )
  add(
    '--monitor',
    default='eval/top1',
    help='what a trial is judged by (default: %(default)s)',
  )
  add(
    '--mode',
    choices=('min', 'max'),
    help='whether less or more is better (default: min of a loss, else max)',
  )
  add(
    '--pruner',
    choices=PRUNERS,
    default='median',
    help='median (default) ends a trial whose best value so far is worse than'
    ' the median of what the trials before it had at the same evaluation; none'
    ' ends none',
  )
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
  from alexnet_jax.cli import Console
  from alexnet_jax.evaluation import study as study_lib

  study_lib.import_optuna()
  config = validation.load_config([f'--config={arguments.config}', *overrides])
  config.report = False
  space = study_lib.parse_space(arguments.param, config)
  monitor = arguments.monitor
  _check(arguments)
  data = study_lib.shared_data(config, space)  # what is wrong with it shows now
  settings = {
    '--monitor': monitor,
    '--mode': arguments.mode or config_lib.mode_of(monitor),
    '--pruner': arguments.pruner,
    '--seed': arguments.seed,
  }
  made_with = study_lib.description(config, space, data, settings)
  workdir = pathlib.Path(arguments.workdir)
  workdir.mkdir(parents=True, exist_ok=True)
  busy = f'another sweep is under way in {workdir}; wait for it, or end it'
  with files.lock(workdir, busy):
    study = study_lib.open_study(workdir, made_with)
    trials = study_lib.Trials(
      config, space, data, workdir, monitor, study, stop, Console()
    )
    trials.run(arguments.trials, arguments.seed)
    return report(trials, ['--config', arguments.config, *overrides])


def _check(arguments):
  from alexnet_jax.errors import UserError

  if arguments.monitor not in config_lib.MONITORS:
    raise UserError(
      f'--monitor is {arguments.monitor!r}, not one of {config_lib.MONITORS}'
    )
  for name, least in (('trials', 1), ('seed', 0)):
    if (value := getattr(arguments, name)) < least:
      raise UserError(f'--{name} is {value}; it must be at least {least}')


def report(trials, retrain: list[str]) -> dict:
  """Prints the table and the command, and draws `workdir/report/`.

  Args:
    trials: `study.Trials` that are all finished.
    retrain: the recipe and the overrides of the sweep, as arguments.

  Returns:
    {trials: [{trial, state, value, values, reason, ...}], best: one of them or
    None, command: that trains it, pictures: paths}.
  """
  rows = [
    _describe(trial, trials)
    for trial in trials.study.get_trials(deepcopy=False)
  ]
  smaller = trials.study.direction.name == 'MINIMIZE'
  done = [row for row in rows if row['state'] == 'done']
  # Of equal ones the first.
  done.sort(key=lambda row: row['value'] if smaller else -row['value'])
  _show(done[:_BEST], rows, trials)
  pictures = draw(rows, trials)
  lines = [f'pictures: {trials.workdir / REPORT_FOLDER}']
  best = text = None
  if done:
    best = done[0]
    overrides = [f'--config.{k}={value}' for k, value in best['values'].items()]
    words = [*retrain, *overrides, '--workdir', str(trials.workdir / 'best')]
    text = f'python -m alexnet_jax.main {shlex.join(words)}'
    lines.append(f'to train trial {best["trial"]}, the best, again:\n  {text}')
  else:
    lines += [
      f'trial {r["trial"]} {r["state"]}: {r["reason"]}' for r in rows[:3]
    ]
    lines.append('no trial came to its end')
  print('\n'.join(lines), file=sys.stderr)
  return {'trials': rows, 'best': best, 'command': text, 'pictures': pictures}


def _describe(trial, trials):
  """Returns a finished optuna trial as JSON."""
  from alexnet_jax.evaluation import study as study_lib

  attributes = ('step', 'parameters', 'state_digest', 'reason')
  state = _STATES[trial.state.name]
  return {
    'trial': trial.number,
    'state': state,
    'value': trial.value if state == 'done' else None,
    'values': study_lib.values_of(trial.params, trials.config),
    'evaluations': [v for _, v in sorted(trial.intermediate_values.items())],
    'workdir': str(trials.folder(trial.number)),
    **{name: trial.user_attrs.get(name) for name in attributes},
  }


def _show(best, rows, trials):
  """Prints the best trials, and how many ended in which way."""
  from alexnet_jax.evaluation import page
  from alexnet_jax.evaluation.study import shown

  states = [row['state'] for row in rows]
  counts = ', '.join(f'{states.count(s)} {s}' for s in _STATES.values())
  names = [key.replace('.', '.\n') for key in trials.space]
  columns = ('trial', 'value', *names, 'parameters', 'steps')
  cells = [
    (
      str(row['trial']),
      f'{row["value"]:.4f}',
      *(shown(row['values'][key]) for key in trials.space),
      row['parameters'],
      row['step'],
    )
    for row in best
  ]
  page.show_table(page.Table(f'{counts}; {trials.monitor}', columns, cells))


def draw(rows: list[dict], trials) -> dict[str, str]:
  """Draws what the trials are enough for, as PNG files in `report/`.

  Args:
    rows: the trials as JSON, see `report`.
    trials: the `study.Trials`.

  Returns:
    {name: path} of `history`, the value of every trial and the best so far, and
    `parameters`, the values over each of the parameters.
  """
  from alexnet_jax.evaluation import figures

  done = [row for row in rows if row['state'] == 'done']
  drawings = {}
  if any(row['evaluations'] for row in rows):
    drawings['history'] = _draw_history(rows, done, trials)
  if done:
    drawings['parameters'] = _draw_parameters(done, trials)
  folder, paths = trials.workdir / REPORT_FOLDER, {}
  folder.mkdir(exist_ok=True)
  for name, figure in drawings.items():
    figures.save(figure, folder / f'{name}.png')
    paths[name] = str(folder / f'{name}.png')
  return paths


def _draw_history(rows, done, trials):
  import numpy as np

  from alexnet_jax.evaluation import figures

  smaller = trials.study.direction.name == 'MINIMIZE'
  figure, (axes,) = figures.panels(1, height=4)
  numbers = [row['trial'] for row in done]
  values = np.array([row['value'] for row in done])
  best = (np.minimum if smaller else np.maximum).accumulate(values)
  axes.plot(numbers, values, 'o', label='at its end')
  axes.plot(numbers, best, drawstyle='steps-post', label='best so far')
  ended = [r for r in rows if r['state'] != 'done' and r['evaluations']]
  axes.plot(
    [row['trial'] for row in ended],
    [row['evaluations'][-1] for row in ended],
    'x',
    color='gray',
    label='last evaluation of a trial that was pruned or failed'
    if ended
    else None,
  )
  axes.set(xlabel='trial', ylabel=trials.monitor)
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.legend()
  return figure


def _draw_parameters(done, trials):
  """Draws the values over each parameter, a panel for each."""
  from alexnet_jax.evaluation import figures
  from alexnet_jax.evaluation.study import shown

  figure, panels = figures.panels(len(trials.space), height=3.2, columns=4)
  for axes, (key, spec) in zip(panels, trials.space.items(), strict=True):
    values = [row['values'][key] for row in done]
    if hasattr(spec, 'choices'):
      values = [shown(value) for value in values]
    axes.scatter(
      values,
      [row['value'] for row in done],
      c=[row['trial'] for row in done],
      cmap='viridis_r',
      s=25,
    )
    axes.set(xlabel=key)
    if getattr(spec, 'log', False):
      axes.set_xscale('log')
    axes.tick_params(axis='x', labelrotation=30)
  panels[0].set(ylabel=trials.monitor)
  figure.suptitle('every trial that came to its end; later ones are darker')
  return figure


if __name__ == '__main__':
  sys.exit(main())

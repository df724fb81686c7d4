"""What a sweep found: a table, pictures, and the command for the best trial."""

import pathlib
import shlex
import sys

import rich.console
import rich.table

from alexnet_jax.evaluation import search_space
from alexnet_jax.evaluation import sweep_figures
from alexnet_jax.evaluation import sweep_trials

REPORT_FOLDER = 'report'
_BEST = 10  # trials in the table
_STATES = {'COMPLETE': 'done', 'PRUNED': 'pruned', 'FAIL': 'failed'}


def report(
  study, space: dict, workdir: pathlib.Path, monitor: str, retrain: list[str]
) -> dict:
  """Prints the table and the command, and draws `workdir/report/`.

  Args:
    study: whose trials are all finished.
    space: see `search_space.parse`.
    workdir: the sweep's folder.
    monitor: what a trial is judged by.
    retrain: the recipe and the overrides of the sweep, as arguments.

  Returns:
    {trials: [{trial, state, value, values, reason, ...}], best: one of them or
    None, command: that trains it, pictures: paths}.
  """
  trials = [
    describe(trial, space, workdir)
    for trial in study.get_trials(deepcopy=False)
  ]
  done = [trial for trial in trials if trial['state'] == 'done']
  smaller = study.direction.name == 'MINIMIZE'
  # Of equal ones the first.
  done.sort(key=lambda t: t['value'] if smaller else -t['value'])
  best = done[0] if done else None
  counts = [
    f'{sum(trial["state"] == state for trial in trials)} {state}'
    for state in _STATES.values()
  ]
  _show(done[:_BEST], list(space), f'{", ".join(counts)}; {monitor}')
  pictures = sweep_figures.draw(study, workdir / REPORT_FOLDER, monitor)
  line(f'pictures: {workdir / REPORT_FOLDER}')
  command = None
  if best:
    command = command_of(best['values'], retrain, workdir / 'best')
    line(f'to train trial {best["trial"]}, the best, once more:\n  {command}')
  else:
    for trial in trials[:3]:
      line(f'trial {trial["trial"]} {trial["state"]}: {trial["reason"]}')
    line('no trial came to its end')
  return {
    'trials': trials,
    'best': best,
    'command': command,
    'pictures': pictures,
  }


def line(text: str) -> None:
  print(text, file=sys.stderr)


def describe(trial, space: dict, workdir: pathlib.Path) -> dict:
  """A finished optuna trial as JSON."""
  return {
    'trial': trial.number,
    'state': _STATES[trial.state.name],
    'value': trial.value,
    'values': search_space.values(space, trial.params),
    'evaluations': [
      trial.intermediate_values[number]
      for number in sorted(trial.intermediate_values)
    ],
    'workdir': str(workdir / sweep_trials.trial_folder(trial.number)),
    'step': trial.user_attrs.get('step'),
    'parameters': trial.user_attrs.get('parameters'),
    'state_digest': trial.user_attrs.get('state_digest'),
    'reason': trial.user_attrs.get('reason'),
  }


def command_of(values: dict, retrain: list[str], workdir: pathlib.Path) -> str:
  """The command that trains with some values of the config."""
  overrides = [f'--config.{key}={value}' for key, value in values.items()]
  arguments = [*retrain, *overrides, '--workdir', str(workdir)]
  return f'python -m alexnet_jax.main {shlex.join(arguments)}'


def _show(trials, keys, title):
  table = rich.table.Table(title=title, title_justify='left')
  names = [key.replace('.', '.\n') for key in keys]
  for column in ('trial', 'value', *names, 'parameters', 'steps'):
    table.add_column(column, justify='right', overflow='fold')
  for trial in trials:
    values = [sweep_trials.show(trial['values'][key]) for key in keys]
    table.add_row(
      str(trial['trial']),
      f'{trial["value"]:.4f}',
      *values,
      f'{trial["parameters"]:,}',
      f'{trial["step"]:,}',
    )
  width = None if sys.stderr.isatty() else 120
  rich.console.Console(
    stderr=True, width=width, highlight=False, markup=False, emoji=False
  ).print(table)

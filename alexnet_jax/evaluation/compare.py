"""Compares runs: python -m alexnet_jax.evaluation.compare --workdirs A B C.

One page of HTML with curves and tables; beside it the pictures as PNG and the
table as CSV. It needs the runs' folders alone, not their data.
"""

import argparse
from collections.abc import Sequence
import pathlib
import sys

import numpy as np

from alexnet_jax import cli
from alexnet_jax.errors import UserError

PAGE, TABLE = 'index.html', 'table.csv'
_UNKNOWN = '-'
_STYLES = ('-', '--', ':', '-.')  # for the eleventh run and so on
_COLORS = 10
_MOST_POINTS = 2_000  # of a line
_LONGEST_NAME, _LEGEND_WIDTH = 40, 120  # letters


def _arguments(argv):
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.evaluation.compare',
    description='Compares runs: curves and tables, as a page of HTML.',
  )
  add = parser.add_argument
  add(
    '--workdirs',
    nargs='+',
    required=True,
    type=cli.path,
    metavar='DIR',
    help='folders of the runs',
  )
  add(
    '--out',
    default='compare',
    type=cli.path,
    metavar='DIR',
    help='folder of the page (default: %(default)s)',
  )
  add(
    '--over',
    choices=('epochs', 'steps'),
    default='epochs',
    help='what the curves are drawn over (default: %(default)s)',
  )
  cli.add_json(parser)
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  arguments = _arguments(argv)
  out = pathlib.Path(arguments.out)
  return cli.run(
    lambda: compare(arguments.workdirs, out, arguments.over),
    json_output=arguments.json,
  )


def compare(workdirs: list[str], out: pathlib.Path, unit: str) -> dict:
  """Writes the page, and prints its tables.

  Args:
    workdirs: folders of the runs.
    out: folder of the page; made if it is missing.
    unit: `epochs` or `steps`, of the curves.

  Returns:
    {runs: [{name, workdir, seed, fingerprint, ...}], groups, notes, page,
    files}; JSON.

  Raises:
    UserError: if a folder is no run's, or given twice.
  """
  from alexnet_jax import files
  from alexnet_jax.evaluation import page
  from alexnet_jax.evaluation import run_record

  names = _names(workdirs)
  runs = [run_record.load(*pair) for pair in zip(workdirs, names, strict=True)]
  rows = [run_record.numbers(run) for run in runs]
  result = {
    'runs': rows,
    'groups': run_record.groups(runs, rows),
    'notes': run_record.notes(runs),
  }
  out.mkdir(parents=True, exist_ok=True)
  files.write_csv(out / TABLE, [list(rows[0]), *(r.values() for r in rows)])
  pictures, drawn = _draw(runs, unit, out)
  tables, repetitions = _tables(rows), _groups_table(result['groups'])
  sections = [
    page.Section('Runs', ' '.join([*result['notes'], _TEXT]), tables=tables),
    *_section(
      'Repetitions', repetitions, 'Runs that differ in the seed alone.'
    ),
    page.Section('Curves', pictures=pictures),
    *_section('Config', _config_table(runs)),
  ]
  page.write(
    out / PAGE, page.render(f'Comparison of {len(runs)} runs', sections)
  )
  for table in (*tables, repetitions):
    if table.rows:
      page.show_table(table)
  lines = [f'NOTE: {note}' for note in result['notes']]
  print('\n'.join([*lines, f'page: {out / PAGE}']), file=sys.stderr)
  paths = [str(out / name) for name in (TABLE, *drawn, PAGE)]
  return {**result, 'page': paths[-1], 'files': paths}


_TEXT = (
  'The measures are those of the state that a run ends with, on its validation'
  ' data. The training time is without compilation, evaluation and saving.'
  ' FLOP: convolutions and dense layers, two per multiply-add. A click on a'
  ' column sorts.'
)


def _names(workdirs):
  """Names runs by the last parts of their paths, or by all where they agree."""
  paths = [pathlib.Path(workdir).resolve() for workdir in workdirs]
  for number, path in enumerate(paths):
    if path in paths[:number]:
      raise UserError(f'--workdirs has {workdirs[number]} twice')
  names = [path.name for path in paths]
  return [
    name if names.count(name) == 1 else str(pathlib.Path(workdir))
    for name, workdir in zip(names, workdirs, strict=True)
  ]


def _cell(key, value):
  """Prepares a value for tables, which have four digits behind the point."""
  if value is None:
    return _UNKNOWN
  if key == 'images_per_second' or (key == 'training_seconds' and value > 100):
    return round(value)
  return value


def _tables(rows):
  """Makes two tables: one would be wider than the page."""
  from alexnet_jax.evaluation import page
  from alexnet_jax.evaluation import run_record

  return [
    page.Table(
      title,
      ('run', *titles.values()),
      [(r['name'], *(_cell(key, r[key]) for key in titles)) for r in rows],
      sortable=True,
    )
    for title, titles in (
      ('Measures on the validation data', run_record.MEASURES),
      ('Size, length and speed', run_record.COSTS),
    )
  ]


def _groups_table(found):
  from alexnet_jax.evaluation import page
  from alexnet_jax.evaluation.run_record import SPREAD

  keys = [key for key in SPREAD if any(key in group for group in found)]
  rows = [
    (
      ', '.join(group['runs']),
      ', '.join(map(str, group['seeds'])),
      *(_mean_and_error(group.get(key)) for key in keys),
    )
    for group in found
  ]
  columns = ('runs', 'seeds', *(SPREAD[key] for key in keys))
  return page.Table('Mean ± standard error', columns, rows)


def _mean_and_error(spread):
  if spread is None:
    return _UNKNOWN
  digits = 4 if abs(spread['mean']) < 10 else 1
  mean, error = spread['mean'], spread['standard_error']
  return f'{mean:,.{digits}f} ± {error:,.{digits}f}'


def _config_table(runs):
  """Lists the keys of the config in which the runs differ."""
  from alexnet_jax import config as config_lib
  from alexnet_jax.evaluation import page

  configs = [config_lib.flatten(run.config) for run in runs]
  rows = [
    (key, *(str(config[key]) for config in configs))
    for key in sorted(configs[0])
    if any(config[key] != configs[0][key] for config in configs)
  ]
  columns = ('key', *(run.name for run in runs))
  return page.Table('Keys of the config that differ', columns, rows)


def _section(title, table, text=''):
  """Returns [a section with a table], or none without rows."""
  from alexnet_jax.evaluation import page

  return [page.Section(title, text, tables=[table])] if table.rows else []


def _draw(runs, unit, out):
  """Draws what the histories are enough for; ([pictures], names of files)."""
  from alexnet_jax.evaluation import figures
  from alexnet_jax.evaluation import page

  window = f'the losses of the last {figures.WINDOW} steps'
  drawings = {
    'validation': (draw_validation, 'Top-1 and loss of the validation', ''),
    'training_loss': (
      draw_training_loss,
      'Rolling mean and deviation of the training loss',
      f'Mean and deviation of {window}, with dropout and augmentation.',
    ),
  }
  if not any(len(figures.step_losses(run.rows)[0]) for run in runs):
    del drawings['training_loss']
  pictures = []
  for name, (draw, title, caption) in drawings.items():
    png = figures.save(draw(runs, unit), out / f'{name}.png')
    pictures.append(page.Picture(png, f'{title} over the {unit}', caption))
  return pictures, [f'{name}.png' for name in drawings]


def draw_validation(runs: Sequence, unit: str):
  """Draws top-1 and loss of every evaluation.

  Args:
    runs: `run_record.RunRecord` each.
    unit: `epochs` or `steps`, of the axis.
  """
  from alexnet_jax.evaluation import figures

  figure, (accuracy, loss) = figures.panels(2)
  for number, run in enumerate(runs):
    style = {**_style(number, run), 'marker': 'o'}
    for axes, key in ((accuracy, 'eval/top1'), (loss, 'eval/loss')):
      points = {row['step']: row[key] for row in run.rows if key in row}
      steps = np.array(sorted(points))
      values = [points[step] for step in steps]
      _line(axes, _along(run, steps, unit), values, style)
  accuracy.set(xlabel=unit, ylabel='validation top-1')
  loss.set(xlabel=unit, ylabel='validation loss [nats]', ylim=(0, None))
  _legend(figure, accuracy)
  return figure


def draw_training_loss(runs: Sequence, unit: str):
  """Draws rolling mean and deviation of the losses; see `draw_validation`."""
  from alexnet_jax.evaluation import figures

  figure, (mean, deviation) = figures.panels(2)
  for number, run in enumerate(runs):
    steps, losses = figures.step_losses(run.rows)
    rolling = figures.rolling(losses, figures.WINDOW)
    for axes, values in zip((mean, deviation), rolling, strict=True):
      _line(axes, _along(run, steps, unit), values, _style(number, run))
  last = f'of {figures.WINDOW} steps [nats]'
  mean.set(xlabel=unit, ylabel=f'training loss, mean {last}', ylim=(0, None))
  deviation.set(xlabel=unit, ylabel=f'deviation {last}', ylim=(0, None))
  _legend(figure, mean)
  return figure


def _along(run, steps, unit):
  """Converts steps to the unit of the axis."""
  return steps if unit == 'steps' else run.epochs(steps)


def _style(number, run):
  """Returns the look of a run's lines: matplotlib's arguments."""
  from alexnet_jax.evaluation import figures

  return {
    'color': f'C{number % _COLORS}',
    'linestyle': _STYLES[number // _COLORS % len(_STYLES)],
    'label': figures.shortened(run.name, _LONGEST_NAME),
  }


def _line(axes, x, values, style):
  """Draws a line, unless it has no points."""
  from alexnet_jax.evaluation import figures

  if len(x):
    thin = figures.thinning(len(x), _MOST_POINTS)
    axes.plot(x[thin], values[thin], linewidth=1.2, markersize=3, **style)


def _legend(figure, axes):
  """Puts the legend above the panels, where it hides no line."""
  handles, names = axes.get_legend_handles_labels()
  if handles:
    columns = max(1, _LEGEND_WIDTH // (max(map(len, names)) + 6))
    figure.legend(
      handles, names, loc='outside upper left', ncols=columns, frameon=False
    )


if __name__ == '__main__':
  sys.exit(main())

"""Compares runs: python -m alexnet_jax.evaluation.compare --workdirs A B C.

One page of HTML with curves and tables; beside it the pictures as PNG and the
table as CSV. It needs the runs' folders alone, not their data.
"""

import argparse
import pathlib
import sys

from alexnet_jax import cli

_RUNS_BESIDE = 6  # columns of the terminal's table


def _arguments(argv):
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.evaluation.compare',
    description='Compares runs: curves and a table, as a page of HTML.',
  )
  parser.add_argument(
    '--workdirs',
    nargs='+',
    required=True,
    metavar='DIR',
    help='folders of the runs',
  )
  parser.add_argument(
    '--out',
    default='compare',
    metavar='DIR',
    help='folder of the page (default: %(default)s)',
  )
  parser.add_argument(
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
  return cli.run(
    lambda: compare(
      arguments.workdirs, pathlib.Path(arguments.out), arguments.over
    ),
    json_output=arguments.json,
  )


def compare(workdirs: list[str], out: pathlib.Path, unit: str) -> dict:
  """Writes the page, and prints the table.

  Args:
    workdirs: folders of the runs.
    out: folder of the page; made if it is missing.
    unit: `epochs` or `steps`, of the curves.

  Returns:
    {runs: [{name, workdir, ...}], groups, notes, page, files}; JSON.

  Raises:
    UserError: if a folder is no run's, or given twice.
  """
  from alexnet_jax.evaluation import compare_page
  from alexnet_jax.evaluation import run_record

  names = _names(workdirs)
  runs = [run_record.load(w, n) for w, n in zip(workdirs, names, strict=True)]
  sets = {
    'data': run_record.data_sets(runs, 'fingerprint'),
    'eval_data': run_record.data_sets(runs, 'eval_fingerprint'),
  }
  rows = [
    {
      'name': run.name,
      'workdir': str(run.workdir),
      'seed': run.config.seed,
      **{key: letters[number] for key, letters in sets.items()},
      **run_record.numbers(run),
    }
    for number, run in enumerate(runs)
  ]
  result = {
    'runs': rows,
    'groups': compare_page.groups(runs, rows),
    'notes': run_record.data_notes(runs),
  }
  out.mkdir(parents=True, exist_ok=True)
  files = compare_page.write(runs, result, out, unit)
  _show(result)
  print(f'page: {files[-1]}', file=sys.stderr)
  return {**result, 'page': files[-1], 'files': files}


def _names(workdirs):
  """The last parts of the paths, or all of them where those are alike."""
  from alexnet_jax.errors import UserError

  paths = [pathlib.Path(workdir).resolve() for workdir in workdirs]
  for number, path in enumerate(paths):
    if path in paths[:number]:
      raise UserError(f'--workdirs has {workdirs[number]} twice')
  names = [path.name for path in paths]
  return [
    name if names.count(name) == 1 else str(pathlib.Path(workdir))
    for name, workdir in zip(names, workdirs, strict=True)
  ]


def _show(result):
  """Prints the tables and the notes."""
  import rich.console

  from alexnet_jax.evaluation import compare_page

  width = None if sys.stderr.isatty() else 120
  console = rich.console.Console(
    file=sys.stderr, width=width, highlight=False, markup=False, emoji=False
  )
  rows = result['runs']
  for start in range(0, len(rows), _RUNS_BESIDE):
    end = min(start + _RUNS_BESIDE, len(rows))
    console.print(_runs_table(rows, range(start, end)))
  for group in result['groups']:
    values = ', '.join(
      f'{title} {compare_page.with_deviation(group[key])}'
      for key, title in compare_page.spread_titles(group).items()
    )
    console.print(f'{", ".join(group["runs"])}: {values}')
  for note in result['notes']:
    console.print(f'NOTE: {note}')


def _runs_table(rows, beside):
  """Some runs side by side; * marks the best of all."""
  import rich.table

  from alexnet_jax.evaluation import compare_page
  from alexnet_jax.evaluation import page

  found = compare_page.best(rows)
  table = rich.table.Table('', caption='* the best', caption_justify='left')
  for number in beside:
    table.add_column(rows[number]['name'], justify='right', overflow='fold')
  data = [f'{compare_page.data_letters(rows[number])} ' for number in beside]
  table.add_row('data (training / validation)', *data)
  for key, (title, _) in compare_page.COLUMNS.items():
    cells = []
    for number in beside:
      text = page.shown(compare_page.cell(key, rows[number][key]))
      cells.append(text + ('*' if (number, key) in found else ' '))
    table.add_row(title, *cells)
  return table


if __name__ == '__main__':
  sys.exit(main())

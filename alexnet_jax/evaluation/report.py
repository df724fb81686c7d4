"""The report of a run: python -m alexnet_jax.evaluation.report --workdir DIR.

One page of HTML with tables and pictures, in the run's folder `report`; beside
it the pictures as PNG, and the measures of the classes and the confusion matrix
as CSV.
"""

import argparse
from collections.abc import Callable
import itertools
import json
import pathlib
import sys

from alexnet_jax import cli

REPORT_FOLDER = 'report'
PAGE = 'index.html'
MOST_LISTED = 30  # classes that the terminal lists one and all
BEST_AND_WORST = 10  # classes of each that it lists of more


def write(
  workdir: str,
  which: str = 'final',
  data_path: str = '',
  progress: Callable[[int], None] = lambda done: None,
) -> dict:
  """Measures a run, and writes its report.

  Without a checkpoint it has the curves alone, without a history the rest. The
  page is written last.

  Args:
    workdir: the run's folder; it may be training at the same time.
    which: `final`, `newest`, `best` or the number of a step.
    data_path: where the data lies now; '': where it lay in training.
    progress: called with the number of batches and pictures done; may raise.

  Returns:
    {page, files, config} and, of a checkpoint, `measured_run.numbers`; JSON.

  Raises:
    UserError: if the folder has neither history nor checkpoint, or the
      checkpoint's data is not there.
  """
  from alexnet_jax import config as config_lib
  from alexnet_jax.evaluation import measured_run
  from alexnet_jax.evaluation import page
  from alexnet_jax.evaluation import sections
  from alexnet_jax.training import checkpoint

  path, done = pathlib.Path(workdir), itertools.count(1)
  rows, trained = _history(path)

  def tick():
    progress(next(done))

  subject, numbers, config = None, {}, _config(path)
  if trained:
    subject = measured_run.load(workdir, which, data_path, tick)
    numbers = measured_run.numbers(subject)
    config = subject.run.config.to_dict()
  settings = config_lib.flatten(config)
  data = subject.validation.source.name if subject else ''
  album = sections.Album(path / REPORT_FOLDER, tick)
  checkpoint.refuse_links(path)
  album.folder.mkdir(exist_ok=True)
  parts = [
    sections.overview(numbers, settings, data, _missing(rows, trained)),
    *sections.training(rows, album),
  ]
  if subject:
    parts += sections.network(subject, numbers, album)
    album.files += _tables(subject, numbers['classes'], album.folder)
  html = page.render(f'Report of {path.resolve().name}', parts)
  page.write(album.folder / PAGE, html)
  return {
    'page': str(album.folder / PAGE),
    'files': [str(file) for file in album.files],
    'config': settings,
    **numbers,
  }


def _history(path):
  """Returns the rows of the history, and whether there is a checkpoint."""
  from alexnet_jax.errors import UserError
  from alexnet_jax.training import checkpoint
  from alexnet_jax.training import writers

  rows, trained = writers.read_rows(path), checkpoint.has_checkpoint(path)
  if not (rows or trained):
    raise UserError(
      f'{path} has no history ({writers.METRICS_FILE}) and no checkpoint; is it'
      ' the folder of a run?'
    )
  return rows, trained


def _config(path):
  """Reads the config of a run without a checkpoint; {} if it is not there."""
  from alexnet_jax import config as config_lib

  try:
    return json.loads((path / config_lib.CONFIG_FILE).read_text())
  except (OSError, ValueError):
    return {}


def _missing(rows, trained):
  """Says what a report lacks, for people."""
  if not trained:
    return (
      'The run has no checkpoint yet, so nothing could be measured: no'
      ' accuracy, no confusion matrix, no images.'
    )
  return '' if rows else 'The run has no history, so there are no curves.'


def _tables(subject, classes, folder):
  """Writes the CSV files; returns their paths."""
  from alexnet_jax import files

  rows = [list(classes[0]), *(list(row.values()) for row in classes)]
  files.write_csv(folder / 'classes.csv', rows)
  names = subject.run.class_names
  matrix = [
    [name, *counts]
    for name, counts in zip(
      names, subject.measured.confusion.tolist(), strict=True
    )
  ]
  files.write_csv(folder / 'confusion.csv', [['true', *names], *matrix])
  return [folder / 'classes.csv', folder / 'confusion.csv']


def show(result: dict) -> None:
  """Prints what `write` found on standard error."""
  from alexnet_jax.evaluation import page
  from alexnet_jax.evaluation import sections

  if values := result.get('metrics'):
    print(
      f'step {result["step"]}, {result["examples"]:,} validation images:'
      f' accuracy {values["eval/top1"]:.4f}, top-5 {values["eval/top5"]:.4f},'
      f' loss {values["eval/loss"]:.4f}',
      file=sys.stderr,
    )
    page.show_table(sections.averages_table(values))
    for title, rows in _listed(result['classes']).items():
      page.show_table(sections.classes_table(title, rows))
  print(f'report: {result["page"]}', file=sys.stderr)


def _listed(classes):
  """Returns {title: rows}: every class, or of many the best and the worst."""
  if len(classes) <= MOST_LISTED:
    return {'Every class': classes}
  ranked = sorted(
    (row for row in classes if row['support']), key=lambda row: -row['f1']
  )
  # No class is both, where only few of them have examples.
  best, others = ranked[:BEST_AND_WORST], ranked[BEST_AND_WORST:]
  worst = others[-BEST_AND_WORST:]
  return {
    f'The {len(rows)} {which} classes by F1': rows
    for which, rows in (('best', best), ('worst', worst))
    if rows
  }


def _arguments(argv):
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.evaluation.report',
    description='Measures a saved run, and writes a page of tables and'
    f' pictures: DIR/{REPORT_FOLDER}/{PAGE}.',
  )
  cli.add_run(parser)
  cli.add_data_path(parser)
  cli.add_json(parser)
  return parser.parse_args(argv)


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  arguments = _arguments(argv)
  return cli.run(lambda: _report(arguments), json_output=arguments.json)


def _report(arguments):
  result = write(arguments.workdir, arguments.checkpoint, arguments.data_path)
  show(result)
  return result


if __name__ == '__main__':
  sys.exit(main())

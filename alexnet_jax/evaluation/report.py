"""The report of a run: python -m alexnet_jax.evaluation.report --workdir DIR.

Writes a page of HTML, its pictures as PNG and its tables as CSV into `report`
in the run's folder.
"""

from collections.abc import Callable, Sequence
import contextlib
import pathlib
import sys

from alexnet_jax import cli

REPORT_FOLDER = 'report'
PAGE = 'index.html'
_MOST_LISTED = 30  # classes that the terminal lists one and all


def write(
  workdir: str,
  which: str = 'final',
  data_path: str = '',
  tick: Callable[[], None] = lambda: None,
  extras: Sequence[str] = (),
) -> dict:
  """Measures a run, and writes its report.

  Without a checkpoint it has the curves alone, without a history the rest. The
  page is written last.

  Args:
    workdir: the run's folder; it may be training at the same time.
    which: `final`, `newest`, `best` or the number of a step.
    data_path: where the data lies now; '': where it lay in training.
    tick: called for each batch and picture; may raise.
    extras: of `paper` and `visualize`, for what those commands draw.

  Returns:
    {page, files, config, notes, seconds} and, of a checkpoint,
    `sections.numbers` and what the extras return, by name; JSON.

  Raises UserError without history and checkpoint, or without its data.
  """
  from alexnet_jax import config as config_lib, validation
  from alexnet_jax.errors import UserError
  from alexnet_jax.evaluation import loading, page, paper, sections, visualize
  from alexnet_jax.training import accounting, checkpoint, writers

  path = pathlib.Path(workdir)
  folder = path / REPORT_FOLDER
  checkpoint.refuse_links(path)
  rows, trained = writers.read_rows(path), checkpoint.has_checkpoint(path)
  if not (rows or trained):
    raise UserError(
      f'{path} has no history ({writers.METRICS_FILE}) and no checkpoint; is it'
      ' the folder of a run?'
    )
  subject, numbers, config, measured = None, {}, {}, []
  notes = _notes(path, trained)
  if not rows:
    notes.append('The run has no history, so there are no curves.')
  with contextlib.suppress(UserError):  # it has none yet
    config = validation.read_config(path)
  if trained:
    run = loading.load_network(workdir, which, data_path)
    subject = sections.measure_run(run, tick)
    numbers = sections.numbers(subject)
    config = subject.run.config
    measured = [f'Measured on {subject.validation.source.name}.']
  settings = config_lib.flatten(config)
  seconds = accounting.account(path).seconds
  album = sections.Album(folder, tick)
  folder.mkdir(exist_ok=True)
  parts = [
    sections.overview(numbers, settings, ' '.join([*measured, *notes])),
    *sections.training(rows, album),
    *sections.times(seconds),
  ]
  if subject:
    parts += sections.network(subject, numbers, album)
    drawing = {'paper': paper.draw, 'visualize': visualize.draw}
    for extra in extras:
      numbers[extra], more = drawing[extra](subject, album)
      parts += more
  page.write(folder / PAGE, f'Report of {path.resolve().name}', parts)
  return {
    'page': str(folder / PAGE),
    'files': [str(file) for file in album.files],
    'config': settings,
    'notes': notes,
    'seconds': seconds,
    **numbers,
  }


def _notes(path, trained):
  from alexnet_jax.training import checkpoint

  if not trained:
    return [
      'The run has no checkpoint yet, so nothing could be measured: no top-1,'
      ' no confusion matrix, no images.'
    ]
  step, saved = checkpoint.read_newest(path)
  if not saved.is_done(step):
    return [f'The run is not done: it is at step {step} of {saved.num_steps}.']
  if saved.progress.stopping.stopped:
    return [f'It was stopped early: at step {step} of {saved.num_steps}.']
  return []


def show(result: dict) -> None:
  """Prints what `write` found on standard error."""
  from alexnet_jax.evaluation import page, sections

  if values := result.get('metrics'):
    print(
      f'step {result["step"]}, {result["examples"]:,} validation images:'
      f' top-1 {values["eval/top1"]:.4f}, top-5 {values["eval/top5"]:.4f},'
      f' loss {values["eval/loss"]:.4f}',
      file=sys.stderr,
    )
    page.show_table(sections.averages_table(values))
    title, classes = 'Every class', result['classes']
    if len(classes) > _MOST_LISTED:
      seen = [row for row in classes if row['support']]
      classes = sorted(seen, key=lambda row: -row['f1'])
      classes = classes[:10] + classes[10:][-10:]
      title = 'The 10 best and the 10 worst classes that have images'
    page.show_table(sections.classes_table(title, classes))
  for note in result['notes']:
    print(f'NOTE: {note}', file=sys.stderr)
  print(f'report: {result["page"]}', file=sys.stderr)


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  text = 'Measures a saved run, and writes a page of tables and pictures:\n'
  text += f'DIR/{REPORT_FOLDER}/{PAGE}.'
  parser = cli.make_parser('evaluation.report', text)
  cli.add_run(parser)
  cli.add_data_path(parser)
  for name, text in (
    ('paper', "the paper's figures and tables"),
    ('visualize', 'what the layers see'),
  ):
    text = f'also {text}, see evaluation.{name}; takes longer'
    parser.add_argument(f'--{name}', action='store_true', help=text)
  return cli.run_parsed(parser, argv, _report)


def _report(arguments):
  result = write(
    arguments.workdir,
    arguments.checkpoint,
    arguments.data_path,
    extras=[e for e in ('paper', 'visualize') if getattr(arguments, e)],
  )
  show(result)
  return result


if __name__ == '__main__':
  sys.exit(main())

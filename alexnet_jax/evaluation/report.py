"""Pictures of a run: python -m alexnet_jax.evaluation.report --workdir DIR."""

import argparse
import itertools
import pathlib
import sys

REPORT_FOLDER = 'report'


def draw_curves(rows: list[dict], path: pathlib.Path) -> None:
  """Loss and accuracy over the steps, as PNG.

  Args:
    rows: the run's history, see `training.writers.read_rows`.
    path: the file to write.
  """
  import matplotlib

  matplotlib.use('Agg')
  from matplotlib import pyplot

  figure, (loss, accuracy) = pyplot.subplots(1, 2, figsize=(10, 3.6))
  _line(loss, rows, 'train/loss', 'training', 'C0')
  _line(loss, rows, 'eval/loss', 'validation', 'C1', marker='o')
  loss.set(xlabel='step', ylabel='loss [nats]', ylim=(0, None))
  _line(accuracy, rows, 'train/top1', 'training, with dropout', 'C0')
  _line(accuracy, rows, 'eval/top1', 'validation', 'C1', marker='o')
  accuracy.set(xlabel='step', ylabel='top-1', ylim=(None, 1))
  for axes in (loss, accuracy):
    for step in rate_drops(rows):
      axes.axvline(step, color='gray', linestyle=':', linewidth=1)
    axes.grid(alpha=0.3)
    axes.legend()
  drops = len(rate_drops(rows))
  if drops:
    figure.suptitle(f'dotted: the learning rate drops ({drops})', fontsize=9)
  figure.tight_layout()
  figure.savefig(path, dpi=110)
  pyplot.close(figure)


def _line(axes, rows, key, label, color, marker=None):
  points = [(row['step'], row[key]) for row in rows if key in row]
  if points:
    axes.plot(
      *zip(*points, strict=True),
      label=label,
      color=color,
      marker=marker,
      markersize=3,
      linewidth=1.2,
    )


def rate_drops(rows: list[dict]) -> list[int]:
  """Steps of the log points at which the rate is less than half as before."""
  rates = [(r['step'], r['learning_rate']) for r in rows if 'train/loss' in r]
  return [
    step
    for (_, before), (step, rate) in itertools.pairwise(rates)
    if rate < before / 2
  ]


def _report(workdir):
  from alexnet_jax.errors import UserError
  from alexnet_jax.training import writers

  rows = writers.read_rows(workdir)
  if not rows:
    raise UserError(
      f'{workdir} has no history ({writers.METRICS_FILE}); is it the folder of'
      ' a run?'
    )
  folder = pathlib.Path(workdir) / REPORT_FOLDER
  folder.mkdir(exist_ok=True)
  draw_curves(rows, folder / 'curves.png')
  print(f'curves: {folder / "curves.png"}', file=sys.stderr)
  return {'curves': str(folder / 'curves.png')}


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.evaluation.report',
    description='Draws the curves of a run.',
  )
  parser.add_argument('--workdir', required=True, help='folder of the run')
  parser.add_argument('--json', action='store_true')
  arguments = parser.parse_args(argv)
  from alexnet_jax import command

  return command.run(
    lambda: _report(arguments.workdir), json_output=arguments.json
  )


if __name__ == '__main__':
  sys.exit(main())

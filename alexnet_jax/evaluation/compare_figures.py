"""Curves of several runs over one another."""

from collections.abc import Sequence

from alexnet_jax.evaluation import figures
from alexnet_jax.evaluation.run_record import RunRecord

_STYLES = ('-', '--', ':', '-.')  # for the eleventh run and so on
_COLOURS = 10
_MOST_POINTS = 2_000  # of a line
_LONGEST_NAME = 40
_LEGEND_WIDTH = 120  # letters


def draw_validation(runs: Sequence[RunRecord], unit: str):
  """Top-1 and loss of every evaluation.

  Args:
    runs: the runs.
    unit: `epochs` or `steps`, of the axis.
  """
  figure, (accuracy, loss) = figures.panels(2)
  for axes, key, label in (
    (accuracy, 'eval/top1', 'validation top-1'),
    (loss, 'eval/loss', 'validation loss [nats]'),
  ):
    for number, run in enumerate(runs):
      points = {row['step']: row[key] for row in run.rows if key in row}
      steps = sorted(points)
      _line(
        axes,
        number,
        run,
        [_at(run, step, unit) for step in steps],
        [points[step] for step in steps],
        marker='o',
      )
    axes.set(xlabel=unit, ylabel=label)
  loss.set_ylim(0, None)
  _legend(figure, accuracy)
  return figure


def draw_training_loss(runs: Sequence[RunRecord], unit: str):
  """The rolling mean of the loss of each step; see `draw_validation`."""
  figure, (axes,) = figures.panels(1, height=4)
  for number, run in enumerate(runs):
    steps, losses = figures.step_losses(run.rows)
    means, _ = figures.rolling(losses, figures.WINDOW)
    _line(axes, number, run, _at(run, steps, unit), means)
  axes.set(
    xlabel=unit,
    ylabel=f'training loss, mean of {figures.WINDOW} steps [nats]',
    ylim=(0, None),
  )
  _legend(figure, axes)
  return figure


def draw_deviation(runs: Sequence[RunRecord], unit: str):
  """The rolling deviation of the loss of each step; see `draw_validation`."""
  figure, (axes,) = figures.panels(1, height=4)
  for number, run in enumerate(runs):
    steps, losses = figures.step_losses(run.rows)
    _, deviations = figures.rolling(losses, figures.WINDOW)
    _line(axes, number, run, _at(run, steps, unit), deviations)
  axes.set(
    xlabel=unit,
    ylabel=f'deviation of {figures.WINDOW} steps [nats]',
    ylim=(0, None),
  )
  _legend(figure, axes)
  return figure


def _at(run, steps, unit):
  return steps if unit == 'steps' else run.epochs(steps)


def _line(axes, number, run, places, values, **how):
  if not len(places):
    return
  thin = slice(None, None, max(1, -(-len(places) // _MOST_POINTS)))
  axes.plot(
    places[thin],
    values[thin],
    color=f'C{number % _COLOURS}',
    linestyle=_STYLES[number // _COLOURS % len(_STYLES)],
    linewidth=1.2,
    markersize=3,
    label=figures.shortened(run.name, _LONGEST_NAME),
    **how,
  )


def _legend(figure, axes):
  """Above the panels, where it hides no line."""
  handles, names = axes.get_legend_handles_labels()
  if handles:
    columns = max(1, _LEGEND_WIDTH // (max(map(len, names)) + 6))
    figure.legend(
      handles, names, loc='outside upper left', ncols=columns, frameon=False
    )

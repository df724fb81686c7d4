"""Figures of a run: curves of its history, and its confusion matrix.

Functions of rows and arrays; nothing here knows a config. `save` writes what
they return. None of them uses pyplot, which keeps figures alive.
"""

from collections.abc import Sequence
import io
import itertools
import pathlib
import warnings

import numpy as np

from alexnet_jax import files
from alexnet_jax.training import metrics
from alexnet_jax.training import writers

MOST_LABELLED = 30  # classes whose confusion matrix has names and numbers
BARS = 25  # most confused pairs beside a larger matrix
_MOST_CELLS = 400  # of a side of it, so that each is a pixel at least
WINDOW = 50  # steps of the rolling mean and deviation
_MOST_POINTS = 5_000  # of a line; more only blacken the picture
_TRAINING, _VALIDATION, _GRAY = '#1b6ca8', '#d1670a', '#8a929a'


def rolling(
  values: Sequence[float], window: int
) -> tuple[np.ndarray, np.ndarray]:
  """Returns mean and deviation of the last `window` values up to each.

  The first ones have fewer values before them, and use those. The deviation is
  that of the values themselves (divided by their number).

  Args:
    values: [n].
    window: number of values, 1 or more.

  Returns:
    (means, deviations), float64 [n].
  """
  values = np.asarray(values, np.float64)
  means, deviations = np.empty_like(values), np.empty_like(values)
  for end in range(1, min(window, len(values) + 1)):
    part = values[:end]
    means[end - 1], deviations[end - 1] = part.mean(), part.std()
  # In blocks: a long run's windows side by side would fill the memory.
  for start in range(0, len(values) - window + 1, 10_000):
    block = values[start : start + 10_000 + window - 1]
    windows = np.lib.stride_tricks.sliding_window_view(block, window)
    part = slice(start + window - 1, start + window - 1 + len(windows))
    means[part], deviations[part] = windows.mean(1), windows.std(1)
  return means, deviations


def step_losses(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
  """Collects (steps int64 [n], losses float64 [n]) of a history.

  Args:
    rows: see `training.writers.read_rows`; they may have none.
  """
  steps, losses = [], []
  for row in rows:
    values = row.get(writers.STEP_LOSSES, [])
    steps += range(row['step'] - len(values) + 1, row['step'] + 1)
    losses += values
  return np.array(steps, np.int64), np.array(losses, np.float64)


def _learning_rates(row):
  """Returns {key: value} of each group of parameters, if there are several."""
  groups = {k: v for k, v in row.items() if k.startswith('learning_rate/')}
  return groups or {'learning_rate': row['learning_rate']}


def learning_rate_drops(rows: list[dict]) -> list[int]:
  """Lists the steps of log points with a learning rate below half of before."""
  points = [(r['step'], _learning_rates(r)) for r in rows if 'train/loss' in r]
  return [
    step
    for (_, before), (step, after) in itertools.pairwise(points)
    if any(after[key] < before[key] / 2 for key in after)
  ]


def save(figure, path: pathlib.Path) -> bytes:
  """Writes a figure as PNG; returns the file's content.

  Letters that matplotlib's font lacks become boxes, without a warning each.
  """
  content = io.BytesIO()
  with warnings.catch_warnings():
    warnings.filterwarnings('ignore', message='Glyph', category=UserWarning)
    figure.savefig(content, format='png')
  with files.replaced_file(path) as temporary:
    temporary.write_bytes(content.getvalue())
  return content.getvalue()


def thinning(count: int, most: int) -> slice:
  """Returns the slice that leaves at most `most` of `count` points, evenly."""
  return slice(None, None, max(1, -(-count // most)))


def draw_step_losses(rows: list[dict]):
  """Draws the loss of every step, its rolling mean and rolling deviation."""
  steps, losses = step_losses(rows)
  means, deviations = rolling(losses, WINDOW)
  # Evenly chosen; the rolling values are those of all steps.
  thin = thinning(len(steps), _MOST_POINTS)
  steps, losses = steps[thin], losses[thin]
  means, deviations = means[thin], deviations[thin]
  figure, (left, right) = panels(2)
  left.plot(steps, losses, color=_GRAY, linewidth=0.5, label='loss of a step')
  left.fill_between(
    steps,
    means - deviations,
    means + deviations,
    color=_TRAINING,
    alpha=0.2,
    linewidth=0,
  )
  label = f'mean of {WINDOW} steps, ± deviation'
  left.plot(steps, means, color=_TRAINING, linewidth=1.5, label=label)
  left.set(xlabel='step', ylabel='training loss [nats]')
  right.plot(steps, deviations, color=_TRAINING, linewidth=1.2)
  right.set(
    xlabel='step',
    ylabel=f'deviation of {WINDOW} steps [nats]',
    ylim=(0, None),
  )
  legend(left)
  return figure


def draw_curves(rows: list[dict]):
  """Draws loss and accuracy, with the drops of the learning rate dotted."""
  figure, (loss, accuracy) = panels(2)
  _line(loss, rows, 'train/loss', _TRAINING, label='training')
  _line(loss, rows, 'eval/loss', _VALIDATION, label='validation', marker='o')
  loss.set(xlabel='step', ylabel='loss [nats]', ylim=(0, None))
  _line(accuracy, rows, 'train/top1', _TRAINING, label='training, with dropout')
  _line(
    accuracy, rows, 'eval/top1', _VALIDATION, label='validation', marker='o'
  )
  accuracy.set(xlabel='step', ylabel='top-1', ylim=(None, 1))
  drops = learning_rate_drops(rows)
  for axes in (loss, accuracy):
    _mark(axes, drops)
    legend(axes)
  if drops:
    figure.suptitle(
      f'dotted: the learning rate drops ({len(drops)})', fontsize=10
    )
  return figure


def draw_learning_rate(rows: list[dict]):
  """Draws the learning rates; logarithmic if one falls tenfold."""
  figure, (axes,) = panels(1, height=2.6)
  points = [_learning_rates(row) for row in rows if 'learning_rate' in row]
  keys = list(points[0]) if points else []
  for number, key in enumerate(keys):
    color = f'C{number}' if len(keys) > 1 else _TRAINING
    label = key.partition('/')[2] or None
    _line(axes, rows, key, color, label=label, drawstyle='steps-post')
  if len(keys) > 1:
    legend(axes)
  rates = [value for point in points for value in point.values() if value > 0]
  if rates and max(rates) >= 10 * min(rates):
    axes.set_yscale('log')
  else:
    axes.set_ylim(0, None)
  axes.set(xlabel='step', ylabel='learning rate')
  _mark(axes, learning_rate_drops(rows))
  return figure


def draw_speed(rows: list[dict]):
  """Draws images per second, and the share of time that waits for data."""
  figure, (speed, wait) = panels(2, height=2.8)
  _line(speed, rows, 'images_per_second', _TRAINING)
  speed.set(xlabel='step', ylabel='images per second', ylim=(0, None))
  _line(wait, rows, 'data_wait_fraction', _VALIDATION)
  wait.set(xlabel='step', ylabel='share of time waiting', ylim=(0, 1))
  return figure


def shortened(name: str, length: int) -> str:
  """Puts a name on one line of at most `length` characters."""
  # What cannot be encoded comes from names of files in another encoding.
  name = name.encode(errors='replace').decode()
  name = ' '.join(name.split())
  return name if len(name) <= length else f'{name[: length - 1]}…'


def panels(count: int, height: float = 3.6, columns: int | None = None):
  """Returns a figure and its panels, side by side and in rows.

  Args:
    count: number of panels.
    height: of a row, in inches.
    columns: panels in a row; None: all.
  """
  from matplotlib.figure import Figure

  columns = min(count, columns or count)
  rows = -(-count // columns)
  figure = Figure(figsize=(11, rows * height), dpi=110, layout='constrained')
  every = figure.subplots(rows, columns, squeeze=False).ravel()
  for axes in every:
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
  for axes in every[count:]:
    axes.remove()
  return figure, every[:count]


def _line(axes, rows, key, color, **how):
  """Draws a line through the rows that have a value of `key`."""
  points = [(row['step'], row[key]) for row in rows if key in row]
  if points:
    axes.plot(
      *zip(*points, strict=True),
      color=color,
      markersize=3,
      linewidth=1.2,
      **how,
    )


def _mark(axes, steps):
  for step in steps:
    axes.axvline(step, color='gray', linestyle=':', linewidth=1)


def legend(axes) -> None:
  """Adds a legend, unless there are no lines: matplotlib warns then."""
  if axes.get_legend_handles_labels()[0]:
    axes.legend()


def draw_confusion(confusion: np.ndarray, class_names: Sequence[str]):
  """Draws a confusion matrix: numbers and names, or a heat map and bars.

  Up to 30 classes have names and a number in each cell, its color the share of
  the true class. More of them make a heat map, where the root of a number is
  the color, with the most confused pairs beside it.

  Args:
    confusion: counts of (true class, predicted class), int [classes, classes].
    class_names: of the rows and columns.
  """
  if len(class_names) <= MOST_LABELLED:
    return _labelled_matrix(confusion, class_names)
  return _heat_map(confusion, class_names)


def _labelled_matrix(confusion, class_names):
  from matplotlib.figure import Figure

  count = len(class_names)
  cell = min(0.6, 10 / count)  # inches
  size = 2.4 + cell * max(4, count)
  figure = Figure(figsize=(size, size), dpi=100, layout='constrained')
  axes = figure.subplots()
  shares = metrics.row_shares(confusion)
  axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
  names = [shortened(name, 20) for name in class_names]
  turned = 90 if max(map(len, names)) > 4 else 0
  axes.set_xticks(range(count), names, rotation=turned, parse_math=False)
  axes.set_yticks(range(count), names, parse_math=False)
  axes.set(xlabel='predicted class', ylabel='true class')
  for (row, column), number in np.ndenumerate(confusion):
    dark = shares[row, column] > 0.5
    text = axes.text(
      column,
      row,
      str(number),
      ha='center',
      va='center',
      color='white' if dark else 'black' if number else '#c5cbd1',
      fontsize=10 if cell > 0.5 and number < 10_000 else 8,
    )
    text.set_in_layout(False)  # hundreds of them would make it slow
  return figure


def _heat_map(confusion, class_names):
  from matplotlib.colors import PowerNorm
  from matplotlib.figure import Figure

  figure = Figure(figsize=(12.4, 7.6), dpi=100, layout='constrained')
  matrix, bars = figure.subplots(1, 2, width_ratios=(2.2, 1))
  cells = _pooled(np.asarray(confusion), _MOST_CELLS)
  extent = (-0.5, len(class_names) - 0.5, len(class_names) - 0.5, -0.5)
  image = matrix.imshow(
    cells,
    cmap='magma_r',
    norm=PowerNorm(0.5, vmin=0, vmax=max(1, cells.max())),
    interpolation='nearest',
    extent=extent,
  )
  figure.colorbar(
    image,
    ax=matrix,
    location='bottom',
    shrink=0.6,
    aspect=40,
    label='examples (the color follows the root)',
  )
  matrix.set(xlabel='predicted class', ylabel='true class')
  _pair_bars(bars, confusion, class_names)
  return figure


def _pooled(matrix, most):
  """Takes the largest of each block, so that at most `most` rows are left.

  Single mistakes stay visible, which averages would wash out.
  """
  block = -(-len(matrix) // most)
  padded = np.pad(matrix, (0, -len(matrix) % block))
  side = len(padded) // block
  return padded.reshape(side, block, side, block).max((1, 3))


def _pair_bars(axes, confusion, class_names):
  pairs = metrics.most_confused(confusion, BARS)
  if not pairs:
    axes.text(0.5, 0.5, 'no mistakes', ha='center', transform=axes.transAxes)
    axes.set_axis_off()
    return
  labels = [
    f'{shortened(class_names[true], 16)} → '
    f'{shortened(class_names[predicted], 16)}'
    for true, predicted, _ in pairs
  ]
  indices = np.arange(len(pairs))
  axes.barh(indices, [examples for *_, examples in pairs], color=_VALIDATION)
  axes.set_yticks(indices, labels, fontsize=9, parse_math=False)
  axes.invert_yaxis()
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set(xlabel='examples')
  axes.margins(y=0.01)
  axes.set_title('most confused: true → predicted', fontsize=10)

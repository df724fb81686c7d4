"""Curves of a run's history as figures.

Functions of the rows alone; nothing here knows a config. `save` writes what
they return.
"""

from collections.abc import Sequence
import io
import itertools
import pathlib
import warnings

import numpy as np

from alexnet_jax import files
from alexnet_jax.training import writers

WINDOW = 50  # steps of the rolling mean and deviation
_MOST_POINTS = 5_000  # of a line; more only blacken the picture
_TRAINING, _VALIDATION, _GREY = '#1b6ca8', '#d1670a', '#8a929a'


def rolling(
  values: Sequence[float], window: int
) -> tuple[np.ndarray, np.ndarray]:
  """Mean and standard deviation of the last `window` values up to each.

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
    place = slice(start + window - 1, start + window - 1 + len(windows))
    means[place], deviations[place] = windows.mean(1), windows.std(1)
  return means, deviations


def step_losses(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
  """(steps int64 [n], losses float64 [n]) of a history; empty if it has none.

  Args:
    rows: see `training.writers.read_rows`.
  """
  steps, losses = [], []
  for row in rows:
    values = row.get(writers.STEP_LOSSES, [])
    steps += range(row['step'] - len(values) + 1, row['step'] + 1)
    losses += values
  return np.array(steps, np.int64), np.array(losses, np.float64)


def rate_drops(rows: list[dict]) -> list[int]:
  """Steps of the log points at which the rate is less than half as before."""
  rates = [(r['step'], r['learning_rate']) for r in rows if 'train/loss' in r]
  return [
    step
    for (_, before), (step, rate) in itertools.pairwise(rates)
    if rate < before / 2
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


def draw_step_losses(rows: list[dict]):
  """The loss of every step with its rolling mean, and its rolling deviation."""
  steps, losses = step_losses(rows)
  means, deviations = rolling(losses, WINDOW)
  # Evenly chosen; the rolling values are those of all steps.
  thin = slice(None, None, max(1, -(-len(steps) // _MOST_POINTS)))
  steps, losses = steps[thin], losses[thin]
  means, deviations = means[thin], deviations[thin]
  figure, (left, right) = panels(2)
  left.plot(steps, losses, color=_GREY, linewidth=0.5, label='loss of a step')
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
  """Loss and accuracy over the steps, the learning rate's drops dotted."""
  figure, (loss, accuracy) = panels(2)
  _line(loss, rows, 'train/loss', _TRAINING, label='training')
  _line(loss, rows, 'eval/loss', _VALIDATION, label='validation', marker='o')
  loss.set(xlabel='step', ylabel='loss [nats]', ylim=(0, None))
  _line(accuracy, rows, 'train/top1', _TRAINING, label='training, with dropout')
  _line(
    accuracy, rows, 'eval/top1', _VALIDATION, label='validation', marker='o'
  )
  accuracy.set(xlabel='step', ylabel='top-1', ylim=(None, 1))
  drops = rate_drops(rows)
  for axes in (loss, accuracy):
    _mark(axes, drops)
    legend(axes)
  if drops:
    figure.suptitle(
      f'dotted: the learning rate drops ({len(drops)})', fontsize=10
    )
  return figure


def draw_learning_rate(rows: list[dict]):
  """The learning rate over the steps; logarithmic if it falls tenfold."""
  figure, (axes,) = panels(1, height=2.6)
  _line(axes, rows, 'learning_rate', _TRAINING, drawstyle='steps-post')
  rates = [r['learning_rate'] for r in rows if r.get('learning_rate', 0) > 0]
  if rates and max(rates) >= 10 * min(rates):
    axes.set_yscale('log')
  else:
    axes.set_ylim(0, None)
  axes.set(xlabel='step', ylabel='learning rate')
  _mark(axes, rate_drops(rows))
  return figure


def draw_speed(rows: list[dict]):
  """Images per second, and the share of time that waits for data."""
  figure, (speed, wait) = panels(2, height=2.8)
  _line(speed, rows, 'images_per_second', _TRAINING)
  speed.set(xlabel='step', ylabel='images per second', ylim=(0, None))
  _line(wait, rows, 'data_wait_fraction', _VALIDATION)
  wait.set(xlabel='step', ylabel='share of time waiting', ylim=(0, 1))
  return figure


def shortened(name: str, length: int) -> str:
  """A class name on one line of at most `length` characters."""
  # What cannot be encoded comes from names of files in another encoding.
  name = name.encode(errors='replace').decode()
  name = ' '.join(name.split())
  return name if len(name) <= length else f'{name[: length - 1]}…'


def panels(count: int, height: float = 3.6):
  """(figure, its panels side by side). No pyplot: it keeps figures alive.

  Args:
    count: number of panels.
    height: in inches.
  """
  from matplotlib.figure import Figure

  figure = Figure(figsize=(11, height), dpi=110, layout='constrained')
  every = figure.subplots(1, count, squeeze=False)[0]
  for axes in every:
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
  return figure, every


def _line(axes, rows, key, color, **how):
  """A line through the rows that have a value of `key`."""
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
  """A legend, unless there are no lines: matplotlib warns of that."""
  if axes.get_legend_handles_labels()[0]:
    axes.legend()

"""The confusion matrix as a figure.

Functions of plain arrays; nothing here knows a config. `figures.save` writes
what they return.
"""

from collections.abc import Sequence

import numpy as np

from alexnet_jax.evaluation.figures import shortened
from alexnet_jax.training import metrics

MOST_LABELLED = 30  # classes with names and numbers
BARS = 25  # most confused pairs beside a larger matrix
_MOST_CELLS = 400  # of a side, so that each is a pixel at least
_BARS = '#d1670a'


def draw_confusion(confusion: np.ndarray, class_names: Sequence[str]):
  """The confusion matrix: numbers and names, or a heat map and bars.

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
  """The largest of each block, so that at most `most` rows are left.

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
  places = np.arange(len(pairs))
  axes.barh(places, [examples for *_, examples in pairs], color=_BARS)
  axes.set_yticks(places, labels, fontsize=9, parse_math=False)
  axes.invert_yaxis()
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set(xlabel='examples')
  axes.margins(y=0.01)
  axes.set_title('most confused: true → predicted', fontsize=10)

"""Figures of runs: curves, confusion matrices and grids of images.

Functions of rows and arrays; nothing here knows a config. `save` writes what
they return. None of them uses pyplot, which keeps figures alive.
"""

from collections.abc import Sequence
import io
import itertools
import pathlib
import warnings

import numpy as np
import scipy.sparse

from alexnet_jax import files
from alexnet_jax.training import metrics
from alexnet_jax.training import writers

MOST_LABELLED = 30  # classes whose confusion matrix has names and numbers
_BARS = 25  # most confused pairs beside a larger matrix
_MOST_CELLS = 400  # of a side of it, so that each is a pixel at least
WINDOW = 50  # steps of the rolling mean and deviation
_MOST_POINTS = 5_000  # of a line; more only blacken the picture
TRAINING, VALIDATION = '#1b6ca8', '#d1670a'
_GRAY = '#8a929a'
RIGHT, WRONG = '#1a7f37', '#c62828'  # of frames and letters
# Of grids of images, in pixels.
_DPI = 128  # a power of two, which keeps whole pixels whole
_FRAME, _GAP, _LINE, _FONT_SIZE = 3, 4, 14, 11
_LETTER = 7  # about the mean width


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


def shortened(name: str, length: int) -> str:
  """Puts a name on one line of at most `length` characters."""
  # What cannot be encoded comes from names of files in another encoding.
  name = ' '.join(name.encode(errors='replace').decode().split())
  return name if len(name) <= length else f'{name[: length - 1]}…'


def panels(count: int, height: float = 3.6, columns: int | None = None):
  """Returns a figure and its panels, in rows of some inches.

  There is one row, or as many `columns` to each.
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


def rolling_losses(
  rows: list[dict], most: int = _MOST_POINTS
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Returns the losses of the steps with their rolling mean and deviation.

  Args:
    rows: see `training.writers.read_rows`; they may have none.
    most: number of steps that are chosen evenly, where there are more.

  Returns:
    (steps int64 [n], losses, means and deviations of the last `WINDOW` losses
    up to each, float64 [n]). The first ones have fewer before them. A deviation
    is that of the values themselves (divided by their number).
  """
  steps, losses = [], []
  for row in rows:
    values = row.get(writers.STEP_LOSSES, [])
    steps += range(row['step'] - len(values) + 1, row['step'] + 1)
    losses += values
  steps, losses = np.array(steps, np.int64), np.array(losses, np.float64)
  chosen = np.arange(0, len(steps), max(1, -(-len(steps) // most)))
  parts = [losses[max(0, i + 1 - WINDOW) : i + 1] for i in chosen]
  means = np.array([part.mean() for part in parts])
  deviations = np.array([part.std() for part in parts])
  return steps[chosen], losses[chosen], means, deviations


def draw_step_losses(rows: list[dict]):
  """Draws the loss of every step, its rolling mean and rolling deviation."""
  steps, losses, means, deviations = rolling_losses(rows)
  figure, (left, right) = panels(2)
  left.plot(steps, losses, color=_GRAY, linewidth=0.5, label='loss of a step')
  left.fill_between(
    steps,
    means - deviations,
    means + deviations,
    color=TRAINING,
    alpha=0.2,
    linewidth=0,
  )
  label = f'mean of {WINDOW} steps, ± deviation'
  left.plot(steps, means, color=TRAINING, linewidth=1.5, label=label)
  left.set(xlabel='step', ylabel='training loss [nats]')
  left.legend()
  right.plot(steps, deviations, color=TRAINING, linewidth=1.2)
  deviation = f'deviation of {WINDOW} steps [nats]'
  right.set(xlabel='step', ylabel=deviation, ylim=(0, None))
  return figure


def learning_rate_drops(rows: list[dict]) -> list[int]:
  """Lists the steps of log points with a learning rate below half of before."""
  points = [
    (row['step'], _learning_rates(row))
    for row in rows
    if 'learning_rate' in row
  ]
  return [
    step
    for (_, before), (step, after) in itertools.pairwise(points)
    if any(after[key] < before.get(key, 0) / 2 for key in after)
  ]


def _learning_rates(row):
  """Returns {key: value} of each group of parameters, if there are several."""
  groups = {k: v for k, v in row.items() if k.startswith('learning_rate/')}
  return groups or {'learning_rate': row['learning_rate']}


def draw_line(
  axes, rows: list[dict], key: str, step_size: float = 1, **style
) -> None:
  """Draws a line through the rows that have a value of `key`, if there are any.

  A step is `step_size` of the horizontal axis.
  """
  points = [(step_size * row['step'], row[key]) for row in rows if key in row]
  if points:
    style = {'markersize': 3, 'linewidth': 1.2, **style}
    axes.plot(*zip(*points, strict=True), **style)


def draw_curves(rows: list[dict]):
  """Draws loss and top-1, with the drops of the learning rate dotted."""
  figure, axes = panels(2)
  drops = learning_rate_drops(rows)
  for panel, name, label in (
    (axes[0], 'loss', 'training'),
    (axes[1], 'top1', 'training, with dropout'),
  ):
    draw_line(panel, rows, f'train/{name}', color=TRAINING, label=label)
    style = {'color': VALIDATION, 'label': 'validation', 'marker': 'o'}
    draw_line(panel, rows, f'eval/{name}', **style)
    _mark(panel, drops)
    if panel.get_lines()[len(drops) :]:  # or matplotlib warns
      panel.legend()
  axes[0].set(xlabel='step', ylabel='loss [nats]', ylim=(0, None))
  axes[1].set(xlabel='step', ylabel='top-1', ylim=(None, 1))
  if drops:
    title = f'dotted: the learning rate drops ({len(drops)})'
    figure.suptitle(title, fontsize=10)
  return figure


def _mark(axes, steps):
  for step in steps:
    axes.axvline(step, color='gray', linestyle=':', linewidth=1)


def draw_learning_rate(rows: list[dict]):
  """Draws the learning rates; logarithmic if one falls tenfold."""
  figure, (axes,) = panels(1, height=2.6)
  points = [_learning_rates(row) for row in rows if 'learning_rate' in row]
  keys = list(points[0]) if points else []
  for number, key in enumerate(keys):
    color = f'C{number}' if len(keys) > 1 else TRAINING
    label = key.partition('/')[2] or None
    style = {'color': color, 'label': label, 'drawstyle': 'steps-post'}
    draw_line(axes, rows, key, **style)
  if len(keys) > 1:
    axes.legend()
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
  draw_line(speed, rows, 'images_per_second', color=TRAINING)
  speed.set(xlabel='step', ylabel='images per second', ylim=(0, None))
  draw_line(wait, rows, 'data_wait_fraction', color=VALIDATION)
  wait.set(xlabel='step', ylabel='share of time waiting', ylim=(0, 1))
  return figure


def draw_confusion(confusion, class_names: Sequence[str]):
  """Draws a confusion matrix: numbers and names, or a heat map and bars.

  Up to 30 classes have names and a number in each cell, its color the share of
  the true class. More of them make a heat map, where the root of a number is
  the color, with the most confused pairs beside it.

  Args:
    confusion: counts of (true class, predicted class), int [classes, classes],
      dense or sparse.
    class_names: of the rows and columns.
  """
  if len(class_names) <= MOST_LABELLED:
    pairs = scipy.sparse.coo_array(confusion)
    return _labelled_matrix(pairs.toarray(), class_names)
  return _heat_map(confusion, class_names)


def _labelled_matrix(confusion, class_names):
  from matplotlib.figure import Figure

  count = len(class_names)
  cell = min(0.6, 10 / count)  # inches
  size = 2.4 + cell * max(4, count)
  figure = Figure(figsize=(size, size), dpi=100, layout='constrained')
  axes = figure.subplots()
  shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
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
  from matplotlib.ticker import MaxNLocator

  figure = Figure(figsize=(12.4, 7.6), dpi=100, layout='constrained')
  matrix, bars = figure.subplots(1, 2, width_ratios=(2.2, 1))
  cells = _pooled(confusion, _MOST_CELLS)
  end = len(class_names) - 0.5
  image = matrix.imshow(
    cells,
    cmap='magma_r',
    norm=PowerNorm(0.5, vmin=0, vmax=max(1, cells.max())),
    interpolation='nearest',
    extent=(-0.5, end, end, -0.5),
  )
  figure.colorbar(
    image,
    ax=matrix,
    location='bottom',
    shrink=0.6,
    aspect=40,
    ticks=MaxNLocator(6, integer=True),
    label='examples (the color follows the root)',
  )
  matrix.set(xlabel='predicted class', ylabel='true class')
  _draw_pairs(bars, confusion, class_names)
  return figure


def _pooled(confusion, most):
  """Takes the largest of each block, so that at most `most` rows are left.

  Single mistakes stay visible, which averages would wash out.
  """
  pairs = scipy.sparse.coo_array(confusion)
  count = pairs.shape[0]
  block = -(-count // most)
  cells = np.zeros((-(-count // block),) * 2, np.int64)
  np.maximum.at(cells, (pairs.row // block, pairs.col // block), pairs.data)
  return cells


def _draw_pairs(axes, confusion, class_names):
  """Draws the most confused pairs as bars."""
  pairs = metrics.most_confused(confusion, _BARS)
  if not pairs:
    axes.text(0.5, 0.5, 'no mistakes', ha='center', transform=axes.transAxes)
    axes.set_axis_off()
    return
  labels = [
    ' → '.join(shortened(class_names[index], 16) for index in classes)
    for *classes, _ in pairs
  ]
  axes.barh(range(len(pairs)), [n for *_, n in pairs], color=VALIDATION)
  axes.set_yticks(range(len(pairs)), labels, fontsize=9, parse_math=False)
  axes.set_ylim(max(len(pairs), 10) - 0.5, -0.5)  # no bar fills the panel
  axes.xaxis.get_major_locator().set_params(integer=True)
  axes.set(xlabel='examples')
  axes.set_title('most confused: true → predicted', fontsize=10)


def draw_filters(kernel: np.ndarray):
  """Draws the filters of a first layer, each in its own range, unsmoothed.

  The smallest value is black, the largest white; a constant filter is gray.

  Args:
    kernel: float [height, width, 3, filters].
  """
  filters = np.moveaxis(np.asarray(kernel, np.float64), -1, 0)
  low = filters.min((1, 2, 3), keepdims=True)
  span = filters.max((1, 2, 3), keepdims=True) - low
  scaled = np.divide(
    filters - low, span, out=np.full_like(filters, 0.5), where=span > 0
  )
  return draw_grid(np.uint8(np.round(255 * scaled)), 16, 66)


def draw_grid(
  images: Sequence[np.ndarray],
  columns: int,
  tile: int,
  captions: Sequence[Sequence[str]] = (),
  colors: Sequence[str] = (),
):
  """Draws images in rows, with lines of text below them.

  One pixel of the figure is one pixel of its file.

  Args:
    images: uint8 [height, width, 3] each, at least one.
    columns: images in a row.
    tile: about how many pixels the largest side gets.
    captions: lines of text of each image; as many for all of them.
    colors: of the frames and letters; without them no frame, black letters.
  """
  from matplotlib.colors import to_rgb
  from matplotlib.figure import Figure

  tiles = _tiles(images, tile)
  columns = min(columns, len(tiles))
  side = max(max(t.shape[:2]) for t in tiles)
  lines = max(map(len, captions), default=0)
  wide = side + (2 * _FRAME if len(colors) else 0) + _GAP
  high = wide + lines * _LINE + (_GAP if lines else 0)
  shape = (-(-len(tiles) // columns) * high, columns * wide)
  figure = Figure(figsize=(shape[1] / _DPI, shape[0] / _DPI), dpi=_DPI)
  axes = figure.add_axes((0, 0, 1, 1))
  sheet = np.full((*shape, 3), 255, np.uint8)
  for number, image in enumerate(tiles):
    y, x = number // columns * high, number % columns * wide
    color = colors[number] if len(colors) else 'black'
    if len(colors):
      outer = sheet[y : y + wide, x : x + wide][2:-2, 2:-2]
      outer[:] = np.round(255 * np.array(to_rgb(color)))
      outer[_FRAME:-_FRAME, _FRAME:-_FRAME] = 255
    top = y + (wide - image.shape[0]) // 2
    left = x + (wide - image.shape[1]) // 2
    sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    for line, text in enumerate(captions[number] if lines else ()):
      axes.text(
        x + wide / 2,
        y + wide + (line + 0.5) * _LINE,
        shortened(text, int(wide / _LETTER)),
        ha='center',
        va='center',
        fontsize=_FONT_SIZE * 72 / _DPI,
        color=color,
        parse_math=False,  # a name with two dollars is no formula
      )
  axes.imshow(sheet, extent=(0, shape[1], shape[0], 0), interpolation='none')
  axes.set(xlim=(0, shape[1]), ylim=(shape[0], 0))
  axes.set_axis_off()
  return figure


def _tiles(images, tile):
  """Shrinks all images by one ratio, or enlarges them by a whole number."""
  import PIL.Image

  ratio = tile / max(max(image.shape[:2]) for image in images)
  method = PIL.Image.Resampling.BOX
  if ratio >= 1:
    ratio, method = round(ratio), PIL.Image.Resampling.NEAREST
  return [
    np.asarray(
      PIL.Image.fromarray(image).resize(
        [max(1, round(n * ratio)) for n in image.shape[1::-1]], method
      )
    )
    for image in images
  ]

"""Figures of runs: curves, confusion matrices and grids of images.

None of them uses pyplot, which keeps figures alive; `save` writes them.
"""

from collections.abc import Sequence
import io
import math
import pathlib
import warnings

import numpy as np
import scipy.sparse

from alexnet_jax import files
from alexnet_jax.training import writers

_MOST_LABELED = 30  # classes whose confusion matrix has names and numbers
_MOST_CELLS = 400  # of a side of a larger one, so that each is a pixel at least
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
  """Writes a figure as PNG; returns the file's content."""
  content = io.BytesIO()
  with warnings.catch_warnings():  # of letters that the font lacks
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


def panels(count: int, height: float = 3.6):
  """Returns a figure and its panels in a row, of some inches."""
  from matplotlib.figure import Figure

  figure = Figure(figsize=(11, height), dpi=110, layout='constrained')
  every = figure.subplots(1, count, squeeze=False)[0]
  for axes in every:
    axes.grid(alpha=0.3)
    axes.spines[['top', 'right']].set_visible(False)
  return figure, every


def rolling_losses(
  rows: list[dict],
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
  """Returns the losses in rows of `writers.read_rows`, which may have none.

  Returns:
    (steps int64 [n], evenly chosen where there are many; losses, means and
    deviations of the last `WINDOW` losses up to each, float64 [n]).
  """
  steps, losses = [], []
  for row in rows:
    values = row.get(writers.STEP_LOSSES, [])
    steps += range(row['step'] - len(values) + 1, row['step'] + 1)
    losses += values
  steps, losses = np.array(steps, np.int64), np.array(losses, np.float64)
  chosen = np.arange(0, len(steps), max(1, -(-len(steps) // _MOST_POINTS)))
  parts = [losses[max(0, i + 1 - WINDOW) : i + 1] for i in chosen]
  means = np.array([part.mean() for part in parts])
  deviations = np.array([part.std() for part in parts])
  return steps[chosen], losses[chosen], means, deviations


def draw_step_losses(rows: list[dict]):
  """Draws the loss of every step, its rolling mean and rolling deviation."""
  steps, losses, means, deviations = rolling_losses(rows)
  figure, (left, right) = panels(2)
  left.plot(steps, losses, color=_GRAY, linewidth=0.5, label='loss of a step')
  style = {'color': TRAINING, 'alpha': 0.2, 'linewidth': 0}
  left.fill_between(steps, means - deviations, means + deviations, **style)
  label = f'mean of {WINDOW} steps, ± deviation'
  left.plot(steps, means, color=TRAINING, linewidth=1.5, label=label)
  left.set(xlabel='step', ylabel='training loss [nats]')
  left.legend()
  right.plot(steps, deviations, color=TRAINING, linewidth=1.2)
  label = f'deviation of {WINDOW} steps [nats]'
  right.set(xlabel='step', ylabel=label, ylim=(0, None))
  return figure


def learning_rate_drops(rows: list[dict]) -> list[int]:
  """Lists the steps of log points with a learning rate below half of before.

  Those of a smooth decline are left out: one of the two rates must last.
  """
  points, drops = _learning_rates(rows), []
  rates = [{}, *(rate for _, rate in points), {}]
  for number, (step, after) in enumerate(points, 1):
    earlier, before = rates[max(0, number - 2)], rates[number - 1]
    later = rates[number + 1]
    if any(
      value < before.get(key, 0) / 2
      and (
        math.isclose(earlier.get(key, 0), before[key], rel_tol=1e-5)
        or math.isclose(later.get(key, 0), value, rel_tol=1e-5)
      )
      for key, value in after.items()
    ):
      drops.append(step)
  return drops


def _learning_rates(rows):  # (step, {key: value}): of each group, or of all
  points = []
  for row in rows:
    if 'learning_rate' in row:
      groups = {k: row[k] for k in row if k.startswith('learning_rate/')}
      own = {'learning_rate': row['learning_rate']}
      points.append((row['step'], groups or own))
  return points


def draw_line(axes, rows, key: str, step_size: float = 1, **style) -> None:
  """Draws a line through the rows with a value of `key`, if there are any."""
  points = [(step_size * row['step'], row[key]) for row in rows if key in row]
  if points:
    marker = 'o' if len(points) == 1 else None  # no line to be seen
    style = {'markersize': 3, 'linewidth': 1.2, 'marker': marker, **style}
    axes.plot(*zip(*points, strict=True), **style)


def draw_curves(rows: list[dict]):
  """Draws loss and top-1, with the drops of the learning rate dotted."""
  figure, axes = panels(2)
  for panel, name, label in (
    (axes[0], 'loss', 'training'),
    (axes[1], 'top1', 'training, with dropout'),
  ):
    draw_line(panel, rows, f'train/{name}', color=TRAINING, label=label)
    style = {'color': VALIDATION, 'label': 'validation', 'marker': 'o'}
    draw_line(panel, rows, f'eval/{name}', **style)
    if panel.get_lines():  # or matplotlib warns
      panel.legend()
    _mark_drops(panel, rows)
  axes[0].set(xlabel='step', ylabel='loss [nats]', ylim=(0, None))
  axes[1].set(xlabel='step', ylabel='top-1', ylim=(None, 1))
  return figure


def _mark_drops(axes, rows):
  for step in learning_rate_drops(rows):
    axes.axvline(step, color='gray', linestyle=':', linewidth=1)


def draw_learning_rate(rows: list[dict]):
  """Draws the learning rates; logarithmic if one falls tenfold."""
  figure, (axes,) = panels(1, height=2.6)
  points = [rates for _, rates in _learning_rates(rows)]
  keys = list(points[0]) if points else []
  for number, key in enumerate(keys):
    color = f'C{number}' if len(keys) > 1 else TRAINING
    style = {'label': key.partition('/')[2] or None, 'drawstyle': 'steps-post'}
    draw_line(axes, rows, key, color=color, **style)
  if len(keys) > 1:
    axes.legend()
  rates = [value for point in points for value in point.values() if value > 0]
  axes.set(xlabel='step', ylabel='learning rate')
  if rates and max(rates) >= 10 * min(rates):
    axes.set_yscale('log')
  else:
    axes.set_ylim(0, None)
  _mark_drops(axes, rows)
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
  """Draws counts of (true class, predicted class), int [classes, classes].

  Up to 30 classes have names and numbers. More make a heat map, whose color is
  the root of the largest number of a block of cells: single mistakes are seen.
  """
  from matplotlib.figure import Figure

  pairs, count = scipy.sparse.coo_array(confusion), len(class_names)
  size = 9 if count > _MOST_LABELED else 2.4 + max(4, count) * _cell(count)
  figure = Figure(figsize=(size, size), dpi=100, layout='constrained')
  axes = figure.subplots()
  axes.set(xlabel='predicted class', ylabel='true class')
  if count > _MOST_LABELED:
    _draw_heat_map(figure, axes, pairs)
  else:
    _draw_cells(axes, pairs.toarray(), class_names)
  return figure


def _cell(count):  # the side of one with a number in it, in inches
  return min(0.6, 10 / count)


def _draw_cells(axes, confusion, class_names):
  count = len(class_names)
  shares = confusion / np.maximum(1, confusion.sum(1, keepdims=True))
  axes.imshow(shares, cmap='Blues', vmin=0, vmax=1)
  names = [shortened(name, 20) for name in class_names]
  turned = 90 if max(map(len, names)) > 4 else 0
  axes.set_xticks(range(count), names, rotation=turned, parse_math=False)
  axes.set_yticks(range(count), names, parse_math=False)
  for (row, column), number in np.ndenumerate(confusion):
    dark = shares[row, column] > 0.5
    color = 'white' if dark else 'black' if number else '#c5cbd1'
    size = 10 if _cell(count) > 0.5 and number < 10_000 else 8
    style = {'ha': 'center', 'va': 'center', 'color': color, 'fontsize': size}
    text = axes.text(column, row, str(number), **style)
    text.set_in_layout(False)  # hundreds of them would make it slow


def _draw_heat_map(figure, axes, pairs):
  from matplotlib.colors import PowerNorm

  count = pairs.shape[0]
  block = -(-count // _MOST_CELLS)
  cells = np.zeros((-(-count // block),) * 2, np.int64)
  np.maximum.at(cells, (pairs.row // block, pairs.col // block), pairs.data)
  style = {'cmap': 'magma_r', 'interpolation': 'nearest'}
  style['norm'] = PowerNorm(0.5, vmin=0, vmax=max(1, cells.max()))
  extent = -0.5, count - 0.5, count - 0.5, -0.5
  image = axes.imshow(cells, extent=extent, **style)
  label = 'examples (the color follows the root)'
  figure.colorbar(image, ax=axes, shrink=0.6, label=label)


def draw_filters(kernel: np.ndarray):
  """Draws filters, float [height, width, 3 or 1, filters], each in its range.

  The smallest value is black, the largest white; a constant filter is gray.
  """
  filters = np.moveaxis(np.asarray(kernel, np.float64), -1, 0)
  low = filters.min((1, 2, 3), keepdims=True)
  span = filters.max((1, 2, 3), keepdims=True) - low
  gray = np.full_like(filters, 0.5)
  scaled = np.divide(filters - low, span, out=gray, where=span > 0)
  return draw_grid(np.uint8(np.round(255 * scaled)), 16, 66)


def draw_grid(
  images: Sequence[np.ndarray],
  columns: int,
  tile: int,
  captions: Sequence[Sequence[str]] = (),
  colors: Sequence[str] = (),
):
  """Draws images, uint8 [height, width, 3 or 1], in rows with text below.

  Args:
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
  tiles = []
  for image in images:
    size = [max(1, round(n * ratio)) for n in image.shape[1::-1]]
    color = np.repeat(image, 3 // image.shape[2], axis=2)
    tiles.append(np.asarray(PIL.Image.fromarray(color).resize(size, method)))
  return tiles

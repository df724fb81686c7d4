"""Grids of images as figures: predictions, mistakes, augmentation, filters.

Functions of plain arrays; nothing here knows a config. `figures.save` writes
what they return. One pixel of a figure is one pixel of its file.
"""

from collections.abc import Sequence
import math

import numpy as np

from alexnet_jax.evaluation.figures import shortened

RIGHT, WRONG = '#1a7f37', '#c62828'  # colors of frames and letters
_DPI = 128  # a power of two, which keeps whole pixels whole
_FRAME = 3  # pixels
_GAP = 4  # pixels between images
_LINE = 14  # pixels of a line of text
_FONT_SIZE = 11  # pixels
_LETTER = 7  # pixels, about the mean width


def draw_predictions(
  images: Sequence[np.ndarray],
  true: Sequence[str],
  predicted: Sequence[str],
  right: Sequence[bool],
  *,
  columns: int = 14,
):
  """Draws images with their predicted class; green if right, red if wrong.

  Wrong ones also say their true class.

  Args:
    images: uint8 [size, size, 3] each.
    true, predicted: names of the classes.
    right: whether both are the same; names may not tell.
    columns: images in a row.
  """
  captions = [
    (p, '') if r else (p, f'not {t}')
    for t, p, r in zip(true, predicted, right, strict=True)
  ]
  colors = [RIGHT if r else WRONG for r in right]
  return _grid(images, columns, 80, captions, colors)


def draw_answers(
  images: Sequence[np.ndarray], best: Sequence[tuple[str, float]]
):
  """Draws images, in a square, with the classes that they are taken for.

  Args:
    images: uint8 [size, size, 3] each, at least one.
    best: (class, probability) of each image.
  """
  captions = [(name, f'{probability:.1%}') for name, probability in best]
  return _grid(images, math.ceil(math.sqrt(len(images))), 120, captions)


def draw_mistakes(
  images: Sequence[np.ndarray],
  true: Sequence[str],
  predicted: Sequence[str],
  probabilities: Sequence[float],
):
  """Draws wrongly classified images, numbered, with both classes.

  Args:
    images: uint8 [size, size, 3] each.
    true, predicted: names of the classes.
    probabilities: of the predicted classes.
  """
  captions = [
    (f'{number}: {share:.0%} sure', p, f'not {t}')
    for number, (t, p, share) in enumerate(
      zip(true, predicted, probabilities, strict=True), 1
    )
  ]
  return _grid(images, 10, 112, captions, [WRONG] * len(captions))


def draw_augmentation(
  before: Sequence[np.ndarray],
  after: Sequence[np.ndarray],
  class_names: Sequence[str],
  changes: Sequence[str],
):
  """Draws training images above what a training step makes of them.

  Args:
    before: uint8 [size, size, 3] each.
    after: uint8 [crop, crop, 3] each.
    class_names: of each image.
    changes: what was done to each apart from the crop.
  """
  captions = [(name,) for name in class_names] + [(text,) for text in changes]
  return _grid([*before, *after], len(before), 112, captions)


def draw_filters(kernel: np.ndarray):
  """Draws the filters of a first layer, each in its own range, unsmoothed.

  Args:
    kernel: float [height, width, 3, filters].
  """
  return _grid(filter_images(kernel), min(16, kernel.shape[-1]), 66)


def filter_images(kernel: np.ndarray) -> np.ndarray:
  """Scales each filter from its smallest value (0) to its largest (255).

  Args:
    kernel: float [height, width, 3, filters].

  Returns:
    uint8 [filters, height, width, 3]; a constant filter is gray.
  """
  filters = np.moveaxis(np.asarray(kernel, np.float64), -1, 0)
  low = filters.min((1, 2, 3), keepdims=True)
  span = filters.max((1, 2, 3), keepdims=True) - low
  scaled = np.divide(
    filters - low, span, out=np.full_like(filters, 0.5), where=span > 0
  )
  return np.uint8(np.round(255 * scaled))


def _grid(images, columns, tile, captions=(), colors=()):
  """Draws images in rows with lines of text below them.

  Args:
    images: uint8 [height, width, 3] each.
    columns: images in a row.
    tile: about how many pixels the largest side gets.
    captions: lines of text of each image; as many for all of them.
    colors: of the frames and letters; without them no frame, black letters.
  """
  from matplotlib.figure import Figure

  tiles = _tiles(images, tile)
  columns = min(columns, len(tiles))
  side = max(max(t.shape[:2]) for t in tiles)
  frame = _FRAME if len(colors) else 0
  lines = max(map(len, captions), default=0)
  wide = side + 2 * frame + _GAP
  high = wide + lines * _LINE + (_GAP if lines else 0)
  shape = (-(-len(tiles) // columns) * high, columns * wide)
  figure = Figure(figsize=(shape[1] / _DPI, shape[0] / _DPI), dpi=_DPI)
  axes = figure.add_axes((0, 0, 1, 1))
  sheet = np.full((*shape, 3), 255, np.uint8)
  for number, image in enumerate(tiles):
    y, x = number // columns * high, number % columns * wide
    top = y + (wide - image.shape[0]) // 2
    left = x + (wide - image.shape[1]) // 2
    sheet[top : top + image.shape[0], left : left + image.shape[1]] = image
    color = colors[number] if frame else 'black'
    if frame:
      _frame(axes, x, y, wide, color)
    for line, text in enumerate(captions[number] if lines else (), 1):
      point = x + wide / 2, y + wide + (line - 0.5) * _LINE
      _write(axes, point, shortened(text, int(wide / _LETTER)), color)
  axes.imshow(sheet, extent=(0, shape[1], shape[0], 0), interpolation='none')
  axes.set(xlim=(0, shape[1]), ylim=(shape[0], 0))
  axes.set_axis_off()
  return figure


def _frame(axes, x, y, wide, color):
  from matplotlib.patches import Rectangle

  margin = (_GAP + _FRAME) / 2  # its line lies half on either side
  axes.add_patch(
    Rectangle(
      (x + margin, y + margin),
      wide - 2 * margin,
      wide - 2 * margin,
      fill=False,
      edgecolor=color,
      linewidth=_FRAME * 72 / _DPI,
      snap=False,
    )
  )


def _write(axes, point, text, color):
  axes.text(
    *point,
    text,
    ha='center',
    va='center',
    fontsize=_FONT_SIZE * 72 / _DPI,
    color=color,
    parse_math=False,  # a name with two dollars is no formula
  )


def _tiles(images, tile):
  """Shrinks all images by one ratio, or enlarges them by a whole number."""
  import PIL.Image

  side = max(max(image.shape[:2]) for image in images)
  if side <= tile:
    times = max(1, round(tile / side))
    return [image.repeat(times, 0).repeat(times, 1) for image in images]
  return [
    np.asarray(
      PIL.Image.fromarray(image).resize(
        [max(1, round(n * tile / side)) for n in image.shape[1::-1]],
        PIL.Image.Resampling.BOX,
      )
    )
    for image in images
  ]

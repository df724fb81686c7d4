"""What the layers of a trained network see.

python -m alexnet_jax.evaluation.visualize --workdir DIR [--layers conv1,conv5]
[--units 3,17] [photo.jpg ...]
"""

import argparse
from collections.abc import Sequence
import contextlib
import dataclasses
import sys

import numpy as np

from alexnet_jax import cli
from alexnet_jax.errors import UserError

FOLDER = 'visualize'  # in the folder of the run
_DESCRIPTION = """\
Draws, for units (channels) of every convolution, the nine patches of the
validation set to which they respond most, each with its deconvolution: the
pixels that this response goes back to. And for some images how probable their
class remains while a gray square hides a part. Both after Zeiler and Fergus
2014."""
_PATCHES = 9  # of a unit, in a square
_UNITS = 9  # of a layer, unless they are named
_IMAGES = 4  # that are occluded, unless they are named
_TILE = 200  # pixels of the nine patches of a unit in a picture
_SQUARES, _PLACES = 5, 16  # gray squares side by side, places in a row: about


@dataclasses.dataclass(frozen=True)
class Choice:
  """What is drawn; what is empty is chosen here."""

  layers: Sequence[str] = ()  # such as conv1; all
  units: Sequence[int] = ()  # channels, from 0; nine that respond, evenly
  images: Sequence[str] = ()  # files to occlude; four of the split


_EVERYTHING = Choice()


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = argparse.ArgumentParser(
    prog='python -m alexnet_jax.evaluation.visualize',
    description=_DESCRIPTION,
  )
  add = parser.add_argument
  text = 'images to occlude (default: four of the validation set)'
  add('images', nargs='*', type=cli.path, metavar='IMAGE', help=text)
  text = 'such as conv1,conv5 (default: every convolution)'
  add('--layers', default=(), type=lambda t: t.split(','), help=text)
  text = 'channels, from 0, of each layer (default: nine that respond, evenly)'
  add('--units', default=(), type=_numbers, metavar='N,...', help=text)
  cli.add_run(parser)
  cli.add_data_path(parser)
  cli.add_json(parser)
  arguments = parser.parse_args(argv)
  return cli.run(lambda: _work(arguments), json_output=arguments.json)


def _numbers(text):
  return [int(number) for number in text.split(',')]


def _work(arguments):
  """Writes the page; returns the command's result."""
  from alexnet_jax.data import folder as folder_lib
  from alexnet_jax.evaluation import sections

  workdir, images = arguments.workdir, arguments.images
  images = folder_lib.find_images(images) if images else ()
  choice = Choice(arguments.layers, arguments.units, images)
  subject = sections.load(
    workdir, arguments.checkpoint, arguments.data_path, lambda: None
  )
  return sections.write_page(
    workdir, FOLDER, 'What layers see:', lambda a: draw(subject, a, choice)
  )


def draw(subject, album, choice: Choice = _EVERYTHING) -> tuple[dict, list]:
  """Draws patches, deconvolutions and occlusion maps of a measured run.

  Args:
    subject: a `sections.MeasuredRun`.
    album: a `sections.Album`.

  Returns:
    ({step, layers, occlusion}: what was found, JSON; sections of a page).

  Raises:
    UserError: if there is no such layer or unit, or an image cannot be read.
  """
  from alexnet_jax.evaluation import deconvolution
  from alexnet_jax.evaluation import evaluate
  from alexnet_jax.evaluation.page import Section

  run = subject.run
  classifier = deconvolution.classifier_of(run)
  names = _checked_layers(choice, classifier.variables['params'])
  batches = evaluate.host_batches(run, subject.validation)
  with contextlib.closing(batches):
    strongest = classifier.find_strongest(batches, _PATCHES)
  result, parts = {'step': int(run.state.step), 'layers': {}}, []
  for name in names:
    number = int(name.removeprefix('conv'))
    seen = _Seen(subject, classifier, number, strongest[number - 1])
    rows, picture, text = seen.draw(album, choice.units)
    result['layers'][name] = rows
    parts.append(Section(f'What {name} sees', text, pictures=[picture]))
  result['occlusion'], part = _occlusion(subject, classifier, album, choice)
  return result, [*parts, part]


def _checked_layers(choice, params):
  """Returns the names of the chosen layers; UserError if one is not there."""
  known = [name for name in params if name.startswith('conv')]
  for name in choice.layers or known:
    if name not in known:
      raise UserError(f'there is no {name!r}; there are {", ".join(known)}')
    count = params[name]['kernel'].shape[-1]
    if odd := [unit for unit in choice.units if not 0 <= unit < count]:
      raise UserError(
        f'{name} has the units 0 to {count - 1}, and no {odd[0]}; name other'
        ' --units, or the --layers that have them'
      )
  return choice.layers or known


@dataclasses.dataclass(frozen=True)
class _Seen:
  """What the units of a convolution respond to."""

  subject: object
  classifier: object
  number: int
  strongest: object

  def draw(self, album, units):
    """Draws units: (rows of the result, picture, text)."""
    from alexnet_jax.evaluation import figures

    peaks = self.strongest.values[:, 0]
    active = np.flatnonzero(peaks > 0)
    if not units:  # of a layer that is dead as a whole, too
      active = active if len(active) else np.arange(len(peaks))
      chosen = np.linspace(0, len(active) - 1, min(_UNITS, len(active)))
      units = active[chosen.round().astype(int)].tolist()
    rows, tiles, captions = [], [], []
    for unit in units:
      row, mosaics = self.unit(unit)
      rows.append(row)
      tiles += mosaics
      classes, text = row['classes'], 'never responds'
      if classes:
        most = max(classes, key=classes.count)
        text = f'{classes.count(most)} of {len(classes)}: {most}'
      captions.append((f'unit {unit}', text))
      captions.append(('deconvolution', f'up to {peaks[unit]:.3g}'))
    picture = album.add(
      f'conv{self.number}',
      figures.draw_grid(tiles, 6, _TILE, captions),
      f'Strongest patches of {len(units)} units, and their deconvolutions',
      'Left: the patches of the validation images to which the unit responds'
      ' most, one of an image, and the most common of their classes. Right:'
      ' the pixels that these responses go back to, each in its own range.'
      ' Gray: 0, or outside the image. Of gray images: the mean of the colors.',
    )
    silent = int((peaks <= 0).sum())
    return rows, picture, f'{silent} of {len(peaks)} units never respond.'

  def unit(self, unit):
    """Returns (row of the result, [patches, deconvolutions])."""
    from alexnet_jax.evaluation import deconvolution

    subject, size = self.subject, self.subject.run.config.data.crop_size
    values = self.strongest.values[unit]
    count = int((values > 0).sum())
    indices = self.strongest.images[unit, :count]
    # Of one shape, so that one program does all.
    pixels = np.zeros((_PATCHES, size, size, 3), np.uint8)
    places = np.zeros((_PATCHES, 2), int)
    places[:count] = self.strongest.positions[unit, :count]
    for i, image in enumerate(subject.crops(indices)):
      pixels[i] = image
    back = self.classifier.deconvolve(
      self.number, pixels, np.full(_PATCHES, unit), places
    )
    if np.array_equal(pixels[..., 0], pixels[..., 2]):
      # Gray images: what the network would make of colors is noise.
      back = np.repeat(back.mean(3, keepdims=True), 3, axis=3)
    back = np.stack([_shown(each) for each in back])
    width, stride, start = deconvolution.receptive_field(
      self.classifier.model, self.number, size
    )
    starts = places[:count] * stride + start
    labels = subject.measured.predictions.labels[indices]
    row = {
      'unit': unit,
      'values': values[:count].tolist(),
      'positions': places[:count].tolist(),
      'images': [subject.validation.source.describe(int(i)) for i in indices],
      'classes': [subject.name(label) for label in labels],
    }
    return row, [_mosaic(each, starts, width) for each in (pixels, back)]


def _occlusion(subject, classifier, album, choice):
  """Draws the occlusion maps of images: (rows of the result, section)."""
  from alexnet_jax.data import images as images_lib
  from alexnet_jax.evaluation import loading
  from alexnet_jax.evaluation.page import Section

  run, source = subject.run, subject.validation.source
  size = run.config.data.crop_size
  if choice.images:
    _, loader = loading.open_images(run, choice.images)
    source = loader.source
    chosen = np.arange(source.num_examples)
    squares = [loader.square(index) for index in chosen.tolist()]
    for name, reason in loader.unreadable.items():
      raise UserError(f'{name} cannot be read: {reason}')
    crops = [images_lib.center_crop(square, size) for square, _ in squares]
    labels = classifier.probabilities(np.array(crops)).argmax(1)
  else:
    chosen = subject.evenly_chosen(_IMAGES)
    crops = subject.crops(chosen)
    labels = subject.measured.predictions.labels[chosen]
  square = max(1, size // _SQUARES)
  stride = max(1, (size - square) // _PLACES)
  rows, maps = [], []
  for index, image, label in zip(chosen, crops, labels, strict=True):
    first, values = classifier.occlude(image, label, square, stride)
    maps.append(values)
    rows.append(
      {
        'image': source.describe(int(index)),
        'class': subject.name(label),
        'probability': float(classifier.probabilities(image[None])[0, label]),
        'lowest': float(values.min()),
      }
    )
  picture = album.add(
    'occlusion',
    _draw_occlusion(crops, maps, rows, (first, square)),
    f'{len(rows)} images, and how probable their class is, partly hidden',
    f'Below: the probability while a gray square of {square} pixels lies around'
    ' each place; dark: what is hidden there matters. Red: where it lowers the'
    ' probability most.',
  )
  whose = 'predicted' if choice.images else 'true'
  text = f'The probability of the {whose} class of images, partly hidden.'
  return rows, Section('Occlusion', text, pictures=[picture])


def _shown(back):
  """Returns a deconvolution as colors: gray for 0, the last percent cut off."""
  sizes = np.abs(back[back != 0])
  largest = np.quantile(sizes, 0.99) if len(sizes) else 1.0
  return np.uint8(np.round(128 + 127 * np.clip(back / largest, -1, 1)))


def _mosaic(images, starts, width):
  """Puts windows of up to nine images side by side, as uint8 [side, side, 3].

  What lies outside an image is gray; windows as large as an image are all of
  it.
  """
  size = images.shape[1]
  if width >= size:
    width, starts = size, np.zeros_like(starts)
  gap = max(1, width // 24)
  side, pitch = 3 * width + 2 * gap, width + gap
  sheet = np.full((side, side, 3), 255, np.uint8)
  padding = ((width, width), (width, width), (0, 0))
  for number, (image, start) in enumerate(zip(images, starts, strict=False)):
    padded = np.pad(image, padding, constant_values=128)
    top, left = start + width
    y, x = number // 3 * pitch, number % 3 * pitch
    window = padded[top : top + width, left : left + width]
    sheet[y : y + width, x : x + width] = window
  return sheet


def _draw_occlusion(images, maps, rows, places):
  """Draws images above their maps."""
  from matplotlib.figure import Figure
  from matplotlib.patches import Rectangle

  from alexnet_jax.evaluation import figures

  (first, square), size, count = places, len(images[0]), len(images)
  figure = Figure(figsize=(2.8 * count, 5.2), dpi=110, layout='constrained')
  axes = figure.subplots(2, count, squeeze=False)
  ends = np.array([first[0], first[-1]]) + square / 2 - 0.5
  for (above, below), image, values, row in zip(
    axes.T, images, maps, rows, strict=True
  ):
    above.imshow(image)
    lowest = np.unravel_index(values.argmin(), values.shape)
    corner = first[list(lowest)][::-1] - 0.5
    style = {'fill': False, 'edgecolor': figures.WRONG, 'linewidth': 1.5}
    above.add_patch(Rectangle(corner, square, square, **style))
    name = figures.shortened(row['class'], 24)
    title = f'{name}\n{row["probability"]:.0%}, hidden {row["lowest"]:.0%}'
    above.set_title(title, fontsize=9, parse_math=False)
    drawn = below.imshow(values, extent=(*ends, *ends[::-1]))
    below.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    figure.colorbar(drawn, ax=below, shrink=0.8)
    for panel in (above, below):
      panel.set(xticks=[], yticks=[])
  return figure


if __name__ == '__main__':
  sys.exit(main())

"""What the layers of a trained network see.

python -m alexnet_jax.evaluation.visualize --workdir DIR [--layers conv1,conv5]
[--units 3,17] [photo.jpg ...]
"""

import argparse
from collections.abc import Sequence
import dataclasses
import pathlib
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
_PLACES = 16  # of the gray square in a row, about


@dataclasses.dataclass(frozen=True)
class Choice:
  """What is drawn; what is empty or 0 is chosen here."""

  layers: Sequence[str] = ()  # such as conv1; all
  units: Sequence[int] = ()  # channels, from 0; nine that respond, evenly
  images: Sequence[str] = ()  # files to occlude; four of the split
  square: int = 0  # pixels that are hidden; a fifth of the image


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
  text = 'width of the gray square in pixels (default: a fifth of the image)'
  add('--square', default=0, type=int, help=text)
  text = f'folder of the page (default: {FOLDER} in that of the run)'
  add('--out', default='', type=cli.path, metavar='DIR', help=text)
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
  from alexnet_jax.evaluation import loading
  from alexnet_jax.evaluation import page
  from alexnet_jax.evaluation import sections

  workdir, images = pathlib.Path(arguments.workdir), arguments.images
  images = folder_lib.find_images(images) if images else ()
  choice = Choice(arguments.layers, arguments.units, images, arguments.square)
  run = loading.load_network(
    str(workdir), arguments.checkpoint, arguments.data_path
  )
  loader = loading.make_eval_loader(run, 'validation')
  folder = pathlib.Path(arguments.out or workdir / FOLDER)
  album = sections.Album(folder, lambda: None)
  result, parts = draw(run, loader, album, choice)
  title = f'What the layers of {workdir.resolve().name} see'
  page.write(folder / 'index.html', page.render(title, parts))
  print(f'page: {folder / "index.html"}', file=sys.stderr)
  return {
    'page': str(folder / 'index.html'),
    'files': [str(file) for file in album.files],
    'step': int(run.state.step),
    **result,
  }


def draw(run, loader, album, choice: Choice) -> tuple[dict, list]:
  """Draws patches, deconvolutions and occlusion maps.

  Args:
    run: a `loading.Network`.
    loader: of the validation split.
    album: a `sections.Album`, whose folder is made where it is not there.

  Returns:
    ({layers, occlusion}: what was found, JSON; sections of a page).

  Raises:
    UserError: if there is no such layer or unit, or the square does not fit.
  """
  from alexnet_jax.evaluation import deconvolution
  from alexnet_jax.evaluation import evaluate

  eye = _Eye(run, loader, album, deconvolution.classifier_of(run))
  numbers = eye.check(choice)
  batches = evaluate.host_batches(run, loader)
  strongest = eye.classifier.find_strongest(batches, _PATCHES)
  album.folder.mkdir(parents=True, exist_ok=True)
  found, parts = {}, []
  for number in numbers:
    result, part = eye.layer(number, strongest[number - 1], choice.units)
    found[f'conv{number}'] = result
    parts.append(part)
  occluded, part = eye.occlusion(choice.images, choice.square)
  return {'layers': found, 'occlusion': occluded}, [*parts, part]


@dataclasses.dataclass(frozen=True)
class _Eye:
  """A network with its validation images, and where pictures go."""

  run: object
  loader: object
  album: object
  classifier: object

  @property
  def size(self):
    return self.run.config.data.crop_size

  def check(self, choice):
    """Returns the numbers of the convolutions; UserError if one is not."""
    params = self.classifier.variables['params']
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
    if not 0 <= choice.square < self.size:
      raise UserError(
        f'--square is {choice.square}; give pixels, fewer than the'
        f' {self.size} of the images'
      )
    return [int(name.removeprefix('conv')) for name in choice.layers or known]

  def crop(self, loader, index):
    """Reads an image as the network sees it: (uint8 [s, s, 3], label)."""
    from alexnet_jax.data import images

    pixels, label = loader.square(int(index))
    return images.center_crop(pixels, self.size), label

  def layer(self, number, strongest, units):
    """Draws units of a convolution: (result, section)."""
    from alexnet_jax.evaluation import figures
    from alexnet_jax.evaluation.page import Section

    name, peaks = f'conv{number}', strongest.values[:, 0]
    active = np.flatnonzero(peaks > 0)
    chosen = np.linspace(0, len(active) - 1, min(_UNITS, len(active)))
    units = list(units) or active[chosen.round().astype(int)].tolist()
    rows, tiles, captions = [], [], []
    for unit in units:
      row, mosaics = self.unit(number, unit, strongest)
      rows.append(row)
      tiles += mosaics
      classes = row['classes'] or ['it never responds']
      most = max(classes, key=classes.count)
      captions += [
        (f'unit {unit}', f'{classes.count(most)} of {len(classes)}: {most}'),
        ('deconvolution', f'up to {peaks[unit]:.3g}'),
      ]
    silent = len(peaks) - len(active)
    text = f'{len(peaks)} units, {silent} of which never respond.'
    pictures = []
    if tiles:
      alt = f'Strongest patches of {len(units)} units, and their deconvolutions'
      caption = (
        'Left: the patches of the validation images to which the unit responds'
        ' most, one of an image, and the most common of their classes. Right:'
        ' the pixels that these responses go back to, each in its own range.'
      )
      grid = figures.draw_grid(tiles, 6, _TILE, captions)
      pictures = [self.album.add(name, grid, alt, caption)]
    section = Section(f'What {name} sees', text, pictures=pictures)
    return {'units': rows, 'silent': silent}, section

  def unit(self, number, unit, strongest):
    """Returns (row of the result, [patches, deconvolutions])."""
    from alexnet_jax.evaluation import deconvolution

    count = int((strongest.values[unit] > 0).sum())
    indices = strongest.images[unit, :count].tolist()
    examples = [self.crop(self.loader, index) for index in indices]
    # Of one shape, so that one program does all.
    pixels = np.zeros((_PATCHES, self.size, self.size, 3), np.uint8)
    places = np.zeros((_PATCHES, 2), int)
    places[:count] = strongest.positions[unit, :count]
    for i, (image, _) in enumerate(examples):
      pixels[i] = image
    model, units = self.classifier.model, np.full(_PATCHES, unit)
    field = deconvolution.receptive_field(model, number, self.size)
    back = self.classifier.deconvolve(number, pixels, units, places)[:count]
    peaks = np.abs(back).max((1, 2, 3), keepdims=True, initial=1e-30)
    back = np.uint8(np.round(128 + 127 * back / peaks))
    starts = places * field.stride + field.start
    mosaics = [
      _mosaic(images, starts, field.width) for images in (pixels[:count], back)
    ]
    row = {
      'unit': unit,
      'values': strongest.values[unit, :count].tolist(),
      'positions': places[:count].tolist(),
      'images': [self.loader.source.describe(index) for index in indices],
      'classes': [self.run.class_names[label] for _, label in examples],
    }
    return row, mosaics

  def occlusion(self, paths, square):
    """Draws the maps of some images: (result, section)."""
    from alexnet_jax.evaluation import deconvolution
    from alexnet_jax.evaluation import loading
    from alexnet_jax.evaluation.page import Section

    loader, square = self.loader, square or max(1, self.size // 5)
    chosen = np.linspace(0, loader.source.num_examples - 1, _IMAGES + 2)[1:-1]
    if paths:
      _, loader = loading.open_images(self.run, paths)
      chosen = np.arange(loader.source.num_examples)
    stride = max(1, (self.size - square) // _PLACES)
    rows, images, maps = [], [], []
    for index in dict.fromkeys(chosen.round().astype(int).tolist()):
      if loader.square(index) is None:
        continue
      image, label = self.crop(loader, index)
      plain = self.classifier.probabilities(image[None])[0]
      label = int(plain.argmax()) if paths else label
      images.append(image)
      maps.append(self.classifier.occlude(image, label, square, stride))
      rows.append(
        {
          'image': loader.source.describe(index),
          'class': self.run.class_names[label],
          'probability': float(plain[label]),
          'lowest': float(maps[-1].min()),
        }
      )
    if not rows:
      raise UserError('none of the images to occlude can be read')
    first = deconvolution.corners(self.size, square, stride)
    alt = f'{len(rows)} images, and how probable their class is, partly hidden'
    caption = (
      f'Below: the probability while a gray square of {square} pixels lies'
      ' around each place; dark: what is hidden there matters. Red: where it'
      ' lowers the probability most.'
    )
    figure = _draw_occlusion(images, maps, rows, (first, square))
    whose = 'predicted' if paths else 'true'
    text = f'The probability of the {whose} class of images, partly hidden.'
    pictures = [self.album.add('occlusion', figure, alt, caption)]
    return rows, Section('Occlusion', text, pictures=pictures)


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
  for number, (image, start) in enumerate(zip(images, starts, strict=True)):
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
  figure = Figure(figsize=(2.8 * count, 5.6), dpi=110, layout='constrained')
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

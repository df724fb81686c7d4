"""Draws what the layers of a trained network see.

python -m alexnet_jax.evaluation.visualize --workdir DIR [--layers conv1,conv5]
[--units 3,17] [photo.jpg ...]
"""

import argparse
from collections.abc import Sequence
import contextlib
import re
import sys

import numpy as np

from alexnet_jax import cli
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation.page import Section

_DESCRIPTION = """\
Draws, for units (channels) of every convolution, the nine patches of the
validation set to which they respond most, each with its deconvolution: the
pixels that this response goes back to. And for some images how probable their
class remains while a gray square hides a part. Both after Zeiler and Fergus
2014; into DIR/visualize."""
_PATCHES = 9  # of a unit, in a square
_UNITS = 9  # of a layer, unless they are named
_IMAGES, _MOST_IMAGES = 4, 32  # that are occluded: unless they are named; named
_TILE = 200  # pixels of the nine patches of a unit in a picture
_SQUARES, _PLACES = 5, 16  # gray squares side by side, places in a row: about


def main(argv=None) -> int:
  """Runs the command; returns its exit code."""
  parser = cli.make_parser('evaluation.visualize', _DESCRIPTION)
  add = parser.add_argument
  text = 'images to occlude, up to 32 (default: four of the validation set)'
  add('images', nargs='*', type=cli.path, metavar='IMAGE', help=text)
  text = 'such as conv1,conv5 (default: every convolution)'
  add('--layers', default=(), type=lambda t: t.split(','), help=text)
  text = 'channels, from 0, of each layer (default: nine that respond, evenly)'
  add('--units', default=(), type=_units, metavar='N,...', help=text)
  cli.add_run(parser)
  cli.add_data_path(parser)
  return cli.run_parsed(parser, argv, _work)


def _units(text):
  if not re.fullmatch(r'[0-9]+(,[0-9]+)*', text):
    raise argparse.ArgumentTypeError(f'{text!r} is not of the form 3,17')
  return [int(number) for number in text.split(',')]


def _work(arguments):
  """Writes the page; returns the command's result."""
  from alexnet_jax.evaluation import loading, sections

  workdir, units = arguments.workdir, arguments.units
  run = loading.load_network(workdir, arguments.checkpoint, arguments.data_path)
  # Before what takes minutes.
  layers = _layers(run, arguments.layers, units)
  photographs = _photographs(run, arguments.images)
  subject = sections.measure_run(run)

  def draw_all(album):
    for path in album.folder.glob('*.png'):  # of other layers, before
      if re.fullmatch(r'conv[0-9]+|occlusion', path.stem):
        path.unlink()
    result, parts = draw(subject, album, layers, units, photographs)
    return {'step': int(run.state.step), **result}, parts

  return sections.write_page(workdir, 'visualize', 'What layers see:', draw_all)


def draw(
  subject,
  album,
  layers: Sequence[str] = (),
  units: Sequence[int] = (),
  photographs: Sequence[tuple[str, np.ndarray]] = (),
) -> tuple[dict, list[Section]]:
  """Draws patches, deconvolutions and occlusion maps of a measured run.

  Args:
    subject: a `sections.MeasuredRun`.
    album: a `sections.Album`.
    layers: names of convolutions; (): all.
    units: channels, from 0; (): nine that respond, evenly.
    photographs: (name, crop) of each image to occlude; (): four of the split.

  Returns ({layers, occlusion}: what was found, JSON; sections of a page).
  """
  from alexnet_jax.evaluation import deconvolution, evaluate

  run, found, parts = subject.run, {}, []
  classifier = deconvolution.classifier_of(run)
  batches = evaluate.host_batches(run, subject.validation)
  with contextlib.closing(batches):
    strongest = classifier.find_strongest(batches, _PATCHES)
  for name in layers or _layers(run, (), ()):
    number = int(name.removeprefix('conv'))
    seen = classifier, number, strongest[number - 1]
    found[name], part = _draw_layer(subject, album, seen, units)
    parts.append(part)
  occluded, part = _occlusion(subject, classifier, album, photographs)
  return {'layers': found, 'occlusion': occluded}, [*parts, part]


def _layers(run, layers, units):
  """Returns the names of the chosen layers; UserError if one is not there."""
  params = run.state.eval_params
  known = [name for name in params if name.startswith('conv')]
  for name in layers or known:
    if name not in known:
      raise UserError(f'there is no {name!r}; there are {", ".join(known)}')
    count = params[name]['kernel'].shape[-1]
    if odd := [unit for unit in units if unit >= count]:
      raise UserError(
        f'{name} has the units 0 to {count - 1}, and no {odd[0]}; name other'
        ' --units, or the --layers that have them'
      )
  return layers or known


def _photographs(run, paths):
  """Reads images: [(name, crop)]; UserError if one cannot be read."""
  from alexnet_jax.data import folder as folder_lib, images as images_lib
  from alexnet_jax.evaluation import loading

  images = folder_lib.find_images(paths) if paths else []
  if len(images) > _MOST_IMAGES:
    raise UserError(f'{len(images)} images; give at most {_MOST_IMAGES}')
  if not images:
    return []
  _, loader = loading.open_images(run, images)
  squares = [loader.square(index) for index in range(len(images))]
  size = run.config.data.crop_size
  return [
    (loader.source.describe(i), images_lib.center_crop(square, size))
    for i, (square, _) in enumerate(squares)
  ]


def _draw_layer(subject, album, seen, units):
  """Draws units of a layer; returns (rows of the result, section)."""
  from alexnet_jax.evaluation import figures

  _, number, strongest = seen
  peaks = strongest.values[:, 0]
  active = np.flatnonzero(peaks > 0)
  if not units:  # of a layer that is dead as a whole, too
    there = active if len(active) else np.arange(len(peaks))
    chosen = np.linspace(0, len(there) - 1, min(_UNITS, len(there)))
    units = there[chosen.round().astype(int)].tolist()
  rows, tiles, captions = [], [], []
  for unit in units:
    row, mosaics = _draw_unit(subject, seen, unit)
    rows.append(row)
    tiles += mosaics
    classes, text = row['classes'], 'never responds'
    if classes:
      most = max(classes, key=classes.count)
      text = f'{classes.count(most)} of {len(classes)}: class {most}'
    captions.append((f'unit {unit}', text))
    captions.append(('deconvolution', f'up to {peaks[unit]:.3g}'))
  picture = album.add(
    f'conv{number}',
    figures.draw_grid(tiles, 6, _TILE, captions),
    f'Strongest patches of {len(units)} units, and their deconvolutions',
    'Left: the patches of the validation images to which the unit responds'
    ' most, one of an image, and the most common of their classes. Right:'
    ' the pixels that these responses go back to, each in its own range.'
    ' Gray: 0, or outside the image. Of gray images: the mean of the colors.',
  )
  text = f'{len(peaks) - len(active)} of {len(peaks)} units never respond.'
  return rows, Section(f'What conv{number} sees', text, pictures=[picture])


def _draw_unit(subject, seen, unit):
  """Returns (row of the result, [patches, deconvolutions])."""
  from alexnet_jax.evaluation import deconvolution
  from alexnet_jax.training import build

  (classifier, number, strongest), validation = seen, subject.validation
  values = strongest.values[unit]
  count = int((values > 0).sum())
  indices = strongest.images[unit, :count]
  # Of one shape, so that one program does all.
  shape = build.image_shape(subject.run.config)
  pixels = np.zeros((_PATCHES, *shape), np.uint8)
  places = np.zeros((_PATCHES, 2), int)
  places[:count] = strongest.positions[unit, :count]
  for i, image in enumerate(subject.crops(indices)):
    pixels[i] = image
  units = np.full(_PATCHES, unit)
  back = classifier.deconvolve(number, pixels, units, places)
  if (pixels == pixels[..., :1]).all():  # gray: colors would be noise
    back = back.mean(3, keepdims=True)
  back = np.stack([_shown(each) for each in back])
  width, stride, start = deconvolution.receptive_field(
    classifier.model, number, shape[0]
  )
  starts = places[:count] * stride + start
  labels = subject.measured.predictions.labels[indices]
  row = {'unit': unit, 'values': values[:count].tolist()}
  row['images'] = [validation.source.describe(int(i)) for i in indices]
  row['classes'] = [subject.name(label) for label in labels]
  return row, [_mosaic(each, starts, width) for each in (pixels, back)]


def _occlusion(subject, classifier, album, photographs):
  """Draws occlusion maps; returns (rows of the result, section)."""
  if photographs:
    names, crops = zip(*photographs, strict=True)
    labels = classifier.probabilities(np.array(crops)).argmax(1)
  else:
    chosen, source = subject.evenly_chosen(_IMAGES), subject.validation.source
    names = [source.describe(int(index)) for index in chosen]
    crops = subject.crops(chosen)
    labels = subject.measured.predictions.labels[chosen]
  size = len(crops[0])
  square = max(1, size // _SQUARES)
  stride = max(1, (size - square) // _PLACES)
  rows, maps = [], []
  for name, image, label in zip(names, crops, labels, strict=True):
    first, values = classifier.occlude(image, label, square, stride)
    maps.append(values)
    whole = float(classifier.probabilities(image[None])[0, label])
    row = {'image': name, 'class': subject.name(label), 'probability': whole}
    rows.append({**row, 'lowest': float(values.min())})
  picture = album.add(
    'occlusion',
    _draw_occlusion(crops, maps, rows, (first, square)),
    f'{len(rows)} images, and how probable their class is, partly hidden',
    f'Below: the probability while a gray square of {square} pixels lies around'
    ' each place; dark: what is hidden there matters. Red: where it lowers the'
    ' probability most.',
  )
  whose = 'predicted' if photographs else 'true'
  text = f'The probability of the {whose} class of images, partly hidden.'
  return rows, Section('Occlusion', text, pictures=[picture])


def _shown(back):
  """Returns a deconvolution as colors: gray for 0, the last percent cut off."""
  sizes = np.abs(back[back != 0])
  largest = np.quantile(sizes, 0.99) if len(sizes) else 1.0
  return np.uint8(np.round(128 + 127 * np.clip(back / largest, -1, 1)))


def _mosaic(images, starts, width):
  """Puts windows of up to nine images, gray outside them, side by side."""
  size = images.shape[1]
  if width >= size:  # the whole image
    width, starts = size, np.zeros_like(starts)
  gap = max(1, width // 24)
  pitch = width + gap
  side = 3 * pitch + gap
  # Black lines, for photographs may be white at their edges, as pages are.
  sheet = np.zeros((side, side, images.shape[3]), np.uint8)
  around = ((0, 0), (width, width), (width, width), (0, 0))
  padded = np.pad(images, around, constant_values=128)
  for number, (top, left) in enumerate(starts + width):
    y, x = gap + number // 3 * pitch, gap + number % 3 * pitch
    window = padded[number, top : top + width, left : left + width]
    sheet[y : y + width, x : x + width] = window
  return sheet


def _draw_occlusion(images, maps, rows, places):
  """Draws images above their maps."""
  from matplotlib.figure import Figure
  from matplotlib.patches import Rectangle

  from alexnet_jax.data import images as images_lib
  from alexnet_jax.evaluation import figures

  (first, square), size, count = places, len(images[0]), len(images)
  figure = Figure(figsize=(2.8 * count, 5.2), dpi=110, layout='constrained')
  axes = figure.subplots(2, count, squeeze=False)
  ends = np.array([first[0], first[-1]]) + square / 2 - 0.5
  for (above, below), image, values, row in zip(
    axes.T, images, maps, rows, strict=True
  ):
    above.imshow(images_lib.as_rgb(image))
    lowest = np.unravel_index(values.argmin(), values.shape)
    corner = first[list(lowest)][::-1] - 0.5
    style = {'fill': False, 'edgecolor': figures.WRONG, 'linewidth': 1.5}
    above.add_patch(Rectangle(corner, square, square, **style))
    name = figures.shortened(row['class'], 24)
    title = f'{name}\n{row["probability"]:.0%}, hidden {row["lowest"]:.0%}'
    above.set_title(title, fontsize=9, parse_math=False)
    drawn = below.imshow(values, extent=(*ends, *ends[::-1]))
    below.set(xlim=(-0.5, size - 0.5), ylim=(size - 0.5, -0.5))
    label = 'probability of the class'
    figure.colorbar(drawn, ax=below, shrink=0.8, label=label)
    for panel in (above, below):
      panel.set(xticks=[], yticks=[])
  return figure


if __name__ == '__main__':
  sys.exit(main())

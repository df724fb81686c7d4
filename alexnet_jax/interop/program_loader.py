"""Runs an exported network; it is copied beside the program as `load.py`.

python load.py photo.jpg ...

import load
program = load.load('DIR')
program.probabilities(images)  # uint8 [batch, crop, crop, channels]
"""

import argparse
import hashlib
import json
import pathlib
import sys

import jax
import jax.export
import numpy as np

FILES = ('program.bin', 'params.npz')


class Program:
  """A network that gives probabilities of images."""

  def __init__(self, exported: jax.export.Exported, params: dict, about: dict):
    self.about = about  # the contents of about.json
    self.class_names = about['class_names']  # in the order of probabilities
    self.crop_size = about['crop_size']  # pixels
    self.channels = about['channels']  # 3, or 1: gray
    self._params = jax.device_put(params)
    self._call = jax.jit(exported.call)

  def probabilities(self, images: np.ndarray) -> np.ndarray:
    """Returns the probability of each class, float32 [batch, classes].

    The images are uint8 [batch, crop_size, crop_size, channels], red, green,
    blue or gray. Raises ValueError if they have another shape or dtype, or
    JAX runs on devices that the program is not for.
    """
    return np.asarray(self._call(self._params, images))

  def prepare(self, path: str) -> np.ndarray:
    """Returns a photograph as uint8 [crop_size, crop_size, channels].

    The short side becomes `resize_size` pixels, and the center is cut out, as
    in training; with one channel it is gray. The filter is Pillow's (BOX to
    shrink, BILINEAR to enlarge), whose pixels differ a little from those of
    training.
    """
    from PIL import Image, ImageOps

    if not pathlib.Path(path).is_file():  # a pipe would be waited for
      raise ValueError('no such file, or no plain one')
    kinds = ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF')  # as in training
    with Image.open(path, formats=kinds) as file:
      image = ImageOps.exif_transpose(file).convert('RGB')
    short, crop = self.about['resize_size'], self.crop_size
    scale = short / min(image.size)
    size = tuple(max(short, round(side * scale)) for side in image.size)
    filter_ = Image.Resampling.BOX if scale < 1 else Image.Resampling.BILINEAR
    image = image.resize(size, filter_)
    if self.channels == 1:
      image = image.convert('L')
    pixels = np.asarray(image).reshape(*size[::-1], self.channels)
    for width in (short, crop):
      top, left = ((side - width) // 2 for side in pixels.shape[:2])
      pixels = pixels[top : top + width, left : left + width]
    return pixels


def load(folder: str | pathlib.Path) -> Program:
  """Opens the folder that holds the program.

  Raises ValueError if a file is missing or not the one that was exported.
  """
  try:
    return _load(pathlib.Path(folder))
  except Exception as error:  # what was not exported here raises anything
    raise ValueError(f'{folder} holds no exported network: {error}') from error


def _load(folder):
  about = json.loads((folder / 'about.json').read_text(encoding='utf-8'))
  for name in FILES:
    expected = about['sha256'][name]
    found = hashlib.sha256((folder / name).read_bytes()).hexdigest()
    if found != expected:
      raise ValueError(
        f'{name} is damaged: expected the SHA-256 {expected}, found {found}'
      )
  with np.load(folder / 'params.npz') as arrays:
    params = {name: arrays[name] for name in arrays.files}
  program = bytearray((folder / 'program.bin').read_bytes())
  exported = jax.export.deserialize(program)
  size, channels = exported.in_avals[-1].shape[2:]
  outputs = exported.out_avals[0].shape[1]
  names = about['class_names']
  if not (
    about['crop_size'] == size <= about['resize_size']
    and about['channels'] == channels
    and {*map(type, names)} == {str}
    and len(names) == outputs
  ):
    raise ValueError('about.json is not of this program')
  return Program(exported, params, about)


def main(argv: list[str] | None = None) -> int:
  """Prints the best five classes of photographs; returns the exit code."""
  parser = argparse.ArgumentParser(
    description='Prints the five most probable classes of photographs. Reading'
    ' them needs Pillow: pip install pillow'
  )
  parser.add_argument('photos', nargs='+', metavar='PHOTO')
  names, images, code = [], [], 0
  paths = parser.parse_args(argv).photos
  try:
    program = load(pathlib.Path(__file__).parent)
  except ValueError as error:
    return _fail(error)
  for path in paths:
    try:
      images.append(program.prepare(path))
      names.append(path)
    except ImportError:
      return _fail('reading photographs needs Pillow: pip install pillow')
    except Exception as error:  # of damaged files Pillow raises many
      code = _fail(f'{path}: {getattr(error, "strerror", None) or error}')
  if images:
    if program.channels == 1:
      print('note: the network sees images in gray', file=sys.stderr)
    try:
      rows = program.probabilities(np.stack(images))
    except ValueError as error:
      return _fail(error)
    for name, row in zip(names, rows, strict=True):
      best = np.argsort(-row, kind='stable')[:5]
      shares = (f'{program.class_names[i]} {row[i]:.4f}' for i in best)
      print(f'{name}: {", ".join(shares)}')
  return code


def _fail(message) -> int:
  print(f'error: {message}', file=sys.stderr)
  return 2


if __name__ == '__main__':
  sys.exit(main())

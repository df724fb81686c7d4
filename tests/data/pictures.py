"""Pictures for the tests of this folder."""

import io

import numpy as np
import PIL.Image


def photo(height=60, width=80):
  """Smooth colors, which JPEG keeps well."""
  rows, columns = np.mgrid[:height, :width]
  return np.stack(
    [rows * 255 // height, columns * 255 // width, (rows + columns) % 97],
    axis=-1,
  ).astype(np.uint8)


def noise(seed, height=40, width=48, channels=3):
  """Random pixels."""
  rng = np.random.default_rng(seed)
  return rng.integers(0, 256, (height, width, channels), np.uint8)


def encode(image, form='JPEG', **options):
  """The file of an image, or of an array of pixels."""
  if isinstance(image, np.ndarray):
    image = PIL.Image.fromarray(image)
  buffer = io.BytesIO()
  image.save(buffer, form, **options)
  return buffer.getvalue()


def image_file(seed, form='PNG'):
  """The file of a small picture."""
  return encode(noise(seed, 18 + seed % 5, 20), form)

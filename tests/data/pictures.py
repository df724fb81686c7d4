"""Pictures, and files of them, for the tests of data sets."""

import io
import os
import tarfile

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


def png(seed):
  """The file of 28 x 28 random pixels."""
  return encode(noise(seed, 28, 28), 'PNG')


def image_file(seed, form='PNG'):
  """The file of a small picture."""
  return encode(noise(seed, 18 + seed % 5, 20), form)


def exif(orientation):
  """EXIF data that only tells how a picture is turned."""
  data = PIL.Image.Exif()
  data[0x0112] = orientation
  return data.tobytes()


class Runs:
  """Ends the process of whoever unpickles it."""

  def __reduce__(self):
    return os._exit, (1,)


def write(root, files):
  """Writes {path below root: bytes}; returns root."""
  for name, content in files.items():
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
  return root


def tar_of(files, **options):
  """The bytes of a tar of (name, bytes) pairs, in that order."""
  buffer = io.BytesIO()
  with tarfile.open(fileobj=buffer, mode='w', **options) as tar:
    for name, content in files:
      member = tarfile.TarInfo(name)
      member.size = len(content)
      tar.addfile(member, io.BytesIO(content))
  return buffer.getvalue()


def contents(source):
  """What every example of a source is."""
  return [source.read(i) for i in range(source.num_examples)]

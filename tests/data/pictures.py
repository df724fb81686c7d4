"""Pictures, and files of them, for the tests of data sets."""

import contextlib
import io
import os
import tarfile

import numpy as np
import PIL.Image
import PIL.ImageOps


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


def pillow(file):
  """Pillow's RGB pixels of a file, upright; of 16 bits the upper half."""
  formats = ('JPEG', 'PNG', 'GIF', 'WEBP', 'BMP', 'TIFF')
  image = PIL.Image.open(io.BytesIO(file), formats=formats)
  image.load()
  if image.mode.startswith('I'):
    return np.repeat((np.asarray(image) >> 8).astype(np.uint8)[..., None], 3, 2)
  return upright(np.asarray(image.convert('RGB')), file)


def upright(pixels, file):
  """The pixels as the EXIF data of a file turn them."""
  image = PIL.Image.fromarray(pixels)
  with contextlib.suppress(Exception):  # of data that are damaged
    with PIL.Image.open(io.BytesIO(file)) as opened:
      turned = opened.getexif().get(0x0112, 1)
    image.getexif()[0x0112] = turned
    image = PIL.ImageOps.exif_transpose(image)
  return np.asarray(image)


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


# Of `photographs`, by class.
COUNTS = {'ant': 12, 'bee': 7, 'cat': 5}
LABELS = [0] * 12 + [1] * 7 + [2] * 5


def photographs():
  """[(JPEG, label)] of 24 pictures, smooth with some grain: JPEG keeps them."""
  examples = []
  for number, label in enumerate(LABELS):
    rng = np.random.default_rng(number)
    size = (110, 80 + number) if number % 2 else (75 + number, 100)
    coarse = PIL.Image.fromarray(rng.integers(0, 256, (5, 6, 3), np.uint8))
    smooth = coarse.resize(size[::-1], PIL.Image.Resampling.BICUBIC)
    image = np.asarray(smooth) + rng.normal(0, 2, (*size, 1))
    image = np.clip(image, 0, 255).astype(np.uint8)
    examples.append((encode(image, quality=92), label))
  return examples


def write_set(root, kind, prefix, examples, names=tuple(COUNTS)):
  """Writes (JPEG, label) pairs as a folder, tar or parquet; returns root.

  The files are numbered; those of shards begin with `prefix`.
  """
  numbered = [(f'{i:02d}', *pair) for i, pair in enumerate(examples)]
  if kind == 'folder':
    return write(root, {f'{names[k]}/{i}.jpg': c for i, c, k in numbered})
  if kind == 'tar':
    members = [(f'{i}.jpg', content) for i, content, _ in numbered]
    members += [(f'{i}.cls', str(label).encode()) for i, _, label in numbered]
    lines = '\n'.join(names).encode()
    shard = {f'{prefix}-0.tar': tar_of(members)}
    return write(root, {'classes.txt': lines, **shard})
  import pyarrow as pa
  import pyarrow.parquet as pq

  table = {
    'image': [content for _, content, _ in numbered],
    'label': [names[label] for *_, label in numbered],
  }
  root.mkdir(parents=True)
  pq.write_table(pa.table(table), root / f'{prefix}-0.parquet')
  return root


def contents(source):
  """What every example of a source is."""
  return [source.read(i) for i in range(source.num_examples)]

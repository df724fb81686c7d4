"""What the peers that run Python per example are given: read, decode, crop.

Written as one would for these libraries, but with the fastest decoder at hand
and without needless copies, so that it is the loaders that are compared.
"""

import numpy as np

from alexnet_jax.bench.layouts import CROP
from alexnet_jax.bench.layouts import open_source
from alexnet_jax.bench.layouts import Task
from alexnet_jax.bench.layouts import TFDS_NAME
from alexnet_jax.data import images

try:
  import cv2
except ImportError:  # numpy and this package's functions take its place
  cv2 = None


class Photographs:
  """The photographs of a layout: JPEG bytes, or squares in mapped memory.

  Attributes:
    labels: int32 [n].
    paths: of the files of a `folder`.
  """

  def __init__(self, task: Task):
    source = open_source(task)
    self._resize_size = task.layout.resize_size
    self.paths = self._records = self._squares = None
    if task.layout.kind == 'tfds':
      self._records = _tfds_records(task)
      # Read once and not timed, as all labels here.
      labels = [source.read(i)[1] for i in range(source.num_examples)]
      self.labels = np.array(labels, np.int32)
      return
    self.labels = source.labels
    if task.layout.kind == 'folder':
      self.paths = [str(source.root / path) for path in source.paths]
    else:
      self._squares = all_squares(source)

  def __len__(self) -> int:
    return len(self.labels)

  def read(self, index: int) -> bytes | np.ndarray:
    if self.paths:
      with open(self.paths[index], 'rb') as file:
        return file.read()
    if self._records:
      return self._records[index]['image']
    return self._squares[index]

  def example(self, index: int, draws, decode, out=None) -> np.ndarray:
    """A random crop, mirrored or not.

    Args:
      index: of the photograph.
      draws: three in [0, 1): of the row, the column and the mirroring.
      decode: one of `decoders()`.
      out: uint8 [CROP, CROP, 3], to be overwritten; None: an array or view.
    """
    pixels = self.read(index)
    if isinstance(pixels, bytes):
      pixels = decode(pixels)
    crop = _crop(pixels, self._resize_size, *draws[:2])
    if draws[2] < 0.5:
      return _mirrored(crop, out)
    if out is None:
      return crop
    out[...] = crop
    return out

  def fill(self, out, indices, rng: np.random.Generator, decode) -> None:
    """Writes an example for each index into `out`; draws for all at once."""
    for row, draws in enumerate(rng.random((len(indices), 3)).tolist()):
      self.example(indices[row], draws, decode, out[row])


def all_squares(source) -> list[np.ndarray]:
  """A view of every square of a raw set: nothing to look up when it is used."""
  return [square for shard in source.shards for square in shard]


def _tfds_records(task):
  """The set as TFDS itself reads it."""
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(task.path / TFDS_NAME / '1.0.0')
  return builder.as_data_source(
    'train', decoders={'image': tfds.decode.SkipDecoding()}
  )


def _crop(pixels, resize_size, row_draw, column_draw):
  height, width = pixels.shape[:2]
  short = min(height, width)
  # The window in the original, resized alone: cheaper than the whole.
  window = round(CROP * short / resize_size)
  top = (height - short) // 2 + int(row_draw * (short - window + 1))
  left = (width - short) // 2 + int(column_draw * (short - window + 1))
  crop = pixels[top : top + window, left : left + window]
  return crop if window == CROP else _resized(crop)


def _resized(image):
  if cv2:
    return cv2.resize(image, (CROP, CROP), interpolation=cv2.INTER_LINEAR)
  out = np.empty((CROP, CROP, 3), np.uint8)
  images.resize_box(image, (0, 0, *image.shape[:2]), out)
  return out


def _mirrored(image, out):
  if cv2:
    return cv2.flip(image, 1, dst=out)
  if out is None:
    return image[:, ::-1]
  out[...] = image[:, ::-1]
  return out


def decoders() -> dict:
  """{name: function from JPEG bytes to RGB} of what is installed."""
  import simplejpeg

  found = {'simplejpeg': lambda encoded: simplejpeg.decode_jpeg(encoded, 'RGB')}
  if cv2:
    # Threads of its own on top of the loader's would only be in their way.
    cv2.setNumThreads(0)
    found['cv2'] = lambda encoded: cv2.imdecode(
      np.frombuffer(encoded, np.uint8), cv2.IMREAD_COLOR_RGB
    )
  return found


def shuffled_batches(num_examples: int, task: Task, count: int):
  """Indices of `count` batches, epoch after epoch, each in a new order."""
  rng = np.random.default_rng(1)
  order = np.empty(0, np.int64)
  for _ in range(count):
    while len(order) < task.batch_size:
      order = np.concatenate([order, rng.permutation(num_examples)])
    yield order[: task.batch_size]
    order = order[task.batch_size :]

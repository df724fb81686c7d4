"""The Grain datasets: one element is one batch.

Everything about batch t is computed from (seed, t) by `order`, so Grain's
iterator state is a single index and means the same for any number of threads
and processes.
"""

import functools
import hashlib
import math

import grain
import numpy as np

from alexnet_jax.data import colors
from alexnet_jax.data import images
from alexnet_jax.data import order
from alexnet_jax.data.buffers import Buffers
from alexnet_jax.data.loader import Loader
from alexnet_jax.errors import UserError

CROPS = ('random', 'random_resized', 'center')
_LONGEST_SIDE = 65_535  # pixels, of a JPEG
# Copying so much takes no longer than it takes to wake other threads.
_COPIED_AT_ONCE = 2**20  # bytes


def make_train_iter(
  loader: Loader,
  *,
  num_steps: int,
  global_batch_size: int,
  seed: int,
  crop_size: int,
  crop: str = 'random',
  crop_area: tuple[float, float] = (0.08, 1.0),
  crop_ratio: tuple[float, float] = (3 / 4, 4 / 3),
  random_flip: bool = True,
  brightness: float = 0.0,
  color: colors.Shift | None = None,
  scaled_decoding: bool = True,
  prefetch: int = 2,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator:
  """Training batches: element t is this process's part of batch t.

  Memory: at most `prefetch` + 1 batches besides those that the consumer keeps;
  a batch's array is used again once nothing refers to it. Squares of images
  that are in memory may be kept, see `Loader.square_addresses`.

  Args:
    loader: reads the training split.
    num_steps: number of batches.
    global_batch_size: examples in a batch of all processes together.
    seed: of the order and the random draws.
    crop_size: width of the crops, in pixels.
    crop: `random`: a window of the square of the loader's resize_size, the
      paper's; `center`: its center; `random_resized`: a random part of the
      whole image, resized.
    crop_area: smallest and largest share of a random-resized crop.
    crop_ratio: smallest and largest width / height of one.
    random_flip: False never mirrors.
    brightness: largest random shift of the brightness, as a share of white.
    color: random shift of the colors; None: none.
    scaled_decoding: decodes JPEGs that are at least twice too large at a lower
      resolution; see `decoding.decode`.
    prefetch: number of batches made ahead; 0: none.
    process_index, process_count: the part of the batch that is made.

  Returns:
    An iterator over {image: uint8 [b, crop_size, crop_size, 3], label: int32
    [b], flip: bool [b], brightness: float32 [b], color: float32 [b, 3],
    scale: float32 [b], unreadable: bool [b]}, b the process's batch size.
    `flip` tells which images the device has to mirror, `brightness` and
    `color` (levels of 255) what it adds, `scale` what it multiplies pixels by
    after the mean; they are there with `random_flip`, `brightness` and
    `color`.
    `unreadable` tells which examples stand in for one that could not be
    decoded; it is there if the loader skips. The iterator's state
    is {'next_index': t}, t the step whose batch comes next.
  """
  source = loader.source
  part = order.process_slice(global_batch_size, process_index, process_count)
  buffers = _image_buffers(part, crop_size)
  min_size = 0
  if scaled_decoding and crop == 'random_resized':
    min_size = _least_size(crop_size, crop_area, crop_ratio)
  elif scaled_decoding:
    min_size = loader.resize_size

  addresses = None
  if crop != 'random_resized':
    addresses = loader.square_addresses(num_steps * (part.stop - part.start))

  def make_batch(step):
    positions = order.batch_positions(step, global_batch_size)[part]
    indices = order.examples_at(positions, source.num_examples, seed)
    draws = order.batch_draws(step, global_batch_size, seed)[part]
    batch = _batch(buffers, loader.skips)
    if random_flip:
      batch['flip'] = draws[:, 2] < 0.5
    if brightness:
      shifts = order.brightness_draws(step, global_batch_size, seed)[part]
      batch['brightness'] = shifts * np.float32(255 * brightness)
    if color is not None:
      batch |= color.draw(step, global_batch_size, seed, part)
    if crop == 'random_resized':
      attempts = order.resized_crop_draws(step, global_batch_size, seed)[part]
      rows_needed, cut = _boxes(draws, attempts, crop_area, crop_ratio)
    else:
      corners = _corners(crop, draws, loader.resize_size - crop_size)
      if addresses is not None:
        _copy_squares(loader, addresses(indices), corners, batch)
        batch['label'][:] = source.labels[indices]
        return batch
      rows_needed, cut = _windows(corners, loader.resize_size, crop_size)

    def fill(i, _):
      how = {
        'min_size': min_size,
        'rows_needed': functools.partial(rows_needed, i),
      }
      example = loader.pixels(int(indices[i]), **how)
      if example is None:
        batch['unreadable'][i] = True
        example = _next_readable(loader, int(positions[i]), seed, how)
      pixels, batch['label'][i] = example
      cut(i, pixels, batch['image'][i])

    loader.for_each(fill, len(positions))
    return batch

  return _iterate(make_batch, num_steps, prefetch)


def _windows(corners, size, crop_size):
  """How the i-th crop is cut out of the center square of an image.

  Returns:
    (rows_needed, cut): (i, height, width) -> rows of the image that are read;
    (i, pixels, out) writes the crop.
  """

  def rows_needed(i, height, width):
    return images.rows_of_crop(height, width, size, corners[i, 0], crop_size)

  def cut(i, pixels, out):
    images.crop_of_square(pixels, size, *corners[i], out)

  return rows_needed, cut


def _boxes(draws, attempts, area, ratio):
  """As `_windows`, for random-resized crops."""

  def box(i, height, width):
    return images.random_resized_box(
      height, width, draws[i], attempts[i], area, ratio
    )

  def rows_needed(i, height, width):
    top, _, rows, _ = box(i, height, width)
    return top + rows

  def cut(i, pixels, out):
    images.resize_box(pixels, box(i, *pixels.shape[:2]), out)

  return rows_needed, cut


def _least_size(crop_size, area, ratio):
  """Short side that leaves every random-resized crop its `crop_size` pixels."""
  share = area[0] / max(ratio[1], 1 / ratio[0])
  return min(_LONGEST_SIDE, math.ceil(crop_size / math.sqrt(share)))


def _image_buffers(part, crop_size):
  return Buffers((part.stop - part.start, crop_size, crop_size, 3))


def _batch(buffers, skips):
  image = buffers.take()
  batch = {'image': image, 'label': np.zeros(len(image), np.int32)}
  if skips:
    batch['unreadable'] = np.zeros(len(image), bool)
  return batch


def _corners(crop, draws, free):
  """(top, left) of each window, int64 [n, 2]; `free` pixels are left over."""
  if crop == 'center':
    return np.full((len(draws), 2), free // 2)
  return (draws[:, :2] * (free + 1)).astype(np.int64)


def _copy_squares(loader, addresses, corners, batch):
  """Windows of squares that lie in memory as they are: no work in Python."""
  from alexnet_jax.data import kernels  # slow to import, and not always needed

  def copy(start, end):
    kernels.copy_windows(
      addresses[start:end],
      loader.resize_size,
      corners[start:end, 0],
      corners[start:end, 1],
      batch['image'][start:end],
    )

  if batch['image'].nbytes <= _COPIED_AT_ONCE:
    copy(0, len(addresses))
    return
  # Few large pieces: the GIL is passed on once for each.
  chunk = -(-len(addresses) // (2 * loader.num_threads))
  loader.for_each(copy, len(addresses), chunk)


def _next_readable(loader, position, seed, how):
  """The first example after a position, round its epoch, that decodes."""
  num_examples = loader.source.num_examples
  epoch, rank = divmod(position, num_examples)
  indices = order.permutation(seed, epoch, num_examples)
  for offset in range(1, num_examples):
    index = int(indices[(rank + offset) % num_examples])
    if example := loader.pixels(index, **how):
      return example
  raise UserError(f'no image of {loader.source.name} can be decoded')


def make_eval_iter(
  loader: Loader,
  *,
  global_batch_size: int,
  crop_size: int,
  prefetch: int = 2,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator:
  """Center crops of every example of a split, once, in order.

  With a `crop_size` of the loader's `resize_size` they are the whole squares.

  The images are decoded exactly. The last batch is filled up with examples that
  do not count: their `mask` is False, as is that of skipped images.

  Returns:
    An iterator over {image: uint8 [b, crop_size, crop_size, 3], label: int32
    [b], mask: bool [b], unreadable: bool [b]}; see `make_train_iter` for the
    last and for the arguments.
  """
  num_examples = loader.source.num_examples
  part = order.process_slice(global_batch_size, process_index, process_count)
  buffers = _image_buffers(part, crop_size)
  corner = (loader.resize_size - crop_size) // 2

  def make_batch(number):
    positions = order.batch_positions(number, global_batch_size)[part]
    batch = _batch(buffers, loader.skips)
    batch['mask'] = np.zeros(len(positions), bool)

    def fill(i, _):
      inside = positions[i] < num_examples
      example = loader.pixels(int(positions[i])) if inside else None
      if example is None:
        batch['image'][i] = 0
        if inside:
          batch['unreadable'][i] = True
        return
      pixels, batch['label'][i] = example
      images.crop_of_square(
        pixels, loader.resize_size, corner, corner, batch['image'][i]
      )
      batch['mask'][i] = True

    loader.for_each(fill, len(positions))
    return batch

  return _iterate(make_batch, -(-num_examples // global_batch_size), prefetch)


def _iterate(make_batch, length, prefetch):
  options = grain.ReadOptions(
    # Two readers: the threads work inside the batches, and find the next one
    # ready when one is done. At most `prefetch` batches are begun ahead.
    num_threads=min(2, prefetch),
    prefetch_buffer_size=prefetch,
  )
  dataset = grain.MapDataset.range(length).map(make_batch)
  return iter(dataset.to_iter_dataset(options))


def data_record(source, *, seed: int, global_batch_size: int) -> dict:
  """What a resumed run must find unchanged for its batches to be the same.

  `order` is a hash of the first batch's examples and draws; it changes if the
  random generator of another numpy version gives other numbers.
  """
  positions = order.batch_positions(0, min(global_batch_size, 1024))
  indices = order.examples_at(positions, source.num_examples, seed)
  draws = order.batch_draws(0, len(positions), seed)
  digest = hashlib.sha256(indices.tobytes() + draws.tobytes()).hexdigest()
  return {
    'fingerprint': source.fingerprint,
    'num_examples': source.num_examples,
    'global_batch_size': global_batch_size,
    'seed': seed,
    'order': digest[:16],
  }

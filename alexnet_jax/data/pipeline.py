"""Batches for training and evaluation, as Grain datasets of whole batches.

One element of a dataset is one batch. Everything about batch t is computed from
(seed, t) by `order`, so Grain's iterator state is a single index and means the
same for any number of threads and processes.
"""

import collections
import dataclasses
import math

import grain
import numpy as np

from alexnet_jax.data import images, order
from alexnet_jax.data.augment import Augmentation, Changes
from alexnet_jax.data.loader import Loader
from alexnet_jax.errors import UserError

# Copying so much takes no longer than it takes to wake other threads.
_COPIED_AT_ONCE = 2**20  # bytes
# JAX takes over a numpy array of the CPU without a copy if it begins at a
# multiple of this many bytes.
_ALIGNMENT = 64


class Batch(Changes, total=False):
  """One process's part of a batch: b examples; some keys only where used."""

  image: np.ndarray  # uint8 [b, crop_size, crop_size, channels]
  label: np.ndarray  # int32 [b]
  # bool [b]: could not be decoded; in training another example stands in.
  unreadable: np.ndarray
  mask: np.ndarray  # bool [b]: examples that count; only in evaluation


@dataclasses.dataclass(frozen=True)
class Batching:
  """Sizes of batches, and the part that this process makes.

  Memory: at most `prefetch` + 1 batches in addition to those that the consumer
  keeps; a batch's array is used again once nothing refers to it.
  """

  global_batch_size: int  # examples, of all processes together
  prefetch: int = 2  # batches made ahead
  process_index: int = 0
  process_count: int = 1

  @property
  def size(self) -> int:
    """The number of examples that this process makes of a batch."""
    return self.global_batch_size // self.process_count

  @property
  def part(self) -> slice:
    """The examples of the global batch that this process makes."""
    start = self.process_index * self.size
    return slice(start, start + self.size)


class _Buffers:
  """Hands out uint8 arrays of one shape whose memory is used again.

  A fresh array of a batch's size costs a page fault every 4 kB. Memory comes
  back by itself once nothing refers to it: no array, no view, no JAX array that
  shares it. So a batch may be kept for as long as anybody likes.
  """

  def __init__(self, batching, crop_size, channels):
    self._shape = (batching.size, crop_size, crop_size, channels)
    self._free = collections.deque()  # its append and pop are atomic

  def take(self):
    """Returns an array with arbitrary contents."""
    try:
      block = self._free.pop()
    except IndexError:
      block = _aligned_block(math.prod(self._shape))
    return np.asarray(_Lease(block, self._free)).reshape(self._shape)


class _Lease:
  """Owner of the arrays that use a block; its end gives the block back.

  numpy lets views refer to the first owner that is no array, which is this.
  """

  def __init__(self, block, free):
    self._block, self._free = block, free
    self.__array_interface__ = block.__array_interface__

  def __del__(self):
    self._free.append(self._block)


def _aligned_block(size):
  block = np.empty(size + _ALIGNMENT, np.uint8)
  start = -block.__array_interface__['data'][0] % _ALIGNMENT
  return block[start : start + size]


def train_dataset(
  loader: Loader,
  augmentation: Augmentation,
  batching: Batching,
  *,
  num_steps: int,
  seed: int,
  scaled_decoding: bool = True,
) -> grain.IterDataset:
  """Returns the training batches: element t is batch t, a `Batch`.

  Squares of images that are in memory may be kept, see
  `Loader.square_addresses`. The iterator's state is {'next_index': next step}.

  Args:
    loader: reads the training split.
    augmentation: the random changes of the images.
    batching: sizes, and this process's part.
    num_steps: number of batches.
    seed: of the order and the random draws.
    scaled_decoding: decodes JPEGs that are at least twice too large at a lower
      resolution; see `decoding.decode`.
  """
  crop, size = augmentation.crop, loader.resize_size
  whole, part = batching.global_batch_size, batching.part
  min_size = crop.least_short_side(size) if scaled_decoding else 0
  addresses = None  # of squares in memory
  if crop.cuts_squares:
    addresses = loader.square_addresses(num_steps * batching.size)
  buffers = _Buffers(batching, crop.size, loader.channels)

  def make_batch(step):
    positions = order.batch_positions(step, whole)[part]
    indices = order.examples_at(positions, loader.source.num_examples, seed)
    draws = order.batch_draws(step, whole, seed)[part]
    batch = _empty_batch(buffers, loader.skips)
    batch |= augmentation.device_changes(draws, step, whole, seed, part)
    attempts = None
    if not crop.cuts_squares:
      attempts = order.resized_crop_draws(step, whole, seed)[part]

    def fill(i, _):
      how = {'min_size': min_size, 'rows_needed': windows[i].rows_needed}
      example = loader.pixels(int(indices[i]), **how)
      if example is None:
        batch['unreadable'][i] = True
        example = _next_readable(loader, int(positions[i]), seed, how)
      pixels, batch['label'][i] = example
      windows[i].cut(pixels, batch['image'][i])

    if addresses is None:
      windows = crop.windows(draws, attempts, size)
      loader.for_each(fill, len(positions))
    else:
      corners = crop.corners(draws, size)
      _copy_squares(loader, addresses(indices), corners, batch)
      batch['label'][:] = loader.source.labels[indices]
    if augmentation.mirrors_on_host:
      flip, image = batch.pop('flip'), batch['image']
      image[flip] = image[flip, :, ::-1]
    return batch

  return _dataset(make_batch, num_steps, batching.prefetch)


def _empty_batch(buffers, skips):
  image = buffers.take()
  batch = {'image': image, 'label': np.zeros(len(image), np.int32)}
  if skips:
    batch['unreadable'] = np.zeros(len(image), bool)
  return batch


def _copy_squares(loader, addresses, corners, batch):
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
  """Returns the next example after a position, in its epoch, that decodes."""
  num_examples = loader.source.num_examples
  epoch, rank = divmod(position, num_examples)
  indices = order.permutation(seed, epoch, num_examples)
  for offset in range(1, num_examples):
    index = int(indices[(rank + offset) % num_examples])
    if example := loader.pixels(index, **how):
      return example
  raise UserError(f'no image of {loader.source.name} can be decoded')


def eval_dataset(
  loader: Loader, crop_size: int, batching: Batching
) -> grain.IterDataset:
  """Returns batches of center crops of every example, once, in order.

  The images are decoded exactly; with a `crop_size` of the loader's
  `resize_size` they are the whole squares. The last batch is filled up with
  examples that do not count: their `mask` is False, as of skipped images.
  """
  buffers = _Buffers(batching, crop_size, loader.channels)
  count, size = loader.source.num_examples, loader.resize_size
  whole, corner = batching.global_batch_size, (size - crop_size) // 2

  def make_batch(number):
    positions = order.batch_positions(number, whole)[batching.part].tolist()
    batch = _empty_batch(buffers, loader.skips)
    batch['mask'] = np.zeros(len(positions), bool)

    def fill(i, _):
      image, index = batch['image'][i], positions[i]
      if index >= count:
        image[:] = 0
      elif (example := loader.pixels(index)) is None:
        image[:], batch['unreadable'][i] = 0, True
      else:
        pixels, batch['label'][i] = example
        images.crop_of_square(pixels, size, corner, corner, image)
        batch['mask'][i] = True

    loader.for_each(fill, len(positions))
    return batch

  return _dataset(make_batch, -(-count // whole), batching.prefetch)


def _dataset(make_batch, length, prefetch):
  options = grain.ReadOptions(
    # Two readers: the threads work inside the batches, and find the next one
    # ready when one is done. At most `prefetch` batches are begun ahead.
    num_threads=min(2, prefetch),
    prefetch_buffer_size=prefetch,
  )
  dataset = grain.MapDataset.range(length).map(make_batch)
  return dataset.to_iter_dataset(options)

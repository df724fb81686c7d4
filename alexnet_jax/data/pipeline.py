"""Batches for training and evaluation, as Grain datasets of whole batches.

One element of a dataset is one batch. Everything about batch t is computed from
(seed, t) by `order`, so Grain's iterator state is a single index and means the
same for any number of threads and processes.
"""

import collections
from collections.abc import Callable
import dataclasses
import hashlib
import math

import grain
import numpy as np

from alexnet_jax.data import images
from alexnet_jax.data import order
from alexnet_jax.data.augment import Augmentation
from alexnet_jax.data.augment import Changes
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
  min_size = crop.least_short_side(size) if scaled_decoding else 0
  addresses = None  # of squares in memory
  if crop.kind != 'random_resized':
    addresses = loader.square_addresses(num_steps * batching.size)
  buffers = _Buffers(batching, crop.size, loader.channels)
  make_batch = _TrainBatches(
    loader, augmentation, batching, buffers, seed, min_size, addresses
  )
  return _dataset(make_batch, num_steps, batching.prefetch)


@dataclasses.dataclass(frozen=True)
class _TrainBatches:
  """Makes the training batch of a step."""

  loader: Loader
  augmentation: Augmentation
  batching: Batching
  buffers: _Buffers
  seed: int
  min_size: int  # see `decoding.decode`
  addresses: Callable | None  # see `Loader.square_addresses`

  def __call__(self, step: int) -> Batch:
    batch = self._make(step)
    if self.augmentation.mirrors_on_host:
      flip, image = batch.pop('flip'), batch['image']
      image[flip] = image[flip, :, ::-1]
    return batch

  def _make(self, step):
    loader, crop = self.loader, self.augmentation.crop
    part, seed = self.batching.part, self.seed
    whole = self.batching.global_batch_size
    positions = order.batch_positions(step, whole)[part]
    indices = order.examples_at(positions, loader.source.num_examples, seed)
    draws = order.batch_draws(step, whole, seed)[part]
    batch = _empty_batch(self.buffers, loader.skips)
    batch |= self.augmentation.draw(draws, step, whole, seed, part)
    if self.addresses is not None:
      corners = crop.corners(draws, loader.resize_size)
      _copy_squares(loader, self.addresses(indices), corners, batch)
      batch['label'][:] = loader.source.labels[indices]
      return batch
    attempts = None
    if crop.kind == 'random_resized':
      attempts = order.resized_crop_draws(step, whole, seed)[part]
    windows = crop.windows(draws, attempts, loader.resize_size)

    def fill(i, _):
      self._fill(batch, i, int(positions[i]), int(indices[i]), windows[i])

    loader.for_each(fill, len(positions))
    return batch

  def _fill(self, batch, i, position, index, window):
    """Reads example `index` and writes its crop as the i-th of the batch."""
    how = {'min_size': self.min_size, 'rows_needed': window.rows_needed}
    example = self.loader.pixels(index, **how)
    if example is None:
      batch['unreadable'][i] = True
      example = _next_readable(self.loader, position, self.seed, how)
    pixels, batch['label'][i] = example
    window.cut(pixels, batch['image'][i])


def _empty_batch(buffers, skips):
  image = buffers.take()
  batch = {'image': image, 'label': np.zeros(len(image), np.int32)}
  if skips:
    batch['unreadable'] = np.zeros(len(image), bool)
  return batch


def _copy_squares(loader, addresses, corners, batch):
  """Copies windows of squares that lie in memory: no work in Python."""
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
  make_batch = _EvalBatches(loader, crop_size, batching, buffers)
  length = -(-loader.source.num_examples // batching.global_batch_size)
  return _dataset(make_batch, length, batching.prefetch)


@dataclasses.dataclass(frozen=True)
class _EvalBatches:
  """Makes a batch of center crops."""

  loader: Loader
  crop_size: int
  batching: Batching
  buffers: _Buffers

  def __call__(self, number: int) -> Batch:
    whole = self.batching.global_batch_size
    positions = order.batch_positions(number, whole)[self.batching.part]
    batch = _empty_batch(self.buffers, self.loader.skips)
    batch['mask'] = np.zeros(len(positions), bool)
    self.loader.for_each(
      lambda i, _: self._fill(batch, i, int(positions[i])), len(positions)
    )
    return batch

  def _fill(self, batch, i, index):
    if index >= self.loader.source.num_examples:
      batch['image'][i] = 0
    elif (example := self.loader.pixels(index)) is None:
      batch['image'][i], batch['unreadable'][i] = 0, True
    else:
      pixels, batch['label'][i] = example
      size = self.loader.resize_size
      corner = (size - self.crop_size) // 2
      images.crop_of_square(pixels, size, corner, corner, batch['image'][i])
      batch['mask'][i] = True


def _dataset(make_batch, length, prefetch):
  options = grain.ReadOptions(
    # Two readers: the threads work inside the batches, and find the next one
    # ready when one is done. At most `prefetch` batches are begun ahead.
    num_threads=min(2, prefetch),
    prefetch_buffer_size=prefetch,
  )
  dataset = grain.MapDataset.range(length).map(make_batch)
  return dataset.to_iter_dataset(options)


def data_record(source, *, seed: int, global_batch_size: int) -> dict:
  """Returns what must stay unchanged for a resumed run's batches to be equal.

  `order` is a hash of the first batch's examples and of all kinds of draws:
  another numpy may have a random generator that gives other numbers.
  """
  positions = order.batch_positions(0, min(global_batch_size, 1024))
  kinds = (
    order.batch_draws,
    order.resized_crop_draws,
    order.brightness_draws,
    order.color_draws,
  )
  numbers = [
    order.examples_at(positions, source.num_examples, seed),
    # The last digits of normal draws may depend on the mathematical library.
    *(draw(0, len(positions), seed).round(6) for draw in kinds),
  ]
  digest = hashlib.sha256(b''.join(n.tobytes() for n in numbers)).hexdigest()
  return {
    'fingerprint': source.fingerprint,
    'num_examples': source.num_examples,
    'global_batch_size': global_batch_size,
    'seed': seed,
    'order': digest[:16],
  }

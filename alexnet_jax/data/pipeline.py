"""The Grain datasets: one element is one batch.

Everything about batch t is computed from (seed, t) by `order`, so Grain's
iterator state is a single index and means the same for any number of threads
and processes.
"""

from collections.abc import Callable
import concurrent.futures
import hashlib
import itertools
import logging
import os
import threading

import grain
import numpy as np

from alexnet_jax.data import images
from alexnet_jax.data import order
from alexnet_jax.errors import UnreadableImageError
from alexnet_jax.errors import UserError


class Loader:
  """Reads examples of one source as squares of one size, in threads.

  Attributes:
    source: see `sources`.
    resize_size: width of the squares, in pixels.
    unreadable: names of the images that could not be decoded so far.
  """

  def __init__(
    self,
    source,
    resize_size: int,
    *,
    unreadable: str = 'stop',
    num_threads: int = 0,
  ):
    """Starts the threads.

    Args:
      source: see `sources`.
      resize_size: width of the squares, in pixels.
      unreadable: `stop` raises at the first image that cannot be decoded;
        `skip` names it in the log and goes on without it.
      num_threads: number of threads; 0: one per core of this process.
    """
    self.source = source
    self.resize_size = resize_size
    self.unreadable = set()
    self._skip = unreadable == 'skip'
    self._num_threads = num_threads or _num_cores()
    self._pool = concurrent.futures.ThreadPoolExecutor(self._num_threads)
    self._lock = threading.Lock()

  def square(self, index: int) -> tuple[np.ndarray, int] | None:
    """(uint8 [size, size, 3], label) of an example; None if it is skipped."""
    pixels, label = self.source.read(index)
    if not 0 <= label < len(self.source.class_names):
      raise UserError(
        f'{self.source.describe(index)} has the label {label}, which is none of'
        f' the {len(self.source.class_names)} classes'
      )
    try:
      if isinstance(pixels, bytes):
        pixels = images.decode(pixels)
    except UnreadableImageError as error:
      name = self.source.describe(index)
      if not self._skip:
        raise UnreadableImageError(
          f'cannot decode {name}: {error}. Go on without such images:'
          ' --config.data.unreadable=skip; or mend or delete it, after which a'
          ' run with checkpoints needs a new --workdir'
        ) from error
      with self._lock:
        if name not in self.unreadable:
          logging.warning('cannot decode %s: %s; skipped', name, error)
          self.unreadable.add(name)
      return None
    return images.centre_square(pixels, self.resize_size), label

  def for_each(self, function: Callable[[int], None], count: int) -> None:
    """Calls function(0), ..., function(count - 1), shared by the threads."""
    bounds = np.linspace(0, count, self._num_threads + 1).astype(int)

    def work(bounds):
      for i in range(*bounds):
        function(i)

    for _ in self._pool.map(work, itertools.pairwise(bounds)):
      pass


def _num_cores():
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1


def make_train_iter(
  loader: Loader,
  *,
  num_steps: int,
  global_batch_size: int,
  seed: int,
  crop_size: int,
  random_crop: bool = True,
  random_flip: bool = True,
  prefetch: int = 2,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator:
  """Training batches: element t is this process's part of batch t.

  Args:
    loader: reads the training split.
    num_steps: number of batches.
    global_batch_size: examples in a batch of all processes together.
    seed: of the order and the random draws.
    crop_size: width of the crops, in pixels.
    random_crop: False takes the centre.
    random_flip: False never mirrors.
    prefetch: number of batches made ahead; 0: none.
    process_index: which part of the batch this process makes.
    process_count: number of parts.

  Returns:
    An iterator over {image: uint8 [process_batch_size, crop_size, crop_size,
    3], label: int32 [process_batch_size]}. Its state is
    {'next_index': t}, t the step whose batch comes next.
  """
  num_examples = loader.source.num_examples
  part = order.process_slice(global_batch_size, process_index, process_count)

  def make_batch(step):
    positions = order.batch_positions(step, global_batch_size)[part]
    indices = order.examples_at(positions, num_examples, seed)
    draws = order.batch_draws(step, global_batch_size, seed)[part]
    batch = _empty_batch(len(positions), crop_size)

    def fill(i):
      example = loader.square(int(indices[i]))
      if example is None:
        example = _next_readable(loader, int(positions[i]), seed)
      square, batch['label'][i] = example
      images.random_crop_and_flip(
        square,
        batch['image'][i],
        draws[i],
        crop=random_crop,
        flip=random_flip,
      )

    loader.for_each(fill, len(positions))
    return batch

  return _iterate(make_batch, num_steps, prefetch)


def make_eval_iter(
  loader: Loader,
  *,
  global_batch_size: int,
  crop_size: int,
  prefetch: int = 2,
  process_index: int = 0,
  process_count: int = 1,
) -> grain.DatasetIterator:
  """Centre crops of every example of a split, once, in order.

  The last batch is filled up with examples that do not count: their `mask` is
  False, as is that of skipped images.

  Returns:
    An iterator over {image: uint8 [process_batch_size, crop_size, crop_size,
    3], label: int32 [process_batch_size], mask: bool [process_batch_size]};
    the arguments are those of `make_train_iter`.
  """
  num_examples = loader.source.num_examples
  part = order.process_slice(global_batch_size, process_index, process_count)

  def make_batch(number):
    positions = order.batch_positions(number, global_batch_size)[part]
    batch = _empty_batch(len(positions), crop_size)
    batch['mask'] = np.zeros(len(positions), bool)

    def fill(i):
      example = positions[i] < num_examples and loader.square(int(positions[i]))
      if example:
        batch['image'][i] = images.centre_crop(example[0], crop_size)
        batch['label'][i] = example[1]
        batch['mask'][i] = True

    loader.for_each(fill, len(positions))
    return batch

  return _iterate(make_batch, -(-num_examples // global_batch_size), prefetch)


def _empty_batch(size, crop_size):
  return {
    'image': np.zeros((size, crop_size, crop_size, 3), np.uint8),
    'label': np.zeros(size, np.int32),
  }


def _next_readable(loader, position, seed):
  """The first example after a position, round its epoch, that decodes."""
  num_examples = loader.source.num_examples
  epoch, rank = divmod(position, num_examples)
  indices = order.permutation(seed, epoch, num_examples)
  for offset in range(1, num_examples):
    index = int(indices[(rank + offset) % num_examples])
    if example := loader.square(index):
      return example
  raise UserError(f'no image of {loader.source.name} can be decoded')


def _iterate(make_batch, length, prefetch):
  options = grain.ReadOptions(
    # One reader: the threads work inside a batch, which keeps at most
    # `prefetch` finished batches in memory.
    num_threads=min(1, prefetch),
    prefetch_buffer_size=prefetch,
  )
  dataset = grain.MapDataset.range(length).map(make_batch)
  return iter(dataset.to_iter_dataset(options))


def pixel_mean(
  loader: Loader,
  *,
  chunk: int = 256,
  progress: Callable[[int], None] = lambda done: None,
  limit: int | None = None,
) -> np.ndarray:
  """The mean image of a split, float64 [size, size, 3], from integer sums.

  Args:
    loader: reads the split; its squares are averaged.
    chunk: examples between two calls of `progress`.
    progress: called with the number of examples done.
    limit: uses the first `limit` examples only.

  Raises:
    UserError: if no image can be decoded.
  """
  size = loader.resize_size
  total = np.zeros((size, size, 3), np.uint64)
  counted, lock = 0, threading.Lock()
  num_examples = min(
    limit or loader.source.num_examples, loader.source.num_examples
  )

  def add(index):
    nonlocal counted
    if example := loader.square(index):
      # uint8 sums are exact in any order, whatever thread comes first.
      with lock:
        np.add(total, example[0], out=total)
        counted += 1

  for start in range(0, num_examples, chunk):
    count = min(chunk, num_examples - start)
    loader.for_each(lambda i, start=start: add(start + i), count)
    progress(start + count)
  if not counted:
    raise UserError(f'no image of {loader.source.name} can be decoded')
  return total / counted


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

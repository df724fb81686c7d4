"""The process of a library of `bench data`: checks and times its loaders.

Besides loaders there are limits: one part of a loader's work, done by several
threads at once, without order, batches or hand-over.
"""

import concurrent.futures
import importlib
import threading
import time

import numpy as np

from alexnet_jax.bench import data_peers
from alexnet_jax.bench.layouts import CROP
from alexnet_jax.bench.layouts import Task

# Batches that a loader has begun ahead when the clock stops: it makes them
# after it, as it made as many before the clock started. Otherwise those that
# begin many batches ahead would look faster.
_TAIL = 6


class Handler:
  """Answers requests for the candidates of one library; see `workers`."""

  def __init__(self, library: str):
    """Imports the library: one of `data_peers.LIBRARIES`, or `limits`."""
    self._is_limit = library == 'limits'
    if self._is_limit:
      self._candidates = _LIMITS
    else:
      module, self._candidates = data_peers.LIBRARIES[library]
      importlib.import_module(module)

  def candidates(self) -> list[str]:
    """Returns their names."""
    return list(self._candidates)

  def check(self, candidate: str, task: Task) -> None:
    """Tries a candidate.

    Raises:
      NotImplementedError: if it does not apply to the layout.
      ValueError: if its batches are not what they have to be.
    """
    function = self._candidates[candidate]
    if not self._is_limit:
      check_batches(function, task, len(task.open_source().class_names))
    elif (task.layout.kind == 'raw') != (function is _crop_copy):
      raise NotImplementedError('this layout has no such part')

  def measure(self, candidate: str, task: Task, num_batches: int) -> float:
    """Returns images per second."""
    measured = _limit if self._is_limit else _throughput
    return measured(self._candidates[candidate], task, num_batches)


def _throughput(
  batches: data_peers.Batches, task: Task, num_batches: int
) -> float:
  """Times the middle of a loader's work: it runs before and after."""
  warm_up = max(_TAIL, num_batches // 4)
  iterator = batches(task, warm_up + num_batches + _TAIL)
  for _ in range(warm_up):
    next(iterator)
  start = time.perf_counter()
  for _ in range(num_batches):
    next(iterator)
  seconds = time.perf_counter() - start
  for _ in iterator:  # to the end: nothing runs on into the next measurement
    pass
  return num_batches * task.batch_size / seconds


def check_batches(
  batches: data_peers.Batches, task: Task, num_classes: int
) -> None:
  """Looks at two batches of a loader.

  Raises:
    ValueError: if they are not what all candidates have to make.
  """
  first, second = ((np.array(i), np.array(y)) for i, y in batches(task, 2))
  expected = (task.batch_size, CROP, CROP, 3)
  for image, label in (first, second):
    if image.shape != expected or image.dtype != np.uint8:
      raise ValueError(f'images are {image.dtype} {image.shape}')
    if label.shape != expected[:1] or label.dtype.kind not in 'iu':
      raise ValueError(f'labels are {label.dtype} {label.shape}')
    if not 0 <= label.min() <= label.max() < num_classes:
      raise ValueError(f'labels are {label.min()} to {label.max()}')
    if image.std() < 1:
      raise ValueError('the images have no content')
  if np.array_equal(first[1], second[1]) or np.all(np.diff(first[1]) >= 0):
    raise ValueError('the examples are not shuffled')


def _limit(part, task, num_batches):
  """Returns images per second of a part of the work, by all threads."""
  barrier = threading.Barrier(task.threads)
  count = -(-num_batches * task.batch_size // task.threads)

  def share(number):
    num_examples, work = part(task)
    rng = np.random.default_rng(number)
    # Each thread has its own order, as in a shuffled epoch.
    indices = np.resize(rng.permutation(num_examples), count).tolist()
    # Mapped memory is slow where it is touched for the first time.
    warm_up = num_examples if task.layout.kind == 'raw' else task.batch_size
    for i in range(min(warm_up, num_examples)):
      work(i)
    barrier.wait()
    start = time.perf_counter()
    for i in indices:
      work(i)
    return start, time.perf_counter()

  with concurrent.futures.ThreadPoolExecutor(task.threads) as pool:
    spans = list(pool.map(share, range(task.threads)))
  seconds = max(end for _, end in spans) - min(start for start, _ in spans)
  return count * task.threads / seconds


def _decode_with(decode):
  def part(task):
    source = task.open_source()
    encoded = [source.read(i)[0] for i in range(source.num_examples)]
    return source.num_examples, lambda i: decode(encoded[i])

  return part


def _crop_copy(task):
  squares = data_peers.all_squares(task.open_source())
  out = np.ones((task.batch_size, CROP, CROP, 3), np.uint8)  # in memory now
  free = task.layout.resize_size - CROP + 1

  def copy(i):
    # A corner that differs from one to the next, for no time at all.
    top, left = i * 7 % free, i * 13 % free
    out[i % len(out)] = squares[i][top : top + CROP, left : left + CROP]

  return len(squares), copy


# Each part is (task) -> (number of examples, function of an example's index).
_LIMITS = {
  'crop copy': _crop_copy,
  **{
    f'decode only ({name})': _decode_with(decode)
    for name, decode in data_peers.DECODERS.items()
  },
}

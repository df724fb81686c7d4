"""How a loader is timed, and how its batches are checked."""

from collections.abc import Callable
from collections.abc import Iterator
import time

import numpy as np

from alexnet_jax.bench.layouts import CROP
from alexnet_jax.bench.layouts import Task

# Batches that a loader has begun ahead when the clock stops: it makes them
# after it, as it made as many before the clock started. Otherwise those that
# begin many batches ahead would look faster.
_TAIL = 6

# (task, number of batches) -> that many (images, labels).
Batches = Callable[[Task, int], Iterator[tuple[np.ndarray, np.ndarray]]]


def images_per_second(batches: Batches, task: Task, num_batches: int) -> float:
  """Times the middle of a loader's work: it runs before and after.

  Args:
    batches: makes the loader's batches, from scratch.
    task: what they are made of.
    num_batches: how many are timed.
  """
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


def check(batches: Batches, task: Task, num_classes: int) -> None:
  """Looks at two batches of a loader.

  Raises:
    ValueError: if they are not what all contenders have to make.
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

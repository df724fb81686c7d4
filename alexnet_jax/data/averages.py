"""The mean image of a data set."""

from collections.abc import Callable
import threading

import numpy as np

from alexnet_jax.data.loader import Loader
from alexnet_jax.errors import UserError


def pixel_mean(
  loader: Loader,
  *,
  chunk: int = 512,
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

  def add(first, last):
    nonlocal counted
    partial, count = np.zeros(total.shape, np.uint32), 0
    for index in range(first, last):
      if example := loader.square(index):
        np.add(partial, example[0], out=partial)
        count += 1
    # Sums of integers are exact in any order, whatever thread comes first.
    with lock:
      np.add(total, partial, out=total)
      counted += count

  for start in range(0, num_examples, chunk):
    count = min(chunk, num_examples - start)
    loader.for_each(
      lambda a, b, start=start: add(start + a, start + b), count, chunk=32
    )
    progress(start + count)
  if not counted:
    raise UserError(f'no image of {loader.source.name} can be decoded')
  return total / counted

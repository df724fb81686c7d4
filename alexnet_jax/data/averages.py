"""The mean image of a data set, and the covariance of its colors."""

from collections.abc import Callable
import threading

import numpy as np

from alexnet_jax.data import colors
from alexnet_jax.data.loader import Loader
from alexnet_jax.errors import UserError


def pixel_statistics(
  loader: Loader,
  *,
  chunk: int = 512,
  progress: Callable[[int], None] = lambda done: None,
  limit: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
  """The mean image of a split and the covariance of its RGB, in one pass.

  Args:
    loader: reads the split; its squares are averaged.
    chunk: examples between two calls of `progress`.
    progress: called with the number of examples done.
    limit: uses the first `limit` examples only.

  Returns:
    (mean, covariance): float64 [size, size, 3] and [3, 3], in levels of 255;
    both from sums of integers, which are exact.

  Raises:
    UserError: if no image can be decoded.
  """
  from alexnet_jax.data import kernels  # slow to import

  size = loader.resize_size
  total = np.zeros((size, size, 3), np.uint64)
  sums, products = np.zeros(3, np.int64), np.zeros((3, 3), np.int64)
  counted, lock = 0, threading.Lock()
  num_examples = min(
    limit or loader.source.num_examples, loader.source.num_examples
  )

  def add(first, last):
    nonlocal counted
    partial, count = np.zeros(total.shape, np.uint32), 0
    own = np.zeros(3, np.int64), np.zeros((3, 3), np.int64)
    for index in range(first, last):
      if example := loader.square(index):
        np.add(partial, example[0], out=partial)
        kernels.add_color_sums(example[0], *own)
        count += 1
    # Sums of integers are exact in any order, whatever thread comes first.
    with lock:
      np.add(total, partial, out=total)
      np.add(sums, own[0], out=sums)
      np.add(products, own[1], out=products)
      counted += count

  for start in range(0, num_examples, chunk):
    count = min(chunk, num_examples - start)
    loader.for_each(
      lambda a, b, start=start: add(start + a, start + b), count, chunk=32
    )
    progress(start + count)
  if not counted:
    raise UserError(f'no image of {loader.source.name} can be decoded')
  rgb = colors.color_statistics(counted * size**2, sums, products)
  return total / counted, np.array(rgb['covariance'])

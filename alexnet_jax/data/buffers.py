"""A ring of reused memory blocks for batches."""

import collections
import math

import numpy as np

# JAX takes over a numpy array of the CPU without a copy if it begins at a
# multiple of this many bytes.
_ALIGNMENT = 64


class Buffers:
  """Hands out uint8 arrays of one shape whose memory is used again.

  A fresh array of a batch's size costs a page fault every 4 kB. Memory comes
  back by itself, and only when nothing refers to it any more: no array, no
  view of one, no JAX array that shares the memory. So the ring is as large as
  the number of batches that live at the same time, and a batch may be kept for
  as long as anybody likes.
  """

  def __init__(self, shape: tuple[int, ...]):
    self._shape = shape
    self._free = collections.deque()  # its append and pop are atomic

  def take(self) -> np.ndarray:
    """Returns an array uint8 [shape] with arbitrary contents."""
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

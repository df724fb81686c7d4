"""Reads examples of a source in threads."""

import collections
from collections.abc import Callable
import concurrent.futures
import logging
import os
import threading

import numpy as np

from alexnet_jax.data import images
from alexnet_jax.errors import UnreadableImageError
from alexnet_jax.errors import UserError


class Loader:
  """Reads and decodes examples of one source.

  Attributes:
    source: see `sources`.
    resize_size: width of the squares that `square` gives, in pixels.
    skips: whether images that cannot be decoded are left out.
    unreadable: names of the images that could not be decoded so far.
    num_threads: number of threads.
  """

  def __init__(
    self,
    source,
    resize_size: int,
    *,
    unreadable: str = 'stop',
    num_threads: int = 0,
    skip_flag: str = '--config.data.unreadable=skip',
  ):
    """Starts the threads.

    Args:
      source: see `sources`.
      resize_size: width of the squares, in pixels.
      unreadable: `stop` raises at the first image that cannot be decoded;
        `skip` names it in the log and goes on without it.
      num_threads: number of threads; 0: one per core of this process.
      skip_flag: what the user gives to skip; for the message of `stop`.
    """
    self.source = source
    self.resize_size = resize_size
    self.unreadable = set()
    self.skips = unreadable == 'skip'
    self.num_threads = num_threads or num_cores()
    self._skip_flag = skip_flag
    self._pool = concurrent.futures.ThreadPoolExecutor(self.num_threads)
    self._lock = threading.Lock()

  def pixels(
    self, index: int, min_size: int = 0
  ) -> tuple[np.ndarray, int] | None:
    """(uint8 [height, width, 3], label) of an example; None if it is skipped.

    `min_size` is that of `images.decode`: 0 decodes exactly.
    """
    pixels, label = self.source.read(index)
    if not 0 <= label < len(self.source.class_names):
      raise UserError(
        f'{self.source.describe(index)} has the label {label}, which is none of'
        f' the {len(self.source.class_names)} classes'
      )
    if not isinstance(pixels, bytes):
      return pixels, label
    try:
      return images.decode(pixels, min_size), label
    except UnreadableImageError as error:
      self._report(index, error)
      return None

  def square(self, index: int) -> tuple[np.ndarray, int] | None:
    """(uint8 [size, size, 3], label), exactly decoded; None if skipped."""
    example = self.pixels(index)
    if example is None:
      return None
    pixels, label = example
    return images.centre_square(pixels, self.resize_size), label

  def _report(self, index, error):
    name = self.source.describe(index)
    if not self.skips:
      raise UnreadableImageError(
        f'cannot decode {name}: {error}. Go on without such images:'
        f' {self._skip_flag}; or mend or delete it, after which a run with'
        ' checkpoints needs a new --workdir'
      ) from error
    with self._lock:
      if name not in self.unreadable:
        logging.warning('cannot decode %s: %s; skipped', name, error)
        self.unreadable.add(name)

  def for_each(
    self, function: Callable[[int, int], None], count: int, chunk: int = 1
  ) -> None:
    """Calls function(start, end) for every `chunk` of range(count).

    A thread takes the next chunk when it is done with one: images differ in
    size.
    """
    starts = collections.deque(range(0, count, chunk))  # its pop is atomic

    def work(_):
      while True:
        try:
          start = starts.popleft()
        except IndexError:
          return
        try:
          function(start, min(start + chunk, count))
        except BaseException:
          starts.clear()  # the others stop, too
          raise

    for _ in self._pool.map(work, range(self.num_threads)):
      pass


def num_cores() -> int:
  """Cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1

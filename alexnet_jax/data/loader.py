"""Reading and decoding of examples in threads."""

import collections
from collections.abc import Callable
import concurrent.futures
import logging
import os
import threading

import numpy as np

from alexnet_jax.data import decoding, images
from alexnet_jax.data.splits import Source, warn_once
from alexnet_jax.errors import UnreadableImageError, UserError

_SKIP_HINT = (
  'unreadable=skip (--config.data.unreadable=skip, of `prepare` --unreadable'
  ' skip); or repair or delete it, after which a run with checkpoints needs a'
  ' new --workdir'
)
# Squares of images in memory that are kept; more are made anew each time.
_MOST_KEPT = 2**28  # bytes


class Loader:
  """Reads and decodes examples of one source.

  Its attributes are the arguments `source`, `resize_size`, `channels` and
  `num_threads`; `skips`, True if images that cannot be decoded are left out;
  `unreadable`, {name: reason} of those so far; and `numbers`, which maps labels
  of the source to those that are given out, empty at first.
  """

  def __init__(
    self,
    source: Source,
    resize_size: int,
    *,
    channels: int = 3,
    unreadable: str = 'stop',
    num_threads: int = 0,
    skip_hint: str = _SKIP_HINT,
  ):
    """Starts the threads.

    Args:
      source: that is read.
      resize_size: width of the squares, in pixels.
      channels: of the squares and of batches: 3, or 1 for gray.
      unreadable: `stop` raises at the first image that cannot be decoded;
        `skip` names it in the log and goes on without it.
      num_threads: 0: one per core of this process.
      skip_hint: how the user may go on; for the message of `stop`.
    """
    self.source = source
    self.resize_size, self.channels = resize_size, channels
    self.unreadable, self.numbers = {}, {}
    self.skips = unreadable == 'skip'
    self.num_threads = num_threads or num_cores()
    self._skip_hint = skip_hint
    self._damaged, self._squares = {}, None
    self._may_lose_colors = channels == 1
    self._pool = concurrent.futures.ThreadPoolExecutor(self.num_threads)
    self._lock = threading.Lock()

  def pixels(self, index: int, **how) -> tuple[np.ndarray, int] | None:
    """Returns (uint8 [height, width, 3], label); None if it is skipped.

    `how` are arguments of `decoding.decode`; without them it decodes exactly.
    """
    try:
      content, label = self.source.read(index)
    except UnreadableImageError as error:
      return self.report(index, error)
    return self.decoded(index, content, label, **how)

  def decoded(
    self, index: int, content, label: int, **how
  ) -> tuple[np.ndarray, int] | None:
    """Returns the same as `pixels`, of an example that was read before."""
    if not 0 <= label < len(self.source.class_names):
      name = self.source.describe(index)
      raise UserError(f'{name} has the label {label}, which is no class')
    label = self.numbers.get(label, label)
    if not isinstance(content, bytes):
      self._warn_of_colors(content)
      return content, label

    def damaged(message):
      self._warn_once(self._damaged, index, message, 'decoded all the same')

    try:
      pixels = decoding.decode(content, damaged=damaged, **how)
    except UnreadableImageError as error:
      return self.report(index, error)
    if not how:  # all rows are there
      self._warn_of_colors(pixels)
    return pixels, label

  def _warn_of_colors(self, pixels):
    """Logs, once for a name of a source, that images lose their colors."""
    if self._may_lose_colors and (pixels[..., :1] != pixels[..., 1:]).any():
      self._may_lose_colors = False
      with self._lock:  # several threads may come at once
        text = 'images with colors become gray: there is one channel'
        warn_once(f'{self.source.name}: {text}')

  def square(self, index: int) -> tuple[np.ndarray, int] | None:
    """Returns (uint8 [size, size, channels], label); None if skipped.

    It is decoded exactly.
    """
    if (example := self.pixels(index)) is None:
      return None
    pixels, label = example
    return images.center_square(pixels, self.resize_size, self.channels), label

  def square_addresses(
    self, num_uses: int
  ) -> Callable[[np.ndarray], np.ndarray] | None:
    """Returns a function: indices int64 [n] -> addresses of squares uint64 [n].

    It is None if the squares are not held in memory. Those of a raw set are, if
    they have as many channels. Of images in memory they are made here, once, up
    to 268 MB of them, if there are no more than `num_uses`, repetitions
    included; they live as long as this object.
    """
    size, count = self.resize_size, self.source.num_examples
    channels = self.channels
    there = [getattr(self.source, k, 0) for k in ('square_size', 'channels')]
    if there == [size, channels]:
      return self.source.addresses
    stride = size * size * channels
    in_memory = getattr(self.source, 'in_memory', False)
    if not in_memory or count * stride > _MOST_KEPT or num_uses < count:
      return None
    if self._squares is None:
      squares = np.empty((count, size, size, self.channels), np.uint8)

      def fill(first, last):
        for index in range(first, last):
          squares[index], _ = self.square(index)

      self.for_each(fill, count, chunk=32)
      self._squares = squares
    start = np.uint64(self._squares.ctypes.data)
    return lambda indices: start + indices.astype(np.uint64) * np.uint64(stride)

  def report(self, index: int, error: UnreadableImageError) -> None:
    """Raises an error that names the image; a warning if such are skipped."""
    if not self.skips:
      raise UnreadableImageError(
        f'cannot decode {self.source.describe(index)}: {error}. Go on without'
        f' such images: {self._skip_hint}'
      ) from error
    self._warn_once(self.unreadable, index, error, 'cannot be decoded; skipped')

  def _warn_once(self, known, index, problem, outcome):
    name = self.source.describe(index)
    with self._lock:
      if name not in known:
        logging.warning('%s: %s (%s)', name, outcome, problem)
        known[name] = str(problem)

  def for_each(
    self, function: Callable[[int, int], None], count: int, chunk: int = 1
  ) -> None:
    """Calls function(start, end) for every `chunk` of range(count).

    A thread takes the next when it is done with one: images differ in size.
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
          starts.clear()  # the others stop as well
          raise

    for _ in self._pool.map(work, range(self.num_threads)):
      pass


def num_cores() -> int:
  """Returns the number of cores that this process may use."""
  if hasattr(os, 'sched_getaffinity'):  # not on macOS
    return len(os.sched_getaffinity(0))
  return os.cpu_count() or 1

"""Work in threads, in order, and its progress bar on standard error."""

import collections
from collections.abc import Callable
from collections.abc import Iterable
from collections.abc import Iterator
import concurrent.futures
import sys
import time

import rich.console
import rich.progress

_INTERVAL = 10.0  # seconds between two lines where there is no terminal


def run_in_order(
  jobs: Iterable[Callable[[], object]],
  pool: concurrent.futures.Executor,
  num_threads: int,
) -> Iterator[object]:
  """Runs jobs in the threads of a pool; yields their results in order.

  Jobs are taken few at a time: they, or their results, may hold images. Those
  that wait are canceled if the iterator is closed.
  """
  pending = collections.deque()
  try:
    for job in jobs:
      pending.append(pool.submit(job))
      # Few enough to keep memory flat, enough to keep every thread busy.
      if len(pending) >= 4 * num_threads:
        yield pending.popleft().result()
    while pending:
      yield pending.popleft().result()
  finally:
    for future in pending:
      future.cancel()


class Progress:
  """A bar with images done, images per second and time left.

  It is a context manager. Without a terminal it prints a line now and then.
  """

  def __init__(self, total: int, what: str):
    """Begins `total` images; `what` says what is done with them."""
    self._total, self._what = total, what
    self._done, self._start = 0, time.monotonic()
    self._printed = self._start
    self._bar = None
    if sys.stderr.isatty():
      self._bar = rich.progress.Progress(
        rich.progress.TextColumn('{task.description}'),
        rich.progress.BarColumn(),
        rich.progress.MofNCompleteColumn(),
        rich.progress.TextColumn('{task.fields[speed]:.0f} images/s'),
        rich.progress.TimeRemainingColumn(),
        console=rich.console.Console(stderr=True),
      )
      self._task = self._bar.add_task(what, total=total, speed=0.0)

  def __enter__(self) -> 'Progress':
    if self._bar:
      self._bar.start()
    return self

  def __exit__(self, *error) -> None:
    if self._bar:
      self._bar.stop()
    elif self._done:
      self._print()

  def advance(self, count: int) -> None:
    """Adds images that are done."""
    self._done += count
    if self._bar:
      self._bar.update(self._task, advance=count, speed=self._speed())
    elif time.monotonic() - self._printed > _INTERVAL:
      self._print()

  def _speed(self):
    return self._done / max(time.monotonic() - self._start, 1e-6)

  def _print(self):
    self._printed = time.monotonic()
    left = (self._total - self._done) / max(self._speed(), 1e-6)
    print(
      f'{self._what}: {self._done:,} of {self._total:,} images,'
      f' {self._speed():.0f} images/s, {left:.0f} s left',
      file=sys.stderr,
      flush=True,
    )

"""What the user sees while a run is under way, on standard error."""

import io
import sys
import time

import rich.console
import rich.table
import tqdm


class Nowhere(io.TextIOBase):
  """A stream that drops what is written, where process 0 speaks for all."""

  def write(self, text: str) -> int:
    return len(text)


class Console:
  """A table, a progress bar and lines; without a terminal, lines only."""

  def __init__(self, stream=None):
    self._stream = stream or sys.stderr
    self._terminal = self._stream.isatty()
    self._bar = None

  def table(self, title: str, rows: dict[str, str]) -> None:
    """Two columns of names and values."""
    table = rich.table.Table(
      title=title, show_header=False, title_justify='left'
    )
    for name, value in rows.items():
      table.add_row(name, value)
    width = None if self._terminal else 100
    rich.console.Console(
      file=self._stream,
      width=width,
      highlight=False,
      markup=False,  # paths and patterns mean what they say
      emoji=False,
    ).print(table)

  def line(self, text: str) -> None:
    """A line that stays."""
    tqdm.tqdm.write(text, file=self._stream)
    self._stream.flush()

  def start(self, total: int, done: int, unit: str, what: str) -> None:
    """Starts a progress bar; elsewhere than on a terminal it says nothing."""
    self._bar = tqdm.tqdm(
      total=total,
      initial=done,
      unit=unit,
      desc=what,
      file=self._stream,
      disable=not self._terminal,
      dynamic_ncols=True,
      bar_format='{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}, {remaining}'
      ' left{postfix}]',
    )

  def advance(self, done: int) -> None:
    """Moves the bar to `done`."""
    self._bar.update(done - self._bar.n)

  def values(self, text: str, done: str, left: str) -> None:
    """Shows numbers behind the bar, which knows how much is done and left.

    Without a terminal they make a line: `done: text, left`.
    """
    if self._terminal:
      self._bar.set_postfix_str(text, refresh=False)
    else:
      self.line(f'{done}: {text}{left}')

  def stop(self) -> None:
    """Ends the bar."""
    if self._bar is not None:
      self._bar.close()


class Speed:
  """Images per second of the training alone.

  The clock starts after the first step, which compiles, and stands still
  between pause() and resume(): during evaluation, histograms and saving.

  Attributes:
    seconds: training time so far, up to the last pause.
  """

  def __init__(self, global_batch_size: int, batches):
    """`batches` has wait_seconds, see `parallel.DeviceBatches`."""
    self.seconds = 0.0
    self._global_batch_size = global_batch_size
    self._batches = batches
    self._since = None
    self._steps = 0
    self._first_done = False
    self._mark = (0, 0.0, 0.0)

  def count(self, log) -> None:
    """Counts one step; the first is only waited for, through log.flush()."""
    if self._first_done:
      self._steps += 1
      return
    log.flush()
    self._first_done = True
    self._mark = (*self._mark[:2], self._batches.wait_seconds)
    self.resume()

  def next_compiles(self) -> None:
    """Leaves out the next step, as the first one was."""
    self.pause()
    self._first_done = False

  def resume(self) -> None:
    if self._first_done:
      self._since = time.perf_counter()

  def pause(self) -> None:
    if self._since is not None:
      self.seconds += time.perf_counter() - self._since
      self._since = None

  def without(self, function):
    """Calls what is no training; returns its result."""
    self.pause()
    try:
      return function()
    finally:
      self.resume()

  def interval(self) -> dict[str, float]:
    """{images_per_second, data_wait_fraction} since the last call.

    Empty if the only step since then is the first, which is not timed.
    """
    now = self._read()
    steps, seconds, waited = (
      a - b for a, b in zip(now, self._mark, strict=True)
    )
    self._mark = now
    return self._rates(steps, seconds, waited) if steps else {}

  def total(self) -> float:
    """Images per second since the first step; 0 if there was no other."""
    return self._rates(*self._read())['images_per_second']

  def _read(self):
    running = 0.0 if self._since is None else time.perf_counter() - self._since
    return self._steps, self.seconds + running, self._batches.wait_seconds

  def _rates(self, steps, seconds, waited):
    seconds = max(seconds, 1e-9)
    return {
      'images_per_second': steps * self._global_batch_size / seconds,
      'data_wait_fraction': min(1.0, waited / seconds),
    }


def duration(seconds: float) -> str:
  """'3 h 05 min', '4 min 10 s' or '12 s'."""
  minutes, rest = divmod(round(seconds), 60)
  hours, minutes = divmod(minutes, 60)
  if hours:
    return f'{hours} h {minutes:02d} min'
  return f'{minutes} min {rest:02d} s' if minutes else f'{rest} s'

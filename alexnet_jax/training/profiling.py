"""A profiler trace of a few steps, for TensorBoard or Perfetto."""

import pathlib

import jax

FIRST, LAST = 10, 20  # steps after the start of the process
FOLDER = 'profile'


class Profile:
  """Traces steps FIRST to LAST of what this process trains, both included.

  Attributes:
    folder: folder of the trace; None: there is no trace.
  """

  def __init__(self, folder: pathlib.Path | None, start: int):
    """`start` is the step after which the process begins."""
    self.folder = folder
    self._first, self._last = start + FIRST, start + LAST
    self._running = self._written = False

  def begins(self, step: int) -> bool:
    """Returns True if the trace begins after step `step`."""
    return bool(self.folder) and step + 1 == self._first

  def ends(self, step: int) -> bool:
    """Returns True if the trace ends with step `step`."""
    return self._running and step >= self._last

  def start(self) -> None:
    """Starts the trace."""
    jax.profiler.start_trace(self.folder)
    self._running = True

  def stop(self) -> str:
    """Writes the trace; returns a line that tells where it is."""
    self._running, self._written = False, True
    jax.profiler.stop_trace()
    return f'a trace of steps {self._first} to {self._last}: {self.folder}'

  def finish(self, console) -> None:
    """Writes an unfinished trace after the last step, or tells why not."""
    if self.folder is None or self._written:
      return
    if not self._running:
      console.line(f'no trace: the run ended before step {self._first}')
      return
    try:
      console.line(f'{self.stop()}; the run ended before')
    except RuntimeError as error:  # why the run ended matters more
      console.line(f'no trace: {error}')

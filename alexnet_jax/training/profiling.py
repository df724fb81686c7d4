"""A trace of a few steps, to be looked at in TensorBoard or Perfetto."""

import pathlib

import jax

FIRST, LAST = 10, 20  # steps after the start of the process
FOLDER = 'profile'


class Profile:
  """Traces steps FIRST to LAST of what this process trains.

  Attributes:
    folder: where the trace is written; None: there is none.
  """

  def __init__(self, folder: pathlib.Path | None, start: int):
    """`start` is the step that the process begins after."""
    self.folder = folder
    self._first, self._last = start + FIRST, start + LAST
    self._running = False

  def before(self, step: int) -> None:
    """To be called before step `step` + 1 begins."""
    if self.folder and not self._running and step + 1 == self._first:
      jax.profiler.start_trace(self.folder)
      self._running = True

  def after(self, step: int, results) -> str:
    """To be called when step `step` is on its way; returns what was written.

    Args:
      step: that was started last.
      results: of it; at the last step they are waited for.
    """
    if not self._running or step < self._last:
      return ''
    jax.block_until_ready(results)
    return self.stop()

  def stop(self) -> str:
    """Ends the trace if there is one under way; returns where it is."""
    if not self._running:
      return ''
    self._running = False
    jax.profiler.stop_trace()
    return f'a trace of steps {self._first} to {self._last}: {self.folder}'

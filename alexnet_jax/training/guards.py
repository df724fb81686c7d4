"""Guards of a run: signals, a NaN or infinite loss, a flat loss."""

import contextlib
import logging
import math
import os
import signal
import threading

from alexnet_jax import errors

_FLAT_TOLERANCE = 0.01  # of ln(classes)


class StopSignal:
  """Remembers SIGTERM, SIGHUP and Ctrl-C; a second Ctrl-C ends at once."""

  def __init__(self):
    self.received: str | None = None

  def install(self) -> None:
    """Installs the handler, if this is the main thread of the process."""
    if threading.current_thread() is not threading.main_thread():
      return
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
      # nohup ignores the end of a terminal, and means it.
      ignored = signal.getsignal(number) is signal.SIG_IGN
      if number != signal.SIGHUP or not ignored:
        signal.signal(number, self._handle)

  def _handle(self, number, frame):
    del frame
    first, self.received = not self.received, signal.Signals(number).name
    if first:
      _say(b'interrupted: saving; Ctrl-C again ends at once')
    elif number == signal.SIGINT:
      # At once: an exception would have to wait for threads and for the
      # devices. What a save has not finished does not count.
      _say(b'ended at once; the newest checkpoint stays valid')
      os._exit(errors.EXIT_FAILURE)

  def check(self) -> None:
    """Raises Interrupted if a signal came."""
    if self.received:
      raise errors.Interrupted(self.received)


def _say(text):
  """Writes a line to standard error, which nobody may read any more."""
  with contextlib.suppress(OSError):
    os.write(2, b'\n' + text + b'\n')


def check_finite(loss: float, step: int, last_finite: int) -> None:
  """Raises NonFiniteLossError if the loss at `step` is not a finite number.

  `last_finite` is the newest step whose loss was, or `step` if an evaluation
  has this one.
  """
  if math.isfinite(loss):
    return
  where = f'between steps {last_finite} and {step}'
  raise errors.NonFiniteLossError(
    f'the loss is {loss} {where if step > last_finite else f"at step {step}"}.'
    ' Look for damaged images or labels; with a new --workdir try a lower'
    ' config.optimizer.learning_rate or a warm-up'
    ' (config.schedule.warmup_epochs)'
  )


def warn_of_flat_loss(loss: float, num_classes: int, step: int) -> None:
  """Warns if the mean training loss, in nats, still is that of guessing."""
  guess = math.log(num_classes)
  if abs(loss - guess) > _FLAT_TOLERANCE * guess:
    return
  logging.getLogger(__name__).warning(
    f'after {step} steps the loss is {loss:.4f}, that of guessing'
    f' (ln {num_classes} = {guess:.4f}). Known causes:'
    ' config.optimizer.learning_rate (too high or too low), model.bias_init (1'
    ' often stays flat, 0.1 does not), model.kernel_init against the scale of'
    ' the pixels (data.std), model.norm'
  )

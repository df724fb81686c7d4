"""The largest batch of a device: found by compiling, not by a formula."""

from collections.abc import Callable

_STEP = 64  # batches are multiples of it, or of config.microbatch_size
_MOST_TRIALS = 6


def largest(
  needed: Callable[[int], int], first: int, available: int, step: int = 0
) -> dict:
  """The largest batch whose memory fits.

  Two batches give a line; where it meets the memory, that batch is compiled,
  too, and the line goes on from there if it is not straight: short of memory,
  XLA computes some things twice instead of keeping them.

  Args:
    needed: bytes of a batch size, found by compiling.
    first: a batch size to begin with.
    available: bytes.
    step: what the batch is a multiple of; 0: of 64.

  Returns:
    {device_batch_size: the largest that was compiled and fits, 0 if none does,
    compiled: {batch size: bytes}}.
  """
  step = step or _STEP
  first = max(first // step, 1) * step
  tried = {first: needed(first)}
  second = 2 * first
  if tried[first] > available:
    second = max(first // 2 // step, 1) * step
  if second not in tried:
    tried[second] = needed(second)
  while len(tried) < _MOST_TRIALS:
    candidate = _candidate(tried, available, step)
    if candidate in tried or candidate < step:
      break
    tried[candidate] = needed(candidate)
  fitting = [batch for batch, n in tried.items() if n <= available]
  return {'device_batch_size': max(fitting, default=0), 'compiled': tried}


def _candidate(tried, available, step):
  """Where the line meets the memory, between what fits and what does not."""
  candidate = _meets(tried, available) // step * step
  fitting = [batch for batch, n in tried.items() if n <= available]
  failing = [batch for batch, n in tried.items() if n > available]
  candidate = max([candidate, *fitting])
  return min([candidate, *(batch - step for batch in failing)])


def _meets(tried, available):
  """Where the line through the two nearest batches meets the memory."""
  if len(tried) < 2:
    return 0
  nearest = sorted(tried.items(), key=lambda item: abs(item[1] - available))
  (low, below), (high, above) = sorted(nearest[:2])
  if above <= below:
    return high
  return int(low + (available - below) * (high - low) / (above - below))

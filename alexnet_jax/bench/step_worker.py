"""The process of a candidate of `bench step`: checks and times it."""

import importlib
import time

from alexnet_jax.bench import machine
from alexnet_jax.bench import step_peers


class Handler:
  """Answers requests for one candidate; see `workers`."""

  def __init__(self, name: str):
    """Imports its library.

    Args:
      name: of the candidate, such as torch eager: the library, whose module
        step_LIBRARY has the `Runner`, and the kind of runner.
    """
    library, _, self._kind = name.partition(' ')
    module = importlib.import_module(f'alexnet_jax.bench.step_{library}')
    self._make_runner = module.Runner
    self.runner = None
    self._has_run = set()

  def check(self, task: dict, reference: tuple | None = None) -> dict:
    """Makes a few updates; see `step_peers`.

    Args:
      task: of `step_peers.checked_task`.
      reference: the weights and the batch to begin with; None: our own.

    Returns:
      {losses, reference, and what `Runner.describe` returns}.
    """
    runner = self._make_runner(self._kind, task)
    if reference is None:
      reference = runner.reference()
    else:
      runner.load(*reference)
      reference = None  # the other side has it
    losses = [
      runner.loss(runner.train()) for _ in range(step_peers.CHECKED_STEPS)
    ]
    return {'losses': losses, 'reference': reference, **runner.describe()}

  def build(self, task: dict) -> dict:
    """Makes the network, and compiles nothing; returns what describes it."""
    self.runner = self._make_runner(self._kind, task)
    return self.runner.describe()

  def run(self, part: str, steps: int) -> dict:
    """Times steps, after one that is not timed.

    Args:
      part: train or evaluate.
      steps: how many.

    Returns:
      {seconds, loss: of the last step, first_seconds: of the very first step,
      which compiles, if that was now}.
    """
    step = getattr(self.runner, part)
    answer = {}
    if part not in self._has_run:
      self._has_run.add(part)
      answer['first_seconds'], _ = self._time(step, 1)
    # Caches and cores are the last candidate's still.
    self._time(step, 1)
    answer['seconds'], answer['loss'] = self._time(step, steps)
    return answer

  def _time(self, step, count):
    start = time.perf_counter()
    for _ in range(count):
      result = step()
    loss = self.runner.loss(result)
    return time.perf_counter() - start, loss

  def compiled(self, part: str) -> dict:
    """Returns costs and memory of our compiled program."""
    return self.runner.compiled(part)

  def peak(self) -> float | None:
    """Returns FLOP/s of matrix products here; None if no CPU computes."""
    return self.runner.peak()

  def memory(self) -> dict:
    """Returns {resident_peak, device_peak}: bytes; None where not known."""
    return {
      'resident_peak': machine.resident_bytes('VmHWM'),
      'device_peak': self.runner.device_peak(),
    }

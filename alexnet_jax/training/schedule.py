"""Learning-rate schedules and early stopping, on the host.

The memory of `ReduceOnPlateau` and `EarlyStopping` is in the `*State`
dataclasses, plain numbers that go into the checkpoint as JSON. Both behave as
Keras' ReduceLROnPlateau and EarlyStopping do on the same values:

- The first value is always an improvement; later ones are if they pass the
  best by more than the threshold. The comparison is in float32, as there.
- Plateau: an evaluation in cooldown counts the cooldown down by one and clears
  the patience first; in the evaluation that ends it patience counts again. A
  drop happens at the `patience`-th evaluation in a row without improvement,
  unless the learning rate is at its minimum already; then the patience goes on
  counting.
- Early stopping: stops at the `patience`-th evaluation in a row without
  improvement, but never at the very first evaluation.
"""

from collections.abc import Sequence
import dataclasses
import math

import numpy as np

_EXPONENTS = {'none': 0, 'linear': 1, 'sqrt': 0.5}
RATE_SCALINGS = tuple(_EXPONENTS)


def is_improvement(
  value: float, best: float | None, mode: str, threshold: float
) -> bool:
  """Returns True if `value` passes `best` by more than `threshold`."""
  if best is None:
    return True
  if mode == 'min':
    return bool(np.float32(value + threshold) < np.float32(best))
  return bool(np.float32(value - threshold) > np.float32(best))


@dataclasses.dataclass
class PlateauState:
  """Learning rate, best value, evaluations waited and left to cool down."""

  learning_rate: float
  best: float | None = None
  wait: int = 0
  cooldown: int = 0


@dataclasses.dataclass(frozen=True)
class ReduceOnPlateau:
  """Multiplies the learning rate by `factor` on a plateau of a value.

  Attributes:
    mode: `min` or `max`: which values are better.
    factor: factor of a drop, below 1.
    patience: evaluations without improvement before a drop.
    threshold: smallest change that counts as better.
    cooldown: evaluations after a drop in which patience does not count.
    min_learning_rate: the learning rate never falls below it.
  """

  mode: str = 'min'
  factor: float = 0.1
  patience: int = 10
  threshold: float = 1e-4
  cooldown: int = 0
  min_learning_rate: float = 0.0

  def update(self, state: PlateauState, value: float) -> PlateauState:
    """Returns the state after one evaluation."""
    state = dataclasses.replace(state)
    if state.cooldown > 0:
      state.cooldown -= 1
      state.wait = 0
    if is_improvement(value, state.best, self.mode, self.threshold):
      state.best, state.wait = value, 0
    elif state.cooldown == 0:
      state.wait += 1
      # The optimizer holds the learning rate in float32: so do the drops.
      lr, lowest = (
        float(np.float32(state.learning_rate)),
        self.min_learning_rate,
      )
      if state.wait >= self.patience and lr > np.float32(lowest):
        state.learning_rate = max(lr * self.factor, lowest)
        state.cooldown, state.wait = self.cooldown, 0
    return state


@dataclasses.dataclass
class StoppingState:
  """Best value, its step, evaluations seen and waited."""

  best: float | None = None
  best_step: int | None = None
  evaluations: int = 0
  wait: int = 0
  stopped: bool = False


@dataclasses.dataclass(frozen=True)
class EarlyStopping:
  """Stops the run when a value has not improved for `patience` evaluations.

  Attributes:
    mode: `min` or `max`: which values are better.
    patience: evaluations without improvement.
    threshold: smallest change that counts as better.
  """

  mode: str = 'min'
  patience: int = 10
  threshold: float = 0.0

  def update(
    self, state: StoppingState, value: float, step: int
  ) -> StoppingState:
    """Returns the state after an evaluation at `step`; `stopped` ends."""
    state = dataclasses.replace(state, wait=state.wait + 1)
    if is_improvement(value, state.best, self.mode, self.threshold):
      state.best, state.best_step, state.wait = value, step, 0
    elif state.wait >= self.patience and state.evaluations > 0:
      state.stopped = True
    state.evaluations += 1
    return state


def due(step: int, every: float) -> bool:
  """Returns True if `step` reaches a multiple of `every` steps; 0: never."""
  return every > 0 and step // every > (step - 1) // every


def scaled_learning_rate(
  learning_rate: float, batch_size: int, base_batch_size: int, scaling: str
) -> float:
  """Returns learning_rate * (batch_size / base_batch_size) ** exponent.

  Args:
    learning_rate: for batches of `base_batch_size`.
    batch_size: examples of an update.
    base_batch_size: batch size that `learning_rate` was found for.
    scaling: one of RATE_SCALINGS: `none` has the exponent 0, `linear` 1 (Goyal
      et al. 2017), `sqrt` 1/2 (Krizhevsky 2014, section 5).
  """
  return learning_rate * (batch_size / base_batch_size) ** _EXPONENTS[scaling]


@dataclasses.dataclass(frozen=True)
class LearningRateSchedule:
  """The learning rate as a function of the step.

  Attributes:
    name: `constant`, `step`, `cosine`, or `plateau` and `recorded` (constant
      here; drops of the former come with `learning_rate`, the latter's factors
      are in the optimizer).
    num_steps: step at which the cosine reaches `min_learning_rate`.
    factor: of each drop of `step`.
    drop_steps: steps at which `step` drops.
    warmup_steps: updates over which the learning rate rises linearly to its
      value; the first one has learning_rate / warmup_steps.
    min_learning_rate: last value of the cosine.
  """

  name: str
  num_steps: int
  factor: float = 0.1
  drop_steps: Sequence[int] = ()
  warmup_steps: int = 0
  min_learning_rate: float = 0.0

  def at(self, step: int, learning_rate: float) -> float:
    """Returns the learning rate of the update that follows step `step`.

    Args:
      step: updates applied so far.
      learning_rate: the value after warm-up and before any drop.
    """
    if self.name == 'step':
      drops = sum(step >= drop for drop in self.drop_steps)
      learning_rate *= self.factor**drops
    elif self.name == 'cosine':
      span = max(1, self.num_steps - self.warmup_steps)
      share = min(1.0, max(0, step - self.warmup_steps) / span)
      half = 0.5 * (1 + math.cos(math.pi * share))
      above = learning_rate - self.min_learning_rate
      learning_rate = self.min_learning_rate + above * half
    if step < self.warmup_steps:
      learning_rate *= (step + 1) / self.warmup_steps
    return learning_rate

"""Learning-rate schedules and early stopping: host-side and serialisable.

What `ReduceOnPlateau` and `EarlyStopping` know lies in the `*State`
dataclasses, plain numbers that go into the checkpoint as JSON. Both do what
Keras' ReduceLROnPlateau and EarlyStopping do on the same values:

- The first value is always an improvement; later ones are if they pass the
  best by more than the threshold. The comparison is in float32, as there.
- Plateau: an evaluation in cooldown counts the cooldown down by one and clears
  the patience first; in the evaluation that ends it patience counts again. A
  drop happens at the `patience`-th evaluation in a row without improvement,
  unless the rate is at its minimum already; then the patience goes on counting.
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
  """Whether `value` passes `best` by more than `threshold` (float32)."""
  if best is None:
    return True
  if mode == 'min':
    return bool(np.float32(value + threshold) < np.float32(best))
  return bool(np.float32(value - threshold) > np.float32(best))


@dataclasses.dataclass
class PlateauState:
  """The rate now, the best value, evaluations waited and left to cool."""

  learning_rate: float
  best: float | None = None
  wait: int = 0
  cooldown: int = 0


@dataclasses.dataclass(frozen=True)
class ReduceOnPlateau:
  """Multiplies the rate by `factor` when a value stops improving.

  Attributes:
    mode: `min` or `max`: which values are better.
    factor: of a drop, below 1.
    patience: evaluations without improvement before a drop.
    threshold: what a value must gain to count as better.
    cooldown: evaluations after a drop in which patience does not count.
    min_learning_rate: the rate never falls below it.
  """

  mode: str = 'min'
  factor: float = 0.1
  patience: int = 10
  threshold: float = 1e-4
  cooldown: int = 0
  min_learning_rate: float = 0.0

  def update(self, state: PlateauState, value: float) -> PlateauState:
    """The state after one evaluation."""
    state = dataclasses.replace(state)
    if state.cooldown > 0:
      state.cooldown -= 1
      state.wait = 0
    if is_improvement(value, state.best, self.mode, self.threshold):
      state.best, state.wait = value, 0
    elif state.cooldown == 0:
      state.wait += 1
      # The optimizer holds the rate in float32: so do the drops.
      rate = float(np.float32(state.learning_rate))
      if state.wait >= self.patience and rate > np.float32(
        self.min_learning_rate
      ):
        state.learning_rate = max(rate * self.factor, self.min_learning_rate)
        state.cooldown, state.wait = self.cooldown, 0
    return state


@dataclasses.dataclass
class StoppingState:
  """The best value, the step it came at, evaluations seen and waited."""

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
    threshold: what a value must gain to count as better.
  """

  mode: str = 'min'
  patience: int = 10
  threshold: float = 0.0

  def update(
    self, state: StoppingState, value: float, step: int
  ) -> StoppingState:
    """The state after an evaluation at `step`; `stopped` asks to end."""
    state = dataclasses.replace(state, wait=state.wait + 1)
    if is_improvement(value, state.best, self.mode, self.threshold):
      state.best, state.best_step, state.wait = value, step, 0
    elif state.wait >= self.patience and state.evaluations > 0:
      state.stopped = True
    state.evaluations += 1
    return state


def due(step: int, every: float) -> bool:
  """Whether a multiple of `every` steps was reached with `step`; 0: never."""
  return every > 0 and step // every > (step - 1) // every


def scaled_rate(
  learning_rate: float, batch_size: int, base_batch_size: int, scaling: str
) -> float:
  """learning_rate * (batch_size / base_batch_size) ** exponent.

  Args:
    learning_rate: of batches of `base_batch_size`.
    batch_size: examples of an update.
    base_batch_size: what `learning_rate` was found for.
    scaling: one of RATE_SCALINGS: `none` has the exponent 0, `linear` 1 (Goyal
      et al. 2017), `sqrt` 1/2 (Krizhevsky 2014, section 5).
  """
  return learning_rate * (batch_size / base_batch_size) ** _EXPONENTS[scaling]


def rate_at(
  step: int,
  *,
  name: str,
  learning_rate: float,
  num_steps: int,
  factor: float = 0.1,
  drop_steps: Sequence[int] = (),
  warmup_steps: int = 0,
  min_learning_rate: float = 0.0,
) -> float:
  """The learning rate of the update that follows step `step`.

  Args:
    step: updates applied so far.
    name: `constant`, `step`, `cosine`, or `plateau` and `recorded` (constant
      here; drops of the former come with `learning_rate`, the latter's factors
      are in the optimizer).
    learning_rate: the rate after warm-up and before any drop.
    num_steps: where the cosine reaches `min_learning_rate`.
    factor: of each drop of `step`.
    drop_steps: where `step` drops.
    warmup_steps: updates over which the rate rises linearly to its value; the
      first one has learning_rate / warmup_steps.
    min_learning_rate: where the cosine ends.
  """
  rate = learning_rate
  if name == 'step':
    rate *= factor ** sum(step >= drop for drop in drop_steps)
  elif name == 'cosine':
    span = max(1, num_steps - warmup_steps)
    share = min(1.0, max(0, step - warmup_steps) / span)
    half = 0.5 * (1 + math.cos(math.pi * share))
    rate = min_learning_rate + (rate - min_learning_rate) * half
  if step < warmup_steps:
    rate *= (step + 1) / warmup_steps
  return rate

"""Durations in steps, learning-rate schedules and early stopping.

Plateau and early stopping do what Keras' ReduceLROnPlateau and EarlyStopping do
on the same values, in float32; their memory goes into the checkpoint. A plateau
drops at the `patience`-th evaluation in a row without improvement. One in
cooldown clears the patience; in the one that ends it patience counts again.
"""

import dataclasses
import fractions
import math

import numpy as np

from alexnet_jax.config import mode_of
from alexnet_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Durations:
  """Durations of a run, in steps; 0 is never. An epoch may end in a step."""

  steps_per_epoch: float
  num_steps: int
  eval_every: fractions.Fraction
  save_every: fractions.Fraction
  kept_steps: frozenset[int]  # whose checkpoints stay
  warmup_steps: int
  drop_steps: tuple[int, ...]
  lr_multiplier_steps: tuple[int, ...]  # begins of schedule.lr_multipliers
  pca_lighting_steps: int  # with PCA lighting; 0: all


def resolve_durations(config, num_examples: int) -> Durations:
  """Resolves every duration of the config to steps, with exact fractions.

  `num_examples` is that of the training split. Raises UserError if the run has
  too many steps.
  """
  per_epoch = fractions.Fraction(num_examples, config.global_batch_size)

  def exact(epochs):
    return fractions.Fraction(repr(float(epochs))) * per_epoch

  def steps(section, name):
    if section[f'{name}_steps']:
      return fractions.Fraction(section[f'{name}_steps'])
    epochs = exact(section[f'{name}_epochs'])
    return max(fractions.Fraction(1), epochs) if epochs else epochs

  num_steps = math.ceil(steps(config, 'num'))
  if num_steps >= 2**31:  # `TrainState.step` is int32
    raise UserError(
      f'config.num_epochs is {config.num_epochs} and config.num_steps'
      f' {config.num_steps}: {num_steps:.3g} steps; give fewer than 2**31'
    )

  def in_steps(epochs):
    return tuple(math.ceil(exact(epoch)) for epoch in epochs)

  kept, schedule = [], config.schedule
  if config.checkpoint.keep_at == 'log':
    kept = [0, *(1 << power for power in range(num_steps.bit_length()))]
  return Durations(
    steps_per_epoch=float(per_epoch),
    num_steps=num_steps,
    eval_every=steps(config, 'eval_every'),
    save_every=steps(config, 'save_every'),
    kept_steps=frozenset(kept),
    warmup_steps=round(steps(schedule, 'warmup')),
    drop_steps=tuple(schedule.drop_steps) or in_steps(schedule.drop_epochs),
    lr_multiplier_steps=in_steps(e for e, *_ in schedule.lr_multipliers),
    pca_lighting_steps=math.ceil(steps(config.data, 'pca_lighting')),
  )


def is_improvement(
  value: float, best: float | None, monitor: str, threshold: float = 0.0
) -> bool:
  """Returns True if `value` of a measure passes `best` by the threshold."""
  if best is None:
    return True
  if mode_of(monitor) == 'min':
    return bool(np.float32(value + threshold) < np.float32(best))
  return bool(np.float32(value - threshold) > np.float32(best))


@dataclasses.dataclass
class PlateauState:
  """Learning rate, best value, evaluations waited and left to cool down."""

  learning_rate: float
  best: float | None = None
  wait: int = 0
  cooldown: int = 0


def update_plateau(options, state: PlateauState, value: float) -> PlateauState:
  """Returns the state after an evaluation, with `options` config.schedule."""
  state = dataclasses.replace(state)
  if state.cooldown > 0:
    state.cooldown -= 1
    state.wait = 0
  if is_improvement(value, state.best, options.monitor, options.threshold):
    state.best, state.wait = value, 0
  elif state.cooldown == 0:
    state.wait += 1
    # The optimizer holds the learning rate in float32: so do the drops.
    lr = float(np.float32(state.learning_rate))
    lowest = options.min_learning_rate
    if state.wait >= options.patience and lr > np.float32(lowest):
      state.learning_rate = max(lr * options.factor, lowest)
      state.cooldown, state.wait = options.cooldown, 0
  return state


@dataclasses.dataclass
class StoppingState:
  """Best value, its step, evaluations seen and waited."""

  best: float | None = None
  best_step: int | None = None
  evaluations: int = 0
  wait: int = 0
  stopped: bool = False


def update_stopping(
  options, state: StoppingState, value: float, step: int
) -> StoppingState:
  """Returns the state after an evaluation; `options`: config.early_stopping."""
  state = dataclasses.replace(state, wait=state.wait + 1)
  if is_improvement(value, state.best, options.monitor, options.threshold):
    state.best, state.best_step, state.wait = value, step, 0
  elif state.wait >= options.patience and state.evaluations > 0:
    state.stopped = True
  state.evaluations += 1
  return state


def due(step: int, every: float) -> bool:
  """Returns True if `step` reaches a multiple of `every` steps; 0: never."""
  return every > 0 and step // every > (step - 1) // every


def learning_rate_at(
  options, durations: Durations, step: int, learning_rate: float
) -> float:
  """Returns the learning rate of the update that follows step `step`.

  With `options` config.schedule and `learning_rate` the value after warm-up and
  before any drop, but that of a plateau. Recorded factors are in the optimizer.
  Warm-up is linear, from learning_rate / warmup_steps. One cycle (Smith and
  Topin 2018) is PyTorch's OneCycleLR; the momentum stays.
  """
  warmup = durations.warmup_steps
  span = max(1, durations.num_steps - warmup)
  done = min(span, max(0, step - warmup))
  if options.name == 'step':
    drops = sum(step >= drop for drop in durations.drop_steps)
    learning_rate *= options.factor**drops
  elif options.name == 'one_cycle':
    low, top = learning_rate / options.start_divisor, learning_rate
    rise = options.rise_fraction * span - 1
    if done <= rise > 0:
      learning_rate = _between(low, top, done / rise)
    else:
      share = (done - rise) / (span - 1 - rise)
      learning_rate = _between(top, low / options.final_divisor, share)
  elif options.name == 'cosine':
    lowest = options.min_learning_rate
    learning_rate = _between(learning_rate, lowest, done / span)
  elif options.name in ('linear', 'polynomial'):
    power = options.power if options.name == 'polynomial' else 1.0
    above = learning_rate - options.min_learning_rate
    above *= (1 - done / span) ** power
    learning_rate = options.min_learning_rate + above
  if step < warmup:
    learning_rate *= (step + 1) / warmup
  return learning_rate


def _between(first, last, share):  # on the half cosine
  return last + (first - last) * (0.5 * (1 + math.cos(math.pi * share)))

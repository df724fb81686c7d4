"""The durations of a run, from epochs or steps to steps."""

import dataclasses
import fractions
import math

from alexnet_jax import config as config_lib


@dataclasses.dataclass(frozen=True)
class Durations:
  """Durations of a run, in steps; 0 is never. An epoch may end in a step."""

  steps_per_epoch: float
  num_steps: int
  eval_every: fractions.Fraction
  save_every: fractions.Fraction
  unfreeze_step: int  # 0: frozen parameters stay so
  warmup_steps: int
  drop_steps: tuple[int, ...]
  rate_steps: tuple[int, ...]  # where the entries of schedule.rates begin
  colour_steps: int  # that shift the colours; 0: all


def resolve(config, num_examples: int) -> Durations:
  """Resolves every duration of the config to steps."""
  per_epoch = fractions.Fraction(num_examples, config.global_batch_size)

  def steps(name):
    return config_lib.steps_of(config, name, per_epoch)

  def after(epoch):
    return math.ceil(fractions.Fraction(repr(float(epoch))) * per_epoch)

  schedule = config.schedule
  drops = schedule.drop_steps or [after(e) for e in schedule.drop_epochs]
  return Durations(
    steps_per_epoch=float(per_epoch),
    num_steps=math.ceil(steps('num')),
    eval_every=steps('eval_every'),
    save_every=steps('save_every'),
    unfreeze_step=math.ceil(
      config_lib.steps_of(config.init, 'unfreeze', per_epoch)
    ),
    warmup_steps=round(config_lib.steps_of(schedule, 'warmup', per_epoch)),
    drop_steps=tuple(drops),
    rate_steps=tuple(after(epoch) for epoch, _, _ in schedule.rates),
    colour_steps=math.ceil(
      config_lib.steps_of(config.data, 'colour_shift', per_epoch)
    ),
  )

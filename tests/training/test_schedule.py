import dataclasses
from fractions import Fraction
import math

from hypothesis import example, given, settings, strategies as st
import keras
import numpy as np
import optax
import pytest

from alexnet_jax import config as config_lib
from alexnet_jax.errors import UserError
from alexnet_jax.training import schedule
from alexnet_jax.training.schedule import PlateauState, StoppingState

MONITORS = {'min': 'eval/loss', 'max': 'eval/top1'}  # of Keras' modes


class KerasModel:
  """The part of a model that the callbacks touch."""

  def __init__(self, learning_rate):
    self.optimizer = keras.optimizers.SGD(learning_rate)
    self.stop_training = False


def keras_rates(values, learning_rate, **options):
  callback = keras.callbacks.ReduceLROnPlateau(monitor='v', **options)
  model = KerasModel(learning_rate)
  callback.set_model(model)
  callback.on_train_begin()
  rates = []
  for epoch, value in enumerate(values):
    callback.on_epoch_end(epoch, {'v': value})
    rates.append(float(np.asarray(model.optimizer.learning_rate)))
  return rates


def our_rates(values, learning_rate, mode, **options):
  section = config_lib.make_config().schedule
  section.update(options, monitor=MONITORS[mode])
  state = PlateauState(learning_rate)
  rates = []
  for value in values:
    # Through JSON's types, as a run that resumes every time.
    again = PlateauState(**dataclasses.asdict(state))
    state = schedule.update_plateau(section, again, value)
    rates.append(float(np.float32(state.learning_rate)))
  return rates


VALUES = st.lists(
  st.one_of(
    st.sampled_from([0.5, 0.5001, 0.49, 0.6, 0.7, 1.0]),
    # Keras compares what XLA computes, which takes subnormal numbers for 0.
    st.floats(0, 2, width=32, allow_subnormal=False),
  ),
  max_size=40,
)
# A recorded validation loss: falls, stalls, falls after the drop, stalls.
RECORDED = [
  *(2.1, 1.5, 1.2, 1.1, 1.05, 1.06, 1.05, 1.07, 1.04995, 1.06, 1.055),
  *(0.9, 0.85, 0.86, 0.84, 0.845, 0.843, 0.842, 0.841, 0.84, 0.8399, 0.85),
  *(0.86, 0.85, 0.87, 0.86, 0.85, 0.88, 0.86, 0.87, 0.86, 0.85, 0.9, 0.91),
]


# Keras' own variables under numpy 2.
KERAS_WARNS = pytest.mark.filterwarnings(
  'ignore:__array__ implementation:DeprecationWarning'
)


@KERAS_WARNS
@settings(max_examples=60, deadline=None)
@example(
  values=RECORDED,
  threshold=1e-4,
  minimum=0.0,
  mode='min',
  factor=0.1,
  patience=3,
  cooldown=2,
)
@given(
  values=VALUES,
  threshold=st.sampled_from([0.0, 1e-4, 0.1]),
  minimum=st.sampled_from([0.0, 1e-7, 1e-3, 0.009]),
  mode=st.sampled_from(['min', 'max']),
  factor=st.sampled_from([0.1, 0.2, 0.5]),
  patience=st.integers(1, 4),
  cooldown=st.integers(0, 3),
)
def test_plateau_does_what_keras_does(values, threshold, minimum, **same):
  ours = {'threshold': threshold, 'min_learning_rate': minimum}
  theirs = {'min_delta': threshold, 'min_lr': minimum}
  expected = keras_rates(values, 0.01, **theirs, **same)
  assert our_rates(values, 0.01, **ours, **same) == expected


def keras_stop(values, **options):
  callback = keras.callbacks.EarlyStopping(monitor='v', **options)
  model = KerasModel(0.1)
  callback.set_model(model)
  callback.on_train_begin()
  for epoch, value in enumerate(values):
    callback.on_epoch_end(epoch, {'v': value})
    if model.stop_training:
      return epoch, callback.best_epoch
  return None, callback.best_epoch


@KERAS_WARNS
@settings(max_examples=60, deadline=None)
@example(values=RECORDED, mode='min', patience=4, threshold=1e-3)
@example(values=[1.0, 1.0], mode='min', patience=0, threshold=0.0)
@given(
  values=VALUES.filter(bool),
  mode=st.sampled_from(['min', 'max']),
  patience=st.integers(0, 5),
  threshold=st.sampled_from([0.0, 1e-4, 0.1]),
)
def test_early_stopping_does_what_keras_does(values, mode, patience, threshold):
  section = config_lib.make_config().early_stopping
  section.update(monitor=MONITORS[mode], patience=patience, threshold=threshold)
  state, stopped = StoppingState(), None
  for epoch, value in enumerate(values):
    again = StoppingState(**dataclasses.asdict(state))
    state = schedule.update_stopping(section, again, value, epoch)
    if state.stopped:
      stopped = epoch
      break
  expected, best_epoch = keras_stop(
    values, mode=mode, patience=patience, min_delta=threshold
  )
  assert stopped == expected
  assert state.best_step == best_epoch


def lr_at(step, name='constant', **options):
  config = config_lib.make_config()
  config.update(num_epochs=0.0, num_steps=100)
  config.schedule.update(name=name, **options)
  durations = schedule.resolve_durations(config, 1000)
  return schedule.learning_rate_at(config.schedule, durations, step, 0.1)


QUARTER = 0.02 + 0.08 * (1 + math.cos(math.pi / 4)) / 2
# Up over 40 steps, down over 59.
ONE_CYCLE = {'name': 'one_cycle', 'start_divisor': 5.0, 'final_divisor': 4.0}
ONE_CYCLE['rise_fraction'] = 0.41


@pytest.mark.parametrize(
  ('options', 'expected'),
  [
    ({'name': 'constant'}, {0: 0.1, 99: 0.1}),
    (
      {'name': 'step', 'drop_steps': (10, 20), 'factor': 0.5},
      {9: 0.1, 10: 0.05, 19: 0.05, 20: 0.025, 99: 0.025},
    ),
    (
      {'name': 'cosine', 'min_learning_rate': 0.02},
      {0: 0.1, 25: QUARTER, 50: 0.06, 100: 0.02},
    ),
    (ONE_CYCLE, {0: 0.02, 10: 0.12 - QUARTER, 20: 0.06, 40: 0.1, 99: 0.005}),
    ({**ONE_CYCLE, 'warmup_steps': 4}, {1: 0.02 * 2 / 4}),
    *(
      (
        {'name': name, 'warmup_steps': 4, 'drop_steps': (50,)},
        {0: 0.025, 1: 0.05, 2: 0.075, 3: 0.1, 4: 0.1},
      )
      for name in ('constant', 'step', 'cosine', 'plateau')
    ),
  ],
)
def test_learning_rates_by_hand(options, expected):
  assert {s: lr_at(s, **options) for s in expected} == pytest.approx(expected)


def test_schedules_to_the_end_are_those_of_optax():
  warmup = 7
  options = {'min_learning_rate': 0.02, 'warmup_steps': warmup}
  same = {'transition_steps': 100 - warmup, 'transition_begin': warmup}
  linear = optax.linear_schedule(0.1, 0.02, **same)
  cubic = optax.polynomial_schedule(0.1, 0.02, 3, **same)
  for step in range(0, 101, 4):
    share = min(1.0, (step + 1) / warmup)
    for name, theirs in (('linear', linear), ('polynomial', cubic)):
      ours = lr_at(step, name, power=3.0, **options)
      assert ours == pytest.approx(share * float(theirs(step)), rel=1e-5), name


def test_durations_in_epochs_become_steps():
  config = config_lib.make_config()
  config.update(num_epochs=3.0, eval_every_epochs=0.5, global_batch_size=8)
  config.schedule.update(name='step', warmup_epochs=1.0, drop_epochs=(1.5, 2.0))
  durations = schedule.resolve_durations(config, 100)
  assert durations.steps_per_epoch == 12.5
  assert durations.num_steps == 38  # 37.5
  assert (durations.eval_every, durations.save_every) == (6.25, 0)
  assert (durations.warmup_steps, durations.drop_steps) == (12, (19, 25))


@pytest.mark.parametrize(
  ('every', 'steps'),
  [
    # 62.5 steps an epoch: the epochs end within these steps.
    (62.5, [63, 125, 188, 250]),
    (3, range(3, 251, 3)),
    # 100 examples in batches of 30: every third epoch ends with a step.
    (Fraction(100, 30) * 3, range(10, 251, 10)),
    (0, []),
  ],
)
def test_due_at_every_multiple_of_a_fraction(every, steps):
  assert [s for s in range(1, 251) if schedule.due(s, every)] == list(steps)


def test_more_steps_than_can_be_counted_are_refused():
  config = config_lib.make_config()
  config.num_epochs = 1e30
  with pytest.raises(UserError, match=r'num_epochs is 1e\+30 .* 1e\+31 steps'):
    schedule.resolve_durations(config, 1280)

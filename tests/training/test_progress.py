import dataclasses
import itertools
import json

import pytest

from alexnet_jax import config as config_lib
from alexnet_jax.training import build, progress as progress_lib
from alexnet_jax.training.progress import (
  DataRecord,
  Progress,
  SavedRun,
  TrainLog,
)
from alexnet_jax.training.schedule import PlateauState, StoppingState
from tests.system import commands


class OnDevice:
  """A number that notes when the host asks for it."""

  def __init__(self, value, name, asked):
    self.value, self.name, self.asked = value, name, asked

  def __float__(self):
    self.asked.append(self.name)
    return float(self.value)

  __array__ = block_until_ready = __float__


def sums(step, asked, loss=2.0):
  values = {'loss': loss * step, 'top1': step, 'top5': 2 * step, 'count': 4}
  return {k: OnDevice(v, f'{step}', asked) for k, v in values.items()}


def test_a_resumed_interval_counts_the_steps_before():
  progress = Progress(
    PlateauState(0.1, best=0.3, wait=2, cooldown=1),
    stopping=StoppingState(best=0.1, best_step=7, evaluations=3, wait=1),
    last_evaluation={'eval/loss': 0.1},
  )
  log = TrainLog(progress, 0)
  log.add(1, sums(1, []))
  log.add(2, sums(2, []))
  log.flush()
  data = DataRecord(['a', 'b'])
  position = {'next_index': 0}
  saved = SavedRun(config_lib.make_config(), data, progress, position)
  again = SavedRun.from_json(json.loads(json.dumps(saved.to_json()))).progress
  assert again == progress
  log = TrainLog(again, 2)
  log.add(3, sums(3, [], loss=4 / 9))
  means, losses = log.take()
  assert means == {
    'train/loss': pytest.approx((2 + 4 + 4 / 3) / 12),
    'train/top1': 6 / 12,
    'train/top5': 12 / 12,
  }
  assert losses == [2 / 4, 4 / 4, 0.3333333]
  assert (again.train_sums, again.step_losses) == ({}, [])


@pytest.mark.parametrize('part', [(), ('data',), ('progress', 'best')])
def test_fields_that_are_missing_or_unknown_are_named(part):
  run = SavedRun(
    config_lib.make_config(),
    DataRecord(['a', 'b']),
    Progress(PlateauState(0.1)),
    {'next_index': 0},
  )
  for change, name in (
    (lambda fields: fields.update(odd=1), 'odd'),
    (lambda fields: fields.pop(sorted(fields)[0]), ''),
  ):
    whole = fields = json.loads(json.dumps(run.to_json()))
    for key in part:
      fields = fields[key]
    first = sorted(fields)[0]
    change(fields)
    with pytest.raises(ValueError, match=name or first):
      SavedRun.from_json(whole)


def test_a_run_that_stopped_early_is_done():
  config, data = config_lib.make_config(), DataRecord([], num_examples=128)
  config.num_epochs, config.num_steps = 0.0, 9
  for stopped in (False, True):
    stopping = StoppingState(stopped=stopped)
    progress = Progress(PlateauState(0.1), stopping=stopping)
    run = SavedRun(config, data, progress, {})
    assert [run.is_done(step) for step in (5, 9)] == [stopped, True]


def test_evaluations_are_judged_by_the_monitors_of_the_config():
  """Best by top-1, plateau by loss, early stopping by top-5."""
  config = config_lib.make_config()
  config.checkpoint.monitor = 'eval/top1'
  config.schedule.update(
    name='plateau', monitor='eval/loss', patience=1, factor=0.5
  )
  config.schedule.threshold = 0.05
  config.early_stopping.update(
    enabled=True, monitor='eval/top5', patience=2, threshold=0.0
  )
  progress = Progress(PlateauState(0.4))
  learning_rates, stopped = [], []
  for step, values in enumerate(
    [(1.0, 0.1, 0.5), (0.9, 0.3, 0.5), (0.88, 0.2, 0.5)], 1
  ):
    names = ('eval/loss', 'eval/top1', 'eval/top5')
    values = dict(zip(names, values, strict=True))
    progress.add_evaluation(config, values, step, due=True)
    learning_rates.append(progress.plateau.learning_rate)
    stopped.append(progress.stopping.stopped)
  assert learning_rates == pytest.approx([0.4, 0.4, 0.2])
  assert stopped == [False, False, True]
  assert (progress.best.value, progress.best.step) == (0.3, 2)
  assert progress.evaluated_step == 3
  # The end of a run between two evaluations: the best alone sees it.
  plateau, stopping = progress.plateau, progress.stopping
  progress.add_evaluation(config, {**values, 'eval/top1': 0.9}, 4, due=False)
  assert progress.best.step == 4
  assert (progress.plateau, progress.stopping) == (plateau, stopping)
  assert progress.evaluated_step == 4


def test_each_step_is_told_once_and_late():
  """An error ends the run: what it was told of counts, and no more is told."""
  asked, told = [], []

  def tell(step, values):
    told.append((step, values['train/loss'], sorted({*asked})))
    if step == 2:
      raise OSError('no more')

  progress = Progress(PlateauState(0.1))
  log = TrainLog(progress, 0, tell)
  for step in (1, 2):
    log.add(step, sums(step, asked))
  assert told == [(1, 2 / 4, ['1'])]
  with pytest.raises(OSError, match='no more'):
    log.add(3, sums(3, asked))
  log.flush()  # of the save at the end
  assert told == [(1, 2 / 4, ['1']), (2, 4 / 4, ['1', '2'])]
  assert progress.step_losses == [2 / 4, 4 / 4, 6 / 4]


def test_a_save_is_asked_for_once(monkeypatch):
  now = [0.0]
  monkeypatch.setattr(progress_lib.time, 'monotonic', lambda: now[0])
  progress = Progress(PlateauState(0.1))
  log, never = TrainLog(progress, 0, save_minutes=2.0), TrainLog(progress, 0)
  asked = []
  for now[0] in (60.0, 119.0, 120.0, 500.0):
    asked.append(log.is_save_due())
  log.restart_timer()
  for now[0] in (610.0, 620.0):
    asked.append(log.is_save_due())
  assert asked == [False, False, True, False, False, True]
  assert not never.is_save_due()


def test_flags_of_other_processes_are_remembered():
  log = TrainLog(Progress(PlateauState(0.1)), 0)
  for step, flag in enumerate((0, 8, 0, 0), 1):
    log.add(step, {**sums(step, []), 'save': flag, 'stop': flag})
    assert log.save_asked == log.stop_asked == (step > 2)
  assert log.take()[0].keys() == {'train/loss', 'train/top1', 'train/top5'}


@pytest.mark.parametrize(
  ('last', 'threshold', 'final'),
  [(0.3, 0.0, 25), (0.3, 0.2, 20), (0.2, 0.0, 20)],
)
def test_the_best_state_may_be_the_last_one(last, threshold, final):
  """A run of 25 steps is evaluated every 10: early stopping sees 10 and 20."""
  config = config_lib.make_config()
  config.early_stopping.update(enabled=True, threshold=threshold)
  progress = Progress(PlateauState(0.1))
  for step, top1 in ((10, 0.0), (20, 0.25), (25, last)):
    values = {'eval/top1': top1}
    progress.add_evaluation(config, values, step, due=step < 25)
  assert progress.final_step(config, 25) == final
  assert progress.stopping.best_step == 20  # a longer run goes on from that
  config.early_stopping.restore_best = False
  assert progress.final_step(config, 25) == 25


def test_the_loop_waits_for_a_step_when_the_next_is_under_way(
  tmp_path, monkeypatch
):
  """But for the first, which compiles, log points (4, 8) and an evaluation."""
  make_steps, begun, events = build.make_steps, itertools.count(1), []

  def noted_steps(*arguments, **options):
    steps = make_steps(*arguments, **options)

    def train(*arguments):
      state, sums = steps.train(*arguments)
      events.append(f'begin{(number := next(begun))}')
      sums = {k: OnDevice(v, f'{number}', events) for k, v in sums.items()}
      return state, sums

    return dataclasses.replace(steps, train=train)

  monkeypatch.setattr(build, 'make_steps', noted_steps)
  recipe = commands.write_recipe(tmp_path, num_steps=10)
  commands.train_here(recipe, tmp_path / 'run')
  order = ' '.join(event for event, _ in itertools.groupby(events))
  first = 'begin1 1 begin2 begin3 2 begin4 3 4 begin5'
  assert order == f'{first} begin6 5 begin7 6 begin8 7 8 begin9 begin10 9 10'

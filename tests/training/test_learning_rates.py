"""Learning rates of whole runs, as their histories show them."""

import dataclasses

import pytest

from alexnet_jax.evaluation import figures
from alexnet_jax.training import checkpoint, measure, writers
from tests.system import commands


@pytest.fixture
def train(tmp_path, capsys):
  """Trains on four devices: (rows with a learning rate, what was printed)."""

  def run(**changes):
    recipe = commands.write_recipe(tmp_path, **changes)
    commands.train_here(recipe, tmp_path / 'run')
    rows = writers.read_rows(tmp_path / 'run')
    return [r for r in rows if 'learning_rate' in r], capsys.readouterr().err

  return run


def test_a_higher_top1_is_better(train, monkeypatch):
  """To the plateau, early stopping and the best checkpoint; the loss falls."""
  evaluate, values = measure.evaluate, {'eval/loss': 2.0, 'eval/top1': 0.5}

  def scripted(*arguments, **options):
    for name in values:
      values[name] -= 0.01
    found = evaluate(*arguments, **options)
    return dataclasses.replace(found, values={**found.values, **values})

  monkeypatch.setattr(measure, 'evaluate', scripted)
  rows, text = train(
    num_steps=12,
    eval_every_steps=2,
    log_every_steps=1,
    schedule__patience=2,
    early_stopping__enabled=True,
    early_stopping__patience=4,
  )
  rates = [row['learning_rate'] for row in rows]
  # The second drop comes with the end, and is not announced.
  assert rates == pytest.approx([0.02] * 6 + [0.002] * 4)
  assert text.count('learning rate 0.02 -> 0.002') == 1
  assert text.count('learning rate') == 1
  assert 'done at step 10 (stopped early), with the state of step 2: ' in text
  assert 'best eval/top1 0.4900 at step 2' in text


def test_a_plateau_waits_for_the_warm_up_and_cools_down(train, tmp_path):
  """Nothing improves; 20 steps of warm-up, an evaluation every five.

  It does not see the end of the run, where a longer one would have none.
  """
  rows, _ = train(
    num_steps=57,
    eval_every_steps=5,
    log_every_steps=5,
    schedule__warmup_steps=20,
    schedule__patience=2,
    schedule__cooldown=2,
    schedule__factor=0.5,
    schedule__threshold=10.0,
  )
  rates = [row['learning_rate'] for row in rows]  # of steps 5, 10, ..., 57
  expected = [0.005, 0.01, 0.015, 0.02] + [0.02] * 3 + [0.01] * 3 + [0.005] * 2
  assert rates == pytest.approx(expected)
  progress = checkpoint.read_newest(tmp_path / 'run')[1].progress
  assert progress.evaluated_step == 57


def test_the_history_has_the_rate_of_every_group(train):
  """An epoch has 12 steps: kernels change at steps 6 and 12."""
  rows, text = train(
    num_steps=16,
    eval_every_steps=16,
    schedule__name='recorded',
    schedule__lr_multipliers=(
      (0.5, '*/kernel', 0.1),
      (1, '*/kernel', 0.01),
      (1, 'head/kernel', 0.0),
    ),
  )
  expected = {
    'conv1/bias': [0.02] * 4,
    'conv1/kernel': [0.02, 0.002, 0.002, 0.0002],
    'head/kernel': [0.02, 0.002, 0.002, 0.0],
  }
  found = {
    key: [row[key] for row in rows]
    for key in rows[0]
    if key.startswith('learning_rate/')
  }
  assert found == {
    f'learning_rate/{name}': pytest.approx(rates)
    for name, rates in expected.items()
  }
  assert ', lr 0 to 0.02' in text
  assert figures.learning_rate_drops(rows) == [8, 16]
  (axes,) = figures.draw_learning_rate(rows).axes
  assert [line.get_label() for line in axes.get_lines()][:3] == list(expected)
  assert [list(line.get_ydata()) for line in axes.get_lines()][:3] == [
    pytest.approx(rates) for rates in expected.values()
  ]

"""Ten crops and ensembles of whole runs, by the commands."""

import json

import numpy as np
import pytest

from alexnet_jax import validation
from alexnet_jax.cli import Console
from alexnet_jax.evaluation import ensemble
from alexnet_jax.evaluation import evaluate
from alexnet_jax.training import guards
from alexnet_jax.training import loop
from tests.evaluation import loops
from tests.system import commands


@pytest.fixture(scope='module')
def runs(small, tmp_path_factory):
  """Two runs on 15 validation images, which no batch divides."""
  folder = tmp_path_factory.mktemp('runs')
  for seed in (0, 1):
    recipe = commands.write_recipe(
      folder, **small, num_steps=10, seed=seed, model__dropout=0.0
    )
    config = validation.load_config([f'--config={recipe}'])
    config.data.synthetic_examples = 60
    loop.train_and_evaluate(
      config, str(folder / str(seed)), guards.StopSignal(), Console()
    )
  return [str(folder / str(seed)) for seed in (0, 1)]


def result(capsys, command, *arguments):
  assert command.main([*arguments, '--json']) == 0
  return json.loads(capsys.readouterr().out.splitlines()[-1])


def test_evaluate_equals_a_loop(runs, capsys):
  values = result(capsys, evaluate, '--workdir', runs[0])
  mean, labels = loops.probabilities(runs[0], 1)
  assert len(labels) == values['examples'] == 15
  assert values['crops'] == 1
  assert values['images_per_second'] > 0
  for key, value in loops.expected_values(mean, labels).items():
    assert values[key] == pytest.approx(value, rel=1e-5), key


@pytest.mark.parametrize('num_crops', ['center', '10'])
def test_an_ensemble_averages_probabilities(runs, capsys, num_crops):
  values = result(capsys, ensemble, *runs, '--crops', num_crops)
  count = 10 if num_crops == '10' else 1
  each = [loops.probabilities(workdir, count) for workdir in runs]
  mean, labels = (each[0][0] + each[1][0]) / 2, each[0][1]
  for key, value in loops.expected_values(mean, labels).items():
    assert values[key] == pytest.approx(value, rel=1e-5), key
  assert values['examples'] == len(labels)
  for member, (own, _) in zip(values['members'], each, strict=True):
    for key, value in loops.expected_values(own, labels).items():
      assert member[key] == pytest.approx(value, rel=1e-5), key
  # Neither is the other, nor what they say together.
  losses = {round(m['eval/loss'], 5) for m in (values, *values['members'])}
  assert len(losses) == 3


def test_checkpoints_of_one_run_are_members_too(runs, capsys):
  values = result(capsys, ensemble, f'{runs[0]}:10', f'{runs[0]}:final')
  first, second = values['members']
  assert first == second
  assert values['eval/loss'] == pytest.approx(first['eval/loss'], rel=1e-6)


def test_members_must_be_measured_on_the_same(runs, small, tmp_path, capsys):
  recipe = commands.write_recipe(
    tmp_path, **{**small, 'data__synthetic_classes': 4}, num_steps=1
  )
  config = validation.load_config([f'--config={recipe}'])
  other = str(tmp_path / 'other')
  loop.train_and_evaluate(config, other, guards.StopSignal(), Console())
  assert ensemble.main([runs[0], other]) == 2
  assert f'the classes of {other} are not those' in capsys.readouterr().err
  assert ensemble.main([runs[0]]) == 2
  assert 'there is one network' in capsys.readouterr().err
  assert ensemble.main([runs[0], f'{runs[1]}:7']) == 2
  err = capsys.readouterr().err
  assert "checkpoint '7' is not in" in err
  assert 'top-1' not in err  # before anything is measured
  assert ensemble.main([runs[0], str(tmp_path / 'none')]) == 2
  with pytest.raises(SystemExit):
    ensemble.main([*runs, '--crops', '5'])


def test_ties_and_certainty_rank_as_in_training():
  mean = np.array([[0.5, 0.5, 0.0], [0.25, 0.25, 0.5], [0.0, 1.0, 0.0]])
  values = ensemble.joint_values(mean, np.array([1, 2, 0]))
  assert values['eval/top1'] == pytest.approx(1 / 3)
  assert values['eval/top5'] == 1.0
  least = np.finfo(np.float32).tiny
  assert values['eval/loss'] == pytest.approx(
    -(np.log(0.5) + np.log(0.5) + np.log(least)) / 3
  )


def test_names_of_members(tmp_path):
  odd = tmp_path / 'a:b'
  odd.mkdir()
  assert ensemble.split_member('runs/a') == ('runs/a', 'final')
  assert ensemble.split_member('runs/a:best') == ('runs/a', 'best')
  assert ensemble.split_member(str(odd)) == (str(odd), 'final')
  assert ensemble.split_member(f'{odd}:7') == (str(odd), '7')

"""The end of a sweep, and what it learns on its way, without training."""

import math
import shlex

import optuna
import pytest

from alexnet_jax import validation
from alexnet_jax.config import make_config
from alexnet_jax.evaluation import search_space
from alexnet_jax.evaluation import sweep_figures
from alexnet_jax.evaluation import sweep_report
from alexnet_jax.evaluation import sweep_study
from tests.system import commands

KEY = 'optimizer.learning_rate'
SPACE = search_space.parse(
  [f'{KEY}=1e-4..1e-1:log', 'model.hidden=1..2*8..64'], make_config()
)


def played(direction, values, count):
  """A study of trials whose value is a function of their parameters."""
  sweep_study.import_optuna()
  study = optuna.create_study(direction=direction)
  for number in range(count):
    sweep_study.next_trial(study, SPACE, 0)
    trial = optuna.trial.Trial(study, study.trials[number]._trial_id)
    trial.set_user_attr('parameters', 1000 + number)
    trial.set_user_attr('step', 10)
    study.tell(trial, values(number, trial.params))
  return study


@pytest.mark.parametrize(
  ('direction', 'best'), [('minimize', [2, 0, 1]), ('maximize', [1, 0, 2])]
)
def test_the_best_come_first(tmp_path, capsys, monkeypatch, direction, best):
  monkeypatch.setattr(sweep_figures, 'draw', lambda *_: {})
  study = played(direction, lambda n, params: (0.5, 0.75, 0.25)[n], 3)
  recipe = commands.write_recipe(tmp_path)
  retrain = ['--config', str(recipe), '--config.num_steps=7']
  result = sweep_report.report(study, SPACE, tmp_path, 'eval/top1', retrain)
  assert result['best']['trial'] == best[0]
  err = capsys.readouterr().err
  places = [err.index(f'{0.5 + (0, 0.25, -0.25)[n]:.4f}') for n in best]
  assert places == sorted(places)
  assert '3 done, 0 pruned, 0 failed; eval/top1' in err
  # The command is one that the recipe's reader takes.
  words = shlex.split(result['command'])
  assert words[:3] == ['python', '-m', 'alexnet_jax.main']
  overrides = [word for word in words if word.startswith('--config.')]
  config = validation.load_config([f'--config={recipe}', *overrides])
  assert config.num_steps == 7
  for key, value in result['best']['values'].items():
    section, name = key.split('.')
    assert config[section][name] == value


def test_a_sweep_learns_from_its_trials():
  """After ten that are drawn blindly."""

  def low(number, params):
    return -math.log10(params[KEY])

  def high(number, params):
    return math.log10(params[KEY])

  studies = [played('maximize', values, 20) for values in (low, high)]
  rates = [[t.params[KEY] for t in study.trials] for study in studies]
  assert rates[0][:10] == rates[1][:10]
  learned = [[math.log10(rate) for rate in some[10:]] for some in rates]
  assert sum(learned[0]) / 10 < sum(learned[1]) / 10 - 1  # a tenth, or less

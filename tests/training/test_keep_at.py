import pytest

from alexnet_jax.errors import Interrupted
from alexnet_jax.training import checkpoint
from tests.system import commands
from tests.system.together import timeless


def steps(workdir):
  return sorted(int(path.name) for path in workdir.glob('checkpoints/*'))


def test_logarithmic_steps_stay_and_change_nothing(tmp_path):
  """Those of an interrupted run, beside one that keeps its newest alone."""
  recipe = commands.write_recipe(tmp_path, checkpoint__keep=1)
  run = (recipe, tmp_path / 'log', '--config.checkpoint.keep_at=log')

  def interrupt(step, values):
    if step == 20:
      raise Interrupted('SIGTERM')

  plain = commands.train_here(recipe, tmp_path / 'plain')
  with pytest.raises(Interrupted):
    commands.train_here(*run, on_evaluation=interrupt)
  assert {*steps(tmp_path / 'log')} >= {0, 1, 2, 4, 8, 16, 20}
  again = commands.train_here(*run)
  assert again['state_digest'] == plain['state_digest']
  assert timeless(tmp_path / 'log') == timeless(tmp_path / 'plain')
  _, saved = checkpoint.read_newest(tmp_path / 'log')
  own = {saved.progress.best.step, 40}
  assert steps(tmp_path / 'plain') == sorted(own)
  assert steps(tmp_path / 'log') == sorted({0, 1, 2, 4, 8, 16, 32} | own)

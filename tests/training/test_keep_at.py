import numpy as np
import pytest

from alexnet_jax.errors import Interrupted
from alexnet_jax.training import build, checkpoint
from tests.system import commands
from tests.system.together import timeless


def steps(workdir):
  return sorted(int(path.name) for path in workdir.glob('checkpoints/*'))


@pytest.fixture(scope='module')
def runs(tmp_path_factory):
  """A run with its logarithmic steps, interrupted, and one without them."""
  folder = tmp_path_factory.mktemp('runs')
  recipe = commands.write_recipe(folder, checkpoint__keep=1)
  log = '--config.checkpoint.keep_at=log'

  def interrupt(step, values):
    if step == 20:
      raise Interrupted('SIGTERM')

  plain = commands.train_here(recipe, folder / 'plain')
  with pytest.raises(Interrupted):
    commands.train_here(recipe, folder / 'log', log, on_evaluation=interrupt)
  assert {*steps(folder / 'log')} >= {0, 1, 2, 4, 8, 16, 20}
  again = commands.train_here(recipe, folder / 'log', log)
  return plain, again, folder


def test_they_stay_and_change_nothing(runs):
  plain, again, folder = runs
  assert again['state_digest'] == plain['state_digest']
  assert timeless(folder / 'log') == timeless(folder / 'plain')
  _, saved = checkpoint.read_newest(folder / 'log')
  own = {saved.progress.best.step, 40}
  assert steps(folder / 'plain') == sorted(own)
  assert steps(folder / 'log') == sorted({0, 1, 2, 4, 8, 16, 32} | own)


def test_step_0_is_the_state_before_the_first_update(runs):
  run = checkpoint.open_run(runs[-1] / 'log', '0')
  model = build.make_model(run.config, len(run.class_names))
  first = build.make_state(run.config, model).params
  for layer, leaves in run.state.params.items():
    for name, leaf in leaves.items():
      np.testing.assert_array_equal(leaf, first[layer][name])

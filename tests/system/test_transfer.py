"""Runs that start from others, with every kind of training choice."""

import itertools

import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.training import build, checkpoint, state as state_lib
from tests.system import commands


@pytest.fixture
def train(tmp_path):
  """Trains in this process: (name, changes of the recipe) -> result."""

  def run(name, **changes):
    recipe = commands.write_recipe(tmp_path, **changes)
    return commands.train_here(recipe, tmp_path / name)

  return run


def params_of(workdir, which='final'):
  state = checkpoint.open_run(workdir, which).state
  return {
    name: np.asarray(leaf)
    for name, leaf in state_lib.leaf_names(state.params).items()
  }


def test_a_run_that_starts_from_another_keeps_its_start(train, tmp_path):
  """Killed before its first save it would start from what there is then."""
  train('first', num_steps=2)
  train('second', num_steps=1, init__workdir=str(tmp_path / 'first'))
  start = params_of(tmp_path / 'second', '0')
  for name, leaf in params_of(tmp_path / 'first').items():
    np.testing.assert_array_equal(start[name], leaf)
  # The other run may be elsewhere then, or gone.
  (tmp_path / 'first').rename(tmp_path / 'moved')
  train('second', num_steps=2, init__workdir=str(tmp_path / 'moved'))
  _, saved = checkpoint.read_newest(tmp_path / 'second')
  assert saved.config.init.workdir == str(tmp_path / 'first')


def test_a_start_that_does_not_fit_is_refused(train, tmp_path, monkeypatch):
  train('first', num_steps=2)
  # Not after a pass over the data.
  monkeypatch.setattr(build, 'find_pixel_statistics', None)
  start = {'init__workdir': str(tmp_path / 'first'), 'num_steps': 2}
  message = r'(?s)first .*dense1/kernel: .*16. there, .*17. here.*\.init\.skip'
  with pytest.raises(UserError, match=message):
    train('second', model__hidden=(17,), **start)
  with pytest.raises(UserError, match=r'init\.freeze: no parameter fits'):
    train('third', init__freeze=('conv9',), **start)
  with pytest.raises(UserError, match='is not the folder of a run'):
    train('fourth', init__workdir=str(tmp_path / 'nowhere'))


RECORDED = {
  'eval_every_steps': 6,
  'save_every_steps': 1,
  'checkpoint__keep': 99,
  'schedule__name': 'recorded',
  'schedule__lr_multipliers': ((0.5, 'dense*', 0.1), (1.0, 'conv1/*', 0.0)),
  'optimizer__update_rule': 'paper',
  'data__pca_lighting': 0.5,
  'data__pca_lighting_shrink': True,
  'data__pca_lighting_unit': 'deviation',
  'data__pca_lighting_steps': 15,
}


@pytest.mark.slow
def test_a_recorded_schedule_is_replayed(train, tmp_path):
  """An epoch has 12 steps; a factor of 0 stops the momentum, too."""
  unbroken = train('unbroken', num_steps=18, **RECORDED)
  for steps in (5, 12, 16, 18):
    resumed = train('resumed', num_steps=steps, **RECORDED)
  assert resumed['state_digest'] == unbroken['state_digest']
  states = [params_of(tmp_path / 'unbroken', str(s)) for s in (11, 12, 13, 18)]
  for name in ('conv1/kernel', 'conv1/bias', 'conv2/kernel', 'head/kernel'):
    moves = [
      (before[name] != after[name]).any()
      for before, after in itertools.pairwise(states)
    ]
    assert moves == [True, name[:5] != 'conv1', name[:5] != 'conv1'], name


def test_a_schedule_that_names_nothing_is_refused(train):
  rates = {**RECORDED, 'schedule__lr_multipliers': ((1.0, 'fc*', 0.1),)}
  with pytest.raises(UserError, match=r"schedule\.lr_multipliers names 'fc\*'"):
    train('refused', num_steps=2, **rates)

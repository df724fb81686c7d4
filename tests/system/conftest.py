"""The command that trains, in this process."""

import functools

import pytest

from alexnet_jax import main as command
from tests.system import commands


@pytest.fixture(scope='session')
def trained(tmp_path_factory):
  """A run of 20 steps, to look at: (recipe, workdir, result)."""
  folder = tmp_path_factory.mktemp('trained')
  recipe = commands.write_recipe(folder, num_steps=20)
  return recipe, folder / 'run', commands.train_here(recipe, folder / 'run')


@pytest.fixture
def main(call, handlers):
  """Calls the command; see `call`. Its handlers of signals are gone then."""
  return functools.partial(call, command)

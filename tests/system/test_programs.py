"""Programs that a run compiles, keeps and traces."""

import collections
import functools
import os
import sys

import pytest

from alexnet_jax import runtime
from alexnet_jax.training import step
from tests.system import commands


def test_nothing_is_traced_twice(tmp_path, monkeypatch, capsys):
  """The run drops its learning rate, evaluates, saves and resumes."""
  recipe = commands.write_recipe(
    tmp_path, eval_every_steps=5, schedule__patience=1, schedule__threshold=1.0
  )
  traces = collections.Counter()

  def count(name):
    function = getattr(step, name)

    @functools.wraps(function)
    def counted(*arguments, **options):
      traces[name] += 1
      return function(*arguments, **options)

    monkeypatch.setattr(step, name, counted)

  for name in ('train_step', 'eval_step'):
    count(name)
  for steps in (20, 40):  # the second one resumes
    traces.clear()
    override = f'--config.num_steps={steps}'
    commands.train_here(recipe, tmp_path / 'run', override)
    assert traces == {'train_step': 1, 'eval_step': 1}
    err = capsys.readouterr().err
    assert 'a plateau of eval/top1' in err
  assert 'goes on from checkpoint 20' in err


@pytest.mark.slow
def test_a_trace_of_ten_steps(tmp_path, capsys):
  recipe = commands.write_recipe(tmp_path, num_steps=24)
  commands.train_here(recipe, tmp_path / 'run', profile=True)
  folder, err = tmp_path / 'run' / 'profile', capsys.readouterr().err
  assert f'a trace of steps 10 to 20: {folder}' in err
  assert any(file.suffix == '.pb' for file in folder.rglob('*'))


FOLDER = 'JAX_COMPILATION_CACHE_DIR'
LEAST = 'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'


@pytest.mark.parametrize(
  ('given', 'expected'),
  [
    ({FOLDER: '/somewhere'}, {FOLDER: '/somewhere'}),
    ({}, {LEAST: '0.1'}),
    ({LEAST: '5'}, {LEAST: '5'}),
  ],
)
def test_what_the_user_set_stays(tmp_path, monkeypatch, given, expected):
  monkeypatch.delenv(FOLDER, raising=False)
  monkeypatch.setenv(LEAST, '0')  # so that it is restored in the end
  monkeypatch.delenv(LEAST)
  monkeypatch.delitem(sys.modules, 'jax')  # its config must not change
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path))
  for name, value in given.items():
    monkeypatch.setenv(name, value)
  runtime.configure()
  assert {name: os.environ.get(name) for name in expected} == expected


def test_a_folder_that_cannot_be_written_is_left_alone(tmp_path, monkeypatch):
  (tmp_path / 'cache').write_text('a file')
  monkeypatch.delenv(FOLDER, raising=False)
  monkeypatch.setenv('XDG_CACHE_HOME', str(tmp_path / 'cache'))
  runtime.configure()
  assert FOLDER not in os.environ

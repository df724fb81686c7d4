"""Loggers are told every row once, and cannot end a run."""

import importlib.util
import shutil
import sys
import types

import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.training import writers
from tests.system import commands


@pytest.fixture
def recipe(tmp_path):
  options = {'num_steps': 24, 'eval_every_steps': 8, 'log_every_steps': 3}
  return commands.write_recipe(tmp_path, **options)


class Killed(Exception):
  """Ends a run without a save."""


def train_killed(recipe, workdir, name):
  """Trains with one kill between an evaluation and its save; the rows."""

  def kill(step, values):
    if step == 16:
      raise Killed

  option = f'--config.loggers={name}'
  with pytest.raises(Killed):
    commands.train_here(recipe, workdir, option, on_evaluation=kill)
  assert writers.read_rows(workdir)[-1]['step'] == 16  # told, and dropped
  commands.train_here(recipe, workdir, option)
  rows = writers.read_rows(workdir)
  return [row for row in rows if writers.STEP_LOSSES not in row]


@pytest.mark.interop
def test_mlflow_has_each_number_once_and_in_order(
  recipe, tmp_path, monkeypatch
):
  mlflow = pytest.importorskip('mlflow')
  monkeypatch.setenv('MLFLOW_TRACKING_URI', f'file:{tmp_path / "mlruns"}')
  monkeypatch.setenv('MLFLOW_ALLOW_FILE_STORE', 'true')
  rows = train_killed(recipe, tmp_path / 'run', 'mlflow')
  [run] = mlflow.MlflowClient().search_runs(['0'])
  assert run.info.run_name == 'run'
  assert run.info.status == 'FINISHED'
  assert run.data.params['optimizer.learning_rate'] == '0.02'
  for key in ('train/loss', 'train/top1', 'eval/top1', 'learning_rate'):
    there = mlflow.MlflowClient().get_metric_history(run.info.run_id, key)
    wanted = [row for row in rows if key in row]
    assert [point.step for point in there] == [row['step'] for row in wanted]
    assert [point.value for point in there] == [row[key] for row in wanted]


def test_wandb_online_gets_what_it_lacks(recipe, tmp_path, monkeypatch):
  """W&B keeps all rows but what a kill has lost."""
  there, ends = [], []

  class Online:
    def __init__(self, id, **_):
      self.id, self.starting_step = id or 'abc', len(there)
      self.log = there.append

    def define_metric(self, *_, **__): ...

    def finish(self):
      if not ends:
        del there[5:]
      ends.append(1)

  fake = types.SimpleNamespace(init=Online, Settings=dict)
  monkeypatch.setitem(sys.modules, 'wandb', fake)
  monkeypatch.setattr('alexnet_jax.training.writers.check_installed', print)
  rows = train_killed(recipe, tmp_path / 'run', 'wandb')
  assert [row['step'] for row in there] == [row['step'] for row in rows]
  assert (tmp_path / 'run' / 'loggers' / 'wandb').read_text() == 'abc'


def test_a_run_begun_anew_is_a_new_one(recipe, tmp_path, monkeypatch):
  seen = []

  class Seen:
    identity = 'x'
    close = scalars = staticmethod(lambda *_: None)

    def __init__(self, identity, *_):
      seen.append(identity)

  monkeypatch.setattr('alexnet_jax.training.writers.check_installed', print)
  monkeypatch.setitem(writers._LOGGERS, 'mlflow', Seen)
  workdir, option = tmp_path / 'run', '--config.loggers=mlflow'
  for steps in (8, 16):
    line = f'--config.num_steps={steps}'
    commands.train_here(recipe, workdir, option, line)
  shutil.rmtree(workdir / 'checkpoints')
  (workdir / 'metrics.jsonl').unlink()
  commands.train_here(recipe, workdir, option)
  assert seen == [None, 'x', None]


def test_a_logger_that_fails_is_named_once(
  recipe, tmp_path, monkeypatch, caplog
):
  calls = []

  class Broken:
    identity = 'x'

    def __init__(self, *_): ...

    def scalars(self, step, values):
      calls.append(step)
      raise ConnectionError('no route to host')

  found = types.SimpleNamespace(origin='here')
  monkeypatch.setattr(importlib.util, 'find_spec', lambda _: found)
  monkeypatch.setitem(writers._LOGGERS, 'mlflow', Broken)
  option = '--config.loggers=mlflow'
  result = commands.train_here(recipe, tmp_path / 'run', option)
  assert result['step'] == 24
  assert calls == [3]
  assert caplog.text.count('mlflow is told nothing more') == 1
  assert 'no route to host' in caplog.text


def test_a_package_that_is_missing_is_named(recipe, tmp_path, monkeypatch):
  """A folder ./wandb, in which W&B writes, is no package."""
  for origin in (None, types.SimpleNamespace(origin=None)):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda _, o=origin: o)
    with pytest.raises(
      UserError, match=r"'wandb,mlflow'.*wandb is not.*\[wandb"
    ):
      commands.train_here(
        recipe, tmp_path / 'run', '--config.loggers=wandb,mlflow'
      )
  assert {path.name for path in tmp_path.glob('run/*')} <= {'.lock'}

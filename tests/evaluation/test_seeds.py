import json
import random
import shutil
import signal
import time

import pytest

from alexnet_jax import main
from alexnet_jax.evaluation import compare, seeds
from alexnet_jax.training import checkpoint, loop
from tests.system import commands
from tests.system.together import timeless

THREE = ('--count', 3)


@pytest.fixture(scope='module')
def recipe(tmp_path_factory, small):
  folder = tmp_path_factory.mktemp('recipe')
  return commands.write_recipe(folder, **small, num_steps=20, seed=4)


@pytest.fixture(scope='module')
def done(tmp_path_factory, recipe):
  """Three seeds that nothing disturbed."""
  workdir = tmp_path_factory.mktemp('done') / 'set'
  run = ['--config', str(recipe), '--workdir', str(workdir)]
  assert seeds.main([*run, '--count', '3']) == 0
  return workdir


@pytest.fixture
def train(call, recipe):
  """(exit code, result, errors) of the command."""
  return lambda workdir, *more: call(
    seeds, '--config', recipe, '--workdir', workdir, *more
  )


def test_a_run_beside_its_seeds_is_compared_too(done, tmp_path):
  workdir = shutil.copytree(done, tmp_path / 'set')
  names = [str(workdir / f'seed_{seed}') for seed in (4, 5, 6)]
  assert compare.runs_in(str(workdir)) == names
  shutil.copytree(workdir / 'seed_4/checkpoints', workdir / 'checkpoints')
  assert compare.runs_in(str(workdir)) == [str(workdir), *names]


def digests(result):
  return [row['state_digest'] for row in result['seeds']]


def test_a_run_is_the_one_of_its_seed_and_done_once(
  done, recipe, tmp_path, train, call, monkeypatch
):
  own = ['--config', recipe, '--workdir', tmp_path / 'run']
  _, trained, _ = call(main, *own, '--config.seed=5')
  monkeypatch.setattr(loop, 'train_and_evaluate', None)
  code, result, err = train(done, *THREE)
  assert (code, 'seed_6 (3 of 3) is done' in err) == (0, True)
  assert [row['seed'] for row in result['seeds']] == [4, 5, 6]
  assert digests(result)[1] == trained['state_digest']
  assert len(set(digests(result))) == 3
  row = result['seeds'][1]
  assert row['validation']['loss'] == trained['eval/loss']
  assert row['workdir'] == str(done / 'seed_5')
  assert timeless(done / 'seed_5') == timeless(tmp_path / 'run')


def test_more_seeds_continue_and_a_signal_leaves_with_75(
  done, tmp_path, train, monkeypatch
):
  workdir = shutil.copytree(done, tmp_path / 'set')
  evaluate = loop._evaluate

  def signalled(run, *arguments):
    evaluate(run, *arguments)
    signal.raise_signal(signal.SIGTERM)

  with monkeypatch.context() as patch:
    patch.setattr(loop, '_evaluate', signalled)
    code, _, err = train(workdir, '--count', 4)
  assert (code, 'saved step' in err) == (75, True)
  code, result, err = train(workdir, '--count', 4)
  assert (code, 'goes on from checkpoint' in err) == (0, True)
  assert 'seed_6 (3 of 4) is done' in err
  assert [row['step'] for row in result['seeds']] == [20] * 4


def test_it_refuses(done, train):
  for more, message in (
    (('--count', 1), '--count is 1; it must be at least 2'),
    ((*THREE, '--config.seed=4294967294'), 'config.seed is 4294967296'),
    ((*THREE, '--config.ema_decay=0.5'), 'config.ema_decay: 0.0 -> 0.5'),
  ):
    commands.refused(train(done, *more), message)
  answer = train(done / 'seed_4', *THREE)
  commands.refused(answer, 'seed_4 is the folder of a run, not of several')


@pytest.mark.slow
def test_a_set_that_is_killed_twice_ends_bit_equal(recipe, tmp_path):
  command = [commands.MAIN[0], '-m', 'alexnet_jax', 'seeds', '--json']
  command += ['--config', recipe, '--count', 4, '--config.num_steps=60']
  command += ['--config.checkpoint.keep_at=log', '--workdir']
  _, out, _ = commands.run(*command, tmp_path / 'whole')
  whole, rng = json.loads(out.splitlines()[-1]), random.Random(0)
  for seed in (4, 6):
    process = commands.start(*command, tmp_path / 'killed')
    newest = tmp_path / f'killed/seed_{seed}/checkpoints/16'
    while process.poll() is None and not newest.exists():
      time.sleep(0.01)
    time.sleep(rng.uniform(0, 0.2))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
  _, out, _ = commands.run(*command, tmp_path / 'killed')
  assert digests(json.loads(out.splitlines()[-1])) == digests(whole)
  for seed in range(4, 8):
    folders = [tmp_path / name / f'seed_{seed}' for name in ('whole', 'killed')]
    assert timeless(folders[0]) == timeless(folders[1])
    for step in (0, 1, 2, 4, 8, 16, 32, 60):
      runs = [checkpoint.open_run(folder, str(step)) for folder in folders]
      assert runs[0].saved.digest == runs[1].saved.digest

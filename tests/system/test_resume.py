"""A run that is killed ends as the unbroken one, bit for bit."""

import os
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

from alexnet_jax.errors import Interrupted
from alexnet_jax.training import (
  accounting,
  checkpoint,
  measure,
  parallel,
  step,
  writers,
)
from tests.system import commands
from tests.system.together import last_step, RECIPE as SHORT, timeless

# 60 steps of 8 in epochs of 12: kills fall into several epochs. The threshold
# makes two plateau drops.
RECIPE = {**SHORT, 'num_steps': 60}


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  """(recipe, result, history) of the run that nothing disturbs."""
  folder = tmp_path_factory.mktemp('unbroken')
  recipe = commands.write_recipe(folder, **RECIPE)
  result = commands.train_here(recipe, folder / 'run')
  history = timeless(folder / 'run')
  rates = {row['learning_rate'] for row in history if 'learning_rate' in row}
  assert len(rates) >= 3  # two drops are inside
  return recipe, result, history


def start(recipe, workdir, **options):
  run = ('--config', recipe, '--workdir', workdir, '--json')
  return commands.start(*commands.MAIN, *run, **options)


def wait_for_step(process, workdir, step):
  """Waits until the history reaches a step, or the process ends."""
  while process.poll() is None and last_step(workdir) < step:
    time.sleep(0.01)


def read_times(workdir):
  """Returns what each process of a run has written about its time."""
  return writers.read_rows(workdir, accounting.TIMES_FILE)


def assert_ends_alike(recipe, workdir, unbroken_run):
  _, expected, history = unbroken_run
  result = commands.train_here(recipe, workdir)
  assert result['state_digest'] == expected['state_digest']
  assert result['eval/loss'] == expected['eval/loss']
  assert timeless(workdir) == history


@pytest.mark.parametrize(
  ('seed', 'num_kills'), [(0, 2), pytest.param(1, 20, marks=pytest.mark.slow)]
)
def test_sigkill_at_random_moments(unbroken, tmp_path, seed, num_kills):
  """Start-up, compilation, steps, evaluation and saving are all hit."""
  recipe, workdir = unbroken[0], tmp_path / 'run'
  rng, kills = random.Random(seed), 0
  while kills < num_kills:
    process = start(recipe, workdir)
    if kills % 2:  # somewhere on the way; else soon after some step
      time.sleep(rng.uniform(0.5, 4))
    else:
      begun = RECIPE['num_steps'] * kills // (2 * num_kills)
      wait_for_step(process, workdir, begun + rng.randrange(12))
      time.sleep(rng.uniform(0, 0.1))
    process.kill()
    process.communicate()
    assert process.returncode in (0, -signal.SIGKILL)
    kills += 1
    if any(row['ended'] for row in read_times(workdir)):
      shutil.rmtree(workdir)  # it was done before, or on its way out
      kills = 0
  assert_ends_alike(recipe, workdir, unbroken)
  *killed, last = read_times(workdir)
  assert killed
  assert [line['ended'] for line in (*killed, last)] == [0] * len(killed) + [1]
  assert accounting.account(workdir).seconds['lost'] > 0


NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)


@pytest.mark.slow
def test_eight_signals_and_a_reader_that_leaves(tmp_path):
  """There is no evaluation on the way that would look for signals."""
  changes = {'num_steps': 2000, 'eval_every_steps': 2000}
  changes['save_every_steps'] = 50
  recipe = commands.write_recipe(tmp_path, **{**RECIPE, **changes})
  whole, workdir = tmp_path / 'whole', tmp_path / 'run'
  expected = commands.train_here(recipe, whole)
  rng, saved = random.Random(7), 0
  for count in range(8):
    number = NUMBERS[count % len(NUMBERS)]
    process = start(recipe, workdir, stderr=subprocess.STDOUT)
    begun = last_step(workdir)
    if count > 3:
      process.stdout.readline()
    process.stdout.close()
    wait_for_step(process, workdir, begun + rng.randrange(3, 60))
    before = last_step(workdir)
    process.send_signal(number)
    assert process.wait(300) == (-9 if number == signal.SIGKILL else 75)
    newest, _ = checkpoint.read_newest(workdir)
    assert newest >= (saved if number == signal.SIGKILL else before)
    saved = newest
  assert saved < 2000
  assert_ends_alike(recipe, workdir, (recipe, expected, timeless(whole)))


def test_a_run_with_every_choice_goes_on(tmp_path):
  """With all that a state may hold; frozen parameters stay as they came."""
  plain = {k: v for k, v in SHORT.items() if not k.startswith('schedule')}
  recipe = commands.write_recipe(tmp_path, **{**plain, 'num_steps': 1})
  commands.train_here(recipe, tmp_path / 'first')
  changes = {
    'num_steps': 24,
    'optimizer__name': 'optax.adamw',
    'optimizer__learning_rate': 1e-3,
    'optimizer__arguments': (('mask', 'kernels'), ('weight_decay', 0.1)),
    'optimizer__clip_norm': 0.5,
    'ema_decay': 0.9,
    'loss__class_weights': ('balanced',),
    'loss__label_smoothing': 0.1,
    'model__norm': 'batch',
    'data__brightness': 0.2,
    'schedule__name': 'one_cycle',
    'init__workdir': str(tmp_path / 'first'),
    'init__skip': ('head', 'norm*', 'dense*'),
    'init__freeze': ('conv*',),
  }
  recipe = commands.write_recipe(tmp_path, **(plain | changes))

  def interrupt(step, values):
    if step == 10:
      raise Interrupted('SIGTERM')

  unbroken = commands.train_here(recipe, tmp_path / 'unbroken')
  with pytest.raises(Interrupted):
    commands.train_here(recipe, tmp_path / 'run', on_evaluation=interrupt)
  again = commands.train_here(recipe, tmp_path / 'run')
  assert again['state_digest'] == unbroken['state_digest']
  assert timeless(tmp_path / 'run') == timeless(tmp_path / 'unbroken')
  assert 'train/objective' in timeless(tmp_path / 'run')[0]
  first, last = (
    checkpoint.open_run(tmp_path / name).state.params['conv1']['kernel']
    for name in ('first', 'run')
  )
  assert (first == last).all()


@pytest.mark.parametrize(
  ('target', 'name', 'number', 'saved_step'),
  [
    # Between evaluations, at 20 and 30, and saves, at 21 and 28.
    (parallel.DeviceBatches, 'take', 23, 23),
    (measure, 'evaluate', 6, 60),  # at the end, made again
    pytest.param(
      *(checkpoint.Checkpoints, 'restore_newest', 1, 0), marks=pytest.mark.slow
    ),
    (step, 'loss_and_grads', 1, 1),  # while it compiles
  ],
)
def test_sigterm_at_a_chosen_moment(
  unbroken, tmp_path, main, monkeypatch, target, name, number, saved_step
):
  """The run ends within three steps, and goes on as if nothing was."""
  recipe, workdir = unbroken[0], tmp_path / 'run'
  original, calls = getattr(target, name), []

  def interrupting(*arguments, **options):
    calls.append(1)
    if len(calls) == number:
      os.kill(os.getpid(), signal.SIGTERM)
    return original(*arguments, **options)

  with monkeypatch.context() as patch:
    patch.setattr(target, name, interrupting)
    code, _, err = main('--config', recipe, '--workdir', workdir)
  assert code == 75, err
  [saved] = re.findall(r'saved step (\d+)', err)
  assert saved_step <= int(saved) <= saved_step + 3
  assert_ends_alike(recipe, workdir, unbroken)

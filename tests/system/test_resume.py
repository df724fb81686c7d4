"""A run that is killed ends as the unbroken one, bit for bit."""

import itertools
import random
import re
import shutil
import signal
import subprocess
import time

import pytest

from alexnet_jax.errors import Interrupted
from alexnet_jax.training import accounting
from alexnet_jax.training import checkpoint
from alexnet_jax.training import writers
from tests.some_slow import some_slow
from tests.system import commands
from tests.system.together import last_step
from tests.system.together import RECIPE as SHORT
from tests.system.together import timeless

# 60 steps of 8 in epochs of 12: kills fall into several epochs. The threshold
# makes two plateau drops.
RECIPE = {**SHORT, 'num_steps': 60, 'histogram_every_evals': 2}


@pytest.fixture(scope='module')
def unbroken(tmp_path_factory):
  """(recipe, result, history) of the run that nothing disturbs."""
  folder = tmp_path_factory.mktemp('unbroken')
  recipe = commands.write_recipe(folder, **RECIPE)
  result = commands.train(recipe, folder / 'run')
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


def assert_ends_alike(recipe, workdir, unbroken_run):
  _, expected, history = unbroken_run
  result = commands.train(recipe, workdir)
  assert result['state_digest'] == expected['state_digest']
  assert result['eval/loss'] == expected['eval/loss']
  assert timeless(workdir) == history


@pytest.mark.parametrize(
  ('seed', 'num_kills'),
  some_slow([(0, 2), *((seed, 5) for seed in range(1, 5))], quick=[(0, 2)]),
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
      wait_for_step(process, workdir, 10 * kills + rng.randrange(12))
      time.sleep(rng.uniform(0, 0.1))
    process.kill()
    process.communicate()
    kills += 1
    if process.returncode != -signal.SIGKILL:  # it was done before
      shutil.rmtree(workdir)
      kills = 0
  assert_ends_alike(recipe, workdir, unbroken)


@pytest.mark.parametrize('num_kills', some_slow([3, 10], quick=[3]))
def test_the_time_of_killed_processes_adds_up(tmp_path, num_kills):
  """Each is killed some time after its first steps."""
  changes = {'num_steps': 2000, 'eval_every_steps': 500, 'log_every_steps': 1}
  recipe = commands.write_recipe(tmp_path, **changes, save_every_steps=30)
  workdir, rng = tmp_path / 'run', random.Random(3)
  for kill in range(num_kills):
    process = start(recipe, workdir)
    wait_for_step(process, workdir, 40 * kill + 1)
    time.sleep(rng.uniform(0, 0.2))
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
  lines = writers.read_rows(workdir, accounting.TIMES_FILE)
  assert len(lines) == num_kills
  process = start(recipe, workdir)
  wait_for_step(process, workdir, 40 * num_kills + 1)
  process.terminate()
  process.communicate()
  lines = writers.read_rows(workdir, accounting.TIMES_FILE)
  again = sum(
    one['step'] - other['first_step']
    for one, other in itertools.pairwise(lines)
  )
  assert [line['ended'] for line in lines] == [0] * num_kills + [1]
  seconds = accounting.account(workdir)
  assert again > 0
  assert 0 < seconds['repeated'] < seconds['train'] + seconds['repeated']


NUMBERS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL)


@pytest.mark.slow
@pytest.mark.timeout(1500)  # it starts 22 processes, on slow machines, too
def test_twenty_signals_and_a_reader_that_leaves(tmp_path):
  """There is no evaluation on the way that would look for signals."""
  changes = {'num_steps': 6000, 'eval_every_steps': 6000}
  changes['save_every_steps'] = 50
  recipe = commands.write_recipe(tmp_path, **{**RECIPE, **changes})
  whole, workdir = tmp_path / 'whole', tmp_path / 'run'
  expected = commands.train(recipe, whole)
  rng, saved = random.Random(7), 0
  for count in range(20):
    number = NUMBERS[count % len(NUMBERS)]
    process = start(recipe, workdir, stderr=subprocess.STDOUT)
    begun = last_step(workdir)
    if count % 2:
      process.stdout.readline()
    process.stdout.close()
    wait_for_step(process, workdir, begun + rng.randrange(3, 60))
    before = last_step(workdir)
    process.send_signal(number)
    assert process.wait(300) == (-9 if number == signal.SIGKILL else 75)
    step, _ = checkpoint.read_newest(workdir)
    assert step >= (saved if number == signal.SIGKILL else before)
    saved = step
  assert saved < 6000
  assert_ends_alike(recipe, workdir, (recipe, expected, timeless(whole)))


@pytest.mark.parametrize('name', ['optax.lion', 'optax.adamw'])
def test_an_optimizer_of_optax_goes_on(tmp_path, name):
  """With everything else that only some runs have."""
  changes = {
    'optimizer__name': name,
    'optimizer__learning_rate': 1e-3,
    'optimizer__arguments': (('mask', 'kernels'), ('weight_decay', 0.1)),
    'optimizer__clip_norm': 0.5,
    'loss__class_weights': (0.5, 1.0, 3.0, 2.0)
    if name == 'optax.lion'
    else ('balanced',),
    'schedule__name': 'one_cycle',
  }
  plain = {k: v for k, v in SHORT.items() if not k.startswith('schedule')}
  recipe = commands.write_recipe(tmp_path, **plain, **changes)

  def interrupt(step, values):
    if step == 20:
      raise Interrupted('SIGTERM')

  whole = commands.train_here(recipe, tmp_path / 'whole')
  with pytest.raises(Interrupted):
    commands.train_here(recipe, tmp_path / 'run', on_evaluation=interrupt)
  again = commands.train_here(recipe, tmp_path / 'run')
  assert again['state_digest'] == whole['state_digest']
  assert timeless(tmp_path / 'run') == timeless(tmp_path / 'whole')
  assert 'train/objective' in timeless(tmp_path / 'run')[0]


INTERRUPT_AT = """
import os, signal, sys
from alexnet_jax import main
from alexnet_jax.{module} import {cls} as target

original, calls = target.{name}, 0

def interrupting(*arguments, **options):
  global calls
  calls += 1
  if calls == {call}:
    os.kill(os.getpid(), signal.SIGTERM)
  return original(*arguments, **options)

target.{name} = interrupting
sys.exit(main.main({arguments!r}))
"""


@pytest.mark.parametrize(
  ('module', 'cls', 'name', 'call', 'saved_step'),
  some_slow(
    [
      # Between evaluations, at 20 and 30, and saves, at 21 and 28.
      ('training.parallel', 'DeviceBatches', 'take', 23, 23),
      ('training', 'measure', 'evaluate', 2, 20),
      ('training', 'measure', 'evaluate', 6, 60),  # at the end, made again
      ('training.checkpoint', 'Checkpoints', 'save', 2, 10),
      ('training.checkpoint', 'Checkpoints', 'restore_newest', 1, 0),
      ('training', 'step', 'loss_and_grads', 1, 1),  # while it compiles
    ],
    quick=[('training.parallel', 'DeviceBatches', 'take', 23, 23)],
  ),
)
def test_sigterm_at_a_chosen_moment(
  unbroken, tmp_path, module, cls, name, call, saved_step
):
  """The run ends within three steps, and goes on as if nothing was."""
  recipe, workdir = unbroken[0], tmp_path / 'run'
  arguments = ['--config', str(recipe), '--workdir', str(workdir), '--json']
  program = INTERRUPT_AT.format(
    module=module, cls=cls, name=name, call=call, arguments=arguments
  )
  code, _, err = commands.run(commands.MAIN[0], '-c', program)
  assert code == 75, err
  [step] = re.findall(r'saved step (\d+)', err)
  assert saved_step <= int(step) <= saved_step + 3
  assert_ends_alike(recipe, workdir, unbroken)

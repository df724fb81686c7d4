"""A run goes on with other processes and devices, and survives kills of any."""

import random
import re
import shutil
import signal
import time

import pytest

from tests.system import commands, together

pytestmark = pytest.mark.slow
RECIPE = {**together.RECIPE, 'num_steps': 150, 'model__norm': 'batch'}
SAVE_EVERY = 20  # steps
# Long enough that kills hit its middle.
LONG_RECIPE = {
  **RECIPE,
  'num_steps': 300,
  'data__synthetic_examples': 300,
  'save_every_steps': SAVE_EVERY,
  'eval_every_steps': 40,
}
KILLS = 6


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
  return commands.write_recipe(tmp_path_factory.mktemp('recipe'), **RECIPE)


@pytest.fixture(scope='module')
def unbroken(recipe, tmp_path_factory):
  """The folder of two processes that nothing disturbs."""
  workdir = tmp_path_factory.mktemp('unbroken') / 'run'
  together.train(recipe, workdir, 2)
  return workdir


def test_a_run_goes_on_with_other_processes(recipe, unbroken, tmp_path):
  """Interrupted in the middle of an epoch, in (processes, devices of each)."""
  workdir = tmp_path / 'run'
  for number, (count, devices) in enumerate([(2, 2), (1, 8)], 1):
    processes = together.start(recipe, workdir, count, devices=devices)
    together.wait_for_row(processes, workdir, 15 * number)
    processes[-1].terminate()
    errors = together.finish_with(75, processes)
    assert 'interrupted by SIGTERM' in errors[-1]
    assert count == 1 or 'by a signal to another process' in errors[0]
  processes = together.start(recipe, workdir, 4)
  errors = together.finish_with(0, processes)
  assert 'processes 1 -> 4' in errors[0]
  assert 'devices 8 -> 4' in errors[0]
  together.assert_same_run(workdir, unbroken)


def newest_step(workdir):
  """Returns the step of the newest complete checkpoint, or 0."""
  names = [path.name for path in workdir.glob('checkpoints/*')]
  return max((int(name) for name in names if name.isdigit()), default=0)


def wait(processes, workdir, moment, rng):
  """Waits for a random moment of a kind, or the end of the run."""
  # The rows of a run that goes on are those up to its checkpoint at first.
  step = together.last_step(workdir) + rng.randrange(3, 30)
  end = time.monotonic() + rng.uniform(0.3, 7)

  def is_there():
    if moment == 'start-up':
      return time.monotonic() > end
    saves = workdir.glob('checkpoints/*.orbax-checkpoint-tmp')
    under_way = together.last_step(workdir) >= step
    return under_way and (moment == 'steps' or any(saves))

  while processes[0].poll() is None and not is_there():
    time.sleep(0.002)


def kill_one(recipe, workdir, moment, rng) -> bool:
  """One start and one kill; returns True if the run was done before."""
  known = newest_step(workdir)
  processes = together.start(recipe, workdir, 2, '--start_timeout', 90)
  number = rng.choice([signal.SIGKILL, signal.SIGTERM])
  victim = rng.randrange(2)
  wait(processes, workdir, moment, rng)
  processes[victim].send_signal(number)
  ended = together.finish(processes)
  code, (other, _, errors) = ended[victim][0], ended[1 - victim]
  # A signal may come before there is a handler for it.
  lost = (75, -signal.SIGABRT, 0)
  assert code in (*lost, -number), ended
  # 2: the victim was gone before they met.
  assert other in lost or 'did not find each other' in errors, ended
  assert all('Traceback' not in err for _, _, err in ended), ended
  # A checkpoint that was complete at the start is not passed over.
  for step in re.findall(r'goes on from checkpoint (\d+)', ended[0][2]):
    assert int(step) >= known, ended
  # A save is written while training goes on; the next one waits for it. So the
  # newest complete one is the last that was begun or the one before it.
  begun = [0, 0, *range(SAVE_EVERY, together.last_step(workdir), SAVE_EVERY)]
  assert newest_step(workdir) >= begun[-2]
  return ended[0][0] == 0


@pytest.mark.timeout(1800)
def test_torture(tmp_path):
  """Kills at random moments end in the state of the unbroken run."""
  recipe = commands.write_recipe(tmp_path, **LONG_RECIPE)
  workdir, unbroken = tmp_path / 'run', tmp_path / 'unbroken'
  wanted = together.train(recipe, unbroken, 2)
  rng, kills = random.Random(5), 0

  def assert_ends_alike():
    result = together.train(recipe, workdir, 2)
    assert result['state_digest'] == wanted['state_digest']
    assert together.timeless(workdir) == together.timeless(unbroken)

  while kills < KILLS:
    moment = ('start-up', 'save', 'steps')[kills % 3]
    if kill_one(recipe, workdir, moment, rng):  # too soon: once more
      assert_ends_alike()
      shutil.rmtree(workdir)
    else:
      kills += 1
  assert_ends_alike()

"""A run goes on with other processes and devices, and survives kills of any."""

import random
import shutil
import signal
import time

import pytest

from alexnet_jax.training import writers
from tests.system import commands
from tests.system import together
from tests.system.test_processes import assert_same_numbers
from tests.system.test_processes import wait_for_row

pytestmark = pytest.mark.slow
# Batch norm adds statistics to the state, dropout draws masks; epochs end in
# the middle of a batch; saves and evaluations fall on different steps.
RECIPE = {
  'num_steps': 60,
  'data__synthetic_examples': 100,
  'save_every_steps': 7,
  'eval_every_steps': 10,
  'log_every_steps': 3,
  'schedule__threshold': 10.0,
  'schedule__patience': 2,
  'schedule__factor': 0.5,
  'model__norm': 'batch',
}
# Long enough that kills hit its middle.
LONG_RECIPE = {
  **RECIPE,
  'num_steps': 300,
  'data__synthetic_examples': 300,
  'save_every_steps': 20,
  'eval_every_steps': 40,
}
SAVES = range(0, 301, 20)


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
  return commands.write_recipe(tmp_path_factory.mktemp('recipe'), **RECIPE)


@pytest.fixture(scope='module')
def unbroken(recipe, tmp_path_factory):
  """(workdir, result) of two processes that nothing disturbs."""
  workdir = tmp_path_factory.mktemp('unbroken') / 'run'
  return workdir, together.train(recipe, workdir, 2)


@pytest.fixture(scope='module')
def long_recipe(tmp_path_factory):
  folder = tmp_path_factory.mktemp('long')
  return commands.write_recipe(folder, **LONG_RECIPE)


def interrupt(recipe, workdir, count, devices, step):
  """Starts a run, and ends it after a step, in the middle of an epoch."""
  processes = together.start(recipe, workdir, count, devices=devices)
  wait_for_row(processes, workdir, step)
  processes[-1].terminate()
  ended = together.finish(processes)
  assert [code for code, _, _ in ended] == [75] * count, ended
  return ended[0][2]


@pytest.mark.parametrize(
  'topologies',
  [
    [(2, 1), (1, 1), (4, 1)],
    [(1, 4), (2, 2), (1, 8)],
  ],
)
def test_a_run_goes_on_with_other_processes(
  recipe, unbroken, tmp_path, topologies
):
  workdir = tmp_path / 'run'
  last = topologies[-1]
  for number, (count, devices) in enumerate(topologies[:-1], 1):
    interrupt(recipe, workdir, count, devices, 15 * number)
  ended = together.finish(
    together.start(recipe, workdir, last[0], devices=last[1])
  )
  assert [code for code, _, _ in ended] == [0] * last[0], ended
  before, now = topologies[-2], last
  if before[0] != now[0]:
    assert f'processes {before[0]} -> {now[0]}' in ended[0][2]
  if before[0] * before[1] != now[0] * now[1]:
    assert (
      f'devices {before[0] * before[1]} -> {now[0] * now[1]}' in (ended[0][2])
    )
  assert_same_numbers(workdir, unbroken[0])
  together.assert_close(workdir, unbroken[0])


def saved_steps(workdir):
  """Steps of the complete checkpoints."""
  folder = workdir / 'checkpoints'
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  return sorted(int(name) for name in names if name.isdigit())


def resumed_step(errors):
  """The checkpoint that a start went on from; None if it did not say so."""
  marks = [
    line.rsplit(' ', 1)[1]
    for line in errors.splitlines()
    if line.startswith('goes on from checkpoint')
  ]
  return int(marks[0]) if marks else None


class Torture:
  """Kills random processes of a run at random moments, and keeps account."""

  MOMENTS = ('start-up or compilation', 'a save', 'steps or an evaluation')

  def __init__(self, recipe, workdir, seed):
    self.recipe, self.workdir = recipe, workdir
    self.rng = random.Random(seed)
    self.kills = []  # (signal, process, moment)

  def kill_once(self) -> bool:
    """One start and one kill; returns whether the run was done before."""
    rows = writers.read_rows(self.workdir)
    known = max([0, *saved_steps(self.workdir)])
    processes = together.start(
      *(self.recipe, self.workdir, 2, '--start_timeout', 30)
    )
    number = self.rng.choice([signal.SIGKILL, signal.SIGTERM])
    victim = self.rng.randrange(2)
    moment = self.MOMENTS[len(self.kills) % 3]
    self.wait(processes, moment, rows[-1]['step'] if rows else 0)
    processes[victim].send_signal(number)
    ended = together.finish(processes)
    self.check(ended, victim, number, known)
    if ended[0][0] == 0:
      return True
    self.kills.append((number.name, victim, moment))
    return False

  def wait(self, processes, moment, reached):
    """Until a random moment of that kind, or the end of the run."""
    step = reached + self.rng.randrange(3, 30)
    seconds = self.rng.uniform(0.3, 7)
    start = time.monotonic()
    while processes[0].poll() is None:
      if moment == self.MOMENTS[0] and time.monotonic() - start > seconds:
        return
      # The rows of a run that goes on are those up to its checkpoint at first.
      rows = writers.read_rows(self.workdir)
      under_way = bool(rows) and rows[-1]['step'] >= step
      if moment == self.MOMENTS[1] and under_way and self.saves():
        return
      if moment == self.MOMENTS[2] and under_way:
        time.sleep(self.rng.uniform(0, 0.15))
        return
      time.sleep(0.002)

  def saves(self):
    """Whether a save is being written."""
    return any((self.workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp'))

  def check(self, ended, victim, number, known):
    code, other = ended[victim][0], ended[1 - victim][0]
    # A signal may come before there is a handler for it.
    assert code in (75, 0, -number), ended
    errors = ended[1 - victim][2]
    if other == 2:  # the victim was gone before they met
      assert 'did not find each other within 30 s' in errors
    else:
      assert other in (75, 0), ended
      assert other == 0 or 'the same command goes on' in errors
    assert all('Traceback' not in err for _, _, err in ended), ended
    step = resumed_step(ended[0][2])
    # A checkpoint that was complete at the start is not passed over: what is
    # repeated comes after it.
    assert step is None or step >= known, ended


@pytest.mark.timeout(1800)
def test_torture(long_recipe, tmp_path):
  """Twenty kills at random moments end in the state of the unbroken run."""
  unbroken = tmp_path / 'unbroken'
  wanted = together.train(long_recipe, unbroken, 2)
  torture = Torture(long_recipe, tmp_path / 'run', seed=5)

  def assert_ends_alike():
    result = together.train(long_recipe, torture.workdir, 2)
    assert result['state_digest'] == wanted['state_digest']
    assert together.timeless(torture.workdir) == together.timeless(unbroken)

  while len(torture.kills) < 20:
    if torture.kill_once():  # it was done too soon: once more
      assert_ends_alike()
      shutil.rmtree(torture.workdir)
  assert_ends_alike()
  print('\n'.join(map(str, torture.kills)))


def test_no_more_than_a_save_interval_is_lost(long_recipe, tmp_path):
  """A kill costs what came after the newest save that was complete.

  A save is written while training goes on; the next one waits for it. So the
  newest complete one is the last that was begun or the one before it.
  """
  rng = random.Random(3)
  workdir = tmp_path / 'run'
  for number in range(5):
    processes = together.start(long_recipe, workdir, 2)
    wait_for_row(processes, workdir, 50 * number + 23)
    time.sleep(rng.uniform(0, 0.1))
    processes[rng.randrange(2)].kill()
    together.finish(processes)
    reached = writers.read_rows(workdir)[-1]['step']
    begun = [step for step in SAVES if step < reached]  # there is a row after
    newest = max([0, *saved_steps(workdir)])
    assert newest >= begun[-min(2, len(begun))]

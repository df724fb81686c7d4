"""A run goes on with other processes and devices, and survives kills of any."""

import random
import shutil
import signal
import time

import pytest

from alexnet_jax.training import writers
from tests.system import commands
from tests.system import together

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
SAVE_EVERY = 20  # steps
# Long enough that kills hit its middle.
LONG_RECIPE = {
  **RECIPE,
  'num_steps': 300,
  'data__synthetic_examples': 300,
  'save_every_steps': SAVE_EVERY,
  'eval_every_steps': 40,
}
KILLS = 10


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
  return commands.write_recipe(tmp_path_factory.mktemp('recipe'), **RECIPE)


@pytest.fixture(scope='module')
def unbroken(recipe, tmp_path_factory):
  """The folder of two processes that nothing disturbs."""
  workdir = tmp_path_factory.mktemp('unbroken') / 'run'
  together.train(recipe, workdir, 2)
  return workdir


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
  """Interrupted in the middle of an epoch, in (processes, devices of each)."""
  workdir = tmp_path / 'run'
  for number, (count, devices) in enumerate(topologies[:-1], 1):
    processes = together.start(recipe, workdir, count, devices=devices)
    together.wait_for_row(processes, workdir, 15 * number)
    processes[-1].terminate()
    ended = together.finish(processes)
    assert [code for code, _, _ in ended] == [75] * count, ended
  before, (count, devices) = topologies[-2:]
  ended = together.finish(
    together.start(recipe, workdir, count, devices=devices)
  )
  assert [code for code, _, _ in ended] == [0] * count, ended
  assert f'processes {before[0]} -> {count}' in ended[0][2]
  devices_before, devices_now = before[0] * before[1], count * devices
  if devices_before != devices_now:
    assert f'devices {devices_before} -> {devices_now}' in ended[0][2]
  together.assert_same_run(workdir, unbroken)


def saved_steps(workdir):
  """Returns the steps of the complete checkpoints."""
  folder = workdir / 'checkpoints'
  names = [path.name for path in folder.iterdir()] if folder.is_dir() else []
  return sorted(int(name) for name in names if name.isdigit())


def resumed_step(errors):
  """Returns the checkpoint that a start went on from, if any."""
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
    """Waits for a random moment of that kind, or the end of the run."""
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
    """Returns True while a save is being written."""
    return any((self.workdir / 'checkpoints').glob('*.orbax-checkpoint-tmp'))

  def check(self, ended, victim, number, known):
    code, other = ended[victim][0], ended[1 - victim][0]
    # A signal may come before there is a handler for it.
    lost = (75, -signal.SIGABRT)
    assert code in (*lost, 0, -number), ended
    errors = ended[1 - victim][2]
    if other == 2:  # the victim was gone before they met
      assert 'did not find each other within 30 s' in errors
    else:
      assert other in (*lost, 0), ended
      assert other != 75 or 'the same command goes on' in errors
    assert all('Traceback' not in err for _, _, err in ended), ended
    step = resumed_step(ended[0][2])
    # A checkpoint that was complete at the start is not passed over: what is
    # repeated comes after it.
    assert step is None or step >= known, ended
    # A save is written while training goes on; the next one waits for it. So
    # the newest complete one is the last that was begun or the one before it.
    rows = writers.read_rows(self.workdir)
    reached = rows[-1]['step'] if rows else 0
    begun = [0, 0, *range(SAVE_EVERY, reached, SAVE_EVERY)]
    assert max([0, *saved_steps(self.workdir)]) >= begun[-2]


@pytest.mark.timeout(1800)
def test_torture(tmp_path):
  """Kills at random moments end in the state of the unbroken run."""
  recipe = commands.write_recipe(tmp_path, **LONG_RECIPE)
  unbroken = tmp_path / 'unbroken'
  wanted = together.train(recipe, unbroken, 2)
  torture = Torture(recipe, tmp_path / 'run', seed=5)

  def assert_ends_alike():
    result = together.train(recipe, torture.workdir, 2)
    assert result['state_digest'] == wanted['state_digest']
    assert together.timeless(torture.workdir) == together.timeless(unbroken)

  while len(torture.kills) < KILLS:
    if torture.kill_once():  # it was done too soon: once more
      assert_ends_alike()
      shutil.rmtree(torture.workdir)
  assert_ends_alike()
  print('\n'.join(map(str, torture.kills)))

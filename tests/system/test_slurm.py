"""launch/slurm.sh on two nodes: it trains, and comes back only if it should."""

import contextlib
import json
import os
import pathlib
import signal
import sys
import time

import pytest

from tests.flags import fake_devices
from tests.system import commands, slurm, together

pytestmark = pytest.mark.slow

SCRIPT = commands.ROOT / 'launch' / 'slurm.sh'
# Steps enough that a signal comes before their end, however slow SLURM is.
SHORT = {'num_steps': 300, 'save_every_steps': 25}
ENDS = ('COMPLETED', 'FAILED', 'CANCELLED', 'TIMEOUT')


@pytest.fixture(scope='module')
def cluster():
  with slurm.cluster() as one:
    yield one


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
  return commands.write_recipe(tmp_path_factory.mktemp('recipe'), **SHORT)


@pytest.fixture(scope='module')
def unbroken(cluster, recipe, tmp_path_factory):
  """The result of the job that nothing disturbs."""
  job = Job(cluster, tmp_path_factory.mktemp('unbroken'), recipe)
  assert job.wait('COMPLETED')['NumNodes'] == '2'
  assert '2 processes, 2 devices' in job.out()
  return job.result()


class Job:
  """A job of launch/slurm.sh on two nodes, with one device in each task."""

  def __init__(self, cluster, folder, recipe, *arguments, **variables):
    self._cluster, self._out = cluster, folder / 'out'
    self.workdir = folder / 'run'
    self.id = cluster.call(
      *('sbatch', '--parsable', '--nodes=2', f'--output={self._out}', SCRIPT),
      *('--config', recipe, '--workdir', self.workdir, '--json'),
      *('--heartbeat_timeout', 10, *arguments),
      PYTHON=sys.executable,
      **fake_devices(1),
      **variables,
    )

  def out(self) -> str:
    return self._out.read_text() if self._out.exists() else ''

  def wait(self, *states) -> dict[str, str]:
    """Waits for the job's end, which must be one of the states."""
    found = self._cluster.wait(self.id, *ENDS)
    assert found['JobState'] in states, self.out()
    return found

  def wait_for_step(self, step) -> None:
    end = time.monotonic() + 120
    while together.last_step(self.workdir) < step:
      assert time.monotonic() < end, self.out()
      time.sleep(0.02)

  def result(self) -> dict:
    """Returns the only line of --json."""
    lines = [line for line in self.out().splitlines() if line[:1] == '{']
    assert len(lines) == 1, self.out()
    return json.loads(lines[0])

  def kill_task(self, index) -> None:
    """Sends SIGKILL to one task, as the kernel does for want of memory."""
    marks = {f'SLURM_JOB_ID={self.id}', f'SLURM_PROCID={index}'}
    found = []
    for folder in pathlib.Path('/proc').glob('[0-9]*'):
      with contextlib.suppress(OSError):  # of one that has just ended
        command, environment = (
          set((folder / name).read_text(errors='replace').split('\0'))
          for name in ('cmdline', 'environ')
        )
        if 'alexnet_jax.main' in command and marks <= environment:
          found.append(int(folder.name))
    (number,) = found
    os.kill(number, signal.SIGKILL)


def test_an_interrupted_job_goes_on_by_itself(
  cluster, recipe, unbroken, tmp_path
):
  job = Job(cluster, tmp_path, recipe)
  job.wait_for_step(40)
  cluster.call('scancel', '--signal=TERM', job.id)
  found = job.wait('COMPLETED')
  assert found['Restarts'] == '1'
  before, after = job.out().split('launch/slurm.sh: restart 1 follows')
  assert 'interrupted by SIGTERM' in before
  saved = int(before.split('saved step ')[1].split()[0].rstrip(',;:.'))
  assert 40 <= saved < SHORT['num_steps']
  assert f'from step {saved} ' in after
  assert job.result()['state_digest'] == unbroken['state_digest']


def test_a_job_whose_task_is_killed_goes_on_by_itself(
  cluster, recipe, unbroken, tmp_path
):
  job = Job(cluster, tmp_path, recipe)
  job.wait_for_step(40)
  job.kill_task(1)
  found = job.wait('COMPLETED')
  assert found['Restarts'] == '1'
  before, after = job.out().split('launch/slurm.sh: restart 1 follows')
  assert 'Killed' in before
  assert 'from step 0' in before
  assert 'from step 0' not in after
  assert job.result()['state_digest'] == unbroken['state_digest']


def test_a_cancelled_job_saves_and_stays_away(cluster, recipe, tmp_path):
  job = Job(cluster, tmp_path, recipe)
  job.wait_for_step(40)
  cluster.call('scancel', job.id)
  # One that comes back is PENDING at first.
  found = cluster.wait(job.id, *ENDS, 'PENDING')
  assert found['JobState'] == 'CANCELLED'
  assert found['Restarts'] == '0'
  assert 'saved step' in job.out()
  assert 'restart 1 follows' not in job.out()


def test_a_job_does_not_restart_for_ever(cluster, recipe, tmp_path):
  job = Job(cluster, tmp_path, recipe, MAX_RESTARTS='0')
  job.wait_for_step(40)
  cluster.call('scancel', '--signal=TERM', job.id)
  found = job.wait('FAILED')
  assert (found['ExitCode'], found['Restarts']) == ('75:0', '0')
  assert '0 restarts are enough' in job.out()


def test_what_the_user_must_fix_fails_at_once(cluster, recipe, tmp_path):
  job = Job(cluster, tmp_path, recipe, '--config.optimizer.name=none')
  found = job.wait('FAILED')
  assert (found['ExitCode'], found['Restarts']) == ('2:0', '0')
  assert 'optimizer.name' in job.out()

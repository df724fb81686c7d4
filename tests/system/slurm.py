"""A SLURM cluster of two nodes on this machine, for as long as a test lasts."""

from collections.abc import Iterator
import contextlib
import os
import pathlib
import secrets
import shutil
import socket
import subprocess
import tempfile
import time

import pytest

from tests.system import commands

NEEDED = ('munged', 'slurmctld', 'slurmd', 'sbatch', 'srun', 'unshare')

# Two daemons for one host, without cgroups. A requeued job waits as long as a
# credential lives, and then for the scheduler.
CONF = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerType=sched/builtin
SchedulerParameters=sched_interval=2
ReturnToService=2
SlurmdParameters=config_overrides
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool_%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/%n.log
NodeName=n1 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1]} CPUs=1
NodeName=n2 NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[2]} CPUs=1
PartitionName=all Nodes=n1,n2 Default=YES State=UP
"""

# Whatever ends the tests, even SIGKILL, ends the daemons and all jobs.
IN_NAMESPACES = (
  *('setpriv', '--pdeathsig', 'KILL'),
  *('unshare', '--mount', '--pid', '--mount-proc', '--kill-child'),
)

# The first process of its own PID namespace: all the others end with it. In
# its mount namespace, and so in every job, n1 and n2 have an address.
DAEMONS = """\
set -e
mount --bind {folder}/hosts /etc/hosts
munged --foreground --force --socket={folder}/munge.socket \\
  --key-file={folder}/munge.key --pid-file={folder}/munge.pid \\
  --seed-file={folder}/munge.seed --log-file={folder}/munge.log &
until [ -S {folder}/munge.socket ]; do sleep 0.05; done
slurmctld -D &
slurmd -D -N n1 &
slurmd -D -N n2 &
wait
"""


class Cluster:
  """A cluster that is up, and SLURM's commands in it."""

  def __init__(self, folder: pathlib.Path):
    self.folder = folder
    self.env = {'SLURM_CONF': str(folder / 'slurm.conf')}

  def call(self, *arguments, check=True, **variables) -> str:
    """Runs a command of SLURM; returns its output."""
    code, out, err = commands.run(*arguments, env=self.env | variables)
    assert code == 0 or not check, err
    return out.strip()

  def submit(self, *arguments, **variables) -> str:
    """Submits a job; returns its id."""
    return self.call('sbatch', '--parsable', *arguments, **variables)

  def job(self, job: str) -> dict[str, str]:
    """Returns what the controller knows about a job."""
    text = self.call('scontrol', 'show', 'job', '--oneliner', job)
    return dict(pair.split('=', 1) for pair in text.split() if '=' in pair)

  def wait(self, job: str, *states: str, timeout: float = 240) -> dict:
    """Waits until a job is in one of the states."""
    end = time.monotonic() + timeout
    while (found := self.job(job))['JobState'] not in states:
      assert time.monotonic() < end, found
      time.sleep(0.2)
    return found


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
  """Starts the daemons, waits for both nodes, and finally ends everything."""
  _skip_unless_possible()
  # The paths of sockets must be short, which pytest's folders are not.
  folder = pathlib.Path(tempfile.mkdtemp(prefix='slurm_'))
  result = Cluster(folder)
  try:
    _write_files(folder)
    with _daemons(result) as daemons:
      _wait_for_nodes(result, daemons)
      yield result
  finally:
    shutil.rmtree(folder)


def _skip_unless_possible():
  missing = [name for name in NEEDED if not shutil.which(name)]
  if missing:
    pytest.skip(
      f'no {", ".join(missing)}: apt-get install slurm-wlm munge (as root)'
    )
  namespaces = subprocess.run(
    ['unshare', '--mount', '--pid', '--fork', 'true'],
    capture_output=True,
    check=False,
  )
  if namespaces.returncode:
    pytest.skip('daemons in namespaces of their own need root')


def _write_files(folder):
  host = socket.gethostname().split('.')[0]
  folder.chmod(0o755)  # munged wants its socket to be reachable by everyone
  (folder / 'state').mkdir()
  (folder / 'slurm.conf').write_text(
    CONF.format(folder=folder, host=host, ports=_free_ports(3))
  )
  (folder / 'hosts').write_text(f'127.0.0.1 localhost n1 n2 {host}\n')
  key = folder / 'munge.key'
  key.touch(mode=0o600)
  key.write_bytes(secrets.token_bytes(128))


def _free_ports(count):
  with contextlib.ExitStack() as stack:
    sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
    for one in sockets:
      one.bind(('127.0.0.1', 0))
    return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def _daemons(cluster):
  script = DAEMONS.format(folder=cluster.folder)
  with (cluster.folder / 'daemons.log').open('w') as log:
    process = subprocess.Popen(
      [*IN_NAMESPACES, 'bash', '-c', script],
      env=os.environ | cluster.env,
      stdin=subprocess.DEVNULL,
      stdout=log,
      stderr=log,
    )
  try:
    yield process
  finally:
    process.kill()
    process.wait()


def _wait_for_nodes(cluster, daemons):
  states = ('sinfo', '--noheader', '--Node', '--format=%T')
  end = time.monotonic() + 60
  while cluster.call(*states, check=False).split() != ['idle', 'idle']:
    log = (cluster.folder / 'daemons.log').read_text()
    assert daemons.poll() is None, log
    assert time.monotonic() < end, log
    time.sleep(0.2)

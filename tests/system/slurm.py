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

from tests.system import commands, namespaces

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

  def wait(self, job: str, *states: str, timeout: float = 240) -> dict:
    """Waits for one of the states; returns what the controller knows."""
    end = time.monotonic() + timeout
    while True:
      text = self.call('scontrol', 'show', 'job', '--oneliner', job)
      found = dict(pair.split('=', 1) for pair in text.split() if '=' in pair)
      if found['JobState'] in states:
        return found
      assert time.monotonic() < end, found
      time.sleep(0.2)


@contextlib.contextmanager
def cluster() -> Iterator[Cluster]:
  """Starts the daemons, waits for both nodes, and finally ends everything."""
  packages = 'slurm-wlm munge (as root)'
  namespaces.skip_unless_possible(NEEDED, packages, '--mount', '--pid')
  # The paths of sockets must be short, which pytest's folders are not.
  folder = pathlib.Path(tempfile.mkdtemp(prefix='slurm_'))
  result = Cluster(folder)
  try:
    _write_files(folder)
    with (folder / 'daemons.log').open('w') as log:
      daemons = subprocess.Popen(
        [*IN_NAMESPACES, 'bash', '-c', DAEMONS.format(folder=folder)],
        env=os.environ | result.env,
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
      )
    try:
      _wait_for_nodes(result, daemons)
      yield result
    finally:
      daemons.kill()
      daemons.wait()
  finally:
    # A daemon that is ending may write until its namespace is gone.
    shutil.rmtree(folder, ignore_errors=True)


def _write_files(folder):
  host = socket.gethostname().split('.')[0]
  folder.chmod(0o755)  # munged wants its socket to be reachable by everyone
  (folder / 'state').mkdir()
  with contextlib.ExitStack() as stack:  # three ports at a time: all differ
    bound = [
      stack.enter_context(socket.create_server(('127.0.0.1', 0)))
      for _ in range(3)
    ]
    ports = [one.getsockname()[1] for one in bound]
  conf = CONF.format(folder=folder, host=host, ports=ports)
  (folder / 'slurm.conf').write_text(conf)
  (folder / 'hosts').write_text(f'127.0.0.1 localhost n1 n2 {host}\n')
  key = folder / 'munge.key'
  key.touch(mode=0o600)
  key.write_bytes(secrets.token_bytes(128))


def _wait_for_nodes(cluster, daemons):
  states = ('sinfo', '--noheader', '--Node', '--format=%T')
  end = time.monotonic() + 120
  while cluster.call(*states, check=False).split() != ['idle', 'idle']:
    log = (cluster.folder / 'daemons.log').read_text()
    assert daemons.poll() is None, log
    assert time.monotonic() < end, log
    time.sleep(0.2)

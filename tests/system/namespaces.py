"""Two hosts on this machine: network namespaces with a wire in between."""

from collections.abc import Iterator
import contextlib
import dataclasses
import os
import pathlib
import shutil
import subprocess

import pytest

from tests.system import commands

HOSTS_FOLDER = pathlib.Path('/etc/netns')  # where `ip netns exec` looks
WIRE = 'wire'  # the name of the network device in both
# Replaced by the command, so that signals reach that.
NAMED = ('unshare', '--uts', 'sh', '-c', 'hostname "$0" && exec "$@"')


@dataclasses.dataclass(frozen=True)
class Host:
  """A network namespace with a name and an address of its own."""

  namespace: str
  name: str
  address: str

  def start(self, *arguments, **options) -> subprocess.Popen:
    """Starts a command on this host; see `commands.start`."""
    return commands.start(
      *('ip', 'netns', 'exec', self.namespace, *NAMED, self.name, *arguments),
      **options,
    )

  def set_wire(self, state: str) -> None:
    """Cuts the wire, `down`, or mends it, `up`; nobody is told."""
    ip('-netns', self.namespace, 'link', 'set', WIRE, state)


@contextlib.contextmanager
def two_hosts() -> Iterator[list[Host]]:
  """Makes two hosts that find each other by name, and nobody else."""
  programs = ('ip', 'unshare')
  skip_unless_possible(programs, 'iproute2', '--net', '--mount', '--uts')
  hosts = [
    Host(f'alexnet_{os.getpid()}_{i}', f'host-{i}', f'10.77.0.{i + 1}')
    for i in range(2)
  ]
  with contextlib.ExitStack() as stack:
    for host in hosts:
      stack.enter_context(_namespace(host, hosts))
    one, other = hosts
    ip(
      *('link', 'add', WIRE, 'netns', one.namespace),
      *('type', 'veth', 'peer', 'name', WIRE, 'netns', other.namespace),
    )
    for host in hosts:
      inside = ('-netns', host.namespace)
      ip(*inside, 'address', 'add', f'{host.address}/24', 'dev', WIRE)
      ip(*inside, 'link', 'set', 'lo', 'up')
      host.set_wire('up')
    yield hosts


def ip(*arguments) -> None:
  subprocess.run(['ip', *arguments], check=True)


def skip_unless_possible(programs, packages: str, *namespaces: str) -> None:
  """Skips the test without these programs, or the right to new namespaces."""
  if missing := [name for name in programs if not shutil.which(name)]:
    pytest.skip(f'no {", ".join(missing)}: apt-get install {packages}')
  command = ['unshare', '--fork', *namespaces, 'true']
  if subprocess.run(command, capture_output=True, check=False).returncode:
    pytest.skip(f'namespaces need root: {" ".join(command)}')


@contextlib.contextmanager
def _namespace(host, hosts):
  """Makes a host's network namespace; its end removes the devices in it."""
  folder = HOSTS_FOLDER / host.namespace
  made_parent = not HOSTS_FOLDER.exists()
  folder.mkdir(parents=True)
  try:
    names = [f'{one.address} {one.name}\n' for one in hosts]
    (folder / 'hosts').write_text('127.0.0.1 localhost\n' + ''.join(names))
    ip('netns', 'add', host.namespace)
    try:
      yield
    finally:
      ip('netns', 'delete', host.namespace)
  finally:
    shutil.rmtree(folder)
    if made_parent:
      with contextlib.suppress(OSError):  # another test uses it by now
        HOSTS_FOLDER.rmdir()

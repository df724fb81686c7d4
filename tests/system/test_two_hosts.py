"""One run across two hosts, and what a cut wire does to it."""

import sys
import time

import pytest

from tests.flags import fake_devices
from tests.system import commands
from tests.system import namespaces
from tests.system import together

pytestmark = pytest.mark.slow

PORT = 12321  # of the coordinator: nobody else is in the namespaces
BOUND = 150  # seconds until both hosts know that the wire is cut
RECIPE = {'num_steps': 400, 'save_every_steps': 7, 'log_every_steps': 3}
NO_PROXIES = dict.fromkeys(('grpc_proxy', 'http_proxy'), 'http://127.0.0.1:9')
# Runs a command on this machine under a name that has no address.
NAMELESS = ('unshare', '--uts', 'sh', '-c')
NAMELESS += ('hostname nowhere.invalid && exec "$@"', 'sh')


@pytest.fixture
def hosts():
  with namespaces.two_hosts() as two:
    yield two


@pytest.fixture
def nameless():
  programs = ('unshare', 'hostname')
  namespaces.skip_unless_possible(programs, 'util-linux', '--uts')


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
  return commands.write_recipe(tmp_path_factory.mktemp('recipe'), **RECIPE)


@pytest.fixture(scope='module')
def unbroken(recipe, tmp_path_factory):
  """The result of two processes on loopback that nothing disturbs."""
  return together.train(recipe, tmp_path_factory.mktemp('loopback') / 'run', 2)


def start(hosts, recipe, workdir):
  """Starts a process with one device on each host; the first coordinates."""
  address = f'{hosts[0].name}:{PORT}'
  return [
    host.start(
      *commands.MAIN,
      *together.arguments(recipe, workdir, address, index, len(hosts)),
      env=fake_devices(1),
    )
    for index, host in enumerate(hosts)
  ]


def test_a_short_cut_changes_nothing(hosts, recipe, unbroken, tmp_path):
  processes = start(hosts, recipe, tmp_path / 'run')
  together.wait_for_row(processes, tmp_path / 'run', 40)
  hosts[1].set_wire('down')
  time.sleep(together.HEARTBEAT / 4)
  hosts[1].set_wire('up')
  result = together.result(together.finish(processes))
  assert result['state_digest'] == unbroken['state_digest']


def test_a_cut_wire_ends_both_and_mended_they_go_on(
  hosts, recipe, unbroken, tmp_path
):
  workdir = tmp_path / 'run'
  processes = start(hosts, recipe, workdir)
  together.wait_for_row(processes, workdir, 40)
  hosts[0].set_wire('down')
  cut = time.monotonic()
  for code, _, err in together.finish(processes):
    together.assert_lost(code, err)
  assert time.monotonic() - cut < BOUND
  hosts[0].set_wire('up')
  ended = together.finish(start(hosts, recipe, workdir))
  result = together.result(ended)
  errors = ended[0][2]
  assert 'host-0: 1 x cpu' in errors
  assert 'host-1: 1 x cpu' in errors
  assert 'from step 0' not in errors
  assert result['state_digest'] == unbroken['state_digest']


def test_processes_of_one_machine_need_neither_its_proxies_nor_its_name(
  nameless, recipe, tmp_path
):
  code, _, err = commands.run(
    *(*NAMELESS, sys.executable, 'launch/local.py', '--processes', 2),
    *('--devices_per_process', 1, '--', '--start_timeout', 60),
    *('--config', recipe, '--workdir', tmp_path / 'run'),
    '--config.num_steps=2',
    env=NO_PROXIES,
  )
  assert code == 0, err
  assert '2 processes, 2 devices' in err
  assert 'proxy' not in err


def test_a_machine_whose_name_has_no_address_is_named(
  nameless, recipe, tmp_path
):
  address = f'0.0.0.0:{together.free_port()}'
  processes = [
    commands.start(
      *(*NAMELESS, *commands.MAIN),
      *together.arguments(recipe, tmp_path, address, index, 2),
      env=fake_devices(1),
    )
    for index in range(2)
  ]
  for err in together.finish_with(2, processes):
    assert 'cannot find this machine, nowhere.invalid' in err

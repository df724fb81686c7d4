"""One run across two hosts, and what a cut wire does to it."""

import json
import time

import pytest

from tests.flags import fake_devices
from tests.system import commands
from tests.system import namespaces
from tests.system import together
from tests.system.test_processes import wait_for_row

pytestmark = pytest.mark.slow

PORT = 12321  # of the coordinator: nobody else is in the namespaces
HEARTBEAT = 10  # seconds
BOUND = 60  # seconds until both hosts know that the wire is cut
RECIPE = {'num_steps': 160, 'save_every_steps': 7, 'log_every_steps': 3}


@pytest.fixture
def hosts():
  with namespaces.two_hosts() as two:
    yield two


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
  return commands.write_recipe(tmp_path_factory.mktemp('recipe'), **RECIPE)


@pytest.fixture(scope='module')
def unbroken(recipe, tmp_path_factory):
  """The result of two processes on loopback that nothing disturbs."""
  return together.train(recipe, tmp_path_factory.mktemp('loopback') / 'run', 2)


def start(hosts, recipe, workdir):
  """One process with one device on each host; the first one coordinates."""
  return [
    host.start(
      *(*commands.MAIN, '--config', recipe, '--workdir', workdir, '--json'),
      *('--coordinator', f'{hosts[0].name}:{PORT}'),
      *('--process_index', index, '--process_count', len(hosts)),
      *('--heartbeat_timeout', HEARTBEAT),
      env=fake_devices(1),
    )
    for index, host in enumerate(hosts)
  ]


def train(hosts, recipe, workdir):
  """(result, errors of process 0) of a run to its end."""
  ended = together.finish(start(hosts, recipe, workdir))
  assert [code for code, _, _ in ended] == [0, 0], ended
  _, out, err = ended[0]
  return json.loads(out.splitlines()[-1]), err


def test_two_hosts_train_what_one_does(hosts, recipe, unbroken, tmp_path):
  result, err = train(hosts, recipe, tmp_path / 'run')
  assert 'host-0: 1 x cpu' in err
  assert 'host-1: 1 x cpu' in err
  assert result['state_digest'] == unbroken['state_digest']


def test_a_short_cut_is_nothing(hosts, recipe, unbroken, tmp_path):
  workdir = tmp_path / 'run'
  processes = start(hosts, recipe, workdir)
  wait_for_row(processes, workdir, 60)
  hosts[1].unplug()
  time.sleep(HEARTBEAT / 4)
  hosts[1].plug()
  ended = together.finish(processes)
  assert [code for code, _, _ in ended] == [0, 0], ended
  result = json.loads(ended[0][1].splitlines()[-1])
  assert result['state_digest'] == unbroken['state_digest']


def test_a_cut_wire_ends_both_and_mended_they_go_on(
  hosts, recipe, unbroken, tmp_path
):
  workdir = tmp_path / 'run'
  processes = start(hosts, recipe, workdir)
  wait_for_row(processes, workdir, 60)
  hosts[0].unplug()
  cut = time.monotonic()
  for code, _, err in together.finish(processes):
    assert code == 75, err
    assert 'is lost' in err
    assert 'the same command goes on from the newest checkpoint' in err
  assert time.monotonic() - cut < BOUND
  hosts[0].plug()
  result, err = train(hosts, recipe, workdir)
  assert 'from step 0' not in err
  assert result['state_digest'] == unbroken['state_digest']

"""Runs of several processes: the same run, and the same end of all."""

import shutil
import signal
import socket
import time

import pytest

from alexnet_jax.training import checkpoint
from tests.evaluation.conftest import write_splits
from tests.flags import fake_devices
from tests.system import commands, namespaces, together

slow = pytest.mark.slow
RECIPE = {
  **together.RECIPE,
  'model__norm': 'batch',
  'data__pca_lighting': 0.5,
  'data__pca_lighting_steps': 30,
  'data__pca_lighting_shrink': True,
}


@pytest.fixture(scope='module')
def recipe(tmp_path_factory):
  return commands.write_recipe(tmp_path_factory.mktemp('recipe'), **RECIPE)


def test_two_processes_are_one_with_two_devices(tmp_path):
  """Sums of two numbers are the same in any order: not a bit differs."""
  recipe = commands.write_recipe(tmp_path, num_steps=9, eval_every_steps=9)
  often = '--config.save_every_minutes=1e-6', '--config.checkpoint.keep=9'
  ended = together.finish(together.start(recipe, tmp_path / 'two', 2, *often))
  # Process 0 alone writes and speaks.
  assert ended[1][2] == ''
  assert '2 processes, 2 devices' in ended[0][2]
  assert len(list((tmp_path / 'two' / 'events').iterdir())) == 1
  one = together.train(recipe, tmp_path / 'one', 1, devices=2)
  assert together.result(ended)['state_digest'] == one['state_digest']
  saved = [int(path.name) for path in (tmp_path / 'two/checkpoints').iterdir()]
  # Process 0 asks with batches 1, 3, 6 and 9, the second one after each save,
  # and is heard one step later; the first step, which compiles, is waited for.
  assert sorted(saved) == [1, 4, 7, 9]


# Long enough that a signal comes before its end.
LONG_RECIPE = {**RECIPE, 'num_steps': 400, 'save_every_steps': 20}
LONG_RECIPE['eval_every_steps'] = 400  # which would look for signals


@pytest.fixture(scope='module')
def long_run(tmp_path_factory):
  """(recipe, workdir, result) of two processes that nothing disturbs."""
  folder = tmp_path_factory.mktemp('long')
  recipe = commands.write_recipe(folder, **LONG_RECIPE)
  return recipe, folder / 'run', together.train(recipe, folder / 'run', 2)


@slow
@pytest.mark.parametrize(
  ('index', 'number'),
  [(0, signal.SIGKILL), (1, signal.SIGKILL), (1, signal.SIGSTOP)],
)
def test_a_process_that_is_gone_ends_the_others(
  long_run, tmp_path, index, number
):
  """One that stops is silent, as behind a wire that was cut."""
  (recipe, _, wanted), workdir = long_run, tmp_path / 'run'
  processes = together.start(recipe, workdir, 2)
  together.wait_for_row(processes, workdir, 12)
  processes[index].send_signal(number)
  [(code, _, err)] = together.finish([processes[1 - index]])
  together.assert_lost(code, err)
  processes[index].kill()
  together.finish([processes[index]])
  result = together.train(recipe, workdir, 2)
  assert result['state_digest'] == wanted['state_digest']


# Saves may take longer than silence may last; process 1 cannot read batch 13.
FAILS = """
import sys, time
import orbax.checkpoint as ocp
from alexnet_jax import main
from alexnet_jax.errors import UserError
from alexnet_jax.training.parallel import DeviceBatches

finalize = ocp.StandardCheckpointHandler.finalize
take, calls = DeviceBatches.take, []

def slowly(handler, directory):
  time.sleep({seconds})
  finalize(handler, directory)

def failing(batches):
  calls.append(1)
  if len(calls) == 13:
    raise UserError('no more batches')
  return take(batches)

ocp.StandardCheckpointHandler.finalize = slowly
if {index}:
  DeviceBatches.take = failing
sys.exit(main.main({arguments!r}))
"""


@pytest.mark.parametrize(
  'seconds', [1, pytest.param(together.HEARTBEAT + 5, marks=slow)]
)
def test_a_failure_of_another_process_waits_for_the_save(tmp_path, seconds):
  recipe = commands.write_recipe(tmp_path, **together.RECIPE)
  address, processes = f'127.0.0.1:{together.free_port()}', []
  for index in range(2):
    run = together.arguments(recipe, tmp_path / 'run', address, index, 2)
    program = FAILS.format(
      index=index,
      seconds=seconds,
      arguments=[*map(str, run), '--config.eval_every_steps=100'],
    )
    python = commands.MAIN[0]
    env = fake_devices(1)
    processes.append(commands.start(python, '-c', program, env=env))
  errors = together.finish_with(2, processes)
  assert 'process 1 ended: error: no more batches' in errors[0]
  assert checkpoint.read_newest(tmp_path / 'run')[0] == 7


@slow
def test_a_process_that_waits_for_others_hears_signals(recipe, tmp_path):
  [process] = together.start(recipe, tmp_path / 'run', 2, indices=[1])
  time.sleep(6)
  process.terminate()
  start = time.monotonic()
  [(code, _, err)] = together.finish([process])
  assert code in (75, -signal.SIGTERM), err  # no handler yet, on a busy machine
  assert time.monotonic() - start < 120
  assert code < 0 or 'interrupted by SIGTERM' in err


@slow
def test_a_port_that_is_taken_is_named(recipe, tmp_path):
  with socket.create_server(('127.0.0.1', 0)) as listener:
    port = listener.getsockname()[1]
    [err] = together.finish_with(
      2, together.start(recipe, tmp_path / 'run', 2, port=port, indices=[0])
    )
  assert 'Address already in use' in err
  assert f'127.0.0.1:{port}' in err


@slow
@pytest.mark.parametrize(
  ('devices', 'message'),
  [
    (3, "devices: '1 x cpu' -> '3 x cpu'"),
    (1, 'Give all processes the same data'),
  ],
)
def test_processes_that_differ_are_refused(tmp_path, devices, message):
  """The second one has other devices, or else both have other data."""
  recipe = commands.write_recipe(tmp_path)
  port, processes = together.free_port(), []
  for index in range(2):
    data = write_splits(tmp_path / str(index), 20 - 4 * index, 28, 'abcd')
    path = f'--config.data.path={data}'
    processes += together.start(
      *(recipe, tmp_path / 'run', 2, '--config.data.source=folder', path),
      devices=devices if index else 1,
      port=port,
      indices=[index],
    )
  errors = together.finish_with(2, processes)
  assert all('error:' in err for err in errors), errors
  assert 'process 1' in errors[0]
  assert message in errors[0]
  assert not list(tmp_path.glob('run/*.json*'))


@slow
def test_a_process_that_stays_alone_is_refused(recipe, tmp_path, monkeypatch):
  monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
  address = f'0.0.0.0:{together.free_port()}'
  run = together.arguments(recipe, tmp_path / 'run', address, 0, 2)
  process = commands.start(*commands.MAIN, *run, '--start_timeout', 5)
  [err] = together.finish_with(2, [process])
  assert 'did not find each other within 5 s' in err
  assert '--process_count = 2' in err
  assert '--coordinator = 0.0.0.0' in err
  assert 'http_proxy = http://127.0.0.1:9 (no_grpc_proxy=HOST leaves' in err
  assert not (tmp_path / 'run').exists()


@slow
def test_a_dry_run(recipe, tmp_path):
  workdir = tmp_path / 'run'
  processes = together.start(recipe, workdir, 2, '--dry_run')
  errors = together.finish_with(0, processes)
  assert 'the dry run went through' in errors[0]
  assert not workdir.exists()


@slow
def test_a_signal_to_another_process_comes_too_late_for_a_run_that_is_done(
  tmp_path,
):
  """While process 0 draws the report."""
  recipe = commands.write_recipe(tmp_path, num_steps=4, report=True)
  processes = together.start(recipe, tmp_path / 'run', 2)
  told = ''
  while 'done at step 4' not in told:
    told += (line := processes[0].stderr.readline())
    assert line, told
  processes[1].send_signal(signal.SIGTERM)
  assert together.result(together.finish(processes))['step'] == 4
  assert (tmp_path / 'run' / 'report' / 'index.html').exists()


# Bound to one core each, as mpirun does by itself, the processes would be slow,
# and XLA divide sums in another way than with two.
MPIRUN = ('mpirun', '-n', 2, '--bind-to', 'none', '--allow-run-as-root')


@slow
@pytest.mark.skipif(
  shutil.which('mpirun') is None, reason='no mpirun: openmpi-bin has it'
)
def test_mpirun_trains_what_the_flags_do(tmp_path):
  recipe = commands.write_recipe(tmp_path, num_steps=12)
  ended = commands.run(
    *(*MPIRUN, '--oversubscribe', *commands.MAIN, '--json'),
    *('--config', recipe, '--workdir', tmp_path / 'mpi'),
    env=fake_devices(1),
  )
  result = together.result([ended])
  assert '2 processes, 2 devices' in ended[2]
  flags = together.train(recipe, tmp_path / 'flags', 2)
  assert result['state_digest'] == flags['state_digest']


NO_PROXIES = dict.fromkeys(('grpc_proxy', 'http_proxy'), 'http://127.0.0.1:9')
# Runs a command on this machine under a name that has no address.
NAMELESS = ('unshare', '--uts', 'sh', '-c')
NAMELESS += ('hostname nowhere.invalid && exec "$@"', 'sh')


@pytest.fixture
def nameless():
  programs = ('unshare', 'hostname')
  namespaces.skip_unless_possible(programs, 'util-linux', '--uts')


@slow
def test_processes_of_one_machine_need_neither_its_proxies_nor_its_name(
  nameless, recipe, tmp_path
):
  code, _, err = commands.run(
    *(*NAMELESS, commands.MAIN[0], 'launch/local.py', '--processes', 2),
    *('--devices_per_process', 1, '--', '--start_timeout', 60),
    *('--config', recipe, '--workdir', tmp_path / 'run'),
    '--config.num_steps=2',
    env=NO_PROXIES,
  )
  assert code == 0, err
  assert '2 processes, 2 devices' in err
  assert 'proxy' not in err


@slow
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

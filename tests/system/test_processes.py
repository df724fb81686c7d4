"""Runs of several processes: the same run, and the same end of all."""

import re
import shutil
import signal
import socket
import time

import pytest

from alexnet_jax.training import checkpoint
from tests import mounts
from tests.flags import fake_devices
from tests.system import commands
from tests.system import together
from tests.system.test_faults import write_photos

slow = pytest.mark.slow
RECIPE = {
  **together.RECIPE,
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
  two = together.train(recipe, tmp_path / 'two', 2, *often)
  one = together.train(recipe, tmp_path / 'one', 1, devices=2)
  assert two['state_digest'] == one['state_digest']
  saved = [int(path.name) for path in (tmp_path / 'two/checkpoints').iterdir()]
  # Process 0 asks with batches 1, 3, 6 and 9, the second one after each save,
  # and is heard one step later; the first step, which compiles, is waited for.
  assert sorted(saved) == [1, 4, 7, 9]


@slow
def test_any_number_of_processes_is_the_same_run(recipe, tmp_path):
  """Process 0 alone writes and speaks."""
  ended = together.finish(
    together.start(recipe, tmp_path / 'many', 2, devices=2)
  )
  assert together.result(ended)['step'] == 40
  (_, _, err), (_, _, other_err) = ended
  assert 'done at step 40' in err
  assert '2 processes, 4 devices' in err
  assert other_err == ''
  assert len(list((tmp_path / 'many' / 'events').iterdir())) == 1
  together.train(recipe, tmp_path / 'alone', 1, '--config.parallel=shard_map')
  together.assert_same_run(tmp_path / 'many', tmp_path / 'alone')


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
  ('index', 'number'), [(1, signal.SIGTERM), (0, signal.SIGINT)]
)
def test_a_signal_to_one_process_ends_all(long_run, tmp_path, index, number):
  (recipe, unbroken, wanted), workdir = long_run, tmp_path / 'run'
  processes = together.start(recipe, workdir, 2)
  together.wait_for_row(processes, workdir, 9)
  processes[index].send_signal(number)
  errors = together.finish_with(75, processes)
  assert f'interrupted by {number.name}' in errors[index]
  assert 'interrupted by a signal to another process' in errors[1 - index]
  [step] = re.findall(r'saved step (\d+)', errors[0])
  assert int(step) < 400
  result = together.train(recipe, workdir, 2)
  assert result['state_digest'] == wanted['state_digest']
  assert together.timeless(workdir) == together.timeless(unbroken)


@slow
@pytest.mark.parametrize('index', [0, 1])
def test_a_killed_process_ends_the_others(long_run, tmp_path, index):
  (recipe, _, wanted), workdir = long_run, tmp_path / 'run'
  processes = together.start(recipe, workdir, 2)
  together.wait_for_row(processes, workdir, 12)
  processes[index].kill()
  code, _, err = together.finish(processes)[1 - index]
  together.assert_lost(code, err)
  result = together.train(recipe, workdir, 2)
  assert result['state_digest'] == wanted['state_digest']


# Saves take longer than silence may last; process 1 cannot read batch 13.
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


def test_a_failure_of_another_process_waits_for_the_save(tmp_path):
  recipe = commands.write_recipe(tmp_path, **together.RECIPE)
  address, processes = f'127.0.0.1:{together.free_port()}', []
  for index in range(2):
    run = together.arguments(recipe, tmp_path / 'run', address, index, 2)
    program = FAILS.format(
      index=index,
      seconds=together.HEARTBEAT + 5,
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


@pytest.mark.parametrize(
  ('changes', 'message'),
  [
    ({'overrides': ['--config.seed=3']}, 'seed: 0 -> 3'),
    pytest.param({'count': 3}, 'processes: 2 -> 3', marks=slow),
    pytest.param({'devices': 3}, 'devices: 1 x cpu -> 3 x cpu', marks=slow),
    pytest.param({'data': 1}, 'has other data than process 0', marks=slow),
  ],
)
def test_processes_that_differ_are_refused(tmp_path, changes, message):
  """The second one has these changes."""
  recipe, data = commands.write_recipe(tmp_path), 'data' in changes
  port, processes = together.free_port(), []
  for index in range(2):
    options = {'count': 2, 'devices': 1, **(changes if index else {})}
    overrides = options.get('overrides', [])
    if data:
      write_photos(tmp_path / str(index), seed=index)
      path = f'--config.data.path={tmp_path / str(index)}'
      overrides = ['--config.data.source=folder', path]
    processes += together.start(
      *(recipe, tmp_path / 'run', options['count'], *overrides),
      devices=options['devices'],
      port=port,
      indices=[index],
    )
  errors = together.finish_with(2, processes)
  assert all('error:' in err for err in errors), errors
  assert 'process 1' in errors[0]
  assert message in errors[0]
  assert not (tmp_path / 'run').exists()


@slow
@pytest.mark.parametrize(('index', 'host'), [(1, '127.0.0.1'), (0, '0.0.0.0')])
def test_a_process_that_stays_alone_is_refused(
  recipe, tmp_path, index, host, monkeypatch
):
  monkeypatch.setenv('http_proxy', 'http://127.0.0.1:9')
  address = f'{host}:{together.free_port()}'
  run = together.arguments(recipe, tmp_path / 'run', address, index, 2)
  process = commands.start(*commands.MAIN, *run, '--start_timeout', 5)
  [err] = together.finish_with(2, [process])
  assert 'did not find each other within 5 s' in err
  assert '--process_count = 2' in err
  assert f'--coordinator = {host}' in err
  # It plays no part on one machine.
  named = 'http_proxy = http://127.0.0.1:9 (no_grpc_proxy=HOST leaves' in err
  assert named == (host != '127.0.0.1')
  assert not (tmp_path / 'run').exists()


@slow
def test_a_dry_run(recipe, tmp_path):
  workdir = tmp_path / 'run'
  processes = together.start(recipe, workdir, 2, '--dry_run')
  errors = together.finish_with(0, processes)
  assert 'the dry run went through' in errors[0]
  assert not workdir.exists()


BROADCAST = """
import sys
import jax
import numpy as np
from alexnet_jax.training import parallel

index, port = int(sys.argv[1]), sys.argv[2]
jax.distributed.initialize(f'127.0.0.1:{port}', 2, index)
tree = {
  'a': np.array([-0.0, np.inf, 1e-45, 3.25], np.float32),
  'b': np.array(7, np.int32),
  'c': np.arange(3, dtype=np.uint8),
}
tree['a'].view(np.uint32)[3] = 0x7fc00123  # a NaN with a payload
if index:
  tree = jax.tree.map(np.zeros_like, tree)
tree = parallel.broadcast_arrays(tree)
print(sorted((k, v.dtype.name, v.shape, v.tobytes().hex())
             for k, v in tree.items()), file=sys.stderr)
"""


def test_process_0_gives_its_arrays_bit_for_bit():
  port, program = together.free_port(), [commands.MAIN[0], '-c', BROADCAST]
  processes = [commands.start(*program, index, port) for index in range(2)]
  errors = together.finish_with(0, processes)
  here, there = (err.strip().splitlines()[-1] for err in errors)
  assert here == there
  assert "('b', 'int32', (), '07000000')" in here
  assert '00000080' in here  # -0.0
  assert '2301c07f' in here


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


@slow
def test_a_folder_that_becomes_read_only(small_disk):
  """All end with 2; process 0 says why, and the others that it did."""
  recipe = commands.write_recipe(small_disk, num_steps=600)
  workdir = small_disk / 'run'
  processes = together.start(recipe, workdir, 2)
  together.wait_for_row(processes, workdir, 50)
  folder = workdir / 'checkpoints'
  with mounts.mounted(folder, '--bind', folder):
    mounts.remount(folder, 'ro,bind')
    errors = together.finish_with(2, processes)
    good = commands.contents(folder)
    for err in errors:
      assert 'cannot save a checkpoint' in err
      assert 'Read-only file system' in err
    assert 'process 0 ended' in errors[1]
    errors = together.finish_with(2, together.start(recipe, workdir, 2))
    assert 'Read-only file system' in errors[0]
    assert commands.contents(folder) == good
  resumed = together.train(recipe, workdir, 2)
  unbroken = together.train(recipe, small_disk / 'unbroken', 2)
  assert resumed['state_digest'] == unbroken['state_digest']


@slow
def test_a_damaged_newest_checkpoint_costs_one_interval(tmp_path):
  recipe, workdir = commands.write_recipe(tmp_path), tmp_path / 'run'
  together.train(recipe, workdir, 2, '--config.num_steps=30')
  folder = workdir / 'checkpoints'
  good = commands.contents(folder / '20')
  for path in commands.contents(folder / '30' / 'state'):
    path.write_bytes(path.read_bytes()[:-7])
  # Read, but not removed by a later save.
  processes = together.start(recipe, workdir, 2, '--config.checkpoint.keep=9')
  errors = together.finish_with(0, processes)
  assert 'goes on from checkpoint 20' in errors[0]
  assert 'checkpoint 30 is damaged' in errors[0]
  assert (workdir / 'damaged' / '30').is_dir()
  assert commands.contents(folder / '20') == good
  together.train(recipe, tmp_path / 'unbroken', 2)
  fields = ('params', 'batch_stats', 'opt_state')
  assert together.difference(workdir, tmp_path / 'unbroken', *fields) == 0


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

"""Starts runs of several processes on this machine, and compares them."""

import contextlib
import itertools
import json
import os
import pathlib
import signal
import socket
import subprocess
import time

import numpy as np

from alexnet_jax.training import checkpoint, writers
from alexnet_jax.training.state import leaf_names, saved_tree
from tests.flags import fake_devices
from tests.system import commands

HEARTBEAT = 10  # seconds of silence after which a process is lost
# Dropout draws masks; epochs end in the middle of a batch; saves and
# evaluations fall on different steps.
RECIPE = {
  'num_steps': 40,
  'data__synthetic_examples': 100,
  'save_every_steps': 7,
  'eval_every_steps': 10,
  'log_every_steps': 3,
  'schedule__threshold': 10.0,
  'schedule__patience': 2,
  'schedule__factor': 0.5,
}
# Scalars that depend on the clock: all others repeat exactly when a run does.
TIMING_KEYS = ('images_per_second', 'data_wait_fraction')

_WORKER = int(os.environ.get('PYTEST_XDIST_WORKER', 'gw0')[2:])
_ports = itertools.count(20_000 + 2_000 * _WORKER)


def free_port() -> int:
  """Returns a port below those that systems give to whoever asks for one."""
  for port in _ports:
    with contextlib.suppress(OSError):
      socket.create_server(('127.0.0.1', port)).close()
      return port


def arguments(recipe, workdir, address, index, count) -> list:
  """Returns the arguments of one process."""
  run = ['--config', recipe, '--workdir', workdir, '--json']
  run += ['--coordinator', address, '--process_index', index]
  return [*run, '--process_count', count, '--heartbeat_timeout', HEARTBEAT]


def start(
  recipe, workdir, count, *overrides, devices=1, port=None, indices=None
) -> list[subprocess.Popen]:
  """Starts `count` processes with some fake devices each, or only `indices`."""
  address = f'127.0.0.1:{port or free_port()}'
  return [
    commands.start(
      *(*commands.MAIN, *arguments(recipe, workdir, address, index, count)),
      *overrides,
      env=fake_devices(devices),
    )
    for index in (range(count) if indices is None else indices)
  ]


def last_step(workdir) -> int:
  """Returns the step that the history has reached."""
  rows = writers.read_rows(workdir)
  return rows[-1]['step'] if rows else 0


def wait_for_row(processes, workdir, step) -> None:
  """Waits until the history reaches a step."""
  while last_step(workdir) < step:
    codes = [process.poll() for process in processes]
    assert codes == [None] * len(processes), finish(processes)
    time.sleep(0.01)


def finish(processes) -> list[tuple[int, str, str]]:
  """(exit code, standard output, errors) of each, when all have ended."""
  with contextlib.ExitStack() as stack:
    for process in processes:
      stack.callback(process.kill)  # if another one does not end in time
    outputs = [process.communicate(timeout=180) for process in processes]
  codes = [process.returncode for process in processes]
  return [(code, *output) for code, output in zip(codes, outputs, strict=True)]


def finish_with(code, processes) -> list[str]:
  """Returns the errors of each when all have ended with a code."""
  ended = finish(processes)
  assert [one for one, _, _ in ended] == [code] * len(ended), ended
  assert all('Traceback' not in err for _, _, err in ended), ended
  return [err for _, _, err in ended]


def train(recipe, workdir, count, *overrides, **options) -> dict:
  """Trains to the end; returns the result."""
  return result(finish(start(recipe, workdir, count, *overrides, **options)))


def result(ended) -> dict:
  """Returns the result of process 0, which alone has one, of a finished run."""
  assert [code for code, _, _ in ended] == [0] * len(ended), ended
  lines = [out.splitlines() for _, out, _ in ended]
  found = [[line for line in one if line[:1] == '{'] for one in lines]
  assert [len(one) for one in found] == [1] + [0] * (len(ended) - 1), ended
  return json.loads(found[0][0])


def assert_lost(code, err) -> None:
  """Checks the end of a process whose run has lost another one."""
  # JAX may abort the process before it can say this itself.
  assert code in (75, -signal.SIGABRT), err
  if code == 75:
    assert 'is lost' in err
    assert 'the same command goes on from the newest checkpoint' in err


def timeless(workdir: pathlib.Path) -> list[dict]:
  """Returns the history without what depends on the clock."""
  return [
    {k: v for k, v in row.items() if k not in TIMING_KEYS}
    for row in writers.read_rows(workdir)
  ]


def assert_same_run(workdir: pathlib.Path, other: pathlib.Path) -> None:
  """Histories and final states are the same but for rounding.

  Another number of devices adds the same gradients up in another order, and
  every update passes the rounding on. Where one makes a ReLU or a max-pool
  switch, a gradient jumps: velocities differ more than parameters.
  """
  for row, wanted in zip(timeless(workdir), timeless(other), strict=True):
    assert row.keys() == wanted.keys()
    for name, value in row.items():
      np.testing.assert_allclose(value, wanted[name], rtol=1e-3, atol=1e-5)
    for name in ('eval/top1', 'eval/top5', 'learning_rate', 'step'):
      assert row.get(name) == wanted.get(name)
  ours, theirs = (
    leaf_names(saved_tree(checkpoint.open_run(folder).state))
    for folder in (workdir, other)
  )
  assert ours.keys() == theirs.keys()
  for name, leaf in theirs.items():
    limit = 1e-2 if name.startswith('opt_state') else 1e-4
    largest = max(float(np.max(np.abs(leaf))), 1e-6)
    assert np.max(np.abs(ours[name] - leaf)) < limit * largest, name

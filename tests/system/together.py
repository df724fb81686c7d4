"""Starts runs of several processes on this machine."""

import contextlib
import json
import pathlib
import socket
import subprocess

import numpy as np

from alexnet_jax.training import checkpoint
from alexnet_jax.training import writers
from alexnet_jax.training.state import leaf_names
from alexnet_jax.training.state import saved_tree
from tests.flags import fake_devices
from tests.system import commands

HEARTBEAT = 10  # seconds of silence after which a process is lost


def free_port() -> int:
  with socket.socket() as listener:
    listener.bind(('127.0.0.1', 0))
    return listener.getsockname()[1]


def start(
  recipe, workdir, count, *overrides, devices=1, port=None, indices=None
) -> list[subprocess.Popen]:
  """Starts `count` processes with some fake devices each, or only `indices`."""
  address = f'127.0.0.1:{port or free_port()}'
  return [
    commands.start(
      *(*commands.MAIN, '--config', recipe, '--workdir', workdir, '--json'),
      *('--coordinator', address, '--process_index', index),
      *('--process_count', count, '--heartbeat_timeout', HEARTBEAT),
      *overrides,
      env=fake_devices(devices),
    )
    for index in (range(count) if indices is None else indices)
  ]


def finish(processes, timeout=180) -> list[tuple[int, str, str]]:
  """(exit code, standard output, errors) of each, when all have ended."""
  with contextlib.ExitStack() as stack:
    for process in processes:
      stack.callback(process.kill)  # if another one does not end in time
    outputs = [process.communicate(timeout=timeout) for process in processes]
  return [
    (process.returncode, *output)
    for process, output in zip(processes, outputs, strict=True)
  ]


def train(recipe, workdir, count, *overrides, **options) -> dict:
  """Trains to the end; the result of process 0, which alone has one."""
  ended = finish(start(recipe, workdir, count, *overrides, **options))
  assert [code for code, _, _ in ended] == [0] * count, ended
  results = [
    line for _, out, _ in ended for line in out.splitlines() if line[:1] == '{'
  ]
  assert len(results) == 1
  return json.loads(results[0])


def timeless(workdir: pathlib.Path) -> list[dict]:
  """The history without what depends on the clock."""
  return [
    {k: v for k, v in row.items() if k not in writers.TIMING_KEYS}
    for row in writers.read_rows(workdir)
  ]


def leaves(workdir: pathlib.Path) -> dict[str, np.ndarray]:
  """All that the final checkpoint holds, by name."""
  return leaf_names(saved_tree(checkpoint.open_run(workdir).state))


def difference(workdir: pathlib.Path, other: pathlib.Path, *fields) -> float:
  """The largest difference of a leaf, relative to that leaf's largest value.

  Args:
    workdir: of a run.
    other: of another one.
    *fields: of the state: params, batch_stats, opt_state.
  """
  ours, theirs = leaves(workdir), leaves(other)
  assert ours.keys() == theirs.keys()
  return max(
    float(np.max(np.abs(ours[name] - theirs[name])))
    / max(float(np.max(np.abs(theirs[name]))), 1e-6)
    for name in ours
    if name.split('/')[0] in fields
  )


def assert_close(workdir: pathlib.Path, other: pathlib.Path) -> None:
  """The final states are the same but for roundings.

  Another number of devices adds the same gradients up in another order, and
  every update passes the roundings on. Where one makes a ReLU or a max-pool
  switch, a gradient jumps: velocities differ more than parameters.
  """
  assert difference(workdir, other, 'params', 'batch_stats') < 1e-4
  assert difference(workdir, other, 'opt_state') < 1e-2

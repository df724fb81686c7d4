"""Four fake devices for every test, and no silent broadcasting."""

import atexit
import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile

import hypothesis
import pytest

from tests import mounts
from tests.flags import fake_devices

# Before jax is imported; processes that tests start inherit them.
os.environ.update(fake_devices(4))
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
os.environ['KERAS_BACKEND'] = 'jax'
# Most of a tiny run is compilation: all runs of a session share the programs.
# So do the workers of pytest-xdist, which inherit the folder's name.
if 'PYTEST_XDIST_WORKER' not in os.environ:
  _PROGRAMS = tempfile.mkdtemp(prefix='alexnet_jax_programs_')
  atexit.register(shutil.rmtree, _PROGRAMS, ignore_errors=True)
  os.environ['JAX_COMPILATION_CACHE_DIR'] = _PROGRAMS
os.environ['JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS'] = '0'
os.environ['JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES'] = '-1'

# Under nohup the processes of tests would ignore SIGHUP, as they should; a
# handler is not inherited.
if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
  signal.signal(signal.SIGHUP, lambda *_: None)

# Every run tests the same examples; --hypothesis-profile=default draws others.
hypothesis.settings.register_profile('repeatable', derandomize=True)
hypothesis.settings.load_profile('repeatable')


@pytest.fixture
def call(capsys):
  """Calls a command; (exit code, result of --json or None, errors)."""

  def function(command, *arguments):
    capsys.readouterr()
    code = command.main([*map(str, arguments), '--json'])
    out, err = capsys.readouterr()
    return code, json.loads(out.splitlines()[-1]) if out else None, err

  return function


@pytest.fixture
def handlers():
  """Puts the handlers of signals back that were there before."""
  numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
  before = {number: signal.getsignal(number) for number in numbers}
  yield
  for number, handler in before.items():
    if handler is not None:  # of C
      signal.signal(number, handler)


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 4 MB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  with contextlib.ExitStack() as stack:
    try:
      disk = mounts.mounted(folder, '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs')
      stack.enter_context(disk)
    except (OSError, subprocess.CalledProcessError):
      pytest.skip('a small disk needs the right to mount a tmpfs (root)')
    yield folder

"""Four fake devices for every test, and no silent broadcasting."""

import os
import subprocess

import pytest

# Before jax is imported; processes that tests start inherit them.
os.environ['XLA_FLAGS'] = '--xla_force_host_platform_device_count=4'
os.environ['JAX_PLATFORMS'] = 'cpu'
os.environ['JAX_NUMPY_RANK_PROMOTION'] = 'raise'
os.environ['KERAS_BACKEND'] = 'jax'


@pytest.fixture
def small_disk(tmp_path):
  """A file system of 4 MB."""
  folder = tmp_path / 'disk'
  folder.mkdir()
  mount = subprocess.run(
    ['mount', '-t', 'tmpfs', '-o', 'size=4m', 'tmpfs', str(folder)],
    capture_output=True,
    check=False,
  )
  if mount.returncode:
    pytest.skip('a small disk needs the right to mount a tmpfs (root)')
  yield folder
  subprocess.run(['umount', str(folder)], check=True)

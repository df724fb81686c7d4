"""Disks that fill up or refuse writing under a run of several processes."""

import contextlib

import pytest

from tests import mounts
from tests.system import commands
from tests.system import together

pytestmark = pytest.mark.slow


@contextlib.contextmanager
def read_only(folder):
  """The folder under its own name, but read-only."""
  with mounts.mounted(folder, '--bind', folder):
    mounts.remount(folder, 'ro,bind')
    yield


def assert_refused(ended, text):
  """All end with 2; process 0 says why, and the others that it did."""
  assert [code for code, _, _ in ended] == [2, 2], ended
  for _, _, err in ended:
    assert 'cannot save a checkpoint' in err
    assert text in err
    assert 'Traceback' not in err
  assert 'process 0 ended' in ended[1][2]


def test_a_folder_that_becomes_read_only(small_disk):
  recipe = commands.write_recipe(small_disk, num_steps=600)
  workdir = small_disk / 'run'
  processes = together.start(recipe, workdir, 2)
  together.wait_for_row(processes, workdir, 50)
  folder = workdir / 'checkpoints'
  with read_only(folder):
    ended = together.finish(processes)
    good = commands.contents(folder)
    assert_refused(ended, 'Read-only file system')
    again = together.finish(together.start(recipe, workdir, 2))
    assert [code for code, _, _ in again] == [2, 2], again
    assert 'Read-only file system' in again[0][2]
    assert 'Traceback' not in again[0][2]
    assert commands.contents(folder) == good
  resumed = together.train(recipe, workdir, 2)
  unbroken = together.train(recipe, small_disk / 'unbroken', 2)
  assert resumed['state_digest'] == unbroken['state_digest']


def test_a_damaged_newest_checkpoint_costs_one_interval(tmp_path):
  recipe = commands.write_recipe(tmp_path)
  workdir = tmp_path / 'run'
  together.train(recipe, workdir, 2, '--config.num_steps=30')
  folder = workdir / 'checkpoints'
  good = commands.contents(folder / '20')
  for path in (folder / '30' / 'state').rglob('*'):
    if path.is_file():
      path.write_bytes(path.read_bytes()[:-7])
  # Read, but not removed by a later save.
  ended = together.finish(
    together.start(recipe, workdir, 2, '--config.checkpoint.keep=9')
  )
  assert [code for code, _, _ in ended] == [0, 0], ended
  assert 'goes on from checkpoint 20' in ended[0][2]
  assert 'checkpoint 30 is damaged' in ended[0][2]
  assert (workdir / 'damaged' / '30').is_dir()
  assert commands.contents(folder / '20') == good
  unbroken = tmp_path / 'unbroken'
  together.train(recipe, unbroken, 2)
  fields = ('params', 'batch_stats', 'opt_state')
  assert together.difference(workdir, unbroken, *fields) == 0

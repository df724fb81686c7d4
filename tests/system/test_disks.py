"""Disks that fill up or refuse writing under a run of several processes."""

import pytest

from tests import mounts
from tests.system import commands
from tests.system import together

pytestmark = pytest.mark.slow


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

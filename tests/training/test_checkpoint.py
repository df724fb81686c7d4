"""Orbax checkpoints: round trips, damage, misfits, a full disk."""

import dataclasses
import errno
import json
import pathlib
import platform
import shutil

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest

from alexnet_jax import config as config_lib, files
from alexnet_jax.errors import UserError
from alexnet_jax.training import checkpoint
from alexnet_jax.training.checkpoint import Checkpoints
from alexnet_jax.training.progress import DataRecord, Progress, SavedRun
from alexnet_jax.training.schedule import PlateauState
from alexnet_jax.training.state import saved_tree, state_digest
from tests.system import commands
from tests.training.steps import make_state

RUN = SavedRun(
  config=config_lib.make_config(),
  data=DataRecord(list('abcd')),
  progress=Progress(PlateauState(0.1)),
  iterator={'next_index': 3},
)


def make_tree(step=0, width=8, norm='lrn'):
  """The numpy arrays of a state whose parameters tell its step."""
  state = make_state(norm=norm, hidden=(width,))
  tree = jax.tree.map(np.array, saved_tree(state))
  params = jax.tree.map(lambda leaf: leaf + step, tree['params'])
  return {**tree, 'step': np.int32(step), 'params': params}


def save(workdir, steps, keep=5, keep_steps=()):
  with Checkpoints(workdir, keep=keep) as checkpoints:
    for step in steps:
      checkpoints.save(make_tree(step), RUN, keep_steps=keep_steps)
    checkpoints.wait()


def restore_newest(workdir, **options):
  with Checkpoints(workdir) as checkpoints:
    return checkpoints.restore_newest(make_tree(**options))


def assert_restores(workdir, step):
  tree, run = restore_newest(workdir)
  jax.tree.map(np.testing.assert_array_equal, tree, make_tree(step))
  assert run.digest == state_digest(tree)
  return tree, run


def names_in(folder):
  return sorted(path.name for path in folder.iterdir())


def test_a_state_comes_back_bit_for_bit(tmp_path):
  assert restore_newest(tmp_path) is None
  save(tmp_path, [3])
  tree, run = assert_restores(tmp_path, 3)
  assert run.versions['jax'] == jax.__version__
  assert dataclasses.replace(run, digest='').to_json() == RUN.to_json()
  assert isinstance(tree['params']['conv1']['kernel'], np.ndarray)


def test_the_caller_may_overwrite_what_it_saves(tmp_path):
  """The save is under way while the next step writes into donated memory."""
  tree = make_tree(1)
  with Checkpoints(tmp_path) as checkpoints:
    checkpoints.save(tree, RUN)
    jax.tree.map(lambda leaf: leaf.fill(7), tree['params'])
  assert_restores(tmp_path, 1)


@pytest.mark.slow  # it takes 1 GB of memory and of the disk
@pytest.mark.skipif(
  platform.libc_ver()[0] != 'glibc', reason='only glibc is asked for memory'
)
def test_saves_leave_no_memory_behind(tmp_path):
  def resident_bytes():
    with open('/proc/self/statm') as file:
      return 4096 * int(file.read().split()[1])

  values = np.random.default_rng(0).standard_normal((4, 1 << 24), np.float32)
  with Checkpoints(tmp_path) as checkpoints:
    before = resident_bytes()
    for step in range(3):
      params = dict(zip('abcd', values, strict=True))
      checkpoints.save({'step': np.int32(step), 'params': params}, RUN)
      checkpoints.wait()
    grown = resident_bytes() - before
  shutil.rmtree(tmp_path)
  assert grown / values.nbytes < 0.5  # of a state; without: 0.8 and more


def test_newest_and_chosen_steps_are_kept(tmp_path):
  save(tmp_path, range(1, 7), keep=2, keep_steps={2, None})
  assert names_in(tmp_path / 'checkpoints') == ['2', '5', '6']


def test_another_network_is_refused_leaf_by_leaf(tmp_path):
  save(tmp_path, [1])
  with pytest.raises(UserError) as info:
    restore_newest(tmp_path, width=9, norm='batch')
  lines = str(info.value).splitlines()
  for line in (
    'params/dense1/kernel: float32[32, 8] there, float32[32, 9] here',
    'params/norm1/scale: nothing there, float32[8] here',
  ):
    assert f'  {line}' in lines
  assert not any('conv1' in line for line in lines)
  assert (tmp_path / 'checkpoints' / '1').is_dir()  # it is not damaged


def flip_bits(folder):
  """One bit in the middle of every file of array data."""
  for path in folder.glob('state/**/d/*'):
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize(
  ('where', 'value'),
  [
    *(('config.seed', -1), ('data', []), ('digest', None), ('extra', 1)),
    ('progress.step_losses', [None]),
  ],
)
def test_a_value_of_another_type_is_damage(tmp_path, where, value):
  save(tmp_path, [1])
  path = tmp_path / 'checkpoints' / '1' / 'run' / 'metadata'
  fields = part = json.loads(path.read_text())
  *folders, name = where.split('.')
  for folder in folders:
    part = part[folder]
  part[name] = value
  path.write_text(json.dumps(fields))
  for read in (checkpoint.open_run, checkpoint.read_newest, restore_newest):
    with pytest.raises(UserError, match=rf'can.* be read.*\b{name}\b'):
      read(tmp_path)


@pytest.mark.parametrize(
  'damage',
  [
    lambda path, content: path.write_bytes(content[: len(content) // 2]),
    lambda path, content: path.unlink(),
  ],
  ids=['truncate', 'remove'],
)
def test_no_damaged_file_goes_unnoticed(tmp_path, damage):
  """Each file of the newest checkpoint in turn; the older one is untouched."""
  save(tmp_path, [2, 3])
  folder = tmp_path / 'checkpoints'
  good, used = commands.contents(folder / '2'), []
  for path, content in commands.contents(folder / '3').items():
    damage(path, content)
    used.append(int(restore_newest(tmp_path)[0]['step']))
    if used[-1] == 2:
      (tmp_path / 'damaged' / '3').rename(folder / '3')
    else:  # Orbax does not need every file to read a checkpoint
      assert_restores(tmp_path, 3)
    assert commands.contents(folder / '2') == good
    path.write_bytes(content)
  assert 2 in used


def test_if_all_are_damaged_the_run_stops_and_moves_nothing(tmp_path):
  save(tmp_path, [1, 2])
  for step in '12':
    flip_bits(tmp_path / 'checkpoints' / step)
  with pytest.raises(UserError, match=r'no checkpoint in .* can be read'):
    restore_newest(tmp_path)
  assert names_in(tmp_path) == ['checkpoints']
  assert names_in(tmp_path / 'checkpoints') == ['1', '2']


def test_an_unfinished_save_is_no_checkpoint(tmp_path):
  save(tmp_path, [1])
  folder = tmp_path / 'checkpoints'
  (folder / '2.orbax-checkpoint-tmp').mkdir()
  assert_restores(tmp_path, 1)
  assert names_in(folder) == ['1']


@pytest.mark.parametrize(
  'name', ['lr[0.1]*?', 'back\\slash', 'caf\udce9', 'new\nline a b#%41']
)
def test_a_folder_may_have_any_name(tmp_path, name):
  """Of a pattern, a path of Windows, another encoding."""
  save(tmp_path / name, [1, 2])
  assert_restores(tmp_path / name, 2)


def test_a_run_does_not_train_into_what_cannot_be_read(tmp_path, monkeypatch):
  def restore(handler, *args, **kwargs):
    raise ValueError('no manifest')

  monkeypatch.setattr(ocp.StandardCheckpointHandler, 'restore', restore)
  with pytest.raises(UserError, match=r'read back \(state: no manifest\)'):
    save(tmp_path, [1])
  assert not any((tmp_path / 'checkpoints').iterdir())


def test_files_are_on_the_disk_before_older_ones_go(tmp_path, monkeypatch):
  save(tmp_path, [1])
  folder, synced = tmp_path / 'checkpoints', []
  sync_folder = files.sync_folder

  def sync(path):
    synced.append((path, names_in(folder)))
    sync_folder(path)

  monkeypatch.setattr(files, 'sync_folder', sync)
  save(tmp_path, [2], keep=1)
  assert synced == [(folder / '2', ['1', '2'])]
  assert names_in(folder) == ['2']


def test_a_reader_that_is_always_too_late_ends(tmp_path, monkeypatch):
  """The run saves while it reads, and keeps one checkpoint."""
  save(tmp_path, [1])

  def restore(handler, directory, **options):
    path = pathlib.Path(directory).parent
    path.rename(path.with_name(str(int(path.name) + 1)))
    raise FileNotFoundError(directory)

  monkeypatch.setattr(ocp.StandardCheckpointHandler, 'restore', restore)
  state = make_state(hidden=(8,))
  monkeypatch.setattr(checkpoint.build, 'state_shapes', lambda *_: state)
  with pytest.raises(UserError, match=r'removed 100 .* keep more'):
    checkpoint.open_run(tmp_path, 'newest')


def test_a_full_disk_leaves_the_older_checkpoint(small_disk):
  save(small_disk, [1])
  filler = small_disk / 'filler'
  with pytest.raises(OSError, match='No space left'):
    filler.write_bytes(b'x' * (8 << 20))
  message = r'(?s)cannot save a checkpoint.*No space left.*checkpoints: \[1\]'
  with pytest.raises(UserError, match=message):
    save(small_disk, [2])
  filler.unlink()
  assert_restores(small_disk, 1)
  save(small_disk, [2])
  assert_restores(small_disk, 2)


def test_the_run_of_a_checkpoint_is_written_anew(tmp_path, monkeypatch):
  """As a whole or not at all; the arrays stay."""
  save(tmp_path, [1])
  before = commands.contents(tmp_path)
  run = dataclasses.replace(RUN, iterator={'next_index': 4})

  def fsync(file):
    raise OSError(errno.ENOSPC, 'No space left on device')

  with Checkpoints(tmp_path) as checkpoints:
    with monkeypatch.context() as patch:
      patch.setattr(files.os, 'fsync', fsync)
      checkpoints.save(make_tree(1), run, replace=True)
      with pytest.raises(UserError, match=r'(?s)No space.*/checkpoints: \[1\]'):
        checkpoints.wait()
    assert commands.contents(tmp_path) == before
    checkpoints.save(make_tree(1), run, replace=True)
  assert assert_restores(tmp_path, 1)[1].iterator == {'next_index': 4}
  path = tmp_path / 'checkpoints' / '1' / 'run' / 'metadata'
  assert before | {path: path.read_bytes()} == commands.contents(tmp_path)


@pytest.mark.parametrize(
  'error',
  [
    MemoryError(),
    OSError(errno.ESTALE, 'Stale file handle'),
    ValueError('RESOURCE_EXHAUSTED: Too many open files [os_error_code=24]'),
  ],
  ids=repr,
)
def test_what_passes_is_no_damage(tmp_path, monkeypatch, error):
  save(tmp_path, [1, 2])

  def restore(handler, *args, **kwargs):
    raise error

  monkeypatch.setattr(ocp.StandardCheckpointHandler, 'restore', restore)
  with pytest.raises(type(error)) as info:
    restore_newest(tmp_path)
  assert info.value is error
  assert names_in(tmp_path) == ['checkpoints']
  assert names_in(tmp_path / 'checkpoints') == ['1', '2']


def test_digest_sees_names_shapes_dtypes_and_bytes():
  zeros = np.zeros((2, 3), np.float32)
  variants = [
    {'a': zeros},
    {'b': zeros},
    {'a': zeros.reshape(3, 2)},
    {'a': zeros.view(np.int32)},
    {'a': zeros + np.float32(1e-45)},
  ]
  digests = {state_digest({'params': params}) for params in variants}
  assert len(digests) == len(variants)
  assert state_digest({'params': {'a': zeros.copy()}}) in digests

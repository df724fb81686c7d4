"""Faults around a run, by which nothing good is lost."""

import contextlib
import errno
import fcntl
import shlex
import shutil
import threading
import time

import numpy as np
import pytest

from alexnet_jax.errors import NonFiniteLossError, UserError
from alexnet_jax.evaluation import report
from alexnet_jax.training import checkpoint, parallel, writers
from alexnet_jax.training.state import saved_tree
from tests import mounts
from tests.evaluation.conftest import write_splits
from tests.system import commands
from tests.system.together import timeless

STOPPING = {
  'early_stopping__enabled': True,
  'early_stopping__monitor': 'eval/loss',
  'early_stopping__patience': 100,
  'checkpoint__monitor': 'eval/loss',
}


@pytest.fixture
def copy(trained, tmp_path):
  """A copy of the folder of `trained`."""
  return shutil.copytree(trained[1], tmp_path / 'run')


@pytest.fixture
def photos(tmp_path):
  """(recipe, photos/) of 12 steps with 20 photos."""
  folder = write_splits(tmp_path / 'photos', 20, 28, 'abcd')
  changes = {'data__source': 'folder', 'data__path': str(folder)}
  changes |= {'num_steps': 12, 'eval_every_steps': 100}
  return commands.write_recipe(tmp_path, **changes), folder


SKIP = '--config.data.unreadable=skip'


def test_a_second_run_in_the_same_folder_is_refused(trained):
  recipe, workdir, _ = trained
  with (workdir / '.lock').open('w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    with pytest.raises(UserError, match='another run is training'):
      commands.train_here(recipe, workdir)


def test_a_damaged_newest_checkpoint_costs_one_interval(
  trained, copy, capsys, caplog
):
  recipe, _, result = trained
  for path, content in commands.contents(copy / 'checkpoints/20/state').items():
    path.write_bytes(content[:-7])
  again = commands.train_here(recipe, copy)
  assert again['state_digest'] == result['state_digest']
  assert 'goes on from checkpoint 10' in capsys.readouterr().err
  assert 'checkpoint 20 is damaged' in caplog.text
  assert (copy / 'damaged' / '20').is_dir()


def test_a_damaged_best_checkpoint_is_named(tmp_path):
  # Nothing gets better than the first evaluation by 10.
  recipe = commands.write_recipe(
    tmp_path, num_steps=30, early_stopping__threshold=10.0, **STOPPING
  )
  workdir = tmp_path / 'run'
  assert commands.train_here(recipe, workdir)['step'] == 10
  shutil.rmtree(workdir / 'checkpoints' / '10' / 'state')
  with pytest.raises(UserError, match='checkpoints/10, is damaged'):
    commands.train_here(recipe, workdir)


def test_changed_data_are_refused(photos, tmp_path):
  (recipe, folder), workdir = photos, tmp_path / 'run'
  commands.train_here(recipe, workdir)
  for image in ('train/b/01.png', 'val/b/21.png'):
    (folder / image).unlink()
  message = r'(?s)the data of.* num_examples: 20 -> 19'
  with pytest.raises(UserError, match=message) as info:
    commands.train_here(recipe, workdir)
  assert 'eval_num_examples: 8 -> 7' in str(info.value)


def test_an_unreadable_validation_image_loses_no_step(photos, tmp_path):
  (recipe, folder), workdir = photos, tmp_path / 'run'
  (folder / 'val' / 'd' / '27.png').write_bytes(b'broken')
  with pytest.raises(UserError, match=r'val/d/27\.png'):
    commands.train_here(recipe, workdir)
  assert (workdir / 'checkpoints' / '12').is_dir()
  assert commands.train_here(recipe, workdir, SKIP)['step'] == 12


def test_a_refused_start_changes_nothing(trained, main):
  recipe, workdir, _ = trained
  before = commands.contents(workdir)
  changes = '--config.model.dropout=0.25', '--config.optimizer.momentum=0.8'
  answer = main('--config', recipe, '--workdir', workdir, *changes)
  messages = 'model.dropout: 0.5 -> 0.25', 'optimizer.momentum: 0.9 -> 0.8'
  commands.refused(answer, *messages)
  assert commands.contents(workdir) == before


def test_a_disk_that_fills_up_under_the_logs_ends_the_run(small_disk, main):
  recipe = commands.write_recipe(
    small_disk, num_steps=100_000, eval_every_steps=100_000, log_every_steps=1
  )
  workdir, filler = small_disk / 'run', small_disk / 'filler'

  def fill():
    while not writers.read_rows(workdir):
      time.sleep(0.01)
    with contextlib.suppress(OSError):
      filler.write_bytes(b'x' * (8 << 20))

  threading.Thread(target=fill, daemon=True).start()
  answer = main('--config', recipe, '--workdir', workdir)
  commands.refused(answer, 'No space left')


def test_a_folder_that_cannot_be_written(small_disk, main):
  recipe = commands.write_recipe(small_disk)
  mounts.remount(small_disk, 'ro')
  run = ('--config', recipe, '--workdir')
  for workdir, reason in (
    (small_disk / 'run', 'Read-only file system'),
    (recipe, 'File exists'),
  ):
    commands.refused(main(*run, workdir), reason)


def test_a_run_without_its_checkpoints_is_not_begun_anew(trained, copy):
  shutil.rmtree(copy / 'checkpoints')
  before = commands.contents(copy)
  message = 'has the history of a run up to step 20, but no checkpoint'
  for _ in range(2):
    with pytest.raises(UserError, match=message):
      commands.train_here(trained[0], copy, '--config.num_steps=3')
    assert commands.contents(copy) == before
    assert not (copy / 'checkpoints').exists()


LINKS = (*checkpoint._ENTRIES, '.lock', 'report/index.html')
LINKS += ('checkpoints/20/state', 'checkpoints/9.orbax-checkpoint-tmp')


@pytest.mark.parametrize('name', LINKS)
def test_links_in_a_run_are_not_followed(trained, copy, tmp_path, name):
  """Whoever hands a run over cannot reach other files of the user."""
  documents = tmp_path / 'documents'
  documents.mkdir()
  (documents / '4').write_text('thesis')
  if (copy / name).is_dir():
    shutil.rmtree(copy / name)
  (copy / name).unlink(missing_ok=True)
  (copy / name).parent.mkdir(exist_ok=True)
  (copy / name).symlink_to(documents)
  with pytest.raises(UserError, match='is a link'):
    commands.train_here(trained[0], copy)
  if not name.startswith(('.lock', 'metrics', 'pixel', 'checkpoints')):
    with pytest.raises(UserError, match='is a link'):
      report.write(str(copy))
  assert [path.name for path in documents.iterdir()] == ['4']
  assert (documents / '4').read_text() == 'thesis'


def test_a_number_needs_no_other_checkpoint(copy, caplog):
  (copy / 'checkpoints' / '20' / 'run' / 'metadata').unlink()
  for which in ('10', 'final', 'best', 'newest'):
    assert checkpoint.open_run(copy, which).state.step == 10
  assert caplog.text.count('newer checkpoints than 10') == 3
  with pytest.raises(UserError, match=r'20 is damaged .* of \[10\]'):
    checkpoint.open_run(copy, '20')
  with pytest.raises(UserError, match=r"'11' is not in .* has \[10, 20\]"):
    checkpoint.open_run(copy, '11')


def test_a_run_is_read_while_it_saves(trained, tmp_path):
  run = checkpoint.open_run(trained[1])
  tree, steps, enough = saved_tree(run.state), [], threading.Event()

  def save():
    with checkpoint.Checkpoints(tmp_path, keep=2) as checkpoints:
      for step in range(100, 100_000):
        checkpoints.save({**tree, 'step': np.int32(step)}, run.saved)
        if enough.is_set():
          return

  thread = threading.Thread(target=save)
  thread.start()
  try:
    while len(steps) < 20 or len({*steps}) < 3:
      assert thread.is_alive()
      if checkpoint.has_checkpoint(tmp_path):
        steps.append(int(checkpoint.open_run(tmp_path, 'newest').state.step))
  finally:
    enough.set()
    thread.join()
  assert steps == sorted(steps)


def test_nobody_needs_to_read_what_a_run_says(trained, tmp_path):
  """Its reader ends before it does, or there never was one."""
  recipe, _, result = trained
  run = [*commands.MAIN, '--config', recipe, '--workdir', tmp_path / 'run']
  command = shlex.join(map(str, run))
  end = '2>&1 >&- | head -n 14'
  bash = ['bash', '-c', f'{command} {end}; exit ${{PIPESTATUS[0]}}']
  commands.done(commands.run(*bash))
  found = checkpoint.open_run(tmp_path / 'run').saved
  assert found.digest == result['state_digest']


def test_an_image_that_cannot_be_read_costs_nothing(photos, tmp_path):
  """Neither the state nor a row of the history, wherever it comes."""
  recipe, folder = photos
  broken = folder / 'train' / 'b' / '13.png'
  broken.write_bytes(broken.read_bytes()[:99])
  mean = '--config.data.mean=none'
  whole = commands.train_here(recipe, tmp_path / 'whole', SKIP, mean)
  with pytest.raises(UserError, match=r'b/13\.png'):
    commands.train_here(recipe, tmp_path / 'run', mean)
  assert checkpoint.has_checkpoint(tmp_path / 'run')
  run = commands.train_here(recipe, tmp_path / 'run', SKIP, mean)
  assert run['state_digest'] == whole['state_digest']
  assert timeless(tmp_path / 'run') == timeless(tmp_path / 'whole')


def test_data_that_cannot_be_read_costs_no_step(tmp_path, monkeypatch):
  take, calls = parallel.DeviceBatches.take, []

  def failing(batches):
    calls.append(1)
    if len(calls) == 4:
      raise OSError(errno.EIO, 'Input/output error')
    return take(batches)

  monkeypatch.setattr(parallel.DeviceBatches, 'take', failing)
  recipe = commands.write_recipe(tmp_path, eval_every_steps=100)
  with pytest.raises(OSError, match='Input/output'):
    commands.train_here(recipe, tmp_path / 'run')
  assert checkpoint.read_newest(tmp_path / 'run')[0] == 3


@pytest.mark.parametrize(
  ('evaluate_every', 'rate', 'message'),
  [(9, '3e38', 'step 1 is not saved'), (1, '1e30', 'the loss is .* at step 1')],
)
def test_a_diverged_state_is_not_saved(tmp_path, evaluate_every, rate, message):
  """Its training loss is that of the state before, and finite."""
  recipe = commands.write_recipe(
    tmp_path, num_steps=2, eval_every_steps=evaluate_every, save_every_steps=1
  )
  rate = f'--config.optimizer.learning_rate={rate}'
  with pytest.raises(NonFiniteLossError, match=message):
    commands.train_here(recipe, tmp_path / 'run', rate)
  assert not checkpoint.has_checkpoint(tmp_path / 'run')


def test_other_microbatches_are_refused(tmp_path):
  recipe = commands.write_recipe(tmp_path, num_steps=1, model__norm='batch')
  commands.train_here(recipe, tmp_path / 'run')
  with pytest.raises(UserError, match='microbatch_size that gives 1'):
    commands.train_here(recipe, tmp_path / 'run', '--config.microbatch_size=1')

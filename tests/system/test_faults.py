"""Faults around a run, by which nothing good is lost."""

import fcntl
import json
import shutil
import sys

import cv2
import numpy as np
import pytest

from alexnet_jax.training import writers
from tests import mounts
from tests.system import commands

EVALUATE = [sys.executable, '-m', 'alexnet_jax.evaluation.evaluate', '--json']
STOPPING = {
  'early_stopping__enabled': True,
  'early_stopping__monitor': 'eval/loss',
  'early_stopping__mode': 'min',
  'early_stopping__patience': 100,
  'checkpoint__monitor': 'eval/loss',
  'checkpoint__mode': 'min',
}


def train_args(recipe, workdir, *overrides):
  run = ['--config', recipe, '--workdir', workdir]
  return [*commands.MAIN, *run, *overrides]


def evaluate(workdir, *arguments):
  code, out, err = commands.run(*EVALUATE, '--workdir', workdir, *arguments)
  assert code == 0, err
  result = json.loads(out)
  del result['images_per_second']  # The machine's, not the run's.
  return result


def refused(*arguments):
  """The message of a command that the user can mend."""
  code, out, err = commands.run(*arguments)
  assert code == 2, err
  assert 'Traceback' not in err
  assert out == ''
  return err


@pytest.fixture(scope='module')
def trained(tmp_path_factory):
  folder = tmp_path_factory.mktemp('trained')
  recipe = commands.write_recipe(folder, num_steps=20)
  return recipe, folder / 'run', commands.train(recipe, folder / 'run')


def write_photos(folder, seed):
  """train/ and val/ of two classes that brightness tells apart."""
  rng = np.random.default_rng(seed)
  for split, count in (('train', 10), ('val', 3)):
    for name, brightness in (('dark', 0), ('light', 128)):
      target = folder / split / name
      target.mkdir(parents=True)
      for i in range(count):
        image = rng.integers(0, 128, (30, 40, 3)) + brightness
        cv2.imwrite(str(target / f'{i}.png'), image.astype(np.uint8))


@pytest.fixture(scope='module')
def photo_run(tmp_path_factory):
  """A folder with photos/, recipe.py and run/, trained on them."""
  folder = tmp_path_factory.mktemp('photo_run')
  write_photos(folder / 'photos', seed=0)
  recipe = commands.write_recipe(folder, num_steps=10, data__source='folder')
  path = f'--config.data.path={folder / "photos"}'
  commands.train(recipe, folder / 'run', path)
  return folder


@pytest.fixture
def photo_copy(photo_run, tmp_path):
  """A copy of `photo_run`, and the arguments that train it."""
  folder = shutil.copytree(photo_run, tmp_path / 'copy')
  path = f'--config.data.path={folder / "photos"}'
  return folder, train_args(folder / 'recipe.py', folder / 'run', path)


@pytest.mark.slow
def test_evaluation_leaves_a_save_under_way_alone(trained):
  _, workdir, result = trained
  under_way = workdir / 'checkpoints' / '99.orbax-checkpoint-tmp'
  under_way.mkdir()
  assert evaluate(workdir)['state_digest'] == result['state_digest']
  assert under_way.is_dir()
  under_way.rmdir()


def test_a_second_run_in_the_same_folder_is_refused(trained):
  recipe, workdir, _ = trained
  with (workdir / '.lock').open('w') as file:
    fcntl.flock(file, fcntl.LOCK_EX)
    err = refused(*train_args(recipe, workdir))
  assert 'another run is training' in err


@pytest.mark.slow
def test_a_damaged_best_checkpoint_is_named(tmp_path):
  # Nothing gets better than the first evaluation by 10.
  recipe = commands.write_recipe(
    tmp_path, num_steps=30, early_stopping__threshold=10.0, **STOPPING
  )
  workdir = tmp_path / 'run'
  assert commands.train(recipe, workdir)['step'] == 10
  shutil.rmtree(workdir / 'checkpoints' / '10' / 'state')
  err = refused(*train_args(recipe, workdir))
  assert 'checkpoints/10, is damaged' in err


@pytest.mark.slow
def test_changed_data_is_refused(photo_copy):
  folder, arguments = photo_copy
  (folder / 'photos' / 'val' / 'dark' / '0.png').unlink()
  (folder / 'photos' / 'train' / 'dark' / '0.png').unlink()
  err = refused(*arguments)
  assert 'the data of' in err
  assert ' num_examples: 20 -> 19' in err
  assert 'eval_num_examples: 6 -> 5' in err


@pytest.mark.slow
def test_evaluation_refuses_other_classes(photo_copy):
  folder, _ = photo_copy
  data = ('--data_path', folder / 'photos')
  assert evaluate(folder / 'run', *data)['examples'] == 6
  for split in ('train', 'val'):
    source = folder / 'photos' / split / 'dark'
    shutil.copytree(source, folder / 'photos' / split / 'amber')
  err = refused(*EVALUATE, '--workdir', folder / 'run', *data)
  assert "has 3 classes ('amber', 'dark', 'light'), but the network" in err


@pytest.mark.slow
def test_an_unreadable_validation_image_loses_no_step(photo_copy):
  folder, arguments = photo_copy
  shutil.rmtree(folder / 'run')
  (folder / 'photos' / 'val' / 'light' / '1.png').write_bytes(b'broken')
  err = refused(*arguments)
  assert 'val/light/1.png' in err
  assert (folder / 'run' / 'checkpoints' / '10').is_dir()
  code, _, err = commands.run(*arguments, '--config.data.unreadable=skip')
  assert code == 0, err
  assert 'done at step 10' in err


def test_a_refused_start_changes_nothing(trained):
  recipe, workdir, _ = trained
  before = commands.contents(workdir)
  err = refused(
    *train_args(recipe, workdir, '--config.model.dropout=0.25'),
    '--config.optimizer.momentum=0.8',
  )
  assert 'config.model.dropout: 0.5 -> 0.25' in err
  assert 'config.optimizer.momentum: 0.9 -> 0.8' in err
  assert commands.contents(workdir) == before


@pytest.mark.slow
def test_a_run_longer_than_planned_is_the_longer_run(tmp_path):
  """The first end need not be a multiple of the evaluation's interval."""
  recipe = commands.write_recipe(
    tmp_path, schedule__threshold=10.0, schedule__patience=2, num_steps=40
  )
  short, whole = tmp_path / 'short', tmp_path / 'whole'
  commands.train(recipe, short, '--config.num_steps=15')
  longer = commands.train(recipe, short)
  assert longer['state_digest'] == commands.train(recipe, whole)['state_digest']
  rates = {row.get('learning_rate') for row in writers.read_rows(short)}
  assert len(rates - {None}) == 2  # the plateau drops, and at the same step


@pytest.mark.slow
def test_a_disk_that_fills_up_under_the_logs_ends_the_run(small_disk):
  recipe = commands.write_recipe(
    small_disk, num_steps=100_000, eval_every_steps=100_000, log_every_steps=1
  )
  process = commands.start(*train_args(recipe, small_disk / 'run'))
  while not writers.read_rows(small_disk / 'run'):
    assert process.poll() is None
  with pytest.raises(OSError, match='No space left'):
    (small_disk / 'filler').write_bytes(b'x' * (8 << 20))
  _, err = process.communicate(timeout=60)
  assert process.returncode == 2, err
  assert 'No space left' in err
  assert 'Traceback' not in err


@pytest.mark.slow
def test_a_folder_that_cannot_be_written(small_disk):
  recipe = commands.write_recipe(small_disk)
  mounts.remount(small_disk, 'ro')
  err = refused(*train_args(recipe, small_disk / 'run'))
  assert 'Read-only file system' in err
  err = refused(*train_args(recipe, recipe))
  assert 'File exists' in err


@pytest.mark.slow
def test_a_damaged_mean_is_computed_again(trained, tmp_path):
  recipe, _, result = trained
  workdir = tmp_path / 'run'
  commands.train(recipe, workdir, '--config.num_steps=10')
  (workdir / 'pixel_mean.npz').write_bytes(b'')
  assert 'pixel_mean.npz' in refused(*EVALUATE, '--workdir', workdir)
  resumed = commands.train(recipe, workdir)
  assert resumed['state_digest'] == result['state_digest']

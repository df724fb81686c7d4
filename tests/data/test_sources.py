import hashlib
import shutil

import numpy as np
import pytest

from alexnet_jax.data import sources
from alexnet_jax.data import splits
from alexnet_jax.errors import UserError
from tests.data.pictures import encode
from tests.data.pictures import write


def make_folder(root, classes):
  """Writes `classes[name]` images into each subfolder."""
  for label, (name, count) in enumerate(classes.items()):
    (root / name).mkdir(parents=True)
    # The same file names in every class.
    for i in range(count):
      image = np.full((10, 12, 3), 20 * label + i, np.uint8)
      write(root, {f'{name}/image_{i:04d}.png': encode(image, 'PNG')})


def both(path, **options):
  return [
    sources.make_source('folder', split, path=str(path), **options)
    for split in sources.SPLITS
  ]


def test_folder_split_is_stratified_and_complete(tmp_path):
  make_folder(tmp_path / 'train', {'cat': 10, 'dog': 20, 'emu': 5})
  train, validation = both(tmp_path, val_fraction=0.2)
  assert np.bincount(train.labels).tolist() == [8, 16, 4]
  assert np.bincount(validation.labels).tolist() == [2, 4, 1]
  paths = [*train.paths, *validation.paths]
  assert len(set(paths)) == 35
  assert train.class_names == ['cat', 'dog', 'emu']


def test_folder_split_stays_when_images_are_added(tmp_path):
  make_folder(tmp_path, {'cat': 30, 'dog': 30})
  before = set(both(tmp_path)[1].paths)
  assert before == set(both(tmp_path)[1].paths)
  assert before != set(both(tmp_path, split_seed=1)[1].paths)
  (tmp_path / 'cat' / 'new.png').touch()
  after = set(both(tmp_path)[1].paths) - {'cat/new.png'}
  assert len(before - after) <= 1


def test_held_out_ranks_by_hash():
  """The same ranking by hand: this split must never change."""
  keys = [f'k{i}' for i in range(10)]
  labels = np.array([0, 1] * 5)
  mask = splits.held_out(keys, labels, 0.4, 7)
  for label in (0, 1):
    members = [i for i in range(10) if labels[i] == label]
    members.sort(key=lambda i: hashlib.sha256(f'7:k{i}'.encode()).hexdigest())
    assert [bool(mask[i]) for i in members] == [True] * 2 + [False] * 3


def test_folder_with_train_and_val_uses_them(tmp_path):
  make_folder(tmp_path / 'train', {'cat': 3, 'dog': 4, 'emu': 2})
  make_folder(tmp_path / 'val', {'dog': 2, 'emu': 1})
  train, validation = both(tmp_path)
  assert train.num_examples == 9
  assert validation.labels.tolist() == [1, 1, 2]  # training's numbers
  pixels, label = validation.read(2)
  assert label == 2
  assert pixels == (tmp_path / 'val/emu/image_0000.png').read_bytes()
  assert validation.describe(2).endswith('val/emu/image_0000.png')


def test_folder_ignores_hidden_and_names_other_files(tmp_path, caplog):
  make_folder(tmp_path, {'cat': 3, 'dog': 3})
  (tmp_path / 'cat' / '.DS_Store').write_text('x')
  (tmp_path / '.cache').mkdir()
  hidden = tmp_path / 'cat' / '.ipynb_checkpoints'
  shutil.copytree(tmp_path / 'cat', hidden)
  (tmp_path / 'dog' / 'notes.txt').write_text('x')
  (tmp_path / 'dog' / 'x.png').symlink_to(tmp_path / 'nowhere.png')
  train, validation = both(tmp_path)
  assert train.num_examples + validation.num_examples == 6
  assert '2 files that are no images' in caplog.text
  assert 'the first: dog/notes.txt' in caplog.text


def test_fingerprint_follows_the_files(tmp_path):
  make_folder(tmp_path, {'cat': 5, 'dog': 5})
  before = both(tmp_path)[0].fingerprint
  assert before == both(tmp_path)[0].fingerprint
  victim = tmp_path / both(tmp_path)[0].paths[0]
  victim.write_bytes(victim.read_bytes() + b'x')
  assert both(tmp_path)[0].fingerprint != before


@pytest.mark.parametrize(
  ('classes', 'message'),
  [
    ({}, 'no subfolders'),
    ({'cat': 3}, "one class only \\('cat'\\)"),
    ({'cat': 3, 'dog': 0}, 'dog has no images'),
    ({'cat': 3, 'dog': 1}, 'single example'),
  ],
)
def test_folder_refuses(tmp_path, classes, message):
  make_folder(tmp_path, classes)
  with pytest.raises(UserError, match=message):
    both(tmp_path)


def test_missing_folders_and_unknown_classes_are_named(tmp_path):
  with pytest.raises(UserError, match=r'no folder at .*nowhere'):
    both(tmp_path / 'nowhere')
  make_folder(tmp_path / 'train', {'cat': 2, 'dog': 2})
  make_folder(tmp_path / 'val', {'cat': 2, 'yak': 2})
  with pytest.raises(UserError, match=r"training lacks: \['yak'\]"):
    both(tmp_path)


def test_digits_are_mnist():
  train, validation = (sources.digits_source(s) for s in sources.SPLITS)
  assert np.bincount(train.labels).tolist() == [400] * 10
  assert np.bincount(validation.labels).tolist() == [100] * 10
  image, label = train.read(0)
  assert image.shape == (28, 28, 3)
  assert label == 0
  # Ink is bright on black, and no digit is in both splits.
  assert image[0].max() == 0
  assert image.max() > 200
  ours = {i.tobytes() for i in train.images}
  shared = sum(i.tobytes() in ours for i in validation.images)
  assert shared == 0


def test_synthetic_classes_differ_and_splits_too():
  train = sources.synthetic_source('train', 40, 4)
  validation = sources.synthetic_source('validation', 40, 4)
  assert train.num_examples == 40
  assert validation.num_examples == 10
  assert (train.images[0] != validation.images[0]).any()
  bands = train.images[train.labels == 2].mean((0, 2, 3))
  assert bands[32:48].min() > bands[:32].max()
  assert train.fingerprint != validation.fingerprint


def test_missing_tfds_set_names_the_command(tmp_path):
  with pytest.raises(UserError) as info:
    sources.make_source(
      'tfds',
      'train',
      path=str(tmp_path),
      tfds_name='imagenet2012',
      tfds_split='train',
    )
  message = str(info.value)
  assert 'ILSVRC2012_img_train.tar' in message
  assert 'alexnet_jax.data.prepare tfds --name imagenet2012' in message
  assert str(tmp_path) in message

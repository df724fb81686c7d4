import contextlib
import hashlib
import pathlib
import shutil

import numpy as np
import pytest
from sklearn.model_selection import StratifiedKFold

from alexnet_jax import config as config_lib
from alexnet_jax.data import pixel_statistics, sources, splits
from alexnet_jax.data.loader import Loader
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from tests.data.batches import assert_same, train_iter
from tests.data.pictures import (
  contents,
  COUNTS,
  LABELS,
  photographs,
  write,
  write_set,
)

FOLDS = 5
SIZE = 64
SYNTHETIC = {
  'source': 'synthetic',
  'synthetic_examples': 24,
  'synthetic_classes': 3,
}


@pytest.fixture(scope='module')
def layouts(sets):
  return {**sets, 'synthetic': SYNTHETIC}


@pytest.mark.parametrize(
  ('names', 'train', 'validation'),
  [
    ('train-0 val-0 train-1', 'train-0 train-1', 'val-0'),
    ('train/0 validation/0 test/0', 'train/0', 'validation/0'),
    ('d/a-Training-0 d/a-testing-0', 'd/a-Training-0', 'd/a-testing-0'),
    ('valley-0 trains-0', 'valley-0 trains-0', ''),
    ('trainData0 valData0 TESTData0', 'trainData0', 'valData0'),
    # A word that all names have says nothing.
    ('a-test-train-0 a-test-val-0', 'a-test-train-0', 'a-test-val-0'),
    ('train-set-train train-set-val', 'train-set-train', 'train-set-val'),
    ('my-test/train-0 my-test/Dev-0', 'my-test/train-0', 'my-test/Dev-0'),
    # Left out: for both splits, or for none.
    ('train-0 train-val-0', 'train-0', ''),
    ('train-0 extra-0', 'train-0', ''),
  ],
)
def test_files_are_sorted_by_the_words_in_their_names(names, train, validation):
  found = splits.sort_into_splits('root', names.split())
  assert found == (train.split(), validation.split())


@pytest.mark.parametrize(
  ('names', 'message'),
  [
    ('val-0', 'no files for training.*val-0'),
    ('a-test-train-0 a-test-val-0 a-test-0', 'no files for training'),
    ('birds/train-0 fish/train-0', r'in 2 folders \(birds, fish\)'),
  ],
)
def test_files_that_cannot_be_sorted(names, message):
  with pytest.raises(UserError, match=message):
    splits.sort_into_splits(pathlib.Path('root'), names.split())


def test_files_that_are_left_out_are_counted(caplog):
  splits.sort_into_splits('here', ['train-0', 'train-val-0', 'x', 'test-0'])
  assert 'here: 2 files of no split are left out' in caplog.text
  assert 'here: the test split serves as validation' in caplog.text


@pytest.mark.parametrize('source', ['tar', 'parquet', 'folder'])
def test_missing_files_are_named(tmp_path, source):
  with pytest.raises(UserError, match=r'no folder at .*nowhere'):
    sources.make_source(source, 'train', path=str(tmp_path / 'nowhere'))
  (tmp_path / f'train.{source}').symlink_to('nowhere')
  message = rf'no file whose name ends in \.{source}|no subfolders'
  with pytest.raises(UserError, match=message):
    sources.make_source(source, 'train', path=str(tmp_path))


def copy_tar(layouts, path):
  shutil.copy(pathlib.Path(layouts['tar']['path'], 'all-0.tar'), path)


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ('1-of-3', 'has 1 files train-I-of-3, not one for each I; fetch all'),
    ('0-of-99999999', 'has 1 files train-I-of-99999999'),
    ('0-of-1 0-of-2 1-of-2', r'has train-I-of-N with N of \[1, 2\]'),
    ('0-of-2 0-of-2-b', 'has 2 files train-I-of-2, not one for each I'),
    ('0-of-2 2-of-2', 'not one for each I'),
    ('0-of-2 1-of-2', ''),
    ('1-of-2 2-of-2', ''),
  ],
)
def test_shards_that_count_themselves_are_all_there(
  layouts, tmp_path, files, message
):
  for name in files.split():
    end = '' if 'b' in name else '-a1'
    copy_tar(layouts, tmp_path / f'train-{name}{end}.tar')
  with (
    pytest.raises(UserError, match=message)
    if message
    else contextlib.nullcontext()
  ):
    sources.make_source('tar', 'train', path=str(tmp_path))


def test_a_file_is_in_one_split(layouts, tmp_path):
  copy_tar(layouts, tmp_path / 'train.tar')
  (tmp_path / 'val.tar').symlink_to('train.tar')
  with pytest.raises(UserError, match=r'train\.tar and val\.tar are one'):
    sources.make_source('tar', 'train', path=str(tmp_path))


@pytest.mark.parametrize(
  ('kind', 'name'),
  [
    ('folder', 'ant/00.jpg'),
    ('tar', 'all-0.tar'),
    ('parquet', 'all-0.parquet'),
  ],
)
def test_files_that_change_or_go_under_a_run_are_named(tmp_path, kind, name):
  root = write_set(tmp_path / 'set', kind, 'all', photographs())
  source = sources.make_source(kind, 'train', path=str(root), val_fraction=0.0)
  path = root / name
  whole = path.read_bytes()
  path.write_bytes(whole + bytes(512))
  with pytest.raises(UserError, match=f'{path} has changed'):
    source.read(0)
  path.unlink()
  with pytest.raises(UserError, match='No such file'):
    source.read(0)
  path.write_bytes(whole)
  assert source.read(0) == photographs()[0]  # an error leaves nothing behind


KEYS = {
  'folder': lambda i: f'{list(COUNTS)[LABELS[i]]}/{i:02d}.jpg',
  'tar': lambda i: f'all-0.tar/{i:02d}',
  'parquet': lambda i: f'all-0.parquet row {i}',
}


@pytest.mark.parametrize('kind', KEYS)
def test_held_out_ranks_by_hash(layouts, kind):
  """The same ranking by hand: this split must never change."""
  divided = {'val_fraction': 0.3, 'split_seed': 7}
  train, held = (
    hashable(sources.make_source(**layouts[kind], split=split, **divided))
    for split in sources.SPLITS
  )

  def rank(index):
    return hashlib.sha256(f'7:{KEYS[kind](index)}'.encode()).digest()

  expected = []
  for label, count in enumerate((4, 2, 2)):  # 0.3 of each class, rounded
    members = [i for i in range(24) if LABELS[i] == label]
    expected += sorted(members, key=rank)[:count]
  examples = photographs()
  assert held == [examples[i] for i in sorted(expected)]
  assert sorted(train + held) == sorted(examples)
  names = {}
  for fraction in (0.0, 0.3):
    for split in (*sources.SPLITS, 'all'):
      options = {**divided, 'val_fraction': fraction, 'split': split}
      source = sources.make_source(**layouts[kind], **options)
      names[fraction, split] = source.fingerprint
  assert names[0.0, 'all'] == names[0.0, 'train'] != names[0.3, 'train']
  assert names[0.3, 'all'] == names[0.0, 'all']
  assert names[0.3, 'validation'] != names[0.3, 'train']


def test_never_all_of_a_class_is_held_out(tmp_path):
  """Nor none; the one of a class with a single example is named."""
  labels = np.array([0] * 2 + [1] * 9, np.int32)
  whole = sources.ArraySource('it', labels, labels, ('emu', 'gnu'))
  for fraction, counts in ((0.99, [1, 8]), (0.01, [1, 1]), (0, [0, 0])):
    held = splits.hold_out(whole, splits.Side('validation', fraction))
    assert np.bincount(held.labels, minlength=2).tolist() == counts
  with pytest.raises(UserError, match=r"single example: 'emu' \(0\); add"):
    splits.hold_out(whole.take(np.array([0, 5, 6])), splits.Side('train'))


def test_digits_are_mnist():
  train, validation = (sources.make_source('digits', s) for s in sources.SPLITS)
  assert np.bincount(train.labels).tolist() == [400] * 10
  assert np.bincount(validation.labels).tolist() == [100] * 10
  image, label = train.read(0)
  assert image.shape == (28, 28, 3)
  assert label == 0
  # Ink is bright on black, and no digit is in both splits.
  assert image[0].max() == 0
  assert image.max() > 200
  assert not set(hashable(train)) & set(hashable(validation))


def test_synthetic_classes_differ_and_splits_too():
  train, validation = (
    sources.synthetic_source(split, 40, 4) for split in sources.SPLITS
  )
  assert [train.num_examples, validation.num_examples] == [40, 10]
  assert not set(hashable(train)) & set(hashable(validation))
  bands = train.images[train.labels == 2].mean((0, 2, 3))
  assert bands[32:48].min() > bands[:32].max()
  assert train.fingerprint != validation.fingerprint


# Examples in the pool: all of them, or those of the training split.
POOLS = {'folder': 24, 'tar': 24, 'parquet': 24, 'raw': 20, 'tfds': 20}
POOLS |= {'synthetic': 24}


def open_fold(layouts, kind, split, fold, number=FOLDS, **options):
  number = 3 if kind in ('raw', 'tfds') else number  # of `cat` 4 are left
  return sources.make_source(
    **layouts[kind], split=split, folds=number, fold=fold, **options
  )


def hashable(source):
  return [
    (content if isinstance(content, bytes) else content.tobytes(), label)
    for content, label in contents(source)
  ]


@pytest.mark.parametrize('kind', POOLS)
def test_every_example_is_held_out_in_exactly_one_fold(layouts, kind):
  number = 3 if kind in ('raw', 'tfds') else FOLDS
  held_out, fingerprints = [], set()
  for fold in range(number):
    validation = open_fold(layouts, kind, 'validation', fold)
    train = open_fold(layouts, kind, 'train', fold)
    found, others = hashable(validation), hashable(train)
    assert not set(found) & set(others)
    assert len(found) + len(others) == POOLS[kind]
    assert train.labels.tolist() == [label for _, label in others]
    held_out += found
    fingerprints |= {train.fingerprint, validation.fingerprint}
  assert len(held_out) == len(set(held_out)) == POOLS[kind]
  assert len(fingerprints) == 2 * number


def test_the_folds_are_those_of_scikit_learn(layouts):
  seed = 3
  stratified = StratifiedKFold(FOLDS, shuffle=True, random_state=seed)
  expected = stratified.split(np.zeros(24), LABELS)
  for fold, (train, held_out) in enumerate(expected):
    for split, indices in (('train', train), ('validation', held_out)):
      part = open_fold(layouts, 'folder', split, fold, split_seed=seed)
      # In the order of the pool: 00.jpg, 01.jpg, ...
      names = [int(part.file_name(i)[-6:-4]) for i in range(part.num_examples)]
      assert names == indices.tolist()


def test_folds_that_cannot_be(layouts, tmp_path):
  few = r"'bee' \(7\), 'cat' \(5\)"
  message = rf'classes with fewer than config\.data\.folds = 9 examples: {few}'
  with pytest.raises(UserError, match=message):
    open_fold(layouts, 'folder', 'train', 0, 9)
  with pytest.raises(UserError, match=r"'test', not one of.*folds is 3"):
    open_fold(layouts, 'tfds', 'test', 0)
  with pytest.raises(UserError, match=r"'all', not one of.*folds is 5"):
    open_fold(layouts, 'folder', 'all', 0)
  with pytest.raises(UserError, match="split is 'all', not one of"):
    sources.make_source('synthetic', 'all')
  for folds, fold in ((3, 3), (3, -1), (1, 0)):
    with pytest.raises(UserError, match=f'fold is {fold} of {folds}; give'):
      open_fold(layouts, 'folder', 'train', fold, folds)
  # Nothing is held out of the pool, so the message is that of the folds.
  files = {'a/1.jpg': b'a', 'a/2.jpg': b'b', 'dog/99.jpg': b'c'}
  root = write(tmp_path, files)
  with pytest.raises(UserError, match=r"examples: 'dog' \(1\)"):
    sources.make_source('folder', 'train', path=str(root), folds=2)
  root = write(tmp_path / 'many', {f'{i}/1.jpg': b'' for i in range(9)})
  with pytest.raises(UserError, match=r"'4' \(1\), 4 others$"):
    sources.make_source('folder', 'train', path=str(root), folds=2)


def test_a_validation_folder_stays_out_of_the_pool(tmp_path):
  for name in ('train', 'val'):
    write_set(tmp_path / name, 'folder', '', photographs())
  part = sources.make_source('folder', 'train', path=str(tmp_path), folds=2)
  assert part.source.root == tmp_path / 'train'
  assert part.source.num_examples == 24


def test_a_fold_of_a_raw_set_takes_the_fast_path(layouts, monkeypatch):
  part = open_fold(layouts, 'raw', 'train', 1)

  def batches():
    options = {'num_steps': 4, 'global_batch_size': 5, 'seed': 3}
    options |= {'crop_size': SIZE - 4, 'prefetch': 0}
    return list(train_iter(Loader(part, SIZE), **options))

  with monkeypatch.context() as patch:
    patch.setattr(Loader, 'pixels', None)  # it must not be called
    fast = batches()
  monkeypatch.setattr(Loader, 'square_addresses', lambda *_: None)
  assert_same(fast, batches())


def test_the_mean_is_that_of_the_fold(layouts, tmp_path):
  """Not that of the whole raw set, which its manifest has."""
  config = config_lib.make_config()
  config.data.update(layouts['raw'], folds=3, fold=1, mean='channel')
  config.data.update(resize_size=SIZE, crop_size=SIZE)
  loader = build.make_loader(config, 'train')
  mean = build.find_pixel_statistics(config, loader, tmp_path).mean
  squares = [pixels for pixels, _ in contents(loader.source)]
  np.testing.assert_allclose(mean, np.mean(squares, (0, 1, 2)), rtol=1e-6)
  whole = loader.source.source.rgb_mean
  assert np.abs(mean - whole).max() > 0.5
  np.testing.assert_allclose(
    pixel_statistics.compute(loader)[0].mean((0, 1)), mean, rtol=1e-6
  )


def test_the_config_opens_the_training_split_of_tfds(sets):
  config, options = config_lib.make_config(), dict(sets['tfds'])
  config.data.update(tfds_train_split=options.pop('tfds_split'), folds=3)
  config.data.update(options)
  for split in sources.SPLITS:
    source = build.make_source(config, split)
    assert source.source.name == 'my_folder train'
  with pytest.raises(UserError, match="split is 'test'"):
    build.make_source(config, 'test')

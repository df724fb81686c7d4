import contextlib
import io
import os
import unicodedata
from unittest import mock

import numpy as np
import PIL.ExifTags
import PIL.Image
import pytest

from alexnet_jax.data import folder, sources
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.prepare.check import check
from alexnet_jax.errors import UnreadableImageError, UserError
from tests.data.pictures import encode, noise, write


def make_classes(root, **counts):
  """Writes so many images into each class's folder; returns root."""
  root.mkdir(exist_ok=True, parents=True)
  for label, (name, count) in enumerate(counts.items()):
    (root / name).mkdir()
    # The same file names in every class.
    for i in range(count):
      image = np.full((10, 12, 3), 20 * label + i, np.uint8)
      write(root, {f'{name}/image_{i:04d}.png': encode(image, 'PNG')})
  return root


def both(path, **options):
  return [
    sources.make_source('folder', split, path=str(path), **options)
    for split in sources.SPLITS
  ]


def sizes(path):
  return [source.num_examples for source in both(path)]


def refused(path, message):
  """By training, and by check as well."""
  for split in sources.SPLITS:
    with pytest.raises(UserError, match=message):
      sources.make_source('folder', split, path=str(path))
  with contextlib.suppress(UserError):
    assert check(str(path), 'folder')['errors']


@pytest.fixture
def tree(tmp_path):
  names = (
    'z.gif b.PNG a.jpg notes.txt .hidden.png x/c.tiff x/y/d.webp .cache/e.png'
  )
  write(tmp_path, dict.fromkeys([*names.split(), 'empty/readme'], b''))
  (tmp_path / 'dangling.png').symlink_to(tmp_path / 'gone')
  return tmp_path


def test_folders_are_walked_and_files_taken_as_they_are(tree):
  notes = str(tree / 'notes.txt')
  found = folder.find_images([notes, str(tree), notes, str(tree / 'x')])
  names = ('a.jpg', 'b.PNG', 'x/c.tiff', 'x/y/d.webp', 'z.gif')
  below = [f'{tree}/{name}' for name in names]
  assert found == [notes, *below, notes, *below[2:4]]


def test_files_that_are_not_there(tree, caplog):
  paths = [str(tree), str(tree / 'no.png'), str(tree / 'dangling.png'), '']
  with pytest.raises(UserError, match=r"no\.png', .*dangling\.png', ''$"):
    folder.find_images(paths)
  with pytest.raises(UserError, match=r'no image in .*empty.*webp'):
    folder.find_images([str(tree / 'empty')])
  found = folder.find_images([str(tree / 'empty'), str(tree / 'a.jpg')])
  assert found == [str(tree / 'a.jpg')]
  assert 'empty: no images' in caplog.text


def test_files_that_change_or_go_under_a_run(tmp_path):
  source, _ = both(make_classes(tmp_path, cat=5, dog=5))
  (tmp_path / source.paths[1]).write_bytes(b'?')
  with pytest.raises(UserError, match='has changed'):
    source.read(1)
  assert both(tmp_path)[0].fingerprint != source.fingerprint
  (tmp_path / source.paths[0]).unlink()
  with pytest.raises(UnreadableImageError, match='No such file'):
    Loader(source, 8).pixels(0)
  assert Loader(source, 8, unreadable='skip').pixels(0) is None


def test_the_held_out_part_stays_when_images_are_added(tmp_path):
  make_classes(tmp_path, cat=30, dog=30)
  before = set(both(tmp_path)[1].paths)
  assert before == set(both(tmp_path)[1].paths)
  assert before != set(both(tmp_path, split_seed=1)[1].paths)
  (tmp_path / 'cat' / 'new.png').touch()
  after = set(both(tmp_path)[1].paths) - {'cat/new.png'}
  assert len(before - after) <= 1


def test_labels_of_validation_are_those_of_training(tmp_path):
  make_classes(tmp_path / 'train', cat=3, dog=4, emu=2)
  make_classes(tmp_path / 'val', dog=2, emu=1)
  train, validation = both(tmp_path)
  assert train.num_examples == 9
  assert validation.labels.tolist() == [1, 1, 2]
  path = tmp_path / 'val/emu/image_0000.png'
  assert validation.read(2) == (path.read_bytes(), 2)
  assert validation.describe(2) == str(path)


@pytest.mark.parametrize(
  ('folders', 'expected'),
  [
    ({'Training': 4, 'Testing': 2}, [8, 4]),
    ({'training': 4, 'validation': 2, 'test': 3}, [8, 4]),
    ({'train': 4, 'test1': 2}, [8, 4]),
    ({'train': 4, 'other': 2}, [6, 2]),  # a part of train is held out
  ],
)
def test_folders_named_like_splits_are_splits(tmp_path, folders, expected):
  for name, count in folders.items():
    make_classes(tmp_path / name, cat=count, dog=count)
  assert sizes(tmp_path) == expected
  assert both(tmp_path)[0].class_names == ['cat', 'dog']
  found = check(str(tmp_path))['splits'].values()
  assert sum(split['examples'] for split in found) == sum(expected)


def test_folders_that_are_not_read_are_named(tmp_path, caplog):
  for name in ('train', 'unused'):
    make_classes(tmp_path / name, cat=5, dog=5)
  write(tmp_path, {'test/0.png': b''})
  assert sizes(tmp_path) == [8, 2]
  assert 'not read: test, unused' in caplog.text
  make_classes(tmp_path / 'test', cat=2, dog=2)
  assert sizes(tmp_path) == [10, 4]
  assert 'test split serves as validation' in caplog.text


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ('train/cat.0.png test1/0.png', r'named like splits.*\(test1, train\)'),
    ('cat/a.png cat/b.png dog/a.png dog/b.png test/c.png', r'\(test\)'),
    ('seg_train/cat/a.png seg_test/cat/a.png seg_pred/1.png', 'seg_test, seg'),
    ('train/a/1.png Training/a/1.png', 'has 2 folders for train'),
    ('a/train/x/1.png a/val/x/2.png b/train/x/3.png b/val/x/4.png', '/a holds'),
    ('valid/1.png train/1.png cat/1.png', r'\(train, valid\)'),
  ],
)
def test_folders_of_splits_are_no_classes(tmp_path, files, message):
  write(tmp_path, dict.fromkeys(files.split(), encode(noise(0), 'PNG')))
  refused(tmp_path, message)


def test_classes_may_be_named_like_splits(tmp_path):
  vehicles = dict.fromkeys(['bullet_train', 'cat', 'dog', 'test_tube'], 5)
  assert sizes(make_classes(tmp_path / '1', **vehicles, train=5)) == [20, 5]
  assert sizes(make_classes(tmp_path / '2', valid=5, invalid=5)) == [8, 2]


def test_one_folder_for_both_splits_is_refused(tmp_path):
  make_classes(tmp_path / 'train', cat=2, dog=2)
  (tmp_path / 'val').symlink_to('train')
  refused(tmp_path, 'are one folder')


def test_links_are_followed(tmp_path):
  outside = make_classes(tmp_path / 'outside', emu=4, more=4)
  root = make_classes(tmp_path / 'data', cat=4, dog=4)
  (root / 'emu').symlink_to(outside / 'emu')
  (root / 'cat' / 'more').symlink_to(outside / 'more')
  (root / 'dog' / 'alive.png').symlink_to(outside / 'emu' / 'image_0000.png')
  assert sum(sizes(root)) == 17
  found = check(str(root))['splits'].values()
  assert sum(split['examples'] for split in found) == 17
  assert len(folder.find_images([str(root)])) == 17


def test_what_is_left_out_is_counted_and_named(tmp_path, caplog):
  root = make_classes(tmp_path, cat=4, dog=4)
  write(root, {'dog/notes.txt': b'x', 'dog/a.heic': b'x', 'loose.png': b'x'})
  (root / 'cat' / '.ipynb_checkpoints').mkdir()
  write(root, {'cat/.ipynb_checkpoints/a.png': b'', '.git/x/a.png': b''})
  (root / 'dog' / 'dead.png').symlink_to('nowhere.png')
  (root / 'dog' / 'self.png').symlink_to('self.png')
  (root / 'dog' / 'round').symlink_to(root)
  os.mkfifo(root / 'dog' / 'pipe.png')
  assert sum(sizes(root)) == 8
  assert (
    'left out: 1 images beside the classes, 1 images of a kind that is not'
    ' read, 2 links to nowhere, 1 other files, 1 no plain files, 1 links to'
    ' a folder around them; the first: loose.png'
  ) in caplog.text
  found = check(str(root))['findings']
  assert sum(f['count'] for f in found if 'left out' in f['text']) == 7


@pytest.mark.parametrize('name', ['cat', 'cat/sub'])
def test_a_folder_that_cannot_be_listed_is_named(tmp_path, monkeypatch, name):
  make_classes(tmp_path, cat=4, dog=4)
  write(tmp_path, {'cat/sub/a.png': b''})
  scandir = os.scandir

  def refuse(path):  # for root a folder of mode 0 is open
    if str(path) == str(tmp_path / name):
      raise PermissionError(13, 'Permission denied', str(path))
    return scandir(path)

  monkeypatch.setattr(os, 'scandir', refuse)
  for opened in (both, check, lambda path: folder.find_images([str(path)])):
    with pytest.raises(PermissionError, match=f'Permission denied.*{name}'):
      opened(tmp_path)


@pytest.mark.parametrize('folders', [('train', 'val'), ('.',)])
def test_listing_is_about_as_fast_as_the_system(tmp_path, folders):
  """By calls: one scandir a folder, one look at it and at each file."""
  for name in folders:
    make_classes(tmp_path / name, **{f'c{i}': 3 for i in range(9)})
  with contextlib.ExitStack() as stack:
    listed, *looks = (
      stack.enter_context(mock.patch.object(os, name, wraps=getattr(os, name)))
      for name in ('scandir', 'stat', 'lstat')
    )
    both(tmp_path)
  paths = [str(call.args[0]) for call in listed.call_args_list]
  below = [path for path in paths if '/c' in path]
  assert len(below) == len(set(below)) == 9 * len(folders)
  # In all: 27 files and 9 classes in a folder, and a few folders around.
  assert sum(look.call_count for look in looks) < 36 * len(folders) + 25


@pytest.mark.parametrize(
  ('classes', 'message'),
  [
    ({}, 'no subfolders'),
    ({'cat': 3}, 'cat is the only class'),
    ({'cat': 3, 'dog': 0, 'emu': 0}, "without images .*: 'dog', 'emu'; fill"),
    (
      {'cat': 3, 'dog': 1, 'emu': 1},
      r"single example: 'dog' \(dog/image.*\), 'emu' \(emu/image.*\); add",
    ),
    ({'caf\u00e9': 3, 'cafe\u0301': 3}, 'spelled in other bytes'),
  ],
)
def test_classes_that_do_not_fit(tmp_path, classes, message):
  make_classes(tmp_path, **classes)
  if not classes:
    write(tmp_path, {'a.png': b''})
  refused(tmp_path, message)


def test_classes_of_validation(tmp_path):
  """One accent in two spellings is one class; an unknown one is named."""
  names = [unicodedata.normalize(form, 'café') for form in ('NFC', 'NFD')]
  for split, name in zip(('train', 'val'), names, strict=True):
    make_classes(tmp_path / split, **{'bar': 2, name: 3})
  assert both(tmp_path)[1].labels.tolist() == [0, 0, 1, 1, 1]
  write(tmp_path, {'val/yak/0.png': b''})
  with pytest.raises(UserError, match="training lacks: 'yak'; remove"):
    both(tmp_path)


def test_a_share_that_nothing_holds_out_is_warned_of(tmp_path, caplog):
  for split in ('train', 'val'):
    make_classes(tmp_path / split, cat=2, dog=2)
  for options in ({}, {'val_fraction': 0.5}):
    for split in ('train', 'validation'):
      sources.make_source('folder', split, path=str(tmp_path), **options)
    said = caplog.text.count('has its own validation split')
    assert said == len(options)
  assert 'val_fraction = 0.5' in caplog.text


def first_pixels(*images):
  loader = Loader(folder.ImageList(images, ('',)), 8)
  return [loader.pixels(i)[0].copy() for i in range(len(images))]


@pytest.mark.parametrize('mode', ['I;16', 'I;16B', 'I', 'F'])
def test_pictures_of_many_bits_are_read_as_their_files_are(mode):
  image = PIL.Image.new(mode, (4, 3), 40_000)
  for given in (image, encode(image, 'TIFF')):
    if mode in 'IF':
      with pytest.raises(UnreadableImageError, match='32-bit pixels'):
        first_pixels(given)
    else:
      assert (first_pixels(given)[0] == 40_000 >> 8).all()


@pytest.mark.parametrize('mode', ['1', 'L', 'LA', 'P', 'RGBA', 'CMYK', 'HSV'])
def test_pictures_of_every_mode_become_rgb(mode):
  image = PIL.Image.fromarray(noise(0)).convert(mode)
  (found,) = first_pixels(image)
  np.testing.assert_array_equal(found, image.convert('RGB'))


def test_turned_pictures_of_16_bits_are_read_as_their_files_are():
  pixels = np.arange(12, dtype=np.uint16).reshape(3, 4) << 8
  exif = PIL.Image.Exif()
  exif[PIL.ExifTags.Base.Orientation] = 6
  file = encode(PIL.Image.fromarray(pixels), 'TIFF', exif=exif)
  small = PIL.Image.open(io.BytesIO(file))
  small.thumbnail((2, 2))
  opened = PIL.Image.open(io.BytesIO(file))
  first, second, third = first_pixels(file, opened, small)
  np.testing.assert_array_equal(first[..., 0], np.rot90(pixels >> 8, -1))
  np.testing.assert_array_equal(second, first)
  np.testing.assert_array_equal(
    third[..., 0], np.asarray(small).astype(np.uint16) >> 8
  )

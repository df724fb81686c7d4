"""ImageNet's two tars, read in place: small images in the real layout."""

import gzip
import importlib.resources
import io
import sys
import tarfile

import numpy as np
import PIL.Image
import pytest

from alexnet_jax.data import (
  BatchOptions,
  make_source,
  tar_shards,
  train_batches,
)
from alexnet_jax.data.imagenet import TRAIN_TAR, VALIDATION_TAR as VAL_TAR
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.prepare.check import check
from alexnet_jax.errors import UserError
from tests.data.pictures import contents, encode, noise, tar_of, write
from tests.system import commands

LISTS = importlib.resources.files('tensorflow_datasets.datasets.imagenet2012')
SYNSETS = (LISTS / 'labels.txt').read_text().split()
VAL_SYNSETS = (LISTS / 'validation_labels.txt').read_text().split()
SOME = SYNSETS[3], SYNSETS[500], SYNSETS[998]
LAST = f'{SOME[2]}.tar'
CMYK, PNG = 'n02077923/n02077923_14822.JPEG', 'n02105855/n02105855_2933.JPEG'


def val_name(number):
  return f'ILSVRC2012_val_{number:08d}.JPEG'


def write_tars(root, synsets, count):
  """Writes `count` images a class, backwards; {SYNSET/NAME: training image}."""
  train = {f'{s}/{s}_{8 + i}.JPEG': None for s in synsets for i in range(count)}
  train |= dict.fromkeys((CMYK, PNG)) if synsets is SYNSETS else {}
  inner = {}
  for seed, name in enumerate(reversed(train)):
    image = PIL.Image.fromarray(noise(seed, 9, 10))
    image = image.convert('CMYK' if name == CMYK else 'RGB')
    train[name] = encode(image, 'PNG' if name == PNG else 'JPEG')
    synset, _, own = name.partition('/')
    inner.setdefault(f'{synset}.tar', []).append((own, train[name]))
  held_out, left = [], dict.fromkeys(synsets, count)
  for number, synset in reversed([*enumerate(VAL_SYNSETS, 1)]):
    if left.get(synset, 0):
      left[synset] -= 1
      held_out.append((val_name(number), encode(noise(number, 9, 10))))
  outer = [(name, tar_of(images)) for name, images in inner.items()]
  write(root, {TRAIN_TAR: tar_of(outer), VAL_TAR: tar_of(held_out)})
  return train


@pytest.fixture
def part(tmp_path):
  """The folder of tars of three classes, three images each."""
  write_tars(tmp_path, SOME, 3)
  return tmp_path


def open_split(root, split='train', **options):
  tar_shards._indexed.cache_clear()  # as another process
  return make_source('imagenet', split, path=str(root), **options)


def test_every_image_is_that_of_the_tars_unpacked_into_folders(tmp_path):
  """Labels, order, CMYK, a PNG and the batches of a seed as well."""
  root, train = tmp_path / 'tars', write_tars(tmp_path / 'tars', SYNSETS, 1)
  with tarfile.open(root / TRAIN_TAR) as outer:
    for name in outer.getnames():
      with tarfile.open(fileobj=outer.extractfile(name)) as tar:
        images = {m.name: tar.extractfile(m).read() for m in tar}
        write(tmp_path / 'train' / name.removesuffix('.tar'), images)
  write(tmp_path / 'val', {CMYK: train[CMYK]})
  source = open_split(root)
  folder = make_source('folder', 'train', path=str(tmp_path))
  names = list(folder.paths)
  assert sorted(train) == names
  assert contents(source) == contents(folder)
  assert source.class_names == tuple(folder.class_names)
  assert source.file_name(1) == names[1].partition('/')[2]
  options = BatchOptions(batch_size=167, crop_size=8, seed=3)
  batches = (
    train_batches(s, options, num_batches=12) for s in (source, folder)
  )
  for pair in zip(*batches, strict=True):
    for key in ('image', 'label'):
      np.testing.assert_array_equal(*(batch[key] for batch in pair))
  for name in (CMYK, PNG):
    with PIL.Image.open(io.BytesIO(train[name])) as image:
      assert (image.mode, image.format) != ('RGB', 'JPEG')
      pixels, _ = Loader(source, 8, num_threads=1).pixels(names.index(name))
      np.testing.assert_array_equal(pixels, np.asarray(image.convert('RGB')))
  with tarfile.open(root / VAL_TAR) as tar:
    images = {m.name: tar.extractfile(m).read() for m in tar}
  for _ in range(2):  # the second time from memory
    held_out = make_source('imagenet', 'validation', path=str(root))
    assert contents(held_out) == [
      (images[n], SYNSETS.index(VAL_SYNSETS[int(n[-13:-5]) - 1]))
      for n in sorted(images)
    ]


def test_neither_tensorflow_nor_tfds_is_imported(part):
  script = 'import sys; from alexnet_jax.data import make_source as open_split'
  script += f'; open_split("imagenet", "validation", path="{part}").read(0)'
  script += '; assert not {"tensorflow_datasets", "jax"} & set(sys.modules)'
  assert commands.run(sys.executable, '-c', script)[0] == 0


ONE = tar_of([('a.JPEG', b'a')])
OTHER = next(n for n, s in enumerate(VAL_SYNSETS, 1) if s not in SOME)


def train_tar(*inner):
  """The tar for training: two good synsets, and others before them."""
  good = [(f'{synset}.tar', ONE) for synset in SOME[:2]]
  return {TRAIN_TAR: tar_of([*inner, *good])}


def val_tar(*numbers):
  return {VAL_TAR: tar_of([(val_name(n), b'') for n in numbers])}


@pytest.mark.parametrize(
  ('files', 'message'),
  [
    ({VAL_TAR: None}, f'{VAL_TAR} is missing: download it'),
    ({VAL_TAR: None, f'{VAL_TAR}.gz': b''}, f'uncompress {VAL_TAR}.gz'),
    (train_tar((LAST, gzip.compress(ONE))), f'{LAST} .*no plain uncompressed'),
    (train_tar((LAST, tar_of([]))), f'{LAST} holds no files'),
    (val_tar(7, 7), f'{VAL_TAR} .* 2 times'),
    (train_tar(('n01443538.tar', ONE)), f'{TRAIN_TAR} .* no SYNSET.tar'),
    ({TRAIN_TAR: tar_of([(LAST, ONE)])}, f'{TRAIN_TAR} .* it needs two'),
    (val_tar(OTHER), f'{VAL_TAR} .* lacks, .*: {VAL_SYNSETS[OTHER - 1]}'),
  ],
)
def test_training_and_check_refuse_what_does_not_fit(part, files, message):
  for name, content in files.items():
    (part / name).unlink(missing_ok=True)
    if content is not None:
      write(part, {name: content})
  with pytest.raises(UserError, match=message) as info:
    _ = open_split(part), open_split(part, 'validation')
  finding = check(str(part))['findings'][0]
  assert finding['kind'] == 'refused'
  assert str(info.value)[:400] in finding['text']


def test_tars_that_are_cut_off_anywhere_are_refused(part):
  for name, split in ((TRAIN_TAR, 'train'), (VAL_TAR, 'validation')):
    whole = (part / name).read_bytes()
    for size in range(0, len(whole.rstrip(b'\0')), 1500):
      (part / name).write_bytes(whole[:size])
      with pytest.raises(UserError, match=f'{name} is truncated'):
        open_split(part, split)
    (part / name).write_bytes(whole)
  inner = tar_of([(f'{i}.JPEG', bytes([i]) * 700) for i in range(1, 3)])
  end = 3072  # bytes of the two, without the end mark
  for size in (0, 600, 1500, end, end + 511):
    write(part, train_tar((LAST, inner[:size])))
    with pytest.raises(UserError, match=f'{TRAIN_TAR} file {LAST} is trunc'):
      open_split(part)
  write(part, train_tar((LAST, inner[: end + 512])))
  assert open_split(part).num_examples == 4


def test_a_part_is_checked_and_divided_into_folds(part):
  result = check(str(part))
  assert (result['kind'], result['errors']) == ('imagenet', 0)
  assert result['keys'] == {'source': 'imagenet', 'path': str(part)}
  counts = {'examples': 9, 'classes': 3}
  assert result['splits'] == {'train': counts, 'validation': counts}
  found = {f['kind']: f['count'] for f in result['findings']}
  assert found == {'wrong_count': 2}
  whole, held_out = contents(open_split(part)), []
  (part / VAL_TAR).unlink()  # not in the pool
  for fold in range(3):
    held_out += contents(open_split(part, 'validation', folds=3, fold=fold))
  assert sorted(held_out) == sorted(whole)

"""The same images as a folder, as smaller JPEGs and as raw pixels."""

import contextlib
import io
import json
import shutil
import sys

import numpy as np
import PIL.Image
import pytest

from alexnet_jax.data import images, order, pixel_statistics, sources
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.prepare.__main__ import main as prepare
from alexnet_jax.data.prepare.check import check
from alexnet_jax.errors import UserError
from tests.data.batches import assert_same, eval_iter, train_iter
from tests.data.pictures import encode, photo, Runs, write
from tests.system import commands

SIZE, CROP, BATCH = 64, 56, 7


def run(*arguments):
  assert prepare([str(argument) for argument in arguments]) == 0


def make_source(sets, layout, split='train'):
  options = {**sets[layout], 'split': split, 'tfds_split': split}
  return sources.make_source(**options)


def train_batches(sets, layout, threads=2, **options):
  loader = Loader(make_source(sets, layout), SIZE, num_threads=threads)
  return train_iter(
    loader,
    num_steps=9,
    global_batch_size=BATCH,
    seed=3,
    crop_size=CROP,
    **options,
  )


def eval_batches(sets, layout):
  loader = Loader(make_source(sets, layout, 'validation'), SIZE)
  return list(eval_iter(loader, global_batch_size=4, crop_size=CROP))


@pytest.mark.parametrize('made', ['train', 'eval'])
def test_every_layout_gives_the_same_examples_in_the_same_order(sets, made):
  """Raw squares are equal to those of their source; JPEGs of JPEGs are near."""

  def batches(layout):
    if made == 'eval':
      return eval_batches(sets, layout)
    return list(train_batches(sets, layout, scaled_decoding=False))

  original, resized = batches('folder'), batches('tfds')
  assert_same(batches('raw'), original)
  assert_same(batches('raw_of_tfds'), resized)
  for a, b in zip(original, resized, strict=True):
    difference = np.abs(a.pop('image').astype(int) - b.pop('image'))
    assert 0 < difference.mean() < 8
  assert_same(original, resized)


@pytest.mark.parametrize(
  ('layout', 'crop'),
  [('folder', 'random_resized'), ('tfds', 'random'), ('raw', 'random')],
)
def test_threads_prefetch_and_restarts_change_nothing(sets, layout, crop):
  # Epochs of 20 in batches of 7: batches 2 and 5 reach into the next one.
  expected = list(train_batches(sets, layout, 1, crop=crop, prefetch=0))
  for threads, prefetch in ((1, 8), (8, 0)):
    actual = train_batches(sets, layout, threads, crop=crop, prefetch=prefetch)
    assert_same(list(actual), expected)
  first, second = (
    train_batches(sets, layout, 8, crop=crop, prefetch=8) for _ in range(2)
  )
  for _ in range(4):
    next(first)
  second.set_state(first.get_state())
  assert_same(list(second), expected[4:])


def test_random_resized_crops_are_those_of_the_draws(sets):
  source = make_source(sets, 'raw')
  batches = train_batches(sets, 'raw', crop='random_resized')
  for step, batch in enumerate(batches):
    positions = order.batch_positions(step, BATCH)
    draws = order.batch_draws(step, BATCH, 3)
    attempts = order.resized_crop_draws(step, BATCH, 3)
    for i, index in enumerate(order.examples_at(positions, 20, 3)):
      pixels, label = source.read(int(index))
      box = images.random_resized_box(
        SIZE, SIZE, draws[i], attempts[i], (0.08, 1.0), (3 / 4, 4 / 3)
      )
      expected = np.zeros((CROP, CROP, 3), np.uint8)
      images.resize_box(pixels, box, expected)
      np.testing.assert_array_equal(batch['image'][i], expected)
      assert batch['label'][i] == label


def test_the_manifest_has_the_statistics_of_the_pixels(sets):
  root = sets['raw']['path']
  with open(f'{root}/manifest.json') as file:
    rgb = json.load(file)['splits']['train']['rgb']
  source = make_source(sets, 'raw')
  pixels = np.concatenate([s.reshape(-1, 3) for s in source.shards]).astype(int)
  assert rgb['pixels'] == len(pixels)
  assert rgb['sums'] == pixels.sum(0).tolist()
  assert rgb['products'] == (pixels.T @ pixels).tolist()
  np.testing.assert_allclose(rgb['mean'], pixels.mean(0), rtol=1e-12)
  np.testing.assert_allclose(
    rgb['covariance'], np.cov(pixels.T, bias=True), rtol=1e-9
  )
  mean, covariance = pixel_statistics.compute(Loader(source, SIZE))
  np.testing.assert_allclose(source.rgb_mean, mean.mean((0, 1)), rtol=1e-14)
  np.testing.assert_array_equal(source.rgb_covariance, covariance)


def test_small_plain_jpegs_are_taken_over_byte_for_byte(tmp_path):
  image = PIL.Image.fromarray(photo(50, 70))
  cmyk = encode(image.convert('CMYK'))
  for name in ('cat', 'dog'):
    files = {'0.jpg': encode(image), '1.jpg': encode(image), '2.jpg': cmyk}
    write(tmp_path / 'in' / name, files)
  run(
    *('resize', '--source', 'folder', '--path', tmp_path / 'in'),
    *('--out', tmp_path / 'out', '--size', '60', '--name', 'small'),
  )
  made = {'source': 'tfds', 'path': str(tmp_path / 'out'), 'tfds_name': 'small'}
  source = make_source({'small': made}, 'small')
  for i in range(source.num_examples):
    encoded, _ = source.read(i)
    path = tmp_path / 'in' / source.file_name(i)
    if path.name == '2.jpg':
      with PIL.Image.open(io.BytesIO(encoded)) as image:
        assert (image.mode, image.size) == ('RGB', (70, 50))
    else:
      assert encoded == path.read_bytes()


def test_the_fingerprint_tells_contents_and_not_places(sets, tmp_path):
  moved = tmp_path / 'elsewhere'
  shutil.copytree(sets['folder']['path'], moved)
  run(
    *('raw', '--source', 'folder', '--path', moved, '--out', tmp_path / 'raw'),
    *('--size', SIZE, '--shard_examples', '7'),
  )
  again = open_raw(tmp_path / 'raw').fingerprint
  assert again == make_source(sets, 'raw').fingerprint
  assert again != make_source(sets, 'raw_of_tfds').fingerprint


def open_raw(root):
  return sources.make_source('raw', 'train', path=str(root))


FILES = """
import os, json, resource, sys
from alexnet_jax.data import sources
kept = [open(os.devnull) for _ in range(150)]
resource.setrlimit(resource.RLIMIT_NOFILE, (250, int(sys.argv[2])))
for split in sources.SPLITS * 2:
  sources.make_source(split=split, tfds_split=split, **json.loads(sys.argv[1]))
assert 'tensorflow' not in sys.modules
print(resource.getrlimit(resource.RLIMIT_NOFILE)[0])
"""


@pytest.mark.parametrize(('layout', 'most'), [('tfds', 4096), ('raw', 300)])
def test_many_shards_do_not_run_out_of_open_files(tmp_path, layout, most):
  """Of both splits, beside the files that are open already."""
  image = encode(photo(16, 16), 'PNG')
  names = [f'in/{name}/{i}.png' for name in ('cat', 'dog') for i in range(30)]
  write(tmp_path, dict.fromkeys(names, image))
  run(
    *('raw' if layout == 'raw' else 'resize', '--source', 'folder'),
    *('--path', tmp_path / 'in', '--out', tmp_path / 'out', '--size', '16'),
    *('--shard_examples', '1', '--val_fraction', '0.6'),
  )
  options = {'source': 'raw', 'path': str(tmp_path / 'out')}
  if layout == 'tfds':
    options |= {'source': 'tfds', 'tfds_name': 'in'}
  program = [sys.executable, '-c', FILES]
  code, out, err = commands.run(*program, json.dumps(options), most)
  if most == 4096:
    assert code == 0, err
    assert 410 < int(out) < 1750
  else:
    assert 'the data has 24 files to keep open' in err


@pytest.fixture
def small_raw(sets, tmp_path):
  """A copy of the raw set."""
  return shutil.copytree(sets['raw']['path'], tmp_path / 'out')


def change_manifest(change):
  def damage(root):
    manifest = json.loads((root / 'manifest.json').read_text())
    change(manifest)
    (root / 'manifest.json').write_text(json.dumps(manifest))

  return damage


def name_file(change):
  def damage(manifest):
    for part in manifest['splits']['train']['shards']:
      part['file'] = change(part['file'])

  return change_manifest(damage)


def copy_train(manifest):
  manifest['splits']['validation'] = manifest['splits']['train']


def save(name, array, **options):
  def damage(root):
    with next(root.glob(name)).open('wb') as file:
      np.save(file, array, **options)

  return damage


SHARD, LABELS = 'train-00000*.npy', 'train-labels.npy'
SHAPE = 7, 64, 64, 3


@pytest.mark.parametrize(
  ('damage', 'message'),
  [
    (lambda root: (root / 'manifest.json').unlink(), 'no raw set in'),
    (change_manifest(lambda m: m.update(format='x')), 'no manifest of'),
    (lambda root: next(root.glob(SHARD)).unlink(), 'missing'),
    (save(SHARD, np.zeros(SHAPE, np.uint8).T.copy().T), 'Fortran'),
    (save(SHARD, np.zeros(SHAPE, 'u1,u1')), r'not uint8'),
    (name_file(lambda name: f'/tmp/{name}'), 'no plain name'),
    (change_manifest(copy_train), 'given twice'),
    (save(LABELS, np.ones(20, np.int32)), r'of 1 class\(es\) \(\[1\]\)'),
    (save(LABELS, np.zeros(5, np.int32)), r'not int32 \(20,\)'),
    (save(LABELS, np.full(20, -1, np.int32)), 'others than 0 to 2'),
    (save(LABELS, np.array([Runs()] * 20), allow_pickle=True), 'damaged'),
  ],
)
def test_a_damaged_raw_set_is_refused(small_raw, damage, message):
  open_raw(small_raw)
  damage(small_raw)
  with pytest.raises(UserError, match=message):
    open_raw(small_raw)
  with contextlib.suppress(UserError):
    assert check(str(small_raw))['errors']


def test_a_manifest_without_channels_is_of_colors(small_raw):
  change_manifest(lambda m: m.pop('channels'))(small_raw)
  assert open_raw(small_raw).channels == 3


def test_the_colors_are_in_the_fingerprint(small_raw):
  before = open_raw(small_raw).fingerprint
  for changed in ({'mean': [1, 2, 3]}, {'covariance': [[1, 2, 3]] * 3}):
    change_manifest(
      lambda m, changed=changed: m['splits']['train']['rgb'].update(changed)
    )(small_raw)
    assert before != (before := open_raw(small_raw).fingerprint)


def places(value, path=()):
  """Yields the paths of all values in JSON."""
  if isinstance(value, dict | list):
    for key in value if isinstance(value, dict) else range(len(value)):
      yield (*path, key)
      yield from places(value[key], (*path, key))


def test_no_value_of_a_manifest_is_believed(small_raw):
  """Nor a byte of a header: another value works or is a UserError."""
  path = small_raw / 'manifest.json'
  text = path.read_text()
  refused = 0
  for *above, last in places(json.loads(text)):
    for value in (None, -3, [[]], 10**400):
      manifest = part = json.loads(text)
      for key in above:
        part = part[key]
      part[last] = value
      path.write_text(json.dumps(manifest))
      refused += not opens(small_raw)
  path.write_text('[' * 100_000)
  refused += not opens(small_raw)
  path.write_text(text)
  shard = next(small_raw.glob(SHARD))
  content = shard.read_bytes()
  for position in range(0, 128, 3):
    damaged = bytearray(content)
    damaged[position] ^= 5
    shard.write_bytes(damaged)
    refused += not opens(small_raw)
  assert refused > 100


def opens(root):
  try:
    check(str(root), num_threads=1)  # which opens it
  except UserError:
    return False
  return True

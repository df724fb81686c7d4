"""prepare check, on data that each test makes and damages."""

import hashlib
import io
import json
import pathlib
import struct
import sys
import tarfile
import zlib

from array_record.python import array_record_module
import numpy as np
import PIL.Image
import pytest

from alexnet_jax import validation
from alexnet_jax.data import decoding
from alexnet_jax.data import sources
from alexnet_jax.data import tfds_records
from alexnet_jax.data.prepare import contents
from alexnet_jax.data.prepare import resize
from alexnet_jax.data.prepare.__main__ import main as prepare
from alexnet_jax.data.prepare.check import check
from alexnet_jax.data.prepare.tfds import TRAIN_TAR
from alexnet_jax.data.prepare.tfds import VALIDATION_TAR
from alexnet_jax.errors import UnreadableImageError
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from tests.data.pictures import encode
from tests.data.pictures import exif
from tests.data.pictures import noise
from tests.data.pictures import tar_of
from tests.data.pictures import write

ROOT = pathlib.Path(__file__).parents[2]


def jpeg(seed):
  return encode(noise(seed))


def large(seed):
  """A JPEG larger than what tarfile reads at a time."""
  return encode(noise(seed, 96, 128))


def found(result):
  """{(severity, kind): (count, names)}."""
  return {
    (f['severity'], f['kind']): (f['count'], f['examples'])
    for f in result['findings']
  }


def one(name):
  return 1, [name]


def clean_files():
  names = [
    f'{split}/{name}/{i}.jpg'
    for split in ('train', 'val')
    for name in ('cat', 'dog')
    for i in range(2)
  ]
  return {name: jpeg(seed) for seed, name in enumerate(names)}


def damaged_jpeg():
  content = bytearray(jpeg(90))
  middle = len(content) // 2
  content[middle : middle + 2] = b'\xff\xd9'
  return bytes(content)


def deep_rgb():
  """A PNG with 16 bits per channel, which Pillow reads but does not write."""
  rows = np.random.default_rng(91).integers(0, 256, (40, 40 * 6), np.uint8)
  header = struct.pack('>IIBBBBB', 40, 40, 16, 2, 0, 0, 0)
  data = zlib.compress(b''.join(b'\0' + row.tobytes() for row in rows))
  png = b'\x89PNG\r\n\x1a\n'
  for kind, body in ((b'IHDR', header), (b'IDAT', data), (b'IEND', b'')):
    png += struct.pack('>I', len(body)) + kind + body
    png += struct.pack('>I', zlib.crc32(kind + body))
  return png


def odd_images():
  """{name: (severity, kind or a part of the note, content)}."""
  gif = [PIL.Image.fromarray(noise(s)).quantize(16) for s in (92, 93)]
  deep = noise(94)[..., 0].astype(np.uint16) * 257
  rgba, small = noise(95, channels=4), noise(96, 20, 48)
  cmyk = PIL.Image.fromarray(noise(97, channels=4), 'CMYK')
  turned = encode(noise(98), exif=exif(6))
  return {
    'empty.jpg': ('error', 'empty_file', b''),
    'cut.jpg': ('error', 'truncated', jpeg(99)[:-400]),
    'cut.png': ('error', 'truncated', encode(noise(100), 'PNG')[:-400]),
    'text.jpg': ('error', 'unreadable', b'no image\n' * 9),
    'damaged.jpg': ('warning', 'damaged_jpeg', damaged_jpeg()),
    'stripe.png': ('warning', 'one_pixel', encode(noise(101, 1), 'PNG')),
    'small.png': ('note', 'side under 32 pixels', encode(small, 'PNG')),
    'cmyk.jpg': ('note', 'CMYK or YCCK', encode(cmyk)),
    'gray.jpg': ('note', 'gray', encode(noise(102)[..., 0])),
    'clear.png': ('note', 'transparent', encode(rgba, 'PNG')),
    'few.png': ('note', 'with a palette', encode(gif[0], 'PNG')),
    'deep.png': ('note', '16 bits', encode(deep, 'PNG')),
    'turned.jpg': ('note', 'turned by EXIF', turned),
    'png.jpg': ('note', 'named .jpg but PNG', encode(noise(103), 'PNG')),
    'webp.jpeg': ('note', 'named .jpeg but WEBP', encode(noise(104), 'WEBP')),
    'film.webp': (
      'note',
      'several frames',
      encode(
        PIL.Image.fromarray(noise(105)),
        'WEBP',
        save_all=True,
        append_images=[PIL.Image.fromarray(noise(106))],
      ),
    ),
  }


def test_every_oddity_is_found_once_with_its_name(tmp_path):
  odd = odd_images()
  files = {
    f'train/cat/{name}': content for name, (_, _, content) in odd.items()
  }
  write(tmp_path, clean_files() | files)
  result = check(str(tmp_path))
  for name, (severity, kind, _) in odd.items():
    named = [
      f
      for f in result['findings']
      if f'train/cat/{name}' in f['examples']
      and (f['kind'] == kind or kind in f['text'])
    ]
    assert [f['severity'] for f in named] == [severity], name
  assert sum(f['count'] for f in result['findings']) == len(odd)
  sums = {'error': 4, 'warning': 2, 'note': len(odd) - 6}
  assert {s: result[f'{s}s'] for s in sums} == sums
  assert result['splits'] == {
    'train': {'examples': 4 + len(odd), 'classes': 2},
    'validation': {'examples': 4, 'classes': 2},
  }


def test_an_image_can_be_odd_in_several_ways():
  frames = [PIL.Image.fromarray(noise(s)).quantize(16) for s in (1, 2)]
  gif = encode(frames[0], 'GIF', save_all=True, append_images=frames[1:])
  notes = [note.split(':')[0] for _, note in contents.examine(gif, 'f.jpg')]
  named, frames = 'named .jpg but GIF', 'with several frames'
  assert notes == ['with a palette', named, frames]
  deep = [('note', 'of 16 bits per channel: cut to 8')]
  assert contents.examine(deep_rgb(), 'deep.png') == deep
  assert contents.examine(jpeg(1), 'name without suffix') == []


@pytest.mark.parametrize(
  'whole',
  [
    encode(noise(0)),
    encode(noise(0, 160, 160), progressive=True),
    encode(noise(0), 'PNG'),
    encode(noise(0), 'WEBP'),
  ],
  ids=['baseline', 'progressive', 'png', 'webp'],
)
def test_unreadable_is_what_training_cannot_decode(whole):
  rng = np.random.default_rng(0)
  outcomes = set()
  for trial in range(60):
    content = bytearray(whole)
    if trial % 2:
      del content[rng.integers(len(content)) :]
    else:
      start = rng.integers(len(content))
      content[start : start + trial] = rng.bytes(trial)
    try:
      decoding.decode(bytes(content))
      readable = True
    except UnreadableImageError:
      readable = False
    kinds = {kind for kind, _ in contents.examine(bytes(content), 'a')}
    bad = kinds & {'empty_file', 'truncated', 'unreadable'}
    assert bool(bad) != readable, trial
    assert readable or len(kinds) == 1
    outcomes.add(readable)
  assert outcomes == {True, False}


def test_a_folder_in_a_bad_state_is_examined_to_the_end(tmp_path):
  files = {
    'train/cat/notes.txt': b'text',
    'train/cat/photo.jpg_': jpeg(50),
    'train/cat/phone.heic': b'ftypheic',
    'train/loose.jpg': jpeg(51),
    'train/cow/1.jpg': jpeg(52),
    'val/horse/1.jpg': jpeg(53),
    'vall/cat/1.jpg': jpeg(54),
    'train/cat/.hidden.txt': b'',
  }
  write(tmp_path, clean_files() | files)
  (tmp_path / 'train' / 'void').mkdir()
  (tmp_path / 'train' / 'cat' / 'gone.jpg').symlink_to('nowhere.jpg')
  result = check(str(tmp_path))
  notes = [f for f in result['findings'] if f['severity'] == 'note']
  assert {f['text']: f['examples'] for f in notes} == {
    'folders beside train and val: not read': ['vall'],
    'links to nowhere: left out': ['train/cat/gone.jpg'],
    'other files: left out': ['train/cat/notes.txt'],
  }
  assert {k: v for k, v in found(result).items() if k[0] != 'note'} == {
    ('error', 'empty_class'): one('train/void'),
    ('error', 'class_only_in_validation'): one('val/horse'),
    ('warning', 'class_not_in_validation'): (2, ['cow', 'void']),
    ('warning', 'unknown_suffix'): (
      2,
      ['train/cat/phone.heic', 'train/cat/photo.jpg_'],
    ),
    ('warning', 'loose_image'): one('train/loose.jpg'),
  }
  assert result['splits']['train']['examples'] == 5


def test_folders_without_class_files(tmp_path):
  flat = write(tmp_path / 'flat', {'a.jpg': jpeg(1), 'b.jpg': b''})
  assert found(check(str(flat))) == {
    ('error', 'no_classes'): one(str(flat)),
    ('error', 'empty_file'): one('b.jpg'),
  }
  single = write(tmp_path / 'single', {'cat/a.jpg': jpeg(1)})
  result = check(str(single))
  assert found(result) == {
    ('error', 'one_class'): one('cat'),
    ('error', 'single_image'): one('cat'),
  }
  assert result['splits'] == {'all': {'examples': 1, 'classes': 1}}


def test_duplicates(tmp_path):
  files = clean_files()
  files['train/cat/2.jpg'] = files['train/cat/3.jpg'] = files['train/cat/0.jpg']
  files['val/dog/9.jpg'] = files['train/dog/1.jpg']
  files['val/dog/8.jpg'] = files['val/cat/0.jpg']
  assert found(check(str(write(tmp_path, files)))) == {
    ('error', 'duplicate_between_splits'): one(
      'val/dog/9.jpg = train/dog/1.jpg'
    ),
    ('warning', 'duplicate'): (
      3,
      [
        'train/cat/2.jpg = train/cat/0.jpg',
        'train/cat/3.jpg = train/cat/0.jpg',
        'val/dog/8.jpg = val/cat/0.jpg',
      ],
    ),
    ('warning', 'duplicate_with_two_labels'): one(
      'val/dog/8.jpg = val/cat/0.jpg'
    ),
  }


def test_a_finding_keeps_five_names_and_counts_on(tmp_path):
  files = {f'{c}/{i}.jpg': b'' for c in 'ab' for i in range(40)}
  result = check(str(write(tmp_path, files)), num_threads=3)
  names = [f'a/{i}.jpg' for i in (0, 1, 10, 11, 12)]
  assert found(result) == {('error', 'empty_file'): (80, names)}


def imagenet_tars(**changed):
  inner = {
    f'{synset}.tar': tar_of(
      [
        *((f'{synset}_{i}.JPEG', large(10 * k + i)) for i in range(2)),
        *changed.items(),
      ]
    )
    for k, synset in enumerate(('n01440764', 'n01443537'))
  }
  validation = [(f'ILSVRC2012_val_{i:08d}.JPEG', large(40 + i)) for i in (1, 2)]
  return {TRAIN_TAR: tar_of(inner.items()), VALIDATION_TAR: tar_of(validation)}


def test_imagenet_tars_with_a_few_images(tmp_path):
  bad = {'cut.JPEG': jpeg(60)[:-300], 'flat.JPEG': encode(noise(61), 'PNG')}
  result = check(str(write(tmp_path, imagenet_tars(**bad))))
  assert result['kind'] == 'tars'
  assert result['splits'] == {
    'train': {'examples': 8, 'classes': 2},
    'validation': {'examples': 2, 'classes': None},
  }
  synsets = 'n01440764', 'n01443537'
  pairs = [f'{synsets[1]}/{n} = {synsets[0]}/{n}' for n in bad]
  assert found(result) == {
    ('error', 'wrong_count'): (
      3,
      [
        'train images: 8, not 1,281,167',
        'validation images: 2, not 50,000',
        'classes: 2, not 1,000',
      ],
    ),
    ('error', 'truncated'): (2, [f'{s}/cut.JPEG' for s in synsets]),
    ('warning', 'duplicate'): (2, pairs),
    ('warning', 'duplicate_with_two_labels'): (2, pairs),
    ('note', 'note'): (2, [f'{s}/flat.JPEG' for s in synsets]),
  }


def test_tars_that_are_cut_off_or_missing(tmp_path):
  tars = imagenet_tars()
  train = tars[TRAIN_TAR]
  write(tmp_path / 'missing', {TRAIN_TAR: train})
  results = found(check(str(tmp_path / 'missing')))
  assert results['error', 'missing_file'] == one(VALIDATION_TAR)
  cut = train[: train.rindex(b'JFIF') + 9_000]
  write(tmp_path / 'inside', {**tars, TRAIN_TAR: cut})
  results = found(check(str(tmp_path / 'inside')))
  assert results['error', 'damaged_file'] == (2, ['n01443537.tar', TRAIN_TAR])
  assert results['error', 'truncated'] == one('n01443537/n01443537_1.JPEG')
  with tarfile.open(fileobj=io.BytesIO(tars[VALIDATION_TAR])) as tar:
    second = tar.getmembers()[1].offset
  for case, tail in (('short', b''), ('garbage', b'garbage ' * 2000)):
    cut = tars[VALIDATION_TAR][:second] + tail
    write(tmp_path / case, {**tars, VALIDATION_TAR: cut})
    result = check(str(tmp_path / case))
    assert result['splits']['validation']['examples'] == 1
    assert found(result)['error', 'damaged_file'] == one(VALIDATION_TAR)


@pytest.fixture
def raw_set(tmp_path):
  """A raw set of 3 images a file: its folder, {file: bytes} and manifest."""
  names = [f'train/cat/{i}.png' for i in range(4)]
  names += ['train/dog/0.png', 'train/dog/1.png', 'val/cat/0.png']
  names += ['val/dog/0.png']
  pictures = {n: encode(noise(i, 8, 8), 'PNG') for i, n in enumerate(names)}
  photos, out = write(tmp_path / 'photos', pictures), tmp_path / 'raw'
  options = f'--source folder --path {photos} --out {out} --size 8'
  assert prepare(f'raw {options} --shard_examples 3'.split()) == 0
  files = {path.name: path.read_bytes() for path in out.glob('*.npy')}
  return out, files, json.loads((out / 'manifest.json').read_text())


def npy(array):
  buffer = io.BytesIO()
  np.save(buffer, array)
  return buffer.getvalue()


def write_raw(root, files, manifest):
  """Writes a raw set, with the right checksums in the manifest."""
  for info in manifest['splits'].values():
    for entry in [info['labels'], *info['shards']]:
      content = files.get(entry['file'], b'')
      entry['sha256'] = hashlib.sha256(content).hexdigest()
  text = json.dumps(manifest).encode()
  return write(root, files | {'manifest.json': text})


FIRST = 'train-00000-of-00002.npy'
LAST = 'validation-00000-of-00001.npy'


def test_a_raw_set_as_it_should_be(raw_set):
  result = check(str(raw_set[0]))
  assert result['kind'] == 'raw'
  assert result['splits'] == {
    'train': {'examples': 6, 'classes': 2},
    'validation': {'examples': 2, 'classes': 2},
  }
  assert result['findings'] == []


def test_files_of_a_raw_set_that_are_changed_cut_or_missing(raw_set):
  root, files, _ = raw_set
  path = root / FIRST
  path.write_bytes(files[FIRST][:-1] + b'?')
  assert found(check(str(root))) == {('error', 'checksum'): one(FIRST)}
  path.write_bytes(files[FIRST][:-50])
  results = found(check(str(root)))
  assert results['error', 'refused'] == one('train')
  assert results['error', 'checksum'] == one(FIRST)
  path.unlink()
  results = found(check(str(root)))
  assert results['error', 'missing_file'] == one(FIRST)


def test_labels_and_counts_of_a_raw_set(raw_set):
  root, files, manifest = raw_set
  files['train-labels.npy'] = npy(np.array([0, 0, 0, 0, 0, 0], np.int32))
  manifest['splits']['train']['skipped'] = ['x.jpg']
  manifest['splits']['validation']['num_examples'] = 3
  assert found(check(str(write_raw(root, files, manifest)))) == {
    ('error', 'refused'): one('validation'),
    ('warning', 'unused_class'): one('dog'),
    ('note', 'note'): one('x.jpg'),
  }
  files['train-labels.npy'] = npy(np.array([0, 0, 0, 0, 0, 2], np.int32))
  results = found(check(str(write_raw(root, files, manifest))))
  assert results['error', 'refused'] == (2, ['train', 'validation'])


def test_equal_squares_of_a_raw_set(raw_set):
  root, files, manifest = raw_set
  squares = np.load(io.BytesIO(files[LAST]))
  squares[1] = np.load(io.BytesIO(files[FIRST]))[2]
  files[LAST] = npy(squares)
  results = found(check(str(write_raw(root, files, manifest))))
  assert results['error', 'duplicate_between_splits'] == one(
    f'{root} validation example 1 = {root} train example 2'
  )


def test_a_manifest_that_lacks_something_is_refused(raw_set):
  root, _, manifest = raw_set
  del manifest['splits']['train']['shards'][0]['sha256']
  (root / 'manifest.json').write_text(json.dumps(manifest))
  with pytest.raises(UserError, match='sha256'):
    check(str(root))


def write_tfds(root, splits, class_names=('cat', 'dog'), name='pets'):
  """A TFDS set as array_record; `splits` are {split: [(bytes, label)]}."""
  folder = root / name / '1.0.0'
  folder.mkdir(parents=True)
  for split, examples in splits.items():
    path = folder / f'{name}-{split}.array_record-00000-of-00001'
    writer = array_record_module.ArrayRecordWriter(str(path), 'group_size:1')
    for encoded, label in examples:
      message = tfds_records.example_class()()
      features = message.features.feature
      features['image'].bytes_list.value.append(encoded)
      features['label'].int64_list.value.append(label)
      writer.write(message.SerializeToString())
    writer.close()
  counts = {split: [(len(records), 1)] for split, records in splits.items()}
  resize.write_description(folder, name, class_names, counts)
  return folder


def pets():
  return {
    'train': [(jpeg(i), i % 2) for i in range(4)],
    'test': [(jpeg(10 + i), i % 2) for i in range(2)],
  }


def record(split, index):
  return f'pets {split} record {index}'


def test_a_tfds_set_as_it_should_be(tmp_path):
  folder = write_tfds(tmp_path, pets())
  result = check(str(tmp_path))
  assert result['kind'] == 'tfds'
  assert result['splits'] == {
    'train': {'examples': 4, 'classes': 2},
    'test': {'examples': 2, 'classes': 2},
  }
  assert result['findings'] == []
  assert check(str(folder))['splits'] == result['splits']


def test_images_and_labels_of_a_tfds_set(tmp_path):
  splits = pets()
  splits['train'][1] = (jpeg(20)[:-300], 1)
  splits['train'][2] = (jpeg(21), 5)
  splits['train'][3] = splits['train'][0][0], 0
  splits['test'] = [(splits['train'][0][0], -1), (jpeg(22), -1)]
  write_tfds(tmp_path, splits)
  assert found(check(str(tmp_path))) == {
    ('error', 'truncated'): one(record('train', 1)),
    ('error', 'label_out_of_range'): one(record('train', 2)),
    ('error', 'duplicate_between_splits'): one(
      f'{record("test", 0)} = {record("train", 0)}'
    ),
    ('warning', 'duplicate'): one(
      f'{record("train", 3)} = {record("train", 0)}'
    ),
    ('note', 'note'): (2, [record('test', 0), record('test', 1)]),
  }


def test_damaged_missing_and_short_files_of_a_tfds_set(tmp_path):
  folder = write_tfds(tmp_path, pets())
  train = folder / 'pets-train.array_record-00000-of-00001'
  test = folder / 'pets-test.array_record-00000-of-00001'
  test.unlink()
  content = bytearray(train.read_bytes())
  second = content.find(b'JFIF', content.find(b'JFIF') + 1)
  content[second + 300] ^= 255
  train.write_bytes(content)
  assert found(check(str(tmp_path))) == {
    ('error', 'missing_file'): one(test.name),
    ('error', 'refused'): one('test'),
    ('error', 'damaged_file'): one('pets train 1'),
  }
  train.write_bytes(b'')
  (_, names) = found(check(str(tmp_path)))['error', 'damaged_file']
  assert names[0] == train.name
  info = folder / 'dataset_info.json'
  text = info.read_text()
  train.write_bytes(content)
  info.write_text(text.replace('"4"', '"7"'))
  assert found(check(str(tmp_path)))['error', 'wrong_count'] == one(
    f'records of {train.name}: 4, not 7'
  )


def test_imagenet_of_tfds_must_have_imagenets_size(tmp_path):
  splits = {'train': pets()['train'], 'validation': pets()['test']}
  write_tfds(tmp_path, splits, name='imagenet2012')
  (finding,) = check(str(tmp_path))['findings']
  assert (finding['kind'], finding['count']) == ('wrong_count', 3)


def agree(path, source, *overrides):
  """Whether check and the start of a training accept a set; both or none."""
  config = validation.load_config(
    [
      f'--config={ROOT}/configs/folder.py',
      f'--config.data.source={source}',
      f'--config.data.path={path}',
      '--config.global_batch_size=2',
      *overrides,
    ]
  )
  try:
    splits = [build.make_source(config, split) for split in sources.SPLITS]
    build.check_examples(config, *splits)
    trains = True
  except UserError:
    trains = False
  try:
    fits = not check(str(path))['errors']
  except UserError:
    fits = False
  assert fits == trains
  return fits


def class_files(folder, *names, count=2):
  return [f'{folder}{name}/{i}.jpg' for name in names for i in range(count)]


PETS = class_files('', 'cat', 'dog')
SPLIT = class_files('train/', 'cat', 'dog') + class_files('val/', 'cat', 'dog')


@pytest.mark.parametrize(
  ('names', 'fits'),
  [
    (PETS, True),
    (SPLIT, True),
    (class_files('train/', 'cat', 'dog'), True),
    (
      class_files('Training/', 'a', 'b') + class_files('Testing/', 'a', 'b'),
      True,
    ),
    (class_files('train/', 'a', 'b', count=1) + class_files('val/', 'a'), True),
    ([*PETS, 'cat/deep/er/1.jpg', 'cat/.git/1.jpg', 'cat/notes.txt'], True),
    ([*PETS, 'manifest.json', 'dataset_info.json', 'cat/x.tar'], True),
    ([*PETS, 'cat/more.heic', 'cat/a.parquet', 'loose.jpg'], True),
    ([*PETS, 'caf\udce9/1.JPG', 'caf\udce9/2.png'], True),
    (class_files('', 'train', 'car', 'plane'), True),
    (class_files('', '0', '1'), True),
    (class_files('', 'cat'), False),
    (class_files('', 'cat', 'dog', count=1), False),
    ([*PETS, 'emu/1.jpg'], False),
    ([*PETS, 'emu/1.heic'], False),
    ([*PETS, 'emu/.cache/1.jpg', 'emu/.cache/2.jpg'], False),
    (['1.jpg', '2.jpg'], False),
    (['train/cat.0.jpg', 'train/dog.0.jpg', 'test1/0.jpg'], False),
    (
      class_files('cat/', 'train', 'val') + class_files('dog/', 'train', 'val'),
      False,
    ),
    ([*SPLIT, 'val/emu/1.jpg'], False),
    ([*SPLIT, 'valid/cat/1.jpg'], False),
    ([*class_files('train/', 'a', 'b'), 'val/1.jpg'], False),
    (class_files('', 'cafe\u0301', 'caf\xe9', 'dog'), False),
    (
      class_files('train/', 'cafe\u0301', 'b') + class_files('val/', 'caf\xe9'),
      True,
    ),
    (['cat/notes.txt'], False),
  ],
)
def test_check_accepts_the_folders_that_training_does(tmp_path, names, fits):
  contents = {name: jpeg(seed) for seed, name in enumerate(names)}
  write(tmp_path, contents | {n: b'{"a": 1}' for n in names if '.json' in n})
  assert agree(tmp_path, 'folder') == fits


def test_check_follows_links_as_training_does(tmp_path):
  write(
    tmp_path, {n: jpeg(k) for k, n in enumerate(PETS + class_files('.x/', 'e'))}
  )
  (tmp_path / 'cat' / 'gone.jpg').symlink_to('nowhere.jpg')
  (tmp_path / 'cat' / 'loop').symlink_to('..')
  (tmp_path / 'emu').symlink_to('.x/e')
  result = check(str(tmp_path))
  assert result['splits'] == {'all': {'examples': 6, 'classes': 3}}
  notes = [f['examples'] for f in result['findings']]
  assert (result['notes'], sorted(notes)) == (
    2,
    [['cat/gone.jpg'], ['cat/loop']],
  )
  assert agree(tmp_path, 'folder')


@pytest.mark.parametrize(
  ('change', 'fits'),
  [
    (lambda manifest, root: None, True),
    (lambda manifest, root: manifest['splits'].pop('validation'), False),
    (lambda manifest, root: manifest['splits']['train'].pop('rgb'), False),
    (lambda manifest, root: manifest.update(splits=[]), False),
    (lambda manifest, root: manifest.update(class_names=['cat']), False),
    (lambda manifest, root: (root / FIRST).unlink(), False),
    (lambda manifest, root: (root / FIRST).write_bytes(b'\x93NUMPY'), False),
    (lambda manifest, root: (root / 'train-labels.npy').unlink(), False),
  ],
)
def test_check_accepts_the_raw_sets_that_training_does(raw_set, change, fits):
  root, _, manifest = raw_set
  change(manifest, root)
  (root / 'manifest.json').write_text(json.dumps(manifest))
  assert agree(root, 'raw') == fits


@pytest.mark.parametrize(
  ('file', 'old', 'new', 'fits'),
  [
    ('features.json', '', '', True),
    ('features.json', 'image_feature.Image', 'evil.Image', False),
    ('features.json', 'ClassLabel"', 'Scalar"', False),
    ('features.json', '"2"', '"3"', False),
    ('dataset_info.json', 'array_record', 'tfrecord', False),
    ('dataset_info.json', '"4"', '"-4"', False),
    ('dataset_info.json', '{SPLIT}', '../{SPLIT}', False),
    ('dataset_info.json', '"4"', f'"{10**30}"', False),
    ('dataset_info.json', '"train"', '"test"', False),
    ('dataset_info.json', '"validation"', '"dev"', False),
  ],
)
def test_check_accepts_the_tfds_sets_that_training_does(
  tmp_path, file, old, new, fits
):
  splits = {'train': pets()['train'], 'validation': pets()['test']}
  path = write_tfds(tmp_path, splits) / file
  path.write_text(path.read_text().replace(old, new, 1 if old else 0))
  assert agree(tmp_path, 'tfds', '--config.data.tfds_name=pets') == fits


def test_a_description_runs_no_code(tmp_path, monkeypatch):
  features = write_tfds(tmp_path, pets()) / 'features.json'
  text = features.read_text()
  package = 'tensorflow_datasets.core.features.text_feature'
  features.write_text(text.replace(package, 'evil_feature'))
  assert features.read_text() != text
  write(tmp_path, {'evil_feature.py': b'from tensorflow_datasets import *'})
  monkeypatch.syspath_prepend(tmp_path)
  assert prepare(['check', str(tmp_path)]) == 0
  assert prepare(['tfds', '--name=pets', f'--data_dir={tmp_path}']) == 0
  assert 'evil_feature' not in sys.modules


@pytest.mark.parametrize('fits', [True, False])
def test_check_accepts_the_shards_that_training_does(tmp_path, fits):
  labels = '0101' if fits else '0001'
  samples = [
    (f'{i}.{k}', v)
    for i, label in enumerate(labels)
    for k, v in (('jpg', jpeg(i)), ('cls', label.encode()))
  ]
  write(tmp_path, {'train-0.tar': tar_of(samples)})
  assert agree(tmp_path, 'tar') == fits
  if fits:
    result = check(str(tmp_path))
    assert (result['kind'], result['findings']) == ('tar', [])
    assert result['splits']['train'] == {'examples': 2, 'classes': 2}


def test_a_tfds_set_is_chosen_by_name(tmp_path):
  write_tfds(tmp_path, pets())
  write_tfds(tmp_path, {'train': pets()['test']}, name='plants')
  with pytest.raises(UserError, match='--name: pets, plants'):
    check(str(tmp_path))
  for path, name in ((tmp_path, 'plants'), (tmp_path / 'plants', '')):
    assert check(str(path), name)['splits']['train']['examples'] == 2
  with pytest.raises(UserError, match="no TFDS set 'cars'"):
    check(str(tmp_path), 'cars')


def test_what_is_no_data_set_is_refused(tmp_path):
  with pytest.raises(UserError, match='no folder at'):
    check(str(tmp_path / 'nowhere'))
  write(tmp_path, {'a/notes.txt': b'text'})
  with pytest.raises(UserError, match='no data set of a known kind'):
    check(str(tmp_path))


def test_the_command(tmp_path, capsys):
  write(tmp_path / 'in', clean_files())
  command = ['check', str(tmp_path / 'in'), '--json', '--num_threads=1']
  assert prepare(command) == 0
  out, err = capsys.readouterr()
  assert json.loads(out) == {
    'path': str(tmp_path / 'in'),
    'kind': 'folder',
    'splits': {
      'train': {'examples': 4, 'classes': 2},
      'validation': {'examples': 4, 'classes': 2},
    },
    'findings': [],
    'errors': 0,
    'warnings': 0,
    'notes': 0,
  }
  assert err.splitlines()[-1].endswith('fit for training')
  write(tmp_path / 'in', {'train/cat/[bold]empty.jpg': b''})
  assert prepare(command) == 2
  out, err = capsys.readouterr()
  (finding,) = json.loads(out)['findings']
  assert finding.pop('text').startswith('files are empty; repair')
  name = 'train/cat/[bold]empty.jpg'
  expected = {'severity': 'error', 'kind': 'empty_file', 'count': 1}
  assert finding == expected | {'examples': [name]}
  assert name in err
  assert 'training would stop or be wrong' in err

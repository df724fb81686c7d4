"""prepare check, on data that each test makes and damages."""

import json
import pathlib
from unittest import mock

from array_record.python import array_record_module
import numpy as np
import PIL.Image
import pytest

from alexnet_jax import validation
from alexnet_jax.data import sources, tfds_records
from alexnet_jax.data.imagenet import VALIDATION_TAR
from alexnet_jax.data.prepare import contents, resize
from alexnet_jax.data.prepare.__main__ import main as prepare
from alexnet_jax.data.prepare.check import check
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from tests.data.pictures import encode, exif, noise, tar_of, write

ROOT = pathlib.Path(__file__).parents[2]


def jpeg(seed):
  return encode(noise(seed))


def large(seed):
  """A JPEG larger than what tarfile reads at a time."""
  return encode(noise(seed, 96, 128))


def found(path):
  """{(severity, kind): (count, names)}."""
  return {
    (f['severity'], f['kind']): (f['count'], f['examples'])
    for f in check(str(path))['findings']
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


def odd_images():
  """{name: (severity, kind or a part of the note, content)}."""
  gif = [PIL.Image.fromarray(noise(s)).quantize(16) for s in (92, 93)]
  deep = noise(94)[..., 0].astype(np.uint16) * 257
  rgba, small = noise(95, channels=4), noise(96, 20, 48)
  cmyk = PIL.Image.fromarray(noise(97, channels=4), 'CMYK')
  turned = encode(noise(98), exif=exif(6))
  frames = [PIL.Image.fromarray(noise(s)) for s in (105, 106)]
  film = encode(frames[0], 'WEBP', save_all=True, append_images=frames[1:])
  return {
    'empty.jpg': ('error', 'empty_file', b''),
    'cut.jpg': ('error', 'truncated', jpeg(99)[:-400]),
    'cut.png': ('error', 'truncated', encode(noise(100), 'PNG')[:-400]),
    'text.jpg': ('error', 'unreadable', b'no image\n' * 9),
    'damaged.jpg': ('warning', 'damaged_jpeg', damaged_jpeg()),
    'stripe.png': ('warning', 'one_pixel', encode(noise(101, 1), 'PNG')),
    'small.png': ('note', 'with a side under 32 pixels', encode(small, 'PNG')),
    'cmyk.jpg': ('note', 'CMYK or YCCK', encode(cmyk)),
    'gray.jpg': ('note', 'gray', encode(noise(102)[..., 0])),
    'clear.png': ('note', 'transparent', encode(rgba, 'PNG')),
    'few.png': ('note', 'with a palette', encode(gif[0], 'PNG')),
    'deep.png': ('note', 'of 16 bits per channel', encode(deep, 'PNG')),
    'turned.jpg': ('note', 'turned by EXIF', turned),
    'png.jpg': ('note', 'named .jpg but PNG', encode(noise(103), 'PNG')),
    'webp.jpeg': ('note', 'named .jpeg but WEBP', encode(noise(104), 'WEBP')),
    'film.webp': ('note', 'with several frames', film),
  }


def test_every_oddity_is_found_once_with_its_name(tmp_path):
  odd = odd_images()
  files = {f'train/cat/{name}': row[2] for name, row in odd.items()}
  result = check(str(write(tmp_path, clean_files() | files)))
  assert sum(f['count'] for f in result['findings']) == len(odd)
  for name, (severity, kind, _) in odd.items():
    (finding,) = (
      f for f in result['findings'] if f'train/cat/{name}' in f['examples']
    )
    assert finding['severity'] == severity
    assert kind in (finding['kind'], finding['text'].partition(':')[0]), name
  assert [result[k] for k in ('errors', 'warnings', 'notes')] == [4, 2, 10]
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
  assert contents.examine(jpeg(1), 'name without suffix') == []


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
  strange = ['train/cat/phone.heic', 'train/cat/photo.jpg_']
  assert {k: v for k, v in found(tmp_path).items() if k[0] != 'note'} == {
    ('error', 'empty_class'): one('train/void'),
    ('error', 'class_only_in_validation'): one('val/horse'),
    ('warning', 'class_not_in_validation'): (2, ['cow', 'void']),
    ('warning', 'unknown_suffix'): (2, strange),
    ('warning', 'loose_image'): one('train/loose.jpg'),
  }
  assert result['splits']['train']['examples'] == 5


def test_folders_without_class_files(tmp_path):
  flat = write(tmp_path / 'flat', {'a.jpg': jpeg(1), 'b.jpg': b''})
  assert found(flat) == {
    ('error', 'no_classes'): one(str(flat)),
    ('error', 'empty_file'): one('b.jpg'),
  }
  empty = {f'{c}/{i}.jpg': b'' for c in 'ab' for i in range(40)}
  names = [f'a/{i}.jpg' for i in (0, 1, 10, 11, 12)]  # five are kept
  assert found(write(tmp_path / 'empty', empty)) == {
    ('error', 'empty_file'): (80, names)
  }
  single = write(tmp_path / 'single', {'cat/a.jpg': jpeg(1)})
  assert found(single) == {
    ('error', 'one_class'): one('cat'),
    ('error', 'single_image'): one('cat'),
  }


def test_copies_are_warned_of(tmp_path):
  files = clean_files()
  files['train/cat/2.jpg'] = files['train/cat/3.jpg'] = files['train/cat/0.jpg']
  files['val/dog/9.jpg'] = files['train/dog/1.jpg']
  files['val/dog/8.jpg'] = files['val/cat/0.jpg']
  copies = [f'train/cat/{i}.jpg = train/cat/0.jpg' for i in (2, 3)]
  copy = 'val/dog/8.jpg = val/cat/0.jpg'
  between = 'val/dog/9.jpg = train/dog/1.jpg'
  assert found(write(tmp_path, files)) == {
    ('warning', 'duplicate_between_splits'): one(between),
    ('warning', 'duplicate'): (3, [*copies, copy]),
    ('warning', 'duplicate_with_two_labels'): one(copy),
  }


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


FIRST = 'train-00000-of-00002.npy'


def test_a_raw_set(raw_set):
  root, files, _ = raw_set
  result = check(str(root))
  assert (result['kind'], result['findings']) == ('raw', [])
  assert result['splits'] == {
    'train': {'examples': 6, 'classes': 2},
    'validation': {'examples': 2, 'classes': 2},
  }
  (root / FIRST).write_bytes(files[FIRST][:-1] + b'?')
  assert found(root) == {('warning', 'checksum'): one(FIRST)}
  (root / FIRST).unlink()
  assert found(root) == {('error', 'refused'): one('train')}


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
  counts = {
    split: [{'num_examples': len(records), 'num_bytes': 1}]
    for split, records in splits.items()
  }
  resize.write_description(folder, name, class_names, counts)
  return folder


def pets():
  return {
    'train': [(jpeg(i), i % 2) for i in range(4)],
    'test': [(jpeg(10 + i), i % 2) for i in range(2)],
  }


def record(split, index):
  return f'pets {split} record {index}'


def test_a_tfds_set_and_the_splits_that_training_reads(tmp_path, capsys):
  folder = write_tfds(tmp_path, pets())
  result = check(str(tmp_path))
  assert (result['kind'], result['findings']) == ('tfds', [])
  assert result['splits'] == {
    'train': {'examples': 4, 'classes': 2},
    'validation': {'examples': 2, 'classes': 2},
  }
  assert result['keys'] == {'tfds_eval_split': 'test'}
  last = capsys.readouterr().err.splitlines()[-1]
  assert last.endswith('training with --config.data.tfds_eval_split=test')
  assert check(str(folder))['splits'] == result['splits']
  three = pets() | {'validation': pets()['test'], 'test': [(b'', -1)]}
  write_tfds(tmp_path / 'three', three)
  assert check(str(tmp_path / 'three'))['keys'] == {}
  assert found(tmp_path / 'three') == {('note', 'note'): one('test')}


def test_images_and_labels_of_a_tfds_set(tmp_path):
  splits = pets()
  splits['train'][1] = (jpeg(20)[:-300], 1)
  splits['train'][2] = (jpeg(21), 5)
  write_tfds(tmp_path, splits, name='imagenet2012')
  train = 'imagenet2012 train record'
  assert found(tmp_path) == {
    ('error', 'truncated'): one(f'{train} 1'),
    ('error', 'label_out_of_range'): one(f'{train} 2'),
    ('warning', 'wrong_count'): (3, mock.ANY),
  }


def test_damaged_missing_and_short_files_of_a_tfds_set(tmp_path):
  folder = write_tfds(tmp_path, pets())
  train = folder / 'pets-train.array_record-00000-of-00001'
  test = folder / 'pets-test.array_record-00000-of-00001'
  rest, content = test.read_bytes(), bytearray(train.read_bytes())
  test.unlink()
  second = content.find(b'JFIF', content.find(b'JFIF') + 1)
  content[second + 300] ^= 255
  train.write_bytes(content)
  assert found(tmp_path) == {
    ('error', 'refused'): one('validation'),
    ('error', 'damaged_file'): one('pets train 1'),
  }
  test.write_bytes(rest)
  info = folder / 'dataset_info.json'
  info.write_text(info.read_text().replace('"4"', '"3"'))
  assert ('error', 'refused') in found(tmp_path)
  assert not agree(tmp_path, 'tfds', '--config.data.tfds_name=pets')


def test_a_tfds_set_of_one_class_is_refused(tmp_path):
  splits = {s: [(jpeg(k), 0)] * 2 for k, s in enumerate(('train', 'test'))}
  write_tfds(tmp_path, splits, ['cat'])
  assert not agree(tmp_path, 'tfds', '--config.data.tfds_name=pets')
  line = f'raw --source=tfds --path={tmp_path} --tfds_name=pets'
  line += f' --tfds_eval_split=test --out={tmp_path}/out'
  assert prepare(line.split()) == 2
  assert not (tmp_path / 'out').exists()


def trains(path, source, *overrides):
  """Whether training starts on a set, and takes every example."""
  config = validation.load_config(
    [
      f'--config={ROOT}/configs/folder.py',
      f'--config.data.source={source}',
      f'--config.data.path={path}',
      '--config.global_batch_size=2',
      '--config.data.resize_size=8',
      '--config.data.crop_size=8',
      *overrides,
    ]
  )
  try:
    loaders = [build.make_loader(config, split) for split in sources.SPLITS]
    build.check_examples(config, *(loader.source for loader in loaders))
    for loader in loaders:
      for index in range(loader.source.num_examples):
        loader.square(index)
  except UserError:
    return False
  return True


def agree(path, source, *overrides):
  """Whether check and training accept a set; both or none."""
  try:
    result = check(str(path))
  except UserError:
    result = {'errors': 1, 'keys': {}}
  keys = [f'--config.data.{k}={v}' for k, v in result['keys'].items()]
  assert trains(path, source, *overrides, *keys) == (not result['errors'])
  return not result['errors']


def class_files(folder, *names, count=2):
  return [f'{folder}{name}/{i}.jpg' for name in names for i in range(count)]


PETS = class_files('', 'cat', 'dog')
SPLIT = class_files('train/', 'cat', 'dog') + class_files('val/', 'cat', 'dog')
ACCENT = class_files('train/', 'cafe\u0301', 'b')


@pytest.mark.parametrize(
  ('names', 'fits'),
  [
    (SPLIT, True),
    (
      class_files('Train/', 'a', 'b', count=1) + class_files('Test/', 'a'),
      True,
    ),
    ([*PETS, 'cat/deep/er/1.jpg', 'cat/.git/1.jpg', 'cat/notes.txt'], True),
    ([*PETS, 'manifest.json', 'dataset_info.json', 'cat/x.tar'], True),
    ([*PETS, 'cat/more.heic', 'cat/a.parquet', 'loose.jpg'], True),
    ([*PETS, 'caf\udce9/1.JPG', 'caf\udce9/2.png'], True),
    (class_files('', 'train', 'car', 'plane'), True),
    (ACCENT + class_files('val/', 'caf\xe9'), True),
    (class_files('', 'cat', 'dog', count=1), False),
    ([*PETS, 'emu/1.heic', 'emu/.cache/1.jpg', 'emu/.cache/2.jpg'], False),
    ([*SPLIT, 'val/emu/1.jpg'], False),
  ],
)
def test_check_accepts_the_folders_that_training_does(tmp_path, names, fits):
  contents = {name: jpeg(seed) for seed, name in enumerate(names)}
  write(tmp_path, contents | {n: b'{"a": 1}' for n in names if '.json' in n})
  assert agree(tmp_path, 'folder') == fits


def labeled_tar(labels):
  samples = [
    (f'{i}.{k}', v)
    for i, label in enumerate(labels)
    for k, v in (('jpg', jpeg(i)), ('cls', label.encode()))
  ]
  return tar_of(samples)


@pytest.mark.parametrize(
  ('source', 'others'),
  [
    ('tar', ['preview/logo.jpg']),
    ('folder', [VALIDATION_TAR, '0-of-1.npy', 'manifest.json']),
    ('folder', ['cat/1.0.0/dataset_info.json']),
    ('folder', ['train.parquet']),
    ('raw', ['logo.jpg', 'a/1.jpg', 'train.tar']),
    ('tfds', ['logo.jpg', 'train.tar']),
  ],
)
def test_stray_files_do_not_hide_what_trains(tmp_path, request, source, others):
  root, keys = tmp_path / 'set', ()
  if source == 'raw':
    root = request.getfixturevalue('raw_set')[0]
  elif source == 'tfds':
    keys = ('--config.data.tfds_name=pets',)
    write_tfds(root, pets())
  elif source == 'folder':
    write(root, {name: jpeg(i) for i, name in enumerate(PETS)})
  else:
    write(root, {'train-0.tar': labeled_tar('0101')})
  write(root, dict.fromkeys(others, large(99) * 20))
  assert check(str(root))['kind'] == source
  assert agree(root, source, *keys)


def test_of_two_kinds_that_do_not_fit_the_larger_is_examined(tmp_path):
  tar = labeled_tar('0101')[:-10_240]
  write(tmp_path, {'train-0.tar': tar, 'logo.jpg': jpeg(9)})
  assert found(tmp_path)['error', 'refused'] == (2, ['train', 'validation'])


def test_a_tfds_set_is_chosen_by_name(tmp_path):
  write_tfds(tmp_path, pets())
  write_tfds(tmp_path, {'train': pets()['test']}, name='plants')
  for path, name in ((tmp_path, 'plants'), (tmp_path / 'plants', '')):
    assert check(str(path), name)['splits']['train']['examples'] == 2
  left = {'other/notes.txt': b'text', 'downloads/large.jpg': large(99) * 20}
  for begun in ('begun', 'resized/pets/1.0.0', 'named/pets/small/1.0.0'):
    left[f'{begun}/.unfinished/plan.json'] = b'{}'
  write(tmp_path, left)
  for path, name, message in (
    (tmp_path, '', '--name: pets, plants'),
    (tmp_path, 'cars', "no TFDS set 'cars'"),
    (tmp_path / 'nowhere', '', 'no folder at'),
    (tmp_path / 'other', '', 'no data set of a known kind'),
    (tmp_path / 'begun', '', 'not finished; the command'),
    (tmp_path / 'resized', '', 'not finished; the command'),
    (tmp_path / 'named', '', 'not finished; the command'),
  ):
    with pytest.raises(UserError, match=message):
      check(str(path), name)


def test_the_command(tmp_path, capsys):
  write(tmp_path, clean_files())
  command = ['check', str(tmp_path), '--json', '--num_threads=1']
  assert prepare(command) == 0
  out, err = capsys.readouterr()
  assert json.loads(out) == {
    'path': str(tmp_path),
    'kind': 'folder',
    'splits': {
      'train': {'examples': 4, 'classes': 2},
      'validation': {'examples': 4, 'classes': 2},
    },
    'keys': {},
    'findings': [],
    'errors': 0,
    'warnings': 0,
    'notes': 0,
  }
  assert err.splitlines()[-1].endswith('fit for training')
  name = 'train/cat/[bold]copy.jpg'
  write(tmp_path, {name: b''})
  assert prepare(command) == 2
  out, err = capsys.readouterr()
  (finding,) = json.loads(out)['findings']
  assert finding.pop('text').startswith('files are empty; repair')
  expected = {'severity': 'error', 'kind': 'empty_file', 'count': 1}
  assert finding == expected | {'examples': [name]}
  assert name in err
  assert err.splitlines()[-1].endswith('training would stop at the errors')

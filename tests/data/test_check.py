"""prepare check, on data that each test makes and damages."""

import itertools
import json
import shutil
from unittest import mock

from array_record.python import array_record_module
import numpy as np
import pytest

from alexnet_jax import validation
from alexnet_jax.data import sources, tfds_records
from alexnet_jax.data.imagenet import VALIDATION_TAR
from alexnet_jax.data.prepare import resize
from alexnet_jax.data.prepare.__main__ import main as prepare
from alexnet_jax.data.prepare.check import check
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from tests.data.pictures import encode, noise, tar_of, write


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
  names = itertools.product(
    ('train', 'val'), ('cat', 'dog'), ('0.jpg', '1.jpg')
  )
  return {'/'.join(name): jpeg(seed) for seed, name in enumerate(names)}


def test_every_oddity_is_found_once_with_its_name(tmp_path):
  deep = noise(94)[..., 0].astype(np.uint16) * 257
  whole = jpeg(90)
  middle = len(whole) // 2
  damaged = whole[:middle] + b'\xff\xd9' + whole[middle + 2 :]
  odd = {
    'empty.jpg': ('error', 'unreadable', b''),
    'cut.jpg': ('error', 'unreadable', jpeg(99)[:-400]),
    'text.png': ('error', 'unreadable', b'no image\n' * 9),
    'damaged.jpg': ('warning', 'damaged_jpeg', damaged),
    'deep.png': ('note', 'deep', encode(deep, 'PNG')),
  }
  files = {f'train/cat/{name}': row[2] for name, row in odd.items()}
  result = check(str(write(tmp_path, clean_files() | files)))
  for name, (severity, kind, _) in odd.items():
    (finding,) = (
      f for f in result['findings'] if f'train/cat/{name}' in f['examples']
    )
    assert (finding['severity'], finding['kind']) == (severity, kind)
  assert [result[k] for k in ('errors', 'warnings', 'notes')] == [3, 1, 1]
  assert result['splits'] == {
    'train': {'examples': 4 + len(odd), 'classes': 2},
    'validation': {'examples': 4, 'classes': 2},
  }


def test_what_is_not_read_is_warned_of(tmp_path):
  files = {
    'train/cat/notes.txt': b'text',
    'train/cat/phone.heic': b'ftypheic',
    'train/loose.jpg': jpeg(51),
    'vall/cat/1.jpg': jpeg(54),
    'train/cat/.hidden.txt': b'',
    'train/cat/more.tgz': b'',
  }
  write(tmp_path, clean_files() | files)
  (tmp_path / 'train' / 'cat' / 'gone.jpg').symlink_to('nowhere.jpg')
  result = check(str(tmp_path))
  assert {f['text']: f['examples'] for f in result['findings']} == {
    'folders beside the splits are left out': ['vall'],
    'images beside the classes are left out': ['train/loose.jpg'],
    'links to nowhere are left out': ['train/cat/gone.jpg'],
    'other files are left out': ['train/cat/notes.txt'],
    'compressed files are left out': ['train/cat/more.tgz'],
    'images of a kind that is not read are left out': ['train/cat/phone.heic'],
  }
  assert [result[k] for k in ('errors', 'warnings', 'notes')] == [0, 4, 2]


def test_a_folder_that_training_refuses(tmp_path):
  write(tmp_path, clean_files() | {'val/horse/1.jpg': jpeg(53)})
  (tmp_path / 'train' / 'void').mkdir()
  rows = check(str(tmp_path))['findings']
  assert [row['examples'] for row in rows] == [
    ['train'],
    ['validation'],
    ['train', 'validation'],
  ]
  for row, reason in zip(rows, ("'void'", "'horse'", 'examined'), strict=True):
    assert reason in row['text']
  flat = write(tmp_path / 'flat', {'a.jpg': jpeg(1), 'b.jpg': b''})
  assert found(flat) == {
    ('error', 'refused'): one('train, validation'),
    ('note', 'not_examined'): (2, ['train', 'validation']),
  }
  empty = {f'{c}/{i}.jpg': b'' for c in 'ab' for i in range(40)}
  ((kind, (count, names)),) = found(write(tmp_path / 'e', empty)).items()
  assert (kind, count, len(names)) == (('error', 'unreadable'), 80, 5)


def test_copies_are_warned_of(tmp_path):
  files = clean_files()
  files['train/cat/2.jpg'] = files['train/cat/3.jpg'] = files['train/cat/0.jpg']
  files['val/dog/9.jpg'] = files['train/dog/1.jpg']
  files['val/dog/8.jpg'] = files['val/cat/0.jpg']
  files['val/dog/7.jpg'] = files['train/cat/1.jpg']
  copies = [f'train/cat/{i}.jpg = train/cat/0.jpg' for i in (2, 3)]
  between = ['val/dog/7.jpg = train/cat/1.jpg']
  between += ['val/dog/9.jpg = train/dog/1.jpg']
  assert found(write(tmp_path, files)) == {
    ('warning', 'duplicate_between_splits'): (2, between),
    ('warning', 'duplicate'): (2, copies),
    ('warning', 'two_labels'): (
      2,
      [
        'val/dog/7.jpg (dog) = train/cat/1.jpg (cat)',
        'val/dog/8.jpg (dog) = val/cat/0.jpg (cat)',
      ],
    ),
  }


def test_classes_of_one_name_are_told_apart(tmp_path):
  """As the two cranes of ImageNet are."""
  same = [('0.jpg', jpeg(0)), ('0.cls', b'0'), ('1.jpg', jpeg(0))]
  tar = tar_of([*same, ('1.cls', b'1')])
  files = {'train-0.tar': tar, 'val-0.tar': tar_of(same[:2])}
  root = write(tmp_path, {**files, 'classes.txt': b'crane\ncrane\n'})
  result = check(str(root))
  assert result['splits']['train'] == {'examples': 2, 'classes': 2}
  counts = {f['kind']: f['count'] for f in result['findings']}
  assert counts == {'two_labels': 1, 'duplicate_between_splits': 1}


FIRST = 'train-00000-of-00003.npy'


@pytest.fixture
def raw_set(sets, tmp_path):
  """The folder of a copy of the raw set."""
  return shutil.copytree(sets['raw']['path'], tmp_path / 'raw')


def test_a_raw_set(raw_set):
  result = check(str(raw_set))
  assert (result['kind'], result['findings']) == ('raw', [])
  assert result['splits'] == {
    'train': {'examples': 20, 'classes': 3},
    'validation': {'examples': 4, 'classes': 3},
  }
  content = (raw_set / FIRST).read_bytes()
  (raw_set / FIRST).write_bytes(content[:-1] + b'?')
  assert found(raw_set) == {('warning', 'checksum'): one(FIRST)}


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


def test_a_tfds_set_and_the_splits_that_training_reads(tmp_path, capsys):
  folder = write_tfds(tmp_path, pets())
  result = check(str(tmp_path))
  assert (result['kind'], result['findings']) == ('tfds', [])
  assert result['splits'] == {
    'train': {'examples': 4, 'classes': 2},
    'validation': {'examples': 2, 'classes': 2},
  }
  keys = {'source': 'tfds', 'path': str(tmp_path), 'tfds_name': 'pets'}
  assert result['keys'] == keys | {'tfds_eval_split': 'test'}
  last = capsys.readouterr().err.splitlines()[-1]
  assert f'{tmp_path} --config.data.tfds_name=pets --config.data.tfds_' in last
  assert check(str(folder)) == result | {'path': str(folder)}
  three = pets() | {'validation': pets()['test'], 'test': [(b'', -1)]}
  write_tfds(tmp_path / 'three', three)
  result = check(str(tmp_path / 'three'))
  assert result['keys'] == keys | {'path': str(tmp_path / 'three')}
  assert found(tmp_path / 'three') == {('note', 'unused_split'): one('test')}


def test_images_and_labels_of_a_tfds_set(tmp_path):
  splits = pets()
  splits['train'][1] = (jpeg(20)[:-300], 1)
  splits['train'][2] = (jpeg(21), 5)
  write_tfds(tmp_path, splits, name='imagenet2012')
  train = 'imagenet2012 train record'
  assert found(tmp_path) == {
    ('error', 'unreadable'): one(f'{train} 1'),
    ('error', 'label_out_of_range'): one(f'{train} 2'),
    ('warning', 'wrong_count'): (2, mock.ANY),
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
    ('note', 'not_examined'): one('validation'),
  }
  test.write_bytes(rest)
  info = folder / 'dataset_info.json'
  info.write_text(info.read_text().replace('"4"', '"3"'))
  assert ('error', 'refused') in found(tmp_path)
  assert not agree(tmp_path, 'tfds')


def test_a_tfds_set_of_one_class_is_refused(tmp_path):
  splits = {s: [(jpeg(k), 0)] * 2 for k, s in enumerate(('train', 'test'))}
  write_tfds(tmp_path, splits, ['cat'])
  assert not agree(tmp_path, 'tfds')
  line = f'raw --source=tfds --path={tmp_path} --tfds_name=pets'
  line += f' --tfds_eval_split=test --out={tmp_path}/out'
  assert prepare(line.split()) == 2
  assert not (tmp_path / 'out').exists()


def trains(path, source, *overrides):
  """Whether training starts on a set, and takes every example."""
  config = validation.load_config(
    [
      '--config=folder',
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
      assert loader.source.fingerprint  # of names that are no UTF-8, too
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


# Of the last class the name is no UTF-8.
PETS = 'cat/1.jpg', 'cat/2.jpg', 'caf\udce9/1.JPG', 'caf\udce9/2.png'


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
    ('folder', ['cat/1.0.0/dataset_info.json', 'cat/deep/er/x.tar']),
    ('folder', ['train.parquet']),
    ('raw', ['logo.jpg', 'a/1.jpg', 'train.tar']),
    ('tfds', ['logo.jpg', 'train.tar']),
  ],
)
def test_stray_files_do_not_hide_what_trains(tmp_path, request, source, others):
  root, keys = tmp_path / 'set', ()
  if source == 'raw':
    root = request.getfixturevalue('raw_set')
    keys = '--config.data.resize_size=64', '--config.data.crop_size=64'
  elif source == 'tfds':
    write_tfds(root, pets())
  elif source == 'folder':
    write(root, {name: jpeg(i) for i, name in enumerate(PETS)})
  else:
    write(root, {'train-0.tar': labeled_tar('0101')})
  write(root, dict.fromkeys(others, large(99) * 20))
  assert check(str(root))['kind'] == source
  assert agree(root, source, *keys)


def test_the_kind_can_be_given(tmp_path):
  write(tmp_path, {name: jpeg(i) for i, name in enumerate(PETS)})
  write(tmp_path, {'train-0.tar': labeled_tar('0101')})
  assert check(str(tmp_path))['kind'] == 'folder'
  assert check(str(tmp_path), 'tar')['splits']['train']['examples'] == 2
  for source in ('imagenet', 'raw', 'tfds'):
    command = ['check', str(tmp_path), '--source', source]
    assert prepare(command) == 2


def test_one_tfds_set_is_examined(tmp_path):
  write_tfds(tmp_path, pets())
  write_tfds(tmp_path, {'train': pets()['test']}, name='plants')
  result = check(str(tmp_path / 'plants'))
  assert result['splits']['train']['examples'] == 2
  left = {'other/notes.txt': b'text', 'downloads/large.jpg': large(99) * 20}
  for begun in ('begun', 'resized/pets/1.0.0', 'named/pets/small/1.0.0'):
    left[f'{begun}/.unfinished/plan.json'] = b'{}'
  write(tmp_path, left)
  for name, message in (
    ('', r'several TFDS sets \(pets, plants\); give'),
    ('nowhere', 'no folder at'),
    ('other', 'no data set of a known kind'),
    ('begun', 'not finished; the command'),
    ('resized', 'not finished; the command'),
    ('named', 'not finished; the command'),
  ):
    with pytest.raises(UserError, match=message):
      check(str(tmp_path / name))


def test_the_command(tmp_path, capsys):
  write(tmp_path, clean_files())
  command = ['check', str(tmp_path), '--json', '--num_threads=1']
  assert prepare(command) == 0
  out, err = capsys.readouterr()
  assert json.loads(out) == check(str(tmp_path))
  assert 'fit for training with' in err.splitlines()[-1]
  name = 'train/cat/[bold]copy.jpg'
  write(tmp_path, {name: b''})
  assert prepare(command) == 2
  out, err = capsys.readouterr()
  (finding,) = json.loads(out)['findings']
  assert finding.pop('text').startswith('images cannot be read')
  expected = {'severity': 'error', 'kind': 'unreadable', 'count': 1}
  assert finding == expected | {'examples': [name]}
  assert name in err
  assert err.splitlines()[-1].endswith('would stop at the errors')

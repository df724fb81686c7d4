"""Sets in the layout of TFDS, and what their description may say."""

import contextlib
import json
import shutil
import sys

import pytest

from alexnet_jax import validation
from alexnet_jax.data import sources, tfds_records
from alexnet_jax.data.prepare.__main__ import main as prepare
from alexnet_jax.data.prepare.check import check
from alexnet_jax.errors import UserError
from alexnet_jax.training import build
from tests.data.pictures import contents, write

TRAIN = 20  # examples, in files of 7


@pytest.fixture
def made_set(sets, tmp_path):
  """The folder of a copy."""
  shutil.copytree(sets['tfds']['path'], tmp_path / 'out')
  return tmp_path / 'out' / 'my_folder' / '1.0.0'


def change(path, function):
  value = json.loads(path.read_text())
  function(value)
  path.write_text(json.dumps(value))


def open_split(folder, split='train'):
  return sources.make_source(
    'tfds',
    'train',
    path=str(folder.parent.parent),
    tfds_name=folder.parent.name,
    tfds_split=split,
  )


def refused(folder, message):
  """By training, and by check."""
  for opened in (open_split, lambda f: check(str(f))):
    with pytest.raises(UserError, match=message):
      opened(folder)


@pytest.mark.parametrize(
  'split', ['train[33.4%:66.6%]', 'validation[1:]+train[:2] + train[-1shard:]']
)
def test_splits_are_those_of_tfds(made_set, split):
  import tensorflow_datasets as tfds

  builder = tfds.builder_from_directory(made_set)
  expected = [
    (instruction.filename, instruction.skip, instruction.take)
    for instruction in builder.info.splits[split].file_instructions
  ]
  source = open_split(made_set, split)
  assert [(p.filename, p.skip, p.take) for p in source.parts] == expected
  assert source.num_examples == sum(take for *_, take in expected)
  assert list(source.class_names) == builder.info.features['label'].names


@pytest.mark.parametrize('split', ['trian', 'train[:99]', 'train[5:4]'])
def test_splits_that_there_are_not(made_set, split):
  with pytest.raises(UserError, match=r'cannot give|is empty'):
    open_split(made_set, split)


def test_a_part_has_its_own_records(made_set):
  whole, part = open_split(made_set), open_split(made_set, 'train[6:9]')
  assert contents(part) == contents(whole)[6:9]
  assert part.file_name(0) == whole.file_name(6)


@pytest.mark.parametrize(
  ('first', 'second', 'shared'),
  [
    ('train[:90%]', 'train[80%:]', True),
    ('validation', 'train+validation[:1]', True),
    ('train[:80%]', 'train[80%:]', False),
    ('train[:3]+train[5:]', 'train[3:5]', False),
  ],
)
def test_splits_that_share_examples(made_set, first, second, shared):
  with (
    pytest.raises(UserError, match='share examples')
    if shared
    else contextlib.nullcontext()
  ):
    opened = open_split(made_set, first), open_split(made_set, second)
    tfds_records.check_disjoint(*opened)


def test_training_and_prepare_refuse_splits_that_share_examples(
  made_set, tmp_path, capsys
):
  flags = {'source': 'tfds', 'path': made_set.parent.parent}
  flags |= {'tfds_name': 'my_folder', 'tfds_eval_split': 'train[:1]'}
  line = [f'--{key}={value}' for key, value in flags.items()]
  assert prepare(['raw', *line, f'--out={tmp_path}/raw']) == 2
  assert 'share examples' in capsys.readouterr().err
  line = [f'--config.data.{key}={value}' for key, value in flags.items()]
  config = validation.load_config(['--config=folder', *line])
  opened = [build.make_source(config, split) for split in sources.SPLITS]
  with pytest.raises(UserError, match='share examples'):
    build.check_examples(config, *opened)


def test_a_class_of_somebody_else_is_not_imported(
  made_set, tmp_path, monkeypatch
):
  write(tmp_path, {'there/evil.py': b'raise SystemExit("it ran")'})
  monkeypatch.syspath_prepend(tmp_path)
  path = made_set / 'features.json'
  for key in ('file_name', 'image', 'label', 'other'):
    original = path.read_text()

    def rename(value, key=key):
      features = value['featuresDict']['features']
      features.setdefault(key, {})['pythonClassName'] = 'there.evil.X'

    change(path, rename)
    if key in ('image', 'label'):
      refused(made_set, 'there.evil.X')
    else:  # it is not read
      assert open_split(made_set).num_examples == TRAIN
      assert not check(str(made_set))['errors']
      data_dir = f'--data_dir={made_set.parent.parent}'
      assert prepare(['tfds', '--name=my_folder', data_dir]) == 0
    path.write_text(original)
  assert 'there.evil' not in sys.modules


SEQUENCE = 'tensorflow_datasets.core.features.sequence_feature.Sequence'
SPLIT = {'name': 'train', 'shardLengths': [3]}


@pytest.mark.parametrize(
  ('part', 'changed', 'message'),
  [
    ('label', {'pythonClassName': SEQUENCE}, 'sequence_feature.Sequence'),
    ('image', {'image': {'dtype': 'float32'}}, 'images of float32'),
    ('label', {'classLabel': {'numClasses': '3000000000'}}, 'is damaged'),
    ('label', {'classLabel': {'numClasses': '9'}}, 'names 3 classes, but'),
    ('', {'fileFormat': 'tfrecord'}, 'is tfrecord'),
    ('', {'splits': [{**SPLIT, 'shardLengths': [-3]}]}, 'is damaged'),
    ('', {'splits': [SPLIT, {**SPLIT, 'name': 'train[:9]'}]}, 'is damaged'),
    ('', {'splits': [{**SPLIT, 'name': '../in'}]}, 'is damaged'),
  ],
)
def test_descriptions_of_other_sets(made_set, part, changed, message):
  def update(value):
    if part:
      value = value['featuresDict']['features'][part]
    value.update(changed)

  path = made_set / ('features.json' if part else 'dataset_info.json')
  change(path, update)
  refused(made_set, message)
  path.write_text('[' * 100_000)
  refused(made_set, 'cannot read')


def test_labels_are_read_once(made_set, monkeypatch):
  labels = open_split(made_set).read_labels()
  monkeypatch.setattr(tfds_records.TfdsSource, 'read', None)
  assert open_split(made_set).read_labels().tolist() == labels.tolist()


def test_class_names_stay_with_their_labels(made_set):
  (made_set / 'label.labels.txt').write_text('\nbee\ncat\n')
  assert open_split(made_set).class_names == ('', 'bee', 'cat')
  (made_set / 'label.labels.txt').unlink()
  assert open_split(made_set).class_names == ('0', '1', '2')


def test_a_missing_set_names_the_command(tmp_path):
  with pytest.raises(UserError) as info:
    tfds_records.tfds_source('imagenet2012', 'train', str(tmp_path))
  message = str(info.value)
  assert 'ILSVRC2012_img_train.tar' in message
  assert 'alexnet_jax.data.prepare tfds --name imagenet2012' in message
  assert str(tmp_path) in message


def test_a_missing_file_is_named(made_set):
  next(made_set.glob('*train*-00001-*')).unlink()
  with pytest.raises(UserError, match=r'00001-of-00003 is missing'):
    open_split(made_set)
  data_dir = f'--data_dir={made_set.parent.parent}'
  assert prepare(['tfds', '--name=my_folder', data_dir]) == 2

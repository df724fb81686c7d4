"""ImageNet from its two tars: prepared, read in place, trained on.

The tars have the real layout and tiny images. Tests marked tfds run the real
builder of TFDS and are skipped where TensorFlow is not installed.
"""

import importlib.util
import json
import os
import pathlib
import shlex
import shutil
import sys
import tarfile

import numpy as np
import PIL.Image
import pytest

from alexnet_jax import main as alexnet_main
from alexnet_jax.data import sources
from alexnet_jax.data.imagenet import TRAIN_TAR, VALIDATION_TAR as VAL_TAR
from alexnet_jax.data.prepare.__main__ import main
from tests.data.pictures import encode, photo, tar_of
from tests.system import commands

# Of the files that TFDS repairs one CMYK, one PNG.
CMYK_FILE, PNG_FILE = 'n02077923_14822.JPEG', 'n02105855_2933.JPEG'
TRAIN_FILES = {
  'n01440764': (10026, 10027, 10029, 10040),
  'n02077923': (10046, 1011, 1026, 14822),
  'n02105855': (10095, 10123, 2933, 3106),
}
# And those of the first images of validation.
VALIDATION = ('n01735189', 'n01751748', 'n03125729', 'n04263257', 'n09193705')
TRAIN_FILES |= dict.fromkeys(VALIDATION, (1,))


def run(*arguments):
  """Runs Python: (exit code, standard output, errors)."""
  return commands.run(sys.executable, *arguments)


def prepare(data_dir, *options, name='imagenet2012'):
  command = '-m', 'alexnet_jax.data.prepare', 'tfds', '--json'
  return run(*command, f'--name={name}', f'--data_dir={data_dir}', *options)


def last_json(ended):
  out, _ = commands.done(ended)
  return json.loads(out.splitlines()[-1])


def image_of(name, rng):
  image = PIL.Image.fromarray(photo(*rng.integers(84, 128, 2)))
  if name == CMYK_FILE:
    image = image.convert('CMYK')
  return encode(image, 'PNG' if name == PNG_FILE else 'JPEG')


@pytest.fixture(scope='module')
def manual_dir(tmp_path_factory):
  """The folder of ImageNet's tars."""
  folder = tmp_path_factory.mktemp('manual')
  rng = np.random.default_rng(0)
  inner = {}
  for synset, numbers in TRAIN_FILES.items():
    names = [f'{synset}_{number}.JPEG' for number in numbers]
    inner[f'{synset}.tar'] = tar_of([(n, image_of(n, rng)) for n in names])
  (folder / TRAIN_TAR).write_bytes(tar_of(inner.items()))
  # The real tar is not sorted by name, and its labels go by name.
  numbers = range(6, 0, -1)
  names = [f'ILSVRC2012_val_{n:08d}.JPEG' for n in numbers]
  (folder / VAL_TAR).write_bytes(tar_of([(n, image_of(n, rng)) for n in names]))
  return folder


@pytest.fixture(scope='module')
def tensorflow():
  if importlib.util.find_spec('tensorflow') is None:
    pytest.skip("builds with TensorFlow: pip install -e '.[tfds]'")


@pytest.fixture(scope='module')
def prepared(tensorflow, manual_dir, tmp_path_factory):
  """The finished command, and the data_dir it wrote."""
  data_dir = tmp_path_factory.mktemp('data')
  return prepare(data_dir, f'--manual_dir={manual_dir}'), data_dir


SMALL = (
  '--config.eval_every_epochs=0',
  '--config.eval_every_steps=2',
  '--config.global_batch_size=4',
  '--config.log_every_steps=1',
  '--config.model.width_multiplier=0.05',
  '--config.data.resize_size=80',
  '--config.data.crop_size=72',
)


@pytest.mark.tfds
def test_prepare_reports_what_it_built_and_how_to_go_on(prepared):
  ended, data_dir = prepared
  result, err = last_json(ended), ended[-1]
  folder = pathlib.Path(result.pop('folder'))
  assert folder.parent == data_dir / 'imagenet2012'
  assert result == {
    'name': 'imagenet2012',
    'data_dir': str(data_dir),
    'splits': {'train': 17, 'validation': 6},
    'classes': 1000,
  }
  assert err.splitlines()[-1].strip() == (
    'python -m alexnet_jax.main --config imagenet'
    f' --config.data.path={data_dir}'
  )
  assert [p.name for p in data_dir.glob('imagenet2012/*')] == [folder.name]


def open_split(source, path, split):
  options = {'tfds_name': 'imagenet2012', 'tfds_split': split}
  return sources.make_source(source, split, path=str(path), **options)


def by_name(source):
  examples = range(source.num_examples)
  return {source.file_name(i): source.read(i) for i in examples}


@pytest.mark.tfds
def test_the_tars_in_place_are_what_tfds_builds(prepared, manual_dir):
  for split, changed in (('train', {CMYK_FILE, PNG_FILE}), ('validation', ())):
    tars = open_split('imagenet', manual_dir, split)
    built = open_split('tfds', prepared[1], split)
    assert tars.class_names == built.class_names
    ours, theirs = by_name(tars), by_name(built)
    assert ours.keys() == theirs.keys()
    for name, (encoded, label) in ours.items():
      assert label == theirs[name][1]
      assert (encoded != theirs[name][0]) == (name in changed)


def test_training_and_preparing_from_the_tars_in_place(
  manual_dir, tmp_path, call
):
  line = '--config=imagenet --config.data.source=imagenet --dry_run'
  line += f' --config.data.path={manual_dir} --workdir={tmp_path}/run'
  assert call(alexnet_main, *line.split(), *SMALL)[0] == 0
  options = ['--source=imagenet', f'--path={manual_dir}', '--size=80']
  assert main(['raw', *options, f'--out={tmp_path / "raw"}']) == 0
  name = '--name=imagenet2012'
  assert main(['resize', *options, f'--out={tmp_path / "small"}', name]) == 0
  for split in sources.SPLITS:
    tars = open_split('imagenet', manual_dir, split)
    small = open_split('tfds', tmp_path / 'small', split)
    assert list(by_name(tars)) == list(by_name(small))
    raw = open_split('raw', tmp_path / 'raw', split)
    assert raw.labels.tolist() == tars.labels.tolist()


@pytest.mark.tfds
def test_a_prepared_set_is_left_as_it_is(prepared, tmp_path):
  ended, data_dir = prepared
  times = {p: p.stat().st_mtime_ns for p in data_dir.rglob('*')}
  again = prepare(data_dir, f'--manual_dir={tmp_path}')  # without the tars
  assert last_json(again) == last_json(ended)
  assert 'already prepared' in again[-1]
  assert {p: p.stat().st_mtime_ns for p in data_dir.rglob('*')} == times


@pytest.mark.tfds
def test_a_set_in_another_format_is_refused_and_left(prepared, tmp_path):
  shutil.copytree(prepared[1], tmp_path, dirs_exist_ok=True)
  (info,) = tmp_path.glob('imagenet2012/*/dataset_info.json')
  text = info.read_text().replace('"array_record"', '"tfrecord"')
  info.write_text(text)
  commands.refused(prepare(tmp_path), 'is tfrecord')
  assert info.read_text() == text
  info.unlink()
  commands.refused(prepare(tmp_path), 'holds no finished data set')


@pytest.mark.tfds
def test_a_tar_that_is_cut_off_is_named_as_damaged(
  tensorflow, manual_dir, tmp_path
):
  shutil.copytree(manual_dir, tmp_path, dirs_exist_ok=True)
  with tarfile.open(damaged := tmp_path / TRAIN_TAR) as tar:
    last = tar.getmembers()[-1]
  os.truncate(damaged, last.offset_data + last.size // 2)
  ended = prepare(tmp_path / 'data', f'--manual_dir={tmp_path}')
  commands.refused(ended, f'{damaged} is truncated')
  assert not list(tmp_path.glob('data/imagenet2012/*'))


@pytest.mark.tfds
def test_the_printed_command_trains_on_any_image_set(tensorflow, tmp_path):
  script = """
import sys
import numpy as np
import tensorflow_datasets as tfds
image = np.zeros([90, 100, 3], np.uint8)
examples = [{'image': image + 80 * (i % 3), 'label': i % 3} for i in range(10)]
tfds.dataset_builders.store_as_tfds_dataset(
  name='shades',
  version='1.0.0',
  features=tfds.features.FeaturesDict({
    'image': tfds.features.Image(shape=(None, None, 3)),
    'label': tfds.features.ClassLabel(names=['dark', 'gray', 'bright']),
  }),
  split_datasets={'train': list(enumerate(examples))},
  data_dir=sys.argv[1],
  file_format='array_record',
)
"""
  commands.done(run('-c', script, tmp_path))
  ended = prepare(tmp_path, name='shades')
  result = last_json(ended)
  assert (result['splits'], result['classes']) == ({'train': 10}, 3)
  python, *command = shlex.split(ended[-1].splitlines()[-1])
  assert python == 'python'
  options = ('--dry_run', f'--workdir={tmp_path / "run"}')
  commands.done(run(*command, *SMALL, *options))
  assert 'train[80%:]' in ' '.join(command)


def test_prepare_without_tensorflow_names_the_extra(manual_dir, tmp_path):
  # Not sys.modules['tensorflow'] = None: TFDS takes that for an import.
  script = """
import sys
from importlib.machinery import PathFinder
find = PathFinder.find_spec
PathFinder.find_spec = lambda name, path=None, target=None: (
  None if name == 'tensorflow' else find(name, path, target)
)
from alexnet_jax.data.prepare import __main__ as prepare
sys.exit(prepare.main())
"""
  options = '--name=imagenet2012', f'--manual_dir={manual_dir}'
  data_dir = f'--data_dir={tmp_path / "data"}'
  ended = run('-c', script, 'tfds', *options, data_dir)
  commands.refused(ended, 'needs TensorFlow')
  assert "pip install -e '.[tfds]'" in ended[-1]
  assert not (tmp_path / 'data').exists()


def test_prepare_names_each_missing_tar(tmp_path, capsys):
  (tmp_path / TRAIN_TAR).touch()
  options = ['--name=imagenet2012', f'--manual_dir={tmp_path}']
  options.append(f'--data_dir={tmp_path / "data"}')
  assert main(['tfds', *options]) == 2
  message = capsys.readouterr().err
  assert f'there is no {tmp_path / VAL_TAR}: download it' in message
  assert TRAIN_TAR not in message


@pytest.mark.parametrize(
  ('name', 'message'),
  [
    ('imagenet2013', 'no data set'),
    ('imagenet_resized/9x9', '64x64'),
    ('imagenet2012:5.0.0', 'NAME or NAME/CONFIG'),
    ('imdb_reviews', "['label', 'text']"),
  ],
)
def test_prepare_refuses_what_is_no_image_set_of_tfds(
  tmp_path, capsys, name, message
):
  assert main(['tfds', f'--name={name}', f'--data_dir={tmp_path}']) == 2
  assert message in capsys.readouterr().err
  assert not list(tmp_path.iterdir())

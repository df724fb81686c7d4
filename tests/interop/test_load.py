"""A run of imported weights in every command that takes one."""

import shutil

import jax
import numpy as np
import PIL.Image
import pytest
import safetensors.numpy

from alexnet_jax import validation
from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import compare, evaluate
from alexnet_jax.interop import load, torch_files
from alexnet_jax.interop.networks import Options
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.training import build, checkpoint, transfer
from tests.evaluation.conftest import write_splits
from tests.system import commands

FILE = 'marvin.safetensors'
CLASSES = ('blue', 'green', 'red')
MEAN, STD = (100.0, 110.0, 120.0), (50.0, 60.0, 70.0)


def torch_state():
  rng = np.random.default_rng(0)
  state = {}
  for name, shape in {
    'features.0': (32, 3, 3, 3),
    'features.3': (64, 32, 3, 3),
    'classifier.0': (256, 1600),
    'classifier.3': (256, 256),
    'classifier.6': (3, 256),
  }.items():
    scale = (2 / np.prod(shape[1:])) ** 0.5
    weight, bias = rng.normal(0, scale, shape), rng.normal(0, 0.1, shape[0])
    state[f'{name}.weight'] = weight.astype(np.float32)
    state[f'{name}.bias'] = bias.astype(np.float32)
  return state


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A folder with weights, photographs, names of classes and a run of them."""
  folder = tmp_path_factory.mktemp('folder')
  safetensors.numpy.save_file(torch_state(), folder / 'marvin.safetensors')
  (folder / 'names.txt').write_text('\n'.join(CLASSES) + '\n')
  write_splits(folder / 'data', 20, 30, CLASSES)
  names = f'--class_names {folder / "names.txt"}'
  line = load_line(
    folder, folder / 'run', f'{names} --mean 100,110,120 --std 50,60,70'
  )
  assert load.main(line.split()) == 0
  return folder


def load_line(folder, workdir, options=''):
  line = f'--from torch {folder / FILE} --network marvin --workdir {workdir}'
  return f'{line} {options}'


def run_line(folder):
  return f'--workdir {folder / "run"} --data_path {folder / "data"}'


def expected_shares(folder, files):
  """Probabilities by hand, of images of the network's own size."""
  imported = torch_files.read(folder / FILE, Options('marvin'))
  pixels = np.stack([np.asarray(PIL.Image.open(file)) for file in files])
  images = (pixels.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
  network = AlexNet(**imported.model, num_classes=3)
  logits = network.apply({'params': imported.params}, images)
  return np.asarray(jax.nn.softmax(logits))


def test_evaluate(folder, ask):
  config = checkpoint.open_run(folder / 'run').config
  validation.validate(config)
  assert config.data.std_rgb == STD
  assert config.model.channels == (32, 64)
  result, _ = commands.done(ask(evaluate, run_line(folder)))
  files = sorted((folder / 'data' / 'val').rglob('*.png'))
  labels = [CLASSES.index(file.parent.name) for file in files]
  shares = expected_shares(folder, files)
  losses = -np.log(shares[np.arange(len(files)), labels])
  assert result['examples'] == len(files) == 10
  np.testing.assert_allclose(result['eval/loss'], losses.mean(), rtol=1e-5)
  assert result['eval/top1'] == np.mean(shares.argmax(1) == labels)
  assert result['step'] == 0


def test_evaluate_says_where_data_and_names_go(folder, tmp_path, ask):
  run, unnamed = folder / 'run', tmp_path / 'unnamed'
  answer = ask(evaluate, f'--workdir {run}')
  commands.refused(answer, 'no data was named: give --data_path DIR')
  data = f'--data_path {folder / "data"}'
  result, err = commands.done(ask(load, load_line(folder, unnamed, data)))
  assert not result['classes_are_named']
  assert 'no classes: they are called class_0000 to class_0002 (--cl' in err
  assert f'evaluate --workdir {unnamed}\n' in err
  # Then they are those of the data, in its order.
  line = f'--workdir {unnamed} {data}'
  result, err = commands.done(ask(evaluate, line))
  assert f'the classes of {unnamed} have no names' in err
  assert result['examples'] == 10
  other = shutil.copytree(folder / 'data', tmp_path / 'other')
  for split in other.iterdir():
    (split / 'blue').rename(split / 'pink')
  commands.refused(
    ask(evaluate, f'--workdir {run} --data_path {other}'),
    "('green', 'pink', 'red'), but the network has 3 classes ('blue'",
    '--class_names FILE',
  )


def test_the_recipe_of_fine_tuning(folder, tmp_path):
  """Network, preparation and weights are the other's, the head is new."""
  run = folder / 'run'
  recipe = f'{commands.ROOT}/configs/finetune.py:{run}'
  overrides = (
    f'--config.data.path={folder / "data"}',
    '--config.num_epochs=0',
    '--config.num_steps=2',
    '--config.global_batch_size=8',
  )
  commands.train_here(recipe, tmp_path / 'tuned', *overrides)
  opened = checkpoint.open_run(tmp_path / 'tuned')
  config, names, state = opened.config, opened.class_names, opened.state
  other = checkpoint.open_run(run).state
  assert names == list(CLASSES)
  assert config.data.std_rgb == STD
  np.testing.assert_array_equal(
    build.stored_mean(config, tmp_path / 'tuned'), MEAN
  )
  moved = state.params['dense1']['kernel'] - other.params['dense1']['kernel']
  assert 0 < np.abs(moved).max() < 0.01
  fresh = state.params['head']['kernel'] - other.params['head']['kernel']
  assert np.abs(fresh).max() > 0.1


@pytest.mark.parametrize(
  ('kind', 'options', 'message'),
  [
    ('torch', '--network marvin --crop_size -3', '--crop_size is -3'),
    ('torch', '--network marvin --std 1,0,2', "--std is '1,0,2'"),
    ('torch', '--network marvin --batch_norm_epsilon 1', 'has no batch norms'),
    ('torch', '--network marvin --data_source zip', "data.source is 'zip'"),
    ('torch', '--network marvin --data_path x', 'there is no folder x'),
    ('torchvision', '', 'expected conv1 kernel [11, 11, 3, 64]'),
    ('keras', '', "--network is ''; the file does not say"),
    ('caffe', '--std 1,1,1', '--std is not for --from caffe'),
  ],
)
def test_what_is_refused(kind, options, message, folder, tmp_path, ask):
  line = f'--from {kind} {folder / FILE} --workdir {tmp_path / "run"} {options}'
  answer = ask(load, line)
  commands.refused(answer, message)
  assert answer[1] is None
  assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
  ('text', 'message'),
  [
    (b'a\nb\n', 'has 3 outputs, and there are 2 names of classes; each takes'),
    (b'a\nb\nb\n', "3 names of classes ('b' is empty or twice)"),
    (b'\n', 'names.txt is empty'),
    (b'a\n\xff\nc\n', 'is no UTF-8 text'),
  ],
)
def test_unfit_class_names(text, message, folder, tmp_path, ask):
  names = tmp_path / 'names.txt'
  names.write_bytes(text)
  line = load_line(folder, tmp_path / 'run', f'--class_names {names}')
  commands.refused(ask(load, line), message)
  assert list(tmp_path.iterdir()) == [names]


def test_other_classes_need_a_new_head(folder):
  """There are as many classes, so that the shapes fit."""
  config = checkpoint.open_run(folder / 'run').config
  config.init.workdir = str(folder / 'run')
  with pytest.raises(UserError, match=r"has 3 classes \('blue'.*\('head',\)"):
    transfer.check_init(config, ('a', 'b', 'c'))


def test_there_is_no_training_to_compare(folder, tmp_path, ask):
  run = folder / 'run'
  answer = ask(compare, f'{run} --out {tmp_path / "out"}')
  commands.refused(answer, f'{run} holds weights of elsewhere')


def test_one_level_is_that_of_all_colors(folder, tmp_path, ask):
  levels = '--mean 99 --std 78'
  assert ask(load, load_line(folder, tmp_path / 'run', levels))[0] == 0
  config = checkpoint.open_run(tmp_path / 'run').config
  assert config.data.std_rgb == (78, 78, 78)
  mean = build.stored_mean(config, tmp_path / 'run')
  np.testing.assert_array_equal(mean, [99] * 3)

"""Weights that say how they were made and what they reach."""

import json
import pathlib
import shutil

import jax
import numpy as np
import pytest

from alexnet_jax import validation
from alexnet_jax.interop import claims, load, save, verify
from alexnet_jax.training import checkpoint
from tests.interop.conftest import read_weights, write_weights
from tests.system import commands


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A run, and what `save` made of it."""
  root = tmp_path_factory.mktemp('verify')
  changes = {'seed': 3, 'ema_decay': 0.8, 'checkpoint__keep_at': 'log'}
  recipe = commands.write_recipe(root, **changes)
  commands.train_here(recipe, root / 'run')
  run = ['--workdir', str(root / 'run')]
  assert save.main([*run, str(root / 'hub')]) == 0
  assert save.main([*run, '--checkpoint', '0', str(root / 'untrained')]) == 0
  return root / 'hub'


def test_what_was_saved_holds(folder, call):
  result, _ = commands.done(call(verify, folder))
  run = checkpoint.open_run(folder.with_name('run'))
  measured = run.saved.progress.last_evaluation
  assert result['measured'] == measured
  for key, value in measured.items():
    assert result['found'][key] == pytest.approx(value, rel=1e-5)
  assert (result['seed'], result['seed_shows']) == (3, True)
  words = result['command'].split(' ', 2)
  assert words[:2] == ['alexnet-jax', 'train']
  recipe = str(folder.with_name('recipe.py'))
  expected = validation.load_config([f'--config={recipe}'])
  shown = json.loads((folder / 'config.json').read_text())
  assert shown['config'] == json.loads(expected.to_json())
  top1 = f'| eval/top1 | {measured["eval/top1"]:.4f} |'
  assert top1 in (folder / 'README.md').read_text()


def test_the_command_makes_the_config():
  keys = ['model.hidden=(8, 8)', 'data.path=it is', "init.freeze=('conv*',)"]
  lines = [f'--config.{key}' for key in keys]
  config = validation.load_config(['--config=folder', *lines])
  command = validation.command_of(config)
  words = validation.shlex.split(command)
  assert words[:4] == ['alexnet-jax', 'train', '--config', 'folder']
  again = validation.load_config(['--config=folder', *words[4:]])
  assert again.to_dict() == config.to_dict()
  assert len(words) == 4 + len(keys)


def read(folder):
  return read_weights(folder / claims.WEIGHTS)


def write(folder, tensors, fields, forges=False):
  """Writes weights; a forger writes new hashes as well."""
  if forges:
    fields['claims']['tensors'] = claims.digests(tensors)
  return write_weights(folder / claims.WEIGHTS, tensors, fields)


def some(rng, tensors):
  return rng.choice(sorted(tensors))


def flip_a_bit(rng, tensors, _):
  flat = tensors[some(rng, tensors)].reshape(-1).view(np.uint8)
  flat[rng.integers(flat.size)] ^= 1 << rng.integers(8)


def permute(rng, tensors, _):
  kernels = {k: v for k, v in tensors.items() if v.ndim > 1}
  rng.shuffle(kernels[some(rng, kernels)].reshape(-1))


def swap(rng, tensors, _):
  first = some(rng, tensors)
  second = rng.choice(sorted(tensors.keys() - {first}))
  tensors[first], tensors[second] = tensors[second], tensors[first]


def lose(rng, tensors, _):
  del tensors[some(rng, tensors)]


def add_a_measure(rng, _, fields):
  fields['claims']['measured'][f'eval/top{rng.integers(6, 99)}'] = 0.9


def steer_the_terminal(rng, _, fields):
  fields['claims'] |= {'version': '9', 'command': f'\x1b[{rng.integers(9)}J'}


def rename_the_command(rng, _, fields):
  fields['claims']['command'] += f' --config.seed={rng.integers(4, 99)}'


def change_the_network(rng, _, fields):
  fields['claims']['config']['model']['hidden'] = [int(rng.integers(1, 15))]


def untrain_a_layer(rng, tensors, fields):
  layer = some(rng, tensors).rpartition('.')[0]
  for name, fresh in fields['untrained'].items():
    if name.startswith(f'{layer}.'):
      rng.shuffle(fresh.reshape(-1))  # as other draws
      tensors[name] = fresh


def untrain(rng, tensors, fields):
  for layer in sorted(name for name in tensors if name.endswith('.weight')):
    rng.shuffle(fields['untrained'][layer].reshape(-1))
  tensors |= fields['untrained']


def claim_more(rng, _, fields):
  measured = fields['claims']['measured']
  name = some(rng, measured)
  sign = -1 if measured[name] > 0.5 else 1
  measured[name] += sign * rng.uniform(0.2, 0.5)


def name_other_data(rng, _, fields):
  data = fields['claims']['data']
  name = some(rng, data)
  data[name] = rng.bytes(8).hex() if name.endswith('print') else 999


def drop_the_data(rng, _, fields):
  fields['claims']['data'] = {}


CHANGES = [flip_a_bit, swap, lose, add_a_measure, steer_the_terminal]
CHANGES += [rename_the_command, change_the_network, claim_more]
CHANGES += [name_other_data, drop_the_data]
FORGED = [permute, untrain_a_layer, untrain]  # with new hashes
KINDS = [pytest.param(change, False, id=change.__name__) for change in CHANGES]
KINDS += [pytest.param(c, True, id=f'{c.__name__}, forged') for c in FORGED]
MESSAGES = {
  claim_more: '; measured here it is',
  name_other_data: 'its figures are of other data',
}
A_FEW = pytest.param(2, id='some')
MANY = pytest.param(80, id='1040', marks=pytest.mark.slow)


@pytest.mark.parametrize('count', [A_FEW, MANY])
@pytest.mark.parametrize(('change', 'forges'), KINDS)
def test_altered_weights_are_refused(
  folder, tmp_path, call, change, forges, count
):
  for seed in range(count):
    tensors, fields = read(folder)
    fields['untrained'], _ = read(folder.with_name('untrained'))
    change(np.random.default_rng(seed), tensors, fields)
    del fields['untrained']
    path = write(tmp_path, tensors, fields, forges)
    commands.refused(call(verify, path), MESSAGES.get(change, ''))


def test_without_figures_nothing_is_said_to_hold(folder, tmp_path, call):
  tensors, fields = read(folder)
  fields['claims']['measured'] = {}
  path = write(tmp_path, tensors, fields)
  code, _, err = call(verify, path)
  assert (code, 'no figures: not measured again' in err) == (0, True)
  answer = call(verify, path, '--data_path', tmp_path)
  commands.refused(answer, 'leave --data_path out')


def test_converted_weights_have_no_command(folder, tmp_path, call):
  """They are those of the folder, with its averages."""
  line = f'{folder} --workdir {tmp_path / "run"} --data_source synthetic'
  code, result, err = call(load, *line.split())
  assert (code, result['classes_are_named']) == (0, True), err
  ours = checkpoint.open_run(folder.with_name('run')).state.ema_params
  theirs = checkpoint.open_run(tmp_path / 'run').state.params
  jax.tree.map(np.testing.assert_array_equal, theirs, ours)
  copy = tmp_path / 'copy.safetensors'
  line = f'--workdir {tmp_path / "run"} {copy}'
  assert call(save, *line.split())[0] == 0
  code, result, err = call(verify, copy)
  assert (code, result['command']) == (0, ''), err


def test_a_false_seed_does_not_show(folder, tmp_path, call):
  tensors, fields = read(folder)
  forged = fields['claims']
  forged['config']['seed'] = 4
  forged['command'] = forged['command'].replace('seed=3', 'seed=4')
  path = write(tmp_path, tensors, fields)
  code, result, err = call(verify, path)
  assert (code, result['seed_shows']) == (0, False), err
  assert 'seed 4 (nothing of which the weights show)' in err


@pytest.mark.parametrize('name', ['README.md', 'config.json'])
def test_a_card_that_says_more_than_the_weights_is_refused(
  folder, tmp_path, call, name
):
  copy = pathlib.Path(shutil.copytree(folder, tmp_path / 'copy'))
  text = (copy / name).read_text()
  (copy / name).write_text(text.replace('0.', '0.9', 20))
  commands.refused(call(verify, copy), f'{name} does not say what')

"""Weights that say how they were made and what they reach."""

import json
import pathlib
import shutil

import numpy as np
import pytest
import safetensors
import safetensors.numpy

from alexnet_jax import validation
from alexnet_jax.interop import claims
from alexnet_jax.interop import load
from alexnet_jax.interop import save
from alexnet_jax.interop import verify
from alexnet_jax.training import checkpoint
from tests.system import commands


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  """A run, and what `save` made of it."""
  root = tmp_path_factory.mktemp('verify')
  recipe = commands.write_recipe(root, seed=3, ema_decay=0.8)
  commands.train_here(recipe, root / 'run')
  assert save.main(['--workdir', str(root / 'run'), str(root / 'hub')]) == 0
  return root / 'hub'


def test_what_was_saved_holds(folder, ask):
  code, result, err = ask(verify, str(folder))
  assert code == 0, err
  run = checkpoint.open_run(folder.with_name('run'))
  measured = run.saved.progress.last_evaluation
  assert result['measured'] == measured
  for key, value in measured.items():
    assert result['found'][key] == pytest.approx(value, rel=1e-5)
  words = result['command'].split(' ', 2)
  assert words[:2] == ['alexnet-jax', 'train']
  recipe = str(folder.with_name('recipe.py'))
  expected = validation.load_config([f'--config={recipe}'])
  shown = json.loads((folder / 'config.json').read_text())
  assert shown['config'] == json.loads(expected.to_json())
  top1 = f'| eval/top1 | {measured["eval/top1"]:.4f} |'
  assert top1 in (folder / 'README.md').read_text()


def read(folder):
  path = folder / claims.WEIGHTS
  with safetensors.safe_open(path, 'numpy') as file:
    fields = json.loads(file.metadata()['alexnet_jax'])
  return safetensors.numpy.load_file(path), fields


def write(folder, tensors, fields, forges=False):
  """Writes weights; a forger writes new hashes as well."""
  if forges:
    fields['claims']['tensors'] = claims.digests(tensors)
  text = {'format': 'pt', 'alexnet_jax': json.dumps(fields)}
  path = folder / claims.WEIGHTS
  safetensors.numpy.save_file(tensors, path, text)
  return path


def some(rng, tensors):
  return rng.choice(sorted(tensors))


def flip_a_bit(rng, tensors, _):
  flat = tensors[some(rng, tensors)].reshape(-1).view(np.uint8)
  flat[rng.integers(flat.size)] ^= 1 << rng.integers(8)


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


CHANGES = [flip_a_bit, swap, lose]
CHANGES += [add_a_measure, steer_the_terminal, rename_the_command]
CHANGES += [change_the_network]


@pytest.mark.parametrize('change', CHANGES)
def test_altered_weights_are_refused(folder, tmp_path, capsys, change):
  for seed in range(3):
    tensors, fields = read(folder)
    change(np.random.default_rng(seed), tensors, fields)
    path = write(tmp_path, tensors, fields)
    assert verify.main([str(path)]) == 2


@pytest.mark.parametrize('layer', ['features.0', 'classifier.0'])
def test_an_untrained_layer_is_refused_with_new_hashes(
  folder, tmp_path, capsys, layer
):
  tensors, fields = read(folder)
  rng = np.random.default_rng(0)
  kernel, bias = (tensors[f'{layer}.{k}'] for k in ('weight', 'bias'))
  fan_in = kernel[0].size
  spread = (2 / fan_in) ** 0.5  # He et al. 2015
  normal = np.clip(
    rng.normal(0, spread / 0.88, kernel.shape), -2 * spread, 2 * spread
  )
  kernel[:] = normal
  bias[:] = 0.1 if layer == 'classifier.0' else 0
  path = write(tmp_path, tensors, fields, forges=True)
  assert verify.main([str(path)]) == 2
  assert 'looks as it does before it is trained' in capsys.readouterr().err


def test_figures_are_measured_again(folder, tmp_path, capsys):
  tensors, fields = read(folder)
  fields['claims']['measured']['eval/top1'] = 0.5
  path = write(tmp_path, tensors, fields)
  assert verify.main([str(path)]) == 2
  assert 'it says eval/top1 0.5000; measured here' in capsys.readouterr().err
  tensors, fields = read(folder)
  fields['claims']['data']['eval_fingerprint'] = 'another'
  write(tmp_path, tensors, fields)
  assert verify.main([str(path)]) == 2
  assert 'its figures are of other data' in capsys.readouterr().err


def test_without_figures_nothing_is_said_to_hold(folder, tmp_path, capsys):
  tensors, fields = read(folder)
  fields['claims']['measured'] = {}
  path = write(tmp_path, tensors, fields)
  assert verify.main([str(path)]) == 0
  assert 'no figures: not measured again' in capsys.readouterr().err
  assert verify.main([str(path), '--data_path', str(tmp_path)]) == 2
  assert 'leave --data_path out' in capsys.readouterr().err


def test_converted_weights_have_no_command(folder, tmp_path, ask):
  line = f'{folder} --workdir {tmp_path / "run"} --data_source synthetic'
  assert ask(load, line)[0] == 0
  copy = tmp_path / 'copy.safetensors'
  line = f'--workdir {tmp_path / "run"} {copy}'
  assert ask(save, line)[0] == 0
  code, result, err = ask(verify, str(copy))
  assert (code, result['command']) == (0, ''), err


@pytest.mark.parametrize('name', ['README.md', 'config.json'])
def test_a_card_that_says_more_than_the_weights_is_refused(
  folder, tmp_path, capsys, name
):
  copy = pathlib.Path(shutil.copytree(folder, tmp_path / 'copy'))
  text = (copy / name).read_text()
  (copy / name).write_text(text.replace('0.', '0.9', 20))
  assert verify.main([str(copy)]) == 2
  assert f'{name} does not say what' in capsys.readouterr().err

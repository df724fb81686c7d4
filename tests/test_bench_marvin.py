import importlib.util
import json
import math
import pathlib
import sys

import jax
import numpy as np
import pytest

from alexnet_jax import validation
from alexnet_jax.bench import marvin
from alexnet_jax.bench import marvin_summary
from alexnet_jax.bench.__main__ import main
from alexnet_jax.training import build
from alexnet_jax.training import parallel
from alexnet_jax.training import preprocess
from alexnet_jax.training import writers
from tests.system import commands

PARAMETERS = 896 + 18_496 + 409_856 + 65_792 + 2_570


def make_run(seed, contender, accuracy, epoch_seconds=()):
  return {
    'seed': seed,
    'contender': contender,
    'accuracy': accuracy,
    'epoch_seconds': list(epoch_seconds),
    'parameters': PARAMETERS,
  }


def test_summary_by_hand():
  runs = [
    make_run(0, 'ours', 0.96, [2.0, 9.0, 1.0]),
    make_run(0, 'keras', 0.97, [3.0, 3.0, 3.0]),
    make_run(1, 'keras', 0.97, [4.0, 4.0, 5.0]),
    make_run(1, 'ours', 0.98, [4.0, 4.0, 4.0]),
    make_run(2, 'ours', 1.0, [2.0, 2.0, 3.0]),
    make_run(2, 'keras', 0.97, [5.0, 5.0, 4.0]),
  ]
  result = marvin_summary.summary(runs)
  ours, keras = result['ours'], result['keras']
  assert ours['accuracy'] == [0.96, 0.98, 1.0]
  assert ours['mean'] == pytest.approx(0.98)
  # The deviations from the mean are -0.02, 0 and 0.02.
  assert ours['standard_error'] == pytest.approx(0.02 / math.sqrt(3))
  assert ours['epoch_seconds'] == [2.0, 4.0, 2.0]
  assert ours['median_epoch_seconds'] == 2.0
  assert keras['standard_error'] == pytest.approx(0)
  assert keras['epoch_seconds'] == [3.0, 4.0, 5.0]
  assert result['difference'] == pytest.approx(0.01)
  assert result['difference_error'] == pytest.approx(0.02 / math.sqrt(3))
  assert result['within_one_standard_error'] is True
  assert result['epoch_seconds_ratio'] == 1.5  # of 1.5, 1 and 2.5


@pytest.mark.parametrize(('shift', 'within'), [(0.0121, True), (0.0123, False)])
@pytest.mark.parametrize('sign', [1, -1])
def test_the_errors_of_both_count(sign, shift, within):
  """Both have 0.015 / sqrt(3), together 0.012247."""
  runs = []
  for seed, offset in enumerate((-0.015, 0, 0.015)):
    runs.append(make_run(seed, 'ours', 0.9 + sign * shift + offset))
    runs.append(make_run(seed, 'keras', 0.9 - offset))
  result = marvin_summary.summary(runs)
  assert result['difference'] == pytest.approx(sign * shift)
  assert result['difference_error'] == pytest.approx(0.015 * math.sqrt(2 / 3))
  assert result['within_one_standard_error'] is within


def test_one_seed_and_one_epoch_have_no_error_and_no_time(capsys):
  runs = [make_run(0, 'ours', 0.5), make_run(0, 'keras', 0.25)]
  result = marvin_summary.summary(runs)
  for name in marvin_summary.CONTENDERS:
    assert result[name]['standard_error'] is None
    assert result[name]['median_epoch_seconds'] is None
  assert result['difference'] == 0.25
  assert result['difference_error'] is None
  assert result['within_one_standard_error'] is None
  assert result['epoch_seconds_ratio'] is None
  assert marvin_summary.line(runs[0]) == (
    'seed 0, ours: 0.5000 of the digits held out'
  )
  marvin_summary.show({**frame(), **result})
  assert 'times as long' not in capsys.readouterr().err


def frame():
  """What a result has besides the summary."""
  versions = {'jax': '1', 'keras': '2', 'tensorflow': '3'}
  return {
    'machine': {'cpu': 'CPU', 'cores': 2},
    'versions': versions,
    'epochs': 1,
  }


def test_the_table_for_people(capsys):
  runs = [
    make_run(seed, name, accuracy, [seconds])
    for seed in (0, 1)
    for name, accuracy, seconds in (
      ('ours', 0.9 + seed / 10, 2.0),
      ('keras', 0.5, 3.0),
    )
  ]
  marvin_summary.show({**frame(), **marvin_summary.summary(runs)})
  text = ' '.join(capsys.readouterr().err.split())
  assert '0.900 1.000 │ 0.9500 ± 0.0500 │ 2.00' in text
  assert 'difference +0.4500 ± 0.0500, which is more than one stand' in text
  assert 'Keras takes 1.50 times as long as ours' in text


def test_both_have_a_turn_for_every_seed(monkeypatch, tmp_path):
  monkeypatch.chdir(commands.ROOT)
  calls = []

  def train_ours(config, num_examples, folder, seed):
    assert (num_examples, folder, config.num_epochs) == (4000, tmp_path, 3.0)
    calls.append(('ours', seed))
    return {'accuracy': 0.5, 'epoch_seconds': [], 'parameters': 7}

  def train_keras(config, data_file, folder, seed):
    del config, folder
    assert data_file.exists()
    calls.append(('keras', seed))
    parameters = 7 if seed < 2 else 8
    return {'accuracy': 0.25, 'epoch_seconds': [], 'parameters': parameters}

  monkeypatch.setattr(marvin, '_train_ours', train_ours)
  monkeypatch.setattr(marvin, '_train_keras', train_keras)
  runs = marvin.measure(tmp_path, 2, 3)
  assert calls == [('ours', 0), ('keras', 0), ('keras', 1), ('ours', 1)]
  assert [(run['contender'], run['seed']) for run in runs] == calls
  assert [run['accuracy'] for run in runs] == [0.5, 0.25, 0.25, 0.5]
  with pytest.raises(RuntimeError, match='the networks differ'):
    marvin.measure(tmp_path, 3, 3)


def test_keras_gets_the_pixels_that_our_network_sees(monkeypatch, tmp_path):
  monkeypatch.chdir(commands.ROOT)
  config = validation.load_config([f'--config={marvin.RECIPE}'])
  assert marvin._write_data(config, tmp_path / 'data.npz') == 4000
  with np.load(tmp_path / 'data.npz') as stored:
    data = dict(stored)
  train = build.make_loader(config, 'train')
  mean = build.find_pixel_statistics(config, train, tmp_path).mean
  mesh = parallel.make_mesh()
  for name, split, count in (
    ('train', 'train', 4000),
    ('val', 'validation', 1000),
  ):
    loader = build.make_loader(config, split)
    batches = list(build.make_eval_iter(config, loader, mesh))
    images = np.concatenate([batch['image'] for batch in batches])[:count]
    labels = np.concatenate([batch['label'] for batch in batches])[:count]
    seen = np.asarray(preprocess.normalize(images, mean, config.data.std))
    assert data[f'x_{name}'].dtype == np.float32
    np.testing.assert_allclose(data[f'x_{name}'], seen, rtol=1e-6, atol=1e-7)
    np.testing.assert_array_equal(data[f'y_{name}'], labels)


def test_our_seconds_are_those_of_the_history(monkeypatch, tmp_path):
  monkeypatch.chdir(commands.ROOT)
  config = validation.load_config([f'--config={marvin.RECIPE}'])
  config.num_epochs = 4.0
  rows = [
    {'step': 31, 'images_per_second': 1000.0},
    {'step': 32, 'eval/top1': 0.9},
    {'step': 62, 'images_per_second': 2000.0},
    {'step': 93, 'images_per_second': 8000.0},
  ]
  seen = []

  def run(*arguments):
    seen.extend(arguments)
    return 'x\n' + json.dumps({'eval/top1': 0.9, 'parameters': 5}) + '\n'

  monkeypatch.setattr(marvin, '_run', run)
  monkeypatch.setattr(writers, 'read_rows', lambda workdir: rows)
  assert marvin._train_ours(config, 4000, tmp_path, 3) == {
    'accuracy': 0.9,
    'epoch_seconds': [2.0, 0.5],
    'parameters': 5,
  }
  assert '--config.log_every_steps=31' in seen
  assert '--config.seed=3' in seen
  assert '--config.num_epochs=4.0' in seen


def test_a_process_that_fails_is_quoted():
  with pytest.raises(RuntimeError, match='no_such_module'):
    marvin._run('alexnet_jax.no_such_module')


def refused(*arguments):
  assert main(['marvin', *arguments]) == 2


def test_without_keras_the_command_says_what_to_install(monkeypatch, capsys):
  found = importlib.util.find_spec
  monkeypatch.setattr(
    importlib.util,
    'find_spec',
    lambda name: None if name == 'tensorflow' else found(name),
  )
  refused()
  err = capsys.readouterr().err
  assert 'tensorflow cannot be imported' in err
  assert "pip install 'tensorflow" in err


def test_wrong_arguments_are_refused(monkeypatch, capsys, tmp_path):
  monkeypatch.setattr(importlib.util, 'find_spec', lambda name: name)
  monkeypatch.setattr(marvin, 'measure', None)
  monkeypatch.chdir(commands.ROOT)
  refused('--keep', str(tmp_path))
  assert 'exists already' in capsys.readouterr().err
  refused('--config.seed=1')
  assert '--config.seed=1' in capsys.readouterr().err
  monkeypatch.chdir(tmp_path)
  refused()
  assert "no recipe at 'configs/marvin.py'" in capsys.readouterr().err
  with pytest.raises(SystemExit):
    main(['marvin', '--seeds', '0'])


def test_the_network_of_keras():
  """Here on its JAX backend: as many parameters as ours."""
  pytest.importorskip('keras')
  from alexnet_jax.bench import marvin_keras

  rng = np.random.default_rng(0)
  y = rng.integers(0, 10, 64).astype(np.int32)
  x = (
    rng.normal(size=(64, 28, 28, 3)).astype(np.float32) + y[:, None, None, None]
  )
  with jax.numpy_rank_promotion('allow'):  # Keras' layers rely on it
    result = marvin_keras.train(
      {'x_train': x, 'y_train': y, 'x_val': x, 'y_val': y},
      seed=0,
      epochs=3,
      batch_size=32,
      learning_rate=0.001,
      b1=0.9,
      b2=0.999,
      epsilon=1e-7,
    )
  assert result['parameters'] == PARAMETERS
  assert len(result['epoch_seconds']) == 3
  assert min(result['epoch_seconds']) > 0
  assert result['accuracy'] * 64 == round(result['accuracy'] * 64)


@pytest.mark.slow
def test_both_learn_digits(tmp_path):
  pytest.importorskip('tensorflow')
  keep = tmp_path / 'kept'
  code, out, err = commands.run(
    *(sys.executable, '-m', 'alexnet_jax.bench', 'marvin', '--json'),
    *('--seeds', 1, '--epochs', 1, '--keep', keep),
  )
  assert code == 0, err
  result = json.loads(out)
  assert {'machine', 'versions', 'command', 'recipe'} <= set(result)
  assert [run['parameters'] for run in result['runs']] == [PARAMETERS] * 2
  for name in marvin_summary.CONTENDERS:
    assert 0.7 < result[name]['mean'] < 1
    assert f'seed 0, {name}' in err
  assert {path.name for path in pathlib.Path(keep).iterdir()} == {
    'ours_0',
    'keras_0.json',
  }

"""`bench data` runs, and its numbers fit together; no times are asserted."""

import json
import sys

import numpy as np
import pytest

from alexnet_jax.bench import data, data_peers
from alexnet_jax.bench.__main__ import main
from tests.evaluation.conftest import write_splits
from tests.system import commands

SMALL = '--batch_size 16 --batches 1 --images 40 --threads 2 --json'
OURS = ['ours', 'ours, mirrored on the host']
BARE = 'bare decoding or copying'


def run(arguments, **options):
  """Returns the result of the command, and what it shows people."""
  bench = (sys.executable, '-m', 'alexnet_jax.bench', 'data')
  command = (*bench, *f'{SMALL} {arguments}'.split())
  code, out, err = commands.run(*command, **options)
  assert code == 0, err
  return json.loads(out), err


@pytest.mark.slow
def test_measures_ours_and_the_limits_on_every_layout():
  result, err = run('--peers=none')
  assert {'machine', 'versions', 'command', 'images'} <= set(result)
  assert 'grain' in result['versions']
  assert (result['distinct'], 'scikit-learn' in err) == (2, True)
  found = [(row['candidate'], row['case']) for row in result['rows']]
  assert found == [(c, name) for c in (*OURS, BARE) for name in data.LAYOUTS]
  assert all(min(row['images_per_second']) > 0 for row in result['rows'])


@pytest.mark.slow
def test_peers_are_measured_or_named_with_a_reason(tmp_path):
  # As if they were not installed, wherever the test runs.
  for library in ('tensorflow', 'torch', 'spdl'):
    (tmp_path / f'{library}.py').write_text('raise ImportError("not here")\n')
  photographs = write_splits(tmp_path / 'photographs', 6, 6) / 'train'
  arguments = f'--layouts=folder-320-to-256 --path {photographs} --rounds 3'
  result, err = run(arguments, env={'PYTHONPATH': str(tmp_path)})
  failed = [e['candidate'] for e in result['failed']]
  loaders = [f'torch DataLoader, {name}' for name in ('simplejpeg', 'cv2')]
  keras = 'keras.utils.image_dataset_from_directory'
  spdl = ['SPDL', 'SPDL, interpolating']
  assert failed == ['tf.data', keras, *loaders, *spdl]
  assert {e['reason'] for e in result['failed']} == {'not here'}
  assert 'not measured: SPDL: not here' in err
  candidates = [row['candidate'] for row in result['rows']]
  assert candidates == [*OURS, 'Grain, per example', BARE]
  assert {len(row['images_per_second']) for row in result['rows']} == {3}


@pytest.mark.parametrize('flag', ['--layouts=x', '--peers=x', '--config.x=1'])
def test_unknown_names_are_refused(flag, capsys):
  assert main(['data', flag]) == 2
  assert 'x' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('change', 'complaint'),
  [
    (lambda image, label: (image[:, :5], label), 'images are'),
    (lambda image, label: (image, label + 7), 'labels are'),
    (lambda image, label: (image * 0, label), 'no content'),
    (lambda image, label: (image, np.sort(label)), 'not shuffled'),
  ],
)
def test_wrong_batches_are_found(change, complaint):
  task = data_peers.Task('x', 'folder', 320, 320, '', 32, 1, 1)
  rng = np.random.default_rng(0)
  shape = 32, 224, 224, 3
  batches = [
    (rng.integers(0, 256, shape, dtype=np.uint8), rng.integers(0, 10, 32))
    for _ in range(2)
  ]
  data_peers.check_batches(batches, task, 10)
  with pytest.raises(ValueError, match=complaint):
    data_peers.check_batches([change(*batch) for batch in batches], task, 10)

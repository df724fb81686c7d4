"""`bench data` runs, and its numbers fit together; no times are asserted."""

import json
import statistics
import sys

import numpy as np
import PIL.Image
import pytest

from alexnet_jax.bench import data
from alexnet_jax.bench import data_peers
from alexnet_jax.bench.__main__ import main
from tests.system import commands

SMALL = '--batch_size 16 --batches 1 --images 40 --threads 2 --json'


def run(arguments, **options):
  bench = (sys.executable, '-m', 'alexnet_jax.bench', 'data')
  return commands.run(*bench, *f'{SMALL} {arguments}'.split(), **options)


def check_rows(result):
  """Medians, extremes and ratios are those of the rounds."""
  for row in result['rows']:
    speeds = row['images_per_second']
    assert row['median'] == statistics.median(speeds)
    assert 0 < row['min'] == min(speeds) <= max(speeds) == row['max']
  for layout, ratios in result['ratios'].items():
    rows = [row for row in result['rows'] if row['layout'] == layout]
    speeds = {row['candidate']: row['images_per_second'] for row in rows}
    for own in data.OURS:
      assert set(ratios[own]) == set(speeds)
      for name, ratio in ratios[own].items():
        each = np.divide(speeds[own], speeds[name])
        assert ratio == pytest.approx(np.median(each))


@pytest.mark.slow
def test_measures_ours_and_the_limits_on_every_layout():
  code, out, err = run('--peers=none')
  assert code == 0, err
  result = json.loads(out)
  assert {'machine', 'versions', 'command', 'photographs'} <= set(result)
  assert 'grain' in result['versions']
  assert 'synthetic' in err
  check_rows(result)
  found = {(row['layout'], row['candidate']) for row in result['rows']}
  for name, (kind, *_) in data_peers.LAYOUTS.items():
    part = 'crop copy' if kind == 'raw' else 'decode only'
    for candidate in (*data.OURS, part):
      assert (name, candidate) in found
  assert {row['kind'] for row in result['rows']} == {'ours', 'limit'}


@pytest.mark.slow
def test_peers_are_measured_or_named_with_a_reason(tmp_path):
  # As if they were not installed, wherever the test runs.
  for library in ('tensorflow', 'torch', 'spdl'):
    (tmp_path / f'{library}.py').write_text('raise ImportError("not here")\n')
  photographs = tmp_path / 'photographs'
  for label in ('a', 'b'):
    (photographs / label).mkdir(parents=True)
    for number in range(3):
      pixels = np.random.default_rng(number).integers(0, 256, (60, 90, 3))
      path = photographs / label / f'{number}.png'
      PIL.Image.fromarray(pixels.astype(np.uint8)).save(path)
  arguments = f'--layouts=folder-320-to-256 --path {photographs} --rounds 3'
  code, out, err = run(arguments, env={'PYTHONPATH': str(tmp_path)})
  assert code == 0, err
  result = json.loads(out)
  assert result['photographs']['distinct'] == 6
  assert result['photographs']['images'] == 40
  reasons = {e['candidate']: e['reason'] for e in result['skipped']}
  assert set(reasons) == {'tf.data', 'torch', 'spdl'}
  assert reasons['torch'] == 'not installed (not here)'
  assert 'not measured: torch' in err
  check_rows(result)
  assert {len(row['images_per_second']) for row in result['rows']} == {3}
  candidates = [row['candidate'] for row in result['rows']]
  assert candidates == [*data.OURS, 'Grain, per example', 'decode only']


@pytest.mark.parametrize('flag', ['--layouts=x', '--peers=x', '--config.x=1'])
def test_unknown_names_are_refused(flag, capsys):
  assert main(['data', flag]) == 2
  assert 'x' in capsys.readouterr().err


@pytest.mark.parametrize(
  ('change', 'complaint'),
  [
    (lambda image, label: (image[:, :5], label), 'images are'),
    (lambda image, label: (image.astype(np.float32), label), 'images are'),
    (lambda image, label: (image, label + 7), 'labels are'),
    (lambda image, label: (image, label[:2]), 'labels are'),
    (lambda image, label: (image * 0, label), 'no content'),
    (lambda image, label: (image, np.sort(label)), 'not shuffled'),
  ],
)
def test_wrong_batches_are_found(change, complaint):
  task = data_peers.Task('x', 'folder', 320, 320, '', 32, 1)
  rng = np.random.default_rng(0)

  def batches(task, count):
    for _ in range(count):
      yield (
        rng.integers(0, 256, (32, 224, 224, 3), dtype=np.uint8),
        rng.integers(0, 10, 32),
      )

  data_peers.check_batches(batches, task, 10)
  with pytest.raises(ValueError, match=complaint):
    data_peers.check_batches(
      lambda *a: (change(*batch) for batch in batches(*a)), task, 10
    )

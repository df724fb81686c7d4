"""Marvin on the digits that come with the package."""

import json
import statistics
import sys

import pytest

from tests.system import commands


@pytest.mark.slow
def test_marvin_learns_the_digits_and_is_the_same_elsewhere(tmp_path):
  results = [
    commands.train(
      'configs/marvin.py',
      tmp_path / str(seed),
      f'--config.seed={seed}',
      '--config.report=false',
    )
    for seed in range(2)
  ]
  assert statistics.mean(r['eval/top1'] for r in results) >= 0.97
  code, out, err = commands.run(
    *(sys.executable, '-m', 'alexnet_jax.evaluation.evaluate'),
    *('--workdir', tmp_path / '0', '--json'),
  )
  assert code == 0, err
  again = json.loads(out)
  for key in ('eval/loss', 'eval/top1', 'eval/macro_f1', 'state_digest'):
    assert again[key] == results[0][key]

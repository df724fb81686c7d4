import json
import sys

import pytest

from tests.system import commands


def test_end_to_end_measures_all_three(tmp_path):
  recipe = commands.write_recipe(tmp_path)
  code, out, err = commands.run(
    *(sys.executable, '-m', 'alexnet_jax.bench', 'end_to_end', '--json'),
    *('--config', recipe, '--steps', 6, '--rounds', 3),
  )
  assert code == 0, err
  result = json.loads(out)
  for name in ('step', 'loader', 'loop'):
    assert len(result[name]) == 3
    assert min(result[name]) > 0
    assert result['median'][name] == sorted(result[name])[1]
  shares = sorted(
    a / b for a, b in zip(result['loop'], result['step'], strict=True)
  )
  assert result['loop_share'] == pytest.approx(shares[1])
  assert result['devices'].startswith('4 x')
  assert 'jax' in result['versions']

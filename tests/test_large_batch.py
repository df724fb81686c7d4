"""configs/imagenet_large_batch.py, made tiny: the whole command."""

import json

import pytest

from tests.system import commands

RECIPE = 'configs/imagenet_large_batch.py'
# Batches of 48, as large for this data as 8,192 for ImageNet.
TINY = {
  'num_epochs': 0.0,
  'num_steps': 8,
  'global_batch_size': 48,
  'microbatch_size': 3,
  'log_every_steps': 1,
  'report': False,
  'data.source': 'synthetic',
  'data.synthetic_examples': 192,
  'data.synthetic_classes': 4,
  'data.resize_size': 72,
  'data.crop_size': 64,
  'model.num_classes': 0,
  'model.width_multiplier': 0.05,
  'optimizer.base_batch_size': 4,
  'schedule.warmup_epochs': 0.0,
  'schedule.warmup_steps': 2,
}


@pytest.mark.slow
def test_a_run_has_the_learning_rate_of_its_batch(tmp_path):
  """On four devices, with LARS, batch norm, dropout and microbatches."""
  overrides = [f'--config.{key}={value}' for key, value in TINY.items()]
  code, _, err = commands.run(
    *commands.MAIN,
    *(f'--config={RECIPE}', f'--workdir={tmp_path}', *overrides),
  )
  assert code == 0, err
  assert '48 in all, 12 per device, in 4 microbatches' in err
  rows = map(json.loads, (tmp_path / 'metrics.jsonl').read_text().splitlines())
  rows = [row for row in rows if 'learning_rate' in row]
  rates = [row['learning_rate'] for row in rows]
  assert max(rates) == pytest.approx(0.025 * 12**0.5)
  assert rates[0] == pytest.approx(rates[1] / 2)
  assert rows[-1]['train/loss'] < rows[0]['train/loss']

"""configs/imagenet_large_batch.py, made tiny: on any number of devices."""

import itertools
import json
import pathlib
import re

import jax
import numpy as np
import pytest

from alexnet_jax import validation
from alexnet_jax.training import build
from alexnet_jax.training import parallel
from alexnet_jax.training import state as state_lib
from tests.system import commands
from tests.training.steps import mesh_of

RECIPE = pathlib.Path('configs/imagenet_large_batch.py')
# Batches of 48, as large for this data as 8,192 for ImageNet.
TINY = {
  'num_epochs': 0.0,
  'num_steps': 8,
  'global_batch_size': 48,
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


def tiny(microbatch_size, **changes):
  values = {**TINY, 'microbatch_size': microbatch_size, **changes}
  return [f'--config.{key}={value}' for key, value in values.items()]


def train(devices, microbatch_size, kind='shard_map', starts=None):
  """(states, losses) of the recipe over the first `devices` devices.

  `states` holds the first state and that after each update. With `starts`,
  each update begins at the state of its number there, so that a rounding in
  one update does not grow in those after it.
  """
  constant = {'schedule.name': 'constant', 'schedule.warmup_steps': 0}
  overrides = tiny(microbatch_size, parallel=kind, **constant)
  path = commands.ROOT / RECIPE
  config = validation.load_config([f'--config={path}', *overrides])
  mesh, loader = mesh_of(devices), build.make_loader(config, 'train')
  steps = build.make_steps(config, mesh, np.full(3, 127.5, np.float32))
  state = build.make_state(config, build.make_model(config, 4))
  batches = build.make_train_iter(config, loader, config.num_steps, mesh)
  states, losses = [jax.device_get(state)], []
  for number, batch in enumerate(batches):
    state = parallel.replicate((starts or states)[number], mesh)
    batch = parallel.batch_to_devices(batch, mesh, kind)
    state, sums = steps.train(state, batch, build.dropout_key(config))
    states.append(jax.device_get(state))
    losses.append(float(sums['loss']) / 48)
  return states, losses


def distances(states, others):
  """float [updates]: distance of updates that began in the same states.

  The largest one of all arrays of the state, each in the norm of its change.
  Biases before a batch norm are left out: their gradients are 0 but for
  roundings.
  """
  found = []
  for number, (before, after) in enumerate(itertools.pairwise(states), 1):
    flat = [
      state_lib.leaf_names(state_lib.saved_tree(state))
      for state in (before, after, others[number])
    ]
    largest = 0.0
    for name, start in flat[0].items():
      end, other = (np.asarray(tree[name]) for tree in flat[1:])
      difference = np.linalg.norm(other - end)
      if difference and not re.search(r'conv[12]/bias', name):
        largest = max(largest, difference / np.linalg.norm(end - start))
    found.append(largest)
  return np.array(found)


@pytest.mark.slow
def test_the_tiny_recipe_trains_alike_on_one_device_and_on_four():
  """In two microbatches, with batch norm, dropout and LARS; eight updates.

  A ReLU whose input is 0 but for roundings, or a pooling window with two
  largest values but for roundings, sends its gradient elsewhere on another
  number of devices: in few updates. All else is continuous.
  """
  one, losses = train(1, 24)
  assert losses[-1] < losses[0]
  for devices, microbatch_size, kind in (
    (2, 12, 'shard_map'),
    (4, 6, 'pmap'),
  ):
    others, other_losses = train(devices, microbatch_size, kind, one)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    found = distances(one, others)
    assert np.max(found) < 0.1, found
    assert np.sum(found > 1e-4) <= 2, found
  # The statistics of other microbatches are others.
  smaller, _ = train(4, 3, starts=one)
  assert np.min(distances(one, smaller)) > 1e-2


@pytest.mark.slow
def test_a_run_has_the_rate_of_its_batch(tmp_path):
  """The whole command, on four devices; the rate is in its history."""
  code, _, err = commands.run(
    *commands.MAIN,
    f'--config={RECIPE}',
    f'--workdir={tmp_path / "run"}',
    *tiny(3, log_every_steps=1, report=False),
  )
  assert code == 0, err
  assert '48 in all, 12 per device, in 4 ' in err
  rows = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  rates = [
    row['learning_rate']
    for row in map(json.loads, rows)
    if 'learning_rate' in row
  ]
  assert max(rates) == pytest.approx(0.025 * 12**0.5)
  assert rates[0] == pytest.approx(rates[1] / 2)

"""configs/imagenet_large_batch.py, made tiny: on any number of devices."""

import itertools
import json
import pathlib

from flax import serialization
from flax import traverse_util
import jax
import numpy as np
import pytest

from alexnet_jax import config as config_lib
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


def tiny(device_batch_size):
  values = {**TINY, 'microbatch_size': device_batch_size}
  return [f'--config.{key}={value}' for key, value in values.items()]


def train(devices, device_batch_size, kind='shard_map', starts=None):
  """(states, losses, rates) of the recipe over the first `devices` devices.

  `states` holds the first state and that after each update. With `starts`,
  each update begins at the state of its number there, so that a rounding in
  one update does not grow in those after it.
  """
  path = commands.ROOT / RECIPE
  config = validation.load_config(
    [f'--config={path}', *tiny(device_batch_size)]
  )
  config.parallel = kind
  mesh, loader = mesh_of(devices), build.make_loader(config, 'train')
  steps = build.make_steps(config, mesh, np.full(3, 127.5, np.float32))
  state = build.make_state(config, build.make_model(config, 4))
  durations = config_lib.resolve_durations(config, loader.source.num_examples)
  batches = build.make_train_iter(config, loader, config.num_steps, mesh)
  states, losses, rates = [jax.device_get(state)], [], []
  for number, batch in enumerate(batches):
    rate = build.make_schedule(config, durations).at(
      number, build.learning_rate(config)
    )
    rates.append(rate)
    state = parallel.replicate((starts or states)[number], mesh)
    state = state_lib.with_learning_rate(
      state, parallel.replicate(np.float32(rate), mesh)
    )
    batch = parallel.batch_to_devices(batch, mesh, kind)
    state, sums = steps.train(state, batch, build.dropout_key(config))
    states.append(jax.device_get(state))
    losses.append(float(sums['loss']) / 48)
  return states, losses, rates


def apart(states, others):
  """float [updates]: how far they are from others from the same states.

  Of each array of the state in the norm of its change, and of these the
  largest. Biases before a batch norm are left out: their gradients are 0 but
  for roundings.
  """

  def of_array(path, before, after, other):
    if {'conv1', 'conv2'} & set(path) and 'bias' in path:
      return 0.0
    difference = np.linalg.norm(other - after)
    return difference and difference / np.linalg.norm(after - before)

  found = []
  for number, (before, after) in enumerate(itertools.pairwise(states), 1):
    trees = [
      serialization.to_state_dict(state_lib.saved_tree(state))
      for state in (before, after, others[number])
    ]
    names, *_ = flats = [traverse_util.flatten_dict(tree) for tree in trees]
    found.append(
      np.max(
        [of_array(name, *(flat[name] for flat in flats)) for name in names]
      )
    )
  return np.array(found)


@pytest.mark.slow
def test_the_tiny_recipe_trains_alike_on_one_device_and_on_four():
  """In two pieces, with batch norm, dropout and LARS; eight updates.

  A ReLU whose input is 0 but for roundings, or a pooling window with two
  largest values but for roundings, sends its gradient elsewhere on another
  number of devices: in few updates. All else is continuous.
  """
  one, losses, rates = train(1, 24)
  assert max(rates) == pytest.approx(0.025 * 12**0.5)
  assert losses[-1] < losses[0]
  for devices, device_batch_size, kind in (
    (2, 12, 'shard_map'),
    (4, 6, 'pmap'),
  ):
    others, other_losses, _ = train(devices, device_batch_size, kind, one)
    np.testing.assert_allclose(other_losses, losses, rtol=1e-5)
    distances = apart(one, others)
    assert np.max(distances) < 0.1, distances
    assert np.sum(distances > 1e-4) <= 2, distances
  # The statistics of other pieces are others.
  pieces, _, _ = train(4, 3, starts=one)
  assert np.min(apart(one, pieces)) > 1e-2


@pytest.mark.slow
def test_a_run_has_the_rate_of_its_batch(tmp_path):
  """The whole command, on four devices; the rate is in its history."""
  code, _, err = commands.run(
    *(*commands.MAIN, '--config', RECIPE, '--workdir', tmp_path / 'run'),
    *(*tiny(3), '--config.log_every_steps=1', '--config.report=false'),
  )
  assert code == 0, err
  assert '48 in all, 12 per device, in 4 pieces' in err
  rows = (tmp_path / 'run' / 'metrics.jsonl').read_text().splitlines()
  rates = [
    row['learning_rate']
    for row in map(json.loads, rows)
    if 'learning_rate' in row
  ]
  assert max(rates) == pytest.approx(0.025 * 12**0.5)
  assert rates[0] == pytest.approx(rates[1] / 2)

"""The step functions over devices, against each other and against numbers."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models import layers
from alexnet_jax.training import parallel, state as state_lib, step
from alexnet_jax.training.parallel import batch_to_devices
from tests.training.steps import (
  assert_close,
  BATCH,
  host_batch,
  logits_of,
  make_state,
  mapped,
  MEAN,
  mesh_of,
  train,
)


@functools.cache
def mapped_step(**options):
  return mapped(step.train_step, mesh_of(4), 'pmap', **options)


def step_with(state=None, batch=None, steps=1, **options):
  """State and sums after some updates on the same batch, on four devices."""
  mesh, train_step = mesh_of(4), mapped_step(**options)
  state = parallel.replicate(state or make_state(), mesh)
  batch = batch_to_devices(batch or host_batch(), mesh, 'pmap')
  for _ in range(steps):
    state, sums = train_step(state, batch, jax.random.key(1))
  return jax.device_get(state), {k: float(v) for k, v in sums.items()}


@pytest.mark.parametrize(
  ('kind', 'devices', 'norm'),
  [
    ('pmap', 4, 'lrn'),
    pytest.param('shard_map', 2, 'batch', marks=pytest.mark.slow),
  ],
)
def test_any_number_of_devices_trains_alike(kind, devices, norm):
  """Dropout is on; three steps make 1e-5 of the rounding."""
  network = {'dropout': 0.5, 'norm': norm}
  one, one_history = train('shard_map', 1, **network)
  several, history = train(kind, devices, **network)
  assert several['step'] == 3
  assert_close(history, one_history, rtol=1e-5, atol=0)
  assert_close(several, one, rtol=1e-4, atol=1e-5)
  # All of them move, but for biases that batch norm takes away.
  first = state_lib.leaf_names(jax.device_get(make_state(**network).params))
  for name, leaf in state_lib.leaf_names(several['params']).items():
    if name.endswith('kernel') or (name, norm) == ('conv2/bias', 'lrn'):
      assert np.abs(leaf - first[name]).max() > 1e-4, name


def test_pmap_and_shard_map_are_equal():
  pmap, pmap_history = train('pmap', 4, dropout=0.5)
  shard_map, shard_map_history = train('shard_map', 4, dropout=0.5)
  assert pmap_history == shard_map_history
  assert state_lib.state_digest(pmap) == state_lib.state_digest(shard_map)


def test_gradients_are_those_of_the_mean_loss():
  """Against autodiff of the plain mean over the global batch, with lighting."""
  state = make_state(momentum=0.0, weight_decay=0.0)
  batch, rng = host_batch(), np.random.default_rng(0)
  batch['color'] = rng.normal(0, 20, (BATCH, 3)).astype(np.float32)
  batch['scale'] = rng.uniform(0.5, 1, BATCH).astype(np.float32)

  def loss(params):
    pixels = batch['image'] + batch['color'][:, None, None]
    pixels = (pixels - MEAN) / 60 * batch['scale'][:, None, None, None]
    logits = state.apply_fn({'params': params}, pixels)
    picked = jax.nn.log_softmax(logits)[jnp.arange(BATCH), batch['label']]
    return -picked.mean()

  after, _ = step_with(state, batch)
  steps = jax.tree.map(np.subtract, state.params, after.params)
  actual = jax.tree.map(lambda leaf: leaf / 0.05, steps)
  expected = jax.jit(jax.grad(loss))(state.params)
  assert_close(actual, expected, rtol=1e-4, atol=1e-6)


def kept_units(devices, key, number=1, now=3, kind='shard_map'):
  """bool [BATCH, 512]: what dropout keeps of a global batch."""

  def kept(now, batch):
    count = len(batch['label'])
    keys = step.example_keys(key, now, count)
    units = layers.dropout(jnp.ones((count, 512)), keys, 0.3, number)
    return jax.lax.all_gather(units > 0, parallel.AXIS, tiled=True)

  mesh = mesh_of(devices)
  function = parallel.map_over_devices(kept, mesh, kind)
  batch = batch_to_devices({'label': np.zeros(BATCH, np.int32)}, mesh, kind)
  return np.asarray(function(parallel.replicate(np.int32(now), mesh), batch))


def test_dropout_depends_on_example_step_layer_and_seed_alone():
  key = jax.random.key(5)
  one = kept_units(1, key)
  assert one.shape == (BATCH, 512)
  for devices, kind in ((2, 'shard_map'), (4, 'pmap')):
    np.testing.assert_array_equal(kept_units(devices, key, kind=kind), one)
  # The numbers of a key are as good as the key.
  np.testing.assert_array_equal(kept_units(4, jax.random.key_data(key)), one)
  draws = [
    *one,
    *kept_units(2, key, now=4),
    *kept_units(2, key, number=2),
    *kept_units(2, jax.random.key(6)),
  ]
  # Two draws of 512 units agree in 0.58 of them, give or take 0.022.
  for left, right in itertools.combinations(draws, 2):
    assert abs((left == right).mean() - 0.58) < 0.12


def test_device_batches_are_one_step_ahead():
  class Numbers:
    taken = 0

    def __next__(self):
      if self.taken == 3:
        raise StopIteration
      self.taken += 1
      return {'number': self.taken}

    def get_state(self):
      return {'next_index': self.taken}

  source = Numbers()
  batches = parallel.DeviceBatches(source, lambda batch: batch)
  assert batches.iterator_state == {'next_index': 0}
  for expected in (1, 2, 3):
    assert batches.take() == {'number': expected}
    batches.fetch()
    assert source.taken == min(3, expected + 1)
    assert batches.iterator_state == {'next_index': expected}


def test_the_objective_by_hand():
  """The weights are as of torch.nn.CrossEntropyLoss; the loss has none."""
  state, batch = make_state(), host_batch()
  weights = np.array([1.0, 2.0, 0.5, 4.0, 3.0, 0.1])
  options = {'label_smoothing': 0.1, 'class_weights': tuple(weights)}
  _, sums = step_with(state, batch, **options)
  logits, labels = logits_of(state, batch['image']), batch['label']
  logs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
  own = -logs[np.arange(BATCH), labels]
  losses = 0.9 * weights[labels] * own - 0.1 / 6 * (weights * logs).sum(1)
  expected = losses.sum() / weights[labels].sum()
  assert sums['objective'] / BATCH == pytest.approx(expected, rel=1e-5)
  assert sums['loss'] == pytest.approx(own.sum(), rel=1e-5)


def test_frozen_parameters_do_not_count_in_the_norm():
  state, batch = make_state(clip_norm=0.01, weight_decay=0.0), host_batch()
  names = state_lib.leaf_names(state.params)
  frozen = frozenset(name for name in names if not name.startswith('head'))
  after, _ = step_with(state, batch, frozen=frozen)
  moved = [
    (leaf - names[name]).ravel()
    for name, leaf in state_lib.leaf_names(after.params).items()
  ]
  norm = np.linalg.norm(np.concatenate(moved))
  assert norm == pytest.approx(0.05 * 0.01, rel=1e-3)


def test_frozen_parameters_wait_without_gathering_anything():
  state = make_state(norm='batch')
  before = state_lib.leaf_names(state.params)
  frozen = frozenset(n for n in before if n.startswith(('conv', 'norm1')))
  after, _ = step_with(state, steps=3, frozen=frozen)
  memory = state_lib.leaf_names(after.opt_state).items()
  for name, leaf in state_lib.leaf_names(after.params).items():
    assert (leaf == before[name]).all() == (name in frozen), name
    if name in frozen:
      (velocity,) = (leaf for key, leaf in memory if key.endswith(name))
      assert not velocity.any()
  stats, seen = state.batch_stats, after.batch_stats
  assert_close(seen['norm1'], stats['norm1'], rtol=0, atol=0)
  assert (seen['norm2']['mean'] != stats['norm2']['mean']).any()


def test_averaged_parameters_by_hand():
  state = make_state()
  state = state.replace(ema_params=jax.tree.map(jnp.copy, state.params))
  average = np.asarray(state.params['head']['kernel'], np.float64)
  for decay in (0.1, 2 / 11, 0.2):
    state, _ = step_with(state, ema_decay=0.2)
    average = decay * average + (1 - decay) * state.params['head']['kernel']
    np.testing.assert_allclose(
      state.ema_params['head']['kernel'], average, rtol=1e-5, atol=1e-7
    )
  without, _ = step_with(steps=3)
  assert not without.ema_params
  assert_close(state.params, without.params, rtol=0, atol=0)

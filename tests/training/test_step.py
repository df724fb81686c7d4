"""The step functions over devices, against each other and against numbers."""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.training import optimizer
from alexnet_jax.training import parallel
from alexnet_jax.training import state as state_lib
from alexnet_jax.training import step

SIZE, BATCH = 24, 8
MEAN = np.array([100.0, 120.0, 140.0], np.float32)
BOUND = {'mean': MEAN, 'std': 60.0, 'axis_name': parallel.AXIS}


def make_state(dropout=0.0, norm='lrn'):
  model = AlexNet(
    num_classes=6,
    channels=(8, 8, 8, 8, 8),
    kernels=(3, 3, 3, 3, 3),
    strides=(1, 1, 1, 1, 1),
    paddings=('SAME',) * 5,
    hidden=(16, 16),
    dropout=dropout,
    norm=norm,
    kernel_init='he',
    axis_name=parallel.AXIS,
  )
  tx = optimizer.make_optimizer(0.05)
  key = jax.random.key(0)
  return state_lib.create_train_state(model, tx, key, (SIZE, SIZE, 3))


def host_batch(seed=0, mask=None):
  rng = np.random.default_rng(seed)
  batch = {
    'image': rng.integers(0, 256, (BATCH, SIZE, SIZE, 3), dtype=np.uint8),
    'label': rng.integers(0, 6, BATCH).astype(np.int32),
  }
  return batch if mask is None else {**batch, 'mask': mask}


def mesh_of(count):
  return Mesh(np.array(jax.devices()[:count]), (parallel.AXIS,))


def to_devices(batch, mesh, kind):
  if kind == 'pmap' and mesh.size < jax.local_device_count():
    return {
      k: v.reshape((mesh.size, -1, *v.shape[1:])) for k, v in batch.items()
    }
  return parallel.batch_to_devices(batch, mesh, kind)


def train(kind, devices, num_steps=3, **options):
  """State and sums of some steps over the first `devices` devices."""
  mesh = mesh_of(devices)
  train_step = parallel.map_over_devices(
    functools.partial(step.train_step, **BOUND), mesh, kind, donate_state=True
  )
  state = parallel.replicate(make_state(**options), mesh)
  history = []
  for t in range(num_steps):
    batch = to_devices(host_batch(t), mesh, kind)
    state, sums = train_step(state, batch, jax.random.key(1))
    history.append({name: float(value) for name, value in sums.items()})
  return jax.device_get(state_lib.saved_tree(state)), history


def assert_close(left, right, rtol, atol):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    left,
    right,
  )


def test_mirroring_on_the_device_equals_mirroring_before():
  flip = np.array([True, False, True, True, False, False, False, True])
  mesh = mesh_of(4)
  train_step = parallel.map_over_devices(
    functools.partial(step.train_step, **BOUND), mesh, 'pmap'
  )
  batch = host_batch()
  images = batch['image'].copy()
  images[flip] = images[flip][:, :, ::-1]
  results = [
    train_step(
      parallel.replicate(make_state(), mesh),
      to_devices(given, mesh, 'pmap'),
      jax.random.key(1),
    )
    for given in (
      {**batch, 'flip': flip},
      {**batch, 'image': images},
      batch,
    )
  ]
  states = [jax.device_get(state.params) for state, _ in results]
  jax.tree.map(np.testing.assert_array_equal, states[0], states[1])
  assert float(results[0][1]['loss']) == float(results[1][1]['loss'])
  assert float(results[0][1]['loss']) != float(results[2][1]['loss'])


def test_unreadable_examples_are_counted_over_all_devices():
  mesh = mesh_of(4)
  train_step = parallel.map_over_devices(
    functools.partial(step.train_step, **BOUND), mesh, 'pmap'
  )
  unreadable = np.array([True, False, False, True, True, False, False, False])
  batch = {**host_batch(), 'unreadable': unreadable}
  _, sums = train_step(
    parallel.replicate(make_state(), mesh),
    to_devices(batch, mesh, 'pmap'),
    jax.random.key(1),
  )
  assert int(sums['unreadable']) == 3
  assert int(sums['count']) == BATCH


@pytest.mark.parametrize('norm', ['lrn', 'batch'])
@pytest.mark.parametrize('kind', ['pmap', 'shard_map'])
def test_four_devices_do_what_one_does(kind, norm):
  """Up to rounding, which three steps at this rate make 1e-5 of."""
  one, one_history = train('shard_map', 1, norm=norm)
  four, four_history = train(kind, 4, norm=norm)
  assert four['step'] == 3
  assert_close(four_history, one_history, rtol=1e-5, atol=0)
  assert_close(four, one, rtol=1e-4, atol=1e-5)
  moved = (
    jax.tree.map(
      lambda a, b: np.abs(a - b).max(), four['params'], make_state().params
    )
    if norm == 'lrn'
    else {}
  )
  assert all(value > 1e-4 for value in jax.tree.leaves(moved))


@pytest.mark.parametrize('dropout', [0.0, 0.5])
def test_pmap_and_shard_map_are_equal(dropout):
  pmap, pmap_history = train('pmap', 4, dropout=dropout)
  shard_map, shard_map_history = train('shard_map', 4, dropout=dropout)
  assert pmap_history == shard_map_history
  assert state_lib.state_digest(pmap) == state_lib.state_digest(shard_map)


@pytest.mark.parametrize('kind', ['pmap', 'shard_map'])
def test_gradients_are_those_of_the_mean_loss(kind):
  """Against autodiff of the plain mean over the global batch."""
  mesh, state, batch = mesh_of(4), make_state(), host_batch()
  grad_step = parallel.map_over_devices(
    functools.partial(step.grad_step, **BOUND), mesh, kind
  )
  actual = grad_step(
    parallel.replicate(state, mesh),
    to_devices(batch, mesh, kind),
    jax.random.key(1),
  )

  def loss(params):
    pixels = (
      jnp.asarray(batch['image'], jnp.float32) - MEAN.reshape(1, 1, 1, 3)
    ) / 60
    logits = state.apply_fn({'params': params}, pixels)
    picked = jax.nn.log_softmax(logits)[jnp.arange(BATCH), batch['label']]
    return -picked.mean()

  assert_close(actual, jax.grad(loss)(state.params), rtol=1e-4, atol=1e-6)


def test_the_state_is_donated_and_the_batch_crosses_as_uint8():
  for kind in ('pmap', 'shard_map'):
    mesh = mesh_of(4)
    train_step = parallel.map_over_devices(
      functools.partial(step.train_step, **BOUND),
      mesh,
      kind,
      donate_state=True,
    )
    state = parallel.replicate(make_state(), mesh)
    batch = to_devices(host_batch(), mesh, kind)
    assert batch['image'].dtype == jnp.uint8
    assert len(batch['image'].addressable_shards) == 4
    after, _ = train_step(state, batch, jax.random.key(0))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(state.params))
    assert not any(leaf.is_deleted() for leaf in jax.tree.leaves(after))


def test_dropout_depends_on_step_and_device():
  """One image everywhere and a rate of 0: only the masks can differ."""
  image = {name: array[:1] for name, array in host_batch().items()}

  def losses(devices):
    mesh = mesh_of(devices)
    train_step = parallel.map_over_devices(
      functools.partial(step.train_step, **BOUND), mesh, 'shard_map'
    )
    state = state_lib.with_learning_rate(
      make_state(dropout=0.5), np.float32(0.0)
    )
    state = parallel.replicate(state, mesh)
    batch = {name: np.repeat(v, devices, 0) for name, v in image.items()}
    found = []
    for _ in range(2):
      state, sums = train_step(
        state, to_devices(batch, mesh, 'shard_map'), jax.random.key(0)
      )
      found.append(float(sums['loss']))
    return found

  one, four = losses(1), losses(4)
  assert one[0] != one[1]  # another step, another mask
  assert four[0] != pytest.approx(4 * one[0])  # other devices, other masks


def test_a_new_learning_rate_recompiles_nothing():
  mesh, traces = mesh_of(4), []

  def counted(*arguments):
    traces.append(1)
    return step.train_step(*arguments, **BOUND)

  for kind in ('pmap', 'shard_map'):
    traces.clear()
    train_step = parallel.map_over_devices(
      counted, mesh, kind, donate_state=True
    )
    state = parallel.replicate(make_state(), mesh)
    for rate in (0.1, 0.01, 0.001):
      state = state_lib.with_learning_rate(
        state, parallel.replicate(np.float32(rate), mesh)
      )
      state, _ = train_step(
        state, to_devices(host_batch(), mesh, kind), jax.random.key(0)
      )
      held = state.opt_state.hyperparams['learning_rate']
      assert held == np.float32(rate)
    assert len(traces) == 1


@pytest.mark.parametrize('kind', ['pmap', 'shard_map'])
def test_eval_step_sums_what_the_mask_says(kind):
  mesh, state = mesh_of(4), make_state(dropout=0.5)
  mask = np.array([True, True, False, True, True, False, False, True])
  batch = host_batch(mask=mask)
  eval_step = parallel.map_over_devices(
    functools.partial(step.eval_step, **BOUND), mesh, kind
  )
  sums = eval_step(
    parallel.replicate(state, mesh), to_devices(batch, mesh, kind)
  )
  pixels = (batch['image'].astype(np.float32) - MEAN) / 60
  logits = np.asarray(state.apply_fn({'params': state.params}, pixels))
  log_sum = np.log(np.exp(logits).sum(1))
  losses = log_sum - logits[np.arange(BATCH), batch['label']]
  right = logits.argmax(1) == batch['label']
  assert int(sums['count']) == 5
  np.testing.assert_allclose(sums['loss'], losses[mask].sum(), rtol=1e-5)
  assert float(sums['top1']) == right[mask].sum()


def test_mean_image_and_mean_per_channel():
  images = host_batch()['image']
  expected = (images.astype(np.float64) - MEAN) / 2
  for mean in (MEAN, np.broadcast_to(MEAN, (SIZE, SIZE, 3))):
    np.testing.assert_allclose(
      step.normalize(images, mean, 2.0), expected, rtol=1e-6
    )


def test_a_batch_that_devices_do_not_divide_names_both_numbers():
  with pytest.raises(UserError, match='is 30, which 4 devices'):
    parallel.check_batch_size(30, 4)


def test_device_batches_are_one_step_ahead():
  class Numbers:
    def __init__(self):
      self.taken = 0

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
  with pytest.raises(StopIteration):
    batches.take()

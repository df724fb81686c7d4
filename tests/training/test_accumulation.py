"""A batch in microbatches against the batch as a whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.training import parallel, step
from alexnet_jax.training.parallel import batch_to_devices
from tests.training.steps import (
  assert_close,
  host_batch,
  make_state,
  mapped,
  mesh_of,
  OPTIONS,
  train,
)

SIZE = 48  # of the global batch: 12 for each of four devices


def batches(seed):
  rng = np.random.default_rng(seed)
  return {
    **host_batch(seed, size=SIZE),
    'flip': rng.random(SIZE) < 0.5,
    'brightness': rng.normal(0, 9, SIZE).astype(np.float32),
    'unreadable': rng.random(SIZE) < 0.3,
  }


@pytest.mark.parametrize(
  ('count', 'sizes', 'number'),
  [(12, (0, 12, 100), 1), (12, (4, 5), 3), (13, (5,), 13)],
)
def test_the_smallest_number_of_microbatches(count, sizes, number):
  assert {step.num_microbatches(count, size) for size in sizes} == {number}


# Clipping makes steps short; without it, the size of the gradients shows.
@pytest.mark.parametrize(('clip_norm', 'atol'), [(0.0, 1e-5), (0.1, 1e-6)])
def test_microbatches_train_as_the_whole(clip_norm, atol):
  """Three microbatches of four on each of four devices; dropout acts.

  Class weights and clipping are those of the global batch.
  """
  options = {'class_weights': (1.0, 9.0, 2.0, 0.5, 4.0, 1.0)}
  options['label_smoothing'] = 0.1
  same = {'batches': batches, 'clip_norm': clip_norm, 'dropout': 0.5}
  one, whole = train('shard_map', 1, 2, options=options, **same)
  options['microbatch_size'] = 5
  several, history = train('pmap', 4, 2, options=options, **same)
  assert_close(history, whole, rtol=1e-5, atol=0)
  assert_close(several, one, rtol=1e-4, atol=atol)
  assert 'objective' in history[0]
  assert [sums['count'] for sums in history] == [SIZE] * 2
  assert [sums['unreadable'] for sums in history] == [
    batches(t)['unreadable'].sum() for t in range(2)
  ]
  if not clip_norm:
    return
  moved = jax.tree.map(np.subtract, one['params'], make_state().params)
  squares = [np.square(leaf).sum() for leaf in jax.tree.leaves(moved)]
  assert sum(squares) < (0.05 * 0.1 * 3) ** 2  # two steps, with momentum


@pytest.mark.slow
def test_there_is_one_more_tree_of_gradients_in_memory():
  """Against a step on a batch as large as a microbatch."""
  mesh, network = mesh_of(1), make_state(hidden=(512, 512))
  gradients = sum(leaf.nbytes for leaf in jax.tree.leaves(network.params))

  def memory(size, count):
    function = mapped(step.train_step, mesh, 'shard_map', microbatch_size=size)
    batch = batch_to_devices(host_batch(size=count), mesh, 'shard_map')
    state = parallel.replicate(network, mesh)
    program = function.lower(state, batch, jax.random.key(1)).compile()
    return program.memory_analysis().temp_size_in_bytes

  one = memory(0, 16)
  for count in (32, 256):
    assert one < memory(16, count) < one + 1.2 * gradients


def by_hand(batch, number):
  """Parameters and statistics after a step by hand, on one device."""
  state = make_state(norm='batch')

  def compute(stats, part):
    state_now = state.replace(batch_stats=stats)
    grads, (_, _, stats) = step.loss_and_grads(state_now, part, None, OPTIONS)
    return grads, stats

  compute = jax.pmap(
    compute, parallel.AXIS, in_axes=(None, 0), devices=jax.devices()[:1]
  )
  stats, grads = state.batch_stats, jax.tree.map(jnp.zeros_like, state.params)
  for index in range(number):
    part = {name: value[None, index::number] for name, value in batch.items()}
    more, stats = jax.tree.map(lambda leaf: leaf[0], compute(stats, part))
    grads = jax.tree.map(lambda a, b: a + b / number, grads, more)
  params = jax.tree.map(
    lambda w, g: w - 0.05 * (g + 5e-4 * w), state.params, grads
  )
  return params, stats


@pytest.mark.slow
def test_batch_norm_takes_the_statistics_of_each_microbatch():
  """Four of 12 examples, the same ones on any number of devices."""
  batch = host_batch(size=SIZE)
  params, stats = by_hand(batch, 4)
  for devices, size in ((1, 12), (2, 6), (4, 3)):
    mesh = mesh_of(devices)
    train_step = mapped(
      step.train_step, mesh, 'shard_map', microbatch_size=size
    )
    after, _ = train_step(
      parallel.replicate(make_state(norm='batch'), mesh),
      batch_to_devices(batch, mesh, 'shard_map'),
      jax.random.key(1),
    )
    assert_close(after.params, params, rtol=1e-4, atol=1e-5)
    assert_close(after.batch_stats, stats, rtol=1e-4, atol=1e-6)
  whole, whole_stats = by_hand(batch, 1)
  kernels = whole['conv2']['kernel'] - params['conv2']['kernel']
  means = whole_stats['norm1']['mean'] - stats['norm1']['mean']
  assert min(np.abs(kernels).max(), np.abs(means).max()) > 1e-4

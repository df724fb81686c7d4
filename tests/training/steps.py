"""A tiny network and batches for tests of the step functions."""

import dataclasses
import functools

import jax
from jax.sharding import Mesh
import numpy as np

from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.training import optimizer, parallel, state as state_lib, step
from alexnet_jax.training.parallel import batch_to_devices

SIZE, BATCH = 12, 8
MEAN = np.array([100.0, 120.0, 140.0], np.float32)
OPTIONS = step.StepOptions(MEAN, 60.0)


@functools.cache
def make_state(
  *, dropout=0.0, norm='lrn', hidden=(16,), seed=0, classes=6, ema=False, **tx
):
  model = AlexNet(
    num_classes=classes,
    channels=(8, 8),
    kernels=(3, 3),
    strides=(1, 1),
    paddings=('SAME',) * 2,
    groups=(1, 2),
    pool_layers=(1, 2),
    bias_layers=(2,),
    hidden=hidden,
    dropout=dropout,
    norm=norm,
    kernel_init='he',
    axis_name=parallel.AXIS,
  )
  tx = optimizer.make_optimizer(0.05, **tx)
  state = state_lib.create_train_state(
    model, tx, jax.random.key(seed), (SIZE, SIZE, 3), ema=ema
  )
  return jax.device_get(state)  # a step cannot delete these arrays


def host_batch(seed=0, size=BATCH):
  rng = np.random.default_rng(seed)
  return {
    'image': rng.integers(0, 256, (size, SIZE, SIZE, 3), dtype=np.uint8),
    'label': rng.integers(0, 6, size).astype(np.int32),
  }


def logits_of(state, images):
  """Those of a network that is not divided among devices, in float64."""
  pixels = (images.astype(np.float32) - MEAN) / 60
  return np.float64(state.apply_fn({'params': state.params}, pixels))


def mesh_of(count):
  return Mesh(np.array(jax.devices()[:count]), (parallel.AXIS,))


def mapped(function, mesh, kind, donate_state=False, **options):
  """A step function over the devices of the mesh."""
  options = dataclasses.replace(OPTIONS, **options)
  function = functools.partial(function, options=options)
  return parallel.map_over_devices(
    function, mesh, kind, donate_state=donate_state
  )


def train(
  kind, devices, num_steps=3, batches=host_batch, options=None, **network
):
  """State and sums of some steps over the first `devices` devices."""
  mesh = mesh_of(devices)
  train_step = mapped(step.train_step, mesh, kind, True, **options or {})
  state = parallel.replicate(make_state(**network), mesh)
  history = []
  for t in range(num_steps):
    batch = batch_to_devices(batches(t), mesh, kind)
    assert batch['image'].dtype == np.uint8  # a fourth of float32
    before = state
    state, sums = train_step(before, batch, jax.random.key(1))
    assert all(leaf.is_deleted() for leaf in jax.tree.leaves(before.params))
    history.append({name: float(value) for name, value in sums.items()})
  return jax.device_get(state_lib.saved_tree(state)), history


def assert_close(left, right, rtol, atol):
  jax.tree.map(
    lambda a, b: np.testing.assert_allclose(a, b, rtol=rtol, atol=atol),
    left,
    right,
  )

"""Twelve steps of training, from the same weights on the same batches."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax import config as config_lib
from alexnet_jax.interop import networks, torch_files
from alexnet_jax.models import variants
from alexnet_jax.training import build, parallel, state as state_lib
from tests.interop.conftest import HIDDEN, NARROW

torch = pytest.importorskip('torch')

from tests.interop import torch_networks  # noqa: E402 (needs torch)

pytestmark = pytest.mark.interop

STEPS, DROP = 12, 8  # the learning rate is a tenth from step DROP on
BATCH, CLASSES, SIZE = 8, 10, 64  # the last feature map has one pixel
# Where a rounding makes a ReLU switch, a gradient jumps; batch norm spreads
# that, and the next steps enlarge it: smaller steps keep it below RTOL.
RATES = {'alexnet': 1e-3, 'alexnet_bn': 5e-5}
MOMENTUM, DECAY = 0.9, 5e-4
MEAN, STD = (120.0, 115.0, 105.0), 60.0
RTOL = 1e-4


def make_network(make):
  network = make(CLASSES, NARROW, HIDDEN, width=1, dropout=0)
  return torch_networks.randomised(network).train()


def learning_rates(first):
  return [first if step < DROP else first / 10 for step in range(STEPS)]


@pytest.fixture
def batches():
  """Labels that pixels tell of, so that there is something to learn."""
  rng = np.random.default_rng(4)
  out = []
  for _ in range(STEPS):
    labels = rng.integers(0, CLASSES, BATCH)
    images = rng.integers(0, 180, (BATCH, SIZE, SIZE, 3))
    images += (labels * 8)[:, None, None, None]
    out.append((images.astype(np.uint8), labels.astype(np.int32)))
  return out


def our_config(variant):
  config = config_lib.make_config()
  config.model.update(variants.fields(variant))
  config.model.update({'dropout': 0.0, 'batch_norm_epsilon': 1e-5})
  config.model.dtype = 'float32'
  config.data.update({'crop_size': SIZE, 'std': STD})
  optimizer = {'name': 'sgd', 'momentum': MOMENTUM}
  optimizer |= {'learning_rate': RATES[variant], 'weight_decay': DECAY}
  config.optimizer.update(optimizer)
  config.global_batch_size = BATCH
  config.parallel = 'shard_map'
  return config


def train_ours(config, weights, batches):
  """(losses, weights after); weights are named and laid out as PyTorch's."""
  mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), (parallel.AXIS,))
  steps = build.make_steps(config, mesh, np.array(MEAN, np.float32))
  network = networks.TrainedNetwork(
    config.model.to_dict(), config.data.to_dict(), np.zeros(3)
  )
  network = torch_files.from_torch(weights, network)
  state = build.make_state(config, build.make_model(config, CLASSES))
  state = state.replace(params=network.params, batch_stats=network.batch_stats)
  state, losses = parallel.replicate(state, mesh), []
  key = build.dropout_key(config)
  own = learning_rates(config.optimizer.learning_rate)
  for (images, labels), learning_rate in zip(batches, own, strict=True):
    rate = jnp.float32(learning_rate)
    state = state_lib.with_learning_rate(state, learning_rate=rate)
    batch = {'image': images, 'label': labels}
    state, sums = steps.train(state, batch, key)
    losses.append(float(sums['loss'] / sums['count']))
  host = jax.device_get(state)
  network = dataclasses.replace(
    network, params=host.params, batch_stats=host.batch_stats
  )
  return losses, torch_files.to_torch(network)


def their_loss(network, images, labels):
  pixels = (images.astype(np.float32) - np.float32(MEAN)) / np.float32(STD)
  logits = network(torch.from_numpy(np.moveaxis(pixels, 3, 1).copy()))
  target = torch.from_numpy(labels.astype(np.int64))
  return torch.nn.functional.cross_entropy(logits, target)


def numpy_state(network):
  state = network.state_dict().items()
  return {k: t.numpy().copy() for k, t in state if 'tracked' not in k}


@pytest.mark.parametrize(
  ('variant', 'make'),
  [
    ('alexnet', torch_networks.paper),
    ('alexnet_bn', torch_networks.batch_norm),
  ],
)
def test_as_torch_optim_sgd(variant, make, batches, narrow):
  network = make_network(make)
  before = numpy_state(network)
  losses, after = train_ours(our_config(variant), before, batches)
  own = learning_rates(RATES[variant])
  optimizer = torch.optim.SGD(
    network.parameters(), own[0], momentum=MOMENTUM, weight_decay=DECAY
  )
  expected_losses = []
  for (images, labels), learning_rate in zip(batches, own, strict=True):
    optimizer.param_groups[0]['lr'] = learning_rate
    loss = their_loss(network, images, labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    expected_losses.append(float(loss.detach()))
  np.testing.assert_allclose(losses, expected_losses, rtol=RTOL)
  for name, array in numpy_state(network).items():
    if 'running' in name:
      continue  # PyTorch's running variance is over n - 1
    scale = np.abs(array).max()
    np.testing.assert_allclose(
      after[name], array, rtol=0, atol=RTOL * scale, err_msg=name
    )
    if name.endswith('weight'):
      # The tolerance is small against what training changed.
      change = np.abs(after[name] - before[name]).max()
      assert change > 2 * RTOL * scale, name

"""The loader in trainers of others."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.data import (
  BatchOptions,
  eval_batches,
  make_source,
  train_batches,
)
from alexnet_jax.errors import UserError
from tests.data.batches import assert_same

OPTIONS = BatchOptions(24, crop_size=16, resize_size=18, seed=3)


@pytest.fixture(scope='module')
def source():
  return make_source('synthetic', 'train', synthetic_classes=4)


def prepared(batch):
  """Images of four gray levels, one for each quarter of the rows."""
  rows = batch['image'].astype(np.float32).mean((2, 3)) / 128 - 1
  return rows, batch['label']


def test_endless_batches_begin_as_a_number_of_them(source):
  batches = list(train_batches(source, OPTIONS, 3))
  assert batches[0].keys() == {'image', 'label'}
  endless = train_batches(source, OPTIONS)
  assert_same(list(itertools.islice(endless, 3)), batches)


def test_processes_share_each_batch(source):
  parts = [
    dataclasses.replace(OPTIONS, process_index=i, process_count=3)
    for i in range(3)
  ]
  for make in (train_batches, eval_batches):
    whole = next(iter(make(source, OPTIONS)))
    split = [next(iter(make(source, part))) for part in parts]
    joined = {k: np.concatenate([b[k] for b in split]) for k in whole}
    assert_same([joined], [whole])


@pytest.mark.parametrize(
  'wrong',
  [
    {'batch_size': 0},
    {'process_count': 5},
    {'crop_size': 19},
    {'batch_size': 8.0},
  ],
)
def test_options_that_make_no_sense(source, wrong):
  (name,) = wrong
  with pytest.raises(UserError, match=f'{name} is '):
    train_batches(source, dataclasses.replace(OPTIONS, **wrong))


def test_a_loop_in_jax(source):
  def loss(weights, rows, labels):
    scores = jax.nn.log_softmax(rows @ weights)
    return -jnp.take_along_axis(scores, labels[:, None], 1).mean()

  weights = jnp.zeros((16, 4))
  step = jax.jit(lambda w, *batch: w - 2.0 * jax.grad(loss)(w, *batch))
  for batch in train_batches(source, OPTIONS, 100):
    weights = step(weights, *prepared(batch))
  right = 0
  held_out = make_source('synthetic', 'validation', synthetic_classes=4)
  for batch in eval_batches(held_out, OPTIONS):
    rows, labels = prepared(batch)
    hits = np.asarray(rows @ weights).argmax(1) == labels
    right += hits[batch['mask']].sum()
  assert right > 0.95 * held_out.num_examples


def test_fit_of_keras(source):
  keras = pytest.importorskip('keras')
  model = keras.Sequential([keras.Input((16,)), keras.layers.Dense(4)])
  losses = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
  model.compile(keras.optimizers.SGD(2.0), losses, metrics=['accuracy'])
  batches = train_batches(source, OPTIONS).map(prepared)  # a Grain dataset
  with jax.numpy_rank_promotion('allow'):
    found = model.fit(
      batches, steps_per_epoch=42, epochs=3, verbose=0, shuffle=False
    )
  assert found.history['accuracy'][-1] > 0.95


@pytest.mark.interop
def test_a_loop_in_pytorch(source):
  torch = pytest.importorskip('torch')
  model = torch.nn.Linear(16, 4)
  optimizer = torch.optim.SGD(model.parameters(), 2.0)
  hits = []
  for batch in train_batches(source, OPTIONS, 100):
    rows, labels = map(torch.from_numpy, prepared(batch))
    scores = model(rows)
    optimizer.zero_grad()
    torch.nn.functional.cross_entropy(scores, labels.long()).backward()
    optimizer.step()
    hits.append((scores.argmax(1) == labels).float().mean().item())
  assert np.mean(hits[-20:]) > 0.95

"""Batches for the tests of this folder."""

import numpy as np

from alexnet_jax.data import augment, pipeline


def train_iter(
  loader,
  num_steps,
  global_batch_size,
  crop_size,
  *,
  seed=0,
  crop='random',
  random_flip=True,
  brightness=0.0,
  lighting=None,
  scaled_decoding=True,
  **batching,
):
  """Returns an iterator of `pipeline.train_dataset` of these options."""
  dataset = pipeline.train_dataset(
    loader,
    augment.Augmentation(
      augment.Crop(crop_size, crop), random_flip, brightness, lighting
    ),
    pipeline.Batching(global_batch_size, **batching),
    num_steps=num_steps,
    seed=seed,
    scaled_decoding=scaled_decoding,
  )
  return iter(dataset)


def eval_iter(loader, *, crop_size, **batching):
  """Returns an iterator of `pipeline.eval_dataset` of these options."""
  batching = pipeline.Batching(**batching)
  return iter(pipeline.eval_dataset(loader, crop_size, batching))


def assert_same(left, right):
  """Asserts that two lists of batches are equal."""
  assert len(left) == len(right)
  for a, b in zip(left, right, strict=True):
    assert a.keys() == b.keys()
    for name in a:
      np.testing.assert_array_equal(a[name], b[name])

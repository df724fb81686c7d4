"""Pixels on the device against numpy."""

import jax.numpy as jnp
import numpy as np

from alexnet_jax.training import preprocess


def test_what_one_crop_finds_impossible_may_be_certain_to_another():
  """Logits whose softmax is 0 in float32 leave no infinite logarithm."""
  squares = np.zeros((1, 3, 3, 3), np.uint8)
  squares[:, 0, 0] = 255

  def logits_of(images):
    corner = images[:, 0, 0, 0].astype(jnp.float32)
    return jnp.stack([corner * 4, 1020.0 - corner * 4], 1)

  logits = preprocess.crop_logits(logits_of, squares, 2)
  # Of one free pixel the center leaves none: it begins in that corner, too.
  np.testing.assert_allclose(np.exp(logits), [[0.2, 0.8]], rtol=1e-4)


def test_the_mean_is_subtracted_per_channel_and_per_pixel():
  rng = np.random.default_rng(0)
  images = rng.integers(0, 256, (2, 4, 5, 3), dtype=np.uint8)
  for mean in rng.uniform(0, 255, (3,)), rng.uniform(0, 255, (4, 5, 3)):
    expected = (images.astype(np.float64) - mean) / 2
    found = preprocess.normalize(images, mean, 2.0)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
  found = preprocess.normalize(images, 0.0, (1.0, 2.0, 4.0))
  np.testing.assert_array_equal(found, images / np.float32([1, 2, 4]))


def test_brightness_is_added_and_clipped():
  images = np.full((3, 2, 2, 3), 200, np.uint8)
  images[0, 0, 0] = 10
  shift = np.array([-20.0, 0.0, 80.0], np.float32)
  bright = preprocess.augment({'image': images, 'brightness': shift})
  expected = np.clip(images + shift[:, None, None, None], 0, 255)
  np.testing.assert_array_equal(bright, expected)
  assert (bright.min(), bright.max()) == (0, 255)

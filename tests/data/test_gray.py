"""Gray images: from every layout the same pixels, the luma of Pillow."""

import dataclasses
import itertools

import numpy as np
import pytest

from alexnet_jax.data import (
  BatchOptions,
  eval_batches,
  make_source,
  pixel_statistics,
  train_batches,
)
from alexnet_jax.data.loader import Loader
from tests.data.batches import assert_same

COLOR = BatchOptions(5, crop_size=56, resize_size=64, seed=3)
GRAY = dataclasses.replace(COLOR, channels=1)


@pytest.fixture(scope='module')
def layouts(sets):
  """{layout: source of the training split}, of the same colored images."""
  return {
    name: make_source(**sets[name], split='train')
    for name in ('folder', 'raw', 'raw_gray')
  }


def to_gray(batches):
  """Batches of colors with their luma, by the formula in Pillow's manual."""
  lumas = [b['image'] @ np.array([19595, 38470, 7471]) for b in batches]
  return [
    batch | {'image': np.uint8((luma + 0x8000) >> 16)[..., None]}
    for batch, luma in zip(batches, lumas, strict=True)
  ]


def batches(source, options):
  made = train_batches(source, options, 4), eval_batches(source, options)
  return list(itertools.chain(*made))


@pytest.mark.parametrize('crop', ['random', 'random_resized'])
@pytest.mark.parametrize('source', ['folder', 'synthetic'])
def test_pixels_are_the_luma_of_those_in_color(layouts, source, crop):
  few = {'synthetic_examples': 15, 'synthetic_classes': 2}  # kept as squares
  source = layouts.get(source) or make_source(source, 'train', **few)
  color, gray = (dataclasses.replace(o, crop=crop) for o in (COLOR, GRAY))
  found = batches(source, gray)
  assert found[0]['image'].shape == (5, 56, 56, 1)
  assert_same(found, to_gray(batches(source, color)))


@pytest.mark.parametrize('layout', ['raw', 'raw_gray'])
def test_raw_sets_of_either_kind_give_gray_images(layouts, layout):
  assert_same(batches(layouts[layout], GRAY), batches(layouts['folder'], GRAY))


def test_a_gray_raw_set_in_color_is_gray(layouts):
  for one, three in zip(
    *(batches(layouts['raw_gray'], o) for o in (GRAY, COLOR)), strict=True
  ):
    np.testing.assert_array_equal(one['image'].repeat(3, 3), three['image'])


def test_the_mean_is_that_of_the_gray_pixels(layouts, tmp_path):
  options = pixel_statistics.Options('channel', 56, channels=1)
  pixels = np.concatenate(layouts['raw_gray'].shards)
  for source in layouts.values():
    loader = Loader(source, 64, channels=1)
    found = pixel_statistics.find_statistics(options, loader, tmp_path)
    np.testing.assert_allclose(found.mean, [pixels.mean()], rtol=1e-6)

"""Gray images: from every layout the same pixels, the luma of Pillow."""

import dataclasses
import itertools
import json
import pathlib

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
from alexnet_jax.data.prepare.__main__ import main as prepare
from tests.data.batches import assert_same
from tests.data.pictures import encode, noise, write

COLOR = BatchOptions(5, crop_size=32, resize_size=40, seed=3)
GRAY = dataclasses.replace(COLOR, channels=1)


@pytest.fixture(scope='module')
def layouts(tmp_path_factory):
  """{layout: source of the training split}, of the same colored images."""
  root = tmp_path_factory.mktemp('gray')
  files = {
    f'photos/{name}/{i}.png': encode(noise(10 * k + i, 40 + i, 60), 'PNG')
    for k, name in enumerate('ab')
    for i in range(6)
  }
  write(root, files)
  line = f'raw --source folder --path {root}/photos --size 40 --out {root}'
  assert prepare(f'{line}/raw_color'.split()) == 0
  assert prepare(f'{line}/raw_gray --channels 1'.split()) == 0
  kinds = {'photos': 'folder', 'raw_color': 'raw', 'raw_gray': 'raw'}
  return {
    name: make_source(kind, 'train', path=str(root / name))
    for name, kind in kinds.items()
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
@pytest.mark.parametrize('source', ['photos', 'synthetic'])
def test_pixels_are_the_luma_of_those_in_color(layouts, source, crop):
  few = {'synthetic_examples': 15, 'synthetic_classes': 2}  # kept as squares
  source = layouts.get(source) or make_source(source, 'train', **few)
  color, gray = (dataclasses.replace(o, crop=crop) for o in (COLOR, GRAY))
  found = batches(source, gray)
  assert found[0]['image'].shape == (5, 32, 32, 1)
  assert_same(found, to_gray(batches(source, color)))


@pytest.mark.parametrize('layout', ['raw_color', 'raw_gray'])
def test_raw_sets_of_either_kind_give_gray_images(layouts, layout):
  assert_same(batches(layouts[layout], GRAY), batches(layouts['photos'], GRAY))


def test_a_gray_raw_set_in_color_is_gray(layouts):
  for one, three in zip(
    *(batches(layouts['raw_gray'], o) for o in (GRAY, COLOR)), strict=True
  ):
    np.testing.assert_array_equal(one['image'].repeat(3, 3), three['image'])


def test_the_mean_is_that_of_the_gray_pixels(layouts, tmp_path):
  options = pixel_statistics.Options('channel', 32, channels=1)
  pixels = np.concatenate(layouts['raw_gray'].shards)
  for source in layouts.values():
    loader = Loader(source, 40, channels=1)
    found = pixel_statistics.find_statistics(options, loader, tmp_path)
    np.testing.assert_allclose(found.mean, [pixels.mean()], rtol=1e-6)


def test_a_manifest_without_channels_means_three(layouts):
  root = layouts['raw_color'].name.removesuffix(' train')
  path = pathlib.Path(root, 'manifest.json')
  manifest = json.loads(path.read_text())
  assert manifest.pop('channels') == 3
  path.write_text(json.dumps(manifest))
  assert make_source('raw', 'train', path=root).channels == 3

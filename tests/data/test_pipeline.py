import time

import jax
import numpy as np
import pytest

from alexnet_jax.data import (
  augment,
  folder,
  loader as loader_lib,
  order,
  pipeline,
  sources,
)
from alexnet_jax.data.loader import Loader
from alexnet_jax.data.pixel_statistics import compute
from alexnet_jax.errors import UnreadableImageError, UserError
from tests.data.batches import assert_same, eval_iter, train_iter
from tests.data.pictures import encode, write


def numbered_source(count, size=16):
  """Image i is filled with i in red; blue and green tell row and column."""
  pixels = np.zeros((count, size, size, 3), np.uint8)
  pixels[..., 0] = np.arange(count)[:, None, None]
  pixels[..., 1] = np.arange(size)[:, None]
  pixels[..., 2] = np.arange(size)
  labels = np.arange(count, dtype=np.int32) % 3
  return sources.ArraySource('numbered', pixels, labels, ('a', 'b', 'c'))


def train_batches(count=21, batch=6, steps=8, threads=1, **options):
  loader = Loader(numbered_source(count), 16, num_threads=threads)
  return train_iter(loader, steps, batch, 12, seed=5, **options)


def joined(parts):
  """Global batches of the batches of all processes."""
  return [
    {name: np.concatenate([part[name] for part in batch]) for name in batch[0]}
    for batch in zip(*parts, strict=True)
  ]


@pytest.mark.parametrize('crop', ['random', 'center'])
def test_squares_that_are_kept_change_nothing(crop, monkeypatch):
  """Images of other sizes than the squares, in pieces and at once."""

  def batches():
    loader = Loader(numbered_source(21, 20), 30, num_threads=3)
    return list(train_iter(loader, 6, 8, 24, seed=5, crop=crop))

  at_once = batches()
  monkeypatch.setattr(pipeline, '_COPIED_AT_ONCE', 0)
  in_pieces = batches()
  # As with sets that are too large to be kept.
  monkeypatch.setattr(loader_lib, '_MOST_KEPT', 21 * 30 * 30 * 3 - 1)
  monkeypatch.setattr(pipeline, '_copy_squares', None)
  anew = batches()
  assert_same(at_once, anew)
  assert_same(in_pieces, anew)


def test_batches_follow_the_order():
  """Every image, crop and flip is the one that `order` decides."""
  for step, batch in enumerate(train_batches()):
    indices = order.examples_at(order.batch_positions(step, 6), 21, 5)
    draws = order.batch_draws(step, 6, 5)
    assert batch['image'].dtype == np.uint8
    np.testing.assert_array_equal(batch['label'], indices % 3)
    for image, index, draw in zip(batch['image'], indices, draws, strict=True):
      assert (image[..., 0] == index).all()
      assert image[0, 0, 1] == int(draw[0] * 5)  # the crop's first row
      np.testing.assert_array_equal(
        image[0, :, 2], int(draw[1] * 5) + np.arange(12)
      )
    np.testing.assert_array_equal(batch['flip'], draws[:, 2] < 0.5)


def test_shifts_of_light_are_those_that_order_draws():
  """Lighting ends after two steps; the pixels stay for the device to change."""
  lighting = augment.Lighting(np.diag([1.0, 2.0, 3.0]), steps=2, scale=0.5)
  plain = list(train_batches())
  shifted = train_batches(brightness=0.2, lighting=lighting)
  for step, batch in enumerate(shifted):
    draws, is_lit = order.brightness_draws(step, 6, 5), step < 2
    np.testing.assert_allclose(batch['brightness'], draws * 51, rtol=1e-6)
    colors = order.color_draws(step, 6, 5) * [1, 2, 3] * is_lit
    np.testing.assert_allclose(batch['color'], colors, rtol=1e-6)
    assert (batch['scale'] == (0.5 if is_lit else 1.0)).all()
    np.testing.assert_array_equal(batch['image'], plain[step]['image'])


@pytest.mark.parametrize('prefetch', [0, 4])
def test_no_more_batches_live_than_stated(prefetch, monkeypatch):
  """prefetch + 1, and the one that this consumer keeps."""
  made = []
  new_block = pipeline._aligned_block
  monkeypatch.setattr(
    pipeline, '_aligned_block', lambda size: made.append(1) or new_block(size)
  )
  for number, batch in enumerate(train_batches(steps=100, prefetch=prefetch)):
    assert len(batch['image']) == 6
    if number % 10 == 0:
      time.sleep(0.01)  # time to make as many ahead as it may
  assert 2 <= len(made) <= prefetch + 2


def test_a_batch_that_is_kept_stays_as_it_is():
  """Views and JAX arrays of its memory keep it, when the iterator is gone."""
  views, shared, copies = [], [], []
  for batch in train_batches(steps=20, batch=32):
    # JAX takes arrays of the CPU over without a copy if they begin there.
    assert batch['image'].ctypes.data % 64 == 0
    views.append(batch['image'][1:, ::2].T)
    shared.append(jax.device_put(batch['image']))
    copies.append(batch['image'].copy())
    del batch
  for view, array, copy in zip(views, shared, copies, strict=True):
    np.testing.assert_array_equal(view, copy[1:, ::2].T)
    np.testing.assert_array_equal(array, copy)


def test_crops_and_flips_can_be_switched_off():
  window = np.arange(2, 14)
  for batch in train_batches(crop='center', random_flip=False):
    assert 'flip' not in batch
    assert (batch['image'][..., 1] == window[:, None]).all()
    assert (batch['image'][..., 2] == window).all()


@pytest.mark.parametrize(('batch', 'processes'), [(4, 1), (50, 1), (7, 2)])
def test_evaluation_sees_every_example_once(batch, processes):
  batch *= processes
  loader = Loader(numbered_source(21), 16)
  seen = []
  for index in range(processes):
    for part in eval_iter(
      loader,
      global_batch_size=batch,
      crop_size=12,
      process_index=index,
      process_count=processes,
    ):
      assert part['image'].shape == (batch // processes, 12, 12, 3)
      for image, label in zip(
        part['image'][part['mask']], part['label'][part['mask']], strict=True
      ):
        assert label == image[0, 0, 0] % 3
        assert image[0, 0, 1] == image[0, 0, 2] == 2  # the center
        seen.append(int(image[0, 0, 0]))
  assert sorted(seen) == list(range(21))


@pytest.fixture
def damaged_folder(tmp_path):
  """Ten images in two classes, of which image 1 of each cannot be decoded."""
  for label, name in enumerate(('cat', 'dog')):
    gray = [np.full((16, 16), 10 * label + i, np.uint8) for i in range(5)]
    files = {f'{name}/{i}.png': encode(g, 'PNG') for i, g in enumerate(gray)}
    write(tmp_path, files | {f'{name}/1.png': b'broken'})
  return folder.list_folder(tmp_path)


def test_an_unreadable_image_stops_the_run_and_is_named(damaged_folder):
  loader = Loader(damaged_folder, 16)
  batches = train_iter(loader, 9, 5, 16)
  with pytest.raises(UnreadableImageError, match=r'1\.png.*unreadable=skip'):
    list(batches)


def test_skipped_images_are_replaced_by_the_next_of_the_epoch(
  damaged_folder, caplog
):
  def batches(threads, **options):
    loader = Loader(damaged_folder, 16, unreadable='skip', num_threads=threads)
    return loader, list(train_iter(loader, 6, 4, 16, **options))

  loader, found = batches(threads=1)
  assert len(loader.unreadable) == 2
  assert caplog.text.count('cannot be decoded') == 2  # once each
  unreadable = np.concatenate([b['unreadable'] for b in found])
  values = np.concatenate([b['image'][:, 0, 0, 0] for b in found])
  for p in range(24):
    ranked = order.permutation(0, p // 10, 10)
    following = [*ranked[p % 10 :], *ranked]
    assert unreadable[p] == (following[0] in (1, 6))
    index = next(i for i in following if i not in (1, 6))
    assert values[p] == 10 * (index // 5) + index % 5
  assert_same(batches(threads=4)[1], found)
  halves = [batches(1, process_index=i, process_count=2)[1] for i in (0, 1)]
  assert_same(joined(halves), found)


def test_skipped_images_do_not_count_in_evaluation(damaged_folder):
  loader = Loader(damaged_folder, 16, unreadable='skip')
  batches = list(eval_iter(loader, global_batch_size=4, crop_size=16))
  assert sum(int(batch['mask'].sum()) for batch in batches) == 8
  # Two could not be decoded; the last two places are beyond the split.
  assert sum(int(batch['unreadable'].sum()) for batch in batches) == 2


def test_a_source_without_a_readable_image_is_an_error(tmp_path):
  write(tmp_path, {'cat/a.png': b'broken', 'dog/a.png': b'broken'})
  loader = Loader(folder.list_folder(tmp_path), 16, unreadable='skip')
  batches = train_iter(loader, 1, 2, 8)
  for read in (lambda: next(batches), lambda: compute(loader)):
    with pytest.raises(UserError, match=r'no image of .* can be decoded'):
      read()


def test_the_digest_of_the_order_tells_orders_and_draws_apart(monkeypatch):
  first = order.digest(21, 4, 0)
  assert order.digest(21, 4, 0) == first
  others = (
    order.digest(21, 4, 1),
    order.digest(20, 4, 0),
    order.digest(21, 8, 0),
  )
  assert len({first, *others}) == 4
  for kind in ('batch', 'resized_crop', 'brightness', 'color'):
    draw = getattr(order, f'{kind}_draws')
    with monkeypatch.context() as patch:  # as of another numpy
      patch.setattr(order, f'{kind}_draws', lambda *a, d=draw: d(*a) * 1.001)
      assert order.digest(21, 4, 0) != first
  monkeypatch.setattr(order, 'examples_at', lambda p, n, seed: p[::-1])
  assert order.digest(21, 4, 0) != first

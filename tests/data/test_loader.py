import threading
import time

import numpy as np
import PIL.Image
import pytest

from alexnet_jax.data import folder, loader as loader_lib, sources
from alexnet_jax.data.loader import Loader
from alexnet_jax.errors import UserError
from tests.data.batches import eval_iter, train_iter
from tests.data.pictures import encode, noise, write


@pytest.mark.parametrize('progressive', [False, True])
def test_damage_that_is_overlooked_is_named_once(progressive, tmp_path, caplog):
  whole = encode(noise(0, 40, 40), progressive=progressive)
  middle = whole.index(b'\xff\xda') + 300
  damaged = whole[:middle] + bytes(20) + whole[middle + 20 :]
  write(tmp_path, {'cat/a.jpg': damaged, 'dog/a.jpg': whole})
  loader = Loader(folder.list_folder(tmp_path), 32)
  for _ in range(3):
    for index, name in ((1, 'dog/a.jpg'), (0, 'cat/a.jpg')):
      pixels, label = loader.pixels(index)
      with PIL.Image.open(tmp_path / name) as image:
        np.testing.assert_array_equal(pixels, image)
      assert label == index
  assert caplog.text.count('decoded all the same') == 1
  assert 'cat/a.jpg' in caplog.text
  assert not loader.unreadable


def test_an_error_in_a_thread_is_raised_and_stops_the_others():
  loader = Loader(sources.synthetic_source('train', 4, 2), 8, num_threads=2)
  calls, another = [], threading.Event()

  def fail_once(start, end):
    del end
    calls.append(start)
    if start == 0:
      assert another.wait(60)
      raise IndexError('at 0')
    another.set()
    time.sleep(0.001)

  with pytest.raises(IndexError, match='at 0'):
    loader.for_each(fail_once, 1000)
  count = len(calls)
  time.sleep(0.05)
  assert len(calls) <= count + 1 < 900


def squares_source(count):
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (count, 20, 20, 3), np.uint8)
  labels = np.arange(count, dtype=np.int32) % 3
  return sources.ArraySource('squares', pixels, labels, ['a', 'b', 'c'])


@pytest.mark.parametrize(
  ('num_uses', 'spare', 'kept'),
  [(21, 0, True), (20, 0, False), (21, -1, False)],
)
def test_squares_are_kept_if_they_fit_and_are_used(
  num_uses, spare, kept, monkeypatch
):
  monkeypatch.setattr(loader_lib, '_MOST_KEPT', 21 * 30 * 30 * 3 + spare)
  found = Loader(squares_source(21), 30).square_addresses(num_uses)
  assert (found is not None) == kept


# The squares are kept in 9 steps.
@pytest.mark.parametrize(('label', 'num_steps'), [(-1, 1), (3, 9)])
def test_a_label_that_is_no_class_is_an_error(label, num_steps):
  """TFDS gives -1 to test splits without labels."""
  source = squares_source(6)
  source.labels[4] = label
  for batches in (
    lambda: eval_iter(Loader(source, 30), crop_size=8, global_batch_size=3),
    lambda: train_iter(Loader(source, 30), num_steps, 5, 8),
  ):
    with pytest.raises(UserError, match=f'label {label}, which is no class'):
      list(batches())

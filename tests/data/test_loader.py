import threading

import numpy as np
import PIL.Image
import pytest

from alexnet_jax.data import folder
from alexnet_jax.data import sources
from alexnet_jax.data.loader import Loader


@pytest.fixture
def overlooked(tmp_path):
  """Photographs of which one has damage that its decoder overlooks."""
  rng = np.random.default_rng(0)
  for name in ('cat', 'dog'):
    (tmp_path / name).mkdir()
    pixels = rng.integers(0, 256, (40, 40, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(tmp_path / name / 'a.jpg')
  path = tmp_path / 'cat' / 'a.jpg'
  content = bytearray(path.read_bytes())
  middle = content.index(b'\xff\xda') + 300
  content[middle : middle + 20] = bytes(20)
  path.write_bytes(content)
  return folder.list_folder(tmp_path)


def test_overlooked_damage_is_named_once(overlooked, caplog):
  loader = Loader(overlooked, 32)
  for _ in range(3):
    for index in (0, 1):
      pixels, _ = loader.pixels(index)
      assert pixels.shape == (40, 40, 3)
  assert caplog.text.count('decoded all the same') == 1
  assert 'cat/a.jpg' in caplog.text
  assert not loader.unreadable


@pytest.mark.parametrize('chunk', [1, 3, 100])
@pytest.mark.parametrize('threads', [1, 2, 5])
def test_for_each_takes_every_piece_once(threads, chunk):
  loader = Loader(
    sources.synthetic_source('train', 4, 2), 8, num_threads=threads
  )
  seen, lock = [], threading.Lock()

  def note(start, end):
    assert end - start <= chunk
    with lock:
      seen.extend(range(start, end))

  loader.for_each(note, 17, chunk)
  assert sorted(seen) == list(range(17))
  loader.for_each(note, 0, chunk)
  assert len(seen) == 17


def test_an_error_in_a_thread_is_raised_and_stops_the_others():
  loader = Loader(sources.synthetic_source('train', 4, 2), 8, num_threads=2)
  calls = []

  def fail(start, end):
    del end
    calls.append(start)
    raise IndexError(f'at {start}')

  with pytest.raises(IndexError, match='at '):
    loader.for_each(fail, 1000)
  assert len(calls) <= 2

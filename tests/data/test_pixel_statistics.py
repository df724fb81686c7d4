import numpy as np
import pytest

from alexnet_jax.data import images, pixel_statistics, sources
from alexnet_jax.data.loader import Loader


@pytest.mark.parametrize('threads', [1, 3])
def test_pixel_mean_is_exact(threads, monkeypatch):
  monkeypatch.setattr(pixel_statistics, '_CHUNK', 10)
  rng = np.random.default_rng(0)
  pixels = rng.integers(0, 256, (37, 20, 24, 3), dtype=np.uint8)
  labels = np.zeros(37, np.int32)
  source = sources.ArraySource('random', pixels, labels, ('a', 'b'))
  loader = Loader(source, 10, num_threads=threads)
  calls = []
  mean = pixel_statistics.compute(loader, progress=calls.append)[0]
  squares = np.stack([images.center_square(p, 10) for p in pixels])
  np.testing.assert_array_equal(mean, squares.sum(0, dtype=np.int64) / 37)
  assert calls == [10, 20, 30, 37]
  first = pixel_statistics.compute(loader, limit=5)[0]
  np.testing.assert_array_equal(first, squares[:5].sum(0, dtype=int) / 5)

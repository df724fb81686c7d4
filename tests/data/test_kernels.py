import contextlib
import sys

from hypothesis import example, given, settings, strategies as st
import numpy as np

from alexnet_jax.data import kernels
from tests.data.pictures import noise
from tests.system import commands


def resample(image, rows, columns):
  out = np.zeros((rows, columns, 3), np.uint8)
  height, width = image.shape[:2]
  kernels.resample(image, out, 0, height / rows, 0, width / columns)
  return out


def loop_weights(size, count):
  """Weight of each of `size` pixels in each of `count`, by their definition."""
  weights = np.zeros((count, size))
  scale = size / count
  for i in range(count):
    if scale > 1:
      for k in range(size):
        covered = min(k + 1, (i + 1) * scale) - max(k, i * scale)
        weights[i, k] = max(0, covered) / scale
    else:
      center = min(max((i + 0.5) * scale - 0.5, 0), size - 1)
      low = int(center)
      weights[i, low] += 1 - (center - low)
      weights[i, min(low + 1, size - 1)] += center - low
  return weights


@settings(max_examples=150, deadline=None)
@given(*[st.integers(1, 40)] * 4)
@example(1, 1, 7, 5)
@example(40, 1, 3, 9)
@example(39, 40, 2, 3)
def test_resample_is_the_weighted_sum_of_its_definition(h, w, rows, columns):
  image = noise(0, h, w)
  expected = np.einsum(
    'rh,hwc,kw->rkc', loop_weights(h, rows), image, loop_weights(w, columns)
  )
  assert np.abs(resample(image, rows, columns) - expected).max() <= 0.501


def test_color_sums():
  image = noise(0, 31, 17)
  sums, products = np.ones(3, np.int64), np.ones((3, 3), np.int64)
  kernels.add_color_sums(image, sums, products)
  pixels = image.reshape(-1, 3).astype(np.int64)
  np.testing.assert_array_equal(sums, pixels.sum(0) + 1)
  np.testing.assert_array_equal(products, pixels.T @ pixels + 1)


def test_a_cache_that_is_full_or_damaged_is_done_without(small_disk):
  script = 'from tests.data import test_kernels as t; t.test_color_sums()'

  def run():
    environ = {'NUMBA_CACHE_DIR': str(small_disk / 'cache')}
    assert commands.run(sys.executable, '-c', script, env=environ)[0] == 0

  run()
  kept = list(small_disk.rglob('*.nb?'))
  assert len(kept) > 1
  for path in kept:
    path.write_bytes(b'')
  run()
  for path in kept:
    path.unlink()
  with contextlib.suppress(OSError):
    (small_disk / 'others').write_bytes(bytes(1 << 23))
  run()
  assert not [path for path in small_disk.rglob('*.nb?') if path.stat().st_size]

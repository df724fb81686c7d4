from hypothesis import example, given, settings, strategies as st
import numpy as np
import PIL.Image
import pytest

from alexnet_jax.data import decoding, images
from tests.data.pictures import encode, noise, photo


def test_center_square_of_the_right_size_only_cuts():
  image = photo(60, 80)
  np.testing.assert_array_equal(
    images.center_square(image, 60), image[:, 10:70]
  )


SIDES = st.integers(1, 2000)
MODES = st.sampled_from(['RGB', 'L', 'CMYK'])


@settings(max_examples=25, deadline=None)
@given(height=SIDES, width=SIDES, mode=MODES, scaled=st.booleans())
@example(height=1, width=1, mode='RGB', scaled=True)
@example(height=1, width=2000, mode='L', scaled=True)
@example(height=2000, width=1, mode='CMYK', scaled=False)
def test_any_image_becomes_a_square_and_crops_of_it(
  height, width, mode, scaled
):
  image = PIL.Image.fromarray(photo(height, width)).convert(mode)
  pixels = decoding.decode(encode(image), 256 if scaled else 0)
  assert pixels.dtype == np.uint8
  assert pixels.shape[2] == 3
  if not scaled:
    assert pixels.shape[:2] == (height, width)
  assert min(pixels.shape[:2]) >= min(height, width, 256)
  square = images.center_square(pixels, 256)
  assert square.shape == (256, 256, 3)
  for top, left in ((0, 0), (32, 32), (5, 17)):
    crop = np.zeros((224, 224, 3), np.uint8)
    images.crop_of_square(pixels, 256, top, left, crop)
    np.testing.assert_array_equal(
      crop, square[top : top + 224, left : left + 224]
    )


@settings(max_examples=200, deadline=None)
@given(
  height=SIDES,
  width=SIDES,
  corner=st.tuples(*[st.floats(0, 1, exclude_max=True)] * 2),
  seed=st.integers(0, 1000),
)
def test_random_resized_boxes_lie_inside_of_the_image(
  height, width, corner, seed
):
  attempts = np.random.default_rng(seed).random((10, 2))
  top, left, rows, columns = images.random_resized_box(
    height, width, corner, attempts, (0.08, 1.0), (3 / 4, 4 / 3)
  )
  assert 0 <= top <= top + rows <= height
  assert 0 <= left <= left + columns <= width
  assert rows > 0
  assert columns > 0


def test_random_resized_boxes_have_the_asked_areas_and_ratios():
  rng = np.random.default_rng(0)
  areas, ratios = [], []
  for _ in range(4000):
    _, _, rows, columns = images.random_resized_box(
      500, 500, rng.random(2), rng.random((10, 2)), (0.08, 0.5), (0.5, 2.0)
    )
    areas.append(rows * columns / 250_000)
    ratios.append(columns / rows)
  assert 0.079 < min(areas) < 0.09
  assert 0.49 < max(areas) < 0.505
  assert 0.28 < np.mean(areas) < 0.30  # uniform: (0.08 + 0.5) / 2
  assert 0.49 < min(ratios) < 0.52
  assert 1.95 < max(ratios) < 2.02
  assert abs(np.mean(np.log(ratios))) < 0.03  # its logarithm is uniform


def test_a_box_that_never_fits_becomes_the_center():
  attempts = [(1.0, 0.5)] * 10  # the whole area, square
  box = images.random_resized_box(
    100, 1000, (0.5, 0.5), attempts, (0.08, 1.0), (3 / 4, 4 / 3)
  )
  assert box == (0, (1000 - 133) // 2, 100, 133)


def test_resize_box_is_the_resized_window():
  image = photo(90, 120)
  out = np.zeros((20, 30, 3), np.uint8)
  images.resize_box(image, (10, 20, 40, 60), out)
  blocks = image[10:50, 20:80].reshape(20, 2, 30, 2, 3).mean((1, 3))
  assert np.abs(out - blocks).max() <= 0.5


@pytest.mark.parametrize(
  ('pixels', 'mean', 'most'),
  [
    (photo(1100, 1500), 2, 12),  # what is stated of smooth photographs
    (photo(1024, 1024), 1, 12),  # and of multiples
    (
      np.tile(np.arange(700)[:, None, None] % 6 // 3 * 255, (1, 700, 3)),
      60,
      255,
    ),
  ],
)
def test_scaled_decoding_is_as_near_to_the_exact_path_as_stated(
  pixels, mean, most
):
  """Half the resolution or less, averaged by the decoder instead of by us."""
  encoded = encode(pixels.astype(np.uint8), quality=92)
  scaled = decoding.decode(encoded, 256).copy()
  assert 256 <= min(scaled.shape[:2]) <= 550
  exact = images.center_square(decoding.decode(encoded), 256).astype(int)
  difference = np.abs(images.center_square(scaled, 256) - exact)
  assert mean / 8 <= difference.mean() <= mean
  assert np.quantile(difference, 0.99) <= most


@settings(max_examples=80, deadline=None)
@given(
  height=st.integers(1, 500),
  width=st.integers(1, 500),
  size=st.integers(8, 64),
  draw=st.floats(0, 1),
)
def test_a_crop_reads_no_row_below_those_it_says(height, width, size, draw):
  pixels = noise(0, height, width)
  crop_size = size * 7 // 8
  top = round(draw * (size - crop_size))
  rows = images.rows_of_crop(height, width, size, top, crop_size)
  expected = np.zeros((crop_size, crop_size, 3), np.uint8)
  images.crop_of_square(pixels, size, top, 0, expected)
  pixels[rows:] = 255 - pixels[rows:]
  actual = np.zeros_like(expected)
  images.crop_of_square(pixels, size, top, 0, actual)
  np.testing.assert_array_equal(actual, expected)

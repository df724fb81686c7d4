import numpy as np
import pytest

from alexnet_jax.data import augment
from alexnet_jax.data import images
from alexnet_jax.data import order
from alexnet_jax.data import pixel_statistics
from alexnet_jax.data import sources
from alexnet_jax.data.loader import Loader
from alexnet_jax.training import preprocess
from tests.data.batches import train_iter

SIZE, CROP, BATCH = 10, 8, 64


@pytest.fixture(scope='module')
def loader():
  """Images whose colors vary together, but not along the axes."""
  rng = np.random.default_rng(0)
  mixed = rng.normal(0, 1, (37, 20, 24, 3)) @ rng.normal(0, 25, (3, 3)) + 128
  pixels = np.uint8(np.clip(mixed, 0, 255))
  labels = np.zeros(37, np.int32)
  source = sources.ArraySource('random', pixels, labels, ('a', 'b'))
  return Loader(source, SIZE, num_threads=3)


def squares_of(loader):
  return np.stack([images.center_square(p, SIZE) for p in loader.source.images])


def test_the_covariance_is_numpys(loader):
  mean, covariance = pixel_statistics.compute(loader, chunk=10)
  flat = squares_of(loader).reshape(-1, 3).astype(float)
  np.testing.assert_allclose(mean.mean((0, 1)), flat.mean(0), rtol=1e-13)
  expected = np.cov(flat, rowvar=False, bias=True)
  np.testing.assert_allclose(covariance, expected, rtol=1e-11)


@pytest.mark.parametrize('unit', augment.LIGHTING_UNITS)
def test_the_shift_goes_along_the_principal_components(loader, unit):
  """By numpy's singular values instead of eigenvalues."""
  _, covariance = pixel_statistics.compute(loader)
  matrix = augment.lighting_matrix(covariance, 0.1, unit)
  flat = squares_of(loader).reshape(-1, 3) / 255
  _, singular, rows = np.linalg.svd(flat - flat.mean(0), full_matrices=False)
  variances = singular**2 / len(flat)
  spread = variances if unit == 'eigenvalue' else np.sqrt(variances)
  # The covariance of the shift tells all but the signs of the directions.
  expected = rows.T * (25.5 * spread) ** 2 @ rows
  np.testing.assert_allclose(matrix @ matrix.T, expected, rtol=1e-9)
  lengths = np.linalg.norm(matrix, axis=0)
  np.testing.assert_allclose(np.sort(lengths), np.sort(25.5 * spread))


def test_colors_without_variance_are_not_shifted():
  matrix = augment.lighting_matrix(np.full((3, 3), 50.0), 1.0, 'deviation')
  # Of gray pixels only the brightness varies.
  strengths = np.linalg.norm(matrix, axis=0)
  assert np.isclose(strengths.max(), np.sqrt(150.0))
  assert np.sort(strengths)[:2].max() < 1e-5
  shift = matrix @ np.ones(3)
  np.testing.assert_allclose(shift, shift[0], rtol=1e-4)


def batches(
  loader, matrix, num_steps, process_index=0, process_count=1, **options
):
  return train_iter(
    loader,
    num_steps=num_steps,
    global_batch_size=BATCH,
    seed=3,
    crop_size=CROP,
    lighting=None if matrix is None else augment.Lighting(matrix, **options),
    prefetch=0,
    process_index=process_index,
    process_count=process_count,
  )


def test_the_draws_are_normal_and_each_ones_own(loader):
  _, covariance = pixel_statistics.compute(loader)
  matrix = augment.lighting_matrix(covariance, 0.1, 'deviation')
  shifts = np.concatenate(
    [batch['color'] for batch in batches(loader, matrix, 150)]
  )
  assert shifts.dtype == np.float32
  assert len(np.unique(shifts, axis=0)) == len(shifts) == 150 * BATCH
  # Standard normal again; 9,600 draws: five standard errors.
  draws = np.linalg.solve(matrix, shifts.T.astype(float))
  error = 1 / np.sqrt(len(shifts))
  np.testing.assert_allclose(draws.mean(1), 0, atol=5 * error)
  np.testing.assert_allclose(np.cov(draws), np.eye(3), atol=5 * 1.5 * error)
  assert np.mean(np.abs(draws) < 1) == pytest.approx(
    0.6827, abs=5 * 0.5 * error
  )


def test_the_draws_depend_on_seed_and_position_only(loader):
  """Bit for bit, for any number of processes."""
  matrix = np.random.default_rng(1).normal(0, 5, (3, 3))
  steps = 50
  whole = [batch['color'] for batch in batches(loader, matrix, steps)]
  for count in (2, 4, 16, 32):
    parts = [
      [
        batch['color']
        for batch in batches(
          loader, matrix, steps, process_index=index, process_count=count
        )
      ]
      for index in range(count)
    ]
    for step in range(steps):
      np.testing.assert_array_equal(
        whole[step], np.concatenate([part[step] for part in parts])
      )
  for step in range(steps):
    normal = order.color_draws(step, BATCH, 3)
    np.testing.assert_allclose(
      whole[step], normal @ matrix.T, rtol=1e-5, atol=1e-5
    )


def test_switching_it_on_moves_nothing_else(loader):
  plain = next(batches(loader, None, 1))
  shifted = next(batches(loader, np.eye(3), 1))
  assert shifted.keys() - plain.keys() == {'color'}
  for name in plain:
    np.testing.assert_array_equal(plain[name], shifted[name])


def test_the_shift_ends_when_it_should(loader):
  seen = [batch['color'] for batch in batches(loader, np.eye(3), 4, steps=2)]
  assert [shift.any() for shift in seen] == [True, True, False, False]
  always = [batch['color'] for batch in batches(loader, np.eye(3), 4)]
  np.testing.assert_array_equal(seen[1], always[1])


def test_pixels_shrink_while_they_are_shifted(loader):
  """As in the source release: after the mean they are divided by 1.1."""
  matrix = np.full((3, 3), 2.0)
  taken = list(batches(loader, matrix, 3, steps=2, scale=1 / 1.1))
  mean, std = np.float32([100, 110, 120]), 60.0
  for step, batch in enumerate(taken):
    factor = np.float32(1 / 1.1) if step < 2 else 1.0
    np.testing.assert_array_equal(batch['scale'], np.full(BATCH, factor, 'f4'))
    seen = np.where(
      batch['flip'][:, None, None, None],
      batch['image'][:, :, ::-1],
      batch['image'],
    ).astype(np.float64)
    expected = (seen + batch['color'][:, None, None] - mean) * factor / std
    np.testing.assert_allclose(
      preprocess.training_inputs(batch, mean, std), expected, atol=1e-5
    )

import numpy as np
import pytest

from alexnet_jax.models import winograd


@pytest.mark.parametrize('width', [2, 3, 4, 5])
@pytest.mark.parametrize('rows', [1, 2, 3, 4, 5, 6])
def test_the_matrices_make_a_correlation(rows, width):
  """By numpy's own, in float64."""
  if rows + width - 1 > 8:
    pytest.skip('more points than there are')
  output, kernel, image = winograd.matrices(rows, width)
  rng = np.random.default_rng(0)
  d, g = rng.normal(size=rows + width - 1), rng.normal(size=width)
  actual = output @ ((kernel @ g) * (image @ d))
  np.testing.assert_allclose(actual, np.correlate(d, g, 'valid'), atol=1e-10)


@pytest.mark.parametrize(
  ('height', 'width', 'rows'),
  [
    (13, 3, 5),  # 3 blocks of 7 products: 21; of 6 rows 3 of 8
    (27, 5, 4),  # 7 blocks of 8: 56; one by one 27 of 5: 135
    (12, 3, 6),  # 2 blocks of 8: 16
    (1, 5, 1),
    (9, 8, 1),
  ],
)
def test_as_many_rows_as_make_the_fewest_products(height, width, rows):
  assert winograd.num_rows(height, width) == rows

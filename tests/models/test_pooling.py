from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models.pooling import max_pool
from tests.some_slow import some_slow

SHAPES = [
  ((2, 13, 13, 5), 3, 2),  # the paper's, overlapping
  ((2, 12, 9, 3), 3, 2),  # rows and columns that no window has
  ((1, 11, 11, 4), 2, 2),
  ((1, 7, 8, 2), 2, 3),  # gaps between the windows
  ((1, 3, 3, 1), 3, 1),
  ((2, 14, 11, 2), 5, 3),
]
CASES = [
  (*shape, dtype) for shape in SHAPES for dtype in (jnp.float32, jnp.bfloat16)
]


@pytest.mark.parametrize(
  ('shape', 'size', 'stride', 'dtype'), some_slow(CASES, quick=CASES[::3])
)
def test_max_pool_and_its_gradient_are_those_of_flax(
  shape, size, stride, dtype
):
  """Many values are equal: zeros after a ReLU, and repeated whole numbers."""
  x = jax.random.normal(jax.random.key(0), shape)
  x = jnp.maximum(jnp.round(2 * x), 0).astype(dtype)

  def ours(x):
    return max_pool(x, size, stride, 'compared')

  def flax(x):
    return nn.max_pool(x, (size, size), (stride, stride))

  y, pull = jax.vjp(ours, x)
  expected, pull_expected = jax.vjp(flax, x)
  np.testing.assert_array_equal(y, expected)
  np.testing.assert_array_equal(max_pool(x, size, stride), expected)
  # Whole numbers: sums over overlapping windows are exact in any order.
  gradient = jnp.round(8 * jax.random.normal(jax.random.key(1), y.shape))
  gradient = gradient.astype(dtype)
  (actual,), (wanted,) = pull(gradient), pull_expected(gradient)
  assert actual.dtype == dtype
  np.testing.assert_array_equal(
    actual.astype(jnp.float32), wanted.astype(jnp.float32)
  )


def test_a_gradient_of_comparisons_has_no_scatter():
  def total(x, form):
    return max_pool(x, 3, 2, form).sum()

  x = jax.ShapeDtypeStruct((2, 13, 13, 4), jnp.float32)
  for form, scatters in (('plain', True), ('compared', False)):
    text = jax.jit(jax.grad(total), static_argnums=1).lower(x, form).as_text()
    assert ('scatter' in text) == scatters

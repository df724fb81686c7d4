import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models import layers
from alexnet_jax.models.layers import (
  LocalResponseNorm,
  MaxPool,
  SpatialResponseNorm,
)
from tests.by_hand import lrn_factors


@pytest.mark.parametrize(('role', 'stddev'), [('dense', 0.005), ('head', 0.01)])
def test_kernels_of_caffe_have_the_stated_deviation(role, stddev):
  initializer = layers.kernel_initializer('caffe', role, 2)
  kernel = initializer(jax.random.key(0), (300, 500), jnp.float32)
  np.testing.assert_allclose(jnp.std(kernel), stddev, rtol=0.01)
  assert abs(jnp.mean(kernel)) < stddev / 50


def test_torch_draws_within_the_root_of_the_fan():
  """PyTorch's documented default of Conv2d and Linear."""
  kernel = layers.kernel_initializer('torch', 'dense', 1)
  bias = layers.bias_initializer('torch', 0.0, 400)
  for init, shape in ((kernel, (400, 200)), (bias, (80_000,))):
    values = np.asarray(init(jax.random.key(0), shape, jnp.float32))
    assert np.abs(values).max() == pytest.approx(1 / 20, rel=1e-3)
    assert values.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.02)
    assert abs(values.mean()) < 0.001
  constant = layers.bias_initializer('torch', 0.5, 400)
  assert (constant(jax.random.key(0), (3,), jnp.float32) == 0.5).all()


def test_dropout_keeps_the_mean_and_its_share_of_units():
  """Of x = 2: 0 or 2 / 0.7, so a mean of 2 and a variance of 4 * 3 / 7."""
  x = jnp.full((64, 40, 50), 2.0)
  keys = jax.random.split(jax.random.key(0), 64)
  y = np.asarray(layers.dropout(x, keys, 0.3, 1))
  np.testing.assert_allclose(np.unique(y), [0, 2 / 0.7], rtol=1e-6)
  # 128,000 draws: five standard errors of the mean are 0.018.
  assert float(y.mean()) == pytest.approx(2, abs=0.018)
  assert float(y.var()) == pytest.approx(4 * 3 / 7, rel=0.02)
  # No unit of an example is dropped more often than others would be.
  assert np.abs((y == 0).mean(0) - 0.3).max() < 5.5 * (0.21 / 64) ** 0.5


@pytest.mark.parametrize('custom_vjp', [False, True])
@pytest.mark.parametrize(
  ('convention', 'size', 'k', 'alpha', 'beta', 'groups'),
  [
    ('paper', 5, 2.0, 1e-4, 0.75, 1),
    ('paper', 5, 2.0, 0.1, 0.5, 2),  # which see nothing of each other
    ('caffe', 3, 1.0, 0.3, 1.0, 1),
    ('paper', 15, 1.0, 0.2, 0.75, 1),  # wider than the channels
  ],
)
def test_local_response_norm_by_hand(
  convention, size, k, alpha, beta, groups, custom_vjp
):
  x = np.random.default_rng(0).normal(0, 10, (2, 3, 3, 8))
  scale = alpha / size if convention == 'caffe' else alpha
  parts = np.split(x, groups, -1)
  expected = [lrn_factors(part, size, k, scale, beta) * part for part in parts]
  norm = LocalResponseNorm(size, k, alpha, beta, convention, groups, custom_vjp)
  actual = jax.jit(norm)(x.astype(np.float32))
  np.testing.assert_allclose(actual, np.concatenate(expected, -1), rtol=2e-6)


@pytest.mark.parametrize(
  ('options', 'dtype'),
  [
    ({'alpha': 0.3, 'beta': 0.6, 'size': 3}, jnp.float32),
    ({'alpha': 0.2, 'size': 15}, jnp.float32),  # wider than the channels
    ({'alpha': 0.1, 'k': 1.0}, jnp.bfloat16),
  ],
)
def test_the_custom_gradient_of_lrn_is_that_of_autodiff(options, dtype):
  x = 3 * jax.random.normal(jax.random.key(0), (2, 4, 3, 9), dtype)
  g = jax.random.normal(jax.random.key(1), x.shape, dtype)

  @jax.jit
  def gradients(x, g):
    norms = [LocalResponseNorm(**options, custom_vjp=c) for c in (True, False)]
    return [jax.vjp(norm, x)[1](g)[0] for norm in norms]

  found, expected = gradients(x, g)
  assert found.dtype == dtype
  # Both sum in float32, and round once at the end.
  tolerance = 2e-6 if dtype == jnp.float32 else 2**-7
  found, expected = np.float32(found), np.float32(expected)
  np.testing.assert_allclose(found, expected, tolerance, tolerance)


def test_lrn_in_bfloat16_sums_in_float32():
  """Or squares of 300 would swallow those of 1."""
  x = jnp.array([[300.0, 1.0, 1.0, 1.0, 1.0]], jnp.bfloat16)
  actual = jax.jit(LocalResponseNorm(k=1e-9, alpha=1.0))(x)
  assert actual.dtype == jnp.bfloat16
  x, found = np.asarray(x, np.float64), np.asarray(actual, np.float64)
  expected = x * lrn_factors(x, 5, 1e-9, 1.0, 0.75)
  np.testing.assert_allclose(found, expected, rtol=2**-8)


def test_the_custom_gradient_of_lrn_keeps_nothing_but_its_input():
  x = jax.ShapeDtypeStruct((2, 9), jnp.bfloat16)

  def saved(x):
    return jax.vjp(LocalResponseNorm(custom_vjp=True), x)[1]

  kept = jax.tree.leaves(jax.eval_shape(saved, x))
  assert [(leaf.shape, leaf.dtype) for leaf in kept] == [((2, 9), x.dtype)]


def spatial_loop(x, size, k, alpha, beta):
  """The sum over a square of pixels, one number at a time."""
  out, half = np.empty_like(x), size // 2
  for n, row, column, c in np.ndindex(x.shape):
    window = x[
      n,
      max(0, row - half) : row + half + 1,
      max(0, column - half) : column + half + 1,
      c,
    ]
    bracket = k + alpha / size**2 * np.sum(window**2)
    out[n, row, column, c] = x[n, row, column, c] / bracket**beta
  return out


@pytest.mark.parametrize(
  ('options', 'dtype', 'tolerance'),
  [
    ((3, 2.0, 0.5, 0.6), jnp.float32, 2e-6),
    ((5, 1.0, 0.5, 0.75), jnp.bfloat16, 2**-7),
  ],
)
def test_spatial_response_norm_equals_a_loop(options, dtype, tolerance):
  x = np.random.default_rng(2).normal(0, 10, (2, 6, 7, 3)).astype(dtype)
  actual = jax.jit(SpatialResponseNorm(*options))(x)
  assert actual.dtype == dtype
  np.testing.assert_allclose(
    actual.astype(jnp.float32),
    spatial_loop(np.asarray(x, np.float64), *options),
    rtol=tolerance,
  )


@pytest.mark.parametrize(
  ('shape', 'size', 'stride', 'dtype'),
  [
    ((2, 13, 13, 5), 3, 2, jnp.float32),  # the paper's, overlapping
    ((2, 12, 9, 3), 3, 2, jnp.bfloat16),  # pixels that no window has
    ((1, 7, 8, 2), 2, 3, jnp.float32),  # gaps between the windows
    ((1, 99, 99, 1), 64, 33, jnp.float32),  # not by offset, or for minutes
  ],
)
def test_the_custom_gradient_of_max_pool_is_that_of_autodiff(
  shape, size, stride, dtype
):
  """Many values are equal: zeros after a ReLU, and repeated whole numbers."""
  x = jax.random.normal(jax.random.key(0), shape)
  x = jnp.maximum(jnp.round(2 * x), 0).astype(dtype)

  @jax.jit
  def both(x):
    y, pull_expected = jax.vjp(MaxPool(size, stride), x)
    # Whole numbers: sums over overlapping windows are exact in any order.
    gradient = jnp.round(8 * jax.random.normal(jax.random.key(1), y.shape))
    gradient = gradient.astype(dtype)
    same, pull = jax.vjp(MaxPool(size, stride, custom_vjp=True), x)
    return y, same, *pull_expected(gradient), *pull(gradient)

  y, same, expected, actual = both(x)
  assert y.shape[1] == (shape[1] - size) // stride + 1
  np.testing.assert_array_equal(same, y)
  assert actual.dtype == dtype
  np.testing.assert_array_equal(actual, expected)

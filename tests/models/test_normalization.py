import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models.normalization import local_response_norm
from alexnet_jax.models.normalization import spatial_response_norm


def lrn_loop(x, size, k, alpha, beta):
  """The formula as the paper prints it, one number at a time."""
  out = np.empty_like(x)
  channels = x.shape[-1]
  for position in np.ndindex(x.shape[:-1]):
    for c in range(channels):
      low, high = max(0, c - size // 2), min(channels - 1, c + size // 2)
      total = sum(x[(*position, j)] ** 2 for j in range(low, high + 1))
      out[(*position, c)] = x[(*position, c)] / (k + alpha * total) ** beta
  return out


@pytest.mark.parametrize(
  ('convention', 'size', 'k', 'alpha', 'beta'),
  [
    ('paper', 5, 2.0, 1e-4, 0.75),
    ('paper', 3, 1.0, 0.5, 0.75),
    ('paper', 5, 2.0, 0.1, 0.5),
    ('caffe', 5, 2.0, 5e-4, 0.75),
    ('caffe', 3, 1.0, 0.3, 1.0),
    ('paper', 1, 1.0, 0.2, 0.75),
    ('paper', 15, 1.0, 0.2, 0.75),  # wider than the channels
  ],
)
def test_local_response_norm_equals_a_loop(convention, size, k, alpha, beta):
  x = np.random.default_rng(0).normal(0, 10, (2, 3, 3, 7))
  expected = lrn_loop(
    x, size, k, alpha / size if convention == 'caffe' else alpha, beta
  )
  actual = local_response_norm(
    jnp.asarray(x, jnp.float32),
    size=size,
    k=k,
    alpha=alpha,
    beta=beta,
    convention=convention,
  )
  np.testing.assert_allclose(actual, expected, rtol=2e-6)


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  'options',
  [
    {},
    {'alpha': 0.1, 'k': 1.0},
    {'alpha': 0.3, 'convention': 'caffe', 'beta': 0.6, 'size': 3},
    {'alpha': 0.2, 'size': 15},  # wider than the channels
  ],
)
def test_the_closed_gradient_is_that_of_autodiff(options, dtype):
  x = 3 * jax.random.normal(jax.random.key(0), (2, 4, 3, 9), dtype)
  g = jax.random.normal(jax.random.key(1), x.shape, dtype)

  def both(form):
    y, pull = jax.vjp(lambda x: local_response_norm(x, **options, form=form), x)
    return y, pull(g)[0]

  (y, dx), (plain_y, plain_dx) = both('closed'), both('plain')
  np.testing.assert_array_equal(y, plain_y)
  assert dx.dtype == dtype
  # Both sum in float32, and round once at the end.
  tolerance = 2e-6 if dtype == jnp.float32 else 2**-7
  np.testing.assert_allclose(
    dx.astype(jnp.float32),
    plain_dx.astype(jnp.float32),
    rtol=tolerance,
    atol=tolerance,
  )


def test_the_closed_form_keeps_nothing_but_its_input():
  x = jax.ShapeDtypeStruct((2, 9), jnp.bfloat16)

  def saved(x):
    return jax.vjp(lambda x: local_response_norm(x, form='closed'), x)[1]

  kept = jax.tree.leaves(jax.eval_shape(saved, x))
  assert [(leaf.shape, leaf.dtype) for leaf in kept] == [((2, 9), x.dtype)]


def test_caffe_with_five_times_alpha_is_the_paper():
  x = jax.random.normal(jax.random.key(0), (4, 8)) * 50
  np.testing.assert_allclose(
    local_response_norm(x, alpha=1e-4),
    local_response_norm(x, alpha=5e-4, convention='caffe'),
    rtol=1e-6,
  )


def test_local_response_norm_gradient_equals_differences():
  x = np.random.default_rng(1).normal(0, 2, (1, 6))
  weights = np.random.default_rng(2).normal(size=(1, 6))
  gradient = jax.grad(
    lambda x: jnp.sum(local_response_norm(x, alpha=0.1) * jnp.asarray(weights))
  )(jnp.asarray(x, jnp.float32))
  for c in range(6):
    shift = np.zeros_like(x)
    shift[0, c] = 1e-5
    up, down = (
      (lrn_loop(x + s, 5, 2.0, 0.1, 0.75) * weights).sum()
      for s in (shift, -shift)
    )
    np.testing.assert_allclose(gradient[0, c], (up - down) / 2e-5, rtol=1e-4)


def test_local_response_norm_in_bfloat16_sums_in_float32():
  # Squares of 300 and of 1 cannot be summed in bfloat16 without losing the 1s.
  x = jnp.array([[300.0, 1.0, 1.0, 1.0, 1.0]], jnp.bfloat16)
  actual = local_response_norm(x, k=0.0 + 1e-9, alpha=1.0)
  assert actual.dtype == jnp.bfloat16
  expected = lrn_loop(np.asarray(x, np.float64), 5, 1e-9, 1.0, 0.75)
  np.testing.assert_allclose(
    np.asarray(actual, np.float64), expected, rtol=2**-8
  )


@pytest.mark.parametrize(
  ('fields', 'message'),
  [({'size': 4}, 'size is 4'), ({'convention': 'torch'}, "'torch'")],
)
def test_local_response_norm_refuses(fields, message):
  with pytest.raises(ValueError, match=message):
    local_response_norm(jnp.ones((1, 5)), **fields)


@pytest.mark.parametrize('form', ['plain', 'closed'])
def test_groups_see_nothing_of_each_other(form):
  x = np.random.default_rng(1).normal(0, 10, (2, 3, 3, 8))
  halves = [lrn_loop(half, 5, 2.0, 0.1, 0.75) for half in np.split(x, 2, -1)]
  actual = local_response_norm(
    jnp.asarray(x, jnp.float32), alpha=0.1, groups=2, form=form
  )
  np.testing.assert_allclose(actual, np.concatenate(halves, -1), rtol=2e-6)
  whole = local_response_norm(jnp.asarray(x, jnp.float32), alpha=0.1)
  assert not np.allclose(actual, whole, rtol=1e-3)
  with pytest.raises(ValueError, match='8 channels are no 3 equal groups'):
    local_response_norm(jnp.asarray(x, jnp.float32), groups=3)


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
    ({}, jnp.float32, 2e-6),
    (
      {'size': 3, 'k': 2.0, 'alpha': 0.5, 'beta': 0.6},
      jnp.float32,
      2e-6,
    ),
    ({'alpha': 0.5}, jnp.bfloat16, 2**-7),
  ],
)
def test_spatial_response_norm_equals_a_loop(options, dtype, tolerance):
  x = np.random.default_rng(2).normal(0, 10, (2, 6, 7, 3))
  x = jnp.asarray(x, dtype)
  values = {'size': 5, 'k': 1.0, 'alpha': 0.001, 'beta': 0.75, **options}
  expected = spatial_loop(np.asarray(x, np.float64), **values)
  actual = spatial_response_norm(x, **options)
  assert actual.dtype == dtype
  np.testing.assert_allclose(
    actual.astype(jnp.float32), expected, rtol=tolerance
  )
  with pytest.raises(ValueError, match='size is 4'):
    spatial_response_norm(x, size=4)

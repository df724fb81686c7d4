from flax import linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models import layers


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
  actual = layers.local_response_norm(
    jnp.asarray(x, jnp.float32),
    size=size,
    k=k,
    alpha=alpha,
    beta=beta,
    convention=convention,
  )
  np.testing.assert_allclose(actual, expected, rtol=2e-6)


def test_caffe_with_five_times_alpha_is_the_paper():
  x = jax.random.normal(jax.random.key(0), (4, 8)) * 50
  np.testing.assert_allclose(
    layers.local_response_norm(x, alpha=1e-4),
    layers.local_response_norm(x, alpha=5e-4, convention='caffe'),
    rtol=1e-6,
  )


def test_local_response_norm_gradient_equals_differences():
  x = np.random.default_rng(1).normal(0, 2, (1, 6))
  weights = np.random.default_rng(2).normal(size=(1, 6))
  gradient = jax.grad(
    lambda x: jnp.sum(
      layers.local_response_norm(x, alpha=0.1) * jnp.asarray(weights)
    )
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
  actual = layers.local_response_norm(x, k=0.0 + 1e-9, alpha=1.0)
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
    layers.local_response_norm(jnp.ones((1, 5)), **fields)


@pytest.mark.parametrize(
  ('name', 'role', 'number', 'stddev'),
  [
    ('paper', 'conv', 3, 0.01),
    ('paper', 'dense', 1, 0.01),
    ('source_release', 'conv', 2, 0.01),
    ('source_release', 'conv', 3, 0.03),
    ('source_release', 'conv', 5, 0.03),
    ('caffe', 'conv', 5, 0.01),
    ('caffe', 'dense', 2, 0.005),
    ('caffe', 'head', 1, 0.01),
    ('he', 'dense', 1, (2 / 300) ** 0.5),
    ('lecun', 'dense', 1, (1 / 300) ** 0.5),
    ('glorot', 'dense', 1, (2 / 800) ** 0.5),
  ],
)
def test_kernel_initializer_has_the_stated_deviation(
  name, role, number, stddev
):
  initializer = layers.kernel_initializer(name, role, number)
  kernel = initializer(jax.random.key(0), (300, 500), jnp.float32)
  np.testing.assert_allclose(jnp.std(kernel), stddev, rtol=0.01)
  assert abs(jnp.mean(kernel)) < stddev / 50


def test_kernel_initializer_refuses_an_unknown_name():
  with pytest.raises(ValueError, match="'kaiming'"):
    layers.kernel_initializer('kaiming', 'conv', 1)


@pytest.mark.parametrize('make', ['kernel', 'bias'])
def test_torch_draws_within_the_root_of_the_fan(make):
  """PyTorch's documented default of Conv2d and Linear."""
  if make == 'kernel':
    init = layers.kernel_initializer('torch', 'dense', 1)
  else:
    init = layers.bias_initializer('torch', 0.0, 400)
  shape = (400, 200) if make == 'kernel' else (80_000,)
  values = np.asarray(init(jax.random.key(0), shape, jnp.float32))
  assert np.abs(values).max() == pytest.approx(1 / 20, rel=1e-3)
  assert values.std() == pytest.approx(1 / 20 / np.sqrt(3), rel=0.02)
  assert abs(values.mean()) < 0.001


def test_biases_are_constant_otherwise():
  for name, value in (('paper', 1.0), ('paper', 0.0), ('torch', 0.5)):
    init = layers.bias_initializer(name, value, 400)
    assert (init(jax.random.key(0), (3,), jnp.float32) == value).all()


@pytest.mark.parametrize('dtype', [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize(
  ('shape', 'size', 'stride'),
  [
    ((2, 13, 13, 5), 3, 2),  # the paper's, overlapping
    ((2, 12, 9, 3), 3, 2),  # rows and columns that no window has
    ((1, 11, 11, 4), 2, 2),
    ((1, 7, 8, 2), 2, 3),  # gaps between the windows
    ((1, 3, 3, 1), 3, 1),
  ],
)
def test_max_pool_and_its_gradient_are_those_of_flax(
  shape, size, stride, dtype
):
  """Many values are equal: zeros after a ReLU, and repeated whole numbers."""
  x = jax.random.normal(jax.random.key(0), shape)
  x = jnp.maximum(jnp.round(2 * x), 0).astype(dtype)

  def ours(x):
    return layers.compared_max_pool(x, size, stride)

  def flax(x):
    return nn.max_pool(x, (size, size), (stride, stride))

  y, pull = jax.vjp(ours, x)
  expected, pull_expected = jax.vjp(flax, x)
  np.testing.assert_array_equal(y, expected)
  np.testing.assert_array_equal(layers.max_pool(x, size, stride), expected)
  # Whole numbers: sums over overlapping windows are exact in any order.
  gradient = jnp.round(8 * jax.random.normal(jax.random.key(1), y.shape))
  gradient = gradient.astype(dtype)
  (actual,), (wanted,) = pull(gradient), pull_expected(gradient)
  assert actual.dtype == dtype
  np.testing.assert_array_equal(
    actual.astype(jnp.float32), wanted.astype(jnp.float32)
  )


def dropout_keys(count=6, seed=0):
  return jax.random.split(jax.random.key(seed), count)


def test_dropout_keeps_the_mean_and_its_share_of_units():
  """Of x = 2: 0 or 2 / 0.7, so a mean of 2 and a variance of 4 * 3 / 7."""
  x = jnp.full((64, 40, 50), 2.0)
  y = layers.dropout(x, dropout_keys(64), 0.3, 1)
  np.testing.assert_allclose(np.unique(y), [0, 2 / 0.7], rtol=1e-6)
  # 128,000 draws: five standard errors of the mean are 0.018.
  assert float(y.mean()) == pytest.approx(2, abs=0.018)
  assert float(y.var()) == pytest.approx(4 * 3 / 7, rel=0.02)
  # No place in an example is dropped more often than others would be.
  assert np.abs((y == 0).mean(0) - 0.3).max() < 5.5 * (0.21 / 64) ** 0.5


def test_dropout_of_an_example_depends_on_its_key_and_layer_alone():
  x = jax.random.normal(jax.random.key(1), (6, 300))
  keys = dropout_keys()
  y = layers.dropout(x, keys, 0.5, 1)
  for i in range(6):
    alone = layers.dropout(x[i : i + 1], keys[i : i + 1], 0.5, 1)
    np.testing.assert_array_equal(alone[0], y[i])
  kept = np.asarray(y != 0)
  assert len({row.tobytes() for row in kept}) == 6
  other = np.asarray(layers.dropout(x, keys, 0.5, 2) != 0)
  assert 0.4 < (kept == other).mean() < 0.6
  back = layers.dropout(x[::-1], keys[::-1], 0.5, 1)
  np.testing.assert_array_equal(back[::-1], y)


def test_the_gradient_passes_the_kept_units_only():
  x = jax.random.normal(jax.random.key(1), (6, 50))
  keys = dropout_keys()
  weights = jnp.arange(50.0)[None] + 1
  y, back = jax.vjp(lambda x: layers.dropout(x, keys, 0.2, 1), x)
  (gradient,) = back(jnp.broadcast_to(weights, x.shape))
  expected = np.where(y != 0, weights / 0.8, 0)
  np.testing.assert_allclose(gradient, expected, rtol=1e-6)
  assert 0 < (gradient == 0).mean() < 0.4


def test_dropout_keeps_the_dtype():
  x = jnp.ones((6, 8), jnp.bfloat16)
  assert layers.dropout(x, dropout_keys(), 0.5, 1).dtype == jnp.bfloat16


@pytest.mark.parametrize('count', [1, 5])
def test_dropout_wants_a_key_for_each_example(count):
  with pytest.raises(ValueError, match=rf'\({count},\) for a batch of 6'):
    layers.dropout(jnp.ones((6, 8)), dropout_keys(count), 0.5, 1)

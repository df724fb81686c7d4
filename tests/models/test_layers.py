import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models import layers


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

import re

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models import convolution as convolution_lib
from alexnet_jax.models.convolution import convolution

ORDER = ('NHWC', 'HWIO', 'NHWC')


def example(size, width, groups, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(size))
  images = jax.random.normal(keys[0], (3, size, size + 1, 4), dtype)
  kernel = jax.random.normal(keys[1], (width, width, 4 // groups, 6), dtype)
  return images, kernel


@pytest.mark.parametrize(
  ('size', 'width', 'stride', 'padding', 'groups', 'least_channels'),
  [
    (13, 3, 1, 'SAME', 2, 1),  # 3 blocks of 5 rows, 2 of them beyond the end
    (5, 4, 1, [(3, 0), (0, 3)], 1, 1),
    (5, 5, 1, 'VALID', 1, 1),  # one row
    (6, 7, 1, 'SAME', 2, 1),  # too wide for Winograd's filtering
    (8, 5, 2, [(1, 0), (1, 0)], 2, 1),
    (12, 3, 3, 'VALID', 1, 1),  # the last column is used by no window
    (20, 11, 4, [(2, 1), (2, 1)], 1, 1),
    (7, 2, 4, 'VALID', 1, 1),  # pixels between the windows
    (6, 3, 2, [(3, 2), (0, 3)], 1, 1),  # windows of padding alone
    (9, 3, 1, 'VALID', 1, 16),  # too few for Winograd's filtering
    (9, 3, 1, 'SAME', 2, 16),
  ],
)
def test_gradients_are_those_of_autodiff(
  size, width, stride, padding, groups, least_channels, monkeypatch
):
  monkeypatch.setattr(convolution_lib, '_LEAST_CHANNELS', least_channels)
  images, kernel = example(size, width, groups)

  def both(function, **options):
    def run(images, kernel):
      y, back = jax.vjp(
        lambda x, w: function(
          x, w, (stride,) * 2, padding, feature_group_count=groups, **options
        ),
        images,
        kernel,
      )
      return y, *back(jnp.cos(y))

    return jax.jit(run)(images, kernel)

  expected = both(lax.conv_general_dilated, dimension_numbers=ORDER)
  for ours, theirs in zip(both(convolution), expected, strict=True):
    assert ours.shape == theirs.shape
    # Winograd's filtering subtracts what it added: errors are of the size of
    # the largest numbers.
    np.testing.assert_allclose(
      ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max()
    )


def test_unknown_options_are_refused():
  images, kernel = example(9, 3, 1)
  with pytest.raises(ValueError, match='rhs_dilation'):
    convolution(images, kernel, (1, 1), 'SAME', rhs_dilation=(2, 2))


def test_gradients_have_the_dtype_of_what_they_belong_to():
  images, kernel = example(9, 3, 1, jnp.bfloat16)

  def both(images, kernel):
    y, back = jax.vjp(
      lambda x, w: convolution(x, w, (1, 1), 'SAME'), images, kernel
    )
    return y, *back(y)

  found = jax.eval_shape(both, images, kernel)
  assert [each.dtype for each in found] == [jnp.bfloat16] * 3


def test_all_convolutions_of_a_loop_are_of_the_fast_order():
  """Other orders are computed one number at a time there."""
  images, kernel = example(9, 3, 2)

  def loss(kernel, images):
    y = convolution(images, kernel, (2, 2), 'SAME', feature_group_count=2)
    y = convolution(y[..., :4], kernel, (1, 1), 'SAME', feature_group_count=2)
    return jnp.square(y).sum()

  def total(kernel, microbatches):
    def add(grads, images):
      return grads + jax.grad(loss)(kernel, images), None

    return lax.scan(add, jnp.zeros_like(kernel), microbatches)[0]

  microbatches = jnp.stack([images] * 3)
  text = jax.jit(total).lower(kernel, microbatches).compile().as_text()
  orders = re.findall(r' convolution\(.*dim_labels=([\w>-]+)', text)
  assert len(orders) >= 6  # two forward, one or two parts of each gradient
  assert set(orders) == {'b01f_01io->b01f'}
  assert 'rhs_reversal' not in text


@pytest.mark.parametrize(
  ('height', 'width', 'products'),
  [
    (13, 3, 7),  # 3 blocks of 5 rows: 21; of 6 rows 3 of 8
    (27, 5, 8),  # 7 blocks of 4 rows: 56; one by one 27 of 5: 135
    (1, 5, 1),
  ],
)
def test_as_many_rows_as_make_the_fewest_products(height, width, products):
  images = jax.ShapeDtypeStruct((2, height, 9, 16), jnp.float32)
  kernel = jax.ShapeDtypeStruct((width, width, 16, 16), jnp.float32)

  def run(images, kernel):
    return convolution(images, kernel, (1, 1), 'SAME')

  text = jax.jit(run).lower(images, kernel).as_text()
  assert text.count('stablehlo.convolution') == products

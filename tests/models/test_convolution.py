import re

import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.models import convolution as convolutions
from alexnet_jax.models.convolution import convolution
from tests.some_slow import some_slow

ORDER = ('NHWC', 'HWIO', 'NHWC')


def example(size, width, groups, dtype=jnp.float32):
  keys = jax.random.split(jax.random.key(size))
  images = jax.random.normal(keys[0], (3, size, size + 1, 4), dtype)
  kernel = jax.random.normal(keys[1], (width, width, 4 // groups, 6), dtype)
  return images, kernel


@pytest.mark.parametrize(
  ('size', 'width', 'stride', 'padding', 'groups'),
  [
    (9, 3, 1, 'SAME', 1),
    (9, 3, 1, 'SAME', 2),
    (9, 3, 1, 'VALID', 1),
    (13, 3, 1, 'SAME', 2),  # 3 blocks of 5 rows, 2 of them beyond the end
    (27, 5, 1, 'SAME', 2),
    (5, 4, 1, [(3, 0), (0, 3)], 1),
    (5, 5, 1, 'VALID', 1),  # one row
    (6, 7, 1, 'SAME', 1),  # too wide for Winograd's way
    (6, 1, 1, 'VALID', 1),
    (8, 5, 2, [(1, 0), (1, 0)], 2),
    (12, 3, 3, 'VALID', 1),  # the last column is used by no window
    (20, 11, 4, [(2, 1), (2, 1)], 1),
    (7, 2, 4, 'VALID', 1),  # pixels between the windows
    (6, 3, 2, [(3, 2), (0, 3)], 1),  # windows of padding alone
  ],
)
@pytest.mark.parametrize('winograd', some_slow([False, True], quick=[True]))
def test_gradients_are_those_of_autodiff(
  size, width, stride, padding, groups, winograd, monkeypatch
):
  if winograd:
    monkeypatch.setattr(convolutions, '_LEAST_CHANNELS', 1)
  images, kernel = example(size, width, groups)
  options = {'feature_group_count': groups}

  def both(function, **more):
    y, back = jax.vjp(
      lambda x, w: function(x, w, (stride,) * 2, padding, **options, **more),
      images,
      kernel,
    )
    return y, *back(jnp.cos(y))

  expected = both(lax.conv_general_dilated, dimension_numbers=ORDER)
  for ours, theirs in zip(both(convolution), expected, strict=True):
    assert ours.shape == theirs.shape
    # Winograd's way subtracts what it added: errors are of the size of the
    # largest numbers.
    np.testing.assert_allclose(
      ours, theirs, rtol=0, atol=2e-5 * np.abs(theirs).max()
    )


def test_what_is_not_known_is_refused():
  images, kernel = example(9, 3, 1)
  with pytest.raises(ValueError, match='dilations are'):
    convolution(images, kernel, (1, 1), 'SAME', rhs_dilation=(2, 2))


def test_gradients_have_the_dtype_of_what_they_belong_to():
  images, kernel = example(9, 3, 1, jnp.bfloat16)
  y, back = jax.vjp(
    lambda x, w: convolution(x, w, (1, 1), 'SAME'), images, kernel
  )
  assert [g.dtype for g in (y, *back(y))] == [jnp.bfloat16] * 3


def test_all_convolutions_of_a_loop_are_of_the_fast_order():
  """Other orders are computed one number at a time there."""
  images, kernel = example(9, 3, 2)

  def loss(kernel, images):
    y = convolution(images, kernel, (2, 2), 'SAME', feature_group_count=2)
    y = convolution(y[..., :4], kernel, (1, 1), 'SAME', feature_group_count=2)
    return jnp.square(y).sum()

  def total(kernel, pieces):
    def add(grads, piece):
      return grads + jax.grad(loss)(kernel, piece), None

    return lax.scan(add, jnp.zeros_like(kernel), pieces)[0]

  pieces = jnp.stack([images] * 3)
  text = jax.jit(total).lower(kernel, pieces).compile().as_text()
  orders = re.findall(r' convolution\(.*dim_labels=([\w>-]+)', text)
  assert len(orders) >= 6  # two forward, one or two parts of each gradient
  assert set(orders) == {'b01f_01io->b01f'}
  assert 'rhs_reversal' not in text

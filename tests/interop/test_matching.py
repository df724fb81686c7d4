"""The order of layers, by shapes and names."""

import pytest

from alexnet_jax.interop import matching


@pytest.mark.parametrize(
  ('widths', 'last'),
  [
    ({'fc6': (9216, 4096), 'fc7': (4096, 4096), 'a': (4096, 1000)}, 'a'),
    ({'z': (9216, 4096), 'fc7': (4096, 4096), 'out': (4096, 10)}, 'out'),
    ({'only': (10, 10)}, 'only'),
    # As many classes as hidden units, or as the features: names decide.
    ({'fc6': (9216, 64), 'fc7': (64, 64), 'fc8': (64, 64)}, 'fc8'),
    ({'fc9': (16, 64), 'fc10': (64, 16)}, 'fc10'),
    # And where two lead nowhere.
    ({'fc1': (9, 4), 'fc2': (4, 3), 'fc10': (4, 2)}, 'fc10'),
  ],
)
def test_the_last_dense_layer(widths, last):
  assert matching.last_dense(widths) == last


def test_natural_order():
  names = ['conv2', 'conv10', 'features.3', 'classifier.1', 'fc9', 'fc10']
  assert sorted({*names}, key=matching.natural_key) == names
  names = ['conv2d', 'conv2d_1', 'conv2d_2', 'conv2d_10', 'dense', 'dense_1']
  assert sorted({*names}, key=matching.natural_key) == names

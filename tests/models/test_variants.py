"""The named networks: parameters and shapes by hand, and a few steps each."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.models import spec
from alexnet_jax.models import variants
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.costs import layer_table
from tests.some_slow import some_slow


def parameters(convolutions, *hidden):
  """Counts them: of kernels such as 11x3x96 and of dense layers, by widths."""
  total = sum(a * b + b for a, b in itertools.pairwise(hidden))
  for convolution in convolutions.split():
    size, inputs, outputs = map(int, convolution.split('x'))
    total += size * size * inputs * outputs + outputs
  return total


DENSE = 6 * 6 * 256, 4096, 4096, 1000
ONE_TOWER = parameters('11x3x96 5x96x256 3x256x384 3x384x384 3x384x256', *DENSE)
TWO_TOWERS = parameters(
  '11x3x96 5x48x256 3x256x384 3x192x384 3x192x256', *DENSE
)
SHAPES = '55x96 27x96 27x256 13x256 13x384 13x384 13x256 6x256'
FLAT_SHAPES = '55x96 27x96 27x256 13x256 13x256 6x256'
FLAT = '11x3x96 5x96x256 3x256x256'

# network: (parameters by hand, width and feature maps of each convolution and
# pooling), of 224 pixels and 1,000 classes unless SIZES says otherwise.
EXPECTED = {
  'alexnet': (TWO_TOWERS, SHAPES),
  'alexnet_one_tower': (ONE_TOWER, SHAPES),
  'alexnet_source_release': (TWO_TOWERS, SHAPES),
  'alexnet_caffe': (TWO_TOWERS, SHAPES),
  'caffenet': (TWO_TOWERS, SHAPES),
  'alexnet_plain': (ONE_TOWER, SHAPES),
  'alexnet_bn': (
    ONE_TOWER + 2 * 96 + 2 * 256,
    '56x96 27x96 27x256 13x256 13x384 13x384 13x256 6x256',
  ),
  'alexnet_bn_all': (
    46_815_312,
    '54x96 26x96 26x256 12x256 12x384 12x384 12x256 5x256',
  ),
  'alexnet_torchvision': (
    61_100_840,
    '55x64 27x64 27x192 13x192 13x384 13x256 13x256 6x256',
  ),
  'narrow_alexnet': (
    parameters(
      '11x3x48 5x48x128 3x128x192 3x192x192 3x192x128',
      6 * 6 * 128,
      4096,
      4096,
      1000,
    ),
    '55x48 27x48 27x128 13x128 13x192 13x192 13x128 6x128',
  ),
  'flat_alexnet': (parameters(FLAT, *DENSE), FLAT_SHAPES),
  'flat_alexnet_high_stride': (  # (224 + 3 - 11) / 6 + 1 = 37; 18 / 2 = 9
    parameters(FLAT, 1 * 1 * 256, 4096, 4096, 1000),
    '37x96 18x96 9x256 4x256 4x256 1x256',
  ),
  'flat_alexnet_low_stride': (  # (224 + 3 - 11) / 2 + 1 = 109
    parameters(FLAT, 12 * 12 * 256, 4096, 4096, 1000),
    '109x96 54x96 54x256 26x256 26x256 12x256',
  ),
  'flat_alexnet_large_kernel': (  # (224 + 3 - 15) / 4 + 1 = 54
    parameters('15x3x96 7x96x256 5x256x256', 5 * 5 * 256, 4096, 4096, 1000),
    '54x96 26x96 26x256 12x256 12x256 5x256',
  ),
  'flat_alexnet_small_kernel': (  # (224 + 3 - 7) / 4 + 1 = 56
    parameters('7x3x96 3x96x256 3x256x256', *DENSE),
    '56x96 27x96 27x256 13x256 13x256 6x256',
  ),
  'flat_alexnet_tuned': (
    parameters(FLAT, 6 * 6 * 256, 2379, 5592, 7864, 1000),
    FLAT_SHAPES,
  ),
  'marvin': (
    parameters('3x3x32 3x32x64', 5 * 5 * 64, 256, 256, 10),
    '26x32 13x32 11x64 5x64',
  ),
}
SIZES = {  # (pixels, classes)
  'alexnet_caffe': (227, 1000),
  'caffenet': (227, 1000),
  'alexnet_plain': (227, 1000),
  'alexnet_bn_all': (224, 16),
  'marvin': (28, 10),
}


@pytest.mark.parametrize('name', variants.VARIANTS)
def test_parameters_and_shapes_are_those_computed_by_hand(name):
  size, classes = SIZES.get(name, (224, 1000))
  count, shapes = EXPECTED[name]
  fields = variants.fields(name)
  assert fields.keys() == spec.defaults().keys()
  model = AlexNet(num_classes=classes, **fields)
  params, rows = layer_table(model, (size, size, 3))
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
  outputs = {layer: output for layer, output, _ in rows}
  images = [outputs[n] for n in outputs if n.startswith(('conv', 'pool'))]
  assert ' '.join(f'{h}x{c}' for h, _, c in images) == shapes
  assert all(h == w for h, w, _ in images)
  hidden = [outputs[n] for n in outputs if n[:5] == 'dense']
  assert hidden == [(width,) for width in fields['hidden']]
  assert rows[-1][:2] == ('head', (classes,))


def test_an_unknown_name_is_answered_with_those_that_exist():
  with pytest.raises(ValueError, match=r"no network 'lenet'; .*marvin"):
    variants.fields('lenet')


# The least widths, in pixels, that leave every layer something.
@pytest.mark.parametrize(
  ('name', 'size'),
  some_slow(
    [
      ('marvin', 16),
      ('alexnet_source_release', 80),
      ('alexnet_bn_all', 80),
      ('flat_alexnet_high_stride', 164),
    ],
    quick=[('marvin', 16)],
  ),
)
def test_a_network_trains(name, size):
  """Five steps on one batch, at a twentieth of the width, lower its loss."""
  fields = {
    **variants.fields(name),
    'width_multiplier': 0.05,
    'dropout': 0.0,
    'kernel_init': 'he',
    'bias_init': 0.0,
  }
  model = AlexNet(num_classes=3, **fields, implementation='cpu')
  x = jax.random.normal(jax.random.key(0), (6, size, size, 3))
  labels = jnp.arange(6) % 3

  def loss(params, statistics):
    logits, new = model.apply(
      {'params': params, **statistics}, x, train=True, mutable=['batch_stats']
    )
    losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return losses.mean(), dict(new)

  grad = jax.jit(jax.value_and_grad(loss, has_aux=True))
  statistics = dict(jax.jit(model.init)(jax.random.key(1), x))
  params = first = statistics.pop('params')
  values = []
  for _ in range(5):
    (value, statistics), grads = grad(params, statistics)
    params = jax.tree.map(lambda p, g: p - 0.002 * g, params, grads)
    values.append(float(value))
  assert np.isfinite(values).all()
  assert values[-1] < values[0]
  for layer, weights in params.items():
    if 'kernel' in weights:
      assert (weights['kernel'] != first[layer]['kernel']).any(), layer

"""The named networks: parameters and shapes by hand, and a few steps each."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from alexnet_jax.models import variants
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.models.costs import layer_table

TOWER = '55x96 27x96 27x256 13x256 13x384 13x384 13x256 6x256'
FLAT = '55x96 27x96 27x256 13x256 13x256 6x256'
WIDE = '56x96 27x96 27x256 13x256 13x384 13x384 13x256 6x256'
UNPADDED = '54x96 26x96 26x256 12x256 12x384 12x384 12x256 5x256'
NARROW = '55x48 27x48 27x128 13x128 13x192 13x192 13x128 6x128'
TORCHVISION = '55x64 27x64 27x192 13x192 13x384 13x256 13x256 6x256'

# (network, pixels, classes, parameters by hand, width and feature maps of each
# convolution and pooling).
EXPECTED = [
  ('alexnet', 224, 1000, 60_965_224, TOWER),
  ('alexnet_one_tower', 224, 1000, 62_378_344, TOWER),
  ('alexnet_source_release', 224, 1000, 60_965_224, TOWER),
  ('alexnet_caffe', 227, 1000, 60_965_224, TOWER),
  ('caffenet', 227, 1000, 60_965_224, TOWER),
  ('alexnet_plain', 227, 1000, 62_378_344, TOWER),
  ('alexnet_bn', 224, 1000, 62_379_048, WIDE),
  ('alexnet_bn_all', 224, 16, 46_815_312, UNPADDED),
  ('alexnet_torchvision', 224, 1000, 61_100_840, TORCHVISION),
  ('narrow_alexnet', 224, 1000, 40_702_632, NARROW),
  ('flat_alexnet', 224, 1000, 59_870_824, FLAT),
  (  # (224 + 3 - 11) / 6 + 1 = 37; 18 / 2 = 9
    *('flat_alexnet_high_stride', 224, 1000, 23_170_664),
    '37x96 18x96 9x256 4x256 4x256 1x256',
  ),
  (  # (224 + 3 - 11) / 2 + 1 = 109
    *('flat_alexnet_low_stride', 224, 1000, 173_117_032),
    '109x96 54x96 54x256 26x256 26x256 12x256',
  ),
  (  # (224 + 3 - 15) / 4 + 1 = 54
    *('flat_alexnet_large_kernel', 224, 1000, 50_004_840),
    '54x96 26x96 26x256 12x256 12x256 5x256',
  ),
  (  # (224 + 3 - 7) / 4 + 1 = 56
    *('flat_alexnet_small_kernel', 224, 1000, 59_456_872),
    '56x96 27x96 27x256 13x256 13x256 6x256',
  ),
  ('flat_alexnet_tuned', 224, 1000, 88_324_235, FLAT),
  ('marvin', 28, 10, 497_610, '26x32 13x32 11x64 5x64'),
]


@pytest.mark.parametrize(
  ('name', 'size', 'classes', 'count', 'shapes'), EXPECTED
)
def test_parameters_and_shapes(name, size, classes, count, shapes):
  fields = variants.fields(name)
  model = AlexNet(num_classes=classes, **fields)
  params, rows = layer_table(model, (size, size, 3))
  assert sum(leaf.size for leaf in jax.tree.leaves(params)) == count
  outputs = {layer: output for layer, output, _ in rows}
  names = [layer.name for layer in model.layers(size) if layer.name in outputs]
  assert [*names, 'head'] == list(outputs)
  images = [outputs[n] for n in outputs if n.startswith(('conv', 'pool'))]
  assert ' '.join(f'{h}x{c}' for h, _, c in images) == shapes
  assert all(h == w for h, w, _ in images)
  hidden = [outputs[n] for n in outputs if n[:5] == 'dense']
  assert hidden == [(width,) for width in fields['hidden']]
  assert rows[-1][:2] == ('head', (classes,))


def test_every_network_is_here():
  assert {name for name, *_ in EXPECTED} == variants.VARIANTS.keys()


# The least widths, in pixels, that leave every layer something.
@pytest.mark.parametrize(
  ('name', 'size'),
  [
    ('marvin', 16),
    pytest.param('alexnet_source_release', 80, marks=pytest.mark.slow),
    pytest.param('alexnet_bn_all', 80, marks=pytest.mark.slow),
    pytest.param('flat_alexnet_high_stride', 164, marks=pytest.mark.slow),
  ],
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

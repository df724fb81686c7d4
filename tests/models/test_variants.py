"""The named networks: parameters and shapes by hand, and a few steps each."""

import functools
import itertools
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.evaluation.summary import layer_table
from alexnet_jax.models import variants
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.training import optimizer
from alexnet_jax.training import parallel
from alexnet_jax.training import state as state_lib
from alexnet_jax.training import step


def conv(size, inputs, outputs):
  return size * size * inputs * outputs + outputs


def dense(*widths):
  return sum(a * b + b for a, b in itertools.pairwise(widths))


# network: (width of the images, classes, parameters by hand, width and feature
# maps of each convolution and pooling).
EXPECTED = {
  'alexnet': (
    224,
    1000,
    conv(11, 3, 96)
    + conv(5, 48, 256)
    + conv(3, 256, 384)
    + conv(3, 192, 384)
    + conv(3, 192, 256)
    + dense(6 * 6 * 256, 4096, 4096, 1000),
    '55x96 27x96 27x256 13x256 13x384 13x384 13x256 6x256',
  ),
  'alexnet_one_tower': (
    224,
    1000,
    conv(11, 3, 96)
    + conv(5, 96, 256)
    + conv(3, 256, 384)
    + conv(3, 384, 384)
    + conv(3, 384, 256)
    + dense(6 * 6 * 256, 4096, 4096, 1000),
    '55x96 27x96 27x256 13x256 13x384 13x384 13x256 6x256',
  ),
  'alexnet_source_release': (
    224,
    1000,
    60_965_224,
    '55x96 27x96 27x256 13x256 13x384 13x384 13x256 6x256',
  ),
  'alexnet_caffe': (
    227,
    1000,
    60_965_224,
    '55x96 27x96 27x256 13x256 13x384 13x384 13x256 6x256',
  ),
  'caffenet': (
    227,
    1000,
    60_965_224,
    '55x96 27x96 27x256 13x256 13x384 13x384 13x256 6x256',
  ),
  'alexnet_bn': (
    224,
    1000,
    62_378_344 + 2 * 96 + 2 * 256,
    '56x96 27x96 27x256 13x256 13x384 13x384 13x256 6x256',
  ),
  'alexnet_bn_all': (
    224,
    16,
    46_815_312,
    '54x96 26x96 26x256 12x256 12x384 12x384 12x256 5x256',
  ),
  'alexnet_plain': (
    227,
    1000,
    62_378_344,
    '55x96 27x96 27x256 13x256 13x384 13x384 13x256 6x256',
  ),
  'alexnet_torchvision': (
    224,
    1000,
    61_100_840,
    '55x64 27x64 27x192 13x192 13x384 13x256 13x256 6x256',
  ),
  'flat_alexnet': (
    224,
    1000,
    conv(11, 3, 96)
    + conv(5, 96, 256)
    + conv(3, 256, 256)
    + dense(6 * 6 * 256, 4096, 4096, 1000),
    '55x96 27x96 27x256 13x256 13x256 6x256',
  ),
  'narrow_alexnet': (
    224,
    1000,
    conv(11, 3, 48)
    + conv(5, 48, 128)
    + conv(3, 128, 192)
    + conv(3, 192, 192)
    + conv(3, 192, 128)
    + dense(6 * 6 * 128, 4096, 4096, 1000),
    '55x48 27x48 27x128 13x128 13x192 13x192 13x128 6x128',
  ),
  'flat_alexnet_high_stride': (
    224,
    1000,
    conv(11, 3, 96)
    + conv(5, 96, 256)
    + conv(3, 256, 256)
    + dense(1 * 1 * 256, 4096, 4096, 1000),
    # (224 + 3 - 11) / 6 + 1 = 37; 18 / 2 = 9
    '37x96 18x96 9x256 4x256 4x256 1x256',
  ),
  'flat_alexnet_low_stride': (
    224,
    1000,
    conv(11, 3, 96)
    + conv(5, 96, 256)
    + conv(3, 256, 256)
    + dense(12 * 12 * 256, 4096, 4096, 1000),
    # (224 + 3 - 11) / 2 + 1 = 109
    '109x96 54x96 54x256 26x256 26x256 12x256',
  ),
  'flat_alexnet_large_kernel': (
    224,
    1000,
    conv(15, 3, 96)
    + conv(7, 96, 256)
    + conv(5, 256, 256)
    + dense(5 * 5 * 256, 4096, 4096, 1000),
    # (224 + 3 - 15) / 4 + 1 = 54
    '54x96 26x96 26x256 12x256 12x256 5x256',
  ),
  'flat_alexnet_small_kernel': (
    224,
    1000,
    conv(7, 3, 96)
    + conv(3, 96, 256)
    + conv(3, 256, 256)
    + dense(6 * 6 * 256, 4096, 4096, 1000),
    # (224 + 3 - 7) / 4 + 1 = 56
    '56x96 27x96 27x256 13x256 13x256 6x256',
  ),
  'flat_alexnet_tuned': (
    224,
    1000,
    conv(11, 3, 96)
    + conv(5, 96, 256)
    + conv(3, 256, 256)
    + dense(6 * 6 * 256, 2379, 5592, 7864, 1000),
    '55x96 27x96 27x256 13x256 13x256 6x256',
  ),
  'marvin': (
    28,
    10,
    conv(3, 3, 32) + conv(3, 32, 64) + dense(5 * 5 * 64, 256, 256, 10),
    '26x32 13x32 11x64 5x64',
  ),
}


def layers_of(name):
  size, classes, _, _ = EXPECTED[name]
  model = AlexNet(num_classes=classes, **variants.fields(name))
  return layer_table(model, (size, size, 3))


def count(tree):
  return sum(leaf.size for leaf in jax.tree.leaves(tree))


def test_the_table_is_complete():
  assert set(EXPECTED) == set(variants.VARIANTS)


@pytest.mark.parametrize('name', EXPECTED)
def test_parameters_and_shapes_are_those_computed_by_hand(name):
  _, classes, parameters, shapes = EXPECTED[name]
  params, rows = layers_of(name)
  assert count(params) == parameters
  images = [
    output for layer, output, _ in rows if layer[:4] in ('conv', 'pool')
  ]
  assert ' '.join(f'{h}x{c}' for h, _, c in images) == shapes
  assert all(h == w for h, w, _ in images)
  hidden = variants.fields(name)['hidden']
  dense_rows = [
    output for layer, output, _ in rows if layer.startswith('dense')
  ]
  assert dense_rows == [(width,) for width in hidden]
  assert rows[-1][:2] == ('head', (classes,))


def test_alexnet_bn_all_has_statistics_that_do_not_train():
  model = AlexNet(num_classes=16, **variants.fields('alexnet_bn_all'))
  shapes = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 224, 224, 3))
  )
  assert count(shapes['params']) == 46_815_312
  assert count(shapes) == 46_818_064


def test_fields_replace_those_of_another_network():
  first, second = variants.fields('marvin'), variants.fields('alexnet')
  assert first.keys() == second.keys()
  assert {**first, **second} == second
  given = {'num_classes', 'dtype', 'axis_name', 'forms', 'parent', 'name'}
  assert first.keys() == set(AlexNet.__dataclass_fields__) - given


def test_an_unknown_name_is_answered_with_those_that_exist():
  with pytest.raises(ValueError, match=r"no network 'lenet'; .*marvin"):
    variants.fields('lenet')


# The least widths, in pixels, that leave every layer something; most take 80.
SMALL = {'flat_alexnet_high_stride': 164, 'marvin': 16}
FEW = ('alexnet_bn', 'marvin')  # the others in the slow tests


@pytest.mark.parametrize(
  'name',
  [
    pytest.param(name, marks=[] if name in FEW else pytest.mark.slow)
    for name in EXPECTED
  ],
)
def test_every_network_trains(name):
  """Five steps on one batch, at a twentieth of the width, lower its loss."""
  size = SMALL.get(name, 80)
  fields = {
    **variants.fields(name),
    'width_multiplier': 0.05,
    'dropout': 0.0,
    'kernel_init': 'he',
    'bias_init': 0.0,
  }
  model = AlexNet(num_classes=3, axis_name=parallel.AXIS, **fields)
  tx = optimizer.make_optimizer(0.001)
  state = state_lib.create_train_state(
    model, tx, jax.random.key(0), (size, size, 3)
  )
  rng = np.random.default_rng(0)
  batch = {
    'image': rng.integers(0, 256, (1, 6, size, size, 3), dtype=np.uint8),
    'label': np.arange(6, dtype=np.int32)[None] % 3,
  }
  options = step.StepOptions(127.5, 64.0, parallel.AXIS)
  train_step = jax.pmap(
    functools.partial(step.train_step, options=options),
    axis_name=parallel.AXIS,
    in_axes=(None, 0, None),
    out_axes=None,
    devices=jax.devices()[:1],
  )
  losses, before = [], jax.device_get(state.params)
  for _ in range(5):
    state, sums = train_step(state, batch, jax.random.key(1))
    losses.append(float(sums['loss']) / 6)
  assert losses[-1] < losses[0]
  assert math.isfinite(losses[-1])
  moved = jax.tree.map(
    lambda a, b: float(np.abs(a - b).max()),
    before,
    jax.device_get(state.params),
  )
  # A bias before batch norm has no effect, so only its decay moves it.
  assert all(
    moved[layer]['kernel'] > 0 for layer in moved if 'kernel' in moved[layer]
  )

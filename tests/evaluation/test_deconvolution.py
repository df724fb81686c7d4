"""Deconvolution and occlusion against plain programs."""

import functools

from flax import linen as nn
import jax
from jax import lax
import jax.numpy as jnp
import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.evaluation.deconvolution import Classifier
from alexnet_jax.evaluation.deconvolution import receptive_field
from alexnet_jax.models.alexnet import AlexNet

MEAN, STD = np.float32([90, 110, 130]), 50.0
# Two layers; the second convolution is two towers, pooling windows overlap.
NET = {
  'num_classes': 4,
  'channels': (6, 8),
  'kernels': (5, 3),
  'strides': (2, 1),
  'paddings': ((2, 1), 1),
  'groups': (1, 2),
  'pool_layers': (1, 2),
  'norm_layers': (1,),
  'bias_layers': (2,),
  'hidden': (8,),
  'kernel_init': 'he',
  'lrn_alpha': 0.5,
}
STRIDES, PADS, GROUPS = (2, 1), ((2, 1), (1, 1)), (1, 2)
# What follows the first convolution: fields of the network that say so.
BLOCKS = {
  'relu lrn pool': {},
  'lrn pool relu': {'block_order': ('norm-pool-relu', '')},
  'batch relu pool': {'norm': 'batch', 'norm_before_relu': True},
  'tanh lrn pool': {'activation': 'tanh'},
}


@pytest.fixture(scope='module')
def images():
  return np.random.default_rng(0).integers(0, 256, (9, 24, 24, 3), np.uint8)


def make(**fields):
  model = AlexNet(**NET, **fields)
  made = model.init(jax.random.key(0), np.zeros((1, 24, 24, 3), np.float32))
  rng = np.random.default_rng(1)
  # Statistics, scales and biases that are not 0 and 1.
  variables = jax.tree.map(
    lambda a: np.float32(a + (a.ndim == 1) * rng.uniform(0.1, 0.3, a.shape)),
    made,
  )
  return Classifier(model, variables, MEAN, STD)


def convolve(params, number, x):
  return params['bias'] + lax.conv_general_dilated(
    *(x[None], params['kernel'], (STRIDES[number],) * 2, [PADS[number]] * 2),
    dimension_numbers=('NHWC', 'HWIO', 'NHWC'),
    feature_group_count=GROUPS[number],
  ).squeeze(0)


def pool(x):
  return lax.reduce_window(x, -np.inf, lax.max, (3, 3, 1), (2, 2, 1), 'VALID')


def lrn_scale(x):
  squares = np.pad(np.square(x), ((0, 0), (0, 0), (2, 2)))
  sums = sum(squares[..., i : i + x.shape[2]] for i in range(5))
  return (2 + 0.5 * sums) ** -0.75


def by_hand(variables, image, block, layer, unit, place):
  """(the unit's largest output, the pixels that one output goes back to)."""
  params, x, undo = variables['params'], (image - MEAN) / STD, []
  activation = 'tanh' if 'tanh' in block else 'relu'
  names = f'conv1 {block} conv2 {activation}'.split()
  if layer == 1:
    names = names[: names.index(activation) + 1]
  with jax.numpy_rank_promotion('allow'):
    for name in names:
      function = {'relu': nn.relu, 'tanh': jnp.tanh, 'pool': pool}.get(name)
      if name.startswith('conv'):
        function = functools.partial(convolve, params[name], int(name[-1]) - 1)
      elif name == 'lrn':
        function = functools.partial(jnp.multiply, lrn_scale(x))
      elif name == 'batch':
        stats, norm = variables['batch_stats']['norm1'], params['norm1']
        factor = norm['scale'] / np.sqrt(stats['var'] + 1e-5)
        function = functools.partial(jnp.multiply, factor)
        x = x - stats['mean'] + norm['bias'] / factor
      x, transpose = jax.vjp(function, x)
      # The others are linear, or taken as if they were.
      own = {'relu': nn.relu, 'tanh': lambda y: y}
      undo.append(own.get(name, lambda y, pull=transpose: pull(y)[0]))
    back = jnp.zeros_like(x).at[(*place, unit)].set(x[(*place, unit)])
    for function in reversed(undo):
      back = function(back)
  return float(x[..., unit].max()), np.asarray(back)


@pytest.mark.parametrize('block', BLOCKS)
@pytest.mark.parametrize('layer', [1, 2])
def test_deconvolution_is_that_of_a_plain_program(images, block, layer):
  """Of the strongest output of each unit, which is the largest by hand, too."""
  classifier = make(**BLOCKS[block])
  batch = {'image': images, 'mask': np.ones(len(images), bool)}
  found = classifier.find_strongest([batch], 1)[layer - 1]
  units = np.arange(len(found.values))
  chosen, places = images[found.images[:, 0]], found.positions[:, 0]
  back = classifier.deconvolve(layer, chosen, units, places)
  assert back.shape == (len(units), 24, 24, 3)
  width, stride, start = receptive_field(classifier.model, layer, 24)
  for unit, place in zip(units, map(tuple, places), strict=True):
    largest, wanted = by_hand(
      classifier.variables, chosen[unit], block, layer, unit, place
    )
    assert found.values[unit, 0] == pytest.approx(largest, rel=1e-4, abs=1e-6)
    scale = np.abs(wanted).max()
    np.testing.assert_allclose(back[unit], wanted, rtol=0, atol=1e-4 * scale)
    # All of it lies where the unit looks.
    for axis, position in enumerate(place):
      touched = np.flatnonzero(np.abs(back[unit]).sum((1 - axis, 2)))
      first = position * stride + start
      assert set(touched) <= set(range(first, first + width))


def test_without_any_image_there_is_nothing_to_see(images):
  for empty in ([], [{'image': images, 'mask': np.zeros(9, bool)}]):
    with pytest.raises(UserError, match='no image to look at'):
      make().find_strongest(empty, 3)


def test_windows_of_the_paper_and_of_pooling_before_the_activation():
  widths = [receptive_field(AlexNet(), n, 224)[0] for n in range(1, 6)]
  assert widths == [11, 51, 99, 131, 163]
  order = ('norm-pool-relu', *('',) * 4)
  model = AlexNet(block_order=order)
  assert receptive_field(model, 1, 224) == (11 + 2 * 4, 8, -2)


def test_occlusion_is_that_of_a_plain_loop(images):
  classifier, image = make(), images[0]
  first, found = classifier.occlude(image, 2, square=7, stride=4)
  assert first.tolist() == [0, 4, 8, 12, 16, 17]
  for i, top in enumerate(first):
    for j, left in enumerate(first):
      pixels = image.copy()
      for row in range(top, top + 7):
        for column in range(left, left + 7):
          pixels[row, column] = 128
      x = ((pixels - MEAN) / STD)[None]
      logits = np.float64(classifier.model.apply(classifier.variables, x)[0])
      wanted = np.exp(logits[2]) / np.exp(logits).sum()
      assert found[i, j] == pytest.approx(wanted, rel=1e-4)
  assert np.ptp(found) > 1e-3

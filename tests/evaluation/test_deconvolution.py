"""Deconvolution and occlusion against plain programs in numpy."""

import jax
import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.evaluation.deconvolution import Classifier, receptive_field
from alexnet_jax.models.alexnet import AlexNet
from tests import by_hand

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


def transpose(y, params, number, shape):
  """What a convolution's outputs give back to its inputs."""
  kernel, stride, pads = params['kernel'], STRIDES[number], PADS[number]
  size, _, inputs, units = kernel.shape
  full = np.zeros(np.add(shape, (sum(pads), sum(pads), 0)))
  for row, column, unit in np.ndindex(y.shape):
    top, left = row * stride, column * stride
    first = unit // (units // GROUPS[number]) * inputs
    seen = full[top : top + size, left : left + size, first : first + inputs]
    seen += y[row, column, unit] * kernel[..., unit]
  height, width, _ = shape
  return full[pads[0] : pads[0] + height, pads[0] : pads[0] + width]


def switches(x):
  """{(place, channel): where the largest of its pooling window is}."""
  found = {}
  for row, column, channel in np.ndindex(by_hand.pool(x).shape):
    part = x[2 * row : 2 * row + 3, 2 * column : 2 * column + 3, channel]
    i, j = np.unravel_index(part.argmax(), part.shape)
    found[row, column, channel] = 2 * row + i, 2 * column + j, channel
  return found


def strongest(variables, image, block, layer, unit, place):
  """(the unit's largest output, the pixels that one output goes back to)."""
  params = variables['params']
  pixels = (image - MEAN) / STD

  def convolve(x, number):
    weights = (params[f'conv{number + 1}'][key] for key in ('kernel', 'bias'))
    window = STRIDES[number], PADS[number], GROUPS[number]
    return by_hand.convolve(x, *weights, *window)

  x, undo = convolve(pixels, 0), []
  for name in block.split():
    if layer == 1 and undo and undo[-1][0] == 'relu':
      break
    known = None
    if name == 'relu':
      x = np.maximum(x, 0)
    elif name == 'lrn':
      known = by_hand.lrn_factors(x, 5, 2, 0.5, 0.75)
      x = x * known
    else:
      known = switches(x), x.shape
      x = by_hand.pool(x)
    undo.append((name, known))
  before = x.shape
  if layer == 2:
    x = np.maximum(convolve(x, 1), 0)
  largest, back = x[..., unit].max(), np.zeros(x.shape)
  back[place][unit] = x[place][unit]
  assert x[place][unit] == pytest.approx(largest, rel=1e-4)
  if layer == 2:
    back = transpose(back, params['conv2'], 1, before)
  for name, known in reversed(undo):
    if name == 'relu':
      back = np.maximum(back, 0)
    elif name == 'lrn':
      back = back * known
    elif name == 'pool':
      pooled, back = back, np.zeros(known[1])
      for output, where in known[0].items():
        back[where] += pooled[output]
  return largest, transpose(back, params['conv1'], 0, pixels.shape)


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
    largest, wanted = strongest(
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

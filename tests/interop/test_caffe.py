"""Caffe's files against a forward pass by hand in Caffe's own conventions.

A network is a list of `Spec`s. They become a file through an encoder here that
knows nothing of the product.
"""

import dataclasses
import struct

import jax
import numpy as np
import pytest

from alexnet_jax.errors import UserError
from alexnet_jax.interop import caffe_files, imported_run, load
from alexnet_jax.interop.networks import Options
from alexnet_jax.models import variants
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.training import build, checkpoint
from tests import by_hand
from tests.interop.conftest import HIDDEN, NARROW

pytestmark = pytest.mark.usefixtures('narrow')
CROP = 227
CLASSES = 7
ALEXNET, CAFFENET = ('ReLU', 'LRN', 'Pooling'), ('ReLU', 'Pooling', 'LRN')
MEAN = np.array([104.0, 117, 123])


@dataclasses.dataclass
class Spec:
  name: str
  type: str
  settings: dict = dataclasses.field(default_factory=dict)
  weights: list = dataclasses.field(default_factory=list)
  bottom: str = ''
  top: str = ''


def network(order=ALEXNET, colors=3):
  """bvlc_alexnet's layers, narrow; caffenet's with another order."""
  rng = np.random.default_rng(0)
  specs = [Spec('data', 'Input', {'dim': (10, colors, CROP, CROP)}, top='data')]

  def add(name, kind, *rest):
    in_place = kind in ('ReLU', 'Dropout')
    bottom = specs[-1].top
    specs.append(Spec(name, kind, *rest, bottom, bottom if in_place else name))

  def weights(*shape):
    # Large numbers as far as norms go, which would not show otherwise.
    scale = (0.02 if len(shape) > 2 and i == 2 else 2) / np.prod(
      shape[1:]
    ) ** 0.5
    kernel = rng.normal(0, scale, shape)
    return [np.float32(kernel), np.float32(rng.normal(0, 0.5, shape[0]))]

  inputs = colors
  for i, outputs in enumerate(NARROW):
    size, group = (11, 5, 3, 3, 3)[i], (1, 2, 1, 2, 2)[i]
    settings = {'num_output': outputs, 'kernel_size': size, 'group': group}
    settings |= {'stride': (4, 1)[i > 0], 'pad': (0, 2, 1, 1, 1)[i]}
    shape = outputs, inputs // group, size, size
    add(f'conv{i + 1}', 'Convolution', settings, weights(*shape))
    for kind in order:
      if kind == 'ReLU':
        add(f'relu{i + 1}', kind, {}, [])
      elif kind == 'LRN' and i in (0, 1):
        settings = {'local_size': 5, 'alpha': 1e-4, 'beta': 0.75}
        add(f'norm{i + 1}', kind, settings, [])
      elif kind == 'Pooling' and i in (0, 1, 4):
        settings = {'pool': 0, 'kernel_size': 3, 'stride': 2}
        add(f'pool{i + 1}', kind, settings, [])
    inputs = outputs
  inputs *= 36
  for i, outputs in enumerate((*HIDDEN, CLASSES)):
    settings = {'num_output': outputs}
    add(f'fc{i + 6}', 'InnerProduct', settings, weights(outputs, inputs))
    if i < 2:
      add(f'relu{i + 6}', 'ReLU', {}, [])
      add(f'drop{i + 6}', 'Dropout', {'dropout_ratio': 0.5}, [])
    inputs = outputs
  add('prob', 'Softmax', {}, [])
  return specs


# Written by hand, from caffe.proto: the numbers of a layer's settings, in old
# files of these and of the layer's type, and of the settings' own fields.
NUMBERS = {
  'Convolution': (
    106,
    10,
    4,
    'num_output 1 pad 3 kernel_size 4 group 5 stride 6 dilation 18',
  ),
  'Dropout': (108, 12, 6, 'dropout_ratio 1'),
  'InnerProduct': (117, 17, 14, 'num_output 1 axis 5'),
  'LRN': (118, 18, 15, 'local_size 1 alpha 2 beta 3 norm_region 4 k 5'),
  'Pooling': (121, 19, 17, 'pool 1 kernel_size 2 stride 3 pad 4'),
  'ReLU': (0, 0, 18, ''),
  'Softmax': (0, 0, 20, ''),
  'Data': (0, 0, 5, ''),
}


def varint(number):
  out = b''
  while number > 127:
    out += bytes([number % 128 + 128])
    number //= 128
  return out + bytes([number])


def field(number, value):
  """The bytes of one field: of bytes, a text, a whole number or a float."""
  if isinstance(value, int):
    return varint(number * 8) + varint(value)
  if isinstance(value, float):
    return varint(number * 8 + 5) + struct.pack('<f', value)
  value = value.encode() if isinstance(value, str) else value
  return varint(number * 8 + 2) + varint(len(value)) + value


def blob_by_hand(array, old):
  data = array.astype('<f4').tobytes()
  half = len(data) // 8 * 4  # packed numbers may be split
  if old:
    shape = (1,) * (4 - array.ndim) + array.shape
    head = b''.join(field(1 + i, n) for i, n in enumerate(shape))
  else:
    head = field(7, field(1, b''.join(varint(n) for n in array.shape)))
  diff = field(6, np.full(3, np.nan, '<f4').tobytes())
  return head + field(5, data[:half]) + field(5, data[half:]) + diff


def layer_by_hand(spec, old=False):
  """A layer as in Caffe's files, with fields that nobody here reads."""
  name, kind, bottom, top, blobs, unread = (
    (4, 5, 2, 3, 6, 7) if old else (1, 2, 3, 4, 7, 5)
  )
  *numbers, old_kind, own = NUMBERS.get(spec.type, (0, 0, 0, ''))
  out = field(name, spec.name) + field(kind, old_kind if old else spec.type)
  out += field(bottom, spec.bottom) if spec.bottom else b''
  out += field(top, spec.top) + field(unread, 1.0)  # blobs_lr, loss_weight
  for array in spec.weights:
    out += field(blobs, blob_by_hand(array, old))
  if spec.type == 'Input':
    dims = field(1, b''.join(varint(n) for n in spec.settings['dim']))
    out += field(143, field(1, dims))
  elif spec.type == 'Data':  # data_param, with its old crop_size
    out += field(11, field(1, 'a path') + field(5, CROP))
  elif own:
    names = own.split()
    places = dict(zip(names[::2], map(int, names[1::2]), strict=True))
    values = (field(places[k], v) for k, v in spec.settings.items())
    out += field(numbers[old], b''.join(values))
  return out


def file_by_hand(specs, old=False):
  layers = (field(2 if old else 100, layer_by_hand(s, old)) for s in specs)
  return field(1, 'AlexNet') + b''.join(layers)


def message(specs, old=False):
  """The specs as a NetParameter of the product, to be changed."""
  return caffe_files.NetParameter.FromString(file_by_hand(specs, old))


def forward(specs, x):
  """Caffe's logits of one image, by hand.

  Args:
    specs: the network.
    x: [height, width, 3], blue, green, red, minus the mean.
  """
  for spec in specs:
    settings = spec.settings
    if spec.type == 'Convolution':
      kernel, bias = spec.weights
      window = settings['stride'], (settings['pad'],) * 2, settings['group']
      x = by_hand.convolve(x, kernel.transpose(2, 3, 1, 0), bias, *window)
    elif spec.type == 'ReLU':
      x = np.maximum(x, 0)
    elif spec.type == 'LRN':
      x = x * by_hand.lrn_factors(x, 5, 1, 1e-4 / 5, 0.75)
    elif spec.type == 'Pooling':
      x = by_hand.pool(x)
    elif spec.type == 'InnerProduct':
      x = x.transpose(2, 0, 1) if x.ndim == 3 else x
      x = spec.weights[0].astype(np.float64) @ x.reshape(-1) + spec.weights[1]
  return x


def assert_logits(path, specs, images, mean, mean_file=''):
  """Ours are Caffe's, of uint8 images [batch, height, width, 3].

  Args:
    mean: blue, green, red, [3] or [height, width, 3].
  """
  imported = read(path, mean_file)
  network = AlexNet(**imported.model, num_classes=imported.num_classes)
  pixels = images.astype(np.float32) - imported.mean
  found = jax.jit(network.apply)({'params': imported.params}, pixels)
  for image, ours in zip(images, found, strict=True):
    expected = forward(specs, image[:, :, ::-1] - mean)
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
  return imported


@pytest.fixture
def images():
  shape = (1, CROP, CROP, 3)
  return np.random.default_rng(1).integers(0, 256, shape, np.uint8)


@pytest.fixture
def save(tmp_path):
  def write(content):
    path = tmp_path / 'net.caffemodel'
    if not isinstance(content, bytes):
      content = content.SerializeToString()
    path.write_bytes(content)
    return path

  return write


def read(path, mean_file=''):
  return caffe_files.read(path, Options(mean_file=mean_file))


def find(specs, name):
  return next(spec for spec in specs if spec.name == name)


@pytest.mark.parametrize(
  ('order', 'old', 'name'),
  [(ALEXNET, True, 'alexnet_caffe'), (CAFFENET, False, 'caffenet')],
)
def test_logits_are_caffes(order, old, name, save, images):
  specs = network(order)
  # The published files are old and have a data layer, with an old crop_size.
  data = [Spec('data', 'Data', top='data')] if old else specs[:1]
  path = save(file_by_hand([*data, *specs[1:]], old))
  imported = assert_logits(path, specs, images, MEAN)
  assert imported.model == variants.fields(name)
  assert imported.data['crop_size'] == CROP
  assert imported.data['resize_size'] == 256
  imported_run.make_config(imported)  # is valid


def test_other_ways_to_write_the_same(save):
  expected = read(save(file_by_hand(network())))
  # The older format, the input's size apart, a default left out.
  net = message(network()[1:], old=True)
  net.input.append('data')
  net.input_dim.extend([10, 3, CROP, CROP])
  conv3 = find(net.layers, 'conv3').convolution_param
  conv3.pad.append(1)  # down and across
  conv3.ClearField('stride')
  # Numbers in double precision, and as NVIDIA's Caffe writes them.
  for layer, head in (('conv2', b''), ('conv4', field(10, 0))):
    for blob in find(net.layers, layer).blobs:
      raw = np.frombuffer(b''.join(blob.data), '<f4').astype('<f8').tobytes()
      blob.ClearField('data')
      blob.MergeFromString(head + field(12 if head else 8, raw))
  actual = read(save(net))
  assert actual.model == expected.model
  assert actual.data == expected.data
  jax.tree.map(np.testing.assert_array_equal, actual.params, expected.params)


@pytest.fixture
def mean_file(tmp_path):
  """Writes a mean image [3, height, width] as Caffe does."""

  def write(image, old=True):
    path = tmp_path / 'mean.binaryproto'
    path.write_bytes(blob_by_hand(image if old else image[None], old))
    return path

  return write


@pytest.mark.parametrize(
  ('shape', 'corner', 'old'),
  [((229, 253), (1, 13), False), ((CROP, CROP), (0, 0), True)],
)
def test_a_mean_image_is_subtracted_pixel_by_pixel(
  shape, corner, old, save, mean_file, images, tmp_path, caplog
):
  """Caffe cuts its middle out, as that of the images, which have its size."""
  specs = network()
  image = np.random.default_rng(2).uniform(0, 255, (3, *shape))
  top, left = corner
  part = image[:, top : top + CROP, left : left + CROP].astype(np.float32)
  path, file = save(file_by_hand(specs)), mean_file(image, old)
  assert_logits(path, specs, images, part.transpose(1, 2, 0), file)
  workdir = tmp_path / 'run'
  line = f'--from caffe {path} --mean {file} --workdir {workdir}'
  assert load.main(line.split()) == 0
  config = checkpoint.open_run(workdir).config
  assert config.data.mean == 'image'
  assert config.data.resize_size == min(shape)
  mean = build.stored_mean(config, workdir)
  np.testing.assert_array_equal(mean, part[::-1].transpose(1, 2, 0))
  assert caplog.text == ''


def test_a_network_of_gray_images(save, mean_file, images):
  specs = network(colors=1)
  mean = np.full((1, CROP, CROP), 99, np.float32)
  path, file = save(file_by_hand(specs)), mean_file(mean, False)
  imported = assert_logits(path, specs, images[..., :1], 99.0, file)
  assert imported.data['channels'] == 1
  with pytest.raises(UserError, match=r'mean: expected one level.*gray'):
    read(path)


def test_the_files_own_mean_and_scale(save, caplog):
  net = message(network())
  read(save(net))
  assert 'taken is 123,117,104 for red, green and blue: give' in caplog.text
  caplog.clear()
  transform = net.layer[0].transform_param
  transform.mean_value.extend([10, 20, 30])
  transform.scale = 0.5
  transform.crop_size = CROP
  imported = read(save(net))
  assert imported.mean.tolist() == [30, 20, 10]
  assert imported.data['std_rgb'] == (2, 2, 2)
  assert caplog.text == ''


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (blob_by_hand(np.ones((3, 4, 4)), False)[:40], 'truncated'),
    (blob_by_hand(np.ones((4, 4)), True), r'found the shape \(1, 4, 4\)'),
    (blob_by_hand(np.full((3, 256, 256), np.nan), False), 'found nan to nan'),
    (blob_by_hand(np.ones((3, 9, 256)), True), r'227 x 227 .*\(3, 9, 256\)'),
    (file_by_hand(network()), 'mean image|binary protobuf BlobProto'),
  ],
)
def test_an_unfit_mean_is_refused(content, words, save, tmp_path):
  file = tmp_path / 'mean.binaryproto'
  file.write_bytes(content)
  path = save(file_by_hand(network()))
  with pytest.raises(UserError, match=f'mean.binaryproto: .*({words})'):
    read(path, file)


def test_no_part_of_a_file_comes_in(save):
  specs = network()
  ends = [len(file_by_hand(specs[:i])) for i in range(1, len(specs))]
  # The head is in the last layer but one: no cut before its end is a network.
  content, end = file_by_hand(specs), ends[-1]
  cuts = {*ends, *(n - 1 for n in ends), *range(1, end, end // 20)} - {end}
  for cut in sorted(cuts):
    with pytest.raises(UserError, match=r'net\.caffemodel: .*(expected|found)'):
      read(save(content[:cut]))
  assert read(save(content[:end])).num_classes == CLASSES


@pytest.mark.parametrize(
  ('name', 'changes', 'words'),
  [
    (
      'conv2',
      {'weights': lambda w, b: [w[:, :, 1:], b]},
      r'expected conv2 kernel \[5, 5, 8, 32\].*found conv2 kernel \[4, 5, 8',
    ),
    (
      'fc7',
      {'weights': lambda w, b: [w[None] + [[[0]], [[1]]], b]},
      r'fc7 .*2 dimensions, found the shape \(2, 48, 64\)',
    ),
    ('fc7', {'weights': lambda w, b: [w, b, b]}, 'fc7 .*2 arrays .*found 3'),
    ('norm1', {'type': 'BatchNorm'}, r'layers of bvlc.*norm1 \(BatchNorm\)'),
    ('relu4', {'type': 'Softmax'}, 'the layers of bvlc.* fc8'),
    ('data', {'dim': (1, 3, 3, 3)}, 'images of 227 pixels, found 3'),
    ('data', {'dim': (1, 2, 227, 227)}, r'\(N, 3 or 1, height, width\)'),
    ('conv1', {'pad': 1}, 'conv1 .*expected pad 0, found 1'),
    ('conv2', {'dilation': 2}, 'expected dilation 1, found 2'),
    ('pool2', {'pool': 1}, 'pool2 .*expected pool 0, found 1'),
    ('norm2', {'alpha': np.nan}, 'expected alpha 0.0001, found nan'),
    ('fc7', {'bottom': 'pool5'}, r"the bottom \['fc6'\], .*\['pool5'\]"),
  ],
)
def test_an_unfit_network_is_refused(name, changes, words, save):
  specs = network()
  spec = find(specs, name)
  for key, value in changes.items():
    if key == 'weights':
      spec.weights = value(*spec.weights)
    elif key in ('type', 'bottom'):
      setattr(spec, key, value)
    else:
      spec.settings[key] = value
  with pytest.raises(UserError, match=f'(?s)net.caffemodel: .*{words}'):
    read(save(file_by_hand(specs)))


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (
      lambda net: net.layer[1].blobs[0].data.append(bytes(4)),
      'expected 23,232 bytes of .*, found 23,236',
    ),
    (
      lambda net: setattr(net.layer[2].relu_param, 'negative_slope', 0.5),
      'relu1 .*negative_slope 0, found 0.5',
    ),
    (
      lambda net: setattr(net.layer[1].convolution_param, 'pad_h', 1),
      'conv1 .*expected pad_h 0, found 1',
    ),
    (
      lambda net: setattr(net.layer[0].transform_param, 'crop_size', 64),
      'expected images of 227 pixels, found 64',
    ),
    (lambda net: net.layers.add(name='conv1'), 'both `layer` and `layers`'),
  ],
)
def test_an_unfit_message_is_refused(change, words, save):
  net = message(network())
  change(net)
  with pytest.raises(UserError, match=f'net.caffemodel: .*{words}'):
    read(save(net))

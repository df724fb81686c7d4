"""Caffe's files against a forward pass by hand in Caffe's own conventions.

A network is a list of `Spec`s. They become a file through the messages of
`caffe_schema` or through an encoder here that knows nothing of them.
"""

import dataclasses
import re
import struct

import jax
import numpy as np
import pytest

from alexnet_jax import validation
from alexnet_jax.config import make_config
from alexnet_jax.errors import UserError
from alexnet_jax.interop import caffe_files
from alexnet_jax.interop import caffe_schema
from alexnet_jax.interop import load
from alexnet_jax.models import variants
from alexnet_jax.models.alexnet import AlexNet
from alexnet_jax.training import build
from alexnet_jax.training import checkpoint
from alexnet_jax.validation import validate
from tests.system import commands

CROP = 65  # conv1: 31, pool1: 15, pool2: 7, pool5: 3
CHANNELS = (8, 12, 8, 12, 10)
GROUPS = (1, 2, 1, 2, 2)
KERNELS = (5, 5, 3, 3, 3)
STRIDES = (2, 1, 1, 1, 1)
PADDINGS = (0, 2, 1, 1, 1)
HIDDEN = (11, 9)
CLASSES = 7
POSITIONS = 9  # of pool5
LRN = {'local_size': 5, 'alpha': 0.0625, 'beta': 0.75, 'k': 1.5}
POOL = {'pool': 0, 'kernel_size': 3, 'stride': 2}


@dataclasses.dataclass
class Spec:
  name: str
  type: str
  settings: dict = dataclasses.field(default_factory=dict)
  weights: list = dataclasses.field(default_factory=list)
  bottom: str = ''
  top: str = ''


def network(order=('ReLU', 'LRN', 'Pooling'), seed=0):
  """bvlc_alexnet's layers, tiny; caffenet's with another order."""
  rng = np.random.default_rng(seed)
  specs = [Spec('data', 'Input', {'dim': (10, 3, CROP, CROP)}, top='data')]

  def add(name, kind, *rest):
    in_place = kind in ('ReLU', 'Dropout')
    bottom = specs[-1].top
    specs.append(Spec(name, kind, *rest, bottom, bottom if in_place else name))

  def weights(*shape):
    scale = 2 / np.prod(shape[1:]) ** 0.5
    kernel = rng.normal(0, scale / (100 if shape[1] == 3 else 1), shape)
    return [
      kernel.astype(np.float32),
      rng.normal(0, 0.5, shape[0]).astype(np.float32),
    ]

  inputs = 3
  for i, outputs in enumerate(CHANNELS):
    settings = {
      'num_output': outputs,
      'kernel_size': KERNELS[i],
      'stride': STRIDES[i],
      'pad': PADDINGS[i],
      'group': GROUPS[i],
    }
    shape = outputs, inputs // GROUPS[i], KERNELS[i], KERNELS[i]
    add(f'conv{i + 1}', 'Convolution', settings, weights(*shape))
    for kind in order:
      if kind == 'ReLU':
        add(f'relu{i + 1}', kind, {}, [])
      elif kind == 'LRN' and i in (0, 1):
        add(f'norm{i + 1}', kind, dict(LRN), [])
      elif kind == 'Pooling' and i in (0, 1, 4):
        add(f'pool{i + 1}', kind, dict(POOL), [])
    inputs = outputs
  inputs *= POSITIONS
  for i, outputs in enumerate((*HIDDEN, CLASSES)):
    settings = {'num_output': outputs}
    add(f'fc{i + 6}', 'InnerProduct', settings, weights(outputs, inputs))
    if i < 2:
      add(f'relu{i + 6}', 'ReLU', {}, [])
      add(f'drop{i + 6}', 'Dropout', {'dropout_ratio': 0.25}, [])
    inputs = outputs
  add('prob', 'Softmax', {}, [])
  return specs


# Written by hand, from caffe.proto: numbers and wire types of fields. 0 is a
# varint, 5 a float of four bytes.
SETTINGS = {
  'Convolution': (106, 10),
  'Dropout': (108, 12),
  'InnerProduct': (117, 17),
  'LRN': (118, 18),
  'Pooling': (121, 19),
}
FIELDS = {
  'Convolution': {
    'num_output': (1, 0),
    'pad': (3, 0),
    'kernel_size': (4, 0),
    'group': (5, 0),
    'stride': (6, 0),
  },
  'Dropout': {'dropout_ratio': (1, 5)},
  'InnerProduct': {'num_output': (1, 0)},
  'LRN': {
    'local_size': (1, 0),
    'alpha': (2, 5),
    'beta': (3, 5),
    'k': (5, 5),
  },
  'Pooling': {'pool': (1, 0), 'kernel_size': (2, 0), 'stride': (3, 0)},
}
V1 = {
  **{'Convolution': 4, 'Dropout': 6, 'InnerProduct': 14, 'LRN': 15},
  **{'Pooling': 17, 'ReLU': 18, 'Softmax': 20, 'Data': 5},
}


def varint(number):
  out = b''
  while number > 127:
    out += bytes([number % 128 + 128])
    number //= 128
  return out + bytes([number])


def field(number, value, wire=2):
  """The bytes of one field; `value` is bytes, a text or a number."""
  tag = varint(number * 8 + wire)
  if wire == 0:
    return tag + varint(value)
  if wire == 5:
    return tag + struct.pack('<f', value)
  value = value.encode() if isinstance(value, str) else value
  return tag + varint(len(value)) + value


def blob_by_hand(array, old):
  data = array.astype('<f4').tobytes()
  half = len(data) // 8 * 4  # packed numbers may come in pieces
  if old:
    shape = (1,) * (4 - array.ndim) + array.shape
    head = b''.join(field(1 + i, n, 0) for i, n in enumerate(shape))
  else:
    head = field(7, field(1, b''.join(varint(n) for n in array.shape)))
  diff = field(6, np.full(3, np.nan, '<f4').tobytes())
  return head + field(5, data[:half]) + field(5, data[half:]) + diff


def layer_by_hand(spec, old=False):
  """A layer as in Caffe's files, with fields that nobody here reads."""
  name, kind, bottom, top, blobs, unread = (
    (4, 5, 2, 3, 6, 7) if old else (1, 2, 3, 4, 7, 5)
  )
  out = field(name, spec.name)
  if old:
    out += field(kind, V1[spec.type], 0)
  else:
    out += field(kind, spec.type)
  out += field(bottom, spec.bottom) if spec.bottom else b''
  out += field(top, spec.top) + field(unread, 1.0, 5)  # blobs_lr, loss_weight
  for array in spec.weights:
    out += field(blobs, blob_by_hand(array, old))
  if spec.type == 'Input':
    dims = field(1, b''.join(varint(n) for n in spec.settings['dim']))
    out += field(143, field(1, dims))
  elif spec.type == 'Data':  # data_param, with its old crop_size
    out += field(11, field(1, 'a path') + field(5, CROP, 0))
  elif spec.type in SETTINGS:
    fields = FIELDS[spec.type]
    values = (
      field(*fields[k][:1], v, fields[k][1]) for k, v in spec.settings.items()
    )
    out += field(SETTINGS[spec.type][old], b''.join(values))
  return out


def file_by_hand(specs, old=False):
  layers = (field(2 if old else 100, layer_by_hand(s, old)) for s in specs)
  return field(1, 'AlexNet') + b''.join(layers)


def message(specs, old=False):
  """The specs as a NetParameter of ours."""
  net = caffe_schema.NetParameter(name='AlexNet')
  for spec in specs:
    layer = (net.layers if old else net.layer).add(name=spec.name)
    layer.type = caffe_schema.V1_TYPES[spec.type] if old else spec.type
    layer.bottom.extend([spec.bottom] if spec.bottom else [])
    layer.top.append(spec.top)
    for array in spec.weights:
      layer.blobs.append(blob(array, old))
    if spec.type == 'Input':
      layer.input_param.shape.add(dim=spec.settings['dim'])
    elif spec.type in SETTINGS:
      name = re.sub('(?<=[a-z])(?=[A-Z])', '_', spec.type).lower()
      settings = getattr(layer, f'{name}_param')
      for key, value in spec.settings.items():
        if key in ('kernel_size', 'stride', 'pad', 'dilation'):
          getattr(settings, key).append(value)
        else:
          setattr(settings, key, value)
  return net


def blob(array, old=False):
  array = np.asarray(array, np.float32)
  out = caffe_schema.BlobProto(data=[array.tobytes()])
  if old:
    shape = (1,) * (4 - array.ndim) + array.shape
    out.num, out.channels, out.height, out.width = shape
  else:
    out.shape.dim.extend(array.shape)
  return out


def forward(specs, x):
  """Caffe's forward pass of one image, by hand.

  Args:
    specs: the network.
    x: [3, height, width], blue, green, red, minus the mean.

  Returns:
    Logits, float64.
  """
  for spec in specs:
    if spec.type == 'Convolution':
      x = convolve(x, *spec.weights, **spec.settings)
    elif spec.type == 'ReLU':
      x = np.maximum(x, 0)
    elif spec.type == 'LRN':
      x = normalize(x, **spec.settings)
    elif spec.type == 'Pooling':
      x = pool(x, spec.settings['kernel_size'], spec.settings['stride'])
    elif spec.type == 'InnerProduct':
      x = spec.weights[0].astype(np.float64) @ x.reshape(-1) + spec.weights[1]
  return x


def convolve(x, kernel, bias, *, kernel_size, stride, pad, group, num_output):
  x = np.pad(x, [(0, 0), (pad, pad), (pad, pad)])
  size = (x.shape[1] - kernel_size) // stride + 1
  out = np.empty((num_output, size, size))
  inputs, outputs = len(x) // group, num_output // group
  for i, j in np.ndindex(size, size):
    window = x[:, i * stride :, j * stride :][:, :kernel_size, :kernel_size]
    for g in range(group):
      part = slice(g * outputs, (g + 1) * outputs)
      read = window[g * inputs : (g + 1) * inputs].reshape(-1)
      out[part, i, j] = kernel[part].reshape(outputs, -1) @ read
  return out + bias[:, None, None]


def normalize(x, local_size, alpha, beta, k=1.0):
  out = np.empty_like(x)
  for c in range(len(x)):
    near = x[max(0, c - local_size // 2) : c + local_size // 2 + 1]
    bracket = k + alpha / local_size * (near**2).sum(0)
    out[c] = x[c] / bracket**beta
  return out


def pool(x, size, stride):
  count = -(-(x.shape[1] - size) // stride) + 1  # rounded up
  out = np.empty((len(x), count, count))
  for i, j in np.ndindex(count, count):
    window = x[
      :, i * stride : i * stride + size, j * stride : j * stride + size
    ]
    out[:, i, j] = window.max((1, 2))
  return out


def logits(imported, images):
  """Ours, of uint8 images [batch, height, width, 3], red, green, blue."""
  network = AlexNet(**imported.model, num_classes=imported.num_classes)
  pixels = images.astype(np.float32) - imported.mean
  pixels /= np.array(imported.data['std_rgb'] or (1,), np.float32)
  return jax.jit(network.apply)({'params': imported.params}, pixels)


@pytest.fixture
def images():
  shape = (2, CROP, CROP, 3)
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


def find(specs, name):
  return next(spec for spec in specs if spec.name == name)


def by_messages(specs, old):
  return message(specs, old).SerializeToString()


def with_old_data(specs):
  """As the published files: a data layer, whose size is an old field."""
  return [Spec('data', 'Data', top='data'), *specs[1:]]


@pytest.mark.parametrize(
  ('order', 'writer', 'old'),
  [
    (('ReLU', 'LRN', 'Pooling'), by_messages, False),  # bvlc_alexnet
    (('ReLU', 'LRN', 'Pooling'), file_by_hand, True),
    (('ReLU', 'Pooling', 'LRN'), file_by_hand, False),  # caffenet
    (('ReLU', 'Pooling', 'LRN'), by_messages, True),
    (('LRN', 'Pooling', 'ReLU'), file_by_hand, True),
  ],
)
def test_logits_are_caffes(order, writer, old, save, images):
  specs = network(order)
  written = with_old_data(specs) if old and writer is file_by_hand else specs
  if old and writer is by_messages:
    net = message(specs[1:], old)
    net.input.append('data')
    net.input_dim.extend([10, 3, CROP, CROP])
    content = net.SerializeToString()
  else:
    content = writer(written, old)
  actual = logits(caffe_files.read(save(content)), images)
  for image, ours in zip(images, actual, strict=True):
    x = image[:, :, ::-1].transpose(2, 0, 1).astype(np.float64)
    expected = forward(specs, x - np.array([104, 117, 123])[:, None, None])
    assert np.ptp(expected) > 1
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize(
  ('order', 'orders'),
  [
    (('ReLU', 'LRN', 'Pooling'), ()),
    (
      ('ReLU', 'Pooling', 'LRN'),
      ('relu-pool-norm', 'relu-pool-norm', '', '', ''),
    ),
    (
      ('LRN', 'Pooling', 'ReLU'),
      ('norm-pool-relu', 'norm-pool-relu', '', '', 'pool-relu'),
    ),
  ],
)
def test_settings_are_read_from_the_file(order, orders, save):
  imported = caffe_files.read(save(message(network(order))))
  assert imported.model == {
    'channels': CHANNELS,
    'kernels': KERNELS,
    'strides': STRIDES,
    'paddings': PADDINGS,
    'groups': GROUPS,
    'pool_layers': (1, 2, 5),
    'pool_size': 3,
    'pool_stride': 2,
    'norm': 'lrn',
    'norm_layers': (1, 2),
    'norm_before_relu': False,
    'norm_hidden': (),
    'block_order': orders,
    'lrn_size': 5,
    'lrn_k': 1.5,
    'lrn_alpha': 0.0625,
    'lrn_beta': 0.75,
    'lrn_convention': 'caffe',
    'lrn_groups': 1,
    'hidden': HIDDEN,
    'width_multiplier': 1.0,
    'dropout': 0.25,
    'dropout_position': 'after',
    'dropout_scaling': 'training',
  }
  assert imported.num_classes == CLASSES
  assert imported.batch_stats == {}
  assert imported.mean.tolist() == [123, 117, 104]
  assert imported.mean.dtype == np.float32
  assert imported.data['crop_size'] == CROP
  assert imported.data['resize_size'] == 256
  config = make_config()
  config.model.update(imported.model)
  config.data.update(imported.data)
  validate(config)


def test_weights_change_their_layout_only(save):
  specs = network()
  params = caffe_files.read(save(message(specs))).params
  assert [*params] == [f'conv{i}' for i in range(1, 6)] + [
    *('dense1', 'dense2', 'head')
  ]
  conv1, fc6 = find(specs, 'conv1').weights, find(specs, 'fc6').weights
  # Out 4, blue, row 1, column 3; out 2, channel 7, row 1, column 2.
  assert params['conv1']['kernel'][1, 3, 2, 4] == conv1[0][4, 0, 1, 3]
  assert (
    params['dense1']['kernel'][(1 * 3 + 2) * 10 + 7, 2]
    == (fc6[0][2, 7 * 9 + 1 * 3 + 2])
  )
  for name, layer in zip(params, (s for s in specs if s.weights), strict=True):
    kernel, bias = params[name]['kernel'], params[name]['bias']
    assert kernel.dtype == bias.dtype == np.float32
    np.testing.assert_array_equal(bias, layer.weights[1])
    np.testing.assert_array_equal(
      np.sort(kernel, None), np.sort(layer.weights[0], None)
    )


def test_other_ways_to_write_the_same(save):
  expected = caffe_files.read(save(message(network()))).params
  specs = network()
  # Transposed weights and doubles, no bias, both sides named.
  net = message(specs)
  layers = {layer.name: layer for layer in net.layer}
  fc6, fc7 = layers['fc6'], layers['fc7']
  fc6.inner_product_param.transpose = True
  fc6.blobs[0].CopyFrom(blob(find(specs, 'fc6').weights[0].T))
  fc7.inner_product_param.bias_term = False
  del fc7.blobs[1]
  doubles = find(specs, 'fc7').weights[0].astype('<f8').tobytes()
  fc7.blobs[0].ClearField('data')
  fc7.blobs[0].double_data.append(doubles)
  window = layers['conv1'].convolution_param
  window.ClearField('kernel_size')
  window.kernel_h = window.kernel_w = 5
  layers['conv3'].convolution_param.pad.append(1)  # down and across
  actual = caffe_files.read(save(net)).params
  expected['dense2']['bias'] = np.zeros(HIDDEN[1])
  jax.tree.map(np.testing.assert_array_equal, actual, expected)


@pytest.mark.parametrize(('read', 'fits'), [('a', True), ('b', False)])
def test_an_array_that_several_layers_read(read, fits, save):
  specs = network()
  place = specs.index(find(specs, 'relu3'))
  net = message(specs[:place])
  # relu3 works in place: of the two names, b is what was there before it.
  net.layer.add(name='split', type='Split', bottom=['conv3'], top=['a', 'b'])
  net.layer.add(name='relu3', type='ReLU', bottom=['a'], top=['a'])
  net.layer.add(name='silence', type='Silence', bottom=['b'])
  find(specs, 'conv4').bottom = read
  net.MergeFrom(message(specs[place + 1 :]))
  if fits:
    assert caffe_files.read(save(net)).num_classes == CLASSES
  else:
    with pytest.raises(UserError, match=r"conv4 .*expected the bottom 'a'"):
      caffe_files.read(save(net))


def test_a_network_without_norm_or_dropout(save, images):
  specs = [
    spec
    for spec in network(('ReLU', 'Pooling'))
    if spec.type not in ('Dropout', 'Softmax')
  ]
  imported = caffe_files.read(save(file_by_hand(specs)))
  assert imported.model['norm'] == 'none'
  assert imported.model['dropout'] == 0
  x = images[0][:, :, ::-1].transpose(2, 0, 1)
  expected = forward(specs, x - np.array([104.0, 117, 123])[:, None, None])
  np.testing.assert_allclose(
    logits(imported, images)[0], expected, rtol=0, atol=1e-4
  )


def test_dropout_before_the_dense_layers(save):
  specs = [spec for spec in network() if spec.type != 'Dropout']
  for name in ('fc7', 'fc6'):
    place = specs.index(find(specs, name))
    top = specs[place].bottom
    specs.insert(place, Spec(f'drop{name}', 'Dropout', {}, [], top, top))
  model = caffe_files.read(save(message(specs))).model
  assert (model['dropout'], model['dropout_position']) == (0.5, 'before')


# Means and sizes of images.


@pytest.fixture
def mean_file(tmp_path):
  """Writes a mean image [3, height, width] as Caffe does."""

  def write(image, old=True):
    path = tmp_path / 'mean.binaryproto'
    path.write_bytes(blob_by_hand(image if old else image[None], old))
    return path

  return write


def mean_image(height, width):
  """Colors, rows and columns that differ."""
  return np.random.default_rng(2).uniform(0, 255, (3, height, width))


@pytest.mark.parametrize('old', [False, True])
@pytest.mark.parametrize(
  ('shape', 'corner'),
  [((80, 80), (7, 7)), ((70, 91), (2, 13)), ((CROP, CROP), (0, 0))],
)
def test_a_mean_image_is_subtracted_pixel_by_pixel(
  shape, corner, old, save, mean_file, images, caplog
):
  """Caffe cuts its middle out, as that of the images, which have its size."""
  specs, image = network(), mean_image(*shape)
  imported = caffe_files.read(save(message(specs)), mean_file(image, old))
  assert imported.data['mean'] == 'image'
  assert imported.data['resize_size'] == min(shape)
  assert imported.mean.dtype == np.float32
  top, left = corner
  part = image[:, top : top + CROP, left : left + CROP].astype(np.float32)
  np.testing.assert_array_equal(imported.mean, part[::-1].transpose(1, 2, 0))
  actual = logits(imported, images)
  for pixels, ours in zip(images, actual, strict=True):
    x = pixels[:, :, ::-1].transpose(2, 0, 1).astype(np.float64)
    expected = forward(specs, x - part)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=1e-4)
  assert caplog.text == ''


@pytest.mark.slow
def test_a_mean_image_goes_into_the_run(save, mean_file, tmp_path):
  image, workdir = mean_image(80, 80), tmp_path / 'run'
  code = load.main(
    [
      *('--from', 'caffe', str(save(message(network())))),
      *('--mean', str(mean_file(image)), '--workdir', str(workdir)),
    ]
  )
  assert code == 0
  config = checkpoint.open_run(workdir).config
  assert config.data.mean == 'image'
  assert (config.data.resize_size, config.data.crop_size) == (80, CROP)
  part = image[::-1, 7 : 7 + CROP, 7 : 7 + CROP].astype(np.float32)
  mean = build.stored_mean(config, workdir)
  np.testing.assert_array_equal(mean, part.transpose(1, 2, 0))

  tuned = validation.load_config(
    [
      f'--config={commands.ROOT}/configs/finetune.py:{workdir}',
      *('--config.data.source=synthetic', '--config.data.synthetic_examples=9'),
    ]
  )
  loader = build.make_loader(tuned, 'train')
  found = build.find_pixel_statistics(tuned, loader, tmp_path)
  np.testing.assert_array_equal(found.mean, mean)


def test_a_mean_image_smaller_than_the_crop_is_refused(save, mean_file):
  path = save(message(network()))
  with pytest.raises(
    UserError, match=r'mean.binaryproto: .*65 x 65 .*, found 64 x 90'
  ):
    caffe_files.read(path, mean_file(mean_image(64, 90)))


GUESS = 'taken is 123,117,104 for red, green and blue: give its mean image with'


@pytest.mark.parametrize(
  ('change', 'said'),
  [
    (lambda layer: None, f'does not say what was subtracted .*; {GUESS}'),
    (
      lambda layer: setattr(layer.transform_param, 'mean_file', b'/a/m\xff'),
      f"was trained with the mean image '/a/m.'; {GUESS}",
    ),
    *(
      (
        lambda layer, name=name: setattr(
          getattr(layer, name), 'mean_file', b'ilsvrc12_mean.binaryproto'
        ),
        f"was trained with the mean image 'ilsvrc12_mean.binaryproto'; {GUESS}",
      )
      for name in ('data_param', 'image_data_param', 'window_data_param')
    ),
    (lambda layer: layer.transform_param.mean_value.extend([1, 2, 3]), ''),
  ],
)
def test_a_mean_that_is_guessed_is_said(
  change, said, save, mean_file, images, caplog
):
  net = message(network())
  change(net.layer[0])
  path = save(net)
  caffe_files.read(path)
  messages = [record.getMessage() for record in caplog.records]
  assert len(messages) == bool(said)
  assert re.search(said, ''.join(messages))
  caplog.clear()
  caffe_files.read(path, mean_file(mean_image(80, 80)))
  assert caplog.text == ''


def test_numbers_of_the_fields_with_a_mean_file(save, caplog):
  """As Caffe's protobuf definition has them: 4 of 100, 3 of 107."""
  specs = network()
  for number, inner in ((100, 4), (107, 3)):
    source = field(1, 'data') + field(2, 'Data') + field(4, 'data')
    source += field(number, field(inner, f'mean {number}'))
    head = field(100, layer_by_hand(specs[0])) + field(100, source)
    caffe_files.read(save(head + file_by_hand(specs[1:])))
    assert f"the mean image 'mean {number}'" in caplog.text


def test_the_files_own_mean_and_scale(save):
  net = message(network())
  transform = net.layer[0].transform_param
  transform.mean_value.extend([10, 20, 30])
  transform.scale = 0.5
  transform.crop_size = CROP
  imported = caffe_files.read(save(net))
  assert imported.mean.tolist() == [30, 20, 10]
  assert imported.data['std_rgb'] == (2, 2, 2)


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (b'', 'has 0 bytes'),
    (blob_by_hand(np.ones((3, 4, 4)), False)[:40], 'truncated'),
    (blob_by_hand(np.ones((4, 4)), True), r'found \(1, 4, 4\)'),
    (blob_by_hand(np.ones((3, 0, 4)), False), r'found \(3, 0, 4\)'),
    (blob_by_hand(np.full((3, 4, 4), np.nan), False), '48 that are not'),
    (blob_by_hand(np.full((3, 4, 4), 300.0), False), 'found 300 to 300'),
    (blob_by_hand(np.full((3, 4, 4), -1.0), False), 'found -1 to -1'),
    (file_by_hand(network()), 'mean image|binary protobuf BlobProto'),
    (b'\x93NUMPY\x01\x00v\x00', 'binary protobuf BlobProto'),
  ],
)
def test_an_unfit_mean_is_refused(content, words, save, tmp_path):
  file = tmp_path / 'mean.binaryproto'
  file.write_bytes(content)
  with pytest.raises(UserError, match=f'mean.binaryproto: .*({words})'):
    caffe_files.read(save(message(network())), file)


# What is refused.


def test_no_part_of_a_file_comes_in(save):
  specs = with_old_data(network(('ReLU', 'Pooling', 'LRN')))
  content = file_by_hand(specs, old=True)
  # The head is in the last layer but one: no cut before its end is a network.
  end = len(file_by_hand(specs[:-1], old=True))
  ends = [len(file_by_hand(specs[:i], old=True)) for i in range(len(specs))]
  cuts = {*ends, *(n - 1 for n in ends), *range(1, end, end // 60)} - {0, end}
  for cut in sorted(cuts):
    with pytest.raises(UserError, match=r'net\.caffemodel: .*(expected|found)'):
      caffe_files.read(save(content[:cut]))
  assert caffe_files.read(save(content[:end])).num_classes == CLASSES


def changed(name, **settings):
  def change(specs):
    find(specs, name).settings.update(settings)

  return change


def reweighted(name, place, function):
  def change(specs):
    weights = find(specs, name).weights
    weights[place] = function(weights[place].copy())

  return change


def spoilt(value):
  def function(array):
    array.flat[3] = value
    return array

  return function


def appended(name, *arrays):
  return lambda specs: find(specs, name).weights.extend(arrays)


def retyped(name, kind):
  def change(specs):
    spec = find(specs, name)
    spec.type, spec.settings = kind, {}

  return change


def removed(name):
  return lambda specs: specs.remove(find(specs, name))


def rewired(name, bottom):
  return lambda specs: setattr(find(specs, name), 'bottom', bottom)


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (
      reweighted('conv2', 0, lambda w: w[:, :, 1:]),
      r'conv2 \(Convolution\), weights: expected the shape \(12, 4, 5, 5\),'
      r' found \(12, 4, 4, 5\)',
    ),
    (
      reweighted('conv4', 1, lambda b: b[1:]),
      r'conv4 .* bias: .*\(12,\), found',
    ),
    (reweighted('fc6', 0, lambda w: w[:, 1:]), r'\(11, 90\), found \(11, 89\)'),
    (reweighted('fc8', 0, spoilt(np.nan)), 'fc8 .*finite numbers, found 1 '),
    (reweighted('conv5', 1, spoilt(np.inf)), 'conv5 .*finite numbers'),
    (
      appended('fc7', np.ones(9)),
      'fc7 .*expected 2 arrays of weights, found 3',
    ),
    (
      lambda s: find(s, 'fc7').weights.pop(),
      'fc7 .*2 arrays of weights, found 1',
    ),
    (appended('relu3', np.ones(8)), 'relu3 .*expected no weights, found 1'),
    (retyped('norm1', 'BatchNorm'), r'norm1 \(BatchNorm\), with 0 .*expected'),
    (
      retyped('conv3', 'Deconvolution'),
      r'\(Deconvolution\), with 2 .*expected',
    ),
    (retyped('relu2', 'Sigmoid'), r'relu2 \(Sigmoid\).*expected one of'),
    (retyped('conv3', 'InnerProduct'), '5 layers Convolution and then 3'),
    (removed('relu4'), 'conv4 .*expected one ReLU after it'),
    (removed('drop6'), 'expected twice InnerProduct and ReLU.*found'),
    (removed('relu7'), 'expected twice InnerProduct and ReLU.*found'),
    (changed('conv2', group=1), r'\(12, 8, 5, 5\), found \(12, 4, 5, 5\)'),
    (changed('conv2', group=3), 'expected groups that divide'),
    (changed('conv2', group=0), 'expected groups that divide'),
    (changed('conv1', num_output=0), 'expected groups that divide'),
    (changed('conv1', stride=0), 'a stride of 0'),
    (
      changed('conv5', kernel_size=1),
      r'\(10, 6, 1, 1\), found \(10, 6, 3, 3\)',
    ),
    (changed('conv3', pad=0), 'pool5 .*5 pixels|fc6 .*expected the shape'),
    (changed('conv1', pad=1), 'pool1 .*over 32 pixels; Caffe would add'),
    (changed('data', dim=(1, 3, 5, 5)), 'pool1 .*over 1 pixels'),
    (changed('data', dim=(1, 3, 3, 3)), 'no output for an input of 3'),
    (changed('data', dim=(1, 1, 65, 65)), r'\(N, 3, size, size\), found'),
    (changed('data', dim=(1, 3, 65, 66)), r'\(N, 3, size, size\), found'),
    (changed('pool2', kernel_size=2), 'pool2 .*over 15 pixels'),
    (changed('pool5', stride=1), 'Pooling: expected one value, found'),
    (changed('pool2', pool=1), r'expected MAX .*found pool 1'),
    (changed('pool2', pad=1), 'pool2 .*expected no padding, found 1'),
    (changed('norm2', alpha=0.1), 'LRN: expected one value, found'),
    (changed('norm2', norm_region=1), 'norm_region 0 .*found 1 and 5'),
    (changed('norm1', local_size=4), 'odd local_size, found 0 and 4'),
    (changed('norm1', beta=np.nan), 'norm1 .*expected finite numbers'),
    (changed('norm1', k=0.0), 'norm1 .*k > 0, found'),
    (changed('drop6', dropout_ratio=0.5), 'dropout_ratio: expected one value'),
    (changed('fc8', axis=2), 'fc8 .*axis 1, found'),
    (changed('conv2', dilation=2), 'dilation 1'),
    (rewired('fc7', 'pool5'), "expected the bottom 'fc6', .*found 'pool5'"),
    (rewired('fc7', ''), 'fc7 .*expected one bottom and one top, found'),
  ],
)
def test_an_unfit_network_is_refused(change, words, save):
  specs = network()
  change(specs)
  with pytest.raises(UserError, match=f'net.caffemodel: .*{words}'):
    caffe_files.read(save(message(specs)))


def too_few_numbers(net):
  data = net.layer[1].blobs[0].data
  data[0] = data[0][:-4]


def unlike_sides(net):
  net.layer[1].convolution_param.kernel_size.append(3)


def leaky(net):
  net.layer[2].relu_param.negative_slope = 0.1


def another_size(net):
  net.layer[0].transform_param.crop_size = 64


def both_formats(net):
  net.layers.add(name='conv1')


def oldest_format(net):
  net.ClearField('layer')
  net.layers.add().layer = b'\n\x05conv1'


@pytest.mark.parametrize(
  ('change', 'words'),
  [
    (too_few_numbers, 'expected 2,400 bytes of packed numbers, found 2,396'),
    (unlike_sides, 'kernel_size: expected one value, found 5, 3'),
    (leaky, 'relu1 .*negative_slope 0, found 0.1'),
    (another_size, 'size of the input: expected one value, found 64, 65'),
    (both_formats, 'both `layer` and `layers`'),
    (oldest_format, 'upgrade_net_proto_binary'),
    (lambda net: net.ClearField('layer'), 'holds no layers'),
  ],
)
def test_an_unfit_message_is_refused(change, words, save):
  net = message(network())
  change(net)
  with pytest.raises(UserError, match=f'net.caffemodel: .*{words}'):
    caffe_files.read(save(net))


@pytest.mark.parametrize(
  ('content', 'words'),
  [
    (b'', 'has 0 bytes'),
    (b'name: "AlexNet"\nlayer {\n', 'another kind, such as a .prototxt'),
    (b'\x89HDF\r\n\x1a\n and more', 'found an HDF5 file'),
    (b'PK\x03\x04 a file of torch', 'expected a binary protobuf|no layers'),
    (blob_by_hand(np.ones((3, 4, 4)), True), 'expected|no layers'),
    (np.random.default_rng(0).bytes(5000), 'expected|no layers'),
  ],
)
def test_another_kind_of_file_is_refused(content, words, save):
  with pytest.raises(UserError, match=f'net.caffemodel: .*({words})'):
    caffe_files.read(save(content))


def test_a_file_that_is_not_there_or_too_large(tmp_path):
  with pytest.raises(UserError, match='cannot be read: No such file'):
    caffe_files.read(tmp_path / 'net.caffemodel')
  with pytest.raises(UserError, match='cannot be read: Is a directory'):
    caffe_files.read(tmp_path)
  path = tmp_path / 'large'
  with path.open('wb') as file:
    file.truncate(2**31)  # sparse
  with pytest.raises(UserError, match='2,147,483,648 bytes; expected'):
    caffe_files.read(path)


@pytest.mark.parametrize(
  ('order', 'name'),
  [
    (('ReLU', 'LRN', 'Pooling'), 'alexnet_caffe'),
    (('ReLU', 'Pooling', 'LRN'), 'caffenet'),
  ],
)
def test_the_named_networks_are_those_of_the_files(
  order, name, save, monkeypatch
):
  """All but the widths, which are an eighth here."""
  here = globals()
  monkeypatch.setitem(here, 'CROP', 227)
  monkeypatch.setitem(here, 'CHANNELS', (12, 32, 48, 48, 32))
  monkeypatch.setitem(here, 'KERNELS', (11, 5, 3, 3, 3))
  monkeypatch.setitem(here, 'STRIDES', (4, 1, 1, 1, 1))
  monkeypatch.setitem(here, 'POSITIONS', 36)
  monkeypatch.setitem(
    here, 'LRN', {'local_size': 5, 'alpha': 1e-4, 'beta': 0.75}
  )
  specs = network(order)
  for spec in specs:
    if spec.type == 'Dropout':
      spec.settings['dropout_ratio'] = 0.5
  imported = caffe_files.read(save(file_by_hand(specs)))
  ours = variants.fields(name)
  sizes = {'channels': (12, 32, 48, 48, 32), 'hidden': HIDDEN}
  paddings = {'paddings': (0, 2, 1, 1, 1)}  # of odd kernels: VALID, SAME
  assert ours['paddings'] == ('VALID', *('SAME',) * 4)
  for field, value in imported.model.items():
    assert value == {**ours, **sizes, **paddings}[field], field
  assert imported.data['crop_size'] == 227

"""Trained networks in Caffe's files: bvlc_alexnet, caffenet and relatives.

A .caffemodel holds the layers with their settings and weights, as `layer`s or,
before 2014, as `layers` of the format V1. Whatever is converted is read from
there: groups, strides, padding, pooling, the constants of LRN, dropout, and
whether pooling comes before LRN (caffenet) or after it (bvlc_alexnet).

Field names, numbers and defaults of the messages are those of Caffe 1.0
(BVLC/caffe, src/caffe/proto/caffe.proto); protobuf skips what is not declared.
"""

from collections.abc import Iterable
import dataclasses
import itertools
import logging
import math
import os
import pathlib

from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message_factory
from google.protobuf.message import DecodeError
import numpy as np

from alexnet_jax.data import images
from alexnet_jax.errors import UserError
from alexnet_jax.interop import matching
from alexnet_jax.interop import networks
from alexnet_jax.interop.networks import TrainedNetwork

# Lines of: name, number, type (* for repeated, + for repeated and packed),
# default if it is not zero. Some types differ from Caffe's, with the same
# bytes: enumerations are integers, so that unknown values are seen; settings of
# windows are repeated in `PoolingParameter` as in `ConvolutionParameter`; names
# of files are bytes; and so are packed numbers of a blob, so that tens of
# millions of them become an array without a Python object each.
_WINDOW = 'pad_h {0} uint32; pad_w {1} uint32; kernel_h {2} uint32;'
_WINDOW += 'kernel_w {3} uint32; stride_h {4} uint32; stride_w {5} uint32;'
_MESSAGES = {
  'BlobShape': 'dim 1 int64+',
  'BlobProto': """num 1 int32; channels 2 int32; height 3 int32; width 4 int32;
    data 5 bytes*; shape 7 BlobShape""",
  'TransformationParameter': """scale 1 float 1; crop_size 3 uint32;
    mean_file 4 bytes; mean_value 5 float*""",
  # Of data and images, whose old fields are those of TransformationParameter.
  'DataParameter': 'scale 2 float 1; mean_file 3 bytes; crop_size 5 uint32',
  'InputParameter': 'shape 1 BlobShape*',
  'ConvolutionParameter': """num_output 1 uint32; pad 3 uint32*;
    kernel_size 4 uint32*; group 5 uint32 1; stride 6 uint32*; axis 16 int32 1;
    dilation 18 uint32*;"""
  + _WINDOW.format(9, 10, 11, 12, 13, 14),
  'PoolingParameter': """pool 1 int32; kernel_size 2 uint32*; stride 3 uint32*;
    pad 4 uint32*; global_pooling 12 bool;"""
  + _WINDOW.format(9, 10, 5, 6, 7, 8),
  'InnerProductParameter': """num_output 1 uint32; axis 5 int32 1;
    transpose 6 bool""",
  'LRNParameter': """local_size 1 uint32 5; alpha 2 float 1; beta 3 float 0.75;
    norm_region 4 int32; k 5 float 1""",
  'DropoutParameter': 'dropout_ratio 1 float 0.5',
  'ReLUParameter': 'negative_slope 1 float',
  'LayerParameter': """name 1 string; type 2 string; bottom 3 string*;
    top 4 string*; blobs 7 BlobProto*;
    transform_param 100 TransformationParameter;
    convolution_param 106 ConvolutionParameter; data_param 107 DataParameter;
    dropout_param 108 DropoutParameter; image_data_param 115 DataParameter;
    inner_product_param 117 InnerProductParameter; lrn_param 118 LRNParameter;
    pooling_param 121 PoolingParameter; relu_param 123 ReLUParameter;
    input_param 143 InputParameter""",
  'V1LayerParameter': """layer 1 bytes; bottom 2 string*; top 3 string*;
    name 4 string; type 5 int32; blobs 6 BlobProto*;
    convolution_param 10 ConvolutionParameter; data_param 11 DataParameter;
    dropout_param 12 DropoutParameter; image_data_param 15 DataParameter;
    inner_product_param 17 InnerProductParameter; lrn_param 18 LRNParameter;
    pooling_param 19 PoolingParameter; relu_param 30 ReLUParameter;
    transform_param 36 TransformationParameter""",
  'NetParameter': """name 1 string; layers 2 V1LayerParameter*;
    input 3 string*; input_dim 4 int32*; input_shape 8 BlobShape*;
    layer 100 LayerParameter*""",
}
# Types of layers by their numbers in V1LayerParameter.LayerType.
_V1_TYPES = {
  **{1: 'Accuracy', 4: 'Convolution', 5: 'Data', 6: 'Dropout'},
  **{12: 'ImageData', 14: 'InnerProduct', 15: 'LRN', 17: 'Pooling', 18: 'ReLU'},
  **{20: 'Softmax', 21: 'SoftmaxWithLoss', 22: 'Split', 29: 'MemoryData'},
  **{30: 'ArgMax', 36: 'Silence'},
}
_CONVOLUTION, _DENSE = 'Convolution', 'InnerProduct'
_AFTER_CONVOLUTION = {'ReLU': 'relu', 'LRN': 'norm', 'Pooling': 'pool'}
_COMPUTING = (_CONVOLUTION, _DENSE, *_AFTER_CONVOLUTION, 'Dropout')
_SOURCES = ('Data', 'ImageData', 'Input', 'MemoryData')
_TYPES = (*_V1_TYPES.values(), 'Input')
# Settings that have one possible value here; pool 0 is the maximum, norm_region
# 0 is across channels.
_FIXED = (
  ('convolution_param', 'axis', 1),
  ('convolution_param', 'dilation', 1),
  ('inner_product_param', 'axis', 1),
  ('inner_product_param', 'transpose', False),
  ('lrn_param', 'norm_region', 0),
  ('pooling_param', 'pool', 0),
  ('pooling_param', 'global_pooling', False),
  ('relu_param', 'negative_slope', 0),
)
# What may follow the convolutions: with dropout, and without.
_DENSE_PARTS = (
  (_DENSE, 'ReLU', 'Dropout') * 2 + (_DENSE,),
  (_DENSE, 'ReLU') * 2 + (_DENSE,),
)
# Blue, green, red of 255: the mean of ILSVRC-2012's training images (104.01,
# 116.67, 122.68) as models/bvlc_reference_caffenet/train_val.prototxt of
# BVLC/caffe rounds it, where it is named beside the mean image.
_MEAN_BGR = (104.0, 117.0, 123.0)
_CROP_SIZE = 227  # of bvlc_alexnet and caffenet
_MOST_BYTES = 2**31 - 1  # protobuf's own bound on a message


def _message_classes():
  """Builds the messages in a pool that an installed Caffe does not share."""
  file = descriptor_pb2.FileDescriptorProto(
    name='alexnet_jax/caffe.proto', package='caffe', syntax='proto2'
  )
  for message_name, lines in _MESSAGES.items():
    message = file.message_type.add(name=message_name)
    for line in filter(None, (line.split() for line in lines.split(';'))):
      name, number, kind, *default = line
      field = message.field.add(name=name, number=int(number))
      repeated = kind[-1] in '*+'
      field.label = field.LABEL_REPEATED if repeated else field.LABEL_OPTIONAL
      if kind[-1] == '+':
        field.options.packed = True
      kind = kind.rstrip('*+')
      if kind in _MESSAGES:
        field.type, field.type_name = field.TYPE_MESSAGE, f'.caffe.{kind}'
      else:
        field.type = getattr(field, f'TYPE_{kind.upper()}')
      if default:
        field.default_value = default[0]
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return {
    name: message_factory.GetMessageClass(
      pool.FindMessageTypeByName(f'caffe.{name}')
    )
    for name in _MESSAGES
  }


_CLASSES = _message_classes()
NetParameter = _CLASSES['NetParameter']
BlobProto = _CLASSES['BlobProto']


@dataclasses.dataclass(frozen=True)
class _Layer:
  """A layer, whichever of the two formats it is written in."""

  name: str
  type: str  # such as `Convolution`
  bottoms: tuple[str, ...]  # names of the arrays that it reads, each once
  tops: tuple[str, ...]  # and of those that it writes
  settings: object  # message with `blobs`, `convolution_param` and the like

  def __str__(self):
    return f'layer {self.name} ({self.type})'


def read(path: str | os.PathLike, options: networks.Options) -> TrainedNetwork:
  """Reads the network in a .caffemodel.

  Images are prepared as elsewhere here, not quite as for Caffe: their short
  side becomes 256 pixels and the middle is cut out, where Caffe's scripts warp
  the whole image to 256 x 256 (examples/imagenet/create_imagenet.sh). That size
  is not in the file: it is that of the mean image, or else 256, or the crop if
  that is larger. The size of the crop is that of the file's input or data
  layer, 227 if there is none.

  Args:
    path: of the .caffemodel.
    options: only mean_file counts. It holds Caffe's mean image, which is
      subtracted pixel by pixel; images are resized to its short side. If it is
      not given: the file's `mean_value`s; if it has none, as the published
      files, 123, 117 and 104 for red, green and blue, with a warning.

  Returns:
    The network. Its mean is an image if one is given.

  Raises:
    UserError: if a file cannot be read, is damaged or of another kind, or holds
      a network that is no AlexNet as the config can describe it; with what was
      expected and found.
  """
  with matching.naming(path):
    net = _parse(path, NetParameter)
    layers = _list_layers(net)
    convolutions, dense = _split(_chain(layers))
    data, levels, mean_file = _read_input(net, layers)
    model, params, shape = _convert_convolutions(
      convolutions, data['crop_size']
    )
    model |= _convert_dropout(dense)
    dense = [layer for layer in dense if layer.type == _DENSE]
    for name, layer in zip(('dense1', 'dense2', 'head'), dense, strict=True):
      params[name] = _convert_dense(layer, shape)
      shape = params[name]['bias'].shape
    model['hidden'] = tuple(
      params[name]['bias'].size for name in ('dense1', 'dense2')
    )
  if options.mean_file:
    with matching.naming(options.mean_file):
      image = _read_mean_image(options.mean_file, data['crop_size'])
    data |= {'resize_size': min(image.shape[:2]), 'mean': 'image'}
    mean = np.array(images.center_crop(image, data['crop_size']))
  else:
    mean = np.array(levels or _MEAN_BGR[::-1], np.float32)
    if not levels or mean_file:
      _warn_of_guess(mean, mean_file)
  return TrainedNetwork(params, {}, model, data, mean, *shape)


def _parse(path, message_class):
  """Returns the message that a file holds, and nothing else."""
  if not 0 < (size := os.path.getsize(path)) <= _MOST_BYTES:
    raise UserError(
      f'has {size:,} bytes; expected between 1 and {_MOST_BYTES:,}, which is'
      ' the most that protobuf reads'
    )
  data = pathlib.Path(path).read_bytes()
  try:
    return message_class.FromString(data)
  except DecodeError as error:
    found = (
      'an HDF5 file; have Caffe save it with snapshot_format: BINARYPROTO'
      if data.startswith(b'\x89HDF')
      else f'{size:,} bytes that are none ({error}): the file is truncated,'
      ' damaged, or of another kind, such as a .prototxt; get it again'
    )
    name = message_class.DESCRIPTOR.name
    raise matching.misfit(f'a binary protobuf {name}', found) from None


def _list_layers(net):
  """Returns the layers in order; refuses formats older than the two."""
  if net.layer and net.layers:
    raise UserError('has both `layer` and `layers`; Caffe refuses such a file')
  if any(layer.HasField('layer') for layer in net.layers):
    raise UserError(
      "its layers are in Caffe's first format, V0LayerParameter; convert the"
      " file with Caffe's tool upgrade_net_proto_binary"
    )
  if not net.layer and not net.layers:
    raise UserError(
      'holds no layers; expected those of a .caffemodel that Caffe wrote'
    )
  found = []
  for layer in net.layer or net.layers:
    kind = layer.type
    if net.layers:
      kind = _V1_TYPES.get(kind, f'V1 type {kind}')
    bottoms, tops = (
      dict.fromkeys(names) for names in (layer.bottom, layer.top)
    )
    found.append(_Layer(layer.name, kind, tuple(bottoms), tuple(tops), layer))
  return found


def _chain(layers):
  """Returns the computing layers; each must read what the one before wrote."""
  chain = []
  for layer in layers:
    weights = len(layer.settings.blobs)
    if layer.type not in _TYPES:
      types = f'one of the types {", ".join(_TYPES)}'
      raise matching.misfit(types, f'{layer.type} with {weights} arrays', layer)
    if weights and layer.type not in (_CONVOLUTION, _DENSE):
      raise matching.misfit('no weights', f'{weights} arrays', layer)
    for message, field, value in _FIXED:
      found = getattr(getattr(layer.settings, message), field)
      values = {found} if isinstance(found, (int, float)) else {*found}
      if values - {value}:
        raise matching.misfit(
          f'{field} {value}', ', '.join(map(str, values)), layer
        )
    if layer.type not in _COMPUTING:
      continue
    if len(layer.bottoms) != 1 or len(layer.tops) != 1:
      arrays = f'{layer.bottoms} and {layer.tops}'
      raise matching.misfit('one bottom and one top', arrays, layer)
    if chain and layer.bottoms != chain[-1].tops:
      raise matching.misfit(
        f'the bottom {chain[-1].tops[0]!r}, the top of {chain[-1]}',
        f'{layer.bottoms[0]!r}; the layers of an AlexNet are a chain',
        layer,
      )
    chain.append(layer)
  return chain


def _split(chain):
  """Returns ([(convolution, layers that follow it)], the dense part)."""
  weighted = [layer for layer in chain if layer.type in (_CONVOLUTION, _DENSE)]
  types = [layer.type for layer in weighted]
  if types != [_CONVOLUTION] * 5 + [_DENSE] * 3:
    raise matching.misfit(
      f'5 layers {_CONVOLUTION} and then 3 {_DENSE}',
      ', '.join(f'{layer.name} ({layer.type})' for layer in weighted),
    )
  start, blocks = chain.index(weighted[5]), []
  for layer in chain[:start]:
    if layer.type == _CONVOLUTION:
      blocks.append((layer, []))
    elif blocks and layer.type in _AFTER_CONVOLUTION:
      blocks[-1][1].append(layer)
    else:
      types = ', '.join(_AFTER_CONVOLUTION)
      raise matching.misfit(
        f'{_CONVOLUTION} first, then {types}', layer.type, layer
      )
  return blocks, chain[start:]


def _convert_convolutions(blocks, crop_size):
  """Returns (model fields, params, (channels, height, width) at the end)."""
  entries, orders, params, norms, pools = [], [], {}, {}, {}
  channels, size = 3, crop_size
  for number, (convolution, after) in enumerate(blocks, 1):
    entry, params[f'conv{number}'] = _convert_convolution(convolution, channels)
    entries.append(entry)
    orders.append(_order(convolution, after))
    channels, kernel, stride, padding, _ = entry
    size = (size + 2 * padding - kernel) // stride + 1
    if size < 1:
      raise UserError(
        f'{convolution} has no output for an input of {crop_size} pixels'
      )
    for layer in after:
      if layer.type == 'LRN':
        norms[number] = _convert_lrn(layer)
      elif layer.type == 'Pooling':
        pool = pools[number] = _convert_pooling(layer, size)
        size = (size - pool['pool_size']) // pool['pool_stride'] + 1
  names = 'channels', 'kernels', 'strides', 'paddings', 'groups'
  model = dict(zip(names, zip(*entries, strict=True), strict=True))
  if model['groups'][0] != 1:
    raise matching.misfit('1 group', model['groups'][0], blocks[0][0])
  # It reads blue, green and red.
  params['conv1']['kernel'] = params['conv1']['kernel'][:, :, ::-1].copy()
  model |= {
    'block_order': tuple(orders) if any(orders) else (),
    'pool_layers': tuple(pools),
    'norm': 'lrn' if norms else 'none',
    'norm_layers': tuple(norms),
    'norm_before_relu': False,
    'norm_hidden': (),
    'lrn_convention': 'caffe',
    'lrn_groups': 1,
    'width_multiplier': 1.0,
  }
  for kind, found in (('LRN', norms), ('Pooling', pools)):
    if found:
      settings = (tuple(fields.items()) for fields in found.values())
      model |= _single(settings, f'settings of the layers {kind}')
  return model, params, (channels, size, size)


def _order(convolution, after):
  """Returns the entry of `block_order`: '' for ReLU, LRN, pooling."""
  types = [layer.type for layer in after]
  if len({*types}) < len(types) or 'ReLU' not in types:
    expected = 'one ReLU after it and at most one LRN and one Pooling'
    raise matching.misfit(expected, ', '.join(types), convolution)
  usual = [kind for kind in _AFTER_CONVOLUTION if kind in types]
  names = [_AFTER_CONVOLUTION[kind] for kind in types]
  return '' if types == usual else '-'.join(names)


def _convert_convolution(layer, channels):
  """Returns ((channels, kernel, stride, padding, groups), its parameters)."""
  settings = layer.settings.convolution_param
  kernel, stride, padding = _window(layer, settings)
  groups, count = settings.group, settings.num_output
  if not count or not groups or channels % groups or count % groups:
    raise matching.misfit(
      'groups that divide channels and outputs',
      f'{groups} groups, {channels} channels and {count} outputs',
      layer,
    )
  shape = count, channels // groups, kernel, kernel
  weights, bias = _weights(layer, shape)
  weights = np.array(weights.transpose(2, 3, 1, 0), order='C')
  entry = count, kernel, stride, padding, groups
  return entry, {'kernel': weights, 'bias': bias}


def _convert_dense(layer, shape):
  """Returns parameters; shape is (channels, height, width) or (inputs,)."""
  count = layer.settings.inner_product_param.num_output
  kernel, bias = _weights(layer, (count, math.prod(shape)))
  kernel = kernel.T.reshape(*shape, count)
  if len(shape) == 3:
    kernel = kernel.transpose(1, 2, 0, 3)
  return {
    'kernel': np.array(kernel.reshape(-1, count), order='C'),
    'bias': bias,
  }


def _convert_lrn(layer):
  """Returns its fields of the model, in the convention `caffe`.

  The bracket is k + alpha / size * sum (src/caffe/layers/lrn_layer.cpp).
  """
  settings = layer.settings.lrn_param
  size = settings.local_size
  if not size % 2:
    raise matching.misfit('an odd local_size', size, layer)
  names = 'k', 'alpha', 'beta'
  values = {name: _decimal(getattr(settings, name)) for name in names}
  if not all(map(math.isfinite, values.values())) or values['k'] <= 0:
    raise matching.misfit('finite numbers and k > 0', values, layer)
  fields = {f'lrn_{name}': value for name, value in values.items()}
  return {'lrn_size': size, **fields}


def _convert_pooling(layer, size):
  """Returns its fields of the model; `size` is the width of its input.

  Caffe rounds the number of windows up (src/caffe/layers/pooling_layer.cpp),
  our pooling rounds it down: both must be the same.
  """
  kernel, stride, padding = _window(layer, layer.settings.pooling_param)
  if padding:
    raise matching.misfit('no padding', padding, layer)
  if size < kernel or (size - kernel) % stride:
    raise matching.misfit(
      'windows that end with the last pixel',
      f'windows of {kernel} every {stride} over {size} pixels; Caffe would add'
      ' one that is cut off, here it would be left out',
      layer,
    )
  return {'pool_size': kernel, 'pool_stride': stride}


def _convert_dropout(dense):
  """Returns the fields of the model; refuses other layers between."""
  types = tuple(layer.type for layer in dense)
  if types not in _DENSE_PARTS:
    raise matching.misfit(
      f'twice {_DENSE} and ReLU, with Dropout after both or none, and'
      f' {_DENSE} at the end',
      ', '.join(types),
    )
  ratios = [
    _decimal(layer.settings.dropout_param.dropout_ratio)
    for layer in dense
    if layer.type == 'Dropout'
  ]
  ratio = _single(ratios or [0.0], 'dropout_ratio')
  if not 0 <= ratio < 1:
    raise matching.misfit('0 to below 1', ratio, 'dropout_ratio')
  # Caffe scales up what it keeps (src/caffe/layers/dropout_layer.cpp).
  return {
    'dropout': ratio,
    'dropout_position': 'after',
    'dropout_scaling': 'training',
  }


def _window(layer, settings):
  """Returns (kernel, stride, padding), the same down and across."""
  found = []
  for name, short, default in (
    ('kernel_size', 'kernel', ()),
    ('stride', 'stride', (1,)),
    ('pad', 'pad', (0,)),
  ):
    sides = [s for s in (f'{short}_h', f'{short}_w') if settings.HasField(s)]
    values = [*getattr(settings, name), *(getattr(settings, s) for s in sides)]
    found.append(_single(values or default, f'{layer}, {name}'))
  kernel, stride, _ = found
  if not kernel or not stride:
    raise UserError(
      f'{layer}: found a kernel of {kernel}, a stride of {stride}'
    )
  return found


def _weights(layer, shape):
  """Returns (weights of the shape, bias), float32."""
  blobs = layer.settings.blobs
  if len(blobs) != 2:
    raise matching.misfit('2 arrays of weights, with a bias', len(blobs), layer)
  weights = _to_array(blobs[0], shape, f'{layer}, weights')
  return weights, np.array(_to_array(blobs[1], shape[:1], f'{layer}, bias'))


def _shape_of(blob):
  """Returns a blob's shape; old ones have four numbers, ones in front."""
  if blob.HasField('shape'):
    return tuple(blob.shape.dim)
  return (blob.num, blob.channels, blob.height, blob.width)


def _to_array(blob, shape, name):
  """Returns the numbers of a blob, float32 [*shape]; it may be read-only.

  The blob's own shape may have other ones in front.
  """
  there = _shape_of(blob)
  found, wanted = (
    [*itertools.dropwhile(lambda number: number == 1, numbers)]
    for numbers in (there, shape)
  )
  if found != wanted:
    raise matching.misfit(f'the shape {shape}', there, name)
  data, size = b''.join(blob.data), 4 * math.prod(shape)
  if len(data) != size:
    raise matching.misfit(
      f'{size:,} bytes of packed float32 numbers',
      f'{len(data):,}',
      f'{name} of shape {shape}',
    )
  return matching.to_float32(np.frombuffer(data, '<f4'), name).reshape(shape)


def _read_input(net, layers):
  """Returns (fields of config.data, mean of red, green, blue or None, file).

  The file is the mean image that training subtracted; '' if none is named.
  """
  sources = [layer.settings for layer in layers if layer.type in _SOURCES]
  parts = []
  for source in sources:
    parts += source.transform_param, source.data_param, source.image_data_param
  shapes = [net.input_dim[:4]] if net.input_dim else []
  shapes += [shape.dim for shape in net.input_shape[:1]]
  for layer in layers:
    if layer.type == 'Input':
      shapes += [shape.dim for shape in layer.settings.input_param.shape[:1]]
  for shape in map(tuple, shapes):
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
      raise matching.misfit('an input (N, 3, size, size)', shape)
  crops = [part.crop_size for part in parts if part.crop_size]
  crops += [shape[2] for shape in shapes]
  scales = [_decimal(part.scale) for part in parts if part.scale != 1]
  crop = _single(crops or [_CROP_SIZE], 'size of the input')
  scale = _single(scales or [1.0], 'scale of the input')
  if crop < 1 or not 0 < scale < math.inf:
    raise UserError(f'found an input of {crop} pixels, scaled by {scale}')
  data = {
    'resize_size': max(networks.RESIZE_SIZE, crop),
    'crop_size': crop,
    'mean': 'channel',
    'std': 1.0,
    'std_rgb': () if scale == 1 else (1 / scale,) * 3,
  }
  files = [part.mean_file for part in parts if part.mean_file]
  file = files[0].decode(errors='replace') if files else ''
  means = [tuple(source.transform_param.mean_value) for source in sources]
  mean = _single(filter(None, means), 'mean_value') if any(means) else None
  if mean:
    mean = mean[::-1] * (3 if len(mean) == 1 else 1)
    if len(mean) != 3 or not all(0 <= level <= 255 for level in mean):
      raise matching.misfit('3 levels of 255, or one', mean, 'mean_value')
  return data, mean, file


def _read_mean_image(path, crop_size):
  """Returns a mean image, float32 [height, width, 3], red, green, blue.

  Caffe subtracts it before it cuts out the middle, so it has the size of the
  images before that.
  """
  blob = _parse(path, BlobProto)
  shape = _shape_of(blob)
  shape = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
  if len(shape) != 3 or shape[0] != 3 or min(shape) < 1:
    raise matching.misfit('a mean image of the shape (3, height, width)', shape)
  image = _to_array(blob, shape, 'mean image')
  least, most = image.min(), image.max()
  if not 0 <= least <= most <= 255:
    raise matching.misfit('levels from 0 to 255', f'{least:g} to {most:g}')
  if min(shape[1:]) < crop_size:
    raise matching.misfit(
      f'a mean image of at least {crop_size} x {crop_size} pixels, those that'
      ' the network reads',
      f'{shape[1]} x {shape[2]}',
    )
  return np.array(image[::-1].transpose(1, 2, 0), order='C')


def _warn_of_guess(levels, mean_file):
  """Warns that it is not known what Caffe subtracted."""
  reason = 'does not say what was subtracted from pixels'
  if mean_file:
    reason = f'was trained with the mean image {mean_file!r}'
  logging.getLogger(__name__).warning(
    'the network %s; taken is %s for red, green and blue: give its mean image'
    ' with --mean FILE.binaryproto',
    reason,
    ','.join(f'{level:g}' for level in levels),
  )


def _single(values: Iterable, name: str):
  """Returns the one that all values are; refuses several and none."""
  values = [*dict.fromkeys(values)]
  if len(values) != 1:
    raise matching.misfit(
      'one value', ', '.join(map(str, values)) or 'none', name
    )
  return values[0]


def _decimal(value):
  """Returns the shortest decimal of a float32: 0.0001, not 0.00009999999..."""
  return float(str(np.float32(value)))

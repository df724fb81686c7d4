"""Trained networks in Caffe's files: bvlc_alexnet and caffenet.

Messages are those of Caffe 1.0 (BVLC/caffe, src/caffe/proto/caffe.proto), in
layers of the format V1 before 2014; protobuf skips what is not declared.
"""

from collections.abc import Iterable
import dataclasses
import math
import os
import pathlib

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError
import numpy as np

from alexnet_jax.data import images
from alexnet_jax.errors import UserError
from alexnet_jax.interop import networks
from alexnet_jax.interop.networks import TrainedNetwork
from alexnet_jax.models import variants

# Fields: name, number, type (* for repeated), default if it is not zero. Some
# types differ from Caffe's, with the same bytes: enumerations are integers,
# settings of windows are repeated in pooling, too, and packed numbers of a blob
# are bytes, which become an array without a Python object each.
_WINDOW = 'pad_h {0} uint32; pad_w {1} uint32; kernel_h {2} uint32;'
_WINDOW += 'kernel_w {3} uint32; stride_h {4} uint32; stride_w {5} uint32;'
_MESSAGES = {
  'BlobShape': 'dim 1 int64*',
  'BlobProto': """num 1 int32; channels 2 int32; height 3 int32; width 4 int32;
    data 5 bytes*; shape 7 BlobShape; double_data 8 bytes*; raw_type 10 int32;
    raw_data 12 bytes*""",
  'TransformationParameter': """scale 1 float 1; crop_size 3 uint32;
    mean_value 5 float*""",
  # Of data and images, whose old fields are those of TransformationParameter.
  'DataParameter': 'scale 2 float 1; crop_size 5 uint32',
  'InputParameter': 'shape 1 BlobShape*',
  'ConvolutionParameter': """pad 3 uint32*; kernel_size 4 uint32*;
    group 5 uint32 1; stride 6 uint32*; axis 16 int32 1; dilation 18 uint32*;"""
  + _WINDOW.format(9, 10, 11, 12, 13, 14),
  'PoolingParameter': """pool 1 int32; kernel_size 2 uint32*; stride 3 uint32*;
    pad 4 uint32*; global_pooling 12 bool;"""
  + _WINDOW.format(9, 10, 5, 6, 7, 8),
  'InnerProductParameter': 'axis 5 int32 1; transpose 6 bool',
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
  'V1LayerParameter': """bottom 2 string*; top 3 string*; name 4 string;
    type 5 int32; blobs 6 BlobProto*;
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
# Types of the raw numbers that NVIDIA's Caffe writes, by `raw_data_type`.
_RAW_TYPES = {0: '<f8', 1: '<f4', 2: '<f2', 3: '<i4', 4: '<u4'}
_SOURCES = ('Data', 'ImageData', 'Input', 'MemoryData')
# What computes: a letter for `_NETWORKS`, and the settings, all of which count.
_KINDS = {
  'Convolution': ('C', 'convolution_param'),
  'InnerProduct': ('D', 'inner_product_param'),
  'Dropout': ('O', 'dropout_param'),
  'ReLU': ('R', 'relu_param'),
  'LRN': ('L', 'lrn_param'),
  'Pooling': ('P', 'pooling_param'),
}
_NETWORKS = {
  'CRLPCRLPCRCRCRPDRODROD': 'alexnet_caffe',  # bvlc_alexnet
  'CRPLCRPLCRCRCRPDRODROD': 'caffenet',  # bvlc_reference_caffenet
}
# Their settings, where they are not Caffe's defaults.
_CONVOLUTIONS = {
  'kernel_size': (11, 5, 3, 3, 3),
  'stride': (4, 1, 1, 1, 1),
  'pad': (0, 2, 1, 1, 1),
  'group': (1, 2, 1, 2, 2),
}
_OTHERS = {'LRN': {'alpha': 1e-4}, 'Pooling': {'kernel_size': 3, 'stride': 2}}
# Blue, green, red of 255: the mean of ILSVRC-2012's training images (104.01,
# 116.67, 122.68) as models/bvlc_reference_caffenet/train_val.prototxt of
# BVLC/caffe rounds it, where it is named beside the mean image.
_MEAN_BGR = (104.0, 117.0, 123.0)
_CROP_SIZE = 227  # of bvlc_alexnet and caffenet


def _message_classes():
  """Builds the messages in a pool that an installed Caffe does not share."""
  file = descriptor_pb2.FileDescriptorProto(
    name='alexnet_jax/caffe.proto', package='caffe', syntax='proto2'
  )
  for message_name, lines in _MESSAGES.items():
    message = file.message_type.add(name=message_name)
    for line in filter(str.strip, lines.split(';')):
      name, number, kind, *default = line.split()
      field = message.field.add(name=name, number=int(number))
      is_list = kind[-1] == '*'
      field.label = field.LABEL_REPEATED if is_list else field.LABEL_OPTIONAL
      kind = kind.rstrip('*')
      if kind in _MESSAGES:
        field.type, field.type_name = field.TYPE_MESSAGE, f'.caffe.{kind}'
      else:
        field.type = getattr(field, f'TYPE_{kind.upper()}')
      if default:
        field.default_value = default[0]
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return message_factory.GetMessageClassesForFiles([file.name], pool)


_CLASSES = _message_classes()
NetParameter = _CLASSES['caffe.NetParameter']
BlobProto = _CLASSES['caffe.BlobProto']


def read(path: str | os.PathLike, options: networks.Options) -> TrainedNetwork:
  """Reads the network in a .caffemodel.

  Images are prepared as elsewhere here: the short side becomes that of the mean
  image or 256 pixels, and the middle is cut out, where Caffe's scripts warp the
  whole image.

  Of the options mean_file counts: a mean image, which is subtracted pixel by
  pixel. Without it, the file's `mean_value`s are; if it has none, as the
  published files, 123, 117 and 104 for red, green and blue, with a warning.

  Raises UserError if a file cannot be read, is damaged or of another kind, or
  holds neither bvlc_alexnet nor caffenet; with what was expected.
  """
  with networks.naming(path):
    net = _parse(path, NetParameter)
    chain, model = _chain(net)
    _check_settings(chain)
    data, levels = _read_input(net)
    usual = (0.0,) * 3 if options.mean_file else _MEAN_BGR[::-1]
    mean = np.array(levels or usual, np.float32)
    network = TrainedNetwork(model, data, mean)
    network = networks.fit(network, _read_weights(chain), channels_first=True)
    # It reads blue, green and red.
    first = network.params['conv1']
    first['kernel'] = first['kernel'][:, :, ::-1].copy()
  if options.mean_file:
    with networks.naming(options.mean_file):
      image = _read_mean_image(options.mean_file, network.data['channels'])
    data = network.data | {'resize_size': min(image.shape[:2]), 'mean': 'image'}
    mean = np.array(images.center_crop(image, _CROP_SIZE))
    return dataclasses.replace(network, data=data, mean=mean)
  if not levels:
    networks.log.warning(
      'the file has no levels of its own that were subtracted from pixels;'
      ' taken is %s for red, green and blue: give its mean image with --mean'
      ' FILE.binaryproto',
      ','.join(f'{level:g}' for level in mean),
    )
  return network


def _parse(path, message_class):
  data = pathlib.Path(path).read_bytes()
  try:
    return message_class.FromString(data)
  except DecodeError as error:
    raise networks.misfit(
      f'a binary protobuf {message_class.DESCRIPTOR.name}',
      f'{len(data):,} bytes that are none ({error}): it is truncated, damaged,'
      ' or of another kind, such as a .prototxt, or HDF5 (have Caffe save it'
      ' with snapshot_format: BINARYPROTO); get it again',
    ) from None


def _type(layer):
  if isinstance(layer.type, str):
    return layer.type
  return _V1_TYPES.get(layer.type, f'V1 type {layer.type}')


def _label(layer):
  return f'layer {layer.name} ({_type(layer)})'


def _chain(net):
  """Returns the layers that compute, and the fields of `config.model`."""
  if net.layer and net.layers:
    raise UserError('has both `layer` and `layers`; Caffe refuses such a file')
  others = {*_V1_TYPES.values(), 'Input'} - _KINDS.keys()
  chain = [
    each for each in net.layer or net.layers if _type(each) not in others
  ]
  letters = ''.join(_KINDS.get(_type(layer), '?')[0] for layer in chain)
  if letters not in _NETWORKS:
    kinds = {letter: kind for kind, (letter, _) in _KINDS.items()}
    wanted = (', '.join(map(kinds.get, each)) for each in _NETWORKS)
    raise networks.misfit(
      f'the layers of bvlc_alexnet or caffenet ({" or ".join(wanted)})',
      ', '.join(map(_label, chain)) or 'none',
    )
  top = chain[0].bottom[:1]
  for layer in chain:
    # Or other layers are between the two, or branches beside them.
    if layer.bottom != top or len(layer.top) != 1:
      arrays = f'{[*layer.bottom]} and {[*layer.top]}'
      expected = f'the bottom {[*top]}, which is the top before it, and one top'
      raise networks.misfit(expected, arrays, _label(layer))
    top = layer.top
    arrays = 2 * (_type(layer) in ('Convolution', 'InnerProduct'))
    if len(layer.blobs) != arrays:
      expected = f'{arrays or "no"} arrays of weights'
      raise networks.misfit(expected, len(layer.blobs), _label(layer))
  return chain, variants.fields(_NETWORKS[letters])


def _check_settings(chain):
  """Refuses a layer that computes something else than that of the network.

  Caffe rounds the number of pooling windows up, `AlexNet` down, which is the
  same for images of 227 pixels.
  """
  convolutions = zip(*_CONVOLUTIONS.values(), strict=True)
  for layer in chain:
    kind = _type(layer)
    wanted = _OTHERS.get(kind, {})
    if kind == 'Convolution':
      wanted = dict(zip(_CONVOLUTIONS, next(convolutions), strict=True))
    settings = getattr(layer, _KINDS[kind][1])
    for field in settings.DESCRIPTOR.fields:
      name, default = field.name, field.default_value or 0  # [] of lists
      default = 1 if name in ('stride', 'dilation') else default
      expected = wanted.get(name, default)
      found = [*np.ravel(getattr(settings, name))] or [default]
      if (np.float32(found) != np.float32(expected)).any():
        text = ' and '.join(f'{number:g}' for number in found)
        raise networks.misfit(f'{name} {expected:g}', text, _label(layer))


def _read_weights(chain):
  names = iter([*(f'conv{n}' for n in range(1, 6)), 'dense1', 'dense2', 'head'])
  found = {}
  for layer in chain:
    if layer.blobs:
      axes = (2, 3, 1, 0) if _type(layer) == 'Convolution' else (1, 0)
      kernel = _to_array(layer.blobs[0], len(axes), f'{_label(layer)}, weights')
      bias = _to_array(layer.blobs[1], 1, f'{_label(layer)}, bias')
      found[next(names)] = {'kernel': kernel.transpose(axes), 'bias': bias}
  return found


def _to_array(blob, ndim, name):
  # Old blobs have a shape of four numbers, with ones in front.
  shape = (blob.num, blob.channels, blob.height, blob.width)
  if blob.HasField('shape'):
    shape = tuple(blob.shape.dim)
  extra = len(shape) - ndim
  if extra < 0 or {*shape[:extra]} - {1} or min(shape) < 1:
    raise networks.misfit(f'{ndim} dimensions', f'the shape {shape}', name)
  parts, kind = blob.data, '<f4'
  if any(blob.raw_data):
    parts, kind = blob.raw_data, _RAW_TYPES.get(blob.raw_type, 'V1')
  elif any(blob.double_data):
    parts, kind = blob.double_data, '<f8'
  data, dtype = b''.join(parts), np.dtype(kind)
  size = dtype.itemsize * math.prod(shape)
  if len(data) != size:
    expected = f'{size:,} bytes of packed {dtype.name} numbers'
    label = f'{name} of shape {shape}'
    raise networks.misfit(expected, f'{len(data):,}', label)
  return np.frombuffer(data, dtype).reshape(shape[extra:])


def _read_input(net):
  """Returns (fields of config.data, mean of red, green, blue or None)."""
  shapes = [net.input_dim[:4]] if net.input_dim else []
  shapes += [shape.dim for shape in net.input_shape[:1]]
  crops, scales, means = {_CROP_SIZE}, [], []
  for layer in net.layer or net.layers:
    if _type(layer) not in _SOURCES:
      continue
    transform = layer.transform_param
    means += [tuple(transform.mean_value)] if transform.mean_value else []
    for part in (transform, layer.data_param, layer.image_data_param):
      crops |= {part.crop_size} - {0}
      scales += [_decimal(part.scale)] if part.scale != 1 else []
    if net.layer:
      shapes += [shape.dim for shape in layer.input_param.shape[:1]]
  for shape in map(tuple, shapes):
    if len(shape) != 4 or shape[1] not in (1, 3):
      raise networks.misfit('an input (N, 3 or 1, height, width)', shape)
    crops |= {*shape[2:]}
  if others := sorted(crops - {_CROP_SIZE}):
    raise networks.misfit(f'images of {_CROP_SIZE} pixels', others[0])
  scale = _single(scales or [1.0], 'scale of the input')
  if not 0 < scale < math.inf:
    raise networks.misfit('a scale above 0', scale)
  data = {
    'resize_size': networks.RESIZE_SIZE,
    'crop_size': _CROP_SIZE,
    'mean': 'channel',
    'std': 1.0,
    'std_rgb': () if scale == 1 else (1 / scale,) * 3,
  }
  if not means:
    return data, None
  mean = _single(means, 'mean_value')[::-1]
  mean *= 3 if len(mean) == 1 else 1
  if len(mean) != 3 or not all(0 <= level <= 255 for level in mean):
    raise networks.misfit('3 levels of 255, or one', mean, 'mean_value')
  return data, mean


def _read_mean_image(path, channels):
  """Returns a mean image, float32 [height, width, channels], uncropped."""
  image = _to_array(_parse(path, BlobProto), 3, 'mean image')
  if len(image) != channels or min(image.shape[1:]) < _CROP_SIZE:
    raise networks.misfit(
      f'a mean image of {channels} channels and at least {_CROP_SIZE} x'
      f' {_CROP_SIZE} pixels',
      f'the shape {image.shape}',
    )
  if not 0 <= image.min() <= image.max() <= 255:  # or not a number
    found = f'{image.min():g} to {image.max():g}'
    raise networks.misfit('levels from 0 to 255', found)
  return np.array(image[::-1].transpose(1, 2, 0), np.float32, order='C')


def _single(values: Iterable, name: str):
  values = [*dict.fromkeys(values)]
  if len(values) != 1:
    found = ', '.join(map(str, values)) or 'none'
    raise networks.misfit('one value', found, name)
  return values[0]


def _decimal(value):  # the shortest of a float32
  return float(str(np.float32(value)))

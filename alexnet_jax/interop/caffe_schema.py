"""Caffe's protobuf messages, as far as a trained network needs them.

Names, numbers and defaults of fields are those of Caffe 1.0 (BVLC/caffe,
src/caffe/proto/caffe.proto); protobuf skips what is not declared. Messages are
built when the module is imported, in a pool of their own, so that they do not
collide with those of an installed Caffe. Some types differ, with the same
bytes: enumerations are integers, for unknown values to be seen; settings of
windows are repeated in `PoolingParameter`, too; names of files are bytes; and
so are packed numbers of a blob, for tens of millions of them to become an array
without a Python object each.
"""

import dataclasses
import math
import os
import pathlib

from google.protobuf import descriptor_pb2
from google.protobuf import descriptor_pool
from google.protobuf import message_factory
from google.protobuf.message import DecodeError
import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.interop import reading

# Lines of: name, number, type (* for repeated, + for repeated and packed),
# default if it is not zero.
_WINDOW = 'pad_h {0} uint32; pad_w {1} uint32; kernel_h {2} uint32;'
_WINDOW += 'kernel_w {3} uint32; stride_h {4} uint32; stride_w {5} uint32;'
_MESSAGES = {
  'BlobShape': 'dim 1 int64+',
  'BlobProto': """num 1 int32; channels 2 int32; height 3 int32; width 4 int32;
    data 5 bytes*; shape 7 BlobShape; double_data 8 bytes*""",
  'TransformationParameter': """scale 1 float 1; crop_size 3 uint32;
    mean_file 4 bytes; mean_value 5 float*""",
  # Of data, images and windows, whose old fields are those of
  # TransformationParameter.
  'DataParameter': 'scale 2 float 1; mean_file 3 bytes; crop_size 5 uint32',
  'InputParameter': 'shape 1 BlobShape*',
  'ConvolutionParameter': """num_output 1 uint32; bias_term 2 bool true;
    pad 3 uint32*; kernel_size 4 uint32*; group 5 uint32 1; stride 6 uint32*;
    axis 16 int32 1; dilation 18 uint32*;"""
  + _WINDOW.format(9, 10, 11, 12, 13, 14),
  'PoolingParameter': """pool 1 int32; kernel_size 2 uint32*; stride 3 uint32*;
    pad 4 uint32*; global_pooling 12 bool;"""
  + _WINDOW.format(9, 10, 5, 6, 7, 8),
  'InnerProductParameter': """num_output 1 uint32; bias_term 2 bool true;
    axis 5 int32 1; transpose 6 bool""",
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
    window_data_param 129 DataParameter; input_param 143 InputParameter""",
  'V1LayerParameter': """layer 1 bytes; bottom 2 string*; top 3 string*;
    name 4 string; type 5 int32; blobs 6 BlobProto*;
    convolution_param 10 ConvolutionParameter; data_param 11 DataParameter;
    dropout_param 12 DropoutParameter; image_data_param 15 DataParameter;
    inner_product_param 17 InnerProductParameter; lrn_param 18 LRNParameter;
    pooling_param 19 PoolingParameter; window_data_param 20 DataParameter;
    relu_param 30 ReLUParameter; transform_param 36 TransformationParameter""",
  'NetParameter': """name 1 string; layers 2 V1LayerParameter*;
    input 3 string*; input_dim 4 int32*; input_shape 8 BlobShape*;
    layer 100 LayerParameter*""",
}
# Numbers of V1LayerParameter.LayerType, by today's names.
V1_TYPES = {
  'Accuracy': 1,
  'Convolution': 4,
  'Data': 5,
  'Dropout': 6,
  'HDF5Data': 9,
  'ImageData': 12,
  'InnerProduct': 14,
  'LRN': 15,
  'Pooling': 17,
  'ReLU': 18,
  'Softmax': 20,
  'SoftmaxWithLoss': 21,
  'Split': 22,
  'WindowData': 24,
  'MemoryData': 29,
  'ArgMax': 30,
  'DummyData': 32,
  'Silence': 36,
}
# protobuf's own bound on a message.
_MOST_BYTES = 2**31 - 1


def _message_classes() -> dict:
  file = descriptor_pb2.FileDescriptorProto(
    name='alexnet_jax/caffe.proto', package='caffe', syntax='proto2'
  )
  for name, lines in _MESSAGES.items():
    message = file.message_type.add(name=name)
    for line in filter(None, (line.split() for line in lines.split(';'))):
      _add_field(message, *line)
  pool = descriptor_pool.DescriptorPool()
  pool.Add(file)
  return {
    name: message_factory.GetMessageClass(
      pool.FindMessageTypeByName(f'caffe.{name}')
    )
    for name in _MESSAGES
  }


def _add_field(message, name, number, kind, default=None):
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
  if default is not None:
    field.default_value = default


_CLASSES = _message_classes()
NetParameter = _CLASSES['NetParameter']
BlobProto = _CLASSES['BlobProto']


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer, whichever of the two formats it is written in.

  Attributes:
    name: for messages.
    type: such as `Convolution`.
    bottoms: names of the arrays that it reads, each once.
    tops: names of the arrays that it writes.
    blobs: list of BlobProto, its weights.
    settings: message with `convolution_param` and the like.
  """

  name: str
  type: str
  bottoms: tuple[str, ...]
  tops: tuple[str, ...]
  blobs: list
  settings: object

  def __str__(self):
    return f'layer {self.name} ({self.type})'


def parse(path: str | os.PathLike, message_class: type):
  """The message in a file.

  Args:
    path: of a binary file that holds one message and nothing else.
    message_class: `NetParameter` or `BlobProto`.

  Raises:
    UserError: if the file cannot be read, is empty, too large for protobuf, or
      no such message.
  """
  path = pathlib.Path(path)
  try:
    size = path.stat().st_size
    if not 0 < size <= _MOST_BYTES:
      raise UserError(
        f'has {size:,} bytes; expected between 1 and {_MOST_BYTES:,}, which is'
        ' the most that protobuf reads'
      )
    data = path.read_bytes()
  except OSError as error:
    raise UserError(f'cannot be read: {error.strerror}') from None
  name = message_class.DESCRIPTOR.name
  if data.startswith(reading.HDF5_START):
    raise UserError(
      f'expected a binary protobuf {name}, found an HDF5 file; have Caffe save'
      ' it with snapshot_format: BINARYPROTO'
    )
  try:
    return message_class.FromString(data)
  except DecodeError as error:
    raise UserError(
      f'expected a binary protobuf {name}, found {size:,} bytes that are none'
      f' ({error}): the file is truncated, damaged, or of another kind, such as'
      ' a .prototxt; get it again'
    ) from None


def layers(net) -> list[Layer]:
  """The layers of a NetParameter, in order.

  Raises:
    UserError: if there are none, or some are in a format older than the two.
  """
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
  names = {number: name for name, number in V1_TYPES.items()}
  return [
    Layer(
      name=str(layer.name),
      type=names.get(layer.type, f'V1 type {layer.type}')
      if net.layers
      else str(layer.type),
      bottoms=tuple(dict.fromkeys(layer.bottom)),
      tops=tuple(dict.fromkeys(layer.top)),
      blobs=list(layer.blobs),
      settings=layer,
    )
    for layer in net.layer or net.layers
  ]


def shape_of(blob) -> tuple[int, ...]:
  """Of a BlobProto; old ones have four numbers, with ones in front."""
  if blob.HasField('shape'):
    return tuple(blob.shape.dim)
  return (blob.num, blob.channels, blob.height, blob.width)


def tensor(blob, shape: tuple[int, ...], name: str) -> np.ndarray:
  """The numbers of a BlobProto.

  Args:
    blob: the BlobProto.
    shape: the one it must have, but for ones in front.
    name: for messages.

  Returns:
    float32 [*shape]; it may be read-only.

  Raises:
    UserError: if its shape is another, numbers are missing or too many, or
      some are not finite.
  """
  found = shape_of(blob)
  if _without_ones(found) != _without_ones(shape):
    raise UserError(f'{name}: expected the shape {shape}, found {found}')
  doubles = not blob.data and blob.double_data
  dtype = np.dtype('<f8' if doubles else '<f4')
  data = b''.join(blob.double_data if doubles else blob.data)
  wanted = math.prod(shape) * dtype.itemsize
  if len(data) != wanted:
    raise UserError(
      f'{name} of shape {shape}: expected {wanted:,} bytes of packed numbers,'
      f' found {len(data):,}'
    )
  return reading.as_float32(np.frombuffer(data, dtype), name).reshape(shape)


def _without_ones(shape):
  first = next((i for i, n in enumerate(shape) if n != 1), len(shape))
  return tuple(shape[first:])

"""What Caffe's networks read: the size, mean and scale of their images."""

import dataclasses
import logging
import math
import os

import numpy as np

from alexnet_jax.data import images
from alexnet_jax.errors import UserError
from alexnet_jax.interop import caffe_schema
from alexnet_jax.interop.caffe_layers import decimal
from alexnet_jax.interop.caffe_layers import single
from alexnet_jax.interop.caffe_schema import Layer

# Blue, green, red of 255: the mean of ILSVRC-2012's training images (104.01,
# 116.67, 122.68) as models/bvlc_reference_caffenet/train_val.prototxt of
# BVLC/caffe rounds it, where it is named beside the mean image.
_MEAN_BGR = (104.0, 117.0, 123.0)
_CROP_SIZE = 227  # of both of Caffe's networks
_RESIZE_SIZE = 256  # of the training images of both
# Types of layers that give images.
SOURCES = (
  *('Data', 'ImageData', 'Input', 'MemoryData', 'HDF5Data', 'WindowData'),
  'DummyData',
)


@dataclasses.dataclass(frozen=True)
class Input:
  """What a network says of its images.

  Attributes:
    crop_size: width, in pixels.
    mean: of red, green and blue, of 255; None: it has no `mean_value`.
    mean_file: name of the mean image that it subtracted; '' if there is none.
    scale: factor after the subtraction of the mean.
  """

  crop_size: int
  mean: tuple[float, float, float] | None
  mean_file: str
  scale: float


def of_network(net, layers: list[Layer]) -> Input:
  """What the network reads.

  Args:
    net: the NetParameter.
    layers: its layers.

  Raises:
    UserError: if the file says different things in different places, or the
      input is no square of three colours.
  """
  sources = [layer for layer in layers if layer.type in SOURCES]
  parts = [part for layer in sources for part in _settings(layer)]
  crops = [part.crop_size for part in parts if part.crop_size]
  crops += _widths(net, sources)
  scales = [decimal(part.scale) for part in parts if part.scale != 1]
  means = [
    tuple(layer.settings.transform_param.mean_value) for layer in sources
  ]
  files = [part.mean_file for part in parts if part.mean_file]
  crop = single(crops or [_CROP_SIZE], 'size of the input')
  scale = single(scales or [1.0], 'scale of the input')
  if crop < 1 or not 0 < scale < math.inf:
    raise UserError(f'found an input of {crop} pixels, scaled by {scale}')
  return Input(
    crop,
    _mean([mean for mean in means if mean]),
    files[0].decode(errors='replace') if files else '',
    scale,
  )


def _settings(layer):
  settings = layer.settings
  return (
    *(settings.transform_param, settings.data_param),
    *(settings.image_data_param, settings.window_data_param),
  )


def _widths(net, sources):
  """Of the inputs' shapes, as far as they are given."""
  shapes = [shape.dim for shape in net.input_shape[:1]]
  shapes += [net.input_dim[:4]] if net.input_dim else []
  for layer in sources:
    if layer.type == 'Input':
      shapes += [shape.dim for shape in layer.settings.input_param.shape[:1]]
  for shape in map(tuple, shapes):
    if len(shape) != 4 or shape[1] != 3 or shape[2] != shape[3]:
      raise UserError(f'expected an input (N, 3, size, size), found {shape}')
  return [shape[2] for shape in shapes]


def _mean(values):
  """Red, green and blue of `mean_value`s, blue first or one for all."""
  if not values:
    return None
  mean = single(values, 'mean_value')
  mean = mean * 3 if len(mean) == 1 else mean
  if len(mean) != 3 or not all(0 <= level <= 255 for level in mean):
    levels = ', '.join(f'{level:g}' for level in mean)
    raise UserError(f'expected a mean of 3 levels of 255, found ({levels})')
  return mean[::-1]


def mean_image(path: str | os.PathLike) -> np.ndarray:
  """A .binaryproto mean image.

  Returns:
    float32 [height, width, 3], red, green, blue, of 255.

  Raises:
    UserError: if the file is damaged or of another kind.
  """
  blob = caffe_schema.parse(path, caffe_schema.BlobProto)
  shape = caffe_schema.shape_of(blob)
  shape = shape[1:] if len(shape) == 4 and shape[0] == 1 else shape
  if len(shape) != 3 or shape[0] != 3 or min(shape) < 1:
    raise UserError(
      f'expected a mean image of the shape (3, height, width), found {shape}'
    )
  image = caffe_schema.tensor(blob, shape, 'mean image')
  least, most = image.min(), image.max()
  if not 0 <= least <= most <= 255:
    raise UserError(
      f'expected levels from 0 to 255, found {least:g} to {most:g}'
    )
  return np.array(image[::-1].transpose(1, 2, 0), order='C')


def preparation(
  found: Input, image: np.ndarray | None
) -> tuple[dict, np.ndarray]:
  """(fields of `config.data`, what is subtracted), as Caffe tests a network.

  Args:
    found: what the network says.
    image: see `mean_image`. Caffe subtracts it before it cuts out the middle,
      so it has the size of the images before that. None: the mean that the
      network says, or else that of ILSVRC-2012, which is said.

  Raises:
    UserError: if the mean image is smaller than the crop.
  """
  crop = found.crop_size
  data = {
    'resize_size': max(_RESIZE_SIZE, crop),
    'crop_size': crop,
    'mean': 'channel',
    'std': 1.0,
    'std_rgb': () if found.scale == 1 else (1 / found.scale,) * 3,
  }
  if image is None:
    _say_guess(found)
    return data, np.array(found.mean or _MEAN_BGR[::-1], np.float32)
  if (size := min(image.shape[:2])) < crop:
    raise UserError(
      f'expected a mean image of at least {crop} x {crop} pixels, those that'
      f' the network reads, found {image.shape[0]} x {image.shape[1]}'
    )
  data |= {'resize_size': size, 'mean': 'image'}
  return data, np.array(images.center_crop(image, crop))


def _say_guess(found):
  """Warns where what Caffe subtracted is not known."""
  if found.mean and not found.mean_file:
    return
  levels = ','.join(f'{level:g}' for level in found.mean or _MEAN_BGR[::-1])
  reason = 'does not say what was subtracted from pixels'
  if found.mean_file:
    reason = f'was trained with the mean image {found.mean_file!r}'
  logging.getLogger(__name__).warning(
    'the network %s; taken is %s for red, green and blue: give its mean image'
    ' with --mean FILE.binaryproto',
    reason,
    levels,
  )

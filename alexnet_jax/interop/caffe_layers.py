"""Caffe's layers one by one: settings as fields of ours, and weights."""

from collections.abc import Iterable
import math

import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.interop import caffe_schema
from alexnet_jax.interop.caffe_schema import Layer


def convolution(
  layer: Layer, channels: int, reads_colors: bool
) -> tuple[dict, dict]:
  """A convolution's entries of the fields of the model, and its parameters.

  Args:
    layer: the convolution.
    channels: number of those that it reads.
    reads_colors: whether they are blue, green and red.

  Returns:
    {channels, kernels, strides, paddings, groups}, one number each, and
    {kernel [height, width, channels / groups, out], bias [out]}, float32, for
    red, green and blue.

  Raises:
    UserError: if a setting is one that our convolution does not have, or the
      weights do not fit.
  """
  settings = layer.settings.convolution_param
  kernel, stride, padding = _window(layer, settings)
  groups, count = settings.group, settings.num_output
  if not count or not groups or channels % groups or count % groups:
    raise UserError(
      f'{layer}: expected groups that divide channels and outputs, found'
      f' {groups} groups, {channels} channels and {count} outputs'
    )
  if reads_colors and groups > 1:
    raise UserError(f'{layer}: expected 1 group, found {groups}')
  if {*settings.dilation} - {1} or settings.axis != 1:
    raise UserError(
      f'{layer}: expected dilation 1 and axis 1, found'
      f' {tuple(settings.dilation)} and {settings.axis}'
    )
  shape = count, channels // groups, kernel, kernel
  weights, bias = _weights(layer, settings, shape, count)
  if reads_colors:
    weights = weights[:, ::-1]
  entries = {
    'channels': count,
    'kernels': kernel,
    'strides': stride,
    'paddings': padding,
    'groups': groups,
  }
  kernel = np.array(weights.transpose(2, 3, 1, 0), order='C')
  return entries, {'kernel': kernel, 'bias': bias}


def dense(layer: Layer, shape: tuple[int, ...]) -> dict:
  """The parameters of an InnerProduct.

  Args:
    layer: the InnerProduct.
    shape: of an example that it reads, without the batch: (channels, height,
      width) or (inputs,).

  Returns:
    {kernel [inputs, out], bias [out]}, float32; channels are the last of what
    the kernel reads: height, width, channels.

  Raises:
    UserError: if a setting is one that our layer does not have, or the weights
      do not fit.
  """
  settings = layer.settings.inner_product_param
  count, inputs = settings.num_output, math.prod(shape)
  if not count or settings.axis != 1:
    raise UserError(
      f'{layer}: expected outputs and axis 1, found {count} outputs and axis'
      f' {settings.axis}'
    )
  wanted = (inputs, count) if settings.transpose else (count, inputs)
  kernel, bias = _weights(layer, settings, wanted, count)
  kernel = (kernel if settings.transpose else kernel.T).reshape(*shape, count)
  if len(shape) == 3:
    kernel = kernel.transpose(1, 2, 0, 3)
  kernel = np.array(kernel.reshape(inputs, count), order='C')
  return {'kernel': kernel, 'bias': bias}


def normalization(layer: Layer) -> dict:
  """An LRN as fields of the model.

  Returns:
    {lrn_size, lrn_k, lrn_alpha, lrn_beta}: Caffe's bracket is k + alpha / size
    * sum (src/caffe/layers/lrn_layer.cpp), the convention `caffe`.

  Raises:
    UserError: if it is one within channels, or a number is unfit.
  """
  settings = layer.settings.lrn_param
  if settings.norm_region or not settings.local_size % 2:
    raise UserError(
      f'{layer}: expected norm_region 0 (ACROSS_CHANNELS) and an odd'
      f' local_size, found {settings.norm_region} and {settings.local_size}'
    )
  names = 'k', 'alpha', 'beta'
  values = {name: decimal(getattr(settings, name)) for name in names}
  if not all(map(math.isfinite, values.values())) or values['k'] <= 0:
    raise UserError(
      f'{layer}: expected finite numbers and k > 0, found {values}'
    )
  fields = {f'lrn_{name}': value for name, value in values.items()}
  return {'lrn_size': settings.local_size, **fields}


def pooling(layer: Layer, size: int) -> dict:
  """A max-pool as fields of the model.

  Args:
    layer: the Pooling.
    size: width of what it reads, in pixels.

  Returns:
    {pool_size, pool_stride}.

  Raises:
    UserError: if it takes no maximum, has padding, or has a window that is not
      whole. Caffe rounds the number of windows up
      (src/caffe/layers/pooling_layer.cpp), our pooling rounds it down.
  """
  settings = layer.settings.pooling_param
  if settings.pool or settings.global_pooling:
    raise UserError(
      f'{layer}: expected MAX (pool 0) over windows, found pool {settings.pool}'
      f' and global_pooling {settings.global_pooling}'
    )
  kernel, stride, padding = _window(layer, settings)
  if padding:
    raise UserError(f'{layer}: expected no padding, found {padding}')
  if size < kernel or (size - kernel) % stride:
    raise UserError(
      f'{layer}: expected windows that end with the last pixel, found'
      f' windows of {kernel} every {stride} over {size} pixels; Caffe would add'
      ' one that is cut off, here it would be left out'
    )
  return {'pool_size': kernel, 'pool_stride': stride}


def single(values: Iterable, name: str):
  """The one that all values are; `name` is for the error's message.

  Raises:
    UserError: if they differ, or there are none.
  """
  values = [*dict.fromkeys(values)]
  if len(values) != 1:
    found = ', '.join(map(str, values)) or 'none'
    raise UserError(f'{name}: expected one value, found {found}')
  return values[0]


def decimal(value: float) -> float:
  """The shortest decimal of a float32: 0.0001 for 0.0000999999974737875."""
  return float(str(np.float32(value)))


def _window(layer, settings):
  """(kernel, stride, padding), the same down and across."""
  found = []
  for name, short, default in (
    ('kernel_size', 'kernel', ()),
    ('stride', 'stride', (1,)),
    ('pad', 'pad', (0,)),
  ):
    sides = [s for s in (f'{short}_h', f'{short}_w') if settings.HasField(s)]
    values = [*getattr(settings, name), *(getattr(settings, s) for s in sides)]
    found.append(single(values or default, f'{layer}, {name}'))
  kernel, stride, _ = found
  if not kernel or not stride:
    raise UserError(
      f'{layer}: found a kernel of {kernel}, a stride of {stride}'
    )
  return found


def _weights(layer, settings, shape, count):
  wanted = 2 if settings.bias_term else 1
  if len(layer.blobs) != wanted:
    raise UserError(
      f'{layer}: expected {wanted} arrays of weights, found {len(layer.blobs)}'
    )
  weights = caffe_schema.tensor(layer.blobs[0], shape, f'{layer}, weights')
  if not settings.bias_term:
    return weights, np.zeros(count, np.float32)
  bias = caffe_schema.tensor(layer.blobs[1], (count,), f'{layer}, bias')
  return weights, np.array(bias)

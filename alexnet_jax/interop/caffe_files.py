"""Caffe's trained networks: bvlc_alexnet, caffenet and their relatives.

A .caffemodel holds the layers with their settings and weights. Whatever is
converted is read from there: groups, strides, padding, pooling, the constants
of LRN, dropout, and whether pooling comes before LRN (caffenet) or after it
(bvlc_alexnet).
"""

import dataclasses
import os

from alexnet_jax.errors import UserError
from alexnet_jax.interop import caffe_input
from alexnet_jax.interop import caffe_layers
from alexnet_jax.interop import caffe_schema
from alexnet_jax.interop import reading
from alexnet_jax.interop.caffe_layers import decimal
from alexnet_jax.interop.caffe_layers import single
from alexnet_jax.interop.caffe_schema import Layer
from alexnet_jax.interop.imported import Imported

_CONVOLUTION, _DENSE = 'Convolution', 'InnerProduct'
_AFTER_CONVOLUTION = {'ReLU': 'relu', 'LRN': 'norm', 'Pooling': 'pool'}
_COMPUTING = (_CONVOLUTION, _DENSE, *_AFTER_CONVOLUTION, 'Dropout')
_ENDS = ('Softmax', 'SoftmaxWithLoss', 'Accuracy', 'ArgMax', 'Silence')
_TYPES = (*_COMPUTING, *caffe_input.SOURCES, *_ENDS, 'Split')
# What may follow the convolutions, and where dropout is then.
_DENSE_PARTS = {
  (_DENSE, 'ReLU', 'Dropout') * 2 + (_DENSE,): 'after',
  (_DENSE, 'Dropout', 'ReLU') * 2 + (_DENSE,): 'after',
  ('Dropout', _DENSE, 'ReLU') * 2 + (_DENSE,): 'before',
  (_DENSE, 'ReLU') * 2 + (_DENSE,): 'after',
}


@dataclasses.dataclass
class _Block:
  convolution: Layer
  after: list[Layer]


def read(
  path: str | os.PathLike, mean: str | os.PathLike | None = None
) -> Imported:
  """The network in a .caffemodel, be it of `layer`s or of the older `layers`.

  Blue, green and red of the first kernel become red, green and blue, kernels
  [out, in, height, width] become [height, width, in, out], and the first dense
  layer reads [height, width, channels] instead of [channels, height, width].

  Images are prepared as elsewhere here, not quite as for Caffe: their short
  side becomes 256 pixels and the middle is cut out, where Caffe's scripts warp
  the whole image to 256 x 256 (examples/imagenet/create_imagenet.sh). That size
  is not in the file: it is that of the mean image, or else 256, or the crop if
  that is larger. The size of the crop is that of the file's input or data
  layer, 227 if there is none.

  Args:
    path: of the .caffemodel.
    mean: of a .binaryproto file with Caffe's mean image, which is subtracted
      pixel by pixel; images are resized to its short side. None: the file's
      `mean_value`s; if it has none, as the published files, 123, 117 and 104
      for red, green and blue, which is said.

  Returns:
    The network; its parameters are float32. Its mean is an image, float32
    [crop_size, crop_size, 3], if one is given.

  Raises:
    UserError: if a file cannot be read, is damaged or of another kind, or holds
      a network that is no AlexNet as the config can describe it; with what was
      expected and found.
  """
  with reading.naming(path):
    net = caffe_schema.parse(path, caffe_schema.NetParameter)
    layers = caffe_schema.layers(net)
    blocks, dense = _parts(_chain(layers))
    found = caffe_input.of_network(net, layers)
    model, params, shape = _convolutions(blocks, found.crop_size)
    params |= _dense_layers(dense, shape)
    model |= _dropout(dense)
  with reading.naming(mean or path):
    image = None if mean is None else caffe_input.mean_image(mean)
    data, subtracted = caffe_input.preparation(found, image)
  hidden = (params[name]['bias'] for name in ('dense1', 'dense2'))
  return Imported(
    params=params,
    batch_stats={},
    model=model | {'hidden': tuple(len(bias) for bias in hidden)},
    data=data,
    mean=subtracted,
    num_classes=len(params['head']['bias']),
  )


def _chain(layers):
  """The computing layers, each of which must read what the one before wrote."""
  chain, current, sources = [], None, {}
  for layer in layers:
    _check_type(layer)
    bottoms = {sources.get(name, name) for name in layer.bottoms}
    if layer.type == 'Split' and len(bottoms) == 1:
      sources |= dict.fromkeys(layer.tops, *bottoms)
    if layer.type not in _COMPUTING:
      continue
    if len(bottoms) != 1 or len(layer.tops) != 1:
      raise UserError(
        f'{layer}: expected one bottom and one top, found {layer.bottoms} and'
        f' {layer.tops}'
      )
    if chain and bottoms != {current}:
      raise UserError(
        f'{layer}: expected the bottom {current!r}, the top of {chain[-1]},'
        f' found {layer.bottoms[0]!r}; the layers of an AlexNet are a chain'
      )
    (current,) = layer.tops
    sources.pop(current, None)
    chain.append(layer)
  return chain


def _check_type(layer):
  if layer.type not in _TYPES:
    raise UserError(
      f'{layer}, with {len(layer.blobs)} arrays of weights: expected one of the'
      f' types {", ".join(_TYPES)}'
    )
  if layer.blobs and layer.type not in (_CONVOLUTION, _DENSE):
    raise UserError(
      f'{layer}: expected no weights, found {len(layer.blobs)} arrays'
    )
  slope = layer.settings.relu_param.negative_slope
  if layer.type == 'ReLU' and slope:
    raise UserError(f'{layer}: expected negative_slope 0, found {slope}')


def _parts(chain):
  """(blocks of a convolution and what follows it, the dense part)."""
  weighted = [layer for layer in chain if layer.type in (_CONVOLUTION, _DENSE)]
  types = [layer.type for layer in weighted]
  if types != [_CONVOLUTION] * 5 + [_DENSE] * 3:
    raise UserError(
      f'expected 5 layers {_CONVOLUTION} and then 3 {_DENSE}, found'
      f' {", ".join(f"{layer.name} ({layer.type})" for layer in weighted)}'
    )
  start = chain.index(weighted[5])
  while chain[start - 1].type == 'Dropout':
    start -= 1
  blocks = []
  for layer in chain[:start]:
    if layer.type == _CONVOLUTION:
      blocks.append(_Block(layer, []))
    elif blocks and layer.type in _AFTER_CONVOLUTION:
      blocks[-1].after.append(layer)
    else:
      raise UserError(
        f'{layer}: expected {_CONVOLUTION} first and'
        f' {", ".join(_AFTER_CONVOLUTION)} between them'
      )
  return blocks, chain[start:]


def _convolutions(blocks, crop_size):
  """(fields of the model, parameters, (channels, height, width) at the end)."""
  entries, params, norms, pools = [], {}, {}, {}
  channels, size = 3, crop_size
  for number, block in enumerate(blocks, 1):
    entry, params[f'conv{number}'] = caffe_layers.convolution(
      block.convolution, channels, number == 1
    )
    entries.append(entry | {'block_order': _order(block)})
    channels = entry['channels']
    size += 2 * entry['paddings'] - entry['kernels']
    size = size // entry['strides'] + 1
    if size < 1:
      raise UserError(
        f'{block.convolution} has no output for an input of {crop_size} pixels'
      )
    for layer in block.after:
      if layer.type == 'LRN':
        norms[number] = caffe_layers.normalization(layer)
      elif layer.type == 'Pooling':
        pool = pools[number] = caffe_layers.pooling(layer, size)
        size = (size - pool['pool_size']) // pool['pool_stride'] + 1
  model = {name: tuple(entry[name] for entry in entries) for name in entries[0]}
  model |= {
    'block_order': model['block_order'] if any(model['block_order']) else (),
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
      model |= single(settings, f'settings of the layers {kind}')
  return model, params, (channels, size, size)


def _order(block):
  names = [_AFTER_CONVOLUTION[layer.type] for layer in block.after]
  if len({*names}) < len(names) or 'relu' not in names:
    raise UserError(
      f'{block.convolution}: expected one ReLU after it and at most one LRN and'
      f' one Pooling, found {", ".join(layer.type for layer in block.after)}'
    )
  usual = [name for name in _AFTER_CONVOLUTION.values() if name in names]
  return '' if names == usual else '-'.join(names)


def _dense_layers(dense, shape):
  params = {}
  layers = (layer for layer in dense if layer.type == _DENSE)
  for name, layer in zip(('dense1', 'dense2', 'head'), layers, strict=True):
    params[name] = caffe_layers.dense(layer, shape)
    shape = (len(params[name]['bias']),)
  return params


def _dropout(dense):
  types = tuple(layer.type for layer in dense)
  if types not in _DENSE_PARTS:
    raise UserError(
      f'expected twice {_DENSE} and ReLU, with Dropout both times or never, and'
      f' {_DENSE} at the end, found {", ".join(types)}'
    )
  ratios = [
    decimal(layer.settings.dropout_param.dropout_ratio)
    for layer in dense
    if layer.type == 'Dropout'
  ]
  ratio = single(ratios or [0.0], 'dropout_ratio')
  if not 0 <= ratio < 1:
    raise UserError(f'dropout_ratio: expected 0 to below 1, found {ratio}')
  place = _DENSE_PARTS[types]
  # Caffe scales up what it keeps (src/caffe/layers/dropout_layer.cpp).
  return {
    'dropout': ratio,
    'dropout_position': place,
    'dropout_scaling': 'training',
  }

"""The network's table: parameters, output shapes and FLOPs."""

import itertools
import math
import sys

from clu import parameter_overview
import jax
import jax.numpy as jnp
import rich.console
import rich.table

from alexnet_jax.errors import UserError
from alexnet_jax.training import build


def show(config) -> dict:
  """Prints the table of the config's network; returns its totals."""
  num_classes = config.model.num_classes or len(
    build.make_source(config, 'train').class_names
  )
  model = build.make_model(config, num_classes)
  shape = build.image_shape(config)
  try:
    params, rows = layer_table(model, shape)
  except ValueError as error:  # of the network's own checks
    raise UserError(f'config.model: {error}') from error
  print(
    parameter_overview.get_parameter_overview(params, include_stats=False),
    file=sys.stderr,
  )
  table = rich.table.Table(title=f'one image of {shape[0]} x {shape[1]} pixels')
  for column in ('layer', 'operation'):
    table.add_column(column)
  for column in ('output', 'forward MFLOP'):
    table.add_column(column, justify='right')
  for name, output, macs in rows:
    table.add_row(
      name,
      operation(model, name),
      ' x '.join(map(str, output)),
      f'{2 * macs / 1e6:,.1f}',
    )
  rich.console.Console(stderr=True, width=100, highlight=False).print(table)
  numbers = totals(params, rows)
  parameters, forward, training = numbers.values()
  print(
    f'{parameters:,} parameters; {forward / 1e9:.4f} GFLOP forward and'
    f' {training / 1e9:.3f} GFLOP training per image (convolutions and dense'
    ' layers, two per multiply-add)',
    file=sys.stderr,
  )
  return numbers


def totals(params, rows) -> dict[str, int]:
  """{parameters, forward_flops_per_image, training_flops_per_image}.

  Of convolutions and dense layers, two FLOP per multiply-add.

  Args:
    params: see `layer_table`.
    rows: the same.
  """
  forward = 2 * sum(macs for *_, macs in rows)
  return {
    'parameters': sum(leaf.size for leaf in jax.tree.leaves(params)),
    'forward_flops_per_image': forward,
    # The gradients cost twice as much, but there is none for the image.
    'training_flops_per_image': 3 * forward - 2 * rows[0][2],
  }


def layer_table(model, image_shape):
  """Parameters and one row per layer of a network, without computing it.

  Args:
    model: an `AlexNet`.
    image_shape: (height, width, 3).

  Returns:
    (params, rows): params as ShapeDtypeStructs; a row is (name, output shape
    without the batch, multiply-adds per image), in order of execution.
  """

  def run(key, images):
    variables = model.init(key, images)
    _, seen = model.apply(
      {**variables}, images, capture_intermediates=True, mutable=True
    )
    return variables['params'], seen['intermediates']

  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  params, seen = jax.eval_shape(run, jax.random.key(0), images)
  plain = [name for name in seen if name.startswith(('lrn', 'pool', 'spatial'))]
  rows = []
  for name in sorted(
    [*params, *plain], key=lambda name: _position(model, name)
  ):
    shape = seen[name]['__call__'][0].shape[1:]
    kernel = params.get(name, {}).get('kernel')
    positions = math.prod(shape[:-1])
    macs = positions * math.prod(kernel.shape) if kernel is not None else 0
    rows.append((name, shape, macs))
  return params, rows


def operation(model, name: str) -> str:
  """What a layer does, in words, with the ReLU and dropout around it.

  Args:
    model: an `AlexNet`.
    name: of a layer, see `layer_table`.
  """
  kind, number = _split(name)
  if kind == 'head':
    return 'dense'
  words = {'relu': 'ReLU', 'dropout': f'dropout {model.dropout:g}'}
  names = _operations(model, kind, number)
  place = names.index(_OPERATIONS[kind])
  after = itertools.takewhile(words.__contains__, names[place + 1 :])
  before = names[:place] if kind == 'dense' else []
  return ', '.join(
    [
      *(words[each] for each in before),
      _itself(model, kind, number),
      *(words[each] for each in after),
    ]
  )


# The operation of `AlexNetSpec` that each kind of layer does.
_OPERATIONS = {
  'conv': 'conv',
  'norm': 'norm',
  'lrn': 'norm',
  'spatial': 'spatial',
  'pool': 'pool',
  'dense': 'dense',
  'dense_norm': 'norm',
}


def _operations(model, kind, number):
  """What a convolution or hidden layer and all around it do, in order."""
  if kind.startswith('dense'):
    names = model.hidden_operations(number)
    return [n for n in names if n != 'dropout' or model.dropout]
  names = model.convolution_operations(number)
  return ['conv', *(n for n in names if n != 'norm' or model.norm != 'none')]


def _itself(model, kind, number):
  if kind in ('norm', 'dense_norm'):
    return 'batch norm'
  if kind == 'lrn':
    return f'over {model.lrn_size} channels' + _groups(model.lrn_groups)
  if kind == 'spatial':
    return f'over {model.spatial_size} x {model.spatial_size}'
  if kind == 'pool':
    size = model.pool_size
    return f'largest of {size} x {size}, stride {model.pool_stride}'
  if kind == 'dense':
    return 'dense'
  index = number - 1
  size, padding = model.kernels[index], _padding(model.paddings[index])
  words = f'{size} x {size}, stride {model.strides[index]}, padding {padding}'
  return words + _groups(model.groups[index])


def _groups(number):
  return f', {number} groups' if number > 1 else ''


def _padding(padding):
  """`SAME`, `2`, or `2 and 1` where before and after differ."""
  if isinstance(padding, str | int):
    return str(padding)
  return ' and '.join(map(str, dict.fromkeys(padding)))


def _position(model, name):
  """Of a layer in order of execution, to be compared with others."""
  kind, number = _split(name)
  if kind == 'head':
    return 2, 0, 0
  if kind not in _OPERATIONS:
    raise ValueError(f'no layer is called {name!r}')
  place = _operations(model, kind, number).index(_OPERATIONS[kind])
  return int(kind.startswith('dense')), number, place


def _split(name):
  kind = name.rstrip('0123456789')
  return kind, int(name.removeprefix(kind) or 0)

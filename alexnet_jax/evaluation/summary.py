"""The network's table: parameters, output shapes and FLOPs."""

import math
import sys

from clu import parameter_overview
import jax
import jax.numpy as jnp
import rich.console
import rich.table

from alexnet_jax import assemble
from alexnet_jax.errors import UserError
from alexnet_jax.models.operations import after_convolution


def show(config) -> dict:
  """Prints the table of the config's network; returns its totals."""
  num_classes = config.model.num_classes or len(
    assemble.make_source(config, 'train').class_names
  )
  model = assemble.make_model(config, num_classes)
  shape = assemble.image_shape(config)
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
    output = seen[name] if name in plain else seen[name]['__call__']
    shape = output[0].shape[1:]
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
  if kind in _KINDS:
    names = _block(model, number)
    place = names.index(_KINDS[kind])
    relu = names[place + 1 : place + 2] == ['relu']
    return _on_pixels(model, kind, number) + ', ReLU' * relu
  if kind == 'head':
    return 'dense'
  normed = number in model.norm_hidden
  # The ReLU comes last but where a batch norm follows it.
  last = kind == 'dense_norm' or not normed
  relu = last if model.norm_before_relu else kind == 'dense'
  dropout = [f'dropout {model.dropout:g}'] if model.dropout else []
  before = kind == 'dense' and model.dropout_place == 'before'
  return ', '.join(
    [
      *(dropout if before else []),
      'dense' if kind == 'dense' else 'batch norm',
      *(['ReLU'] if relu else []),
      *(dropout if last and model.dropout_place == 'after' else []),
    ]
  )


# Of each layer between convolutions the name among `operations.OPERATIONS`.
_KINDS = {
  'conv': 'conv',
  'norm': 'norm',
  'lrn': 'norm',
  'spatial': 'spatial',
  'pool': 'pool',
}


def _block(model, number):
  """The operations of a convolution and what follows it, in order."""
  missing = 'norm' if model.norm == 'none' else None
  names = after_convolution(model, number)
  return ['conv', *(name for name in names if name != missing)]


def _on_pixels(model, kind, number):
  if kind == 'norm':
    return 'batch norm'
  if kind == 'lrn':
    groups = model.lrn_groups
    return f'over {model.lrn_size} channels' + f', {groups} groups' * (
      groups > 1
    )
  if kind == 'spatial':
    return f'over {model.spatial_size} x {model.spatial_size}'
  if kind == 'pool':
    size = model.pool_size
    return f'largest of {size} x {size}, stride {model.pool_stride}'
  index = number - 1
  size, padding = model.kernels[index], _words(model.paddings[index])
  words = f'{size} x {size}, stride {model.strides[index]}, padding {padding}'
  return words + _groups(model.groups[index])


def _groups(number):
  return f', {number} groups' if number > 1 else ''


def _words(padding):
  """`SAME`, `2`, or `2 and 1` where before and after differ."""
  if isinstance(padding, str | int):
    return str(padding)
  return ' and '.join(map(str, dict.fromkeys(padding)))


def _position(model, name):
  """Sorts the names of layers in order of execution."""
  kind, number = _split(name)
  if kind in _KINDS:
    return 0, number, _block(model, number).index(_KINDS[kind])
  kinds = ('dense', 'dense_norm', 'head')
  if kind not in kinds:
    raise ValueError(f'no layer is called {name!r}')
  return 1 + (kind == 'head'), number, kinds.index(kind)


def _split(name):
  kind = name.rstrip('0123456789')
  return kind, int(name.removeprefix(kind) or 0)

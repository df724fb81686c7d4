"""The table of a network: output shapes, parameters and FLOPs of its layers."""

import sys

from alexnet_jax.evaluation import page
from alexnet_jax.models import costs, layers
from alexnet_jax.training import build


def show(config) -> dict:
  """Prints the table of the config's network; returns its totals."""
  num_classes, shape = build.find_num_classes(config), build.image_shape(config)
  model = build.make_model(config, num_classes)
  params, rows = build.network_layers(config, num_classes)
  cells = []
  for name, output, macs in rows:
    own = params.get(name, {})
    leaves = sorted(own.items(), reverse=True)
    shapes = '\n'.join(f'{key} {times(leaf.shape)}' for key, leaf in leaves)
    words = name, operation(model, name), times(output), shapes
    cells.append((*words, costs.count(own), 2 * macs))
  title = (
    f'one image of {shape[0]} x {shape[1]} pixels; activation'
    f' {model.activation}, dropout {model.dropout:g}'
  )
  columns = ('layer', 'operation', 'output', 'shapes', 'parameters')
  page.show_table(page.Table(title, (*columns, 'forward FLOP'), cells))
  numbers = costs.totals(params, rows)
  parameters, forward, training = numbers.values()
  print(
    f'{parameters:,} parameters; {forward / 1e9:.4f} GFLOP forward and'
    f' {training / 1e9:.3f} GFLOP training per image (convolutions and dense'
    ' layers, two per multiply-add)',
    file=sys.stderr,
  )
  return numbers


def times(shape) -> str:
  """Writes a shape as `5 x 5 x 3`."""
  return ' x '.join(map(str, shape))


def operation(model, name: str) -> str:
  """Describes a layer of an `AlexNet` by the fields of the network."""
  kind, groups = name.rstrip('0123456789'), 1
  words = 'batch norm' if kind.endswith('norm') else 'dense'
  if kind == 'conv':
    index = int(name.removeprefix(kind)) - 1
    size, padding = model.kernels[index], model.paddings[index]
    if not isinstance(padding, str | int):  # before and after
      padding = ' and '.join(map(str, dict.fromkeys(padding)))
    words = f'{size} x {size}, stride {model.strides[index]}, padding {padding}'
    groups = model.groups[index]
  elif kind == 'pool':
    size = model.pool_size
    words = f'largest of {size} x {size}, stride {model.pool_stride}'
  elif kind == 'lrn':
    words, groups = f'over {model.lrn_size} channels', model.lrn_groups
  elif kind == 'spatial':
    size = layers.SpatialResponseNorm.size
    words = f'over {size} x {size}'
  return words + f', {groups} groups' * (groups > 1)

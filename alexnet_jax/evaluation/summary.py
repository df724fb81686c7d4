"""The table of a network: output shapes, parameters and FLOPs of its layers."""

import math
import sys

import jax
import jax.numpy as jnp

from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import page
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
  cells = []
  for name, output, macs in rows:
    own = params.get(name, {})
    leaves = sorted(own.items(), reverse=True)
    shapes = '\n'.join(f'{key} {times(leaf.shape)}' for key, leaf in leaves)
    words = name, operation(model, name), times(output), shapes
    cells.append((*words, count(own), 2 * macs))
  title = f'one image of {shape[0]} x {shape[1]} pixels'
  columns = ('layer', 'operation', 'output', 'shapes', 'parameters')
  page.show_table(page.Table(title, (*columns, 'forward FLOP'), cells))
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
  """Sums {parameters, forward_flops_per_image, training_flops_per_image} up.

  FLOPs are those of convolutions and dense layers, two per multiply-add; for
  `params` and `rows` see `layer_table`.
  """
  forward = 2 * sum(macs for *_, macs in rows)
  return {
    'parameters': count(params),
    'forward_flops_per_image': forward,
    # The gradients cost twice as much, but there is none for the image.
    'training_flops_per_image': 3 * forward - 2 * rows[0][2],
  }


def count(params) -> int:
  """Returns the number of parameters in a tree; 0 of None."""
  return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(params))


def times(shape) -> str:
  """Writes a shape as `5 x 5 x 3`."""
  return ' x '.join(map(str, shape))


def layer_table(model, image_shape):
  """Returns the parameters and layers of a network, without computing it.

  Args:
    model: an `AlexNet`.
    image_shape: (height, width, 3).

  Returns:
    (params, rows): params as ShapeDtypeStructs; a row is (name, output shape
    without the batch, multiply-adds per image), in order of execution.
  """
  names = []

  def run(key, images):
    made = model.init(key, images, mutable=True, capture_intermediates=True)
    made['intermediates'].pop('__call__')
    # In order of execution, which the result of a traced function has not.
    names[:] = made['intermediates']
    return made['params'], made['intermediates']

  images = jax.ShapeDtypeStruct((1, *image_shape), jnp.float32)
  params, outputs = jax.eval_shape(run, jax.random.key(0), images)
  rows = []
  for name in names:
    shape = jax.tree.leaves(outputs[name])[0].shape[1:]
    kernel = params.get(name, {}).get('kernel')
    positions = math.prod(shape[:-1])
    macs = 0 if kernel is None else positions * math.prod(kernel.shape)
    rows.append((name, shape, macs))
  return params, rows


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
    words = f'over {model.spatial_size} x {model.spatial_size}'
  return words + f', {groups} groups' * (groups > 1)

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
  for column in ('layer', 'output', 'forward MFLOP'):
    table.add_column(column, justify='left' if column == 'layer' else 'right')
  for name, output, macs in rows:
    table.add_row(name, ' x '.join(map(str, output)), f'{2 * macs / 1e6:,.1f}')
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
    model: a flax module of images.
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
  for name in sorted([*params, *plain], key=_position):
    output = seen[name] if name in plain else seen[name]['__call__']
    shape = output[0].shape[1:]
    kernel = params.get(name, {}).get('kernel')
    positions = math.prod(shape[:-1])
    macs = positions * math.prod(kernel.shape) if kernel is not None else 0
    rows.append((name, shape, macs))
  return params, rows


def _position(name):
  """Sorts the names of layers in order of execution."""
  kind = name.rstrip('0123456789')
  number = int(name.removeprefix(kind) or 0)
  stages = (
    ('conv', 'norm', 'lrn', 'spatial', 'pool'),
    ('dense', 'dense_norm'),
    ('head',),
  )
  for stage, kinds in enumerate(stages):
    if kind in kinds:
      return stage, number, kinds.index(kind)
  raise ValueError(f'no layer is called {name!r}')

"""What follows a convolution, what a hidden layer does, and in which order.

`network` is an `AlexNet`; what is needed of it are its fields.
"""

OPERATIONS = ('relu', 'norm', 'spatial', 'pool')


def after_convolution(network, number: int) -> tuple[str, ...]:
  """Names among OPERATIONS, in order, of what follows convolution `number`."""
  if network.block_order and network.block_order[number - 1]:
    return tuple(network.block_order[number - 1].split('-'))
  norm = ('norm',) if number in network.norm_layers else ()
  pool = ('pool',) if number in network.pool_layers else ()
  if network.norm_before_relu:
    return (*norm, 'relu', *pool)
  return ('relu', *norm, *pool)


def of_hidden_layer(network, number: int) -> tuple[str, ...]:
  """Names among dense, norm, relu and dropout, in order, of a hidden layer."""
  norm = ('norm',) if number in network.norm_hidden else ()
  if network.norm_before_relu:
    names = ('dense', *norm, 'relu')
  else:
    names = ('dense', 'relu', *norm)
  if network.dropout_position == 'before':
    return ('dropout', *names)
  return (*names, 'dropout')


def order_problem(order: str, number: int, norm_layers, pool_layers) -> str:
  """What is wrong with an order; '' if nothing is.

  Args:
    order: names joined by `-`, or '' for the usual order.
    number: of the convolution, from 1.
    norm_layers, pool_layers: numbers of the convolutions that have those.
  """
  if not order:
    return ''
  names = order.split('-')
  if unknown := [name for name in names if name not in OPERATIONS]:
    return f'{unknown[0]!r} is not one of {OPERATIONS}'
  wanted = ['relu']
  wanted += ['norm'] * (number in norm_layers)
  wanted += ['pool'] * (number in pool_layers)
  if sorted(name for name in names if name != 'spatial') != sorted(wanted):
    return (
      f'{order!r} of convolution {number} must name each of'
      f' {", ".join(wanted)} once, as norm_layers and pool_layers say'
    )
  if names.count('spatial') > 1:
    return f'{order!r} names spatial more than once'
  return ''

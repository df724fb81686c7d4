"""Checks the fields of an `AlexNet` before anything is built."""

from collections.abc import Mapping

from alexnet_jax.models.layers import KERNEL_INITS
from alexnet_jax.models.normalization import LRN_CONVENTIONS
from alexnet_jax.models.operations import order_problem

NORMS = ('lrn', 'batch', 'none')
DROPOUT_POSITIONS = ('after', 'before')
DROPOUT_SCALINGS = ('training', 'evaluation')

_CHOICES = {
  'norm': NORMS,
  'norm_before_relu': (False, True),
  'lrn_convention': LRN_CONVENTIONS,
  'kernel_init': KERNEL_INITS,
  'dropout_position': DROPOUT_POSITIONS,
  'dropout_scaling': DROPOUT_SCALINGS,
}
_WHOLE = ('pool_size', 'pool_stride', 'lrn_size', 'lrn_groups', 'spatial_size')
_ABOVE_ZERO = ('batch_norm_epsilon', 'lrn_k', 'spatial_k', 'width_multiplier')
_SHARES = ('batch_norm_momentum', 'dropout')
_FINITE = (
  *('lrn_alpha', 'lrn_beta', 'spatial_alpha', 'spatial_beta'),
  'bias_init',
)
# The defaults of what only the operation `spatial` reads.
_SPATIAL = {
  'spatial_size': 5,
  'spatial_k': 1.0,
  'spatial_alpha': 0.001,
  'spatial_beta': 0.75,
}
_LARGEST = 3.4e38  # of float32
_WHOLE_LISTS = ('channels', 'kernels', 'strides', 'groups', 'hidden')
_LAYER_LISTS = ('pool_layers', 'norm_layers', 'bias_layers', 'norm_hidden')


def problem(fields: Mapping) -> str:
  """What is wrong with the fields of a network; '' if nothing is.

  Args:
    fields: {name: value} of all fields that describe the network. The values
      may be of any type: files and command lines give what they like.

  Returns:
    `name is value: ...` or `name is value; it takes ...`.
  """
  for check in (
    *(_choices, _scalars, _lists, _entries, _lengths, _groups),
    *(_layer_numbers, _orders, _unread),
  ):
    if found := check(fields):
      return found
  return ''


def _choices(fields):
  for name, choices in _CHOICES.items():
    if fields[name] not in choices:
      return f'{name} is {fields[name]!r}, not one of {choices}'
  return ''


def _scalars(fields):
  for names, good, rule in (
    (_WHOLE, _is_whole, 'a whole number from 1'),
    (_ABOVE_ZERO, lambda n: _is_finite(n) and n > 0, 'a number above 0'),
    (_SHARES, lambda n: _is_finite(n) and 0 <= n < 1, 'at least 0, below 1'),
    (_FINITE, _is_finite, 'a finite number'),
  ):
    for name in names:
      if not good(fields[name]):
        return f'{name} is {fields[name]!r}; it takes {rule}'
  for name in ('lrn_size', 'spatial_size'):
    if fields[name] % 2 != 1:
      return f'{name} is {fields[name]}; it must be odd'
  return ''


def _is_whole(value, least=1):
  return isinstance(value, int) and _is_finite(value) and value >= least


def _is_finite(value):
  # True is an int to Python, but no number to whoever wrote it.
  is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
  return is_number and -_LARGEST <= value <= _LARGEST


def _lists(fields):
  for name in (*_WHOLE_LISTS, *_LAYER_LISTS, 'paddings', 'block_order'):
    if not isinstance(fields[name], (tuple, list)):
      return f'{name} is {fields[name]!r}; it takes a list, such as (1, 2)'
  return ''


def _entries(fields):
  for name in _WHOLE_LISTS:
    if not all(map(_is_whole, fields[name])):
      return f'{name} is {fields[name]!r}; it takes whole numbers from 1'
  for padding in fields['paddings']:
    if not _is_padding(padding):
      return (
        f'paddings has {padding!r}; it takes SAME, VALID, a number or (before,'
        ' after)'
      )
  orders = fields['block_order']
  if not all(isinstance(order, str) for order in orders):
    return f"block_order is {orders!r}; it takes texts, such as 'relu-pool'"
  return ''


def _is_padding(value):
  if isinstance(value, (tuple, list)):
    return len(value) == 2 and all(_is_whole(side, 0) for side in value)
  return value in ('SAME', 'VALID') or _is_whole(value, 0)


def _lengths(fields):
  """One entry for each convolution."""
  count = len(fields['channels'])
  for name in ('kernels', 'strides', 'paddings', 'groups', 'block_order'):
    value = fields[name]
    if len(value) != count and not (name == 'block_order' and not value):
      return (
        f'{name} is {value!r}: {len(value)} entries for {count} convolutions'
      )
  return ''


def _groups(fields):
  """Every group has as many channels as the others, scaled or not."""
  inputs, scaled = 3, fields['width_multiplier'] != 1
  for outputs, groups in zip(fields['channels'], fields['groups'], strict=True):
    whole = (inputs, outputs, *([max(fields['groups'])] if scaled else []))
    if any(number % groups for number in whole):
      return (
        f'groups is {fields["groups"]!r}: {groups} must divide the {inputs}'
        f' channels that come in and the {outputs} that go out, and with a'
        ' width_multiplier the largest of groups'
      )
    inputs = outputs
  return ''


def _layer_numbers(fields):
  convolutions, hidden = len(fields['channels']), len(fields['hidden'])
  for name in _LAYER_LISTS:
    last = hidden if name == 'norm_hidden' else convolutions
    value = fields[name]
    if not all(_is_whole(number) and number <= last for number in value):
      return f'{name} is {value!r}; layers count from 1 to {last}'
  return ''


def _orders(fields):
  for number, order in enumerate(fields['block_order'], 1):
    if found := order_problem(
      order, number, fields['norm_layers'], fields['pool_layers']
    ):
      return f'block_order is {fields["block_order"]!r}: {found}'
  return ''


def _unread(fields):
  """What is set, but nothing would read."""
  orders = fields['block_order']
  named = {name for order in orders for name in order.split('-')}
  if fields['norm'] == 'none' and 'norm' in named:
    return (
      f"norm is 'none', but block_order is {orders!r}: take norm out of it and"
      ' of norm_layers, or set norm'
    )
  if 'spatial' in named:
    return ''
  for name, default in _SPATIAL.items():
    if fields[name] != default:
      return (
        f'{name} is {fields[name]!r}, which nothing reads: name spatial in'
        f' block_order, or leave it at {default}'
      )
  return ''

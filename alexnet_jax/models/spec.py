"""The fields that describe a network, each with default, meaning and check.

`AlexNet` inherits them, the keys of `config.model` are made from them. Neither
JAX nor flax is imported, so that reading a config stays fast.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
import dataclasses
import itertools
from typing import NamedTuple

# Padding of one convolution: 'SAME', 'VALID', one number for every side or
# (before, after) for both axes.
Padding = str | int | tuple[int, int]

# See `layers`.
KERNEL_INITS = ('paper', 'source_release', 'caffe', 'he', 'glorot', 'torch')
OPERATIONS = ('relu', 'norm', 'spatial', 'pool')  # those after a convolution

_LARGEST = 3.4e38  # of float32
_MOST = 2**16  # of a width; whether the network fits is for `training.build`
_WINDOW = 1023  # of a normalization, which is compiled entry by entry


def is_number(value) -> bool:
  """Returns True for a number that float32 can hold."""
  # True is an int to Python, but no number to whoever wrote it.
  has_kind = isinstance(value, (int, float)) and not isinstance(value, bool)
  return has_kind and abs(value) <= _LARGEST


def _is_whole(value, least=1, most=_MOST):
  return isinstance(value, int) and is_number(value) and least <= value <= most


def _is_padding(value):
  if isinstance(value, (tuple, list)):
    return len(value) == 2 and all(_is_whole(side, 0) for side in value)
  return value in ('SAME', 'VALID') or _is_whole(value, 0)


# A rule is the end of a message about other values, and a function that returns
# True for what the field takes, whatever its type.
_Rule = tuple[str, Callable[[object], bool]]


def _one_of(*choices) -> _Rule:
  return f', not one of {choices}', choices.__contains__


def _takes_list(entries, is_entry, least=0) -> _Rule:
  return (
    f'; it takes a list of {entries}',
    lambda value: (
      isinstance(value, (tuple, list))
      and len(value) >= least
      and all(map(is_entry, value))
    ),
  )


_WHOLE = f'; it takes a whole number from 1 to {_MOST}', _is_whole
_ODD = (
  f'; it takes an odd number from 1 to {_WINDOW}',
  lambda n: _is_whole(n, most=_WINDOW) and n % 2 == 1,
)
_POSITIVE = '; it takes a number above 0', lambda n: is_number(n) and n > 0
_UNIT = '; it takes a number from 0 below 1'
_SHARE = _UNIT, lambda n: is_number(n) and 0 <= n < 1
_FINITE = '; it takes a finite number', is_number
_WHOLES = _takes_list(
  f'whole numbers from 1 to {_MOST}, such as (1, 2)', _is_whole
)
_SOME_WHOLES = _takes_list(
  f'one or more whole numbers from 1 to {_MOST}', _is_whole, least=1
)
_PADDINGS = _takes_list('SAME, VALID, a number or (before, after)', _is_padding)
_TEXTS = _takes_list("texts, such as 'relu-pool'", lambda e: isinstance(e, str))


def _field(default, rule, **metadata):
  """Declares a field by its default and a rule.

  Of lists, `metadata` has `per_convolution`, with an entry for each convolution
  (or none, if the default has none), or `numbers_convolutions`, from 1.
  """
  return dataclasses.field(default=default, metadata=metadata | {'rule': rule})


def _per_convolution(default, rule):
  return _field(default, rule, per_convolution=True)


def _convolutions(default):
  return _field(default, _WHOLES, numbers_convolutions=True)


class Layer(NamedTuple):
  """A layer of a network, for those who build it elsewhere or look through it.

  The numbers of `conv` are kernel, stride, features, groups and padding as the
  field has it; of `pool` size and stride; of `lrn` size, alpha as the paper has
  it, beta and k; of `dense` features; of `dropout` its share.
  """

  kind: str  # one of these, or relu, tanh, batch, spatial, flatten
  name: str  # that in flax, if there is one
  numbers: tuple = ()
  pads: tuple[int, int] = (0, 0)  # of a convolution, pixels before and after


@dataclasses.dataclass(eq=False)  # flax makes a module's own hash of all fields
class AlexNetSpec:
  """The description of a network: all that decides what it computes.

  The defaults are the network of Krizhevsky et al. 2012 in one tower. An input
  of 224 x 224 pixels becomes 55, 27, 13 and 6 pixels wide. Layers are numbered
  from 1.
  """

  # Output channels of each convolution.
  channels: Sequence[int] = _field((96, 256, 384, 384, 256), _SOME_WHOLES)
  # Kernel width of each convolution, in pixels.
  kernels: Sequence[int] = _per_convolution((11, 5, 3, 3, 3), _WHOLES)
  # Stride of each convolution, in pixels.
  strides: Sequence[int] = _per_convolution((4, 1, 1, 1, 1), _WHOLES)
  # Padding of each convolution. 224 pixels padded by 2 before and 1 after give
  # the paper's 55.
  paddings: Sequence[Padding] = _per_convolution(
    ((2, 1), 'SAME', 'SAME', 'SAME', 'SAME'), _PADDINGS
  )
  # Groups of each convolution; (1, 2, 1, 2, 2): the paper's two towers.
  groups: Sequence[int] = _per_convolution((1, 1, 1, 1, 1), _WHOLES)
  # What `relu` stands for in every order of operations. The paper compares its
  # ReLU with tanh, whose output is never larger than 1.
  activation: str = _field('relu', _one_of('relu', 'tanh'))
  # Convolutions that a max-pool follows, its window and stride in pixels.
  pool_layers: Sequence[int] = _convolutions((1, 2, 5))
  pool_size: int = _field(3, _WHOLE)
  pool_stride: int = _field(2, _WHOLE)
  # Local response normalization, batch norm or none, and the convolutions that
  # have it.
  norm: str = _field('lrn', _one_of('lrn', 'batch', 'none'))
  norm_layers: Sequence[int] = _convolutions((1, 2))
  # Whether normalization precedes the ReLU; the paper's follows it.
  norm_before_relu: bool = _field(False, _one_of(False, True))
  # What follows each convolution, in another order than the other fields say:
  # names among OPERATIONS joined by -, such as norm-pool-relu; '' leaves the
  # order of that convolution as it is, () that of all. `spatial` is
  # `layers.SpatialResponseNorm`, which no other field switches on.
  block_order: Sequence[str] = _per_convolution((), _TEXTS)
  # Share of the running statistics, which evaluation uses, that a step keeps.
  batch_norm_momentum: float = _field(0.9, _SHARE)
  batch_norm_epsilon: float = _field(1e-5, _POSITIVE)  # added to the variance
  # See `layers.LocalResponseNorm`.
  lrn_size: int = _field(5, _ODD)  # channels in a sum
  lrn_k: float = _field(2.0, _POSITIVE)
  lrn_alpha: float = _field(1e-4, _FINITE)
  lrn_beta: float = _field(0.75, _FINITE)
  # Caffe divides alpha by lrn_size.
  lrn_convention: str = _field('paper', _one_of('paper', 'caffe'))
  lrn_groups: int = _field(1, _WHOLE)  # normalized apart; 2: the two towers
  # Widths of the hidden dense layers.
  hidden: Sequence[int] = _field((4096, 4096), _WHOLES)
  # Share of the units set to zero in training, after each hidden dense layer,
  # as in the paper, or before it, as in torchvision.
  dropout: float = _field(0.5, _SHARE)
  dropout_position: str = _field('after', _one_of('after', 'before'))
  # Whether the units that are kept are scaled up in training, or all units
  # down in evaluation, as in the paper.
  dropout_scaling: str = _field('training', _one_of('training', 'evaluation'))
  # Factor on `channels` and `hidden`, rounded so that the groups divide the
  # channels.
  width_multiplier: float = _field(1.0, _POSITIVE)
  kernel_init: str = _field('paper', _one_of(*KERNEL_INITS))
  # Initial bias where the paper starts with 1: of `bias_layers` and of every
  # hidden dense layer. All others start as `layers.bias_initializer` says, at 0
  # in most cases.
  bias_init: float = _field(1.0, _FINITE)
  bias_layers: Sequence[int] = _convolutions((2, 4, 5))

  def scaled(self, width: int, divisor: int = 1) -> int:
    """Returns a width times `width_multiplier`, which the divisor divides."""
    if self.width_multiplier == 1.0:
      return width
    scaled = round(width * self.width_multiplier / divisor) * divisor
    return max(divisor, scaled)

  def convolution_operations(self, number: int) -> tuple[str, ...]:
    """Returns names among OPERATIONS, in order, after convolution `number`."""
    if self.block_order and self.block_order[number - 1]:
      return tuple(self.block_order[number - 1].split('-'))
    norm = ('norm',) if number in self.norm_layers else ()
    pool = ('pool',) if number in self.pool_layers else ()
    if self.norm_before_relu:
      return (*norm, 'relu', *pool)
    return ('relu', *norm, *pool)

  def hidden_operations(self) -> tuple[str, ...]:
    """Returns dense, relu and any dropout of each hidden layer, in order."""
    dropout = ('dropout',) if self.dropout else ()
    if self.dropout_position == 'before':
      return *dropout, 'dense', 'relu'
    return 'dense', 'relu', *dropout

  def layers(self, size: int) -> Iterator[Layer]:
    """Yields all layers before the head, for images `size` pixels wide."""
    by = self.lrn_size if self.lrn_convention == 'caffe' else 1
    numbers = {
      'pool': (self.pool_size, self.pool_stride),
      'lrn': (self.lrn_size, self.lrn_alpha / by, self.lrn_beta, self.lrn_k),
      'dropout': (self.dropout,),
    }
    kinds = {'relu': self.activation, 'norm': self.norm}
    names = {'norm': 'lrn' if self.norm == 'lrn' else 'norm'}
    shapes = self.channels, self.kernels, self.strides, self.groups
    for number, (channels, kernel, stride, groups) in enumerate(
      zip(*shapes, strict=True), 1
    ):
      pads = _pads(padding := self.paddings[number - 1], kernel, stride, size)
      size = (size + sum(pads) - kernel) // stride + 1
      features = self.scaled(channels, max(self.groups))
      shape = kernel, stride, features, groups, padding
      yield Layer('conv', f'conv{number}', shape, pads)
      for operation in self.convolution_operations(number):
        kind, name = kinds.get(operation, operation), names.get(operation)
        if kind != 'none':
          own = numbers.get(kind, ())
          yield Layer(kind, f'{name or operation}{number}', own)
        if kind == 'pool':
          size = (size - self.pool_size) // self.pool_stride + 1
    yield Layer('flatten', 'flatten')
    for number, width in enumerate(self.hidden, 1):
      numbers['dense'] = (self.scaled(width),)
      for operation in self.hidden_operations():
        kind = kinds.get(operation, operation)
        name = 'dense_relu' if operation == 'relu' else operation
        yield Layer(kind, f'{name}{number}', numbers.get(kind, ()))

  def relu_follows(self, name: str) -> bool:
    """Returns True if the activation directly follows a layer, as `conv1`."""
    # The size of the images decides about pads alone.
    return any(
      (layer.name, following.kind) == (name, self.activation)
      for layer, following in itertools.pairwise(self.layers(224))
    )


def _pads(padding, kernel, stride, size):
  """Returns the pixels before and after, as XLA has them."""
  if padding == 'SAME':
    needed = max((-(-size // stride) - 1) * stride + kernel - size, 0)
    return needed // 2, needed - needed // 2
  if padding == 'VALID':
    return 0, 0
  return (padding,) * 2 if isinstance(padding, int) else tuple(padding)


def defaults() -> dict:
  """Returns {name: default} of every field."""
  return {
    field.name: field.default for field in dataclasses.fields(AlexNetSpec)
  }


def problem(values: Mapping) -> str:
  """Returns what is wrong with the fields of a network; '' if nothing is.

  `values` has every field of `AlexNetSpec`, of any type: files and command
  lines give what they like. The message begins with `name is value`.
  """
  checks = (_of_rules, _of_counts, _of_groups, _of_orders, _of_norm)
  found = (each for check in checks for each in check(values))
  for name, message in found:
    return f'{name} is {values[name]!r}{message}'
  return ''


# These yield the name of a field and the end of the message about it. A check
# may rely on what those before it have seen.


def _of_rules(values):
  for field in dataclasses.fields(AlexNetSpec):
    text, holds = field.metadata['rule']
    if not holds(values[field.name]):
      yield field.name, text


def _of_counts(values):
  """Checks numbers of entries and numbers of layers."""
  count = len(values['channels'])
  for field in dataclasses.fields(AlexNetSpec):
    value = values[field.name]
    is_read = 'per_convolution' in field.metadata and (value or field.default)
    if is_read and len(value) != count:
      yield field.name, f': {len(value)} entries for {count} convolutions'
    numbers = value if 'numbers_convolutions' in field.metadata else ()
    if any(number > count for number in numbers):
      yield field.name, f'; layers count from 1 to {count}'


def _of_groups(values):
  """Checks that all groups of a convolution are equal, scaled or not."""
  inputs = 3
  for outputs, groups in zip(values['channels'], values['groups'], strict=True):
    numbers = [inputs, outputs]
    if values['width_multiplier'] != 1:
      numbers.append(max(values['groups']))
    if any(number % groups for number in numbers):
      yield (
        'groups',
        f': {groups} must divide the {inputs} channels that come in and the'
        f' {outputs} that go out, and with a width_multiplier the largest of'
        ' groups',
      )
    inputs = outputs


def _of_orders(values):
  for number, order in enumerate(values['block_order'], 1):
    names = order.split('-') if order else []
    wanted = ['relu']
    wanted += ['norm'] * (number in values['norm_layers'])
    wanted += ['pool'] * (number in values['pool_layers'])
    others = sorted(name for name in names if name != 'spatial')
    if unknown := [name for name in names if name not in OPERATIONS]:
      yield 'block_order', f': {unknown[0]!r} is not one of {OPERATIONS}'
    elif names and others != sorted(wanted):
      yield (
        'block_order',
        f': {order!r} of convolution {number} must name each of'
        f' {", ".join(wanted)} once, as norm_layers and pool_layers say',
      )
    elif names.count('spatial') > 1:
      yield 'block_order', f': {order!r} names spatial more than once'


def _of_norm(values):
  """Refuses a normalization that is named and switched off."""
  block_order = values['block_order']
  named = {name for order in block_order for name in order.split('-')}
  if values['norm'] == 'none' and 'norm' in named:
    yield (
      'norm',
      f', but block_order is {block_order!r}: take norm out of it and out of'
      ' norm_layers, or set norm',
    )

"""To which layer and direction the kernels of a compiled train step belong.

XLA keeps where an operation comes from in the Python program: a path such as
jit(step)/transpose(jvp(AlexNet))/AlexNet._convolution_block/conv1/conv. It
names one of the operations of a fusion, and none of some: then what stands in
the fusion decides, or else where its operands come from. What remains unknown
is `other`. So a kernel that two layers share is one layer's alone: the sums by
layer are to find where the bytes are, the total is exact.

Directions: forward, backward, input (the pixels on their way to the network),
loss (with the metrics), update (parameters, optimizer), reduction (collectives,
what packs and unpacks their operands), other.
"""

import re

from alexnet_jax.bench.compiled_schedule import Launch
from alexnet_jax.bench.compiled_text import Program
from alexnet_jax.bench.compiled_traffic import COLLECTIVES

DIRECTIONS = (
  *('input', 'forward', 'loss', 'backward', 'reduction', 'update', 'other'),
)
_NAMED = re.compile(
  r'(?:^|[/(\[])[\'"]?((?:conv|dense|norm|dense_norm)\d+|head)\b'
)
_PARTS = (
  (re.compile(r'_normalize|local_response_norm'), 'lrn'),
  # What a block does itself, outside of its methods and convolution.
  (
    re.compile(r'_convolution_block/(?!AlexNet\.)|max_pool|select_and_'),
    'pool',
  ),
  (re.compile(r'_dropout|threefry|random|bernoulli'), 'dropout'),
)
_NETWORK = 'AlexNet'  # what jax calls the part of a path that flax makes
_STATE = re.compile(r'state\.')
_OPTIMIZER = re.compile(r'state\.(?:opt_state|ema_params)')
_NUMBER = re.compile(r'\d+$')
_LATEST_FIRST = (
  *('update', 'reduction', 'backward', 'loss', 'forward', 'input', 'other'),
)
_HOLDS = ('get-tuple-element', 'bitcast', 'tuple', 'copy')


def places(program: Program, launches: list[Launch]) -> list[tuple[str, str]]:
  """(layer, direction) of each kernel; the layer is '' if it is unknown.

  Layers are conv1 (with its bias and ReLU), lrn1, norm1, pool1, dense1,
  dropout1, head; the number of a part without a name of its own is that of the
  convolution or dense layer whose values it takes.
  """
  found = {}
  result = []
  for launch in launches:
    place = _place(program, launch, found)
    found[launch.computation.name, launch.instruction.name] = place
    result.append(place)
  return result


def _place(program, launch, found):
  sources = _sources(launch, found)
  if launch.instruction.kind in COLLECTIVES:
    return _agreed(layer for layer, _ in sources), 'reduction'
  names = _names(program, launch.instruction)
  parameters = _parameters(launch)
  direction = _direction(names, parameters, sources, launch)
  if direction in ('input', 'loss', 'other'):
    return '', direction
  if direction == 'update':
    own = _agreed(map(_layer, filter(_STATE.match, parameters)))
    return own or _agreed(layer for layer, _ in sources), direction
  layer, name = next(
    ((_layer(name), name) for name in names if _layer(name)), ('', '')
  )
  if not layer:
    return _agreed(layer for layer, _ in sources), direction
  return _numbered(layer, name, sources, direction), direction


def _names(program, instruction):
  """Paths of an instruction, the most telling one first."""
  names = [instruction.op_name]
  if instruction.kind == 'fusion':
    fused = program.called(instruction, 'calls')
    names.append(fused.root.op_name)
    names += [each.op_name for each in reversed(fused.instructions.values())]
  return [name for name in dict.fromkeys(names) if name]


def _direction(names, parameters, sources, launch):
  """One of DIRECTIONS."""
  if any(map(_OPTIMIZER.match, parameters)):
    return 'update'
  network = f'jvp({_NETWORK})'
  own = next((name for name in names if network in name), '')
  if f'transpose({network})' in own:
    return 'backward'
  if own:
    # Outside of the layers: its input, or what is made of its output.
    _, _, path = own.partition(f'{network}/')
    in_layers = path.startswith(_NETWORK) or _NAMED.search(path)
    known = any(layer for layer, _ in sources)
    return 'forward' if in_layers else 'loss' if known else 'input'
  before = {direction for _, direction in sources}
  if _has_pixels(launch) or (before == {'input'} and any(names)):
    return 'input'
  if any('jvp(' in name for name in names):
    return 'loss'
  return _plain_direction(names, parameters, sources, launch)


def _plain_direction(names, parameters, sources, launch):
  """Of a kernel whose paths say nothing about differentiation."""
  users = launch.computation.users[launch.instruction.name]
  kinds = {each.kind for each in users}
  if kinds & set(COLLECTIVES):
    return 'reduction'
  if any('threefry' in name or 'random' in name for name in names):
    return 'forward'
  before = [direction for _, direction in sources]
  if before and set(before) == {'reduction'}:
    # Slices of what was reduced together, or the update without a momentum.
    updates = any(map(_STATE.match, parameters))
    return 'update' if updates else 'reduction'
  if any(map(_STATE.match, parameters)) or 'update' in before:
    return 'update'
  if not names and before:
    return next(d for d in _LATEST_FIRST if d in before)
  return 'loss' if set(before) & {'loss', 'forward', 'backward'} else 'other'


def _layer(name):
  """Of a path; a part without its number where the path has none."""
  if named := _NAMED.findall(name):
    return named[-1]
  for pattern, part in _PARTS:
    if pattern.search(name):
      return part
  if '_hidden_block' in name:
    return 'dense'
  return 'conv' if '_convolution_block' in name else ''


def _numbered(layer, name, sources, direction):
  """The layer with the number of its block, if its path has none."""
  if _NUMBER.search(layer) or layer == 'head':
    return layer
  in_dense = '_hidden_block' in name
  kinds = ('dense', 'dropout') if in_dense else ('conv', 'lrn', 'norm', 'pool')
  numbers = [
    int(_NUMBER.search(source)[0])
    for source, _ in sources
    if source.startswith(kinds) and _NUMBER.search(source)
  ]
  if not numbers:
    return layer
  # Backward, the gradient comes from the layer above.
  return f'{layer}{(min if direction == "backward" else max)(numbers)}'


def _has_pixels(launch):
  """Whether a kernel reads images: uint8 [..., rows, columns, 3]."""
  return any(
    array.dtype == 'u8' and len(array.shape) > 3 and array.shape[-1] == 3
    for each in _origins(launch)
    for array in each.arrays
  )


def _agreed(layers):
  """The only layer of some; '' if there are several, or none."""
  different = set(layers) - {''}
  return different.pop() if len(different) == 1 else ''


def _operands(launch):
  return [
    launch.computation.instructions[name]
    for name in launch.instruction.operands
  ]


def _origins(launch):
  """The instructions that make what a kernel reads, behind tuples and such."""
  left, seen = list(launch.instruction.operands), []
  while left:
    each = launch.computation.instructions[left.pop()]
    if each.operation in _HOLDS or each.operation.endswith('-done'):
      left.extend(each.operands)
    else:
      seen.append(each)
  return seen


def _sources(launch, found):
  places = [
    found.get((launch.computation.name, each.name)) for each in _origins(launch)
  ]
  return [place for place in places if place]


def _parameters(launch):
  return [
    each.op_name for each in _origins(launch) if each.operation == 'parameter'
  ]

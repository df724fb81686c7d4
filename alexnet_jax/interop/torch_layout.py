"""A network's weights as PyTorch names and lays them out.

The names are those of a module like torchvision's: two nn.Sequential, whose
numbers count every module in the order in which the network has them.

- `features`: of each convolution ZeroPad2d where its padding is uneven, Conv2d,
  and what follows it: ReLU, LocalResponseNorm or BatchNorm2d, the spatial
  normalization (which PyTorch lacks), MaxPool2d.
- `classifier`: of each hidden layer Linear, ReLU, BatchNorm1d and, unless
  `dropout` is 0, Dropout, before or after them; at the end Linear.

Kernels of convolutions [height, width, in, out] become [out, in, height,
width] and those of dense layers [in, out] become [out, in]. The first dense
layer reads the features as [height, width, channels] here, and as [channels,
height, width] in PyTorch.
"""

from collections.abc import Mapping
import dataclasses

from jax import lax
import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.interop import networks
from alexnet_jax.interop import reading
from alexnet_jax.models import layers as layers_lib

_LEAVES = {  # PyTorch's name: (ours, where it is)
  'conv': {'weight': ('kernel', 'params'), 'bias': ('bias', 'params')},
  'dense': {'weight': ('kernel', 'params'), 'bias': ('bias', 'params')},
  'norm': {
    'weight': ('scale', 'params'),
    'bias': ('bias', 'params'),
    'running_mean': ('mean', 'batch_stats'),
    'running_var': ('var', 'batch_stats'),
  },
}
IGNORED = 'num_batches_tracked'  # PyTorch needs it for another kind of average


@dataclasses.dataclass(frozen=True)
class Layer:
  """One layer with weights.

  Attributes:
    name: ours, such as `conv1`.
    torch_name: such as `features.0`.
    kind: `conv`, `dense` or `norm`.
    shapes: {leaf of PyTorch: shape there}.
    features: (channels, height, width) that the first dense layer reads, else
      None.
  """

  name: str
  torch_name: str
  kind: str
  shapes: Mapping[str, tuple[int, ...]]
  features: tuple[int, int, int] | None = None

  def torch_shapes(self) -> dict[str, tuple[int, ...]]:
    """{'features.0.weight': shape, ...}"""
    return {f'{self.torch_name}.{k}': shape for k, shape in self.shapes.items()}


def layers(model: dict, num_classes: int, crop_size: int) -> list[Layer]:
  """All layers with weights, in the network's order.

  Args:
    model: fields of `config.model`.
    num_classes: number of logits.
    crop_size: width of the images, in pixels.

  Raises:
    UserError: if the fields are unfit or the images too small.
  """
  network = networks.module(model, num_classes)
  shapes = networks.shapes(model, num_classes, crop_size)
  places, width = _feature_places(network, crop_size)
  channels = 3
  if network.channels:
    channels = shapes['params'][f'conv{len(network.channels)}']['kernel'][-1]
  features = (channels, width, width)
  found = []
  for name, torch_name in {**places, **_classifier_places(network)}.items():
    role = networks.kind(name)
    first_dense = role == 'dense' and all(k.kind != 'dense' for k in found)
    found.append(
      Layer(
        name,
        torch_name,
        role,
        {
          theirs: _torch_shape(shapes[where][name][ours])
          for theirs, (ours, where) in _LEAVES[role].items()
        },
        features if first_dense else None,
      )
    )
  return found


def _torch_shape(shape):
  if len(shape) == 4:
    return (shape[3], shape[2], shape[0], shape[1])
  return tuple(reversed(shape))


def _feature_places(network, width):
  """({layer: name in PyTorch} of `features`, width of the last feature map)."""
  places, index = {}, 0
  for number, padding in enumerate(network.paddings, 1):
    kernel = network.kernels[number - 1]
    stride = network.strides[number - 1]
    before, after = _padding(padding, width, kernel, stride)
    width = (width + before + after - kernel) // stride + 1
    index += before != after  # ZeroPad2d
    places[f'conv{number}'] = f'features.{index}'
    index += 1
    for operation in network.convolution_operations(number):
      if operation == 'norm' and network.norm == 'none':
        continue
      if operation == 'norm' and network.norm == 'batch':
        places[f'norm{number}'] = f'features.{index}'
      if operation == 'pool':
        width = (width - network.pool_size) // network.pool_stride + 1
      index += 1
  return places, width


def _padding(padding, width, kernel, stride):
  """(before, after) in pixels."""
  if isinstance(padding, str):
    return lax.padtype_to_pads((width,), (kernel,), (stride,), padding)[0]
  return layers_lib.explicit_padding(padding)[0]


def _classifier_places(network):
  places, index = {}, 0
  dropout = bool(network.dropout)
  for number in range(1, len(network.hidden) + 1):
    index += dropout and network.dropout_position == 'before'
    places[f'dense{number}'] = f'classifier.{index}'
    index += 1
    if number in network.norm_hidden:
      first = network.norm_before_relu
      places[f'dense_norm{number}'] = f'classifier.{index + (not first)}'
      index += 1
    index += 1  # ReLU
    index += dropout and network.dropout_position == 'after'
  return {**places, 'head': f'classifier.{index}'}


def to_torch(params: dict, batch_stats: dict, plan: list[Layer]) -> dict:
  """A state dict {name: float32 numpy array}, without `num_batches_tracked`.

  Args:
    params: of our network, arrays that numpy can read.
    batch_stats: of its batch norms; empty if there are none.
    plan: see `layers`.
  """
  trees, out = {'params': params, 'batch_stats': batch_stats}, {}
  for layer in plan:
    for theirs, (ours, where) in _LEAVES[layer.kind].items():
      array = np.asarray(trees[where][layer.name][ours], np.float32)
      if theirs == 'weight' and layer.kind == 'conv':
        array = array.transpose(3, 2, 0, 1)
      elif theirs == 'weight' and layer.kind == 'dense':
        array = _flattened_for_torch(array, layer.features).T
      out[f'{layer.torch_name}.{theirs}'] = np.ascontiguousarray(array)
  return out


def _flattened_for_torch(kernel, features):
  if features is None:
    return kernel
  channels, height, width = features
  blocks = kernel.reshape(height, width, channels, -1)
  return blocks.transpose(2, 0, 1, 3).reshape(kernel.shape)


def from_torch(state: Mapping, plan: list[Layer]) -> tuple[dict, dict]:
  """Our (params, batch_stats), float32, of a state dict.

  Args:
    state: {name: numpy array}. float64 is rounded to float32; float16 and
      bfloat16 are exact there.
    plan: see `layers`.

  Raises:
    UserError: with a table, if names are missing or unexpected, or a shape, a
      dtype or a number (infinite or none) is unfit.
  """
  state = {
    name: array
    for name, array in state.items()
    if name.rsplit('.', 1)[-1] != IGNORED
  }
  wanted = {}
  for layer in plan:
    wanted |= layer.torch_shapes()
  refuse_misfits(
    {name: np.shape(array) for name, array in state.items()}, wanted
  )
  trees = {'params': {}, 'batch_stats': {}}
  for layer in plan:
    for theirs, (ours, where) in _LEAVES[layer.kind].items():
      name = f'{layer.torch_name}.{theirs}'
      array = reading.as_float32(state[name], name)
      if theirs == 'running_var' and (array < 0).any():
        raise UserError(f'{name}: expected variances, found negative numbers')
      if theirs == 'weight' and layer.kind == 'conv':
        array = array.transpose(2, 3, 1, 0)
      elif theirs == 'weight' and layer.kind == 'dense':
        array = _flattened_for_us(array.T, layer.features)
      trees[where].setdefault(layer.name, {})[ours] = np.ascontiguousarray(
        array
      )
  return trees['params'], trees['batch_stats']


def _flattened_for_us(kernel, features):
  if features is None:
    return kernel
  channels, height, width = features
  blocks = kernel.reshape(channels, height, width, -1)
  return blocks.transpose(1, 2, 0, 3).reshape(kernel.shape)


def refuse_misfits(found: Mapping, wanted: Mapping) -> None:
  """Compares {name: shape}.

  Raises:
    UserError: with a table of the names and shapes that differ.
  """
  lines = [
    f'  {name}: expected {_shape(wanted.get(name))}, found'
    f' {_shape(found.get(name))}'
    for name in [*wanted, *(name for name in found if name not in wanted)]
    if found.get(name) != wanted.get(name)
  ]
  if lines:
    raise UserError(
      'its weights are not those of the network:\n'
      + '\n'.join(lines)
      + '\nThe file was written for another network, or for other images'
    )


def _shape(shape):
  return 'nothing' if shape is None else str(list(shape))

"""Names and layouts of a network's weights in PyTorch.

The names are those of a module like torchvision's: two nn.Sequential, whose
numbers count every module in the order in which the network has them.

- `features`: for each convolution ZeroPad2d if its padding is uneven, Conv2d,
  and what follows it: ReLU, LocalResponseNorm or BatchNorm2d, the spatial
  normalization (which PyTorch lacks), MaxPool2d.
- `classifier`: for each hidden layer Linear, ReLU, BatchNorm1d and, unless
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

from alexnet_jax.interop import matching
from alexnet_jax.interop import networks
from alexnet_jax.models import layers as layers_lib

# In the order of `networks.LEAVES`.
_LEAVES = {
  'conv': ('weight', 'bias'),
  'dense': ('weight', 'bias'),
  'norm': ('weight', 'bias', 'running_mean', 'running_var'),
}


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer with weights.

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


def layers(model: dict, num_classes: int, crop_size: int) -> list[Layer]:
  """Returns all layers with weights, in the network's order.

  Args:
    model: fields of `config.model`.
    num_classes: number of logits.
    crop_size: width of the images, in pixels.

  Raises:
    UserError: if the fields are unfit or the images too small.
  """
  ours = networks.layers(model, num_classes, crop_size)
  network = networks.module(model, num_classes)
  torch_names, width = _feature_names(network, crop_size)
  torch_names |= _classifier_names(network)
  found, channels = [], 3
  for layer in ours:
    if layer.kind == 'conv':
      channels = layer.shapes['kernel'][-1]
    first_dense = layer.kind == 'dense' and all(
      other.kind != 'dense' for other in found
    )
    shapes = map(_torch_shape, layer.shapes.values())
    found.append(
      Layer(
        name=layer.name,
        torch_name=torch_names[layer.name],
        kind=layer.kind,
        shapes=dict(zip(_LEAVES[layer.kind], shapes, strict=True)),
        features=(channels, width, width) if first_dense else None,
      )
    )
  return found


def _torch_shape(shape):
  if len(shape) == 4:
    return (shape[3], shape[2], shape[0], shape[1])
  return tuple(reversed(shape))


def torch_shapes(plan: list[Layer]) -> dict[str, tuple[int, ...]]:
  """Returns the shapes of a state dict: {'features.0.weight': shape, ...}."""
  return {
    f'{layer.torch_name}.{leaf}': shape
    for layer in plan
    for leaf, shape in layer.shapes.items()
  }


def _feature_names(network, width):
  """Returns ({layer: name in PyTorch}, width of the last feature map)."""
  names, index = {}, 0
  for number, padding in enumerate(network.paddings, 1):
    kernel = network.kernels[number - 1]
    stride = network.strides[number - 1]
    if isinstance(padding, str):
      sides = lax.padtype_to_pads((width,), (kernel,), (stride,), padding)
    else:
      sides = layers_lib.explicit_padding(padding)
    before, after = sides[0]
    width = (width + before + after - kernel) // stride + 1
    index += before != after  # ZeroPad2d
    names[f'conv{number}'] = f'features.{index}'
    index += 1
    for operation in network.convolution_operations(number):
      if operation == 'norm' and network.norm == 'none':
        continue
      if operation == 'norm' and network.norm == 'batch':
        names[f'norm{number}'] = f'features.{index}'
      if operation == 'pool':
        width = (width - network.pool_size) // network.pool_stride + 1
      index += 1
  return names, width


def _classifier_names(network):
  names, index = {}, 0
  ours = {'dense': 'dense', 'norm': 'dense_norm'}
  for number in range(1, len(network.hidden) + 1):
    for operation in network.hidden_operations(number):
      if operation == 'dropout' and not network.dropout:
        continue
      if operation in ours:
        names[f'{ours[operation]}{number}'] = f'classifier.{index}'
      index += 1
  return {**names, 'head': f'classifier.{index}'}


def to_torch(params: dict, batch_stats: dict, plan: list[Layer]) -> dict:
  """Returns a state dict {name: float32 array} without `num_batches_tracked`.

  Args:
    params: of our network, arrays that numpy can read.
    batch_stats: of its batch norms; empty if there are none.
    plan: see `layers`.
  """
  trees, out = {'params': params, 'batch_stats': batch_stats}, {}
  for layer in plan:
    for name, ours, collection in _leaves(layer):
      array = np.asarray(trees[collection][layer.name][ours], np.float32)
      if ours == 'kernel' and layer.kind == 'conv':
        array = array.transpose(3, 2, 0, 1)
      elif ours == 'kernel':
        if layer.features:
          channels, height, width = layer.features
          blocks = array.reshape(height, width, channels, -1)
          array = blocks.transpose(2, 0, 1, 3).reshape(array.shape)
        array = array.T
      out[name] = np.ascontiguousarray(array)
  return out


def from_torch(state: Mapping, plan: list[Layer]) -> tuple[dict, dict]:
  """Returns our (params, batch_stats), float32, of a state dict.

  Args:
    state: {name: numpy array}. float64 is rounded to float32; float16 and
      bfloat16 are exact there.
    plan: see `layers`.

  Raises:
    UserError: with a table, if names are missing or unexpected, or a shape, a
      dtype or a number (infinite or none) is unfit.
  """
  found = {name: np.shape(array) for name, array in state.items()}
  matching.refuse_misfits(found, torch_shapes(plan))
  trees = {'params': {}, 'batch_stats': {}}
  for layer in plan:
    for name, ours, collection in _leaves(layer):
      array = matching.to_float32(state[name], name, variances=ours == 'var')
      if ours == 'kernel' and layer.kind == 'conv':
        array = array.transpose(2, 3, 1, 0)
      elif ours == 'kernel':
        array = array.T
        if layer.features:
          blocks = array.reshape(*layer.features, -1)
          array = blocks.transpose(1, 2, 0, 3).reshape(array.shape)
      # A copy: what was read may be a view of the file.
      array = np.array(array, order='C')
      trees[collection].setdefault(layer.name, {})[ours] = array
  return trees['params'], trees['batch_stats']


def _leaves(layer):
  """Yields (name in a state dict, our leaf, our collection)."""
  ours = networks.LEAVES[layer.kind].items()
  for theirs, leaf in zip(_LEAVES[layer.kind], ours, strict=True):
    yield f'{layer.torch_name}.{theirs}', *leaf

"""Trained networks in PyTorch's files: .safetensors, and .pth or .pt.

A file of `interop.save` says in its metadata of which network it is and how
images are prepared. Other files hold names and weights only: the user names the
network. Nothing in a file is executed.

The names of `interop.save` are those of a module like torchvision's: two
nn.Sequential, whose numbers count every module in the network's order.

- `features`: for each convolution ZeroPad2d if its padding is uneven, Conv2d,
  and what follows it: ReLU, LocalResponseNorm or BatchNorm2d, the spatial
  normalization (which PyTorch lacks), MaxPool2d.
- `classifier`: for each hidden layer Linear, ReLU, BatchNorm1d and, unless
  `dropout` is 0, Dropout, before or after them; at the end Linear.
"""

import base64
from collections.abc import Mapping
import io
import json
import os
import pathlib
import pickle
import re
import warnings
import zipfile

from jax import lax
import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from alexnet_jax import files
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError
from alexnet_jax.interop import networks
from alexnet_jax.interop.networks import TrainedNetwork
from alexnet_jax.models import layers as layers_lib

# Of torchvision's weights, for pixels from 0 to 255: what its documentation
# gives for pixels from 0 to 1 (transforms of AlexNet_Weights.IMAGENET1K_V1),
# 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225, times 255.
_USUAL = {'mean': (123.675, 116.28, 103.53), 'std': (58.395, 57.12, 57.375)}
_TORCHVISION = 'alexnet_torchvision'

_METADATA_KEY = 'alexnet_jax'
_VERSION = 1  # of the metadata
_DATA_KEYS = ('resize_size', 'crop_size', 'mean', 'std', 'std_rgb')
# PyTorch's names of our leaves; a norm's scale is a `weight`, too.
_LEAVES = {
  'kernel': 'weight',
  'scale': 'weight',
  'bias': 'bias',
  'mean': 'running_mean',
  'var': 'running_var',
}
# Files that hold more than the weights have them under one of these keys.
_WRAPPERS = ('state_dict', 'model_state_dict', 'model')
# Parts of names that DataParallel, torch.compile and AveragedModel add.
_MODULES = ('module', '_orig_mod')
# Counters beside the weights, of batch norms and of AveragedModel.
_COUNTERS = ('num_batches_tracked', 'n_averaged')
# Parts of the messages of torch.load: what it refused, and bold letters.
_REFUSED = re.compile(r'\b(?:GLOBAL|class) ([\w.]{1,200})')
_ESCAPES = re.compile(r'\x1b\[[\d;]*m')


def read(path: str | os.PathLike, options: networks.Options) -> TrainedNetwork:
  """Reads the weights of any of the networks here, as PyTorch lays them out.

  Names may be those of `interop.save`, or others, see `networks.fit`. Counters
  of updates are ignored.

  Images for torchvision's weights: the short side to 256 pixels, the middle 224
  x 224, minus the mean and divided by the deviation of ImageNet's colors.
  torchvision interpolates with a triangle where images are made smaller here by
  averaging areas, so that pixels can differ by a few levels. Its average
  pooling to 6 x 6 is left out here: it leaves their last feature map as it is.

  Args:
    path: of a .safetensors file, or of one that torch.save wrote.
    options: network, crop size, mean and std; none for a file of
      `interop.save`. Levels that are missing are torchvision's, with a warning
      if the network is another.

  Raises:
    UserError: if the file cannot be read, is damaged or of another kind, or its
      weights do not fit the network; with what was expected and found.
  """
  with networks.naming(path):
    tensors, text = load_tensors(path)
    if text is not None and options != networks.Options():
      raise UserError(
        'it says itself of which network it is and how images are prepared:'
        ' give --from torch without --network, --crop_size, --mean, --std and'
        ' --batch_norm_epsilon'
      )
    network = (
      networks.resolve(options, _USUAL, _TORCHVISION)
      if text is None
      else from_metadata(text)
    )
    return from_torch(tensors, network)


def from_torch(
  state: Mapping[str, np.ndarray], network: TrainedNetwork
) -> TrainedNetwork:
  """Returns the network with the weights of a state dict {name: array}.

  Raises:
    UserError: see `networks.fit`.
  """
  found = {}
  for name, array in state.items():
    layer, _, leaf = name.rpartition('.')
    ours = {theirs: leaf for leaf, theirs in _LEAVES.items()}
    ours['weight'] = 'scale' if np.ndim(array) == 1 else 'kernel'
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(np.ndim(array))
    array = array.transpose(axes) if axes else array
    found.setdefault(layer or name, {})[ours.get(leaf, leaf)] = array
  names = torch_names(network.model, network.data['crop_size'])
  return networks.fit(network, found, names, channels_first=True)


def to_torch(network: TrainedNetwork) -> dict[str, np.ndarray]:
  """Returns a state dict {name: float32 array} without `num_batches_tracked`.

  Kernels become [out, in, height, width] and [out, in], and the first dense
  layer reads [channels, height, width].
  """
  crop_size = network.data['crop_size']
  shapes = networks.layer_shapes(network.model, network.num_classes, crop_size)
  names = torch_names(network.model, crop_size)
  first_dense, channels, width = networks.features(shapes)
  out = {}
  for layer in shapes:
    leaves = network.params[layer] | network.batch_stats.get(layer, {})
    for leaf, array in leaves.items():
      array = np.asarray(array, np.float32)
      if (layer, leaf) == (first_dense, 'kernel'):
        blocks = array.reshape(width, width, channels, -1)
        array = blocks.transpose(2, 0, 1, 3).reshape(array.shape)
      axes = {4: (3, 2, 0, 1), 2: (1, 0), 1: (0,)}[array.ndim]
      name = f'{names[layer]}.{_LEAVES[leaf]}'
      out[name] = np.ascontiguousarray(array.transpose(axes))
  return out


def torch_names(model: dict, crop_size: int) -> dict[str, str]:
  """Returns {layer: name in PyTorch}, such as {'conv1': 'features.0'}.

  Args:
    model: fields of `config.model`.
    crop_size: width of the images, which uneven padding depends on.
  """
  network = networks.module(model, 1)
  names, index, width = {}, 0, crop_size
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
  index, ours = 0, {'dense': 'dense', 'norm': 'dense_norm'}
  for number in range(1, len(network.hidden) + 1):
    for operation in network.hidden_operations(number):
      if operation == 'dropout' and not network.dropout:
        continue
      if operation in ours:
        names[f'{ours[operation]}{number}'] = f'classifier.{index}'
      index += 1
  return {**names, 'head': f'classifier.{index}'}


def write(path: str | os.PathLike, network: TrainedNetwork, step: int) -> dict:
  """Writes a .safetensors file, as a whole or not at all.

  Args:
    path: of the file.
    network: with the names of its classes.
    step: number of updates that made the weights.

  Returns:
    {name: array}, as PyTorch has them.
  """
  tensors = to_torch(network)
  mean = np.ascontiguousarray(network.mean, '<f4')
  fields = {
    'version': _VERSION,
    'model': network.model,
    'data': {key: network.data[key] for key in _DATA_KEYS},
    'mean': {
      'shape': mean.shape,
      'float32': base64.b64encode(mean.tobytes()).decode(),
    },
    'num_classes': network.num_classes,
    'class_names': network.class_names,
    'step': step,
  }
  text = {'format': 'pt', _METADATA_KEY: json.dumps(fields, sort_keys=True)}
  with files.replaced_file(path) as temporary:
    safetensors.numpy.save_file(tensors, temporary, text)
  return tensors


def from_metadata(text: str) -> TrainedNetwork:
  """Returns the network of the metadata of `write`, without its weights.

  Its fields of config.model are checked when the network is built, those of
  config.data by `imported_run.make_config`.

  Raises:
    UserError: if the text is something else.
  """
  try:
    fields = json.loads(text)
    data = {key: _tuples(fields['data'][key]) for key in _DATA_KEYS}
    mean = base64.b64decode(fields['mean']['float32'], validate=True)
    mean = np.frombuffer(mean, '<f4').reshape(fields['mean']['shape'])
    names, crop = _tuples(fields['class_names']), data['crop_size']
    shape = (crop, crop, 3) if data['mean'] == 'image' else (3,)
    for good, reason in (
      (fields['version'] == _VERSION, f'version {fields["version"]!r}'),
      (type(crop) is int and crop > 0, f'crop_size {crop!r}'),
      (mean.shape == shape, f'a mean of shape {mean.shape}, not {shape}'),
      (np.isfinite(mean).all(), 'a mean that is not finite'),
      (names and all(isinstance(n, str) for n in names), 'no class names'),
      (
        len(names) == fields['num_classes'],
        f'{len(names)} class names for {fields["num_classes"]!r} classes',
      ),
    ):
      if not good:
        raise ValueError(reason)
    model = _tuples(dict(fields['model']))
    return TrainedNetwork(
      model, data, mean, num_classes=len(names), class_names=names
    )
  except Exception as error:  # values of odd types raise anything
    missing = ' is missing' if isinstance(error, KeyError) else ''
    raise UserError(
      'its metadata was not written by interop.save, or is damaged'
      f' ({error}{missing}); get the file again'
    ) from None


def _tuples(value):
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def load_tensors(
  path: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], str | None]:
  """Reads the tensors of a file by name, and the metadata of `interop.save`.

  Returns:
    ({name: array of any dtype}, the metadata's text or None). Names lose the
    parts that wrappers of modules add (_MODULES) and a prefix that all have,
    and counters (_COUNTERS) are left out.

  Raises:
    OSError: if the file cannot be read.
    UserError: if it is damaged or of another kind, would execute code, or its
      tensors are larger than the file.
  """
  path, text = pathlib.Path(path), None
  with path.open('rb') as file:
    start = file.read(9)
  if not start:
    raise UserError('an empty file; get it again')
  # The header of .safetensors is JSON after a number of eight bytes.
  if path.suffix == '.safetensors' or start[8:] == b'{':
    tensors, text = _load_safetensors(path)
  else:
    tensors = _load_pickled(path)
  tensors = {
    name: array
    for name, array in tensors.items()
    if name.rpartition('.')[2] not in _COUNTERS
  }
  names = {
    name: [part for part in name.split('.') if part not in _MODULES]
    for name in tensors
  }
  # `model.features.0.weight`: the outermost module of all.
  while len({parts[0] for parts in names.values()}) == 1 and all(
    len(parts) > 2 for parts in names.values()
  ):
    names = {name: parts[1:] for name, parts in names.items()}
  short = {'.'.join(names[name]): array for name, array in tensors.items()}
  return short if len(short) == len(tensors) else tensors, text


def _load_safetensors(path):
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      return file.get_tensors(), (file.metadata() or {}).get(_METADATA_KEY)
  except (safetensors.SafetensorError, OSError) as error:
    hint = '; get it again'
    if zipfile.is_zipfile(path):
      hint = '; it is a zip file, as torch.save writes: rename it to .pth'
    raise UserError(
      f'not a complete .safetensors file ({error}){hint}'
    ) from None
  except (AttributeError, TypeError, ValueError) as error:
    raise UserError(
      f'it has a tensor that numpy cannot hold: {error}'
    ) from None


def _load_pickled(path):
  try:
    import torch
  except ImportError:
    raise UserError(
      'a file of torch.save needs PyTorch to be read safely:'
      f' {how_to_install("interop")}, or convert it to .safetensors'
    ) from None
  try:
    with warnings.catch_warnings():
      # It warns of old protocols before it reads or refuses the file.
      warnings.simplefilter('ignore')
      # Without weights_only it would execute what the file says.
      contents = torch.load(
        _repack(path) if zipfile.is_zipfile(path) else path,
        weights_only=True,
        map_location='cpu',
      )
  except UserError:
    raise
  except pickle.UnpicklingError as error:
    refused = _REFUSED.search(str(error))
    named = f' (it asks for {refused[1]})' if refused else ''
    raise UserError(
      'PyTorch refuses to read it as plain tensors; it is damaged, holds a'
      ' whole module instead of its state_dict(), or would execute'
      f' code{named}. Save it with torch.save(network.state_dict(), ...)'
    ) from None
  except Exception as error:  # zip files and old formats raise anything
    lines = _ESCAPES.sub('', str(error)).strip().splitlines() or ['']
    raise UserError(
      'damaged, or not a file of torch.save'
      f' ({type(error).__name__}: {lines[0][:200]})'
    ) from None
  while isinstance(contents, Mapping) and (key := _find_wrapped(contents)):
    contents = contents[key]
  if not isinstance(contents, Mapping):
    raise networks.misfit(
      'a state dict {name: tensor}', type(contents).__name__
    )
  if others := _odd_items(contents):
    raise networks.misfit(
      f'a state dict {{name: tensor}}, or one under {" or ".join(_WRAPPERS)}',
      ', '.join(others[:10]),
    )
  return {name: _to_numpy(name, tensor) for name, tensor in contents.items()}


def _repack(path):
  """Returns the archive as Python reads it, for PyTorch to read the same.

  PyTorch checks no sums, expands compressed records to any size or takes them
  for numbers, and of two directories it believes another one.
  """
  copy, room = io.BytesIO(), os.path.getsize(path)
  with zipfile.ZipFile(path) as archive, zipfile.ZipFile(copy, 'w') as records:
    for record in archive.infolist():
      room -= record.file_size
      if record.compress_type != zipfile.ZIP_STORED or room < 0:
        raise UserError(
          f'its record {record.filename} is compressed, as torch.save never'
          ' does; get the file again as it was saved'
        )
      records.writestr(record.filename, archive.read(record))
  copy.seek(0)
  return copy


def _find_wrapped(contents):
  """Returns the key of the state dict that a dict has beside other things."""
  found = [key for key in _WRAPPERS if isinstance(contents.get(key), Mapping)]
  if not found:  # another name, if there is no doubt
    found = [
      key
      for key, value in contents.items()
      if isinstance(value, Mapping) and value and not _odd_items(value)
    ]
  return found[0] if found and len({*found} - {*_WRAPPERS}) <= 1 else None


def _odd_items(contents):
  """Returns the entries that are no tensors by name, for messages."""
  import torch

  return [
    f'{key} ({type(value).__name__})'
    for key, value in contents.items()
    if not (isinstance(key, str) and isinstance(value, torch.Tensor))
  ]


def _to_numpy(name, tensor):
  """Returns an array without a copy: many names may share the same numbers."""
  import torch

  tensor = tensor.detach()
  try:
    if tensor.dtype == torch.bfloat16:  # numpy alone has none
      return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
  except (TypeError, RuntimeError) as error:
    raise UserError(f'{name}: {error}') from None

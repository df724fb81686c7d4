"""Trained networks in PyTorch's files: .safetensors, and .pth or .pt.

A file of `interop.save` says in its metadata of which network it is and how
images are prepared; of others the user does. Nothing in a file is executed.
"""

import base64
import collections
from collections.abc import Mapping
import io
import json
import os
import pathlib
import re
import warnings
import zipfile

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from alexnet_jax import files
from alexnet_jax.errors import how_to_install, UserError
from alexnet_jax.interop import claims, networks
from alexnet_jax.interop.networks import TrainedNetwork

# Of torchvision's weights, for pixels from 0 to 255: what its documentation
# gives for pixels from 0 to 1 (transforms of AlexNet_Weights.IMAGENET1K_V1),
# 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225, times 255.
_USUAL = {'mean': (123.675, 116.28, 103.53), 'std': (58.395, 57.12, 57.375)}

_METADATA_KEY = 'alexnet_jax'
_VERSION = 2  # of the metadata
_DATA_KEYS = ('resize_size', 'crop_size', 'channels', 'mean', 'std', 'std_rgb')
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
# What torch.load refused, in its messages.
_REFUSED = re.compile(r'\b(?:GLOBAL|class) ([\w.]{1,200})')


def read(path: str | os.PathLike, options: networks.Options) -> TrainedNetwork:
  """Reads a .safetensors file, or one of torch.save, of any network here.

  A file of `interop.save` takes no options. Levels that are missing for others
  are torchvision's, with a warning if the network is another. Raises UserError
  if the file cannot be read, is damaged or of another kind, or its weights do
  not fit the network; with what was expected and found.
  """
  with networks.naming(path):
    tensors, text = load_tensors(path)
    if text is None:
      network = networks.resolve(options, _USUAL, 'alexnet_torchvision')
    elif options == networks.Options():
      network = from_metadata(text)
    else:
      raise UserError(
        'it says itself of which network it is and how images are prepared:'
        ' give --from torch without --network, --crop_size, --mean, --std and'
        ' --batch_norm_epsilon'
      )
    if network.claims:
      claims.check(network.claims, tensors)
    return from_torch(tensors, network)


def from_torch(
  state: Mapping[str, np.ndarray], network: TrainedNetwork
) -> TrainedNetwork:
  """Returns the network with weights of a state dict; see `networks.fit`."""
  found = collections.defaultdict(dict)
  ours = {theirs: leaf for leaf, theirs in _LEAVES.items()}
  for name, array in state.items():
    layer, _, leaf = name.rpartition('.')
    ours['weight'] = 'scale' if array.ndim == 1 else 'kernel'
    axes = {4: (2, 3, 1, 0), 2: (1, 0)}.get(array.ndim, range(array.ndim))
    found[layer or name][ours.get(leaf, leaf)] = array.transpose(axes)
  names = torch_names(network.model, network.data['crop_size'])
  return networks.fit(network, found, names, channels_first=True)


def to_torch(network: TrainedNetwork) -> dict[str, np.ndarray]:
  """Returns a state dict {name: float32 array} without `num_batches_tracked`.

  Kernels become [out, in, height, width] and [out, in], and the first dense
  layer reads [channels, height, width].
  """
  sizes = [network.data[key] for key in ('crop_size', 'channels')]
  shapes = networks.layer_shapes(network.model, network.num_classes, *sizes)
  names = torch_names(network.model, sizes[0])
  first_dense, channels, width = networks.features(shapes, sizes[1])
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

  They are those of two nn.Sequential, whose numbers count every module: in
  `features` also ZeroPad2d before a convolution with uneven padding, which
  depends on `crop_size`, and the spatial normalization, which PyTorch lacks; in
  `classifier` also Dropout, unless `dropout` is 0.
  """
  names, part, index = {}, 'features', 0
  for layer in networks.module(model, 1).layers(crop_size):
    if layer.kind == 'flatten':
      part, index = 'classifier', 0
      continue
    index += layer.pads[0] != layer.pads[1]  # ZeroPad2d
    if layer.kind in ('conv', 'batch', 'dense'):
      names[layer.name] = f'{part}.{index}'
    index += 1
  return {**names, 'head': f'{part}.{index}'}


def write(path: str | os.PathLike, network: TrainedNetwork) -> dict:
  """Writes a .safetensors file, as a whole or not at all; see `to_torch`.

  The network has names of its classes, and claims that need no `tensors`.
  """
  tensors = to_torch(network)
  mean = np.ascontiguousarray(network.mean, '<f4')
  text = base64.b64encode(mean.tobytes()).decode()
  fields = {
    'version': _VERSION,
    'model': network.model,
    'data': {key: network.data[key] for key in _DATA_KEYS},
    'mean': {'shape': mean.shape, 'float32': text},
    'num_classes': network.num_classes,
    'class_names': network.class_names,
    'claims': network.claims | {'tensors': claims.digests(tensors)},
  }
  text = {'format': 'pt', _METADATA_KEY: json.dumps(fields, sort_keys=True)}
  with files.replaced_file(path) as temporary:
    safetensors.numpy.save_file(tensors, temporary, text)
  return tensors


def from_metadata(text: str) -> TrainedNetwork:
  """Returns the network of the metadata of `write`, without its weights.

  Its fields of config.model are checked when the network is built, those of
  config.data by `imported_run.make_config`, the names of the classes where they
  are written. Raises UserError if the text is something else.
  """
  try:
    fields = json.loads(text)
    data = {'channels': 3, **fields['data']}  # which older files lack
    data = {key: _tuples(data[key]) for key in _DATA_KEYS}
    names, crop = _tuples(fields['class_names']), data['crop_size']
    shape = crop, crop, data['channels']
    mean = base64.b64decode(fields['mean']['float32'], validate=True)
    mean = np.frombuffer(mean, '<f4').reshape(fields['mean']['shape'])
    if not (
      fields['version'] == _VERSION
      and (type(crop) is int and crop > 0)
      and mean.shape == (shape if data['mean'] == 'image' else shape[2:])
      and np.isfinite(mean).all()
      and len(names) == fields['num_classes']
      and {*map(type, names)} == {str}
    ):
      raise ValueError('values that do not fit')
    model, said = _tuples(dict(fields['model'])), dict(fields['claims'])
    return TrainedNetwork(model, data, mean, {}, {}, len(names), names, said)
  except Exception as error:  # values of odd types raise anything
    raise UserError(
      'its metadata was not written by interop.save, or is damaged'
      f' ({type(error).__name__}: {error}); get the file again'
    ) from None


def _tuples(value):
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value


def load_tensors(
  path: str | os.PathLike,
) -> tuple[dict[str, np.ndarray], str | None]:
  """Reads ({name: array of any dtype}, metadata of `interop.save` or None).

  Without metadata names lose the parts that wrappers of modules add (_MODULES)
  and a prefix that all have, and counters (_COUNTERS) are left out. Raises
  UserError if the file is damaged or of another kind, or would execute code.
  """
  path, text = pathlib.Path(path), None
  with path.open('rb') as file:
    start = file.read(9)
  if not start:
    raise UserError('an empty file; get it again')
  # The header of .safetensors is JSON after a number of eight bytes. What is
  # neither that nor a zip is what its name says.
  is_zip = zipfile.is_zipfile(path)
  if start[8:] == b'{' or (path.suffix == '.safetensors' and not is_zip):
    tensors, text = _load_safetensors(path)
  else:
    tensors = _load_pickled(path, is_zip)
  if text is not None:  # names are as `write` gave them
    return tensors, text
  names = {
    name: [p for p in name.split('.') if p not in _MODULES] or [name]
    for name in tensors
    if name.rpartition('.')[2] not in _COUNTERS
  }
  # `model.features.0.weight`: the outermost module of all.
  while len({parts[0] for parts in names.values()}) == 1 and all(
    len(parts) > 2 for parts in names.values()
  ):
    names = {name: parts[1:] for name, parts in names.items()}
  short = {'.'.join(parts): tensors[name] for name, parts in names.items()}
  unique = len(short) == len(names)
  return short if unique else {name: tensors[name] for name in names}, None


def _load_safetensors(path):
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      return file.get_tensors(), (file.metadata() or {}).get(_METADATA_KEY)
  except Exception as error:  # of types and shapes that numpy lacks anything
    raise UserError(
      'not a complete .safetensors file, or it has a tensor that numpy cannot'
      f' hold ({error}); get it again'
    ) from None


def _load_pickled(path, is_zip):
  try:
    import torch
  except ImportError:
    raise UserError(
      'a file of torch.save needs PyTorch to be read safely:'
      f' {how_to_install("interop")}, or convert it to .safetensors'
    ) from None
  try:
    # It warns of old protocols before it reads or refuses the file.
    with warnings.catch_warnings(action='ignore'):
      # Without weights_only it would execute what the file says.
      contents = torch.load(
        _repack(path) if is_zip else path, weights_only=True, map_location='cpu'
      )
  except UserError:
    raise
  except Exception as error:  # damaged files raise anything
    sentence = re.split(r'\n|\. ', str(error))[0][:200]
    refused = _REFUSED.search(str(error))
    reason = f'it asks for {refused[1]}' if refused else sentence
    raise UserError(
      'PyTorch refuses to read it as plain tensors; it is damaged, of another'
      ' kind, a whole module instead of its state_dict(), or would execute'
      f' code ({reason}). Save it with torch.save(network.state_dict(), ...)'
    ) from None
  for _ in range(5):  # a dict may hold itself
    contents = _unwrapped(contents)
  if odd := _odd_items(contents):
    raise networks.misfit(
      f'a state dict {{name: tensor}}, or one under {" or ".join(_WRAPPERS)}',
      ', '.join(odd[:10]),
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


def _unwrapped(contents):
  """Returns the state dict that a dict has beside other things, or itself."""
  items = contents.items() if isinstance(contents, Mapping) else ()
  dicts = {k: v for k, v in items if isinstance(v, Mapping) and v}
  # Under another name, if there is no doubt.
  plain = [key for key, inner in dicts.items() if not _odd_items(inner)]
  known = [key for key in _WRAPPERS if key in dicts]
  keys = known or (plain if len(plain) == 1 else [])
  return dicts[keys[0]] if keys else contents


def _odd_items(contents):  # what is no tensor by name, for messages
  import torch

  if not isinstance(contents, Mapping):
    return [type(contents).__name__]
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

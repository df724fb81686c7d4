"""Trained networks in PyTorch's files: .safetensors, and .pth or .pt.

A file of `interop.save` says in its metadata of which network it is and how
images are prepared. Other files hold names and weights only: the user names the
network. Nothing in a file is executed.
"""

import base64
from collections.abc import Mapping
import dataclasses
import json
import logging
import math
import os
import pathlib
import pickle
import re
import warnings
import zipfile

import ml_dtypes
import numpy as np
import safetensors
import safetensors.numpy

from alexnet_jax import files
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError
from alexnet_jax.interop import matching
from alexnet_jax.interop import networks
from alexnet_jax.interop import torch_layout
from alexnet_jax.interop.networks import TrainedNetwork

# Of torchvision's weights, for pixels from 0 to 255: what its documentation
# gives for pixels from 0 to 1 (transforms of AlexNet_Weights.IMAGENET1K_V1),
# 0.485, 0.456, 0.406 and 0.229, 0.224, 0.225, times 255.
TORCHVISION_MEAN = (123.675, 116.28, 103.53)
TORCHVISION_STD = (58.395, 57.12, 57.375)
TORCHVISION = 'alexnet_torchvision'

METADATA_KEY = 'alexnet_jax'
_VERSION = 1  # of the metadata
_DATA_KEYS = ('resize_size', 'crop_size', 'mean', 'std', 'std_rgb')
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

  Names may be those of `torch_layout`, or others: then the layers are matched
  by their kind (convolution, dense, batch norm) in the natural order of their
  names, and the pairs are shown. All shapes must fit; in a network with layers
  of equal shapes, names in another order than the layers' would go unnoticed.

  float16, bfloat16 and float64 become float32 (float64 is rounded), with a
  warning. Counters of updates are ignored.

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
  with matching.naming(path):
    tensors, text = load_tensors(path)
    if text is None:
      network, head = _identify(tensors, options)
    elif options == networks.Options():
      network = from_metadata(text)
    else:
      raise UserError(
        'it says itself of which network it is and how images are prepared:'
        ' give --from torch without --network, --crop_size, --mean, --std and'
        ' --batch_norm_epsilon'
      )
    plan = torch_layout.layers(
      network.model, network.num_classes, network.data['crop_size']
    )
    if text is None:
      tensors = _rename(tensors, plan, head)
    params, batch_stats = torch_layout.from_torch(tensors, plan)
  return dataclasses.replace(network, params=params, batch_stats=batch_stats)


def _identify(tensors, options):
  """Returns (network without weights, name of its last dense layer)."""
  if not options.network:
    raise UserError(
      'it does not say of which network it is (no metadata of interop.save):'
      f' name it with --network, such as --network {TORCHVISION}'
    )
  known = options.network == TORCHVISION
  model, data, mean = networks.resolve(
    options, TORCHVISION_MEAN, TORCHVISION_STD, known
  )
  dtypes = {array.dtype.name for array in tensors.values()}
  if rounded := sorted(dtypes & {'float16', 'bfloat16', 'float64'}):
    _warn('numbers of %s become float32', ', '.join(rounded))
  widths = {
    name.rpartition('.')[0]: (array.shape[1], array.shape[0])
    for name, array in tensors.items()
    if array.ndim == 2
  }
  head = matching.last_dense(widths, tensors)
  return TrainedNetwork({}, {}, model, data, mean, widths[head][1]), head


def _warn(message, *arguments):
  logging.getLogger(__name__).warning(message, *arguments)


def _rename(tensors, plan, head):
  """Returns the tensors by the names of `torch_layout`."""
  if tensors.keys() == torch_layout.torch_shapes(plan).keys():
    return tensors
  groups = {}
  for name, array in tensors.items():
    layer, _, leaf = name.rpartition('.')
    groups.setdefault(layer, {})[leaf] = array
  wanted = {layer.torch_name: (layer.kind, layer.shapes) for layer in plan}
  pairs = matching.match_layers(groups, wanted, head)
  _warn(
    'layers were matched by kind and order: %s',
    ', '.join(f'{layer.name} is {pairs[layer.torch_name]}' for layer in plan),
  )
  return {
    f'{ours}.{leaf}': array
    for ours, theirs in pairs.items()
    for leaf, array in groups[theirs].items()
  }


def write(path: str | os.PathLike, network: TrainedNetwork, step: int) -> dict:
  """Writes a .safetensors file, as a whole or not at all.

  Args:
    path: of the file.
    network: with the names of its classes.
    step: number of updates that made the weights.

  Returns:
    {name: array}, as PyTorch has them.
  """
  plan = torch_layout.layers(
    network.model, network.num_classes, network.data['crop_size']
  )
  tensors = torch_layout.to_torch(network.params, network.batch_stats, plan)
  text = {'format': 'pt', METADATA_KEY: to_metadata(network, step)}
  with files.replaced_file(path) as temporary:
    safetensors.numpy.save_file(tensors, temporary, text)
  return tensors


def to_metadata(network: TrainedNetwork, step: int) -> str:
  """Returns a JSON object of all but the weights; the mean as base64 bytes."""
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
  return json.dumps(fields, sort_keys=True)


def from_metadata(text: str) -> TrainedNetwork:
  """Returns the network that `to_metadata` described, without its weights.

  Its fields of config.model are checked when the network is built.

  Raises:
    UserError: if the text is something else.
  """
  try:
    fields = json.loads(text)
    if fields['version'] != _VERSION:
      raise ValueError(f'version {fields["version"]!r}, not {_VERSION}')
    mean = base64.b64decode(fields['mean']['float32'], validate=True)
    described = TrainedNetwork(
      params={},
      batch_stats={},
      model=_tuples(dict(fields['model'])),
      data={key: _tuples(fields['data'][key]) for key in _DATA_KEYS},
      mean=np.frombuffer(mean, '<f4').reshape(fields['mean']['shape']),
      num_classes=fields['num_classes'],
      class_names=_tuples(fields['class_names']),
    )
    for good, reason in _checks(described, fields['step']):
      if not good:
        raise ValueError(reason)
  # OverflowError and RecursionError: numbers and nested lists that are too
  # large for Python. What base64 and comparisons of odd types raise is here.
  except (
    AttributeError,
    KeyError,
    OverflowError,
    RecursionError,
    TypeError,
    ValueError,
  ) as error:
    missing = ' is missing' if isinstance(error, KeyError) else ''
    raise UserError(
      'its metadata was not written by interop.save, or is damaged'
      f' ({error}{missing}); get the file again'
    ) from None
  return described


def _checks(network, step):
  """Yields (a condition that must hold, the reason if it does not)."""
  data, mean, names = network.data, network.mean, network.class_names
  crop, resize = data['crop_size'], data['resize_size']
  for name, number, least in (
    ('step', step, 0),
    ('num_classes', network.num_classes, 1),
    ('num_classes of the model', network.model.get('num_classes', 0), 0),
    ('crop_size', crop, 1),
    ('resize_size', resize, crop),
  ):
    good = type(number) is int and number >= least
    yield good, f'{name} {number!r}, not at least {least!r}'
  kinds = 'channel', 'image', 'none'
  yield data['mean'] in kinds, f'the mean {data["mean"]!r}'
  shape = (crop, crop, 3) if data['mean'] == 'image' else (3,)
  yield mean.shape == shape, f'a mean of shape {mean.shape}, not {shape}'
  yield np.isfinite(mean).all(), 'a mean that is not finite'
  std_rgb = data['std_rgb']
  good = type(std_rgb) is tuple and len(std_rgb) in (0, 3)
  yield good, f'deviations {std_rgb!r}'
  for std in (data['std'], *std_rgb):
    good = type(std) in (int, float) and 0 < float(std) < math.inf
    yield good, f'a deviation of {std!r}'
  yield all(isinstance(name, str) for name in names), 'class names of no text'
  good = len(names) == network.num_classes
  yield good, f'{len(names)} class names for {network.num_classes} classes'


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
    parts that wrappers of modules add (_MODULES), and counters (_COUNTERS) are
    left out.

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
  short = {
    '.'.join(part for part in name.split('.') if part not in _MODULES): array
    for name, array in tensors.items()
  }
  return short if len(short) == len(tensors) else tensors, text


def _load_safetensors(path):
  try:
    with safetensors.safe_open(path, 'numpy') as file:
      return file.get_tensors(), (file.metadata() or {}).get(METADATA_KEY)
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
      # Without weights_only it would execute what the file says. Maps the file
      # (those of before zips cannot be), so that nothing larger is made of it.
      contents = torch.load(
        path,
        weights_only=True,
        map_location='cpu',
        mmap=zipfile.is_zipfile(path),
      )
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
  return {
    name: _to_numpy(name, tensor, torch)
    for name, tensor in _find_state_dict(contents, torch).items()
  }


def _find_state_dict(contents, torch):
  for key in _WRAPPERS:
    if isinstance(contents, Mapping) and isinstance(contents.get(key), Mapping):
      contents = contents[key]
  if not isinstance(contents, Mapping):
    raise matching.misfit(
      'a state dict {name: tensor}', type(contents).__name__
    )
  others = [
    f'{key} ({type(value).__name__})'
    for key, value in contents.items()
    if not (isinstance(key, str) and isinstance(value, torch.Tensor))
  ]
  if others:
    raise UserError(
      'expected a state dict {name: tensor}, or one under'
      f' {" or ".join(_WRAPPERS)}; found {", ".join(others[:10])}'
    )
  return contents


def _to_numpy(name, tensor, torch):
  """Returns an array without a copy: many names may share the same numbers."""
  if tensor.layout != torch.strided or tensor.is_quantized:
    raise matching.misfit('a plain tensor', tensor.layout, name)
  wanted = tensor.numel() * tensor.itemsize
  there = tensor.untyped_storage().nbytes()
  if wanted > there:
    raise UserError(
      f'{name}: its shape {list(tensor.shape)} takes {wanted:,} bytes, of which'
      f' the file has {there:,}: it repeats them (expand); save it after'
      ' .contiguous()'
    )
  tensor = tensor.detach()
  try:
    if tensor.dtype == torch.bfloat16:  # numpy alone has none
      return tensor.view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    return tensor.numpy()
  except (TypeError, RuntimeError) as error:
    raise UserError(f'{name}: {error}') from None

"""Trained networks in the .weights.h5 files of Keras 3, laid out as ours."""

import collections
import os
import zipfile

from alexnet_jax.errors import how_to_install, UserError
from alexnet_jax.interop import networks
from alexnet_jax.interop.networks import TrainedNetwork

# Gamma, beta, moving mean and variance, which Keras numbers in this order.
_NORM = ('scale', 'bias', 'mean', 'var')
_RESAVE = "load it with Keras 3, call model.save_weights('NAME.weights.h5')"
# Pixels from 0 to 1, as Keras' examples have them.
_USUAL = {'mean': (0.0,) * 3, 'std': (255.0,) * 3}


def read(path: str | os.PathLike, options: networks.Options) -> TrainedNetwork:
  """Reads the network that is named out of what Keras 3 wrote as .weights.h5.

  Missing levels are a mean of 0 and a deviation of 255, with a warning. Raises
  UserError if the file cannot be read, is damaged, of another kind, or its
  weights do not fit the network; with what was expected and found.
  """
  with networks.naming(path):
    network = networks.resolve(options, _USUAL)
    return networks.fit(network, _load(path))


def _load(path):
  """Returns {layer: {our name of the leaf: array}}."""
  open(path, 'rb').close()  # h5py's messages are longer than Python's
  if zipfile.is_zipfile(path):
    found = f'a zip, as a .keras file is: {_RESAVE}'
    raise networks.misfit('a .weights.h5 file', found)
  try:
    import h5py
  except ImportError:
    raise UserError(
      f'HDF5 files need h5py: {how_to_install("interop")}'
    ) from None
  try:
    with h5py.File(path, 'r') as file:
      return _read_layers(file, h5py)
  except UserError:
    raise
  except Exception as error:  # damaged files make h5py raise anything
    raise UserError(
      f'damaged, or of another kind than .weights.h5 ({error}); get it again'
    ) from None


def _read_layers(file, h5py):
  if 'layer_names' in file.attrs or 'model_weights' in file:
    raise UserError(
      "it is in the older format of Keras 2's .h5 (or of model.save('X.h5'));"
      f' {_RESAVE}'
    )
  found = {}

  def collect(name, item):
    # LAYER/vars/NUMBER, with `layers` before those that are no attributes; the
    # draws of dropout layers and of the optimizer are no weights.
    ours = not name.startswith('optimizer/') and 'seed_generator' not in name
    if isinstance(item, h5py.Dataset) and ours:
      found[name.removeprefix('layers/')] = item

  # Visits everything once, under one of its names, and follows no links.
  file.visititems(collect)
  groups = collections.defaultdict(list)
  room = os.path.getsize(file.filename)
  for name in sorted(found, key=networks.natural_key):
    item = found[name]
    if item.is_virtual or item.external:
      raise UserError(f'{item.name} has its numbers in another file')
    if item.dtype.hasobject:  # of any length behind a few bytes
      raise networks.misfit('numbers', item.dtype, item.name)
    room -= item.size * item.dtype.itemsize
    if room < 0:
      raise UserError(
        f'{item.name}: expected uncompressed numbers, as Keras writes; with its'
        f' shape {item.shape} they are larger than the file'
      )
    groups[name.partition('/vars/')[0]].append(item[()])
  named = {}
  for name, arrays in groups.items():
    leaves = ('kernel', 'bias') if arrays[0].ndim > 1 else _NORM
    extra = map(str, range(len(leaves), len(arrays)))
    named[name] = dict(zip((*leaves, *extra), arrays, strict=False))
  return named

"""Keras' trained networks: the .weights.h5 of Keras 3.

Keras lays weights out as they are laid out here: kernels of convolutions
[height, width, in, out], those of dense layers [in, out], and Flatten reads
[height, width, channels] where images are `channels_last`, its default. Batch
norms have gamma, beta, moving mean and moving variance, in this order.
"""

from collections.abc import Sequence
import os
import pathlib
import zipfile

import numpy as np

from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError
from alexnet_jax.interop import matching
from alexnet_jax.interop import networks
from alexnet_jax.interop import reading
from alexnet_jax.interop.imported import Imported

# In the order of Keras' numbers; names of Keras, ours and where they are.
_LAYER_LEAVES = (('kernel', 'kernel', 'params'), ('bias', 'bias', 'params'))
_NORM_LEAVES = (
  ('gamma', 'scale', 'params'),
  ('beta', 'bias', 'params'),
  ('moving_mean', 'mean', 'batch_stats'),
  ('moving_variance', 'var', 'batch_stats'),
)
# Pixels from 0 to 1, as Keras' examples have them.
_USUAL_MEAN, _USUAL_STD = (0.0,) * 3, (255.0,) * 3
_MOST_SHOWN = 10


def read(
  path: str | os.PathLike,
  network: str,
  *,
  crop_size: int = 0,
  mean: Sequence[float] = (),
  std: Sequence[float] = (),
) -> Imported:
  """The network of a Sequential of Conv2D, BatchNormalization and Dense layers.

  Layers are matched by their kind in the natural order of the file's names
  (conv2d, conv2d_1, ... conv2d_10), which Keras gives by their order in the
  network. What the file does not hold is that of the network named: strides,
  padding, pooling, the order of batch norm and ReLU, batch norm's epsilon.

  Args:
    path: of a file that Keras 3 wrote with model.save_weights.
    network: a name of `models.variants`.
    crop_size: width of images, in pixels; 0: what the network is meant for.
    mean: red, green and blue that are subtracted from pixels of 0 to 255; ():
      nothing, which is said.
    std: what they are divided by then; (): 255, as Keras' examples do, which is
      said.

  Raises:
    UserError: if the file cannot be read, is damaged, of another kind, or its
      weights do not fit the network; with what was expected and found.
  """
  with reading.naming(path):
    model = networks.named_fields(network)
    sizes = networks.image_sizes(network, crop_size)
    groups = _load(pathlib.Path(path))
    head = _head(groups)
    num_classes = groups[head][0].shape[1]
    shapes = networks.shapes(model, num_classes, sizes['crop_size'])
    trees = _converted(groups, shapes, head)
  mean, std = reading.pixel_levels(mean, std, _USUAL_MEAN, _USUAL_STD)
  return Imported(
    params=trees['params'],
    batch_stats=trees['batch_stats'],
    model=model,
    data={**sizes, 'mean': 'channel', 'std': 1.0, 'std_rgb': std},
    mean=np.array(mean, np.float32),
    num_classes=num_classes,
  )


def _load(path):
  """{layer: its arrays, in order} of all layers that have any."""
  try:
    with path.open('rb') as file:
      start = file.read(len(reading.HDF5_START))
  except OSError as error:
    raise UserError(f'cannot be read: {error.strerror}') from None
  if zipfile.is_zipfile(path):
    raise UserError(
      'expected a .weights.h5 file, found a zip, as a .keras file is: load it'
      " with Keras and call model.save_weights('NAME.weights.h5')"
    )
  if start != reading.HDF5_START:
    raise UserError(
      'expected an HDF5 file, found another kind, or a damaged one; get it'
      ' again'
    )
  try:
    import h5py
  except ImportError:
    raise UserError(
      f'HDF5 files need h5py: {how_to_install("interop")}'
    ) from None
  try:
    with h5py.File(path, 'r') as file:
      return _groups(file, h5py)
  except UserError:
    raise
  except Exception as error:  # of damaged files h5py raises whatever it met
    raise UserError(f'truncated or damaged ({error}); get it again') from None


def _groups(file, h5py):
  _refuse_old(file)
  groups, room = {}, os.path.getsize(file.filename)
  for layer, item in _datasets(file, h5py):
    _refuse_odd(item)
    room -= item.size * item.dtype.itemsize
    if room < 0:
      raise UserError(
        f'{item.name}: expected uncompressed numbers, as Keras writes; with its'
        f' shape {item.shape} they are larger than the file'
      )
    groups.setdefault(layer, {})[item.name] = item[()]
  return {
    layer: [arrays[name] for name in sorted(arrays, key=matching.natural_key)]
    for layer, arrays in groups.items()
    # Draws of dropout layers.
    if not all('seed_generator' in name for name in arrays)
  }


def _datasets(file, h5py):
  """(layer, dataset) of all that are in the layers' groups, each once."""
  seen = set()

  def walk(layer, item):
    if isinstance(item, h5py.Group):
      for name in item:
        yield from walk(layer, _child(item, name, seen, h5py))
    else:
      yield layer, item

  layers = _child(file, 'layers', seen, h5py)
  for layer in layers:
    item = _child(layers, layer, seen, h5py)
    if isinstance(item, h5py.Group):
      yield from walk(layer, item)


def _child(group, name, seen, h5py):
  """What a group has by that name, whose address is added to those seen."""
  path = f'{group.name.rstrip("/")}/{name}'
  if not isinstance(group.get(name, getlink=True), h5py.HardLink):
    raise UserError(f'{path} is a link to elsewhere; expected a dataset')
  item = group[name]
  address = h5py.h5o.get_info(item.id).addr
  # Many names of one thing would make a small file a large one.
  if address in seen:
    raise UserError(f'{path} is a second name of what has one already')
  seen.add(address)
  return item


def _refuse_old(file):
  if 'layer_names' in file.attrs or 'model_weights' in file:
    raise UserError(
      "it is in the older format of Keras 2's .h5 (or of model.save('X.h5'));"
      ' load it with Keras and call'
      " model.save_weights('NAME.weights.h5') with Keras 3"
    )
  if 'layers' not in file:
    found = ', '.join(list(file)[:_MOST_SHOWN]) or 'nothing'
    raise UserError(
      "expected the group 'layers' of a .weights.h5 file of Keras 3, found"
      f' {found}'
    )


def _refuse_odd(item):
  if item.is_virtual or item.external:
    raise UserError(f'{item.name} has its numbers in another file')
  # Texts and references, of any length behind a few bytes.
  if item.dtype.hasobject:
    raise UserError(f'{item.name}: expected numbers, found {item.dtype}')


def _head(groups):
  """The last dense layer."""
  widths = {
    name: arrays[0].shape
    for name, arrays in groups.items()
    if _kind(arrays) == 'dense'
  }
  if not widths:
    raise UserError(
      'expected Dense layers; found'
      f' {", ".join(list(groups)[:_MOST_SHOWN]) or "no layer with weights"}'
    )
  return matching.last_dense(widths)


def _kind(arrays):
  ndims = [np.ndim(array) for array in arrays]
  if ndims == [1, 1, 1, 1]:
    return 'norm'
  return {4: 'conv', 2: 'dense'}.get(ndims[0], 'layer of another kind')


def _leaves(kind):
  return _NORM_LEAVES if kind == 'norm' else _LAYER_LEAVES


def _converted(groups, shapes, head):
  wanted = []
  for name in sorted(shapes['params'], key=_place):
    kind = networks.kind(name)
    leaves = {
      theirs: shapes[where][name][ours] for theirs, ours, where in _leaves(kind)
    }
    wanted.append((name, kind, leaves))
  found = {}
  for name, arrays in groups.items():
    kind = _kind(arrays)
    names = [leaf[0] for leaf in _leaves(kind)]
    names += [str(number) for number in range(len(names), len(arrays))]
    found[name] = (
      kind,
      {n: a.shape for n, a in zip(names, arrays, strict=False)},
    )
  pairs = matching.by_order(found, wanted, head)
  trees = {'params': {}, 'batch_stats': {}}
  for name, kind, _ in wanted:
    arrays = groups[pairs[name]]
    for (theirs, ours, where), array in zip(_leaves(kind), arrays, strict=True):
      label = f'{pairs[name]} {theirs}'
      array = reading.as_float32(array, label)
      if theirs == 'moving_variance' and (array < 0).any():
        raise UserError(f'{label}: expected variances, found negative numbers')
      trees[where].setdefault(name, {})[ours] = array
  return trees


def _place(name):
  """Of a layer: norms of convolutions before those of dense layers."""
  roles = ('conv', 'norm', 'dense', 'dense_norm', 'head')
  role = name.rstrip('0123456789')
  return roles.index(role), int(name[len(role) :] or 0)

"""Trained networks, and how the layers of a file become those of a network.

A reader turns its file into layers {name: {leaf: array}} in the layouts of
`models.alexnet.AlexNet`; `fit` finds the layers of the network among them.
"""

import collections
from collections.abc import Iterator, Mapping, Sequence
import contextlib
import dataclasses
import logging
import math
import os
import re

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax import files
from alexnet_jax.errors import UserError
from alexnet_jax.models import spec, variants
from alexnet_jax.models.alexnet import AlexNet

RESIZE_SIZE = 256  # pixels, unless the crop is larger
_CROP_SIZES = {'marvin': 28}  # of all that are not here 224
_CROP_SIZES |= dict.fromkeys(
  ('alexnet_plain', 'alexnet_caffe', 'caffenet'), 227
)
_NORM = {'scale', 'bias', 'mean', 'var'}  # leaves of a batch norm
_FIRST, _LAST = ('features', 'conv'), ('classifier', 'fc', 'dense', 'head')
_MOST_REPEATED = 2**28  # bytes that fewer numbers of a file may stand for
_FLOATS = ('float32', 'float16', 'bfloat16', 'float64')
log = logging.getLogger(__name__)  # for what was guessed or changed


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
  """A trained network in this package's terms, read from a file or a run."""

  model: dict  # fields of `config.model`
  data: dict  # fields of `config.data`: how images are prepared for it
  # Subtracted from pixels of 0 to 255, float32, red, green, blue or gray:
  # [channels], or [crop_size, crop_size, channels] if data['mean'] is `image`.
  mean: np.ndarray
  # {layer: {leaf: float32 array}}, empty before `fit`: kernel or scale, and
  # bias; mean and var of batch norms.
  params: dict = dataclasses.field(default_factory=dict)
  batch_stats: dict = dataclasses.field(default_factory=dict)
  num_classes: int = 0  # number of logits; 0 before `fit`: what the file has
  class_names: tuple[str, ...] | None = None  # None: the file names none
  # What a file of `interop.save` says of the training, see `claims`.
  claims: dict = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Options:
  """The user's answers for a file that does not describe its network."""

  network: str = ''  # a name of `models.variants`
  crop_size: int = 0  # pixels; 0: what the network is meant for
  mean: Sequence[float] = ()  # red, green, blue: subtracted from 0 to 255
  std: Sequence[float] = ()  # red, green, blue: what is left is divided by it
  batch_norm_epsilon: float = 0.0  # of all batch norms; 0: the network's
  mean_file: str = ''  # Caffe's mean image, a .binaryproto


@contextlib.contextmanager
def naming(path: str | os.PathLike) -> Iterator[None]:
  """Puts the file's name in front of the message of what is wrong with it."""
  files.refuse_special_file(path)
  try:
    yield
  except UserError as error:
    raise UserError(f'{path}: {error}') from None
  except OSError as error:
    reason = error.strerror or error
    raise UserError(f'{path}: cannot be read: {reason}') from None


def misfit(expected: object, found: object, name: object = '') -> UserError:
  """Returns the error of a part of a file, called `name` in the message."""
  prefix = f'{name}: ' if name else ''
  return UserError(f'{prefix}expected {expected}, found {found}')


def resolve(
  options: Options, usual: Mapping[str, Sequence[float]], known: str = ''
) -> TrainedNetwork:
  """Returns the network of the user's options; warns of every guess.

  `usual` {'mean', 'std'} are taken for levels that are not given; of the
  network `known` they are documented. Raises UserError if there is no network
  of that name, or no batch norm in it.
  """
  name = options.network
  if name not in variants.VARIANTS:
    raise UserError(
      f'--network is {name!r}; the file does not say of which network it is, so'
      f' name one of {", ".join(variants.VARIANTS)}'
    )
  model = variants.fields(name)
  taken = {'crop_size': _CROP_SIZES.get(name, 224), **usual}
  if model['norm'] == 'batch':
    taken['batch_norm_epsilon'] = model['batch_norm_epsilon']
  elif options.batch_norm_epsilon:
    raise UserError(f'--batch_norm_epsilon: {name} has no batch norms')
  guesses = []
  for option, value in taken.items():
    taken[option] = getattr(options, option) or value
    if not getattr(options, option) and name != known:
      text = ','.join(f'{number:g}' for number in np.ravel(value))
      guesses.append(f'--{option} {text}')
  if guesses:  # a wrong one gives wrong answers, not an error
    hint = "; PyTorch's batch norms have 1e-05 by default, Keras' 0.001"
    log.warning(
      'the file does not say how the network was trained; taken: %s. Give these'
      ' options if it was trained with other numbers%s',
      ' and '.join(guesses),
      hint * ('epsilon' in guesses[-1]),
    )
  crop_size = taken['crop_size']
  data = {
    'resize_size': max(28 if name == 'marvin' else RESIZE_SIZE, crop_size),
    'crop_size': crop_size,
    'mean': 'channel',
    'std': 1.0,
    'std_rgb': tuple(taken['std']),
  }
  model |= {key: taken[key] for key in taken if key in model}
  return TrainedNetwork(model, data, np.array(taken['mean'], np.float32))


def module(model: dict, num_classes: int) -> AlexNet:
  """Returns the flax module of fields of `config.model`, in float32.

  Raises UserError if a field is unknown or unfit.
  """
  own = {'num_classes': num_classes, 'dtype': jnp.float32}
  if unknown := sorted(model.keys() - spec.defaults().keys() - own.keys()):
    raise UserError(f'config.model: there is no key {unknown[0]!r}')
  # Checked as given: the module turns them into other types.
  if problem := spec.problem(spec.defaults() | model):
    raise UserError(f'config.model: {problem}')
  return AlexNet(**{**model, **own})


def layer_shapes(
  model: dict, num_classes: int, crop_size: int, channels: int
) -> dict[str, dict[str, tuple[int, ...]]]:
  """Returns {layer: {leaf: shape}} of all weights, each kind in its order.

  Raises UserError if a field of `config.model` is unknown or unfit, or images
  of `crop_size` pixels are too small.
  """
  network = module(model, num_classes)
  try:
    shape = (1, crop_size, crop_size, channels)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
  except (ValueError, TypeError, OverflowError) as error:
    raise UserError(
      f'crops of {crop_size} pixels do not fit the network: {error}'
    ) from error
  shapes = collections.defaultdict(dict)
  for tree in variables.values():
    for name, leaves in tree.items():
      shapes[name] |= {leaf: array.shape for leaf, array in leaves.items()}
  return {name: shapes[name] for name in sorted(shapes, key=natural_key)}


def features(
  shapes: Mapping[str, Mapping], channels: int
) -> tuple[str, int, int]:
  """Returns (first dense layer, channels, width) of the images it reads.

  The network reads images of `channels`.
  """
  for name, leaves in shapes.items():  # convolutions first
    if _kind(leaves) == 'dense':
      return name, channels, math.isqrt(leaves['kernel'][0] // channels)
    if _kind(leaves) == 'conv':
      channels = leaves['bias'][0]


def natural_key(name: str) -> tuple:
  """Sorts conv2 before conv10, and `classifier.1` after `features.0`."""
  start = re.split(r'[._\d]', name)[0]
  rank = -(start in _FIRST) + (start in _LAST)
  # Every second part is a number.
  parts = re.split(r'(\d+)', name)
  return rank, [int(p) if i % 2 else p for i, p in enumerate(parts)]


def last_dense(widths: Mapping[str, tuple[int, int]]) -> str:
  """Returns the layer of {name: (inputs, outputs)} that gives the logits.

  It is the one whose outputs no other layer can read. If that holds for none
  or for several, the natural order of the names decides.
  """
  ends = [
    name
    for name, (_, outputs) in widths.items()
    if all(outputs != widths[other][0] for other in widths if other != name)
  ]
  return max(ends or widths, key=natural_key)


def _kind(shapes):
  if shapes.keys() == _NORM:
    return 'norm'
  return {4: 'conv', 2: 'dense'}.get(len(shapes.get('kernel', ())), 'other')


def fit(
  network: TrainedNetwork,
  found: Mapping[str, Mapping[str, np.ndarray]],
  names: Mapping[str, str] | None = None,
  *,
  channels_first: bool = False,
) -> TrainedNetwork:
  """Returns the network with the weights of a file, as float32.

  Layers are paired by their kind (convolution, dense, batch norm) in the
  natural order of their names; all layers and shapes must fit, or UserError
  says what was expected and found. Names in another order than layers of equal
  shapes would go unnoticed: a warning shows the pairs, unless they are usual.

  Args:
    network: without weights.
    found: {layer of the file: {leaf: array}} with the leaves of our layers:
      kernels [height, width, in, out] or [in, out], bias, scale, mean, var.
    names: {our layer: its usual name in such files}; by default ours.
    channels_first: whether the first dense layer reads [channels, height,
      width] in the file; here it reads [height, width, channels].
  """
  there = {
    name: {leaf: np.shape(array) for leaf, array in leaves.items()}
    for name, leaves in found.items()
  }
  dense = [name for name in there if _kind(there[name]) == 'dense']
  if not dense:
    raise misfit('dense layers', ', '.join([*found][:10]) or 'nothing')
  last = last_dense({name: there[name]['kernel'] for name in dense})
  num_classes = network.num_classes or there[last]['kernel'][1]
  if num_classes < 2:
    raise misfit('a head of two classes at least', num_classes, last)
  for layer, leaves in found.items():
    for leaf, array in leaves.items():
      if not array.size:
        raise misfit('numbers', 'none', f'{layer} {leaf}')
      if 0 in array.strides and array.nbytes > _MOST_REPEATED:
        expected = 'a number for each weight'
        raise misfit(expected, 'one for many', f'{layer} {leaf}')
  network = _with_channels(network, there)
  sizes = [network.data[key] for key in ('crop_size', 'channels')]
  shapes = layer_shapes(network.model, num_classes, *sizes)
  pairs = _match(there, shapes, last)
  if pairs != (names or {name: name for name in shapes}):
    shown = ', '.join(f'{ours} is {theirs}' for ours, theirs in pairs.items())
    log.warning('layers were matched by kind and order: %s', shown)
  params, batch_stats, rounded = {}, {}, set()
  first_dense, channels, width = features(shapes, sizes[1])
  for ours, theirs in pairs.items():
    for leaf, array in found[theirs].items():
      rounded.add(array.dtype.name)
      array = _to_float32(array, f'{theirs} {leaf}', leaf == 'var')
      if channels_first and (ours, leaf) == (first_dense, 'kernel'):
        blocks = array.reshape(channels, width, width, -1)
        array = blocks.transpose(1, 2, 0, 3).reshape(array.shape)
      tree = batch_stats if leaf in ('mean', 'var') else params
      # A copy: what was read may be a view of the file.
      tree.setdefault(ours, {})[leaf] = np.array(array, order='C')
  if rounded := sorted(rounded - {'float32'}):
    log.warning('numbers of %s become float32', ', '.join(rounded))
  return dataclasses.replace(
    network, params=params, batch_stats=batch_stats, num_classes=num_classes
  )


def _with_channels(network, shapes):
  """Returns the network with the channels that the first kernel reads."""
  if 'channels' in network.data:  # of a file of `interop.save`
    return network
  convolutions = (name for name in shapes if _kind(shapes[name]) == 'conv')
  first = min(convolutions, key=natural_key, default=None)
  channels = 1 if first and shapes[first]['kernel'][2] == 1 else 3
  mean, std = network.mean, network.data['std_rgb']
  for name, levels in (('mean', mean), ('std', std)):
    if channels == 1 and len({*levels}) > 1:
      expected = f'one level, as its first layer reads gray (give --{name})'
      raise misfit(expected, [*map(float, levels)], name)
  data = network.data | {'channels': channels, 'std_rgb': std[:channels]}
  return dataclasses.replace(network, data=data, mean=mean[:channels])


def _match(found, wanted, last):
  """Returns {our layer: layer of the file} of two {layer: {leaf: shape}}."""
  order = sorted(found, key=lambda name: (name == last, natural_key(name)))
  left, pairs = list(order), {}
  for name, shapes in wanted.items():
    kind = _kind(shapes)
    pairs[name] = next((n for n in left if _kind(found[n]) == kind), None)
    left = [n for n in left if n != pairs[name]]
  rows = [*pairs.items(), *((None, name) for name in left)]
  fits = [wanted.get(ours) == found.get(theirs) for ours, theirs in rows]
  if not all(fits):
    table = '\n'.join(
      f'  {"fits" if good else "MISFIT"}: expected {_describe(ours, wanted)},'
      f' found {_describe(theirs, found)}'
      for good, (ours, theirs) in zip(fits, rows, strict=True)
    )
    raise UserError(
      'its layers are not those of the network (matched by kind, in the order'
      ' of their names; kernels are [height, width, in, out] or [in, out])'
      f':\n{table}\nThe file was written for another network, or for other'
      ' images (--network, --crop_size)'
    )
  return pairs


def _describe(name, layers):
  if name is None:
    return 'nothing'
  leaves = sorted(layers[name].items(), key=lambda leaf: -len(leaf[1]))
  return f'{name} ' + ', '.join(f'{leaf} {list(s)}' for leaf, s in leaves)


def _to_float32(array, name, is_variance):
  if array.dtype.name not in _FLOATS:
    raise misfit(' or '.join(_FLOATS), array.dtype.name, name)
  with np.errstate(over='ignore'):
    numbers = np.asarray(array, np.float32)
  if count := np.count_nonzero(~np.isfinite(numbers)):
    raise misfit('finite numbers', f'{count:,} that are not', name)
  if is_variance and (numbers < 0).any():
    raise misfit('variances', 'negative numbers', name)
  return numbers

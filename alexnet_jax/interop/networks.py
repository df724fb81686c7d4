"""Trained networks, and the options that tell which network a file is for."""

from collections.abc import Sequence
import dataclasses
import logging

import jax
import jax.numpy as jnp
import numpy as np

from alexnet_jax.errors import UserError
from alexnet_jax.models import spec
from alexnet_jax.models import variants
from alexnet_jax.models.alexnet import AlexNet

RESIZE_SIZE = 256  # pixels, unless the crop is larger
_CROP_SIZES = {  # of all others 224
  'alexnet_plain': 227,
  'alexnet_caffe': 227,
  'caffenet': 227,
  'marvin': 28,
}
# Leaves of each kind of layer, in the order that PyTorch and Keras list them.
LEAVES = {
  'conv': {'kernel': 'params', 'bias': 'params'},
  'dense': {'kernel': 'params', 'bias': 'params'},
  'norm': {
    'scale': 'params',
    'bias': 'params',
    'mean': 'batch_stats',
    'var': 'batch_stats',
  },
}


@dataclasses.dataclass(frozen=True)
class TrainedNetwork:
  """A trained network in this package's terms, read from a file or a run.

  Attributes:
    params: {layer: {'kernel' or 'scale', 'bias'}}, float32 arrays in the
      layouts of `models.alexnet.AlexNet`.
    batch_stats: {layer: {'mean', 'var'}} of batch norms, float32; may be empty.
    model: fields of `config.model`.
    data: fields of `config.data`: how images are prepared for it.
    mean: subtracted from pixels of 0 to 255, float32, red, green, blue: [3], or
      an image [crop_size, crop_size, 3] if data['mean'] is `image`.
    num_classes: number of logits.
    class_names: of the classes; None if the file does not name them.
  """

  params: dict[str, dict[str, np.ndarray]]
  batch_stats: dict[str, dict[str, np.ndarray]]
  model: dict
  data: dict
  mean: np.ndarray
  num_classes: int
  class_names: tuple[str, ...] | None = None


@dataclasses.dataclass(frozen=True)
class Options:
  """The user's answers for a file that does not describe its network.

  Attributes:
    network: a name of `models.variants`; '': not given.
    crop_size: width of images, in pixels; 0: what the network is meant for.
    mean: red, green and blue that are subtracted from pixels of 0 to 255; ():
      not given.
    std: red, green and blue that they are then divided by; (): not given.
    batch_norm_epsilon: of all batch norms; 0: that of the named network.
    mean_file: path of Caffe's mean image, a .binaryproto; '': not given.
  """

  network: str = ''
  crop_size: int = 0
  mean: Sequence[float] = ()
  std: Sequence[float] = ()
  batch_norm_epsilon: float = 0.0
  mean_file: str = ''


@dataclasses.dataclass(frozen=True)
class Layer:
  """A layer with weights.

  Attributes:
    name: such as `conv1`, `norm1`, `dense1`, `dense_norm1` or `head`.
    kind: `conv`, `dense` or `norm`.
    shapes: {leaf: shape}, with the leaves of LEAVES in their order.
  """

  name: str
  kind: str
  shapes: dict[str, tuple[int, ...]]


def resolve(
  options: Options,
  usual_mean: Sequence[float],
  usual_std: Sequence[float],
  known: bool = False,
) -> tuple[dict, dict, np.ndarray]:
  """Completes the user's options, and warns of every guess.

  A wrong guess of how images are prepared gives wrong answers, not an error.

  Args:
    options: what the user says.
    usual_mean, usual_std: taken for levels that are not given.
    known: whether these two are documented for this very network, so that they
      are no guess.

  Returns:
    (fields of config.model, fields of config.data, the mean, float32 [3]).

  Raises:
    UserError: if there is no network of that name.
  """
  try:
    model = variants.fields(options.network)
  except ValueError as error:
    raise UserError(f'--network: {error}') from None
  crop_size = options.crop_size or _CROP_SIZES.get(options.network, 224)
  resize_size = 28 if options.network == 'marvin' else RESIZE_SIZE
  mean = tuple(options.mean or usual_mean)
  std = tuple(options.std or usual_std)
  guesses = []
  if not options.mean and not known:
    guesses.append('--mean ' + ','.join(f'{level:g}' for level in mean))
  if not options.std and not known:
    guesses.append('--std ' + ','.join(f'{level:g}' for level in std))
  if options.batch_norm_epsilon:
    model['batch_norm_epsilon'] = options.batch_norm_epsilon
  elif model['norm'] == 'batch':
    guesses.append(
      f'--batch_norm_epsilon {model["batch_norm_epsilon"]:g} (the default of'
      ' Keras is 0.001, of PyTorch 1e-05)'
    )
  if guesses:
    logging.getLogger(__name__).warning(
      'the file does not say how the network was trained; taken: %s. Give these'
      ' options if it was trained with other numbers',
      ' and '.join(guesses),
    )
  data = {
    'resize_size': max(resize_size, crop_size),
    'crop_size': crop_size,
    'mean': 'channel',
    'std': 1.0,
    'std_rgb': std,
  }
  return model, data, np.array(mean, np.float32)


def module(model: dict, num_classes: int) -> AlexNet:
  """Returns the flax module of fields of `config.model`, in float32.

  Raises:
    UserError: if a field is unknown or unfit.
  """
  own = {'num_classes': num_classes, 'dtype': jnp.float32}
  fields = variants.fields('alexnet_one_tower')
  if unknown := sorted(model.keys() - fields.keys() - own.keys()):
    raise UserError(f'config.model: there is no key {unknown[0]!r}')
  # Checked as given: the module turns them into other types.
  if problem := spec.problem({**fields, **model}):
    raise UserError(f'config.model: {problem}')
  return AlexNet(**{**model, **own})


def layers(model: dict, num_classes: int, crop_size: int) -> list[Layer]:
  """Returns all layers with weights, in the network's order.

  Args:
    model: fields of `config.model`.
    num_classes: number of logits.
    crop_size: width of the images, in pixels.

  Raises:
    UserError: if a field is unknown or unfit, or the images are too small.
  """
  network = module(model, num_classes)
  try:
    images = jax.ShapeDtypeStruct((1, crop_size, crop_size, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
  except (ValueError, TypeError, OverflowError) as error:
    raise UserError(
      f'crops of {crop_size} pixels do not fit the network: {error}'
    ) from error
  names = []
  for number in range(1, len(network.channels) + 1):
    names += [f'conv{number}', f'norm{number}']
  for number in range(1, len(network.hidden) + 1):
    names += [f'dense{number}', f'dense_norm{number}']
  found = []
  for name in [*names, 'head']:
    if name not in variables['params']:
      continue
    kind = 'conv' if name.startswith('conv') else 'dense'
    kind = 'norm' if 'norm' in name else kind
    shapes = {
      leaf: variables[collection][name][leaf].shape
      for leaf, collection in LEAVES[kind].items()
    }
    found.append(Layer(name, kind, shapes))
  return found

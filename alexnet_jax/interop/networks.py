"""The networks that weights of other frameworks can be for."""

import jax
import jax.numpy as jnp

from alexnet_jax.errors import UserError
from alexnet_jax.models import spec
from alexnet_jax.models import variants
from alexnet_jax.models.alexnet import AlexNet

RESIZE_SIZE = 256  # pixels, unless the crop is larger
_OTHER_CROP_SIZES = {
  'alexnet_plain': 227,
  'alexnet_caffe': 227,
  'caffenet': 227,
  'marvin': 28,
}


def named_fields(network: str) -> dict:
  """Fields of `config.model` of a network of `models.variants`.

  Raises:
    UserError: if there is none of that name.
  """
  try:
    return variants.fields(network)
  except ValueError as error:
    raise UserError(f'--network: {error}') from None


def image_sizes(network: str, crop_size: int = 0) -> dict[str, int]:
  """{resize_size, crop_size} of `config.data`, in pixels.

  Args:
    network: a name of `models.variants`.
    crop_size: of the images; 0: what the network is meant for.
  """
  usual = _OTHER_CROP_SIZES.get(network, 224)
  resize_size = 28 if network == 'marvin' else RESIZE_SIZE
  crop_size = crop_size or usual
  return {
    'resize_size': max(resize_size, crop_size),
    'crop_size': crop_size,
  }


def shapes(model: dict, num_classes: int, crop_size: int) -> dict:
  """Names and shapes of what a network learns.

  Args:
    model: fields of `config.model`, without number of classes and dtype or
      with them.
    num_classes: number of logits.
    crop_size: width of the images, in pixels.

  Returns:
    {'params': {layer: {leaf: shape}}, 'batch_stats': the same}.

  Raises:
    UserError: if the fields are unfit or the images too small.
  """
  network = module(model, num_classes)
  try:
    images = jax.ShapeDtypeStruct((1, crop_size, crop_size, 3), jnp.float32)
    variables = jax.eval_shape(network.init, jax.random.key(0), images)
  except (ValueError, TypeError, OverflowError) as error:
    raise UserError(
      f'crops of {crop_size} pixels do not fit the network: {error}'
    ) from error
  found = jax.tree.map(lambda leaf: leaf.shape, dict(variables))
  return {'params': {}, 'batch_stats': {}, **found}


def module(model: dict, num_classes: int) -> AlexNet:
  """The network of fields of `config.model`, in float32.

  Raises:
    UserError: if a field is unknown or unfit.
  """
  own = {'num_classes': num_classes, 'dtype': jnp.float32}
  fields = variants.fields('alexnet_one_tower')
  if unknown := sorted(model.keys() - fields.keys() - own.keys()):
    raise UserError(f'config.model: there is no key {unknown[0]!r}')
  # Not those of the module, which makes other types of what it is given.
  if problem := spec.problem({**fields, **model}):
    raise UserError(f'config.model: {problem}')
  return AlexNet(**{**model, **own})


def kind(name: str) -> str:
  """`conv`, `dense` or `norm`, of one of our layers."""
  if 'norm' in name:
    return 'norm'
  return 'conv' if name.startswith('conv') else 'dense'

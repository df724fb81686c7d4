"""What a .safetensors file of `interop.save` says besides the weights."""

import base64
import binascii
import dataclasses
import json
import math

import numpy as np

from alexnet_jax.errors import UserError

_DATA_KEYS = ('resize_size', 'crop_size', 'mean', 'std', 'std_rgb')
_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Description:
  """Attributes: see `imported.Imported`; `mean` may be an image.

  `step` is the number of updates that made the weights.
  """

  model: dict
  data: dict
  mean: np.ndarray
  num_classes: int
  class_names: tuple[str, ...]
  step: int


def of_run(config, mean: np.ndarray, class_names, step: int) -> Description:
  """Of a run.

  Args:
    config: of the run.
    mean: what it subtracts, float32 [3] or [crop_size, crop_size, 3].
    class_names: of its data.
    step: of the checkpoint.
  """
  data = config.data.to_dict()
  return Description(
    config.model.to_dict(),
    {key: data[key] for key in _DATA_KEYS},
    mean,
    len(class_names),
    tuple(class_names),
    step,
  )


def to_text(description: Description) -> str:
  """A JSON object; the mean is there as its bytes, base64."""
  mean = np.ascontiguousarray(description.mean, '<f4')
  fields = dataclasses.asdict(description) | {
    'mean': {
      'shape': mean.shape,
      'float32': base64.b64encode(mean.tobytes()).decode(),
    },
    'version': _VERSION,
  }
  return json.dumps(fields, sort_keys=True)


def from_text(text: str) -> Description:
  """What `to_text` wrote.

  Raises:
    UserError: if it is something else.
  """
  try:
    fields = json.loads(text)
    if fields['version'] != _VERSION:
      raise ValueError(f'version {fields["version"]!r}, not {_VERSION}')
    found = Description(
      _tuples(dict(fields['model'])),
      {key: _tuples(fields['data'][key]) for key in _DATA_KEYS},
      _mean(fields['mean']),
      fields['num_classes'],
      _tuples(fields['class_names']),
      fields['step'],
    )
    _check_data(found.data)
    _check(found)
  except KeyError as error:
    raise _error(f'{error} is missing') from None
  except (
    *(AttributeError, TypeError, ValueError, binascii.Error),
    # Of numbers and of nested lists that are too large for Python.
    *(OverflowError, RecursionError),
  ) as error:
    raise _error(error) from None
  return found


def _error(reason):
  return UserError(
    f'its metadata was not written by interop.save, or is damaged ({reason});'
    ' get the file again'
  )


def _mean(fields):
  data = base64.b64decode(fields['float32'], validate=True)
  mean = np.frombuffer(data, '<f4').reshape(fields['shape'])
  if not np.isfinite(mean).all():
    raise ValueError('the mean has numbers that are not finite')
  return mean.astype(np.float32)


def _check(found):
  # The fields of the network are checked where it is built, but for the one
  # that it does not have.
  for name, number, least in (
    ('step', found.step, 0),
    ('num_classes', found.num_classes, 1),
    ('num_classes of the model', found.model.get('num_classes', 0), 0),
  ):
    if type(number) is not int or number < least:
      raise ValueError(f'{name} {number!r}')
  size = found.data['crop_size']
  wanted = (size, size, 3) if found.data['mean'] == 'image' else (3,)
  if found.mean.shape != wanted:
    raise ValueError(f'a mean of shape {found.mean.shape}, not {wanted}')
  names = found.class_names
  if not all(isinstance(name, str) for name in names):
    raise ValueError('class names that are no texts')
  if len(names) != found.num_classes:
    raise ValueError(
      f'{len(names)} class names for {found.num_classes} classes'
    )


def _check_data(data):
  sizes = data['crop_size'], data['resize_size']
  if not all(type(size) is int for size in sizes) or not (
    1 <= sizes[0] <= sizes[1]
  ):
    raise ValueError(f'crops of {sizes[0]!r} of images of {sizes[1]!r} pixels')
  if data['mean'] not in ('channel', 'image', 'none'):
    raise ValueError(f'the mean {data["mean"]!r}')
  std_rgb = data['std_rgb']
  if not isinstance(std_rgb, tuple) or len(std_rgb) not in (0, 3):
    raise ValueError(f'deviations {std_rgb!r}')
  for std in (data['std'], *std_rgb):
    if type(std) not in (int, float) or not 0 < float(std) < math.inf:
      raise ValueError(f'a deviation of {std!r}')


def _tuples(value):
  if isinstance(value, dict):
    return {key: _tuples(item) for key, item in value.items()}
  return tuple(map(_tuples, value)) if isinstance(value, list) else value

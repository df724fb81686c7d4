"""Checks every value of a config that needs neither data nor devices."""

from collections.abc import Sequence
import difflib
import math

import ml_collections

from alexnet_jax.allowed_values import CHOICES
from alexnet_jax.allowed_values import DURATIONS
from alexnet_jax.allowed_values import NOT_NEGATIVE
from alexnet_jax.allowed_values import POSITIVE
from alexnet_jax.config import flatten
from alexnet_jax.config import make_config
from alexnet_jax.errors import UserError
from alexnet_jax.models import fields


def unknown_key_message(key: str, known: Sequence[str]) -> str:
  """Says that `config.key` does not exist and which key is nearest."""
  leaves = {name.rsplit('.', 1)[-1]: name for name in known}
  near = difflib.get_close_matches(key, known, 1, 0.6) or [
    leaves[leaf]
    for leaf in difflib.get_close_matches(
      key.rsplit('.', 1)[-1], leaves, 1, 0.6
    )
  ]
  hint = f'; did you mean config.{near[0]}?' if near else ''
  return f'there is no key config.{key}{hint}'


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks every value that can be checked without data or devices.

  Raises:
    UserError: naming the key, the value received and what is allowed.
  """
  flat = flatten(config)
  known = flatten(make_config())
  for key in flat:
    if key not in known:
      raise UserError(unknown_key_message(key, known))
  for key, choices in CHOICES.items():
    if flat[key] not in choices:
      raise UserError(f'config.{key} is {flat[key]!r}, not one of {choices}')
  for key in POSITIVE:
    good = _is_number(flat[key]) and flat[key] > 0
    _check(flat, key, good, 'must be greater than 0')
  for key in NOT_NEGATIVE:
    good = _is_number(flat[key]) and flat[key] >= 0
    _check(flat, key, good, 'must not be negative')
  _check_ranges(flat)
  _check_colours(flat)
  _check_durations(flat)
  _check_rates(flat)
  _check_layers(flat)
  _check_training(flat)


def _is_number(value):
  # A recipe can set any key to None.
  return isinstance(value, (int, float))


def _check(flat, key, passed, rule):
  finite = not isinstance(flat[key], float) or math.isfinite(flat[key])
  if not (passed and finite):
    raise UserError(f'config.{key} is {flat[key]!r}; it {rule}')


def _check_ranges(flat):
  for key in (
    'ema_decay',
    'data.brightness',
    'loss.label_smoothing',
    'optimizer.momentum',
    'optimizer.b1',
    'optimizer.b2',
    'optimizer.rms_decay',
  ):
    good = _is_number(flat[key]) and 0 <= flat[key] < 1
    _check(flat, key, good, 'must be at least 0 and below 1')
  for key in ('data.val_fraction', 'schedule.factor'):
    good = _is_number(flat[key]) and 0 < flat[key] < 1
    _check(flat, key, good, 'must lie between 0 and 1')
  for key, least, most in (
    ('data.crop_area', 0.0001, 1),
    ('data.crop_ratio', 0.01, 100),
  ):
    value = flat[key]
    good = (
      len(value) == 2
      and all(map(_is_number, value))
      and least <= value[0] <= value[1] <= most
    )
    rule = f'takes (smallest, largest), both from {least} to {most}'
    _check(flat, key, good, rule)
  mean_rgb = flat['data.mean_rgb']
  good = len(mean_rgb) in (0, 3) and all(
    _is_number(v) and 0 <= v <= 255 for v in mean_rgb
  )
  _check(flat, 'data.mean_rgb', good, 'takes three levels of 255, or ()')
  rule = 'has no effect unless config.data.mean is channel'
  unread = mean_rgb and flat['data.mean'] != 'channel'
  _check(flat, 'data.mean_rgb', not unread, rule)
  std_rgb = flat['data.std_rgb']
  good = len(std_rgb) in (0, 3) and all(
    _is_number(v) and 0 < v < math.inf for v in std_rgb
  )
  _check(flat, 'data.std_rgb', good, 'takes three numbers above 0, or ()')
  if std_rgb and flat['data.std'] != 1:
    raise UserError(
      f'config.data.std is {flat["data.std"]} and config.data.std_rgb'
      f' {std_rgb!r}: set one of them (the other to 1.0 or ())'
    )
  _check(
    flat,
    'data.crop_size',
    flat['data.crop_size'] <= flat['data.resize_size'],
    f'must not exceed config.data.resize_size = {flat["data.resize_size"]}',
  )
  _check(
    flat,
    'data.path',
    flat['data.path'] or flat['data.source'] in ('digits', 'tfds', 'synthetic'),
    f'must name the folder of the {flat["data.source"]} set:'
    ' --config.data.path=DIR',
  )


def _check_colours(flat):
  if flat['data.colour_shift']:
    return
  for key, default in flatten(make_config()).items():
    if key.startswith('data.colour_'):
      rule = 'has no effect while config.data.colour_shift is 0'
      _check(flat, key, flat[key] == default, rule)


def _check_durations(flat):
  for name in DURATIONS:
    epochs, steps = f'{name}_epochs', f'{name}_steps'
    if flat[epochs] and flat[steps]:
      raise UserError(
        f'config.{epochs} = {flat[epochs]} and config.{steps} = {flat[steps]}'
        f' both give a duration; set one of them to 0'
      )
  for name in ('num', 'eval_every'):
    if not flat[f'{name}_epochs'] and not flat[f'{name}_steps']:
      raise UserError(f'set config.{name}_epochs or config.{name}_steps')
  drops = 'schedule.drop_epochs', 'schedule.drop_steps'
  if flat[drops[0]] and flat[drops[1]]:
    raise UserError(f'set config.{drops[0]} or config.{drops[1]}, not both')
  if flat['schedule.name'] == 'step' and not (flat[drops[0]] or flat[drops[1]]):
    raise UserError(
      f'config.schedule.name is step: set config.{drops[0]} or'
      f' config.{drops[1]}'
    )


def _check_rates(flat):
  rates, recorded = flat['schedule.rates'], flat['schedule.name'] == 'recorded'
  if recorded != bool(rates):
    raise UserError(
      f'config.schedule.name is {flat["schedule.name"]} and'
      f' config.schedule.rates {rates!r}: only recorded has rates, and it needs'
      ' them'
    )
  last = 0
  for entry in rates:
    if not _is_rate(entry, last):
      raise UserError(
        f'config.schedule.rates has {entry!r}; it takes (epoch, pattern, factor'
        ' of the rate), in the order of the epochs'
      )
    last = entry[0]


def _is_rate(entry, last):
  if not (isinstance(entry, (tuple, list)) and len(entry) == 3):
    return False
  epoch, pattern, factor = entry
  numbers = all(map(_is_number, (epoch, factor)))
  return (
    numbers
    and isinstance(pattern, str)
    and last <= epoch < math.inf
    and 0 <= factor < math.inf
  )


def _check_layers(flat):
  prefix = 'model.'
  network = {
    key.removeprefix(prefix): value
    for key, value in flat.items()
    if key.startswith(prefix)
  }
  if problem := fields.problem(network):
    raise UserError(f'config.model.{problem}')


def _check_training(flat):
  folds, fold = flat['data.folds'], flat['data.fold']
  _check(flat, 'data.folds', folds != 1, 'must be 0 or at least 2')
  _check(
    flat,
    'data.fold',
    fold < max(1, folds),
    f'must be less than config.data.folds = {folds}',
  )
  if flat['optimizer.decoupled_decay'] and (
    flat['optimizer.update_rule'] == 'paper'
  ):
    raise UserError(
      'config.optimizer.decoupled_decay is True, but the update rule of the'
      ' paper has the decay in the velocity; give'
      ' --config.optimizer.update_rule=optax'
    )
  if flat['optimizer.name'] == 'adam':
    for key, plain in (('nesterov', False), ('update_rule', 'optax')):
      key = f'optimizer.{key}'
      _check(flat, key, flat[key] == plain, 'has no effect on adam')
  for key in ('init.skip', 'init.freeze'):
    good = all(isinstance(p, str) and p for p in flat[key])
    _check(flat, key, good, "takes patterns: ('conv*', 'dense1/kernel')")
  if flat['init.skip'] and not flat['init.workdir']:
    raise UserError(
      f'config.init.skip is {flat["init.skip"]!r}, but config.init.workdir'
      ' names no run to start from'
    )
  rule = (
    'needs config.init.workdir, the run whose mean image it takes, and'
    f' --config.data.mean=image (now {flat["data.mean"]!r})'
  )
  fits = flat['init.workdir'] and flat['data.mean'] == 'image'
  _check(flat, 'init.mean_image', fits or not flat['init.mean_image'], rule)
  if not flat['init.freeze'] and (
    flat['init.unfreeze_epochs'] or flat['init.unfreeze_steps']
  ):
    raise UserError(
      'config.init.unfreeze_epochs or unfreeze_steps is set, but'
      ' config.init.freeze names nothing'
    )

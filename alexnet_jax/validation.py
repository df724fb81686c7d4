"""Reads recipes with their overrides, and checks the rules between keys."""

from collections.abc import Sequence
import difflib
import math
import pathlib

from absl import flags
import ml_collections
from ml_collections import config_flags

from alexnet_jax.config import DURATIONS
from alexnet_jax.config import flatten
from alexnet_jax.config import is_number
from alexnet_jax.config import KEYS
from alexnet_jax.errors import UserError
from alexnet_jax.models import spec


def load_config(arguments: Sequence[str]) -> ml_collections.ConfigDict:
  """Reads a recipe and its overrides.

  Args:
    arguments: `--config=FILE` and any `--config.key=value`.

  Returns:
    The recipe's config with the overrides, validated.

  Raises:
    UserError: if the recipe is missing, a key unknown or a value refused.
  """
  values = flags.FlagValues()
  command_line = ['alexnet_jax', *arguments]
  config_flags.DEFINE_config_file(
    'config', lock_config=True, flag_values=values, sys_argv=command_line
  )
  path = next(
    a.split('=', 1)[1] for a in arguments if a.startswith('--config=')
  )
  if not pathlib.Path(path.split(':')[0]).is_file():
    raise UserError(f'no recipe at {path!r}; give --config FILE.py')
  try:
    rest = values(command_line)[1:]
    config = values['config'].value
  except (AttributeError, KeyError) as error:
    raise UserError(_unknown_override(arguments, error)) from error
  except (flags.Error, TypeError, ValueError) as error:
    # If a recipe refuses the text behind its colon, the flag's message ends
    # with the recipe's own.
    last = (str(error).strip().splitlines() or [repr(error)])[-1]
    message = last.strip('"').split('Error: ', 1)[-1]
    if 'positional argument' in message:
      message = f'the recipe {path} takes nothing after a colon'
    if 'Unknown command line flag' in message:
      message += '; keys of the config are given as --config.KEY=VALUE'
    raise UserError(f'config: {message}') from error
  if rest:
    raise UserError(f'arguments not understood: {" ".join(rest)}')
  validate(config)
  # The run's folder keeps them, whatever the current folder is later.
  for section, key in ((config.data, 'path'), (config.init, 'workdir')):
    if section[key]:
      path = pathlib.Path(section[key]).expanduser().absolute()
      section[key] = str(path)
  return config


def _unknown_override(arguments, error) -> str:
  """Names the first override without a key, and the nearest key."""
  for argument in arguments:
    key = argument.split('=')[0].removeprefix('--config.')
    if argument.startswith('--config.') and key not in KEYS:
      return unknown_key_message(key)
  return f'config: {error}'


def unknown_key_message(key: str) -> str:
  """Returns the message for an unknown `config.key`, with the nearest key."""
  leaves = {name.rsplit('.', 1)[-1]: name for name in KEYS}
  leaf = key.rsplit('.', 1)[-1]
  near = difflib.get_close_matches(key, KEYS, 1, 0.6) or [
    leaves[name] for name in difflib.get_close_matches(leaf, leaves, 1, 0.6)
  ]
  hint = f'; did you mean config.{near[0]}?' if near else ''
  return f'there is no key config.{key}{hint}'


def validate(config: ml_collections.ConfigDict) -> None:
  """Checks every value that can be checked without data or devices.

  Raises:
    UserError: naming the key, the value received and what is allowed.
  """
  flat = flatten(config)
  for name in flat:
    if name not in KEYS:
      raise UserError(unknown_key_message(name))
  for name, key in KEYS.items():
    if isinstance(key.allowed, tuple) and flat[name] not in key.allowed:
      raise UserError(
        f'config.{name} is {flat[name]!r}, not one of {key.allowed}'
      )
    if key.allowed and not isinstance(key.allowed, tuple):
      _check(flat, name, key.allowed.holds(flat[name]), key.allowed.text)
  _check_data(flat)
  _check_durations(flat)
  _check_lr_multipliers(flat)
  if problem := spec.problem(config.model.to_dict()):
    raise UserError(f'config.model.{problem}')
  _check_optimizer(flat)
  _check_init(flat)


def _check(flat, key, passed, rule):
  if not passed:
    raise UserError(f'config.{key} is {flat[key]!r}; it {rule}')


def _check_data(flat):
  unread = flat['data.mean_rgb'] and flat['data.mean'] != 'channel'
  rule = 'has no effect unless config.data.mean is channel'
  _check(flat, 'data.mean_rgb', not unread, rule)
  if flat['data.std_rgb'] and flat['data.std'] != 1:
    raise UserError(
      f'config.data.std is {flat["data.std"]} and config.data.std_rgb'
      f' {flat["data.std_rgb"]!r}: set one of them (the other to 1.0 or ())'
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
  folds = flat['data.folds']
  _check(flat, 'data.folds', folds != 1, 'must be 0 or at least 2')
  _check(
    flat,
    'data.fold',
    flat['data.fold'] < max(1, folds),
    f'must be less than config.data.folds = {folds}',
  )
  if not flat['data.pca_lighting']:
    for name, key in KEYS.items():
      if name.startswith('data.pca_lighting_'):
        rule = 'has no effect while config.data.pca_lighting is 0'
        _check(flat, name, flat[name] == key.default, rule)


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


def _check_lr_multipliers(flat):
  name, entries = flat['schedule.name'], flat['schedule.lr_multipliers']
  if (name == 'recorded') != bool(entries):
    raise UserError(
      f'config.schedule.name is {name} and config.schedule.lr_multipliers'
      f' {entries!r}: recorded needs them, and no other schedule reads them'
    )
  last = 0
  for entry in entries:
    if not _is_lr_multiplier(entry, last):
      raise UserError(
        f'config.schedule.lr_multipliers has {entry!r}; it takes (epoch,'
        ' pattern, factor of the learning rate), in the order of the epochs'
      )
    last = entry[0]


def _is_lr_multiplier(entry, last_epoch):
  if not (isinstance(entry, (tuple, list)) and len(entry) == 3):
    return False
  epoch, pattern, factor = entry
  return (
    is_number(epoch)
    and is_number(factor)
    and isinstance(pattern, str)
    and last_epoch <= epoch < math.inf
    and factor >= 0
  )


def _check_optimizer(flat):
  if flat['optimizer.decoupled_decay'] and (
    flat['optimizer.update_rule'] == 'paper'
  ):
    raise UserError(
      'config.optimizer.decoupled_decay is True, but the update rule of the'
      ' paper has the decay in the velocity; give'
      ' --config.optimizer.update_rule=optax'
    )
  if flat['optimizer.name'] == 'adam':
    for key in ('optimizer.nesterov', 'optimizer.update_rule'):
      unchanged = flat[key] == KEYS[key].default
      _check(flat, key, unchanged, 'has no effect on adam')


def _check_init(flat):
  workdir = flat['init.workdir']
  if flat['init.skip'] and not workdir:
    raise UserError(
      f'config.init.skip is {flat["init.skip"]!r}, but config.init.workdir'
      ' names no run to start from'
    )
  fits = workdir and flat['data.mean'] == 'image'
  _check(
    flat,
    'init.mean_image',
    fits or not flat['init.mean_image'],
    'needs config.init.workdir, the run whose mean image it takes, and'
    f' --config.data.mean=image (now {flat["data.mean"]!r})',
  )
  if not flat['init.freeze'] and (
    flat['init.unfreeze_epochs'] or flat['init.unfreeze_steps']
  ):
    raise UserError(
      'config.init.unfreeze_epochs or unfreeze_steps is set, but'
      ' config.init.freeze names nothing'
    )

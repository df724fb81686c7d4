"""Reads recipes with their overrides, and checks the rules between keys."""

import ast
from collections.abc import Collection, Iterable, Mapping, Sequence
import difflib
import inspect
import os
import pathlib
import re
import runpy
import shlex
import traceback

import ml_collections

from alexnet_jax import config as config_lib, files
from alexnet_jax.config import fits, flatten, KEYS
from alexnet_jax.errors import UserError
from alexnet_jax.models import spec

_RECIPES = pathlib.Path(__file__).with_name('configs')
if not _RECIPES.is_dir():  # a checkout has them beside the package
  _RECIPES = _RECIPES.parents[1] / 'configs'
_MULTIPLIERS = 'schedule.lr_multipliers'
_BOOLS = {'true': True, '1': True, 'false': False, '0': False}
_SHORT_NAMES = {'lr': 'learning_rate', 'wd': 'weight_decay'}
_SHORT_NAMES |= {'batch_size': 'global_batch_size'}
_KINDS = {
  bool: 'true or false',
  int: 'a whole number below 2**32',
  float: 'a number, of at most 3.4e38',
  str: 'a text',
  tuple: 'a list, such as (1, 2)',
}


def load_config(arguments: Sequence[str]) -> ml_collections.ConfigDict:
  """Reads a recipe and its overrides; returns its config, validated.

  `arguments` are `--config=RECIPE` or `--config=RECIPE:ARGUMENT`, a file or the
  name of one of the package's own, and any `--config.key=value` or
  `--config.key value`. Raises UserError.
  """
  recipe, overrides, rest = '', {}, iter(arguments)
  for argument in rest:
    name, has_value, text = argument.partition('=')
    key = name.removeprefix('--config.')
    if name == '--config':
      recipe = text
    elif key == name:
      raise UserError(
        f'argument not understood: {argument}; keys of the config are given as'
        ' --config.KEY=VALUE'
      )
    elif key not in KEYS:
      raise UserError(unknown_key_message(key))
    elif has_value:
      overrides[key] = text
    elif isinstance(KEYS[key].default, bool):
      overrides[key] = 'true'
    else:
      overrides[key] = next(rest, '')
  config = _read_recipe(recipe)
  flat = flatten(config)
  _check_keys(flat)
  # A named network has more fields than it reads.
  check_effects(flat, [key for key in KEYS if not key.startswith('model.')])
  values = {key: parse_value(key, text) for key, text in overrides.items()}
  config.lock().update_from_flattened_dict(values)
  validate(config, values)
  make_paths_absolute(config)
  return config_lib.from_dict(config.to_dict()).lock()  # as out of a checkpoint


def command_of(config: ml_collections.ConfigDict) -> str:
  """Returns a command that trains with a config, from the nearest recipe."""
  flat, found = flatten(config), []
  for path in sorted(_RECIPES.glob('*.py')):
    try:
      recipe = flatten(_read_recipe(path.stem))
    except UserError:  # it takes something after a colon
      continue
    changed = {k: v for k, v in flat.items() if v != recipe[k]}
    words = [f'--config.{key}={value}' for key, value in changed.items()]
    found.append(['alexnet-jax', 'train', '--config', path.stem, *words])
  return shlex.join(min(found, key=len))


def make_paths_absolute(config: ml_collections.ConfigDict) -> None:
  """Writes paths from the root on: the current folder may be another later."""
  for section, key in ((config.data, 'path'), (config.init, 'workdir')):
    section[key] = files.absolute_path(section[key])


def _read_recipe(recipe):
  """Calls `get_config` of a recipe, `:ARGUMENT` given; returns its config."""
  path, *argument = map(files.local_path, recipe.split(':', 1))
  if (own := _RECIPES / f'{path}.py').is_file() and path == own.stem:
    path = str(own)
  if not pathlib.Path(path).is_file():
    names = ', '.join(sorted(found.stem for found in _RECIPES.glob('*.py')))
    raise UserError(
      f'no recipe at {path!r}: give another file, or one of the names {names}'
    )
  try:
    get_config = runpy.run_path(path).get('get_config')
    if get_config is None:
      raise UserError(f'the recipe {path} has no function get_config()')
    if argument and not inspect.signature(get_config).parameters:
      raise UserError(f'the recipe {path} takes nothing after a colon')
    config = get_config(*argument)
  except UserError:
    raise
  except ValueError as error:  # what the recipe refuses
    raise UserError(f'the recipe {recipe}: {error}') from error
  except (Exception, SystemExit) as error:
    frames = traceback.extract_tb(error.__traceback__)
    line = [frame.lineno for frame in frames if frame.filename == path]
    where = f'line {line[-1]}: ' if line else ''
    reason = f'{type(error).__name__}: {error}'
    raise UserError(f'the recipe {recipe} fails: {where}{reason}') from error
  if not isinstance(config, ml_collections.ConfigDict):
    raise UserError(
      f'get_config() of the recipe {path} returns {type(config).__name__}; it'
      ' must return what alexnet_jax.config.make_config() gave it'
    )
  return config


def parse_value(key: str, text: str):
  """Reads a text as a value of the type of its key; raises UserError."""
  kind = type(KEYS[key].default)
  try:
    if kind is bool:
      return _BOOLS[text.lower()]
    return _parse_list(text) if kind is tuple else kind(text)
  except (KeyError, ValueError, SyntaxError) as error:
    raise UserError(
      f'config.{key} is {text!r}; it takes {_KINDS[kind]}'
    ) from error


def _parse_list(text):
  try:
    value = ast.literal_eval(text)
  except (ValueError, SyntaxError):
    if ',' in text:
      raise
    value = text  # one pattern without quotes
  if isinstance(value, dict):
    value = sorted(value.items(), key=str)
  return tuple(value) if isinstance(value, (tuple, list)) else (value,)


def unknown_key_message(key: str) -> str:
  """Returns the message for an unknown `config.key`, with the nearest key."""
  section, _, leaf = key.rpartition('.')
  leaf = _SHORT_NAMES.get(leaf, leaf)

  def similarity(name):
    own_section, _, own_leaf = name.rpartition('.')
    ratio = difflib.SequenceMatcher(None, leaf, own_leaf).ratio()
    ratio += (leaf == own_leaf) + (len(leaf) > 2 and leaf in own_leaf)
    return ratio + 0.2 * (section == own_section != '')

  nearest = max(KEYS, key=similarity)
  is_near = similarity(nearest) > 0.75
  hint = f'; did you mean config.{nearest}?' if is_near else ''
  return f'there is no key config.{key}{hint}'


def validate(
  config: ml_collections.ConfigDict, given: Collection[str] = ()
) -> None:
  """Checks every value that can be checked without data or devices.

  The keys `given` by the user must have an effect; others may have lost it by
  these. Raises UserError with the key, the value and what is allowed.
  """
  flat = flatten(config)
  _check_keys(flat)
  check_values(config)
  check_effects(flat, given)
  _check_data(flat)
  _check_durations(flat)
  if flat['schedule.name'] == 'recorded' and not flat[_MULTIPLIERS]:
    raise UserError(
      f'config.{_MULTIPLIERS} is (), and config.schedule.name is recorded: give'
      ' some, or another schedule'
    )


def check_values(config: ml_collections.ConfigDict) -> None:
  """Checks types and ranges of the values; raises UserError as `validate`."""
  flat = flatten(config)
  for name in KEYS:
    _check_value(name, flat.get(name))
  if problem := spec.problem(config.model.to_dict()):
    raise UserError(f'config.model.{problem}')


def read_config(workdir: str | os.PathLike) -> ml_collections.ConfigDict:
  """Reads the config in a run's folder; raises UserError if there is none."""
  path = pathlib.Path(workdir) / config_lib.CONFIG_FILE
  try:
    check_values(config := config_lib.from_dict(files.read_json(path, dict)))
  except (UserError, FileNotFoundError) as error:
    raise UserError(f'{workdir} is not the folder of a run: {error}') from error
  return config


def _check_keys(flat):
  """Refuses keys that there are not, and those that are missing."""
  for name in flat:
    if name not in KEYS:
      raise UserError(unknown_key_message(name))
  if missing := KEYS.keys() - flat.keys():
    raise UserError(f'the recipe has no config.{min(missing)}')


def _check_value(name, value):
  """Checks the type of a value, and the rule of its key."""
  kind, rule = type(KEYS[name].default), KEYS[name].allowed
  if name.startswith('model.') and rule is None:
    return  # by `spec.problem`
  has_kind = isinstance(value, (tuple, list) if kind is tuple else kind)
  if kind in (int, float):
    whole = isinstance(value, int) and value < 2**32
    has_kind = spec.is_number(value) and (kind is float or whole)
  if not has_kind:
    raise UserError(f'config.{name} is {value!r}; it takes {_KINDS[kind]}')
  if isinstance(rule, tuple):
    if not fits(value, rule):
      hint = ', any of optax, such as optax.adam' if 'optax.*' in rule else ''
      raise UserError(f'config.{name} is {value!r}, not one of {rule}{hint}')
  elif rule and not rule.holds(value):
    raise UserError(f'config.{name} is {value!r}; it {rule.text}')


def check_effects(flat: Mapping, keys: Iterable[str]) -> None:
  """Refuses values of some keys that nothing would read, by `Key.when`.

  `flat` is {key: value} of all keys. Raises UserError with the key, and the
  values of those that it depends on.
  """
  for name in keys:
    value, key = flat[name], KEYS[name]
    if value in (key.default, ()) or not key.when or _holds(key.when, flat):
      continue
    names = dict.fromkeys(re.findall(r'\w+\.\w+', key.when))
    now = ' and '.join(f'config.{n} is {flat[n]!r}' for n in names)
    wanted = key.when.replace('|', ' or ')
    raise UserError(
      f'config.{name} is {value!r}, which has no effect while {now}: it is read'
      f' only with {wanted}; leave it out, or change that'
    )


def _holds(when, flat):
  """Returns True if a condition such as `a.b=x|y and c.d` is met."""

  def one(condition):
    name, has_values, values = condition.partition('=')
    value = flat[name]
    return fits(value, values.split('|')) if has_values else bool(value)

  return any(
    all(map(one, choice.split(' and '))) for choice in when.split(' or ')
  )


def _check_data(flat):
  if flat['data.std_rgb'] and flat['data.std'] != 1:
    raise UserError(
      f'config.data.std is {flat["data.std"]} and config.data.std_rgb'
      f' {flat["data.std_rgb"]!r}: set one of them (the other to 1.0 or ())'
    )

  def refuse(key, rule):
    raise UserError(f'config.{key} is {flat[key]!r}; it {rule}')

  source, folds = flat['data.source'], flat['data.folds']
  for key in ('data.mean_rgb', 'data.std_rgb'):
    if len(flat[key]) not in (0, count := flat['data.channels']):
      refuse(key, f'must have config.data.channels = {count} numbers, or none')
  if flat['data.pca_lighting'] and flat['data.channels'] == 1:
    refuse('data.pca_lighting', 'shifts colors, and config.data.channels is 1')
  if flat['data.crop_size'] > (largest := flat['data.resize_size']):
    rule = f'must not exceed config.data.resize_size = {largest}'
    refuse('data.crop_size', rule)
  if not flat['data.path'] and source not in ('digits', 'tfds', 'synthetic'):
    rule = f'must name the folder of the {source} set: --config.data.path=DIR'
    refuse('data.path', rule)
  if flat['data.fold'] >= max(1, folds):
    refuse('data.fold', f'must be less than config.data.folds = {folds}')


def _check_durations(flat):
  needed = {'num': '', 'eval_every': ''}
  if flat['schedule.name'] == 'step':
    needed['schedule.drop'] = ', as config.schedule.name is step'
  for name in (*config_lib.DURATIONS, 'schedule.drop'):
    keys = f'{name}_epochs', f'{name}_steps'
    values = [flat[key] for key in keys]
    now = ' and '.join(f'config.{key} is {flat[key]!r}' for key in keys)
    if all(values):
      unset = KEYS[keys[1]].default
      raise UserError(f'{now}; leave one of the two at {unset}')
    if name in needed and not any(values):
      raise UserError(f'{now}; set one of them{needed[name]}')

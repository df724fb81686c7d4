"""Reads a recipe with its overrides."""

from collections.abc import Sequence
import pathlib

from absl import flags
import ml_collections
from ml_collections import config_flags

from alexnet_jax import validation
from alexnet_jax.config import flatten
from alexnet_jax.config import make_config
from alexnet_jax.errors import UserError


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
    raise UserError(_unknown_key(arguments, error)) from error
  except (flags.Error, TypeError, ValueError) as error:
    # Of a recipe that refuses what follows its colon, the flag's message ends
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
  validation.validate(config)
  # The run's folder remembers them, wherever one stands.
  for section, key in ((config.data, 'path'), (config.init, 'workdir')):
    if section[key]:
      path = pathlib.Path(section[key]).expanduser().absolute()
      section[key] = str(path)
  return config


def name(recipe: str) -> str:
  """What a recipe is called: `compare_flat_alexnet` of its FILE:ARGUMENT."""
  path, _, argument = recipe.partition(':')
  argument = argument.strip('/').replace('/', '_')
  return '_'.join([pathlib.Path(path).stem, *filter(None, [argument])])


def _unknown_key(arguments, error) -> str:
  """Names the first override that no key answers to, and the nearest key."""
  known = flatten(make_config())
  for argument in arguments:
    key = argument.split('=')[0].removeprefix('--config.')
    if argument.startswith('--config.') and key not in known:
      return validation.unknown_key_message(key, known)
  return f'config: {error}'

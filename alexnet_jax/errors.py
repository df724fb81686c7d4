"""Errors that the user of a command can mend, and the ways a run ends early."""

from collections.abc import Iterable
import pathlib

EXIT_DONE = 0
EXIT_FAILURE = 1
EXIT_USER = 2
EXIT_INTERRUPTED = 75


class UserError(ValueError):
  """Something in the config, the data or the arguments that the user can mend.

  The message says what was wrong, the value received and what to do.
  """


class UnreadableImageError(UserError):
  """An image that cannot be decoded; the message names it."""


class NonFiniteLossError(RuntimeError):
  """The loss became infinite or not a number."""


class Interrupted(Exception):
  """SIGTERM or Ctrl-C asked the run to end; the same command goes on."""


class ProcessLost(Exception):
  """Another process of the run is gone; the same command goes on."""


def listed(values: Iterable) -> str:
  """Returns the first five values as text, and how many others there are."""
  texts = [*map(str, values)]
  more = [f'{len(texts) - 5:,} others'] * (len(texts) > 5)
  return ', '.join([*texts[:5], *more])


def how_to_install(extra: str) -> str:
  """Returns the advice to install one of the extras of pyproject.toml."""
  if (pathlib.Path(__file__).parents[1] / 'pyproject.toml').is_file():
    return f"pip install -e '.[{extra}]' where pyproject.toml is"
  return f"pip install 'alexnet_jax[{extra}]'"

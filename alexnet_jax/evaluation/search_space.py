"""Which values a sweep tries: `KEY=SPEC` texts, and what a trial takes of them.

A spec is one of

- `1e-4..1e-1`: numbers, whole ones if the key takes those;
- `16..256:log`: the same, drawn by their logarithms;
- `sgd|adam|rmsprop`, `(256,)|(256,256)`, `True|False`: one of these;
- `1..3*64..1024`: one to three entries of that range each, for keys that take a
  tuple (`:log` for the entries).
"""

import ast
from collections.abc import Sequence
import dataclasses
import math

from alexnet_jax import allowed_values
from alexnet_jax import config as config_lib
from alexnet_jax import validation
from alexnet_jax.errors import UserError

_FORMS = (
  'LOW..HIGH, LOW..HIGH:log, A|B|C, or FEWEST..MOST*LOW..HIGH for the entries'
  ' of a tuple'
)
_MOST_ENTRIES = 100


@dataclasses.dataclass(frozen=True)
class Range:
  """Numbers from `low` to `high`, both included."""

  low: float
  high: float
  log: bool
  whole: bool

  def __str__(self) -> str:
    return f'{self.low!r}..{self.high!r}{":log" if self.log else ""}'

  def suggest(self, trial, name: str) -> float:
    suggest = trial.suggest_int if self.whole else trial.suggest_float
    return suggest(name, self.low, self.high, log=self.log)

  def value(self, params: dict, name: str) -> float:
    return params[name]


@dataclasses.dataclass(frozen=True)
class Choices:
  """One of some values."""

  values: tuple

  def __str__(self) -> str:
    return '|'.join(self._names())

  def _names(self):
    """What the study calls them; its file holds no tuples."""
    return [
      value if isinstance(value, str) else repr(value) for value in self.values
    ]

  def suggest(self, trial, name: str) -> None:
    trial.suggest_categorical(name, self._names())

  def value(self, params: dict, name: str):
    return self.values[self._names().index(params[name])]


@dataclasses.dataclass(frozen=True)
class Entries:
  """Tuples of `fewest` to `most` entries."""

  fewest: int
  most: int
  entry: Range

  def __str__(self) -> str:
    return f'{self.fewest}..{self.most}*{self.entry}'

  def suggest(self, trial, name: str) -> None:
    length = trial.suggest_int(f'{name} length', self.fewest, self.most)
    for number in range(1, length + 1):
      self.entry.suggest(trial, f'{name} {number}')

  def value(self, params: dict, name: str) -> tuple:
    length = params[f'{name} length']
    return tuple(params[f'{name} {n}'] for n in range(1, length + 1))


def parse(texts: Sequence[str], config) -> dict:
  """The search space, ordered by key.

  Args:
    texts: `KEY=SPEC`; keys as in the config, with or without `config.`.
    config: whose values tell the types of the keys.

  Returns:
    {key: Range, Choices or Entries}.

  Raises:
    UserError: if a key is unknown or given twice, or a spec cannot be
      understood or does not fit its key.
  """
  flat = config_lib.flatten(config)
  space = {}
  for text in texts:
    key, equals, spec = text.partition('=')
    key = key.strip().removeprefix('config.')
    if not equals:
      raise UserError(f'--param {text}: it takes KEY=SPEC; SPEC is {_FORMS}')
    if key not in flat:
      raise UserError(validation.unknown_key_message(key, flat))
    if key in space:
      raise UserError(f'--param {key} is given twice')
    space[key] = _parse_spec(key, spec.strip(), flat[key])
  if not space:
    raise UserError('a sweep needs --param KEY=SPEC at least once')
  return dict(sorted(space.items()))


def suggest(space: dict, trial) -> None:
  """Draws a value of everything, as parameters of an optuna trial."""
  for key, spec in space.items():
    spec.suggest(trial, key)


def values(space: dict, params: dict) -> dict:
  """{key: value} of the parameters of a trial."""
  return {key: spec.value(params, key) for key, spec in space.items()}


def _parse_spec(key, text, like):
  """The spec of a key whose value in the config is `like`."""
  if '|' in text:
    return _parse_choices(key, text, like)
  if '..' not in text:
    raise _unfit(key, text, f'is none of {_FORMS}')
  count, star, entry = text.partition('*')
  if star:
    if not isinstance(like, tuple):
      raise _unfit(key, text, f'is for tuples, but the key is {like!r}')
    length = _parse_range(key, count)
    if not length.whole or length.log or length.low < 0:
      raise _unfit(key, text, 'needs whole numbers from 0 as FEWEST..MOST')
    if length.high > _MOST_ENTRIES:
      raise _unfit(key, text, f'has more than {_MOST_ENTRIES} entries')
    return Entries(length.low, length.high, _parse_range(key, entry))
  if isinstance(like, bool) or not isinstance(like, (int, float)):
    raise _unfit(
      key,
      text,
      f'is a range of numbers, but the key is {like!r}; give A|B|C'
      + (' or FEWEST..MOST*LOW..HIGH' if isinstance(like, tuple) else ''),
    )
  numbers = _parse_range(key, text)
  if isinstance(like, float):
    return dataclasses.replace(
      numbers, low=float(numbers.low), high=float(numbers.high), whole=False
    )
  if not numbers.whole:
    raise _unfit(key, text, f'has fractions, but the key is {like!r}, whole')
  return numbers


def _parse_range(key, text):
  """`LOW..HIGH` or `LOW..HIGH:log`; whole if both are."""
  ends, colon, mode = text.strip().partition(':')
  low, dots, high = ends.partition('..')
  if not dots or (colon and mode != 'log'):
    raise _unfit(key, text, 'is neither LOW..HIGH nor LOW..HIGH:log')
  try:
    low, high = _number(low), _number(high)
  except ValueError as error:
    raise _unfit(key, text, f'has an end that is no number: {error}') from error
  if low > high:
    raise _unfit(key, text, f'ends below its start: {low} > {high}')
  if colon and low <= 0:
    raise _unfit(key, text, f'starts at {low}, which has no logarithm')
  whole = isinstance(low, int) and isinstance(high, int)
  return Range(low, high, bool(colon), whole)


def _number(text):
  try:
    return int(text)
  except ValueError:
    value = float(text)
  if not math.isfinite(value):
    raise ValueError(text)
  return value


def _parse_choices(key, text, like):
  chosen = []
  for piece in text.split('|'):
    value = _typed(_literal(piece.strip()), piece.strip(), like)
    if value is None:
      kind = type(like).__name__
      raise _unfit(
        key, text, f'has {piece.strip()!r}, but the key is {like!r}, a {kind}'
      )
    if value in chosen:
      raise _unfit(key, text, f'has {piece.strip()!r} twice')
    if value not in allowed_values.CHOICES.get(key, (value,)):
      raise UserError(
        f'--param {key}: {value!r} is not one of {allowed_values.CHOICES[key]}'
      )
    chosen.append(value)
  return Choices(tuple(chosen))


def _literal(text):
  """A Python literal where it is one, or else the text itself."""
  try:
    return ast.literal_eval(text)
  except (ValueError, SyntaxError):
    return text


def _typed(value, text, like):
  """A value as the type of `like`; None if it does not fit."""
  if isinstance(like, str):
    return value if isinstance(value, str) else text
  if isinstance(like, bool) or isinstance(value, bool):
    return value if type(value) is type(like) else None
  if isinstance(like, float) and isinstance(value, int):
    return float(value)
  return value if isinstance(value, type(like)) else None


def _unfit(key, text, problem):
  return UserError(f'--param {key}={text} {problem}')

"""What stands in a config where weights of elsewhere do not say it."""

from collections.abc import Sequence

# Of data: a config of photographs needs a place.
NO_DATA = 'no-data-was-named'


def class_names(count: int) -> list[str]:
  """Names of classes that nobody named."""
  return [f'class_{number:04}' for number in range(count)]


def agree(names: Sequence[str], others: Sequence[str]) -> bool:
  """Whether two lists of class names can be of the same classes.

  They are the same, or one of them is of placeholders and as long.
  """
  names, others = list(names), list(others)
  unnamed = class_names(len(names))
  return names == others or (
    len(names) == len(others) and unnamed in (names, others)
  )


def shown(names: Sequence[str]) -> str:
  """For messages: how many there are, and the first five."""
  first = ', '.join(map(repr, names[:5]))
  return f'{len(names)} classes ({first}{", ..." if len(names) > 5 else ""})'

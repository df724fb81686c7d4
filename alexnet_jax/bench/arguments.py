"""What the arguments of the subcommands have in common."""

import argparse


def positive(text: str) -> int:
  """A number above 0, as argparse's `type`."""
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'{text} is not positive')
  return number


def positives(text: str) -> tuple[int, ...]:
  """Numbers above 0 with commas in between, as argparse's `type`."""
  try:
    return tuple(positive(part) for part in text.split(','))
  except ValueError as error:
    raise argparse.ArgumentTypeError(
      f'{text!r} is not a number, or several as in 1,2'
    ) from error

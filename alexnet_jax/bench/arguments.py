"""What the arguments of the subcommands have in common."""

import argparse


def positive(text: str) -> int:
  """A number above 0, as argparse's `type`."""
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'{text} is not positive')
  return number

"""Arguments, header, medians and tables that the subcommands have in common."""

import argparse
from collections.abc import Iterable
from collections.abc import Sequence
import shlex
import statistics
import sys

from rich.console import Console
from rich.table import Table

from alexnet_jax import cli
from alexnet_jax.bench import machine
from alexnet_jax.errors import UserError


def add_command(
  commands, name: str, text: str, description: str
) -> argparse.ArgumentParser:
  """Adds a subcommand with --json to argparse's `commands`; returns it."""
  parser = commands.add_parser(
    name,
    help=text,
    description=description,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  cli.add_json(parser)
  return parser


def positive(text: str) -> int:
  """Reads a number above 0, as argparse's `type`."""
  number = int(text)
  if number < 1:
    raise argparse.ArgumentTypeError(f'{text} is not positive')
  return number


def names(text: str) -> tuple[str, ...]:
  """Reads names with commas in between, as argparse's `type`."""
  return tuple(name for name in text.split(',') if name)


def check_names(flag: str, given: Iterable[str], known: Sequence[str]) -> None:
  """Raises UserError if one of the names is unknown."""
  if wrong := [name for name in given if name not in known]:
    raise UserError(f'{flag}: {wrong[0]!r} is not one of {", ".join(known)}')


def spread(values: Sequence[float]) -> dict[str, float]:
  """Returns {median, min, max} of the rounds."""
  median = statistics.median(values)
  return {'median': median, 'min': min(values), 'max': max(values)}


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
  """Returns the median over the rounds of value / other in the same round."""
  return statistics.median(a / b for a, b in zip(values, others, strict=True))


def header() -> dict:
  """Returns {command, machine, versions}, which every result begins with."""
  return {
    'command': shlex.join(['python', '-m', 'alexnet_jax.bench', *sys.argv[1:]]),
    'machine': machine.describe(),
    'versions': machine.versions(),
  }


def header_lines(result: dict) -> str:
  """Returns the header as text for people."""
  host = result['machine']
  found = ', '.join(f'{k} {v}' for k, v in result['versions'].items())
  return f'{result["command"]}\n{host["cpu"]}, {host["cores"]} cores; {found}'


def show(*parts: str | Table) -> None:
  """Prints lines and tables for people, on standard error."""
  console = Console(
    file=sys.stderr, width=120, highlight=False, markup=False, emoji=False
  )
  for part in parts:
    console.print(part)


def table(
  title: str, columns: Sequence[str], rows: Iterable[Sequence[str]]
) -> Table:
  """Returns a table whose first column is text and whose others are numbers."""
  made = Table(title=title, title_justify='left')
  for index, column in enumerate(columns):
    made.add_column(column, justify='right' if index else 'left')
  for row in rows:
    made.add_row(*row)
  return made

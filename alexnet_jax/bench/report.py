"""Arguments, machine, medians and tables of all subcommands."""

import argparse
from collections.abc import Iterable
from collections.abc import Sequence
import contextlib
import importlib.metadata
import os
import pathlib
import platform
import re
import shlex
import statistics
import sys

from rich.console import Console
from rich.table import Table

from alexnet_jax import cli
from alexnet_jax.errors import UserError

_PACKAGES = """
  alexnet_jax flax grain jax jaxlib jax-cuda12-plugin keras numba numpy
  opencv-python-headless optax simplejpeg spdl tensorflow torch"""


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


def check_names(flag: str, given: Iterable[str], known: Iterable[str]) -> None:
  """Raises UserError if one of the names is unknown."""
  if wrong := [name for name in given if name not in known]:
    raise UserError(f'{flag}: {wrong[0]!r} is not one of {", ".join(known)}')


def first_cores(threads: int) -> list[int]:
  """Returns the first cores that this process may use, one for each thread.

  Args:
    threads: how many; 0: all.

  Raises:
    UserError: if there are fewer, or the system cannot bind processes to cores.
  """
  if not hasattr(os, 'sched_setaffinity'):
    raise UserError('this system cannot bind processes to cores; Linux can')
  cores = sorted(os.sched_getaffinity(0))
  if threads > len(cores):
    raise UserError(
      f'--threads is {threads}, but this process may use {len(cores)} cores;'
      f' give {len(cores)} or fewer'
    )
  return cores[: threads or len(cores)]


def resident_bytes(field: str) -> int | None:
  """Returns this process's resident memory; None where the system hides it.

  Args:
    field: `VmHWM`, the largest so far, or `VmRSS`, that of now; see proc(5).
  """
  status = pathlib.Path('/proc/self/status')
  if not status.exists():
    return None
  return 1024 * int(re.search(rf'\n{field}:\s+(\d+)', status.read_text())[1])


def spread(values: Sequence[float]) -> dict[str, float]:
  """Returns {median, min, max} of the rounds."""
  median = statistics.median(values)
  return {'median': median, 'min': min(values), 'max': max(values)}


def median_ratio(values: Sequence[float], others: Sequence[float]) -> float:
  """Returns the median over the rounds of value / other in the same round."""
  return statistics.median(a / b for a, b in zip(values, others, strict=True))


def header() -> dict:
  """Returns what every result begins with.

  Returns:
    {command, machine: {cpu, cores: that this process may use, system},
    versions: {python and what is installed of what the benchmarks run}}.
  """
  from alexnet_jax.data.loader import num_cores

  cpu = platform.processor() or platform.machine()
  info = pathlib.Path('/proc/cpuinfo')
  if info.exists():
    named = re.search(r'model name\s*:\s*(.*)', info.read_text())
    cpu = named[1] if named else cpu
  versions = {'python': platform.python_version()}
  for package in _PACKAGES.split():
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      versions[package] = importlib.metadata.version(package)
  system = platform.platform()
  return {
    'command': shlex.join(['python', '-m', 'alexnet_jax.bench', *sys.argv[1:]]),
    'machine': {'cpu': cpu, 'cores': num_cores(), 'system': system},
    'versions': versions,
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

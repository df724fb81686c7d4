"""Tables and pictures as one self-contained HTML page, and in the terminal."""

import base64
from collections.abc import Sequence
import dataclasses
import importlib.resources
import os
import re

from alexnet_jax import cli, files

# In a name of a class they would steer the terminal; a line may break.
_CONTROL = re.compile(r'[\x00-\x09\x0b-\x1f\x7f-\x9f]')


@dataclasses.dataclass(frozen=True)
class Picture:
  """A picture on a page: a PNG file, what it shows and how to read it."""

  png: bytes
  alt: str
  caption: str = ''


@dataclasses.dataclass(frozen=True)
class Table:
  """A table on a page or in the terminal; the first cell names a row."""

  title: str
  columns: Sequence[str]
  rows: Sequence[Sequence[str | int | float]]
  sortable: bool = False  # by a click on a column's name
  folded: bool = False  # until a click on its title


@dataclasses.dataclass(frozen=True)
class Section:
  """A part of the page: heading, paragraph, large numbers, pictures, tables."""

  title: str
  text: str = ''
  numbers: Sequence[tuple[str, str | int | float]] = ()
  pictures: Sequence[Picture] = ()
  tables: Sequence[Table] = ()


def write(
  path: str | os.PathLike, title: str, sections: Sequence[Section]
) -> None:
  """Writes a page as HTML."""
  import jinja2

  environment = jinja2.Environment(
    autoescape=True,
    undefined=jinja2.StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
  )
  environment.filters['base64'] = lambda png: base64.b64encode(png).decode()
  environment.filters['shown'] = shown
  environment.tests['numeric'] = lambda cell: not isinstance(cell, str)
  template = importlib.resources.files(__package__).joinpath('page.html.jinja')
  page = environment.from_string(template.read_text('utf-8'))
  html = page.render(title=title, sections=sections)
  with files.replaced_file(path) as temporary:
    # Names of files in another encoding have characters that UTF-8 has not.
    temporary.write_bytes(html.encode(errors='backslashreplace'))


def shown(cell: str | int | float) -> str:
  """Formats a cell: 1,234 and 0.1235 and 12.3."""
  if isinstance(cell, float):
    return f'{cell:,.4f}' if abs(cell) < 10 else f'{cell:,.1f}'
  return f'{cell:,}' if isinstance(cell, int) else cell


def show_table(table: Table) -> None:
  """Prints a table on standard error, its numbers as on a page."""
  columns = [
    (name, 'left' if all(isinstance(cell, str) for cell in cells) else 'right')
    for name, *cells in zip(table.columns, *table.rows, strict=True)
  ]
  rows = ([_CONTROL.sub('\ufffd', shown(c)) for c in row] for row in table.rows)
  cli.Console().table(table.title, rows, columns)

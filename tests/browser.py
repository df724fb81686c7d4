"""Opens pages in a browser without a window, and reads what it shows."""

import dataclasses
import html.parser
import pathlib
import re
import shutil
import subprocess

import pytest

NAMES = ('chromium', 'chromium-browser', 'google-chrome')


class Dom(html.parser.HTMLParser):
  """What a dumped page holds.

  Attributes:
    title: of the page, after its script ran.
    texts: of the elements that are no table, without blank ones.
    tables: {caption: Table}.
    tags: (name, attributes) of every element.
  """

  def __init__(self, text: str):
    super().__init__()
    self.title, self.texts, self.tables, self.tags = '', [], {}, []
    self._open, self._table = [], None
    self.feed(text)

  def handle_starttag(self, tag, attrs):
    attrs = dict(attrs)
    self.tags.append((tag, attrs))
    if tag in ('meta', 'link', 'img'):
      return
    self._open.append(tag)
    if tag == 'table':
      self._table = Table()
    elif tag == 'tr' and self._table:
      self._table.rows.append([])
    elif tag in ('th', 'td'):
      self._table.rows[-1].append(Cell('', attrs.get('data-value')))

  def handle_endtag(self, tag):
    assert self._open.pop() == tag
    if tag == 'table':
      self.tables[self._table.caption] = self._table
      self._table = None

  def handle_data(self, data):
    place = self._open[-1] if self._open else ''
    if place == 'title':
      self.title += data
    elif 'th' in self._open or 'td' in self._open:
      self._table.rows[-1][-1].text += data
    elif place == 'caption':
      self._table.caption += data
    elif place not in ('script', 'style') and data.strip():
      self.texts.append(data.strip())


@dataclasses.dataclass
class Cell:
  text: str
  value: str | None


@dataclasses.dataclass
class Table:
  """Rows of cells, the first with the names of the columns."""

  caption: str = ''
  rows: list = dataclasses.field(default_factory=list)


def open_page(path: pathlib.Path) -> Dom:
  """The page as the browser has it once its scripts ran.

  Fails if a script fails, or the page loads or tries to load anything.
  """
  program = next(filter(None, map(shutil.which, NAMES)), None)
  if program is None:
    pytest.skip(f'needs one of {NAMES}: apt-get install chromium')
  done = subprocess.run(
    [
      *(program, '--headless=new', '--no-sandbox', '--disable-gpu'),
      *('--virtual-time-budget=2000', '--enable-logging=stderr'),
      *(f'--user-data-dir={path.parent / "browser"}', '--dump-dom'),
      path.as_uri(),
    ],
    capture_output=True,
    timeout=120,
    check=True,
  )
  errors = done.stderr.decode(errors='replace')
  spoken = [line for line in errors.splitlines() if ':CONSOLE' in line]
  assert not spoken
  assert 'Uncaught' not in errors
  dom = Dom(done.stdout.decode())
  for tag, attrs in dom.tags:
    for name in ('src', 'href', 'srcset', 'action', 'data', 'poster'):
      address = attrs.get(name) or 'data:'
      assert re.match(r'data:|#', address), (tag, address)
  return dom

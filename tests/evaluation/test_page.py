import math
import re

import pytest

from alexnet_jax.evaluation import page
from tests import browser

PNG = bytes.fromhex(
  '89504e470d0a1a0a0000000d4948445200000001000000010802000000907753de'
  '0000000c49444154789c63f8ffff3f0005fe02fe0def46b80000000049454e44ae426082'
)
EVIL = [
  '<script>document.title = "evil"</script>',
  '"><img src=x onerror="document.title=\'evil\'">',
  "' onmouseover='document.title=1",
  '</table></script><h1>',
  '{{ 7 * 7 }} {% raw %}',
  '&lt;b&gt; & $x_1$',
  'Müller ß 日本',
]


def sections():
  """Every evil text at every place of a page."""
  table = page.Table(
    'Every class', ('name', *EVIL), [(name, *EVIL) for name in EVIL]
  )
  numbers = page.Table('Numbers', 'abc', [('x', 1 / 3, 1_234_567)])
  return [
    page.Section(
      text,
      text,
      [(text, text)],
      [page.Picture(PNG, text, text)],
      [page.Table(text, ('a', text), [(text, 1)], folded=True)],
    )
    for text in EVIL
  ] + [page.Section('All', tables=[table, numbers])]


def test_text_stays_text(tmp_path):
  path = tmp_path / 'index.html'
  page.write(path, EVIL[0], sections())
  dom = browser.open_page(path)
  assert dom.title == EVIL[0]
  for text in EVIL:
    assert dom.texts.count(text) >= 5
    cells = [cell.text for cell in dom.tables[text].rows[1]]
    assert cells == [text, '1']
  rows = dom.tables['Every class'].rows
  assert [cell.text for cell in rows[0]] == ['name', *EVIL]
  assert [[c.text for c in row] for row in rows[1:]] == [
    [n, *EVIL] for n in EVIL
  ]
  cells = dom.tables['Numbers'].rows[1]
  assert [c.text for c in cells] == ['x', '0.3333', '1,234,567']
  assert [c.value for c in cells] == [None, repr(1 / 3), '1234567']
  alts = [attrs['alt'] for tag, attrs in dom.tags if tag == 'img']
  assert alts == EVIL


CLICKS = """\
<script>
const table = document.querySelector('table');
const names = () => [...table.tBodies[0].rows].map(r => r.cells[0].textContent);
for (const column of [1, 1, 0, 2]) {
  table.tHead.rows[0].cells[column].querySelector('button').click();
  const line = document.createElement('p');
  line.textContent = 'order: ' + names().join(' ');
  document.body.append(line);
}
</script>
</body>"""


@pytest.mark.parametrize(
  ('rows', 'orders', 'classes'),
  [
    (
      [('b10', 0.5, 1_000), ('b9', 1e-5, 30), ('a', 0.25, 200)],
      [
        'b9 a b10',  # small shares first
        'b10 a b9',  # and last
        'a b9 b10',  # names, numbers in them as numbers
        'b9 a b10',  # 1,000 is more than 200
      ],
      [None, 'number', 'number'],
    ),
    (
      list(zip('abcdef', ('-', 3, 1, '-', 2, math.nan), '-x-xxx', strict=True)),
      [
        'c e b a d f',  # what is not known is the last
        'b e c a d f',  # either way
        'a b c d e f',
        'a c b d e f',  # texts as texts
      ],
      [None, 'number', None],
    ),
  ],
)
def test_a_click_sorts_a_table(tmp_path, rows, orders, classes):
  table = page.Table('t', ('class', 'share', 'count'), rows, sortable=True)
  path = tmp_path / 'index.html'
  page.write(path, 'sorted', [page.Section('s', tables=[table])])
  path.write_text(path.read_text().replace('</body>', CLICKS))
  dom = browser.open_page(path)
  assert [t[7:] for t in dom.texts if t.startswith('order: ')] == orders
  heads = [attrs for tag, attrs in dom.tags if tag == 'th'][:3]
  assert [head.get('class') for head in heads] == classes
  assert [h.get('aria-sort') for h in heads] == [None, None, 'ascending']


def test_nothing_is_loaded_from_elsewhere(tmp_path):
  """The browser would refuse it anyway: the page's policy says so."""
  page.write(tmp_path / 'index.html', 't', sections())
  text = (tmp_path / 'index.html').read_text()
  assert "default-src 'none'" in text
  assert not re.search(r'(src|href)="(?!data:|#)', text)


def test_names_that_are_not_text_can_be_written(tmp_path):
  """Linux has names of files that no encoding explains."""
  path = tmp_path / 'index.html'
  page.write(path, 'bad \udcff name', [])
  assert '<title>bad \\udcff name</title>' in path.read_text()

"""Draws the medians of `bench data`."""

import math

import matplotlib.figure
import matplotlib.ticker

from alexnet_jax.bench import limits
from alexnet_jax.bench.layouts import LAYOUTS

_COLUMNS = 2
_OURS, _PEER, _LIMIT = '#1b6ca8', '#b9c2cb', '#c0392b'


def draw(result: dict, path: str) -> None:
  """Writes a chart: a panel per layout, a bar per loader, limits as lines.

  Args:
    result: of `data.measure`.
    path: the file; its suffix tells the format.
  """
  groups = [
    (layout, [row for row in result['rows'] if row['layout'] == layout.name])
    for layout in LAYOUTS
  ]
  groups = [(layout, rows) for layout, rows in groups if rows]
  lines = math.ceil(len(groups) / _COLUMNS)
  most = max(sum(r['kind'] != 'limit' for r in rows) for _, rows in groups)
  figure = matplotlib.figure.Figure(
    figsize=(13, lines * (1.6 + 0.3 * most)), layout='constrained'
  )
  axes = figure.subplots(lines, _COLUMNS, squeeze=False).ravel()
  for axis, (layout, rows) in zip(axes, groups, strict=False):
    _panel(axis, layout, rows)
  for axis in axes[len(groups) :]:
    axis.set_visible(False)
  machine = result['machine']
  figure.suptitle(
    'Images per second into uint8 batches, shuffled, randomly cropped and'
    f' mirrored; {machine["cpu"]}, {result["threads"]} threads.\nBars: medians,'
    ' with least and most. Lines: only a part of the work, bare, in threads and'
    ' in processes.',
    fontsize=10,
  )
  figure.savefig(path, dpi=120)


def _panel(axis, layout, rows):
  bars = [row for row in rows if row['kind'] != 'limit']
  bars.sort(key=lambda row: row['median'])
  medians = [row['median'] for row in bars]
  spread = [
    [row['median'] - row['min'] for row in bars],
    [row['max'] - row['median'] for row in bars],
  ]
  axis.barh(
    [row['contender'] for row in bars],
    medians,
    xerr=spread,
    color=[_OURS if row['kind'] == 'ours' else _PEER for row in bars],
    error_kw={'elinewidth': 1, 'ecolor': '#444444'},
  )
  for height, row in enumerate(bars):
    axis.annotate(
      f'{row["median"]:,.0f}',
      (row['max'], height),
      xytext=(5, 0),
      textcoords='offset points',
      va='center',
      fontsize=8,
      bbox={'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.8, 'pad': 1},
    )
  _limit_lines(axis, rows)
  axis.set_xlim(0, 1.15 * max(row['max'] for row in bars + _bounds(rows)))
  axis.set_title(layout.title, loc='left', fontsize=11, fontweight='bold')
  axis.xaxis.set_major_locator(matplotlib.ticker.MaxNLocator(6))
  axis.xaxis.set_major_formatter('{x:,.0f}')
  axis.spines[['top', 'right']].set_visible(False)


def _bounds(rows):
  return [
    row
    for row in rows
    if row['kind'] == 'limit' and limits.bounds(row['contender'])
  ]


def _limit_lines(axis, rows):
  """The best of each part in threads, and in processes."""
  for style, how in (('--', 'threads'), (':', 'processes')):
    some = [row for row in _bounds(rows) if row['contender'].endswith(how)]
    best = max(some, key=lambda row: row['median'])
    axis.axvline(
      best['median'],
      color=_LIMIT,
      linestyle=style,
      label=f'{best["contender"]}: {best["median"]:,.0f}',
    )
  axis.legend(
    loc='upper left', bbox_to_anchor=(0, -0.08), fontsize=8, frameon=False
  )

"""The table of `bench data`."""

import sys

from rich.console import Console
from rich.table import Table

from alexnet_jax.bench.layouts import LAYOUTS

_ENOUGH_BATCHES = 12
NOTES = (
  "'ours' leaves the mirroring to the device, which costs it nothing;"
  " 'ours, mirrored on the host' does all that the peers do.",
  'Those that decode in Python use simplejpeg, as ours does, unless their name'
  ' says otherwise; tf.data and FFCV have decoders of their own.',
  'Where JPEGs are resized, the peers interpolate, which is cheaper than the'
  ' mean over areas that ours takes.',
  'Limits do one part of the work only, without order, batches or hand-over.',
)


def show(result: dict) -> None:
  """Prints the result of `data.measure` for people, on standard error."""
  console = Console(file=sys.stderr, width=100)
  machine, made = result['machine'], result['photographs']
  sizes = ', '.join(
    f'{size}: {count / 1000:.0f} kB'
    for size, count in made['bytes_per_jpeg'].items()
  )
  console.print(
    f'{machine["cpu"]}, {machine["cores"]} cores, {result["threads"]} threads;'
    f' {made["images"]} images ({made["distinct"]} distinct; JPEG {sizes}) of'
    f' {made["source"]}',
    highlight=False,
  )
  for layout in LAYOUTS:
    if rows := [r for r in result['rows'] if r['layout'] == layout.name]:
      console.print(_table(layout, rows, result['ratios'][layout.name]))
  for note in NOTES:
    console.print(note, highlight=False)
  if result['num_batches'] < _ENOUGH_BATCHES:
    console.print(
      f'{result["num_batches"]} batches in a measurement are too few beside'
      f' those made ahead: take {_ENOUGH_BATCHES} at least (--batches)',
      style='bold red',
    )
  for entry in result['skipped']:
    place = f' on {entry["layout"]}' if entry['layout'] else ''
    console.print(
      f'not measured: {entry["contender"]}{place}: {entry["reason"]}',
      highlight=False,
      markup=False,
    )


def _table(layout, rows, ratios):
  table = Table(title=f'{layout.title} ({layout.name})', title_justify='left')
  table.add_column('images per second')
  for heading in ('median', 'min', 'max', 'ours / it', 'on the host / it'):
    table.add_column(heading, justify='right')
  ranked = sorted(rows, key=lambda r: (r['kind'] == 'limit', -r['median']))
  last = None
  for row in ranked:
    if last and (row['kind'] == 'limit') != (last == 'limit'):
      table.add_section()
    last, name = row['kind'], row['contender']
    numbers = (f'{row[key]:,.0f}' for key in ('median', 'min', 'max'))
    own = (
      f'{ratios[own][name]:.2f}' if name in ratios[own] else ''
      for own in ('ours', 'ours, mirrored on the host')
    )
    style = 'bold' if row['kind'] == 'ours' else None
    table.add_row(name, *numbers, *own, style=style)
  return table

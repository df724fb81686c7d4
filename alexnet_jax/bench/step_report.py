"""The tables of `bench step`."""

import sys

from rich.console import Console
from rich.table import Table

_TITLES = {'train': 'train step', 'evaluate': 'evaluation step'}
_NOTES = (
  'Milliseconds: the median of the rounds, with least and most. ours / it: our'
  ' images per second by its, in the same round; the median.',
  'Share of the peak: FLOP of convolutions and dense layers as the network has'
  ' them (two for a multiply-add) x images per second / peak.',
  "Memory: the process' largest resident memory, libraries included"
  ' (VmHWM); on a GPU also the largest in use on a device.',
  'Ours mirrors uint8 images, subtracts the mean and counts top-1 and top-5 in'
  ' the step; the others get float32 images that are ready.',
  'Where Linux gives huge pages on request, ours asks for them, as training'
  ' does; with GLIBC_TUNABLES=glibc.malloc.hugetlb=1 (or 0) in the environment'
  ' all have them (or none).',
)
_LAYER_NOTE = (
  'Each layer by itself, so that nothing is fused with its neighbors; a'
  " module's bias is in it. Backward: from its input and the gradient of its"
  ' output to those of weights and input, with what it needs of the forward'
  ' pass again. Share: of what all layers take, forward and backward.'
)


def _console():
  return Console(
    file=sys.stderr, width=120, highlight=False, markup=False, emoji=False
  )


def show_group(group: dict) -> None:
  """Prints what `step_rounds.measure` returns, on standard error."""
  console = _console()
  devices = f'{group["device_count"]} x {group["device_kind"]}'
  console.print(
    f'\n{group["network"]}, {group["dtype"]}, {group["batch_size"]} images a'
    f' step on {devices}: {group["parameters"]:,} parameters;'
    f' {group["training_flops_per_image"] / 1e9:.4f} GFLOP training and'
    f' {group["forward_flops_per_image"] / 1e9:.4f} forward per image'
  )
  peak = f'{group["peak"] / 1e9:,.1f} GFLOP/s: ' if group['peak'] else ''
  console.print(f'peak: {peak}{group["peak_source"]}')
  for part, title in _TITLES.items():
    if rows := [row for row in group['rows'] if row['part'] == part]:
      console.print(_table(title, rows))
  for row in group['rows']:
    if 'compiled' in row:
      console.print(_compiled_line(row))
  for failure in group['failed']:
    console.print(f'failed: {failure["contender"]}: {failure["error"]}')
  for name, losses in group['agreement'].items():
    text = ', '.join(f'{loss:.5f}' for loss in losses)
    console.print(f'losses from equal weights, {name}: {text}')
  if group['layers']:
    console.print(_layer_table(group['layers']))
    console.print(_LAYER_NOTE)


def show_notes(result: dict) -> None:
  """Prints what holds for all tables."""
  console = _console()
  machine = result['machine']
  versions = ', '.join(f'{k} {v}' for k, v in result['versions'].items())
  console.print(
    f'\n{machine["cpu"]}; {result["threads"]} of {machine["cores"]} cores for'
    f' everybody; rounds: {result["rounds"]}; {versions}'
  )
  for note in _NOTES:
    console.print(note)


def _table(title, rows):
  table = Table(title=title, title_justify='left')
  table.add_column('')
  for heading in (
    *('images/s', 'ms a step', 'of the peak', 'compiling', 'memory'),
    *('on the device', 'ours / it'),
  ):
    table.add_column(heading, justify='right')
  for row in rows:
    times, share = row['milliseconds'], row['share_of_peak']
    table.add_row(
      row['contender'],
      f'{row["images_per_second"]["median"]:,.1f}',
      f'{times["median"]:,.2f} ({times["min"]:,.2f} - {times["max"]:,.2f})',
      '-' if share is None else f'{share:.1%}',
      f'{row["compile_seconds"]:.1f} s',
      _megabytes(row['resident_peak']),
      _megabytes(row['device_peak']),
      f'{row["ratio"]:.2f}',
    )
  return table


def _megabytes(count):
  return '-' if count is None else f'{count / 1e6:,.0f} MB'


def _compiled_line(row):
  compiled = row['compiled']
  line = (
    f'{row["contender"]}, {_TITLES[row["part"]]}: the compiled program has'
    f' {compiled["flops_per_image"] / 1e9:.4f} GFLOP of convolutions and'
    ' matrix products per image'
  )
  if compiled['cost_analysis_flops'] is not None:
    flops = compiled['cost_analysis_flops_per_image']
    line += f'; cost_analysis() {flops / 1e9:.4f}'
    line += ', which adds every other operation and leaves out padding'
  if memory := compiled['memory']:
    line += '; bytes by memory_analysis(): ' + ', '.join(
      f'{name} {count / 1e6:,.1f} MB' for name, count in memory.items()
    )
  if compiled['uncounted']:
    line += f'; not counted: {", ".join(compiled["uncounted"])}'
  return line


def _layer_table(rows):
  table = Table(title='layers', title_justify='left')
  table.add_column('')
  for heading in (
    *('output', 'forward ms', 'share', 'GFLOP/s'),
    *('backward ms', 'share', 'GFLOP/s'),
  ):
    table.add_column(heading, justify='right')
  for row in rows:
    table.add_row(
      row['name'],
      ' x '.join(map(str, row['output'])),
      *_pass(row['forward']),
      *_pass(row['backward']),
    )
  return table


def _pass(one):
  speed = one['gflops_per_second']
  return (
    f'{one["milliseconds"]:.3f}',
    f'{one["share"]:.1%}',
    '-' if speed is None else f'{speed:,.1f}',
  )

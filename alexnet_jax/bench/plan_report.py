"""The tables of `bench plan`, for people."""

import sys

from rich.console import Console
from rich.table import Table

from alexnet_jax.bench import compiled_layers

_WHAT = (
  'These are counts of a compiled program and bounds that follow from them, not'
  ' times: nothing was run. A real step takes longer: kernels do not reach the'
  ' peaks, and the GPU chooses the algorithms of convolutions and matrix'
  ' products by timing them, with workspaces of their own.'
)
_PMAP = (
  'The recipe maps its step by pmap; compiled is the same step mapped by'
  ' shard_map.'
)
_BOUNDS = {
  'memory': 'all bytes at the bandwidth of the memory',
  'compute': 'all FLOPs at the peak',
  'links': 'all reduced bytes in a ring over the links',
  'kernels': 'every kernel at its own bound, one after the other',
  'step': 'those, with the collectives where the schedule has them',
}


def show(result: dict) -> None:
  """Prints the result of `bench plan` for people, on standard error."""
  console = Console(
    file=sys.stderr, width=120, highlight=False, markup=False, emoji=False
  )
  for line in (*_head(result), *_totals(result)):
    console.print(line)
  console.print(_layer_table(result))
  console.print(_kernel_table(result))
  for line in _memory(result):
    console.print(line)
  if result['counts']['reductions']:
    console.print(_reduction_table(result))
    console.print(_early(result))
  console.print(_bound_table(result))
  for line in (*_end(result), _WHAT):
    console.print(line)


def _head(result):
  devices, target = result['devices'], result['target']
  yield (
    f'{result["recipe"]}, {result["dtype"]}, {devices} x {target["name"]},'
    f' {result["device_batch_size"]:,} images each; jax'
    f' {result["versions"].get("jax", "")}; compiled in'
    f' {result["compile_seconds"]:.0f} s'
  )
  for name, figure in target['figures'].items():
    number = _scaled(figure['value'], figure['unit'])
    yield f'  {name}: {number} ({figure["source"]})'
  options = ' '.join(f'{k}={v}' for k, v in result['compiler_options'].items())
  flags = f' and XLA_FLAGS={result["xla_flags"]}' if result['xla_flags'] else ''
  yield f'  compiled with {options}{flags}'
  if result['parallel'] == 'pmap':
    yield _PMAP


def _totals(result):
  counts, network = result['counts'], result['network']
  images = result['device_batch_size']
  read, written = counts['read_bytes'], counts['written_bytes']
  yield (
    f'\nkernels: {counts["kernels"]}'
    + (
      f' ({counts["kernel_runs"]} runs, with loops)'
      if counts['kernel_runs'] != counts['kernels']
      else ''
    )
  )
  yield (
    f'memory traffic per image: {_mb(read + written, images)} MB'
    f' ({_mb(read, images)} read, {_mb(written, images)} written)'
  )
  directions = dict.fromkeys(compiled_layers.DIRECTIONS, 0)
  for row in counts['by_layer']:
    directions[row['direction']] += row['read_bytes'] + row['written_bytes']
  parts = (f'{name} {_mb(n, images)}' for name, n in directions.items() if n)
  yield f'  {", ".join(parts)}'
  if counts['workspace_bytes']:
    yield (
      "  and workspaces of libraries' kernels, not among these:"
      f' {_mb(counts["workspace_bytes"], images)} MB'
    )
  yield (
    'FLOPs of convolutions and dots per image:'
    f' {counts["flops"] / images / 1e9:.4f} G; the network has'
    f' {network["training_flops_per_image"] / 1e9:.4f} G'
  )
  if counts['unknown_loops']:
    yield (
      'counted once, as nobody says how often they run: the loops'
      f' {", ".join(counts["unknown_loops"])}'
    )


def _layer_table(result):
  table = _table(
    'by layer and direction, per image',
    *('layer', 'direction', '>kernels', '>MB read', '>MB written'),
    *('>MB', '>GFLOP'),
  )
  images = result['device_batch_size']
  small = {'kernels': 0, 'read_bytes': 0, 'written_bytes': 0, 'flops': 0}
  for row in result['counts']['by_layer']:
    num_bytes = row['read_bytes'] + row['written_bytes']
    if num_bytes / images < 0.005e6 and not row['flops']:
      small = {name: small[name] + row[name] for name in small}
      continue
    table.add_row(
      row['layer'] or 'other', row['direction'], *_cells(row, images)
    )
  table.add_row('all smaller ones', '', *_cells(small, images))
  return table


def _cells(row, images):
  read, written = row['read_bytes'], row['written_bytes']
  flops = f'{row["flops"] / images / 1e9:.3f}' if row['flops'] else ''
  numbers = (_mb(n, images) for n in (read, written, read + written))
  return str(row['kernels']), *numbers, flops


def _kernel_table(result):
  table = _table(
    'the largest kernels, per image',
    *('kernel', 'layer', 'direction', '>MB read', '>MB written', 'writes'),
  )
  images = result['device_batch_size']
  for row in result['counts']['largest']:
    table.add_row(
      row['name'],
      row['layer'] or 'other',
      row['direction'],
      _mb(row['read_bytes'], images),
      _mb(row['written_bytes'], images),
      row['result'],
    )
  return table


def _memory(result):
  memory = result['memory']
  yield (
    f'\nmemory of a device: {_gb(memory["peak"])} GB ='
    f' {_gb(memory["arguments"])} arguments + {_gb(memory["temporaries"])}'
    f' temporaries + {_gb(memory["outputs"])} outputs -'
    f' {_gb(memory["aliases"])} of them in donated arguments; with the next'
    f' batch on its way {_gb(memory["needed"])} of'
    f' {_gb(memory["available"])} GB ({result["memory_fraction"]:.0%} of the'
    " GPU's)"
  )
  if 'largest_batch' not in result:
    yield '  --batch_search finds the largest batch that fits'
    return
  found = result['largest_batch']
  tried = ', '.join(
    f'{batch:,}: {_gb(n)} GB' for batch, n in sorted(found['compiled'].items())
  )
  yield (
    f'largest batch of a device: {found["device_batch_size"]:,}: the line'
    ' through two batches that were compiled gives it, and it was compiled, too'
    f' (all with the next batch: {tried})'
  )


def _reduction_table(result):
  table = _table(
    'collectives: how much of the program comes before start and end',
    *('collective', '>MB', 'dtype', '>traffic before', '>FLOPs before'),
    *('after the backward of', '>traffic until', 'awaited after'),
  )
  for row in result['counts']['reductions']:
    table.add_row(
      row['name'],
      f'{row["num_bytes"] / 1e6:.3f}',
      ' '.join(row['dtypes']),
      f'{row["traffic_before"]:.1%}',
      f'{row["flops_before"]:.1%}',
      _convolutions(row['convolutions_before']),
      f'{row["traffic_until"]:.1%}',
      _convolutions(row['convolutions_until']),
    )
  return table


def _convolutions(layers):
  """Such as conv 5 4 3."""
  numbers = ' '.join(layer.removeprefix('conv') for layer in layers)
  return f'conv {numbers}' if numbers else 'none'


def _early(result):
  counts = result['counts']
  shares = ', '.join(
    f'{layer} {share:.1%}' for layer, share in counts['early_share'].items()
  )
  return (
    f'reduced: {counts["reduced_bytes"] / 1e6:.1f} MB in'
    f' {len(counts["reductions"])} collectives; share of the bytes under way'
    f' when the backward pass of a convolution begins: {shares}'
  )


def _bound_table(result):
  table = _table(
    'bounds (binds: the longest of memory, compute and links by itself)',
    *('by', '>ms a step', '>images/s', 'what'),
  )
  bounds = result['bounds']
  for name, what in _BOUNDS.items():
    if not (seconds := bounds['seconds'][name]):
      continue
    table.add_row(
      f'{name} (binds)' if name == bounds['binds'] else name,
      f'{seconds * 1e3:.3f}',
      f'{bounds["images_per_second"][name]:,.0f}',
      what,
    )
  return table


def _end(result):
  bounds, host = result['bounds'], result['host']
  if result['counts']['reductions']:
    yield (
      'waiting for collectives, if all went at its bound:'
      f' {bounds["exposed_seconds"] * 1e3:.3f} ms of'
      f' {bounds["seconds"]["links"] * 1e3:.3f} ms'
    )
  yield (
    f'in all at most {bounds["images_per_second"]["step"]:,.0f} images/s: the'
    ' bound of the step'
  )
  yield (
    f'a host must deliver up to {host["images_per_second"]:,.0f} images/s'
    f' ({host["bytes_per_second"] / 1e9:.1f} GB/s of pixels)'
  )


def _table(title, *columns):
  table = Table(title=title, title_justify='left')
  for column in columns:
    right = column.startswith('>')
    table.add_column(
      column.removeprefix('>'),
      justify='right' if right else 'left',
      overflow='fold',
      no_wrap=column in ('kernel', 'collective'),
    )
  return table


def _mb(num_bytes, images):
  return f'{num_bytes / images / 1e6:.3f}'


def _gb(num_bytes):
  return f'{num_bytes / 1e9:.2f}'


def _scaled(value, unit):
  unit = unit.replace('bytes', 'B')
  for factor, prefix in ((1e12, 'T'), (1e9, 'G')):
    if value >= factor:
      return f'{value / factor:g} {prefix}{unit}'
  return f'{value:g} {unit}'

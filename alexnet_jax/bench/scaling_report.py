"""The tables of `bench scaling`: Markdown, for people and for documents."""

from collections.abc import Sequence
import sys
import textwrap

from alexnet_jax.bench import scaling_plan

_BOUNDS = (
  'These are bounds computed from the assumptions below, not measurements:'
  ' nothing was run.'
)
_WEAK = (
  'Weak scaling: every process has the same batch, and as many cores of its own'
  ' whether there is one or many. Efficiency: the speed of P processes by P'
  ' times that of one, in the same round. Medians, least to most; compilation,'
  ' evaluation and saving are left out. The processes exchange gradients by'
  ' Gloo over the loopback interface, which says little about GPUs.'
)


def show_measured(result: dict) -> None:
  """Prints the result of `bench scaling` for people, on standard error."""
  machine, versions = result['machine'], result['versions']
  _print(
    f'{machine["cpu"]}, {machine["cores"]} cores,'
    f' {result["cores_per_process"]} for each process; Python'
    f' {versions["python"]}, jax {versions["jax"]}; {result["recipe"]};'
    f' {result["device_batch_size"]} images of each process in a step; rounds:'
    f' {len(result["rows"][0]["images_per_second"])}, steps in a run:'
    f' {result["steps"]}'
  )
  _print(measured_table(result['rows']), _WEAK)


def measured_table(rows: Sequence[dict]) -> str:
  """The rows of `scaling.summary` in Markdown."""
  cells = [
    (
      str(row['processes']),
      str(row['global_batch_size']),
      _spread(row['images_per_second'], row['median'], ',.0f'),
      _spread(row['efficiencies'], row['efficiency'], '.1%'),
    )
    for row in rows
  ]
  heads = ('processes', 'global batch', 'images per second', 'efficiency')
  return _table(heads, cells)


def _spread(values, median, form):
  if len(set(values)) == 1:
    return f'{median:{form}}'
  return f'{median:{form}} ({min(values):{form}} to {max(values):{form}})'


def show_plan(result: dict) -> None:
  """Prints the result of `bench scaling --plan`, on standard error."""
  costs = result['network']
  _print(
    _BOUNDS,
    f'{result["recipe"]}, {result["dtype"]}: {costs["parameters"]:,}'
    f' parameters; {costs["training_flops_per_image"] / 1e9:.3f} GFLOP training'
    f' per image; a step reduces {costs["reduced_bytes"] / 1e6:,.1f} MB of'
    ' float32 gradients.',
    assumed_table(result['assumed'], result['dtype']),
    plan_table(result['rows']),
    *scaling_plan.FORMULAS,
    _in_proportion(result['rows'], result['assumed']),
  )


def assumed_table(assumed: dict[str, float], dtype: str) -> str:
  """The assumptions of a plan in Markdown.

  Args:
    assumed: {name: value} of `scaling_plan.ASSUMPTIONS`.
    dtype: of the computation; the peaks of others are left out.
  """
  cells = []
  for assumption in scaling_plan.ASSUMPTIONS:
    name, value = assumption.name, assumed[assumption.name]
    if name.endswith('_peak') and name != f'{dtype}_peak':
      continue
    source = assumption.source if value == assumption.value else 'the flag'
    cells.append((f'--{name}', f'{value:g} {assumption.unit}', source))
  return _table(('assumed', 'value', 'from'), cells)


def plan_table(rows: Sequence[dict]) -> str:
  """The rows of `scaling_plan.plan` in Markdown."""
  cells = [
    (
      f'{row["device_batch_size"]:,}',
      f'{row["devices"]:,}',
      f'{row["compute_seconds"] * 1e3:.2f} ms',
      f'{row["reduction_seconds"] * 1e3:.2f} ms',
      f'{row["efficiency"]:.1%}',
      f'{row["overlapped_efficiency"]:.1%}',
    )
    for row in rows
  ]
  heads = (
    *('images per device', 'devices', 'computing', 'reduction'),
    *('efficiency without overlap', 'with perfect overlap'),
  )
  return _table(heads, cells)


def _in_proportion(rows, assumed):
  """What the table leaves to be imagined."""
  row = rows[0]
  speed = row['device_batch_size'] / row['compute_seconds']
  devices = max(row['devices'] for row in rows)
  steps = scaling_plan.ring_steps(devices, assumed)
  return (
    f'In proportion: a device that only computes takes {speed:,.0f} images per'
    f' second from its host. Over {devices:,} devices the reduction has {steps}'
    f' steps, so every microsecond of latency adds {steps / 1e3:.2f} ms. A'
    ' higher share of the peak makes computing shorter, and the efficiency'
    ' lower.'
  )


def _table(heads, rows):
  """A Markdown table; columns of numbers to the right."""
  columns = list(zip(heads, *rows, strict=True))
  right = [all(cell[0].isdigit() for cell in column[1:]) for column in columns]
  widths = [max(map(len, column)) for column in columns]
  rule = [
    '-' * (width - 1) + (':' if is_right else '-')
    for width, is_right in zip(widths, right, strict=True)
  ]
  lines = [
    [
      cell.rjust(width) if is_right else cell.ljust(width)
      for cell, width, is_right in zip(line, widths, right, strict=True)
    ]
    for line in (heads, rule, *rows)
  ]
  return '\n'.join(f'| {" | ".join(line)} |' for line in lines)


def _print(*paragraphs):
  for text in paragraphs:
    if not text.startswith('|'):
      text = textwrap.fill(text, 80, break_on_hyphens=False)
    print(f'{text}\n', file=sys.stderr)

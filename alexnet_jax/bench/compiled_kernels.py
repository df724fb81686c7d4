"""The kernels of a compiled train step: bytes, FLOPs, layer and direction."""

from collections.abc import Sequence
import dataclasses

from alexnet_jax.bench import compiled_flops
from alexnet_jax.bench import compiled_layers
from alexnet_jax.bench import compiled_schedule
from alexnet_jax.bench.compiled_text import Program


@dataclasses.dataclass(frozen=True)
class Kernel:
  """A kernel, with all of its runs in one run of the program.

  Attributes:
    name, operation: of the instruction.
    result: what it writes, such as bf16[1024,55,55,96].
    layer, direction: see `compiled_layers`.
    times: how often it runs.
    read_bytes, written_bytes, workspace_bytes: see `compiled_traffic`.
    flops: see `compiled_flops`.
    op_name: where in the Python program it comes from, as XLA says.
    in_entry: whether it stands in no loop.
  """

  name: str
  operation: str
  result: str
  layer: str
  direction: str
  times: int
  read_bytes: int
  written_bytes: int
  workspace_bytes: int
  flops: int
  op_name: str
  in_entry: bool

  @property
  def num_bytes(self) -> int:
    """Read and written."""
    return self.read_bytes + self.written_bytes


def kernels(program: Program) -> list[Kernel]:
  """The kernels of a program in the order of its schedule."""
  launches = compiled_schedule.launches(program)
  places = compiled_layers.places(program, launches)
  return [
    Kernel(
      name=launch.instruction.name,
      operation=launch.instruction.operation,
      result=_result(launch.instruction),
      layer=layer,
      direction=direction,
      times=launch.times,
      read_bytes=launch.times * launch.traffic.read,
      written_bytes=launch.times * launch.traffic.written,
      workspace_bytes=launch.times * launch.traffic.workspace,
      flops=launch.times
      * compiled_flops.flops(program, launch.computation, launch.instruction),
      op_name=launch.instruction.op_name,
      in_entry=launch.computation is program.entry,
    )
    for launch, (layer, direction) in zip(launches, places, strict=True)
  ]


def _result(instruction):
  return ' '.join(
    f'{array.dtype}[{",".join(map(str, array.shape))}]'
    for array in instruction.arrays
    if array.size
  )


def by_layer(found: Sequence[Kernel]) -> list[dict]:
  """Sums by layer and direction, most bytes first.

  Returns:
    Rows {layer, direction, kernels, read_bytes, written_bytes, flops}.
  """
  rows = {}
  for kernel in found:
    key = (kernel.layer, kernel.direction)
    row = rows.setdefault(
      key, {'kernels': 0, 'read_bytes': 0, 'written_bytes': 0, 'flops': 0}
    )
    row['kernels'] += 1
    for name in ('read_bytes', 'written_bytes', 'flops'):
      row[name] += getattr(kernel, name)
  rows = [
    {'layer': layer, 'direction': direction, **row}
    for (layer, direction), row in rows.items()
  ]
  return sorted(rows, key=lambda r: -(r['read_bytes'] + r['written_bytes']))

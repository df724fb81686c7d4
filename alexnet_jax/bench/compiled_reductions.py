"""Where in the schedule of a compiled program its collectives begin and end."""

from collections.abc import Sequence
import dataclasses

from alexnet_jax.bench.compiled_kernels import Kernel
from alexnet_jax.bench.compiled_text import Program
from alexnet_jax.bench.compiled_traffic import COLLECTIVES


@dataclasses.dataclass(frozen=True)
class Reduction:
  """One collective of the entry computation.

  Attributes:
    name, operation: of the instruction that starts it.
    num_bytes: of its operands on one device.
    dtypes: of them.
    kernels_before: how many kernels of the program start before it does.
    kernels_until: how many start before it must be done.
  """

  name: str
  operation: str
  num_bytes: int
  dtypes: tuple[str, ...]
  kernels_before: int
  kernels_until: int


def reductions(program: Program, kernels: Sequence[Kernel]) -> list[Reduction]:
  """The collectives of the entry computation, in the order of their starts.

  Those in loops are among the kernels only.

  Args:
    program: it.
    kernels: all of its kernels, in the order of its schedule.
  """
  started, ended, done = {}, {}, 0
  for each in program.entry:
    operation = each.operation
    if each.kind in COLLECTIVES:
      started[each.name] = done
      if each.kind == operation:
        ended[each.name] = done
    elif operation.endswith('-done') and each.operands[0] in started:
      ended[each.operands[0]] = done
    done = _advance(program, kernels, done, each)
  return [
    _reduction(program, name, before, ended.get(name, len(kernels)))
    for name, before in started.items()
  ]


def _advance(program, kernels, done, instruction):
  """How many kernels have started once an instruction of the entry has."""
  if done < len(kernels) and kernels[done].name == instruction.name:
    return done + 1
  if instruction.operation in ('while', 'call', 'conditional', 'async-start'):
    while done < len(kernels) and not kernels[done].in_entry:
      done += 1
  return done


def _reduction(program, name, before, until):
  instruction = program.entry.instructions[name]
  arrays = [
    array
    for operand in instruction.operands
    for array in program.entry.instructions[operand].arrays
  ]
  return Reduction(
    name,
    instruction.kind,
    sum(array.num_bytes for array in arrays),
    tuple(sorted({array.dtype for array in arrays})),
    before,
    until,
  )


def first_backward(kernels: Sequence[Kernel]) -> dict[str, int]:
  """{conv5: place of its first backward convolution, ...}, in their order."""
  first = {}
  for place, kernel in enumerate(kernels):
    is_convolution = kernel.layer.startswith('conv') and kernel.flops
    if is_convolution and kernel.direction == 'backward':
      first.setdefault(kernel.layer, place)
  return first


def early_share(
  reduced: Sequence[Reduction], kernels: Sequence[Kernel], layer: str = ''
) -> float:
  """Share of the reduced bytes that are under way when a backward pass begins.

  Their collective starts before it, and need not be done by then.

  Args:
    reduced: of `reductions`.
    kernels: all kernels.
    layer: the convolution whose backward pass; '': the one that comes first.
  """
  first = first_backward(kernels)
  total = sum(each.num_bytes for each in reduced)
  if not first or not total:
    return 0.0
  limit = first[layer] if layer else min(first.values())
  early = [r for r in reduced if r.kernels_before <= limit < r.kernels_until]
  return sum(each.num_bytes for each in early) / total

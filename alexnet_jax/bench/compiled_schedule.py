"""Which kernels a compiled program starts, in which order and how often."""

from collections.abc import Iterator
import dataclasses
import re

from alexnet_jax.bench.compiled_text import Computation
from alexnet_jax.bench.compiled_text import Instruction
from alexnet_jax.bench.compiled_text import Program
from alexnet_jax.bench.compiled_traffic import Traffic
from alexnet_jax.bench.compiled_traffic import traffic

_NO_WORK = frozenset(
  (
    *('parameter', 'constant', 'tuple', 'get-tuple-element', 'bitcast'),
    *('after-all', 'opt-barrier', 'domain', 'add-dependency', 'async-update'),
    *('partition-id', 'replica-id'),
  )
)
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"')


@dataclasses.dataclass(frozen=True)
class Launch:
  """A kernel at its place in the schedule.

  Attributes:
    instruction: it.
    computation: in which it stands.
    times: how often it runs in one run of the program.
    traffic: of one time.
  """

  instruction: Instruction
  computation: Computation
  times: int
  traffic: Traffic

  @property
  def num_bytes(self) -> int:
    """Read and written in one run of the program."""
    return self.times * self.traffic.total


def launches(program: Program) -> list[Launch]:
  """The kernels of a program in the order of its schedule.

  A loop's kernels count as often as it runs, those of its condition once more;
  of the branches of a conditional the one with the most traffic counts.
  """
  return list(_launches(program, program.entry, 1))


def unknown_loops(program: Program) -> list[str]:
  """Names of loops that are counted once: nobody says how often they run."""
  return [
    each.name
    for computation in program.computations.values()
    for each in computation
    if each.operation == 'while' and trips(program, each) is None
  ]


def trips(program: Program, loop: Instruction) -> int | None:
  """How often a loop runs: what XLA notes, or what its condition compares."""
  if noted := _TRIPS.search(loop.attributes):
    return int(noted[1])
  condition = program.called(loop, 'condition')
  root = condition.root
  if root.operation != 'compare' or 'direction=LT' not in root.attributes:
    return None
  limit = condition.instructions[root.operands[1]]
  return int(limit.argument) if limit.operation == 'constant' else None


def _launches(program, computation, times) -> Iterator[Launch]:
  for each in computation:
    operation = each.operation
    if operation in _NO_WORK or operation.endswith('-done'):
      continue
    if operation == 'while':
      count = trips(program, each)
      count = 1 if count is None else count
      condition, body = (
        program.called(each, attribute) for attribute in ('condition', 'body')
      )
      yield from _launches(program, condition, times * (count + 1))
      yield from _launches(program, body, times * count)
    elif operation in ('call', 'async-start'):
      attribute = 'to_apply' if each.called('to_apply') else 'calls'
      yield from _launches(program, program.called(each, attribute), times)
    elif operation == 'conditional':
      branches = (
        list(_launches(program, branch, times))
        for branch in _branches(program, each)
      )
      yield from max(branches, key=lambda b: sum(x.num_bytes for x in b))
    else:
      yield Launch(
        each, computation, times, traffic(program, computation, each)
      )


def _branches(program, conditional):
  found = re.search(r'branch_computations=\{([^}]*)\}', conditional.attributes)
  if found:
    names = [name.strip().lstrip('%') for name in found[1].split(',')]
    return [program.computations[name] for name in names]
  return [
    program.called(conditional, f'{kind}_computation')
    for kind in ('true', 'false')
  ]

"""Memory traffic of the kernels of a compiled program, counted in its text.

The rule. A kernel is an instruction that the device starts: a fusion, a custom
call such as cuDNN's convolutions, a copy, a collective. It reads each operand
once and writes each result once, whatever caches do; what it computes inside
stays in registers. Of these sums there are the following parts.

- Nothing is done by parameters, constants, tuples, their elements, bitcasts and
  barriers. An asynchronous pair counts where it starts.
- Of an operand that is only sliced, indexed or gathered from, what is read is
  what the slices take, together at most the whole; also through operations
  between elements of the same place. Elements count, not the sectors of memory
  that hold them.
- A dynamic-update-slice that ends a kernel and begins with an operand of it
  happens in place: it reads and writes the update. So does a scatter: it reads
  indices and updates, and reads and writes as many elements as updates has.
- A result in the memory of an argument (donated) is written like any other.
- The workspace of a library's kernel (an array of bytes beside the result) is
  counted apart: how much of it a kernel touches is not known.
- What a kernel loads that was written by hand (Triton, Pallas) is not known: it
  counts like any other, its operands once.
- A collective reads its operands and writes its results once, the least that it
  can do; a ring does it more often.

How often a kernel runs, in loops, is up to `compiled_schedule`.
"""

import dataclasses

from alexnet_jax.bench.compiled_text import Computation
from alexnet_jax.bench.compiled_text import Instruction
from alexnet_jax.bench.compiled_text import Program

COLLECTIVES = (
  *('all-reduce', 'all-gather', 'reduce-scatter', 'all-to-all'),
  *('collective-permute', 'collective-broadcast', 'ragged-all-to-all'),
)
# Even of an operand as large as the result, they need more than one element for
# one of the result.
_WHOLE = frozenset(
  (
    *('dot', 'convolution', 'reduce-window', 'select-and-scatter', 'sort'),
    *('scatter', 'custom-call', 'fft', 'cholesky', 'triangular-solve'),
    *('fusion', 'while', 'map', 'rng-bit-generator', 'call', 'reduce'),
  )
)
_LIBRARIES = ('__cudnn$', '__cublas$', '__cub$')
_PARTS = ('slice', 'dynamic-slice', 'gather')
_INSIDE = ('broadcast', 'pad', 'concatenate')


@dataclasses.dataclass(frozen=True)
class Traffic:
  """Bytes that a kernel moves once; see the rule.

  Attributes:
    read, written: of operands and results.
    workspace: of a library's kernel, in neither of them.
  """

  read: int
  written: int
  workspace: int = 0

  @property
  def total(self) -> int:
    """Read and written."""
    return self.read + self.written


def traffic(
  program: Program, computation: Computation, instruction: Instruction
) -> Traffic:
  """Bytes that one kernel moves.

  Args:
    program: of which it is.
    computation: in which it stands.
    instruction: it.
  """
  operands = {
    name: computation.instructions[name].num_bytes
    for name in instruction.operands
  }
  kind = instruction.kind
  if kind in (*COLLECTIVES, 'copy', 'custom-call'):
    return _given(instruction, operands)
  if kind == 'fusion':
    fused = program.called(instruction, 'calls')
    needed, written = _fused(fused)
    parameters = [each for each in fused if each.operation == 'parameter']
    shares = [
      (instruction.operands[int(each.argument)], each, needed[each.name])
      for each in parameters
    ]
  else:
    in_place = _update_bytes(computation, instruction)
    written = instruction.num_bytes if in_place is None else in_place
    shares = [
      (
        name,
        computation.instructions[name],
        _demand(computation, instruction, k, _size(instruction), True),
      )
      for k, name in enumerate(instruction.operands)
    ]
  read = dict.fromkeys(operands, 0)
  for name, each, count in shares:
    read[name] += _share(each, count)
  return Traffic(
    sum(min(read[name], operands[name]) for name in operands), written
  )


def _given(instruction, operands):
  """Of what XLA leaves to others: all operands, all results.

  Of a library's call the arrays of bytes behind the result are workspace.
  """
  arrays = instruction.arrays
  starts = instruction.operation != instruction.kind
  if instruction.operation == 'copy-start':
    arrays = arrays[:1]  # the result comes first, then the operand
  elif starts and instruction.kind != 'all-reduce':
    # Operands, results and marks.
    marks = [array for array in arrays if not array.shape]
    arrays = arrays[len(operands) : len(arrays) - len(marks)]
  workspace = 0
  if instruction.target.startswith(_LIBRARIES):
    workspace = sum(
      array.num_bytes
      for array in arrays[1:]
      if array.dtype in ('u8', 's8') and len(array.shape) == 1
    )
  written = sum(array.num_bytes for array in arrays) - workspace
  return Traffic(sum(operands.values()), written, workspace)


def _fused(fused):
  """({name: elements that are needed}, bytes written) of a computation."""
  needed, written, in_place = dict.fromkeys(fused.instructions, 0), 0, set()
  for result in _results(fused):
    last = _behind_bitcasts(fused, result)
    update = _update_bytes(fused, last)
    source = fused.instructions[last.operands[0]] if last.operands else last
    source = _behind_bitcasts(fused, source)
    if update is not None and source.operation == 'parameter':
      written += update
      in_place.add(last.name)
    else:
      written += result.num_bytes
    needed[result.name] = _size(result)
  for each in reversed(fused.instructions.values()):
    count = min(needed[each.name], _size(each))
    if count and each.operation not in ('parameter', 'constant'):
      for index, name in enumerate(each.operands):
        needed[name] += _demand(
          fused, each, index, count, each.name in in_place
        )
  return needed, written


def _demand(computation, user, index, count, in_place):
  """Elements of an operand that `count` elements of the user's result need."""
  size = _size(computation.instructions[user.operands[index]])
  operation = user.operation
  if operation == 'dynamic-update-slice' and index == 0:
    return 0 if in_place else size
  if operation == 'scatter' and index < _num_scattered(user) and in_place:
    return min(size, _size(_updates(computation, user)))
  if operation in _INSIDE or (operation in _PARTS and index == 0):
    return min(size, count)
  if operation not in _WHOLE and size == _size(user):
    return count
  return size


def _update_bytes(computation, instruction):
  """Bytes written by what updates a part of its operand; None: all of it."""
  if instruction.operation == 'dynamic-update-slice':
    return computation.instructions[instruction.operands[1]].num_bytes
  if instruction.operation == 'scatter':
    count = _size(_updates(computation, instruction))
    return sum(
      _share(computation.instructions[name], count)
      for name in instruction.operands[: _num_scattered(instruction)]
    )
  return None


def _num_scattered(scatter):
  """Operands come first, then the indices, then as many updates."""
  return (len(scatter.operands) - 1) // 2


def _updates(computation, scatter):
  return computation.instructions[scatter.operands[-1]]


def _results(fused):
  if fused.root.operation == 'tuple':
    return [fused.instructions[name] for name in fused.root.operands]
  return [fused.root]


def _behind_bitcasts(computation, instruction):
  while instruction.operation == 'bitcast':
    instruction = computation.instructions[instruction.operands[0]]
  return instruction


def _size(instruction):
  """Elements of a result; of the first array, if there are several."""
  return instruction.arrays[0].size if instruction.arrays else 0


def _share(instruction, count):
  """Bytes of `count` elements of a result, at most of all."""
  size = _size(instruction)
  return instruction.num_bytes * min(count, size) // size if size else 0

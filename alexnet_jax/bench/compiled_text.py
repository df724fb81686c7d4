"""Reads the text of a compiled program (HLO) as XLA prints it.

Only what counting needs: computations, their instructions in the order of the
schedule, shapes, operands, attributes and where an instruction comes from.
"""

from collections.abc import Iterator
import dataclasses
import functools
import math
import re

_ARRAY = re.compile(r'\b([a-z]\w*)\[([\d,<= ]*)\]')
_HEADER = re.compile(r'(ENTRY )?%?([\w.\-]+) (?:\(.*\) -> .* )?\{$')
_DTYPE_BITS = re.compile(r'[a-z]+(\d+)')
_TARGET = re.compile(r'custom_call_target="([^"]*)"')
_OP_NAME = re.compile(r'op_name="((?:[^"\\]|\\.)*)"')
_OPEN, _CLOSED = '([{', ')]}'


@dataclasses.dataclass(frozen=True)
class Array:
  """One array of a shape.

  Attributes:
    dtype: as XLA writes it, such as bf16.
    shape: its dimensions.
  """

  dtype: str
  shape: tuple[int, ...]

  @property
  def size(self) -> int:
    """Number of elements."""
    return math.prod(self.shape)

  @property
  def num_bytes(self) -> int:
    """Bytes in memory: of 4-bit integers two share one."""
    return -(-self.size * bits(self.dtype) // 8)


@dataclasses.dataclass(frozen=True)
class Instruction:
  """One line of a computation.

  Attributes:
    name: without the per cent sign.
    arrays: of its result; several if it is a tuple.
    operation: such as fusion.
    operands: names, in the same computation.
    argument: what stands in the brackets, for parameters and constants.
    attributes: the rest of the line.
    is_root: whether the computation returns it.
  """

  name: str
  arrays: tuple[Array, ...]
  operation: str
  operands: tuple[str, ...]
  argument: str
  attributes: str
  is_root: bool

  @property
  def kind(self) -> str:
    """The operation; of what only starts one, too."""
    return self.operation.removesuffix('-start')

  @property
  def num_bytes(self) -> int:
    """Of the whole result."""
    return sum(array.num_bytes for array in self.arrays)

  @functools.cached_property
  def op_name(self) -> str:
    """Where in the Python program it comes from; '' if XLA does not say."""
    found = _OP_NAME.search(self.attributes)
    return found[1].replace("\\'", "'") if found else ''

  @property
  def target(self) -> str:
    """What a custom call calls."""
    found = _TARGET.search(self.attributes)
    return found[1] if found else ''

  def called(self, attribute: str) -> str:
    """Name of the computation that an attribute such as calls or body names."""
    found = re.search(rf'\b{attribute}=%?([\w.\-]+)', self.attributes)
    return found[1] if found else ''


class Computation:
  """Instructions in the order of the schedule.

  Attributes:
    name: without the per cent sign.
    instructions: {name: Instruction}.
  """

  def __init__(self, name: str, instructions: list[Instruction]):
    self.name = name
    self.instructions = {each.name: each for each in instructions}

  def __iter__(self) -> Iterator[Instruction]:
    return iter(self.instructions.values())

  @functools.cached_property
  def root(self) -> Instruction:
    """What the computation returns."""
    *_, last = self
    return next((each for each in self if each.is_root), last)

  @functools.cached_property
  def users(self) -> dict[str, list[Instruction]]:
    """{name: the instructions that use it}."""
    found = {name: [] for name in self.instructions}
    for each in self:
      for operand in dict.fromkeys(each.operands):
        if operand in found:
          found[operand].append(each)
    return found


@dataclasses.dataclass(frozen=True)
class Program:
  """A compiled program: {name: Computation} and the one that is run."""

  computations: dict[str, Computation]
  entry: Computation

  def called(self, instruction: Instruction, attribute: str) -> Computation:
    """The computation that an attribute of an instruction names."""
    return self.computations[instruction.called(attribute)]


def bits(dtype: str) -> int:
  """Bits of an element; 0 of a token or an opaque value."""
  if dtype == 'pred':
    return 8
  found = _DTYPE_BITS.match(dtype)
  return int(found[1]) if found else 0


def arrays(shape: str) -> tuple[Array, ...]:
  """The arrays of a shape such as `(bf16[8,55]{1,0}, u8[0]{0})`."""
  return tuple(
    Array(dtype, tuple(int(d.strip('<= ')) for d in dims.split(',') if d))
    for dtype, dims in _ARRAY.findall(shape)
  )


def parse(text: str) -> Program:
  """Reads a whole program.

  Args:
    text: of `jax.stages.Compiled.as_text`.

  Raises:
    ValueError: if there is no entry computation in it.
  """
  computations, entry, name, lines = {}, None, None, []
  for line in text.splitlines():
    if line[:1].strip() and (header := _HEADER.fullmatch(line.rstrip())):
      name, lines = header[2], []
      entry = name if header[1] else entry
    elif line.startswith('}') and name:
      computations[name] = Computation(name, lines)
      name = None
    elif name and (instruction := _instruction(line)):
      lines.append(instruction)
  if entry not in computations:
    raise ValueError('no entry computation: this is no text of a program')
  return Program(computations, computations[entry])


def _instruction(line):
  """The Instruction of one line; None of lines that hold none."""
  head, equals, rest = line.strip().partition(' = ')
  if not equals:
    return None
  is_root, name = head.startswith('ROOT '), head.removeprefix('ROOT ')
  shape, rest = _split_shape(rest)
  operation, _, rest = rest.partition('(')
  end = _closing(rest)
  operands = ()
  if operation not in ('parameter', 'constant', 'iota'):
    parts = _split_commas(rest[:end])
    operands = tuple(part.split()[-1].lstrip('%') for part in parts)
  return Instruction(
    name.lstrip('%'),
    arrays(shape),
    operation,
    operands,
    rest[:end],
    rest[end + 1 :],
    is_root,
  )


def _split_shape(text):
  """(shape, what follows) of what stands right of the equals sign."""
  if not text.startswith('('):
    shape, _, rest = text.partition(' ')
    return shape, rest
  end = _closing(text[1:]) + 2
  return text[:end], text[end:].lstrip()


def _closing(text):
  """Where the bracket closes that was opened before the text."""
  depth = 1
  for match in re.finditer(r'"(?:[^"\\]|\\.)*"|[()]', text):
    if match[0] in '()':
      depth += 1 if match[0] == '(' else -1
      if not depth:
        return match.start()
  raise ValueError(f'a bracket is open: {text[:80]}')


def _split_commas(text):
  """The parts between commas that no bracket holds; no comments."""
  text = re.sub(r'/\*.*?\*/', '', text)
  parts, depth, start = [], 0, 0
  for place, letter in enumerate(text):
    if letter in _OPEN:
      depth += 1
    elif letter in _CLOSED:
      depth -= 1
    elif letter == ',' and not depth:
      parts.append(text[start:place])
      start = place + 1
  return [part for part in (*parts, text[start:]) if part.strip()]

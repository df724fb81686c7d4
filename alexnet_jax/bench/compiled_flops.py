"""FLOPs of convolutions and dots in the text of a compiled program.

Two for each multiply-add. Those of cuDNN's convolutions include taps that meet
padding, as `evaluation.summary` and everybody else counts them; so does XLA's
own convolution where it does not dilate its input. Everything else of a program
(normalization, pooling, the update) is not counted: it is bound by memory.
"""

import json
import math
import re

from alexnet_jax.bench.compiled_text import Computation
from alexnet_jax.bench.compiled_text import Instruction
from alexnet_jax.bench.compiled_text import Program

_CUDNN = '__cudnn$conv'
_CUBLAS = '__cublas$'
_LABELS = re.compile(r'dim_labels=(\w+)_(\w+)->(\w+)')


def flops(
  program: Program, computation: Computation, instruction: Instruction
) -> int:
  """FLOPs of one kernel, with what it calls.

  Args:
    program: of which it is.
    computation: in which it stands.
    instruction: it.
  """
  operation = instruction.kind
  if operation == 'fusion':
    fused = program.called(instruction, 'calls')
    return sum(flops(program, fused, each) for each in fused)
  if operation == 'convolution':
    return _convolution(computation, instruction)
  if operation == 'dot':
    contracted = _numbers(instruction.attributes, 'lhs_contracting_dims')
    return _product(computation, instruction, contracted)
  if operation == 'custom-call' and instruction.target.startswith(_CUDNN):
    return _cudnn(computation, instruction)
  if operation == 'custom-call' and instruction.target.startswith(_CUBLAS):
    return _product(computation, instruction, _gemm_contracted(instruction))
  return 0


def _cudnn(computation, call):
  """A multiply-add for each tap of each element of the convolution's output.

  Whatever is computed, the labels are those of the convolution in the forward
  direction.
  """
  _, kernel_labels, _ = _LABELS.search(call.attributes).groups()
  left, right = (
    computation.instructions[name].arrays[0] for name in call.operands[:2]
  )
  result = call.arrays[0]
  if call.target.endswith('BackwardFilter'):
    output, kernel = right, result
  elif call.target.endswith('BackwardInput'):
    output, kernel = left, right
  else:
    output, kernel = result, right
  taps = kernel.size // kernel.shape[kernel_labels.index('o')]
  return 2 * output.size * taps


def _convolution(computation, instruction):
  """XLA's own: taps in the holes of a dilated input are not computed."""
  _, kernel_labels, _ = _LABELS.search(instruction.attributes).groups()
  kernel = computation.instructions[instruction.operands[1]].arrays[0]
  result = instruction.arrays[0]
  taps = kernel.size // kernel.shape[kernel_labels.index('o')]
  dilation = re.search(r'lhs_dilate=([\dx]+)', instruction.attributes)
  holes = math.prod(int(d) for d in dilation[1].split('x')) if dilation else 1
  return 2 * result.size * taps // holes


def _product(computation, instruction, contracted):
  left = computation.instructions[instruction.operands[0]].arrays[0]
  depth = math.prod(left.shape[place] for place in contracted)
  return 2 * instruction.arrays[0].size * depth


def _numbers(attributes, name):
  found = re.search(rf'{name}=\{{([\d,]*)\}}', attributes)
  return [int(n) for n in found[1].split(',') if n] if found else []


def _gemm_contracted(call):
  found = re.search(
    r'"lhs_contracting_dimensions":(\[[^\]]*\])', call.attributes
  )
  return [int(n) for n in json.loads(found[1])] if found else []

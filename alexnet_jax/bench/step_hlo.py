"""Counts the convolutions and matrix products of a compiled program."""

import re

from alexnet_jax.bench import compiled_flops
from alexnet_jax.bench import compiled_schedule
from alexnet_jax.bench import compiled_text

_CALLED = re.compile(
  r'\b(?:to_apply|body|condition|branch_computations|called_computations'
  r'|true_computation|false_computation)=(?:\{([^}]*)\}|%?([\w.-]+))'
)
_COUNTED = ('__cudnn$conv', '__cublas$')


def count(text: str) -> tuple[int, list[str]]:
  """FLOPs of the convolutions and matrix products of one execution.

  What `compiled_flops` counts, also where the program calls it from another
  computation or repeats it. XLA's own `cost_analysis` is something else: it
  counts every addition and comparison besides, leaves out the taps of a
  convolution that meet padding, and counts the body of a loop once.

  Args:
    text: of a compiled program of one device.

  Returns:
    (FLOPs, uncounted): the sorted targets of custom calls that are not known,
    which may compute something, too.
  """
  program = compiled_text.parse(text)
  uncounted = set()

  def total(computation):
    flops = 0
    for each in computation:
      flops += compiled_flops.flops(program, computation, each)
      if each.target and not each.target.startswith(_COUNTED):
        uncounted.add(each.target)
      times = 1
      if each.operation == 'while':
        times = compiled_schedule.trips(program, each) or 1
      for several, single in _CALLED.findall(each.attributes):
        for name in (several or single).split(','):
          called = program.computations[name.strip().lstrip('%')]
          flops += times * total(called)
    return flops

  return total(program.entry), sorted(uncounted)

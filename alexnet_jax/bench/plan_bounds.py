"""Bounds that follow from the counts of a compiled step and from a GPU's data.

None of them is a time that anybody measured: a step takes at least as long.
"""

from alexnet_jax.bench import scaling_plan
from alexnet_jax.bench.compiled_counts import Counts
from alexnet_jax.bench.plan_step import CompiledStep
from alexnet_jax.bench.plan_targets import Target

# What JAX takes of a GPU's memory by default (XLA_PYTHON_CLIENT_MEM_FRACTION).
MEMORY_FRACTION = 0.75


def bounds(
  counts: Counts, step: CompiledStep, target: Target, dtype: str
) -> dict:
  """Least seconds of a step, and the images per second that follow.

  Args:
    counts: of the step's program.
    step: it.
    target: the GPU.
    dtype: of the computation, bfloat16 or float32.

  Returns:
    {seconds: {memory: all bytes at the memory's bandwidth, compute: all FLOPs
    at the peak, links: all reduced bytes in a ring, kernels: each kernel the
    longer of its memory and compute, one after the other, step: those with the
    collectives beside them where the schedule lets them be}, images_per_second:
    the same of all devices together, binds: memory, compute or links, whichever
    takes longest, exposed_seconds: step - kernels}.
  """
  speed = target.value(f'{dtype}_peak')
  bandwidth = target.value('memory_bandwidth')
  kernels = [
    max(kernel.num_bytes / bandwidth, kernel.flops / speed)
    for kernel in counts.kernels
  ]
  seconds = {
    'memory': counts.num_bytes / bandwidth,
    'compute': counts.total('flops') / speed,
    'links': sum(
      _link_seconds(each, step, target) for each in counts.reductions
    ),
  }
  binds = max(seconds, key=seconds.get)
  seconds['kernels'] = sum(kernels)
  seconds['step'] = _step_seconds(counts, kernels, step, target)
  return {
    'seconds': seconds,
    'images_per_second': {
      name: step.global_batch_size / value if value else None
      for name, value in seconds.items()
    },
    'binds': binds,
    'exposed_seconds': seconds['step'] - seconds['kernels'],
  }


def _link_seconds(reduction, step, target):
  """Of a collective in a ring; see `scaling_plan.ring_seconds`."""
  return scaling_plan.ring_seconds(
    reduction.num_bytes, step.devices, target.value('link_bandwidth'), 0.0
  )


def _step_seconds(counts, kernels, step, target):
  """Kernels run one after the other, and collectives beside them.

  Collectives, too, run one after the other, in the order of their starts. Where
  one must be done, the kernels wait for it. The memory that a collective uses
  while kernels run is counted with its start.
  """
  ends = {}
  link_free = now = 0.0
  for place in range(len(kernels) + 1):
    for reduction in counts.reductions:
      if reduction.kernels_before == place:
        link_free = max(now, link_free) + _link_seconds(reduction, step, target)
        ends[reduction.name] = reduction.kernels_until, link_free
    now = max([now, *(end for until, end in ends.values() if until == place)])
    if place < len(kernels):
      now += kernels[place]
  return now


def memory(step: CompiledStep, target: Target, fraction: float) -> dict:
  """Bytes of one device's memory that a run of the step takes.

  Returns:
    {arguments, outputs, aliases, temporaries: as XLA plans them; peak: of the
    program; next_batch: that is on its way to the device meanwhile; needed:
    peak and next_batch; available: the memory of the device times `fraction`}.
  """
  return {
    'arguments': step.argument_bytes,
    'outputs': step.output_bytes,
    'aliases': step.alias_bytes,
    'temporaries': step.temporary_bytes,
    'peak': step.peak_bytes,
    'next_batch': step.batch_bytes,
    'needed': step.peak_bytes + step.batch_bytes,
    'available': int(target.value('memory') * fraction),
  }

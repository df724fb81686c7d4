"""Bounds of a made-up step on a made-up GPU, and the search of a batch."""

import pytest

from alexnet_jax.bench import plan_batch
from alexnet_jax.bench import plan_bounds
from alexnet_jax.bench import plan_step
from alexnet_jax.bench.compiled_counts import Counts
from alexnet_jax.bench.compiled_kernels import Kernel
from alexnet_jax.bench.compiled_reductions import Reduction
from alexnet_jax.bench.plan_targets import Figure
from alexnet_jax.bench.plan_targets import Target

# 10 bytes, 100 bfloat16 and 50 float32 FLOPs, 2 bytes over the links a second.
GPU = Target(
  'slow',
  '',
  {
    'memory': Figure(1000, 'bytes', ''),
    'memory_bandwidth': Figure(10.0, 'bytes/s', ''),
    'bfloat16_peak': Figure(100.0, 'FLOP/s', ''),
    'float32_peak': Figure(50.0, 'FLOP/s', ''),
    'link_bandwidth': Figure(2.0, 'bytes/s', ''),
  },
)
STEP = plan_step.CompiledStep(
  *('', 2, 40, 300, 120, 100, 80, 60),
  options={},
  seconds=0.0,
)


def kernel(num_bytes, flops):
  return Kernel(
    *('k', 'fusion', '', '', '', 1, num_bytes, 0, 0, flops, '', True)
  )


def counts(*reductions):
  """Kernels of 4 s (memory), 3 s (compute in bfloat16) and 1 s."""
  kernels = [kernel(40, 100), kernel(10, 300), kernel(10, 0)]
  return Counts(
    kernels,
    [
      Reduction(str(i), '', n, (), *at) for i, (n, *at) in enumerate(reductions)
    ],
    [],
  )


def test_bounds_by_hand():
  found = plan_bounds.bounds(counts(), STEP, GPU, 'bfloat16')
  assert found['seconds'] == pytest.approx(
    {'memory': 6, 'compute': 4, 'links': 0, 'kernels': 8, 'step': 8}
  )
  assert found['binds'] == 'memory'
  assert found['images_per_second']['memory'] == pytest.approx(40 / 6)
  assert found['images_per_second']['links'] is None
  assert found['exposed_seconds'] == 0
  found = plan_bounds.bounds(counts(), STEP, GPU, 'float32')
  assert found['seconds']['compute'] == pytest.approx(8)
  assert found['seconds']['kernels'] == pytest.approx(4 + 6 + 1)
  assert found['binds'] == 'compute'


@pytest.mark.parametrize(
  ('reductions', 'step'),
  [
    # Two devices send half of the bytes twice: 2 bytes take a second.
    ([(2, 1, 3)], 8),  # hidden behind 3 + 1 s
    ([(8, 1, 3)], 8),  # just so
    ([(12, 1, 3)], 10),  # awaited at the end
    ([(12, 1, 2)], 11),  # awaited before the last kernel
    ([(6, 1, 3), (6, 1, 3)], 10),  # one after the other
    ([(6, 2, 3), (2, 0, 1)], 10),  # whatever order they are listed in
    ([(2, 2, 2)], 9),  # awaited at once
    ([(6, 3, 3)], 11),  # at the end
  ],
)
def test_collectives_beside_kernels(reductions, step):
  found = plan_bounds.bounds(counts(*reductions), STEP, GPU, 'bfloat16')
  assert found['seconds']['step'] == pytest.approx(step)
  assert found['exposed_seconds'] == pytest.approx(step - 8)
  links = sum(num_bytes for num_bytes, *_ in reductions) / 2
  assert found['seconds']['links'] == pytest.approx(links)


def test_memory_by_hand():
  assert STEP.peak_bytes == 300 + 80 + 120 - 100
  assert STEP.device_batch_size == 20
  assert plan_bounds.memory(STEP, GPU, 0.5) == {
    'arguments': 300,
    'outputs': 120,
    'aliases': 100,
    'temporaries': 80,
    'peak': 400,
    'next_batch': 60,
    'needed': 460,
    'available': 500,
  }


def line(batch):
  return 1000 + 10 * batch


def bent(batch):
  """More than the line through small batches says."""
  return line(batch) + max(batch - 1000, 0)


def saved(batch):
  """XLA saves memory where it is short."""
  return line(batch) - 4 * max(batch - 1000, 0)


def spiked(batch):
  """One batch that needs more than larger ones."""
  return line(batch) if batch != 1984 else 50_000


@pytest.mark.parametrize(
  ('needed', 'first', 'available', 'step', 'expected', 'trials'),
  [
    (line, 128, 1000 + 10 * 2000, 0, 1984, 3),
    (line, 100, 1000 + 10 * 1999, 100, 1900, 3),
    (line, 1024, 1000 + 10 * 300, 0, 256, 3),
    (line, 128, 500, 0, 0, 2),
    (bent, 128, 1000 + 10 * 2000, 0, 1856, 4),
    (spiked, 128, 1000 + 10 * 2000, 0, 1920, 4),
    (saved, 512, 1000 + 10 * 2000, 0, 2624, 6),
  ],
)
def test_the_largest_batch(needed, first, available, step, expected, trials):
  """Found, and compiled: whatever is reported was tried."""
  seen = []

  def compiled(batch):
    seen.append(batch)
    return needed(batch)

  found = plan_batch.largest(compiled, first, available, step)
  assert found['device_batch_size'] == expected
  assert list(found['compiled']) == seen
  assert len(seen) == len(set(seen)) <= trials
  assert all(batch % (step or 64) == 0 for batch in seen)
  if expected:
    assert found['compiled'][expected] <= available

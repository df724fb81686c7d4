"""Peaks, cores and memory of the machine."""

import mmap
import os

import pytest

from alexnet_jax.bench import machine
from alexnet_jax.errors import UserError

needs_affinity = pytest.mark.skipif(
  not hasattr(os, 'sched_setaffinity'), reason='cores are bound on Linux only'
)


@pytest.mark.parametrize(
  ('kind', 'dtype', 'teraflops'),
  [
    ('NVIDIA H100 80GB HBM3', 'bfloat16', 989.4),
    ('NVIDIA H100 PCIe', 'bfloat16', 756.5),
    ('NVIDIA A100-SXM4-40GB', 'float32', 156.0),
    ('NVIDIA A10', 'bfloat16', 125.0),
    ('NVIDIA A10G', 'bfloat16', 70.0),
    ('NVIDIA L4', 'float32', 60.0),
    ('NVIDIA L40S', 'float32', 183.0),
    ('Tesla V100-SXM2-16GB', 'float32', 15.7),
    ('Tesla V100-PCIE-16GB', 'float32', 14.0),
  ],
)
def test_peaks_are_found_by_the_name_of_the_device(kind, dtype, teraflops):
  peak, source = machine.gpu_peak(kind, dtype)
  assert peak == pytest.approx(1e12 * teraflops)
  assert 'NVIDIA' in source


@pytest.mark.parametrize(
  ('kind', 'dtype'), [('Tesla T4', 'bfloat16'), ('cpu', 'float32')]
)
def test_there_is_no_peak_of_other_devices(kind, dtype):
  assert machine.gpu_peak(kind, dtype) is None


@needs_affinity
def test_there_is_a_core_for_each_thread():
  own = os.sched_getaffinity(0)
  assert machine.first_cores(1) == [min(own)]
  assert machine.first_cores(0) == sorted(own)
  with pytest.raises(UserError, match='--threads'):
    machine.first_cores(len(own) + 1)


@needs_affinity
def test_memory_grows_with_what_is_written():
  before = machine.resident_bytes('VmRSS')
  written = mmap.mmap(-1, 50_000_000)  # memory that nobody has had before
  written.write(b'1' * 50_000_000)
  after = machine.resident_bytes('VmRSS')
  assert 40e6 < after - before < 100e6
  assert machine.resident_bytes('VmHWM') >= after
  written.close()

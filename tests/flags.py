"""XLA's flags in the tests' processes."""

import os

# If LLVM optimizes, it takes up to a third of the tests' time, for arrays that
# are small. At 3, XLA's own level, programs are those that users run.
_LEVEL = os.environ.setdefault('ALEXNET_JAX_TESTS_LLVM_LEVEL', '0')


def fake_devices(number: int) -> dict[str, str]:
  """Environment of a process with so many devices on this CPU."""
  return {
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={number}'
    f' --xla_backend_optimization_level={_LEVEL}'
  }

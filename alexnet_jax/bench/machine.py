"""What a measurement was made on and with."""

from collections.abc import Iterator
from collections.abc import Sequence
import contextlib
import importlib.metadata
import os
import pathlib
import platform


def describe() -> dict:
  """{cpu: its name, cores: that this process may use, system}."""
  from alexnet_jax.data.loader import num_cores

  model = platform.processor() or platform.machine()
  cpuinfo = pathlib.Path('/proc/cpuinfo')  # on Linux
  if cpuinfo.exists():
    for line in cpuinfo.read_text().splitlines():
      if line.startswith('model name'):
        model = line.split(':', 1)[1].strip()
        break
  return {'cpu': model, 'cores': num_cores(), 'system': platform.platform()}


def versions(packages: Sequence[str]) -> dict[str, str]:
  """Of Python and of those packages that are installed."""
  found = {'python': platform.python_version()}
  for package in packages:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found


@contextlib.contextmanager
def bound_to(cores: Sequence[int] | set[int]) -> Iterator[None]:
  """Processes that are started within the block run on these cores only."""
  before = os.sched_getaffinity(0)
  os.sched_setaffinity(0, cores)
  try:
    yield
  finally:
    os.sched_setaffinity(0, before)

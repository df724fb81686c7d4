"""What a measurement was made on and with."""

from collections.abc import Sequence
import contextlib
import importlib.metadata
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

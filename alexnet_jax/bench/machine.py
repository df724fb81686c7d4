"""The machine that a benchmark runs on: its name, cores, memory and peaks.

Peaks of GPUs are in targets/*.toml, from the data sheets. They count a
multiply-add as two operations, without sparsity. float32 is what JAX computes
float32 with: TF32 on tensor cores where a GPU has them.
"""

from collections.abc import Sequence
import contextlib
import importlib.metadata
import math
import os
import pathlib
import platform
import tomllib

from alexnet_jax import runtime
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError

TARGETS = pathlib.Path(__file__).parent / 'targets'
DESCRIBED = ('a100', 'h100')  # those that XLA can compile for
# The figures of such a GPU, and their units.
FIGURES = {
  'memory': 'bytes',
  'memory_bandwidth': 'bytes/s',
  'bfloat16_peak': 'FLOP/s',
  'float32_peak': 'FLOP/s',
  'link_bandwidth': 'bytes/s',  # of one GPU to the others, in one direction
}
# Of what is measured, where it is installed.
_PACKAGES = (
  'alexnet_jax',
  'flax',
  'grain',
  'jax',
  'jaxlib',
  'jax-cuda12-plugin',
  'keras',
  'numba',
  'numpy',
  'opencv-python-headless',
  'optax',
  'simplejpeg',
  'spdl',
  'tensorflow',
  'torch',
)
_FIGURE = {'value', 'unit', 'source'}
_STATUS = pathlib.Path('/proc/self/status')  # on Linux
_CPUINFO = pathlib.Path('/proc/cpuinfo')  # the same


def describe() -> dict:
  """Returns {cpu: its name, cores: that this process may use, system}."""
  from alexnet_jax.data.loader import num_cores

  model = platform.processor() or platform.machine()
  if _CPUINFO.exists():
    for line in _CPUINFO.read_text().splitlines():
      if line.startswith('model name'):
        model = line.split(':', 1)[1].strip()
        break
  return {'cpu': model, 'cores': num_cores(), 'system': platform.platform()}


def versions() -> dict[str, str]:
  """Returns the versions of Python and of what the benchmarks run."""
  found = {'python': platform.python_version()}
  for package in _PACKAGES:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
      found[package] = importlib.metadata.version(package)
  return found


def first_cores(threads: int) -> list[int]:
  """Returns the first cores that this process may use, one for each thread.

  Args:
    threads: how many; 0: all.

  Raises:
    UserError: if there are fewer, or the system cannot bind processes to cores.
  """
  if not hasattr(os, 'sched_setaffinity'):
    raise UserError('this system cannot bind processes to cores; Linux can')
  cores = sorted(os.sched_getaffinity(0))
  if threads > len(cores):
    raise UserError(
      f'--threads is {threads}, but this process may use {len(cores)} cores;'
      f' give {len(cores)} or fewer'
    )
  return cores[: threads or len(cores)]


def resident_bytes(field: str) -> int | None:
  """Returns this process's resident memory; None where the system hides it.

  Args:
    field: `VmHWM`, the largest so far, or `VmRSS`, that of now; see proc(5).
  """
  if not _STATUS.exists():
    return None
  for line in _STATUS.read_text().splitlines():
    if line.startswith(f'{field}:'):
      return 1024 * int(line.split()[1])
  return None


def load_gpu(name: str) -> dict:
  """Reads the description of a GPU that a program can be compiled for.

  Args:
    name: one of DESCRIBED, or the path of a TOML file like targets/h100.toml.

  Returns:
    {name, xla: {target: XLA's GpuTargetConfigProto in text form}, and for each
    of FIGURES {value, unit, source}}.

  Raises:
    UserError: if there is none, or something is missing in it.
  """
  example = TARGETS / 'h100.toml'
  path = TARGETS / f'{name}.toml' if name in DESCRIBED else pathlib.Path(name)
  if not path.is_file():
    raise UserError(
      f'--target is {name!r}: neither {" nor ".join(DESCRIBED)} nor a file; a'
      f' description looks like {example}'
    )
  try:
    gpu = tomllib.loads(path.read_text())
  except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
    raise UserError(f'--target {path} is no TOML file: {error}') from error
  xla = gpu.get('xla')
  if 'name' not in gpu or not isinstance(xla, dict) or 'target' not in xla:
    raise UserError(
      f'--target {path} lacks name or xla.target; {example} has all it needs'
    )
  for key, unit in FIGURES.items():
    figure = gpu.get(key)
    value = figure.get('value') if isinstance(figure, dict) else None
    is_number = type(value) in (int, float) and 0 < value < math.inf
    if not is_number or set(figure) != _FIGURE or figure['unit'] != unit:
      raise UserError(
        f'--target {path}: {key} is {figure!r}; it must be a table of value, a'
        f' number above 0, unit, {unit!r}, and source, as in {example}'
      )
  return gpu


def gpu_devices(gpu: dict, count: int) -> Sequence:
  """Returns devices to compile for, none of them real.

  Args:
    gpu: of `load_gpu`.
    count: how many, all in one machine.

  Raises:
    UserError: if XLA for CUDA is not installed or cannot read the description.
  """
  import jax
  from jax.experimental import topologies
  from jax.experimental.compilation_cache import compilation_cache

  if not runtime.plugin_libraries():
    raise UserError(
      "compiling for a GPU needs XLA's compiler for CUDA, though no GPU:"
      f' {how_to_install("cuda12")}'
    )
  # Nothing of this runs on a GPU, even where there is one.
  jax.config.update('jax_platforms', 'cpu')
  # JAX' cache of programs cannot read these back.
  jax.config.update('jax_enable_compilation_cache', False)
  compilation_cache.reset_cache()  # it looks at the setting only once
  options = {'target_config': gpu['xla']['target'], 'topology': f'1x1x{count}'}
  try:
    return topologies.get_topology_desc('gpu', 'cuda', **options).devices
  except (ValueError, RuntimeError) as error:
    raise UserError(
      f'XLA cannot read the description of {gpu["name"]}: {error}'
    ) from error


def gpu_peak(device_kind: str, dtype: str) -> tuple[float, str] | None:
  """Returns (FLOP/s, source) of a GPU as published; None if it is not known.

  Args:
    device_kind: as jax has it, such as 'NVIDIA H100 80GB HBM3'. The longest
      `kind` in targets/*.toml whose words it contains counts.
    dtype: of the computation, float32 or bfloat16.
  """
  words = f' {device_kind} '.replace('-', ' ')
  gpus = [tomllib.loads(path.read_text()) for path in TARGETS.glob('*.toml')]
  fitting = [gpu for gpu in gpus if f' {gpu["kind"]} ' in words]
  gpu = max(fitting, key=lambda gpu: len(gpu['kind']), default={})
  peak = gpu.get(f'{dtype}_peak')
  return peak and (peak['value'], peak['source'])

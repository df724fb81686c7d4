"""GPUs, as their data sheets describe them in targets/*.toml.

Peaks count a multiply-add as two operations, without sparsity. float32 is what
JAX computes float32 with: TF32 on tensor cores where a GPU has them.
"""

from collections.abc import Sequence
import math
import pathlib
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
  match gpu:
    case {'name': _, 'xla': {'target': _}}:
      pass
    case _:
      raise UserError(
        f'--target {path} lacks name or xla.target; {example} has all it needs'
      )
  for key, unit in FIGURES.items():
    match gpu.get(key):
      case {'value': int() | float() as value, 'unit': given, 'source': _} if (
        0 < value < math.inf and value is not True and given == unit
      ):
        pass
      case figure:
        raise UserError(
          f'--target {path}: {key} is {figure!r}; it must be a table of value,'
          f' a number above 0, unit, {unit!r}, and source, as in {example}'
        )
  return gpu


def gpu_devices(gpu: dict, count: int) -> Sequence:
  """Returns devices of one machine to compile for, none of them real.

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

"""Costs of a network, and what GPUs offer, as data sheets have it.

Peaks in targets/*.toml count a multiply-add as two, without sparsity; float32
is TF32 on tensor cores where a GPU has them, as JAX computes it.
"""

import math
import pathlib
import tomllib

from alexnet_jax.errors import UserError
from alexnet_jax.evaluation import summary
from alexnet_jax.training import build

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


def num_classes(config) -> int:
  """Returns the number of classes of the config, or of its data."""
  if config.model.num_classes:
    return config.model.num_classes
  return len(build.make_source(config, 'train').class_names)


def network_costs(config, num_classes: int) -> dict[str, int]:
  """Returns {parameters, forward_ and training_flops_per_image}.

  Raises UserError if config.model makes no network.
  """
  model = build.make_model(config, num_classes)
  try:
    layers = summary.layer_table(model, build.image_shape(config))
  except ValueError as error:  # of the network's own checks
    raise UserError(f'config.model: {error}') from error
  return summary.totals(*layers)


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
    known = ' nor '.join(DESCRIBED)
    raise UserError(
      f'--target is {name!r}: neither {known} nor a file like {example}'
    )
  try:
    gpu = tomllib.loads(path.read_text())
    gpu['name'], gpu['xla']['target']  # they must be there
    for key, unit in FIGURES.items():
      value, given, _ = (gpu[key][part] for part in ('value', 'unit', 'source'))
      if not 0 < value < math.inf or given != unit:
        raise ValueError(f'{key} is {value} {given}, no number of {unit}')
  except (ValueError, KeyError, TypeError) as error:
    problem = f'{error} is missing' if isinstance(error, KeyError) else error
    raise UserError(
      f'--target {path} describes no GPU: {problem}; {example} does'
    ) from error
  return gpu


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

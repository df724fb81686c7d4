"""GPUs that a train step is compiled for, as data sheets have them."""

import math
import pathlib
import tomllib

from alexnet_jax.errors import UserError
from alexnet_jax.models.costs import GPUS

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
    name: one of DESCRIBED, or the path of a TOML file like gpus/h100.toml.

  Returns:
    {name, xla: {target: XLA's GpuTargetConfigProto in text form}, and for each
    of FIGURES {value, unit, source}}.

  Raises:
    UserError: if there is none, or something is missing in it.
  """
  example = GPUS / 'h100.toml'
  path = GPUS / f'{name}.toml' if name in DESCRIBED else pathlib.Path(name)
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

"""bench plan: what a train step does on a GPU that is not there, counted."""

import argparse
import os
import pathlib
import shlex
import sys

from alexnet_jax.bench import machine
from alexnet_jax.bench import plan_targets
from alexnet_jax.bench.arguments import positive
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError

_DESCRIPTION = f"""\
Compiles the train step of a recipe for GPUs that need not be there, and counts
what the program does: kernels, bytes read and written, FLOPs, memory, and where
its all-reduces begin and end. From these and the GPU's data follow bounds.
They are no times: nothing runs.

It needs XLA's compiler for CUDA: {how_to_install('cuda12')}."""

_PACKAGES = (
  *('alexnet_jax', 'flax', 'jax', 'jaxlib', 'jax-cuda12-plugin', 'optax'),
)


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  parser = commands.add_parser(
    'plan',
    help='bytes, FLOPs and memory of a step on a GPU that is not there',
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--target',
    default='h100',
    metavar='GPU',
    help=f'{", ".join(plan_targets.NAMES)} or a TOML file that describes'
    ' another (default: %(default)s)',
  )
  parser.add_argument(
    '--devices',
    type=positive,
    default=1,
    metavar='N',
    help='GPUs of one machine that share a batch (default: 1)',
  )
  parser.add_argument(
    '--config',
    default='configs/imagenet.py',
    metavar='FILE',
    help='the recipe (default: %(default)s)',
  )
  parser.add_argument(
    '--largest',
    type=positive,
    default=10,
    metavar='K',
    help='kernels that are shown by name (default: %(default)s)',
  )
  parser.add_argument(
    '--batch_search',
    action='store_true',
    help='also finds the largest batch, in three to six compilations',
  )
  parser.add_argument(
    '--memory_fraction',
    type=float,
    metavar='X',
    help="share of the GPU's memory that JAX may use (default: 0.75, as JAX has"
    ' it by default)',
  )
  parser.add_argument(
    '--hlo', metavar='FILE', help='writes the text of the program there'
  )
  parser.set_defaults(work=_work)


def _work(arguments, overrides):
  from alexnet_jax import validation
  from alexnet_jax.bench import plan_report

  target = plan_targets.load(arguments.target)
  fraction = _fraction(arguments.memory_fraction)
  config = validation.load_config([f'--config={arguments.config}', *overrides])
  result = {
    'command': shlex.join(['python', '-m', 'alexnet_jax.bench', *sys.argv[1:]]),
    'versions': machine.versions(_PACKAGES),
    'measured': False,
    'recipe': arguments.config,
  }
  result |= _plan(config, target, arguments, fraction)
  plan_report.show(result)
  return result


def _fraction(given):
  from alexnet_jax.bench import plan_bounds

  fraction = plan_bounds.MEMORY_FRACTION if given is None else given
  if not 0 < fraction <= 1:
    raise UserError(
      f'--memory_fraction is {fraction:g}; it must be above 0, and at most 1'
    )
  return fraction


def _plan(config, target, arguments, fraction):
  import dataclasses

  from alexnet_jax.bench import compiled_counts
  from alexnet_jax.bench import plan_bounds
  from alexnet_jax.bench import plan_step
  from alexnet_jax.bench import scaling_plan

  folder = pathlib.Path(arguments.hlo or '.').parent
  if not folder.is_dir():
    raise UserError(f'--hlo: there is no folder {folder}')
  print(f'compiling for {arguments.devices} x {target.name}', file=sys.stderr)
  step = plan_step.compile_step(config, target, arguments.devices)
  if arguments.hlo:
    pathlib.Path(arguments.hlo).write_text(step.text)
  counts = compiled_counts.count(step.text)
  bounds = plan_bounds.bounds(counts, step, target, config.model.dtype)
  memory = plan_bounds.memory(step, target, fraction)
  rate = bounds['images_per_second']['step']
  result = {
    'target': {
      'name': target.name,
      'figures': {
        name: dataclasses.asdict(figure)
        for name, figure in target.figures.items()
      },
    },
    'dtype': config.model.dtype,
    'parallel': config.parallel,
    'devices': step.devices,
    'global_batch_size': step.global_batch_size,
    'device_batch_size': step.device_batch_size,
    'compiler_options': step.options,
    'xla_flags': os.environ.get('XLA_FLAGS', ''),
    'compile_seconds': step.seconds,
    'network': scaling_plan.network(config),
    'counts': counts.to_json(arguments.largest),
    'memory': memory,
    'memory_fraction': fraction,
    'bounds': bounds,
    'host': {
      'images_per_second': rate,
      'bytes_per_second': rate * step.batch_bytes / step.device_batch_size,
    },
  }
  if arguments.batch_search:
    result['largest_batch'] = _largest_batch(config, target, step, memory)
  return result


def _largest_batch(config, target, step, memory):
  from alexnet_jax.bench import plan_batch
  from alexnet_jax.bench import plan_step

  def needed(device_batch_size):
    if device_batch_size == step.device_batch_size:
      return memory['needed']
    print(f'compiling for batches of {device_batch_size:,}', file=sys.stderr)
    other = plan_step.compile_step(
      config, target, step.devices, device_batch_size * step.devices
    )
    return other.peak_bytes + other.batch_bytes

  return plan_batch.largest(
    needed,
    step.device_batch_size,
    memory['available'],
    config.microbatch_size,
  )

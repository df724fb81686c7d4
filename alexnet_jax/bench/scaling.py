"""bench scaling: weak scaling over processes, and on paper over many GPUs."""

import argparse
from collections.abc import Callable
from collections.abc import Sequence
import shlex
import statistics
import sys
import tempfile

from alexnet_jax.bench import machine
from alexnet_jax.bench import scaling_plan
from alexnet_jax.bench import scaling_runs
from alexnet_jax.bench import timed_run
from alexnet_jax.bench.arguments import positive
from alexnet_jax.bench.arguments import positives
from alexnet_jax.errors import UserError

_DESCRIPTION = """\
Trains with one process and with several on the CPU of this machine, in turn in
every round. Each process has the same batch and its own share of the cores, the
same with one process as with many, so the ideal speed of P processes is P times
that of one. Medians and spread of the images per second that training reports.

With --plan it trains nothing, but computes what reducing the gradients would
cost on many GPUs: bounds that follow from the assumptions that it prints."""

_MEASURED_RECIPE = 'configs/quickstart.py'
_PLANNED_RECIPE = 'configs/imagenet.py'
_DEFAULTS = {'processes': (1, 2), 'rounds': 5, 'steps': 100}
_PLAN_NAMES = ('devices', *(a.name for a in scaling_plan.ASSUMPTIONS))
_PACKAGES = ('alexnet_jax', 'flax', 'jax', 'jaxlib', 'numpy', 'optax')


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  parser = commands.add_parser(
    'scaling',
    help='speed of several processes, measured, or of many GPUs, on paper',
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  parser.add_argument(
    '--config',
    metavar='FILE',
    help=f'default: {_MEASURED_RECIPE}; with --plan {_PLANNED_RECIPE}',
  )
  parser.add_argument(
    '--device_batch_size',
    type=positives,
    metavar='B',
    help="images of each process in a step (default: the recipe's batch); with"
    ' --plan one number or several, A,B (default: 128,512,1024)',
  )
  _add_measuring(parser.add_argument_group('measuring'))
  _add_planning(parser.add_argument_group('on paper'))
  parser.set_defaults(work=_work)


def _add_measuring(group):
  group.add_argument(
    '--processes', type=positives, metavar='1,P', help='default: 1,2'
  )
  group.add_argument('--rounds', type=positive, help='default: 5')
  group.add_argument(
    '--steps', type=positive, help='timed in each run (default: 100)'
  )


def _add_planning(group):
  group.add_argument('--plan', action='store_true', help='trains nothing')
  group.add_argument(
    '--devices', type=positives, metavar='A,B', help='default: 8,64,1024'
  )
  for assumption in scaling_plan.ASSUMPTIONS:
    group.add_argument(
      f'--{assumption.name}',
      type=type(assumption.value),
      metavar='X',
      help=f'{assumption.unit} (default: {assumption.value:g})',
    )


def _work(arguments, overrides):
  given = {k: v for k, v in vars(arguments).items() if v is not None}
  other = _DEFAULTS if arguments.plan else _PLAN_NAMES
  if wrong := [f'--{name}' for name in other if name in given]:
    rule = 'does not go' if arguments.plan else 'goes only'
    raise UserError(f'{", ".join(wrong)} {rule} with --plan')
  result = {
    'command': shlex.join(['python', '-m', 'alexnet_jax.bench', *sys.argv[1:]]),
    'versions': machine.versions(_PACKAGES),
  }
  return (_plan if arguments.plan else _measure)(given, overrides, result)


def _plan(given, overrides, result):
  from alexnet_jax import validation
  from alexnet_jax.bench import scaling_report

  assumed = scaling_plan.assumed_values(given)
  recipe = given.get('config', _PLANNED_RECIPE)
  config = validation.load_config([f'--config={recipe}', *overrides])
  costs = scaling_plan.network(config)
  result |= {
    'measured': False,
    'recipe': recipe,
    'dtype': config.model.dtype,
    'network': costs,
    'assumed': assumed,
    'rows': scaling_plan.plan(
      costs,
      config.model.dtype,
      given.get('devices', scaling_plan.DEVICES),
      given.get('device_batch_size', scaling_plan.DEVICE_BATCH_SIZES),
      assumed,
    ),
  }
  scaling_report.show_plan(result)
  return result


def _measure(given, overrides, result):
  from alexnet_jax.bench import scaling_report

  given = {**_DEFAULTS, 'config': _MEASURED_RECIPE, **given}
  counts, steps = given['processes'], given['steps']
  if 1 not in counts or len(set(counts)) < len(counts):
    raise UserError(
      '--processes must have a 1, which the others are compared with, and each'
      ' number once'
    )
  cores = scaling_runs.shares_of_cores(max(counts))
  recipe = given['config']
  batch_size = _batch_size(recipe, overrides, given.get('device_batch_size'))
  with tempfile.TemporaryDirectory(prefix='alexnet_jax_bench_') as folder:
    run = scaling_runs.Training(
      (f'--config={recipe}', *overrides), steps, batch_size, cores, folder
    )
    rates = measure(run, counts, given['rounds'])
  result |= {
    'measured': True,
    'machine': machine.describe(),
    'cores_per_process': len(cores[0]),
    'recipe': recipe,
    'steps': steps,
    'device_batch_size': batch_size,
    'rows': summary(rates, batch_size),
  }
  scaling_report.show_measured(result)
  return result


def _batch_size(recipe, overrides, given):
  """Of each process; refuses a recipe and overrides that cannot be run."""
  from alexnet_jax import validation

  own = scaling_runs.settings(1, 1)
  timed_run.refuse_own(overrides, own, '--steps, --device_batch_size')
  config = validation.load_config([f'--config={recipe}', *overrides])
  sizes = given or (config.global_batch_size,)
  if len(sizes) > 1:
    raise UserError('--device_batch_size: only --plan takes several')
  return sizes[0]


def measure(
  run: Callable[[int], float], counts: Sequence[int], rounds: int
) -> dict[int, list[float]]:
  """Measures all numbers of processes in turn in every round.

  Args:
    run: gives the images per second of a number of processes.
    counts: those numbers.
    rounds: measurements of each.

  Returns:
    {number of processes: images per second of each round}.
  """
  rates = {count: [] for count in counts}
  for number in range(rounds):
    # The last one first in every other round: the machine may drift.
    for count in counts[:: -1 if number % 2 else 1]:
      rates[count].append(run(count))
      print(
        f'round {number + 1}: {count} process{"es" if count > 1 else ""}:'
        f' {rates[count][-1]:,.0f} images/s',
        file=sys.stderr,
      )
  return rates


def summary(rates: dict[int, list[float]], batch_size: int) -> list[dict]:
  """What the rounds say together.

  Args:
    rates: of `measure`.
    batch_size: of each process.

  Returns:
    Rows {processes, global_batch_size, images_per_second: of each round,
    median, min, max, efficiencies: of each round, the images per second by
    those of as many single processes in that round; efficiency: their median}.
  """
  rows = []
  for count, own in rates.items():
    shares = [
      rate / (count * one) for rate, one in zip(own, rates[1], strict=True)
    ]
    rows.append(
      {
        'processes': count,
        'global_batch_size': count * batch_size,
        'images_per_second': own,
        'median': statistics.median(own),
        'min': min(own),
        'max': max(own),
        'efficiencies': shares,
        'efficiency': statistics.median(shares),
      }
    )
  return rows

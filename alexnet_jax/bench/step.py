"""bench step: the train step by itself, its parts, and others beside it."""

import argparse
import importlib.util
import itertools
import shlex
import sys

from alexnet_jax.bench import machine
from alexnet_jax.bench import peer_network
from alexnet_jax.bench import step_process
from alexnet_jax.bench.arguments import positive
from alexnet_jax.bench.arguments import positives
from alexnet_jax.errors import EXIT_DONE
from alexnet_jax.errors import EXIT_FAILURE
from alexnet_jax.errors import how_to_install
from alexnet_jax.errors import UserError

_DESCRIPTION = """\
Times the train step that training runs, on a batch that stays on the devices:
images per second, milliseconds, memory, FLOPs as counted from the network and
from the compiled program, and their share of what the device can do at most.
Every network is measured with every dtype and batch size.

--against runs the same network, batch and precision in PyTorch and in Keras on
TensorFlow, each in a process of its own, all on the same cores, in turn in
every round. Before, each one shows that from equal weights and images it has
the same loss and makes the same updates. One that fails or does not is named
and left out; if none is left, the exit code is 1."""

RECIPE = 'configs/imagenet.py'
_PACKAGES = (
  *('alexnet_jax', 'flax', 'jax', 'jaxlib', 'keras', 'numpy', 'optax'),
  *('tensorflow', 'torch'),
)
PEERS = {
  'torch': ('torch eager', 'torch channels_last', 'torch compile'),
  'keras': ('keras plain', 'keras jit_compile'),
}
_WAYS = ', '.join(way for ways in PEERS.values() for way in ways)
_NEEDED = {'torch': ('torch',), 'keras': ('keras', 'tensorflow')}
_DTYPES = ('float32', 'bfloat16')
_PARALLEL = ('pmap', 'shard_map')
_FORMS = ('auto', 'plain')
_NUM_CLASSES = 1000  # where neither config nor data say otherwise


def add_arguments(commands) -> None:
  """Adds the subcommand to argparse's `commands`."""
  parser = commands.add_parser(
    'step',
    help='the train step alone, its layers, and PyTorch and Keras beside it',
    description=_DESCRIPTION,
    formatter_class=argparse.RawDescriptionHelpFormatter,
    allow_abbrev=False,
  )
  add = parser.add_argument
  add(
    '--config',
    default=RECIPE,
    metavar='FILE',
    help=f'the recipe (default: {RECIPE})',
  )
  add(
    '--networks',
    type=_names,
    default=(),
    metavar='A,B',
    help='names of models/variants.py (default: the network of the recipe)',
  )
  add(
    '--dtypes',
    type=_names,
    default=(),
    metavar='A,B',
    help=f"{', '.join(_DTYPES)} (default: the recipe's)",
  )
  add(
    '--batch_sizes',
    type=positives,
    default=(),
    metavar='A,B',
    help="images of a step, over all devices (default: the recipe's)",
  )
  add(
    '--parallel',
    type=_names,
    default=(),
    metavar='A,B',
    help=f"{', '.join(_PARALLEL)} (default: the recipe's)",
  )
  add(
    '--forms',
    type=_names,
    default=(),
    metavar='A,B',
    help="of the network's operations: auto, plain (default: the recipe's)",
  )
  add(
    '--against',
    type=_names,
    default=(),
    metavar='A,B',
    help=f'torch, keras, {_WAYS}',
  )
  add('--evaluation', action='store_true', help='the evaluation step, too')
  add('--layers', action='store_true', help='each layer by itself, too')
  add(
    '--threads',
    type=positive,
    default=0,
    help='cores that everybody runs on (default: all)',
  )
  add('--rounds', type=positive, default=5, help='default: 5')
  add(
    '--seconds',
    type=float,
    default=3.0,
    help='that a measurement takes at least, if 2 steps take less (default: 3)',
  )
  add('--skip_check', action='store_true', help='does not compare the losses')
  parser.set_defaults(work=_work, exit_code=exit_code)


def _names(text):
  return tuple(text.split(','))


def _work(arguments, overrides):
  from alexnet_jax.bench import step_report
  from alexnet_jax.bench import step_rounds

  _check_names('--dtypes', arguments.dtypes, _DTYPES)
  _check_names('--parallel', arguments.parallel, _PARALLEL)
  _check_names('--forms', arguments.forms, _FORMS)
  peers = _peers(arguments.against)
  if not 0 < arguments.seconds < float('inf'):
    raise UserError(f'--seconds is {arguments.seconds:g}; give more than 0')
  cores = step_process.cores_of(arguments.threads)
  groups = make_groups(arguments, overrides)
  if peers:
    task = next(iter(groups[0]['tasks'].values()))
    peer_network.check_updates(task['config'])
  options = step_rounds.Options(
    cores=cores,
    peers=peers,
    rounds=arguments.rounds,
    seconds=arguments.seconds,
    parts=('train', 'evaluate')[: 1 + arguments.evaluation],
    layers=arguments.layers,
    check=bool(peers) and not arguments.skip_check,
  )
  result = {
    'command': shlex.join(['python', '-m', 'alexnet_jax.bench', *sys.argv[1:]]),
    'machine': machine.describe(),
    'versions': machine.versions(_PACKAGES),
    'recipe': arguments.config,
    'threads': len(cores),
    'rounds': arguments.rounds,
    'groups': [],
  }
  for group in groups:
    result['groups'].append(step_rounds.measure(group, options))
    step_report.show_group(result['groups'][-1])
  step_report.show_notes(result)
  return result


def exit_code(result: dict) -> int:
  """Failure if a group was to be compared, and every peer failed."""
  for group in result['groups']:
    ours_only = all(
      row['contender'].startswith(step_process.OURS) for row in group['rows']
    )
    if group['failed'] and ours_only:
      return EXIT_FAILURE
  return EXIT_DONE


def _check_names(flag, given, known):
  if wrong := [name for name in given if name not in known]:
    raise UserError(f'{flag}: {wrong[0]!r} is not one of {", ".join(known)}')


def _peers(against):
  """The contenders that are asked for; refuses those that cannot run."""
  ways = [way for ways in PEERS.values() for way in ways]
  _check_names('--against', against, (*PEERS, *ways))
  needed = [p for name in against for p in _NEEDED[name.partition(' ')[0]]]
  if missing := [
    p for p in dict.fromkeys(needed) if importlib.util.find_spec(p) is None
  ]:
    raise UserError(
      f'{" and ".join(missing)} cannot be imported, which --against compares'
      f' with: {how_to_install("bench")}, or leave --against out'
    )
  return [way for name in against for way in PEERS.get(name, (name,))]


def make_groups(arguments, overrides) -> list[dict]:
  """What is measured together.

  Returns:
    [{network, dtype, batch_size, tasks: {contender: see `make_task`}}]; the
    contenders are ours, mapped over the devices and computed in various ways.

  Raises:
    UserError: if the recipe or one of the values makes no sense.
  """
  from alexnet_jax import config as config_lib
  from alexnet_jax import validation

  recipe = validation.load_config([f'--config={arguments.config}', *overrides])
  recipe.model.num_classes = _num_classes(recipe)
  groups = []
  for network, dtype, batch_size in itertools.product(
    arguments.networks or ('',),
    arguments.dtypes or (recipe.model.dtype,),
    arguments.batch_sizes or (recipe.global_batch_size,),
  ):
    config = recipe.copy_and_resolve_references()
    config.model.update(_network_fields(network))
    config.model.dtype = dtype
    config.global_batch_size = batch_size
    groups.append(
      {
        'network': network or config_lib.recipe_name(arguments.config),
        'dtype': dtype,
        'batch_size': batch_size,
        'tasks': _tasks(config, arguments),
      }
    )
  return groups


def _network_fields(network):
  from alexnet_jax.models import variants

  if not network:
    return {}
  try:
    fields = variants.fields(network)
  except ValueError as error:
    raise UserError(f'--networks: {error}') from error
  # What the recipe or the overrides say of these is kept.
  kept = ('kernel_init', 'bias_init', 'width_multiplier')
  return {name: value for name, value in fields.items() if name not in kept}


def _tasks(config, arguments):
  from alexnet_jax import validation

  tasks = {}
  for parallel, forms in itertools.product(
    arguments.parallel or (config.parallel,),
    arguments.forms or (config.forms,),
  ):
    config.parallel, config.forms = parallel, forms
    validation.validate(config)
    name = f'{step_process.OURS} {parallel}'
    if len(arguments.forms) > 1:
      name += f' {forms}'
    tasks[name] = make_task(config)
  return tasks


def make_task(config) -> dict:
  """What a contender has to do, as JSON.

  Returns:
    {config: of the run, as a dict, num_classes, platform: to be set to that of
    our devices}.
  """
  return {
    'config': config.to_dict(),
    'num_classes': config.model.num_classes or _NUM_CLASSES,
    'platform': '',
  }


def _num_classes(config):
  """Of the config or its data; a step needs none, and they may be missing."""
  from alexnet_jax.bench import plan_step

  try:
    return plan_step.num_classes(config)
  except UserError as error:
    print(
      f'{_NUM_CLASSES:,} classes are assumed'
      f' (--config.model.num_classes=N): {error}',
      file=sys.stderr,
    )
    return _NUM_CLASSES
